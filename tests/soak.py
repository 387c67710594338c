"""Trains under faults at random moments: `python tests/soak.py --minutes=12`.

Every training is the user's command, started again after each fault until it
is through; its parameters must then be bit for bit those of a training that
nothing has disturbed. After every fault: the process ends within a time limit
and leaves no child behind, says one clear sentence if it could say anything,
and the next one goes on from the last save. Exit code 1 if any of it failed.
"""

import argparse
import collections
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
import tiny
from test_commands import PRETRAIN, ROOT

from ssl_music import checkpoint, workdir

TOTAL, SAVE = 60, 5
LIMIT = 120  # s for a process to begin, and to end after a fault


def start(run, *more):
  """Starts the command; what it says goes to a file."""
  command = [sys.executable, "-m", "ssl_music.main"]
  command += ["--config=configs/contrastive.py", f"--workdir={run['folder']}"]
  command += [*PRETRAIN, "--config.data.name=tiny", *more]
  command += [f"--config.data.data_dir={run['data']}"]
  command += [f"--config.total_steps={TOTAL}"]
  command += [f"--config.save_every_steps={SAVE}"]
  environment = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(run["cache"]),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
  }
  environment.pop("XLA_FLAGS", None)
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  run["said"].write_bytes(b"")
  # By a pipe, which neither a full disk nor a limit of file size closes.
  arguments = process.stdout, run["said"]
  run["listener"] = threading.Thread(target=listen, args=arguments)
  run["listener"].start()
  return process


def listen(source, said):
  with source, said.open("ab", buffering=0) as file:
    while data := source.read1():
      file.write(data)


def saves(run):
  """The steps of the checkpoints that are whole, in order."""
  found = (run["folder"] / "checkpoints").glob("*")
  return sorted(int(path.name) for path in found if path.name.isdigit())


def logged(run):
  """The last step that the metrics tell of."""
  entries = workdir.read_metrics(run["folder"])
  return max((entry["step"] for entry in entries), default=0)


def wait(process, condition):
  """Waits until a condition holds; says whether it came before the end."""
  deadline = time.monotonic() + LIMIT
  while process.poll() is None and time.monotonic() < deadline:
    if condition():
      return True
    time.sleep(0.005)
  return process.poll() is None and condition()


def moment(run, process, rng):
  """Waits for a random moment of the training, the first steps included."""
  first = max(saves(run), default=0)
  steps = first + rng.randrange(1, 4 * SAVE)
  # What was logged after the last save is cut off when training begins.
  begun = lambda: f"| {first}/{TOTAL}" in run["said"].read_text()
  if not wait(process, begun):
    return False
  wait(process, lambda: logged(run) >= min(steps, TOTAL - 2))
  time.sleep(rng.uniform(0, 0.2))
  return process.poll() is None


def kill(run, rng):
  process = start(run, f"--config.data.workers={rng.randrange(3)}")
  if rng.random() < 0.3:  # before anything is trained
    time.sleep(rng.uniform(0, 8))
  else:
    moment(run, process, rng)
  process.kill()
  return process, None


def kill_while_saving(run, rng):
  process = start(run)
  partial = lambda: list(run["folder"].glob("checkpoints/*-tmp*"))
  first = max(saves(run), default=0)
  wait(process, lambda: f"| {first}/{TOTAL}" in run["said"].read_text())
  for _ in range(rng.randrange(1, 3)):
    wait(process, partial)
    time.sleep(rng.uniform(0, 0.06))
  process.kill()
  return process, None


def terminate(run, rng):
  process = start(run)
  moment(run, process, rng)
  process.terminate()
  return process, r"stopped by SIGTERM at step \d+ of"


FULL = r"error: cannot (save a checkpoint|write) to \S+ \(.*\): free some space"


def limit_files(run, rng):
  """No file may grow beyond a size: a quota, for who is not root."""
  process = start(run)
  if moment(run, process, rng):
    most = rng.choice((0, 300, 3_000, 30_000))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
  return process, FULL


def fill_disk(run, rng):
  """The disk is full but for a rest."""
  process = start(run)
  moment(run, process, rng)
  with (run["disk"] / "filler").open("wb", buffering=0) as file:
    with contextlib.suppress(OSError):
      while file.write(bytes(4_096)):
        pass
    rest = rng.choice((0, 4_096, 100_000, 400_000))
    file.truncate(max(file.tell() - rest, 0))
  return process, FULL


def damage_shard(run, rng):
  process = start(run, f"--config.data.workers={rng.randrange(2)}")
  moment(run, process, rng)
  cut = rng.random() < 0.5
  for shard in run["data"].rglob("*-train.array_record-*"):
    damage(shard, rng, cut=cut, every=4_096)
  return process, r"error: cannot read record \d+ from \S*array_record-\d+ "


def kill_worker(run, rng):
  process = start(run, "--config.data.workers=2")
  if moment(run, process, rng):
    for reader in left(run, "spawn_main")[:1]:
      os.kill(reader, signal.SIGKILL)
  return process, r"error: a process that reads the data was killed"


def damage_checkpoint(run, rng):
  """A bit is flipped in the latest, or a file of it cut or lost."""
  if not saves(run):
    return kill(run, rng)
  folder = run["folder"] / "checkpoints" / str(saves(run)[-1])
  files = [file for file in folder.rglob("*") if file.stat().st_size]
  file = rng.choice(sorted(file for file in files if file.is_file()))
  kind = rng.choice(("flip", "cut", "lose"))
  file.unlink() if kind == "lose" else damage(file, rng, cut=kind == "cut")
  process = start(run)
  if moment(run, process, rng):  # it does without that file
    process.terminate()
  return process, r"error: unreadable checkpoint \S+|stopped by SIGTERM"


FAULTS = {
  "kill -9": kill,
  "kill -9 during a save": kill_while_saving,
  "SIGTERM": terminate,
  "limit of file size": limit_files,
  "full disk": fill_disk,
  "damaged shard": damage_shard,
  "worker killed": kill_worker,
  "damaged checkpoint": damage_checkpoint,
}


def damage(file, rng, *, cut, every=None):
  """Cuts a file, or flips a bit of it, or one in so many bytes."""
  size = file.stat().st_size
  if cut:
    os.truncate(file, rng.randrange(size // 2))
    return
  with file.open("r+b") as opened:
    for first in range(0, size, every or size):
      place = min(first + rng.randrange(every or size), size - 1)
      opened.seek(place)
      byte = opened.read(1)[0]
      opened.seek(place)
      opened.write(bytes([byte ^ 1 << rng.randrange(8)]))


def left(run, words=""):
  """The processes of a run that go on, of a command with certain words."""
  found = []
  for process in Path("/proc").glob("[0-9]*"):
    try:
      # They have inherited the cache's folder, which no others have.
      ours = f"={run['cache']}\0" in (process / "environ").read_text()
      if ours and words in (process / "cmdline").read_text():
        found.append(int(process.name))
    except (OSError, UnicodeError):  # it has ended, or is somebody else's
      continue
  return found


def one_fault(run, name, rng):
  """Has one fault; returns what it counts, and what was wrong."""
  wrong, before = [], max(saves(run), default=0)
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
  said = run["said"].read_text().replace("\r", "\n")
  silent = process.returncode in (0, -signal.SIGKILL, -signal.SIGTERM)
  clear = bool(words and re.search(f"^({words})", said, re.M))
  if not silent and not clear:
    wrong.append(f"exit code {process.returncode} without a clear word")
  if "Traceback" in said or len(re.findall("^error: ", said, re.M)) > 1:
    wrong.append("more than one sentence")
  if process.returncode == -signal.SIGTERM and logged(run) > before:
    wrong.append("SIGTERM did not save")
  # What was saved before the one in progress must be there.
  last, reached = max(saves(run), default=0), logged(run)
  if last < max(before, (reached - 1) // SAVE * SAVE - SAVE):
    wrong.append(f"step {reached} was reached, and {last} is saved")
  began = resumed(run)
  if began not in (None, before):
    wrong.append(f"it began at {began}, not at {before}")
  if "unreadable" in said:  # as the sentence advises
    shutil.rmtree(run["folder"] / "checkpoints" / str(last))
  if wrong:
    wrong.append(said[-3000:])
  count = {"due": int(not silent), "word": int(clear)}
  count |= {"lost": reached - last, "began": began is not None}
  return count, wrong


def repair(run):
  """Puts the data back, and makes room."""
  (run["disk"] / "filler").unlink(missing_ok=True)
  shutil.copytree(run["source"], run["data"], dirs_exist_ok=True)


def resumed(run):
  """The step that the last process has begun at; None if it never did."""
  found = re.search(rf"\| (\d+)/{TOTAL}", run["said"].read_text())
  return int(found[1]) if found else None


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
  return {"began": True}, [] if good else [run["said"].read_text()[-3000:]]


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
      return counts, [("nothing", run["said"].read_text())]
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
