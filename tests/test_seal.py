import json

import numpy as np
import pytest

from ssl_music import seal
from ssl_music.errors import InputError

ADVICE = "make it again"


@pytest.fixture
def folder(tmp_path):
  """A sealed folder: a text, numbers of 2.5 blocks, a file with a head."""
  (tmp_path / "text").write_text("some text")
  (tmp_path / "card.json").write_text('{"sealed": true}')
  (tmp_path / "empty").touch()
  numbers = np.arange(5 * seal.BLOCK // 8, dtype="<f4")
  numbers.tofile(tmp_path / "numbers")
  (tmp_path / "big").write_bytes(bytes(range(256)) * 100)
  names = ["text", "card.json", "empty", "numbers"]
  seal.close(tmp_path, names, heads=["big"])
  return tmp_path


def opened(folder):
  return seal.Sealed(folder, ADVICE, "card.json")


def flip(file, place):
  content = bytearray(file.read_bytes())
  content[place] ^= 4
  file.write_bytes(content)


def test_whole_files_are_read(folder):
  (folder / "other").write_text("not sealed")
  found = opened(folder)
  assert found.read("text") == b"some text"
  assert found.read("empty") == b""
  assert found.read("other") == b"not sealed"
  numbers = found.map("numbers", "<f4")
  assert len(numbers) == 5 * seal.BLOCK // 8
  for where in (slice(0, 3), slice(seal.BLOCK // 4 - 1, seal.BLOCK // 4 + 1)):
    assert numbers[where].tolist() == list(range(where.start, where.stop))
  assert len(numbers[len(numbers) :]) == 0
  assert not numbers[:1].flags.writeable
  assert len(found.map("empty", "<f4")[:]) == 0


def test_a_flipped_bit_is_found_where_it_is_read(folder):
  flip(folder / "text", 3)
  flip(folder / "numbers", seal.BLOCK + 8)
  found = opened(folder)
  said = r"text is damaged \(.*\): restore that file, or make it again"
  with pytest.raises(InputError, match=said):
    found.read("text")
  numbers = found.map("numbers", "<f4")
  before = seal.BLOCK // 4
  assert numbers[before - 2 : before].tolist() == [before - 2, before - 1]
  assert numbers[-1:].tolist() == [len(numbers) - 1]
  for _ in range(2):
    with pytest.raises(InputError, match=rf"numbers .* byte {seal.BLOCK}\)"):
      numbers[before - 1 : before + 1]


@pytest.mark.parametrize("name", ["text", "empty", "numbers", "big"])
def test_another_length_is_found_when_opened(folder, name):
  with (folder / name).open("ab") as file:
    file.write(b"x")
  with pytest.raises(InputError, match=rf"{name} is damaged .* bytes instead"):
    opened(folder)
  (folder / name).unlink()
  with pytest.raises(InputError, match=rf"cannot read .*{name} \(No such file"):
    opened(folder)


def test_another_file_of_the_same_length_is_found(folder):
  flip(folder / "big", 20)
  with pytest.raises(InputError, match=r"big is damaged \(.* not the one"):
    opened(folder)


def test_every_damage_to_the_seal_is_found(folder):
  file = folder / seal.NAME
  whole = file.read_bytes()
  for place in range(len(whole) - 1):
    flip(file, place)
    with pytest.raises(InputError, match=r"seal\.json is damaged"):
      opened(folder)
    file.write_bytes(whole[:place])
    with pytest.raises(InputError, match=r"seal\.json is damaged"):
      opened(folder)
    file.write_bytes(whole)
  file.unlink()
  with pytest.raises(InputError, match=r"seal\.json is missing"):
    opened(folder)


def test_a_folder_made_before_has_no_seal(folder):
  (folder / seal.NAME).unlink()
  (folder / "card.json").write_text("{}")
  flip(folder / "text", 0)
  found = opened(folder)
  assert found.files == {}
  assert found.read("text") == b"wome text"
  assert found.map("numbers", "<f4")[1:3].tolist() == [1, 2]


def test_a_folder_grows(folder):
  seal.put(folder, "text", "another", ADVICE)
  seal.put(folder, "new", b"more", ADVICE)
  assert opened(folder).read("text") == b"another"
  flip(folder / "new", 0)
  with pytest.raises(InputError, match="new is damaged"):
    opened(folder).read("new")
  assert opened(folder).read("numbers")


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_kill_between_file_and_seal_refuses_nothing(
  folder, monkeypatch, last
):
  done = []
  write = seal.disk.write

  def killed(*arguments):
    done.append(1)
    if len(done) == last:
      raise KeyboardInterrupt
    write(*arguments)

  monkeypatch.setattr(seal.disk, "write", killed)
  with pytest.raises(KeyboardInterrupt):
    seal.put(folder, "text", "another", ADVICE)
  expected = b"some text" if last < 3 else b"another"
  assert opened(folder).read("text") == expected


def test_the_seal_is_plain_json(folder):
  found = json.loads((folder / seal.NAME).read_text())
  assert found["files"]["empty"] == {"bytes": 0, "crc32": []}
  assert len(found["files"]["numbers"]["crc32"]) == 3
