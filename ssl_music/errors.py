"""Mistakes of the user, told in one sentence instead of a traceback."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from ssl_music import interrupts
from ssl_music.text import printable


class InputError(Exception):
  """Bad input: the message says what, where and what to do about it."""


class Resumable(InputError):
  """The same, in long work: what is finished is kept for the next run."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
  """Makes an `InputError` of what a config's wrong value raises."""
  try:
    yield
  except (ArithmeticError, TypeError, ValueError) as error:
    raise InputError(f"{error}: change the config") from error


def report(command: Callable[[], int | None]) -> None:
  """Runs a command and leaves; an `InputError` becomes one line, exit code 2.

  Args:
    command: returns the exit code; None means 0.
  """
  interrupts.leave_at_once()
  if hasattr(sys.stdout, "reconfigure"):  # a name may be no UTF-8
    sys.stdout.reconfigure(errors="backslashreplace")
  sys.unraisablehook = _unraisable
  try:
    code = command()
    if sys.stdout:  # None where it was closed
      sys.stdout.flush()
  except InputError as error:
    print(f"error: {printable(str(error))}", file=sys.stderr)
    # Without the interpreter's end, which would wait for threads that a library
    # has left unfinished, as Orbax does where files cannot be opened.
    interrupts.leave(2)
  except KeyboardInterrupt:
    interrupts.leave(130)
  except BrokenPipeError:  # the reader of a pipe, such as `head`, has left
    interrupts.leave(141)
  sys.exit(code or 0)


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
  """Prints what nobody can catch, but for what says nothing.

  Where a checkpoint cannot be read or written, other reads and writes of Orbax
  end later, in threads, and find its event loop closed.
  """
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)
