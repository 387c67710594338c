"""Ctrl-C ends a command within two seconds, whatever it is at.

Python calls a signal's handler in the main thread, between two of its
instructions, and that thread may be in a compiler or an import for a minute;
what the handler raises there may be caught, or crash what it passes through. So
a thread of its own watches for signals and leaves.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator

_GRACE = 1.5  # s to remove what is unfinished


def leave_at_once() -> None:
  """Makes Ctrl-C end this process at once, with exit code 130.

  Later handlers of `unwinding` and `workdir.stop_on_signals` take precedence.
  Call it in the main thread. Where Ctrl-C is ignored, it stays ignored.
  """
  if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    return
  reading, writing = os.pipe()
  os.set_blocking(writing, False)
  signal.set_wakeup_fd(writing)
  signal.signal(signal.SIGINT, _at_once)
  threading.Thread(target=_watch, args=(reading,), daemon=True).start()


@contextlib.contextmanager
def unwinding(grace: float = _GRACE) -> Iterator[None]:
  """Removes what is unfinished, by exceptions, when SIGINT or SIGTERM comes.

  The code inside gets a KeyboardInterrupt or a SystemExit; then the process
  leaves. For commands, in the main thread.

  Args:
    grace: seconds after which the process leaves in any case.
  """
  received = []

  def unwind(number: int, frame: object) -> None:
    del frame
    received.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit

  unwind.grace = grace
  numbers = signal.SIGINT, signal.SIGTERM
  before = [signal.signal(number, unwind) for number in numbers]
  try:
    yield
  finally:
    if received:
      leave(128 + received[0])
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)


def leave(code: int) -> None:
  """Ends the process and its children without waiting for anything in it."""
  # Not imported here, where each import makes Ctrl-C act later.
  processes = sys.modules.get("multiprocessing.process")
  of_another = processes and processes.parent_process()

  def flush() -> None:
    if code == 128 + signal.SIGINT and not of_another:
      print("\ninterrupted", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(AttributeError, OSError, ValueError):
        stream.flush()

  # Another thread may be writing, and stuck.
  flushing = threading.Thread(target=flush, daemon=True)
  try:
    flushing.start()
    flushing.join(0.3)
  except RuntimeError:  # there can be no more threads
    flush()
  # Such as readers. Last, since the main thread would replace them meanwhile.
  for child in processes.active_children() if processes else ():
    child.kill()
  os._exit(code)


def _at_once(number: int, frame: object) -> None:
  """Does nothing: `_watch` leaves."""


def _watch(reading: int) -> None:
  """Leaves at a signal, unless its handler sees to that; at the next, always.

  Args:
    reading: the end of a pipe that tells the signals' numbers.
  """
  seen = set()
  while told := os.read(reading, 1):
    number = told[0]
    handler = signal.getsignal(number)
    if number not in (signal.SIGINT, signal.SIGTERM):
      continue
    if handler is not _at_once and number not in seen:
      seen.add(number)
      if not hasattr(handler, "grace"):
        continue
      select.select([reading], [], [], handler.grace)
    leave(128 + number)
