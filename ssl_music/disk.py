"""Writes files whole or not at all, and explains why a disk takes none."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssl_music.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# What the machine may lack, whatever file or process it is for.
LACKING = {
  errno.EMFILE: "allow more open files with `ulimit -n`",
  errno.ENFILE: "close some of the system's open files",
  errno.EAGAIN: "allow more processes with `ulimit -u`",
  errno.ENOMEM: "free some memory",
}
_FAILING = (
  *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN),
)
# What says nothing about a file's content.
SYSTEM = (*_FORBIDDEN, *LACKING, *_FAILING)


def write(file: str | os.PathLike, content: str | bytes) -> None:
  """Replaces a file; whoever reads it finds the old or the new, whole.

  Args:
    file: in a folder that exists. `FILE.partial` beside it is overwritten.
    content: text is written as UTF-8.

  Raises:
    OSError: it cannot be written.
  """
  file = Path(file)
  partial = file.with_name(f"{file.name}.partial")
  data = content.encode() if isinstance(content, str) else content
  with partial.open("wb") as opened:
    opened.write(data)
    opened.flush()
    os.fsync(opened.fileno())
  partial.rename(file)
  sync(file.parent)


def sync(path: Path) -> None:
  """Waits until a file's content or a folder's names survive a power cut."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  except OSError as error:  # some file systems cannot do it for folders
    if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
      raise
  finally:
    os.close(handle)


@contextlib.contextmanager
def explained(
  doing: str,
  where: str | os.PathLike,
  *,
  option: str = "",
  after: str = "",
  kind: type[InputError] = InputError,
) -> Iterator[None]:
  """Makes an `InputError` of an `OSError`, with its cause and what helps.

  Wrap the calls that write, and no others: an error of reading a user's file
  would be told as one of the folder.

  Args:
    doing: such as "write vectors to".
    where: the file or folder, which ends the phrase.
    option: that names another place, such as "--out"; "" where none does.
    after: what becomes of finished work, such as "the same command goes on".
    kind: the error to raise.

  Raises:
    InputError: "cannot write vectors to out (No space left on device): free
      some space there, or give another --out; the same command goes on".
  """
  try:
    yield
  except ConnectionError:  # a pipe whose reader has left is no disk
    raise
  except OSError as error:
    where, reason = Path(where), error.strerror or str(error)
    failed = error.filename if isinstance(error.filename, str) else ""
    if failed and not Path(failed).absolute().is_relative_to(where.absolute()):
      reason = f"{failed}: {reason}"
    help_ = advice_on(error.errno, "writable", "check that folder and its disk")
    steps = [help_, f"give another {option}" if option else ""]
    text = f"cannot {doing} {where} ({reason})"
    text += f": {', or '.join(filter(None, steps))}"
    raise kind(f"{text}; {after}" if after else text) from error


@contextlib.contextmanager
def temporary() -> Iterator[str]:
  """Yields the folder for temporary files.

  Raises:
    InputError: there is none, or it cannot be written to.
  """
  try:
    folder = tempfile.gettempdir()
  except FileNotFoundError as error:
    raise InputError(
      "no folder for temporary files can be written to: set TMPDIR to one"
    ) from error
  with explained("write temporary files to", folder, option="TMPDIR"):
    yield folder


@contextlib.contextmanager
def readable(file: str | os.PathLike, advice: str) -> Iterator[None]:
  """Makes an `InputError` of an `OSError` of reading a file.

  Args:
    file: that is read.
    advice: what to do if it is missing, or no such file.

  Raises:
    InputError: "cannot read seal.json (No such file or directory): {advice}".
  """
  try:
    yield
  except OSError as error:
    advice = advice_on(error.errno, "readable", advice)
    raise InputError(
      f"cannot read {file} ({error.strerror or error}): {advice}"
    ) from error


def advice_on(number: int | None, able: str, otherwise: str) -> str:
  """Returns what to do about an error of writing or reading.

  Args:
    number: of the system's error, if it is known.
    able: "writable" or "readable".
    otherwise: what to do about any other error.
  """
  if number in _FULL:
    return "free some space there"
  if number in _FORBIDDEN:
    return f"make it {able}"
  if number in _FAILING:
    return "check its disk"
  return LACKING.get(number, otherwise)


def number_in(text: str) -> int | None:
  """Returns the number of the system's error that a library tells in words."""
  return next((n for n in errno.errorcode if os.strerror(n) in text), None)
