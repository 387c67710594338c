import errno
import os

import pytest

from ssl_music import disk
from ssl_music.errors import InputError, Resumable


@pytest.mark.parametrize(
  ("number", "advice"),
  [
    (errno.ENOSPC, "free some space there, or give another --out"),
    (errno.EDQUOT, "free some space there, or give another --out"),
    (errno.EFBIG, "free some space there, or give another --out"),
    (errno.EACCES, "make it writable, or give another --out"),
    (errno.EROFS, "make it writable, or give another --out"),
    (errno.EMFILE, "allow more open files with `ulimit -n`, or give another"),
    (errno.EIO, "check its disk, or give another --out"),
    (errno.ENOENT, "check that folder and its disk, or give another --out"),
  ],
)
def test_a_failed_write_names_its_cause(tmp_path, number, advice):
  with (
    pytest.raises(Resumable) as raised,
    disk.explained(
      "write vectors to",
      tmp_path,
      option="--out",
      after="go on",
      kind=Resumable,
    ),
  ):
    raise OSError(number, os.strerror(number), str(tmp_path / "inside"))
  said = f"cannot write vectors to {tmp_path} ({os.strerror(number)}): {advice}"
  assert str(raised.value).startswith(said)
  assert str(raised.value).endswith("; go on")


def test_a_file_elsewhere_is_named(tmp_path):
  with (
    pytest.raises(InputError, match=r"to .*out \(/nowhere/x: No space"),
    disk.explained("write to", tmp_path / "out"),
  ):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/nowhere/x")


def test_a_reader_of_a_pipe_that_left_is_no_full_disk(tmp_path):
  with pytest.raises(BrokenPipeError), disk.explained("write to", tmp_path):
    raise BrokenPipeError


def test_a_write_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
  file = tmp_path / "é.json"
  disk.write(file, "ä" * 10)
  assert file.read_text("utf-8") == "ä" * 10
  disk.write(str(file), b"new")
  assert file.read_bytes() == b"new"
  assert list(tmp_path.iterdir()) == [file]

  def full(handle):
    raise OSError(errno.ENOSPC, "full")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="full"):
    disk.write(file, "newer")
  assert file.read_bytes() == b"new"


def test_a_failed_read_names_its_cause(tmp_path):
  for number, advice in (
    (errno.EACCES, "make it readable"),
    (errno.EMFILE, "allow more open files"),
    (errno.ENFILE, "close some of the system's open files"),
    (errno.ENOMEM, "free some memory"),
    (errno.EIO, "check its disk"),
    (errno.ENOENT, "restore it"),
  ):
    said = rf"cannot read .* \({os.strerror(number)}\): {advice}"
    with (
      pytest.raises(InputError, match=said),
      disk.readable(tmp_path, "restore it"),
    ):
      raise OSError(number, os.strerror(number))
