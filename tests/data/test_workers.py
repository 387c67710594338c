import contextlib
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

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


def test_a_crash_while_nobody_waits():
  items = [0, 1, "crash", *range(2, 40)]
  found = {}
  with workers.pool(2) as run:
    for item, result in run(work, items):
      found[item] = result
      time.sleep(0.5 if item == 0 else 0)
  assert found.pop("crash") == "crashed the decoder"
  assert found == {item: f"done {item}" for item in range(40)}


def test_a_crash_while_another_process_starts(monkeypatch):
  process = multiprocessing.get_context("spawn").Process
  start = process.start

  def slowly(self):
    time.sleep(1.5)
    start(self)

  monkeypatch.setattr(process, "start", slowly)
  with workers.pool(2) as run:
    found = dict(run(work, ["crash", *range(4)]))
  assert found.pop("crash") == "crashed the decoder"
  assert found == {item: f"done {item}" for item in range(4)}


def identify(item):
  return os.getpid()


def test_workers_end_with_a_killed_parent(tmp_path):
  script = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, sys.argv[1])
    from ssl_music.data import workers
    import test_workers

    if __name__ == "__main__":
      with workers.pool(1) as run:
        for _, child in run(test_workers.identify, range(100)):
          print(child, flush=True)
          time.sleep(60)
  """)
  (tmp_path / "parent.py").write_text(script)
  command = [sys.executable, tmp_path / "parent.py", Path(__file__).parent]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
    child = int(parent.stdout.readline())
    os.kill(child, 0)  # it lives
    parent.kill()
  deadline = time.time() + 10
  while time.time() < deadline:
    try:
      os.kill(child, 0)
    except ProcessLookupError:
      return
    # A zombie that nobody waits for is dead too.
    if "(zombie)" in Path(f"/proc/{child}/status").read_text():
      return
    time.sleep(0.1)
  raise AssertionError("the worker outlived its parent")


def test_a_crash_costs_one_item():
  items = [*range(6), "crash", *range(6, 12)]
  with workers.pool(2) as run:
    found = dict(run(work, items))
  assert found.pop("crash") == "crashed the decoder"
  assert found == {item: f"done {item}" for item in range(12)}


def sleep_and_tell(folder):
  (folder / str(os.getpid())).touch()
  time.sleep(60)


def test_workers_end_with_the_context_whatever_they_are_at(tmp_path):
  def items():
    yield tmp_path
    yield tmp_path
    while len(list(tmp_path.iterdir())) < 2:
      time.sleep(0.02)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt), workers.pool(2) as run:
    list(run(sleep_and_tell, items()))
  began = time.monotonic()
  while any(alive(path.name) for path in tmp_path.iterdir()):
    assert time.monotonic() - began < 30
    time.sleep(0.02)


def alive(pid):
  """Whether a process is neither gone nor a zombie."""
  with contextlib.suppress(OSError):
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state != "Z"
  return False


LEAVING = """
import numpy as np
from ssl_music.data import workers

def large(item):
  return np.zeros(4_000_000, np.uint8)

if __name__ == "__main__":
  for _ in range(3):
    with workers.pool(2) as run:
      for place, _ in enumerate(run(large, range(1000))):
        if place == 3:
          break
"""


def test_workers_do_not_leave_while_they_send(tmp_path):
  """The parent would wait for the rest of a result for ever."""
  script = tmp_path / "leaving.py"
  script.write_text(LEAVING)
  root = str(Path(__file__).parents[2])
  environment = os.environ | {"PYTHONPATH": root}
  command = [sys.executable, str(script)]
  subprocess.run(command, env=environment, check=True, timeout=60)
