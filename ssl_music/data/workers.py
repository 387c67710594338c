"""Worker processes that survive a file that crashes its decoder."""

import collections
import contextlib
import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from ssl_music import disk
from ssl_music.errors import InputError

# Results wait in memory until their turn: a few for each process keep all busy.
_AHEAD = 4

NOT_BEGUN = (
  "worker processes end before they begin: each imports the script that starts"
  ' them, so put what it does below `if __name__ == "__main__":`; or memory is'
  " short, so start fewer"
)
_NOT_SHARED = (
  *(errno.ENOENT, errno.EROFS, errno.EACCES),
  *(errno.EPERM, errno.ENOSYS, errno.ENOSPC),
)

Run = Callable[[Callable, Iterable], Iterator[tuple[Any, Any]]]


def cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):  # not everywhere
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@contextlib.contextmanager
def pool(processes: int) -> Iterator[Run]:
  """Yields `run(function, items)`, which yields (item, result) in order.

  The function goes to the processes by pickling; they end with the context,
  whatever they are at. An item whose process dies is tried once more alone; if
  that process dies too, its result is a string that says so.

  Args:
    processes: how many; 0 runs in this process.

  Raises:
    InputError: processes cannot be started, or end before they begin.
  """
  if not processes:
    yield lambda function, items: ((item, function(item)) for item in items)
    return
  executors: list[ProcessPoolExecutor] = []
  pipe = multiprocessing.get_context("spawn").Pipe
  with starting():
    # Closing the one end tells who holds the other to leave.
    leave, leaving = pipe(duplex=False)
    begun, begins = pipe(duplex=False)
  ends = leave, begins

  def run(function, items):
    executor = _executor(processes, executors, ends)

    def submit(item):
      nonlocal executor
      try:
        with _deaf():
          return executor.submit(_call, function, item)
      # It broke while nobody waited for it, or (OSError, until Python 3.12)
      # while this very call was starting another process.
      except (OSError, RuntimeError):
        executor = _executor(processes, executors, ends)
        with starting(), _deaf():
          return executor.submit(_call, function, item)

    items = iter(items)
    queue: collections.deque = collections.deque()
    while True:
      for item in items:
        queue.append((item, submit(item)))
        if len(queue) >= processes * _AHEAD:
          break
      if not queue:
        return
      item, future = queue.popleft()
      try:
        result = future.result()
      except BrokenProcessPool:
        if not begun.poll():
          raise InputError(NOT_BEGUN) from None
        result = _alone(function, item, ends)
        queue = collections.deque((item, submit(item)) for item, _ in queue)
      yield item, result

  try:
    yield run
  finally:
    for executor in executors:
      executor.shutdown(wait=False, cancel_futures=True)
    for end in (leaving, leave, begun, begins):
      end.close()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
  """Starts processes that Ctrl-C in a terminal, which reaches all, leaves."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def starting() -> Iterator[None]:
  """Explains why processes cannot be started.

  Raises:
    InputError: the system lacks something, or a script is not guarded.
  """
  try:
    yield
  except OSError as error:
    advice = disk.LACKING.get(error.errno)
    if error.errno in _NOT_SHARED and not error.filename:  # and of no file
      advice = "mount a writable /dev/shm for them"
    if not advice:
      raise
    raise InputError(
      f"cannot run worker processes ({error.strerror}): {advice}, or do"
      " without them by --processes=0 or --config.data.workers=0"
    ) from error
  except RuntimeError as error:
    if "bootstrapping" in str(error):  # of which the parent tells
      os._exit(1)
    raise


def _executor(
  processes: int, executors: list[ProcessPoolExecutor], ends: Sequence
) -> ProcessPoolExecutor:
  # Forking would copy this process's threads' locks.
  context = multiprocessing.get_context("spawn")
  with starting():
    executor = ProcessPoolExecutor(processes, context, _start, ends)
  executors.append(executor)
  return executor


def _alone(function: Callable, item: Any, ends: Sequence) -> Any:
  executors: list[ProcessPoolExecutor] = []
  with _executor(1, executors, ends) as executor:
    try:
      with _deaf():
        future = executor.submit(_call, function, item)
      return future.result()
    except BrokenProcessPool:
      return "crashed the decoder"


def _start(leave: Connection, begins: Connection) -> None:
  """Prepares a worker process."""
  begins.send_bytes(b"1")
  # Mp3 decoders print notes; the report names those files.
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  threading.Thread(target=_end, args=(leave,), daemon=True).start()


def _call(function: Callable, item: Any) -> Any:
  """Calls a function in a worker process, which may have to leave meanwhile."""
  with _state.gate:
    if _state.leaving:
      os._exit(1)
    _state.calling = True
  try:
    return function(item)
  finally:
    with _state.gate:
      _state.calling = False


class _State:
  """What a worker process is at."""

  def __init__(self):
    self.gate = threading.Lock()
    self.calling = self.leaving = False


_state = _State()


def _end(leave: Connection) -> None:
  """A killed parent cannot stop its workers: each watches it.

  Where the parent lives on, a worker must not leave while it sends a result:
  the parent would wait for the rest of it for ever, since it holds the other
  end of the pipe itself. So it leaves out of a call, at once or out of its
  next one; without a next one the executor ends it.
  """
  parent = multiprocessing.parent_process()
  gone = multiprocessing.connection.wait([parent.sentinel, leave])
  if parent.sentinel not in gone:
    with _state.gate:
      _state.leaving = True
      if _state.calling:
        os._exit(1)
    multiprocessing.connection.wait([parent.sentinel])
  os._exit(1)
