"""One process at a time."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from ssl_music.errors import InputError


@contextlib.contextmanager
def hold(
  folder: Path,
  what: str,
  advice: str,
  *,
  name: str = ".lock",
  shared: bool = False,
  wait: bool = False,
) -> Iterator[None]:
  """Keeps other processes out of a folder; the lock dies with the process.

  Args:
    folder: made where it is missing.
    what: for the message, "another process is {what} {folder}".
    advice: for the message, what to do instead.
    name: of the lock's file.
    shared: lets in others that share it, and keeps out those that do not.
    wait: waits for the other process instead of raising an error.

  Raises:
    InputError: another process holds it, or the folder cannot be written to or
      has no locks.
  """
  kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
  while True:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      handle = _open(folder / name)
    except OSError as error:
      link = error.errno == errno.ELOOP
      reason = f"{name} is a symbolic link" if link else error.strerror
      raise InputError(
        f"cannot write to {folder} ({reason}): {advice}"
      ) from error
    try:
      _lock(handle, kind, wait, folder, what, advice)
      if _is_at(handle, folder / name):
        yield
        return
      # Its holder has removed it with its folder: others lock a new file.
    finally:
      os.close(handle)


def is_held(folder: Path) -> bool:
  """Says whether a process, this one included, keeps others out of a folder."""
  try:
    handle = os.open(folder / ".lock", os.O_RDONLY | os.O_NOFOLLOW)
  except OSError:  # nobody has ever held it, or nobody can
    return False
  try:
    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:  # a file system without locks, where nothing is held
    return False
  finally:
    os.close(handle)
  return False


def _open(file: Path) -> int:
  """Opens a lock's file, not what a link points to, and leaves its content."""
  return os.open(
    file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
  )


def _lock(
  handle: int, kind: int, wait: bool, folder: Path, what: str, advice: str
) -> None:
  try:
    try:
      fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
      if not wait:
        raise
      logging.warning("waiting for the process that is %s %s", what, folder)
      fcntl.flock(handle, kind)
  except BlockingIOError as error:
    raise InputError(
      f"another process is {what} {folder}: wait for it, or {advice}"
    ) from error
  except OSError as error:
    raise InputError(
      f"cannot lock {folder} ({error.strerror}), which keeps two processes"
      f" out of it: mount its file system with locks, or {advice}"
    ) from error


def _is_at(handle: int, file: Path) -> bool:
  """Says whether an open file still has its name."""
  try:
    return os.path.samestat(os.fstat(handle), file.lstat())
  except FileNotFoundError:
    return False
