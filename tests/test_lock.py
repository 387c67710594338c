"""One process at a time."""

import errno
import fcntl
import os
import shutil
import threading
import time

import pytest

from ssl_music import lock
from ssl_music.errors import InputError


def test_one_at_a_time(tmp_path):
  with lock.hold(tmp_path, "writing to", "wait"):
    assert lock.is_held(tmp_path)
    with (
      pytest.raises(
        InputError, match=r"another process is writing to .*: wait"
      ),
      lock.hold(tmp_path, "writing to", "wait"),
    ):
      pass
  assert not lock.is_held(tmp_path)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, "flock", refuse)
  with (
    pytest.raises(InputError, match=r"cannot lock .* \(No locks available\)"),
    lock.hold(tmp_path, "writing to", "give another folder"),
  ):
    pass
  assert not lock.is_held(tmp_path)


def test_a_link_is_not_followed(tmp_path):
  victim = tmp_path / "thesis.txt"
  victim.write_text("years of work")
  folder = tmp_path / "folder"
  folder.mkdir()
  (folder / ".lock").symlink_to(victim)
  with (
    pytest.raises(InputError, match=r"\.lock is a symbolic link\): give"),
    lock.hold(folder, "writing to", "give another folder"),
  ):
    pass
  assert not lock.is_held(folder)
  assert victim.read_text() == "years of work"


def test_a_lock_that_went_with_its_folder_is_taken_anew(tmp_path, monkeypatch):
  """What another process has removed between opening and locking."""
  folder, flock = tmp_path / "folder", fcntl.flock
  removed = []

  def late(handle, kind):
    if not removed:
      shutil.rmtree(folder)
      removed.append(folder)
    flock(handle, kind)

  monkeypatch.setattr(fcntl, "flock", late)
  with lock.hold(folder, "writing to", "wait"):
    assert removed
    assert lock.is_held(folder)


def test_waits_when_told_to(tmp_path):
  order = []

  def second():
    with lock.hold(tmp_path, "writing to", "", wait=True):
      order.append("second")

  with lock.hold(tmp_path, "writing to", ""):
    other = threading.Thread(target=second)
    other.start()
    time.sleep(0.05)
    order.append("first")
  other.join()
  assert order == ["first", "second"]
