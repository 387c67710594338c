import os
import time

import pytest

from ssl_music.data import workers


def work(item):
  if item == "crash":
    os._exit(1)
  if isinstance(item, int) and item % 3 == 0:
    time.sleep(0.05)
  return f"done {item}"


@pytest.mark.parametrize("processes", [0, 2])
def test_results_come_in_order(processes):
  items = list(range(30))
  with workers.pool(processes) as run:
    found = list(run(work, items))
  assert found == [(item, f"done {item}") for item in items]


def test_a_crash_costs_one_item():
  items = [*range(6), "crash", *range(6, 12)]
  with workers.pool(2) as run:
    found = dict(run(work, items))
  assert found.pop("crash") == "crashed the decoder"
  assert found == {item: f"done {item}" for item in range(12)}
