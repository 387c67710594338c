"""Worker processes that survive a file that crashes its decoder."""

import collections
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

# Results wait in memory until their turn: a few for each process keep all busy.
_AHEAD = 4

Run = Callable[[Callable, Iterable], Iterator[tuple[Any, Any]]]


@contextlib.contextmanager
def pool(processes: int) -> Iterator[Run]:
  """Yields `run(function, items)`, which yields (item, result) in order.

  The function goes to the processes by pickling. An item whose process dies
  is tried once more alone; if that process dies too, its result is a string
  that says so.

  Args:
    processes: how many; 0 runs in this process.
  """
  if not processes:
    yield lambda function, items: ((item, function(item)) for item in items)
    return
  executors: list[ProcessPoolExecutor] = []

  def run(function, items):
    executor = _executor(processes, executors)
    items = iter(items)
    queue: collections.deque = collections.deque()
    while True:
      for item in items:
        queue.append((item, executor.submit(function, item)))
        if len(queue) >= processes * _AHEAD:
          break
      if not queue:
        return
      item, future = queue.popleft()
      try:
        result = future.result()
      except BrokenProcessPool:
        result = _alone(function, item)
        executor = _executor(processes, executors)
        queue = collections.deque(
          (item, executor.submit(function, item)) for item, _ in queue
        )
      yield item, result

  try:
    yield run
  finally:
    for executor in executors:
      executor.shutdown(wait=False, cancel_futures=True)


def _executor(
  processes: int, executors: list[ProcessPoolExecutor]
) -> ProcessPoolExecutor:
  # Forking would copy this process's threads' locks.
  executor = ProcessPoolExecutor(
    processes, multiprocessing.get_context("spawn"), _quiet
  )
  executors.append(executor)
  return executor


def _alone(function: Callable, item: Any) -> Any:
  executors: list[ProcessPoolExecutor] = []
  with _executor(1, executors) as executor:
    try:
      return executor.submit(function, item).result()
    except BrokenProcessPool:
      return "crashed the decoder"


def _quiet() -> None:
  """Silences mp3 decoders that print notes: the report names those files."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
