"""Trains under faults at random moments: `python tests/soak.py --minutes=12`.

Every training is the user's command, started again after each fault until it
is through; its parameters must then be bit for bit those of a training that
nothing has disturbed. After every fault: the process ends within a time limit
and leaves no child behind, says one clear sentence if it could say anything,
and the next one goes on from the last save. Exit code 1 if any of it failed.
"""

import argparse
import collections
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tiny
from faults import (
  FAULTS,
  LIMIT,
  SAVE,
  TOTAL,
  left,
  logged,
  resumed,
  saves,
  start,
  told,
)

from ssl_music import checkpoint


def one_fault(run, name, rng):
  """Has one fault; returns what it counts, and what was wrong."""
  wrong, saved = [], [0, 0, *saves(run)]
  before = saved[-1]
  process, words = FAULTS[name](run, rng)
  try:
    process.wait(LIMIT)
  except subprocess.TimeoutExpired:
    wrong.append("it hangs")
    process.kill()
    process.wait()
  deadline = time.monotonic() + 20
  while left(run) and time.monotonic() < deadline:
    time.sleep(0.1)
  for orphan in left(run):
    wrong.append("a process that it has started goes on without it")
    os.kill(orphan, signal.SIGKILL)
  run["listener"].join()
  said = told(run).replace("\r", "\n")
  silent = process.returncode in (0, -signal.SIGKILL, -signal.SIGTERM)
  clear = bool(words and re.search(f"^({words})", said, re.M))
  if not silent and not clear:
    wrong.append(f"exit code {process.returncode} without a clear word")
  if "Traceback" in said or len(re.findall("^error: ", said, re.M)) > 1:
    wrong.append("more than one sentence")
  # Until it begins, the metrics are those of a process before.
  began = resumed(run)
  reached = before if began is None else logged(run)
  if process.returncode == -signal.SIGTERM and reached > before:
    wrong.append("SIGTERM did not save")
  # What was saved before the one in progress must be there.
  last = max(saves(run), default=0)
  if last < max(before, (reached - 1) // SAVE * SAVE - SAVE):
    wrong.append(f"step {reached} was reached, and {last} is saved")
  damaged = re.search(r"checkpoint \S+/(\d+) is damaged", said)
  wanted = saved[-2] if damaged else before
  if began not in (None, wanted):
    wrong.append(f"it began at {began}, not at {wanted}")
  if damaged:  # and may stay until its step is saved again
    folder = run["folder"] / "checkpoints" / damaged[1]
    shutil.rmtree(folder, ignore_errors=True)
  if advice := re.search("delete|remove|throw away|new workdir", said):
    wrong.append(f"it advises to {advice[0]} what need not go")
  if wrong:
    wrong.append(said[-3000:])
  count = {"due": int(not silent), "word": int(clear)}
  count |= {"lost": reached - last, "began": began is not None}
  return count, wrong


def repair(run):
  """Puts the data back, and makes room."""
  (run["disk"] / "filler").unlink(missing_ok=True)
  shutil.copytree(run["source"], run["data"], dirs_exist_ok=True)


def same(one, other):
  """Says whether two checkpoints are of the same step and equal, bit by bit."""
  equal = jax.tree.map(np.array_equal, one, other)
  return all(jax.tree.leaves(equal))


def mount(disk):
  """Mounts a small file system; says whether that was allowed."""
  disk.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
  return not subprocess.run(command, capture_output=True).returncode


def undisturbed(run):
  """Runs the rest; returns what `one_fault` does."""
  before, process = max(saves(run), default=0), start(run)
  ended = process.wait()
  run["listener"].join()
  good = ended == 0 and resumed(run) == before
  return {"began": True}, [] if good else [told(run)[-3000:]]


def train_once(run, expected, faults, rng):
  """Trains to the end, with faults as long as there are any.

  Args:
    run: where everything lies.
    expected: the last checkpoint of a training without faults.
    faults: an iterator over names of faults.
    rng: of the moments.

  Yields:
    for each fault, and at last for the end: a name, its counts, what is wrong.
  """
  shutil.rmtree(run["folder"], ignore_errors=True)
  while max(saves(run), default=0) < TOTAL:
    name = next(faults, None)
    if name:
      count, wrong = one_fault(run, name, rng)
      repair(run)
    else:
      count, wrong = undisturbed(run)
    yield name or "nothing", count, wrong
    if wrong and not name:
      return
  equal = same(checkpoint.load(run["folder"]), expected)
  yield "the end", {}, [] if equal else ["the parameters are others"]


def until(ends, names, rng):
  """Names of faults in random order, each as often, until a time."""
  while True:
    for name in rng.sample(names, len(names)):
      if time.monotonic() > ends:
        return
      yield name


def soak(base, seed, *, seconds=None, faults=tuple(FAULTS)):
  """Has faults until the time is over, or each once.

  Returns:
    counts of each fault, and what was wrong, a list of (fault, words).
  """
  rng = random.Random(seed)
  tiny.write(base / "source")
  run = {name: base / name for name in ("source", "data", "cache", "said")}
  run |= {"disk": base / "disk", "folder": base / "unbroken"}
  mounted = mount(run["disk"])
  names = [name for name in faults if mounted or name != "full disk"]
  counts = collections.defaultdict(collections.Counter)
  wrong, pending = [], []
  try:
    repair(run)
    if start(run).wait() != 0:
      return counts, [("nothing", told(run))]
    expected = checkpoint.load(run["folder"])
    run["folder"] = run["disk"] / "run"
    ends = time.monotonic() + (seconds or 0)
    moments = until(ends, names, rng) if seconds else iter(names)
    while not counts["the end"]["times"] or time.monotonic() < ends:
      for name, count, found in train_once(run, expected, moments, rng):
        wrong += [(name, words) for words in found]
        if count.pop("began", name == "the end"):
          for earlier in pending:
            counts[earlier]["resumed"] += 1
          pending = []
        counts[name]["worst"] = max(counts[name]["worst"], count.pop("lost", 0))
        counts[name].update({"times": 1} | count)
        pending += [name] if name in FAULTS else []
        print(f"{name}: {found or 'as it should be'}", flush=True)
      if wrong and wrong[-1][0] == "nothing":
        break
  finally:
    if mounted:
      subprocess.run(["umount", str(run["disk"])], check=True)
  return counts, wrong


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--minutes", type=float, default=60)
  parser.add_argument("--seed", type=int)
  given = parser.parse_args()
  seed = random.SystemRandom().randrange(2**32)
  seed = seed if given.seed is None else given.seed
  print("seed:", seed, flush=True)
  with tempfile.TemporaryDirectory() as base:
    counts, wrong = soak(Path(base), seed, seconds=60 * given.minutes)
  print(
    "| fault | times | resumed at the last save | clear word | steps lost |"
  )
  print("| --- | --- | --- | --- | --- |")
  for name, n in counts.items():
    words = f"{n['word']} of {n['due']}"
    print(
      f"| {name} | {n['times']} | {n['resumed']} | {words} | {n['worst']} |"
    )
  for name, words in wrong:
    print(f"WRONG: {name}: {words}")
  sys.exit(bool(wrong))


if __name__ == "__main__":
  main()
