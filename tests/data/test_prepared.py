import csv
import json
import re
import shutil

import numpy as np
import pytest
import spoil
import tiny

from ssl_music import seal
from ssl_music.data import prepared
from ssl_music.data.tracks import Tracks, find
from ssl_music.errors import InputError

AGAIN = "restore that file, or make that data set again by python -m"


@pytest.mark.parametrize("seed", [0, 1])
def test_damage_is_refused_or_changes_nothing(tmp_path, seed):
  found = spoil.run(tmp_path, 200, seed)
  assert set(found) == {"refused", "same"}, found
  assert len(found["refused"]) > 150


def test_damage_to_a_data_set_without_a_seal_is_no_traceback(tmp_path):
  found = spoil.run(tmp_path, 300, 0, sealed=False)
  assert "traceback" not in found, found["traceback"]
  assert len(found["refused"]) > 200


def test_a_data_set_made_before_is_read_alike(tmp_path):
  spoil.make(tmp_path / "old", sealed=False)
  spoil.make(tmp_path / "new")
  assert spoil.read(tmp_path / "old") == spoil.read(tmp_path / "new")
  # Of the same audio, too.
  old, new = (
    Tracks("tiny", data_dir=tmp_path / name).fingerprint()
    for name in ("old", "new")
  )
  assert old == new


@pytest.fixture
def old(tmp_path):
  """A data set without a seal."""
  return spoil.make(tmp_path, sealed=False)


def change(file, old, new):
  """Changes a text once."""
  text = file.read_text()
  assert old in text
  file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
  ("name", "was", "now", "said"),
  [
    ("tracks.csv", "train,2,", "train,0,", "records of train"),
    ("tracks.csv", ",train,", ",trian,", "row 1 is none of a track"),
    ("tracks.csv", ",120765,", ",56765,", "records of train"),
    ("tracks.csv", ",120765,", ",123965,", "energy.f32 is damaged"),
    ("tracks.csv", "6208", "9208", "another mean than tracks.csv"),
    ("tracks.csv", "6208.57862", "nan", "out of its range"),
    ("tracks.csv", ",120765,", ",12x,", "invalid literal"),
    ("tracks.csv", "pitch---high", "pitch---hign", "no label"),
    ("tracks.csv", "id,path", "id,paht", "its columns are not id, path"),
    ("dataset_info.json", '"2"', '"3"', "records of train"),
    ("dataset_info.json", '"train"', '"tarin"', "a split of it is unknown"),
    ("dataset_info.json", '"tiny"', '"tinu"', "it is missing"),
    ("features.json", '"3"', '"4"', "it has 3 labels"),
    ("card.json", '"max_seconds": null', '"max_seconds": "x"', "max_seconds"),
    ("card.json", '"benchmark"', '"benchmarc"', "benchmark is missing"),
    ("skipped.csv", ",validation,", ",,", "row 1 is none"),
  ],
)
def test_tables_that_disagree_are_named(old, name, was, now, said):
  change(old / name, was, now)
  with pytest.raises(InputError, match=rf"{said}.*{AGAIN}"):
    spoil.read(old.parents[1])


def test_shards_that_changed_places_are_noticed(old):
  one, other = sorted(old.glob("*train.array_record*"))[:2]
  content = one.read_bytes()
  one.write_bytes(other.read_bytes())
  other.write_bytes(content)
  with pytest.raises(
    InputError, match=rf"{one}.*of track 't03', not 0 of 't00'"
  ):
    spoil.read(old.parents[1])


def test_a_shard_of_other_audio_is_noticed(tmp_path):
  folder = spoil.make(tmp_path / "one")
  other = tiny.write(
    tmp_path / "other", rows=spoil.ROWS, load=lambda t: [-tiny.waveform(t)]
  )["folder"]
  name = sorted(folder.glob("*train.array_record*"))[0].name
  assert (folder / name).stat().st_size == (other / name).stat().st_size
  shutil.copy(other / name, folder / name)
  with pytest.raises(InputError, match=rf"{name} is damaged .*not the one"):
    spoil.read(tmp_path / "one")


def test_a_lost_seal_or_card_is_noticed(tmp_path):
  folder = spoil.make(tmp_path)
  for name in (seal.NAME, "card.json"):
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}.*{AGAIN}"):
      prepared.read(find("tiny", tmp_path))
    (folder / name).write_bytes(content)


def test_the_seal_holds_every_file(tmp_path):
  folder = spoil.make(tmp_path)
  sealed = json.loads((folder / seal.NAME).read_text())["files"]
  assert {*sealed, seal.NAME} == {file.name for file in folder.iterdir()}
  (large,) = (
    len(e.get("crc32", [])) for n, e in sealed.items() if "energy" in n
  )
  assert large == 1


def test_energies_are_verified_where_they_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(seal, "BLOCK", 512)
  folder = spoil.make(tmp_path)
  tracks = Tracks("tiny", ("train", "validation", "test"), tmp_path)
  right = [tracks.energy(track).copy() for track in range(5)]
  energies = np.fromfile(folder / "energy.f32", "<f4")
  energies[0] *= 1.01
  energies.tofile(folder / "energy.f32")
  tracks = Tracks("tiny", ("train", "validation", "test"), tmp_path)
  np.testing.assert_array_equal(tracks.energy(4), right[4])
  with pytest.raises(InputError, match=rf"energy.f32 is damaged .*{AGAIN}"):
    tracks.energy(0)


def test_other_audio_of_the_same_names_has_another_fingerprint(tmp_path):
  def prints(name, **fields):
    tiny.write(tmp_path / name, **fields)
    tracks = Tracks("tiny", data_dir=tmp_path / name)
    return tracks.fingerprint(), tracks.fingerprint(labels=True)

  one = prints("one")
  assert prints("same") == one
  louder = prints("louder", load=lambda t: [1.01 * tiny.waveform(t)])
  halves = [whole.split("-") for whole in (one[0], louder[0])]
  assert halves[0][0] == halves[1][0]
  assert halves[0][1] != halves[1][1]
  rows = tiny.tracks()
  rows[0]["tags"] = []
  same = lambda track: tiny.load(tiny.tracks()[track["index"]])
  retagged = prints("retagged", rows=rows, load=same)
  assert retagged[0] == one[0]
  assert retagged[1] != one[1]
  assert all(re.fullmatch("[0-9a-f]{12}-[0-9a-f]{16}", p) for p in one)


def test_ids_that_look_like_formulas_are_text_in_a_spreadsheet(tmp_path):
  names = ["=1+1", "'=1+1", "-x\x1b[2J", "plain"]
  lost = [
    tiny.tracks()[0] | {"id": name, "path": name, "file": None}
    for name in names
  ]
  folder = tiny.write(tmp_path, rows=[*spoil.ROWS, *lost])["folder"]
  with (folder / "skipped.csv").open(newline="") as file:
    cells = [row["id"] for row in csv.DictReader(file)]
  assert cells == ["'=1+1", "''=1+1", "'-x\x1b[2J", "plain"]
  assert Tracks("tiny", ("train",), tmp_path).missing["train"] == names
