"""Faults that befall a training at random moments; `soak` counts them.

A run is a dict of paths: "folder" is the workdir, "disk" the file system that
it lies on, "data" the data set and "source" a copy of it, "cache" that of
compiled programs, "said" a file of what the last process has said.
A fault starts the command and does its harm; it returns the process, and what
it has to say, a regular expression.
"""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from test_commands import PRETRAIN, ROOT

from ssl_music import workdir

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


def told(run):
  """What the last process has said so far."""
  return run["said"].read_text(errors="replace")


def resumed(run):
  """The step that the last process has begun at; None if it never did."""
  found = re.search(rf"\| (\d+)/{TOTAL}", told(run))
  return int(found[1]) if found else None


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
  begun = lambda: f"| {first}/{TOTAL}" in told(run)
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
  wait(process, lambda: f"| {first}/{TOTAL}" in told(run))
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
  return process, r"error: (cannot read record \d+ from )?\S*array_record-\d+ "


def kill_worker(run, rng):
  process = start(run, "--config.data.workers=2")
  if moment(run, process, rng):
    for reader in left(run, "spawn_main")[:1]:
      os.kill(reader, signal.SIGKILL)
  return process, r"error: a process that reads the data was killed"


def damage_checkpoint(run, rng):
  """A bit is flipped in the latest, or a file of it cut or lost."""
  if len(saves(run)) < 2:
    return kill(run, rng)
  folder = run["folder"] / "checkpoints" / str(saves(run)[-1])
  files = [file for file in folder.rglob("*") if file.stat().st_size]
  file = rng.choice(sorted(file for file in files if file.is_file()))
  kind = rng.choice(("flip", "cut", "lose"))
  file.unlink() if kind == "lose" else damage(file, rng, cut=kind == "cut")
  process = start(run)
  if moment(run, process, rng):  # from that one, or from the one before
    process.terminate()
  return process, r"stopped by SIGTERM at step \d+ of"


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
