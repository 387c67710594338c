"""One process at a time."""

import errno
import fcntl
import os

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
