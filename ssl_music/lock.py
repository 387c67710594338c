"""One process at a time."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from ssl_music.errors import InputError


@contextlib.contextmanager
def hold(
  folder: Path,
  what: str,
  advice: str,
  *,
  name: str = ".lock",
  shared: bool = False,
) -> Iterator[None]:
  """Keeps other processes out of a folder; the lock dies with the process.

  Args:
    folder: made where it is missing.
    what: for the message, "another process is {what} {folder}".
    advice: for the message, what to do instead.
    name: of the lock's file.
    shared: lets in others that share it, and keeps out those that do not.

  Raises:
    InputError: another process holds it, or the folder cannot be written to or
      has no locks.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / name).open("w")
  except OSError as error:
    raise InputError(
      f"cannot write to {folder} ({error.strerror}): {advice}"
    ) from error
  with file:
    try:
      kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
      fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(
        f"another process is {what} {folder}: wait for it, or {advice}"
      ) from error
    except OSError as error:
      raise InputError(
        f"cannot lock {folder} ({error.strerror}), which keeps two processes"
        f" out of it: mount its file system with locks, or {advice}"
      ) from error
    yield


def is_held(folder: Path) -> bool:
  """Says whether a process, this one included, keeps others out of a folder."""
  file = folder / ".lock"
  if not file.exists():
    return False
  with file.open() as opened:
    try:
      fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
    except OSError:  # a file system without locks, where nothing is held
      return False
  return False
