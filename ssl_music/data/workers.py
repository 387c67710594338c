"""Worker processes that survive a file that crashes its decoder."""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

# Results wait in memory until their turn: a few for each process keep all busy.
_AHEAD = 4

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
  whatever they are at. An item whose process dies
  is tried once more alone; if that process dies too, its result is a string
  that says so.

  Args:
    processes: how many; 0 runs in this process.
  """
  if not processes:
    yield lambda function, items: ((item, function(item)) for item in items)
    return
  executors: list[ProcessPoolExecutor] = []
  # Closing the one end tells who holds the other to leave.
  leave, leaving = multiprocessing.get_context("spawn").Pipe(duplex=False)

  def run(function, items):
    executor = _executor(processes, executors, leave)

    def submit(item):
      nonlocal executor
      try:
        return executor.submit(_call, function, item)
      # It broke while nobody waited for it, or (OSError, until Python 3.12)
      # while this very call was starting another process.
      except (BrokenProcessPool, OSError):
        executor = _executor(processes, executors, leave)
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
        result = _alone(function, item, leave)
        queue = collections.deque((item, submit(item)) for item, _ in queue)
      yield item, result

  try:
    yield run
  finally:
    for executor in executors:
      executor.shutdown(wait=False, cancel_futures=True)
    leaving.close()
    leave.close()


def _executor(
  processes: int, executors: list[ProcessPoolExecutor], leave: Connection
) -> ProcessPoolExecutor:
  # Forking would copy this process's threads' locks.
  executor = ProcessPoolExecutor(
    processes, multiprocessing.get_context("spawn"), _start, (leave,)
  )
  executors.append(executor)
  return executor


def _alone(function: Callable, item: Any, leave: Connection) -> Any:
  executors: list[ProcessPoolExecutor] = []
  with _executor(1, executors, leave) as executor:
    try:
      return executor.submit(_call, function, item).result()
    except BrokenProcessPool:
      return "crashed the decoder"


def _start(leave: Connection) -> None:
  """Prepares a worker process, which Ctrl-C in a terminal reaches, too."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
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
