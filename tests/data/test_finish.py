import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from ssl_music.data import finish, parts, writer
from ssl_music.data.tracks import find
from ssl_music.errors import InputError, Resumable

HERE = Path(__file__).parent


def test_a_kill_at_any_line_of_finishing_loses_nothing(tmp_path):
  environment = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent}"}
  done = subprocess.run(
    [sys.executable, HERE / "kills.py", tmp_path, "over"],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, done.stderr[-2000:]
  assert int(done.stdout) > 200


def same(one, other):
  names = {file.name for file in one.iterdir()}
  assert {file.name for file in other.iterdir()} == names
  for name in names:
    assert (one / name).read_bytes() == (other / name).read_bytes(), name


def unfinished(tmp_path, monkeypatch):
  """A run that was killed when two shards were in their places."""
  moved = []

  def rename(self, target):
    moved.append(self)
    if len(moved) == 3:
      raise KeyboardInterrupt
    return os.rename(self, target)  # noqa: PTH104 (it is what is replaced)

  with monkeypatch.context() as patch:
    store = finish.store

    def stored(*arguments):
      store(*arguments)
      patch.setattr(Path, "rename", rename)

    patch.setattr(finish, "store", stored)
    with pytest.raises(KeyboardInterrupt):
      tiny.write(tmp_path)
  return tmp_path / "tiny" / f"incomplete.{writer.VERSION}"


@pytest.mark.parametrize(
  "damage", ["state cut", "state empty", "state changed", "shard", "table"]
)
def test_a_damaged_unfinished_data_set_is_written_again(
  tmp_path, monkeypatch, data_dir, damage
):
  work = unfinished(tmp_path, monkeypatch)
  state = work / finish.STATE
  if damage == "state cut":
    state.write_bytes(state.read_bytes()[:-9])
  if damage == "state empty":
    state.write_bytes(b"")
  if damage == "state changed":
    state.write_text(state.read_text().replace('"records"', '"recordz"'))
  if damage == "shard":
    next((work / finish.WHOLE).glob("*array_record*")).unlink()
  if damage == "table":
    (work / finish.WHOLE / "tracks.csv").unlink()
  tiny.write(tmp_path)
  same(find("tiny", data_dir), find("tiny", tmp_path))


def test_what_a_version_before_has_left_unfinished_is_no_trap(
  tmp_path, monkeypatch, data_dir
):
  """It moved the shards up, and its folder of parts away, before its end."""
  work = unfinished(tmp_path, monkeypatch)
  (work / finish.STATE).unlink()
  (work / finish.PARTS).rename(work / "written")
  tiny.write(tmp_path)
  same(find("tiny", data_dir), find("tiny", tmp_path))


@pytest.mark.parametrize("there", [True, False])
def test_a_kill_after_the_last_renaming(tmp_path, monkeypatch, data_dir, there):
  """The data set is finished, if nobody has moved it away since."""
  with monkeypatch.context() as patch:
    patch.setattr(finish, "remove", lambda _: None)
    first = tiny.write(tmp_path)
  if there:
    monkeypatch.setattr(parts.Write, "__call__", None)
  else:
    first["folder"].rename(tmp_path / "elsewhere")
  assert tiny.write(tmp_path, overwrite=True) == first
  same(find("tiny", data_dir), find("tiny", tmp_path))
  assert len(list(first["folder"].parent.iterdir())) == 2  # and the lock


def test_a_full_disk_while_finishing_is_told_as_such(tmp_path, monkeypatch):
  def full(*_, **__):
    raise OSError(28, os.strerror(28))

  with monkeypatch.context() as patch:
    patch.setattr(finish.seal, "close", full)
    with pytest.raises(Resumable, match=r"\(No space left .*\): free some"):
      tiny.write(tmp_path)
  monkeypatch.setattr(parts.Write, "__call__", None)  # nothing is written anew
  tiny.write(tmp_path)
  assert find("tiny", tmp_path)


def test_a_missing_permission_is_told_as_such(tmp_path, monkeypatch):
  def refused(*_, **__):
    raise PermissionError(13, os.strerror(13))

  monkeypatch.setattr(finish, "begin", refused)
  with pytest.raises(InputError, match=r"denied\): make it writable, or give"):
    tiny.write(tmp_path)
