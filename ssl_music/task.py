"""A job as a task of a SLURM cluster.

A task runs its job as `jobs.run` does, in a process of its own, and keeps the
record in `FOLDER/slurm/jobs/NAME/jobs.json`: tasks on many nodes share no file
that they write to. `FOLDER/jobs.json` says which task a job was given to last.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from ssl_music import compiled, jobs


def logs(folder: Path) -> Path:
  """Returns the folder with what tasks print, a file a task."""
  return folder / "slurm" / "logs"


def record(known: Mapping[str, Any], folder: Path) -> dict[str, Any]:
  """Returns a job's record of `jobs.json`, or what its task has made of it.

  Args:
    known: the record. It has "slurm", the number of its task, where it was
      given to one.
    folder: the workdir of all jobs.
  """
  if "slurm" not in known or jobs.is_done(known):
    return dict(known)
  own = jobs.read(_own(folder, known["name"]))
  found = [other for other in own if other["name"] == known["name"]]
  return {**known, **found[0]} if found else dict(known)


def prepare(known: Mapping[str, Any], folder: Path) -> None:
  """Leaves the record that a job's task begins with."""
  own = _own(folder, known["name"])
  fresh = {**known, "state": "waiting", "error": ""}
  fresh.pop("slurm", None)
  jobs.write(own, {known["name"]: fresh})


def perform(one: Mapping[str, Any], folder: Path) -> None:
  """Runs a job in a task of SLURM; leaves with its exit code.

  Args:
    one: the job, of `jobs.job`.
    folder: the workdir of all jobs.
  """
  time_is_up, requeue = _catch_signals()
  compiled.keep()  # here, since nodes may have other processors
  own = _own(folder, one["name"])
  records = {found["name"]: found for found in jobs.read(own)}
  for name, known in jobs.known((), folder).items():
    if name in one["needs"]:
      records[name] = record(known, folder)
  jobs.write(own, records)
  code = jobs.run([one], own)
  # Stopped, and what there is has been saved. SLURM does not queue a task again
  # that ends by itself when it is preempted, so the task asks for it. It does
  # not where it was cancelled, or is queued again by somebody else: SLURM would
  # do so even then.
  if code > 128 and _state() == "RUNNING":
    requeue(time_is_up, None)
  sys.exit(code)


def _go_on(*arguments):
  """Returns what a task does that is queued again: the same, as submitit's."""
  from submitit import helpers

  return helpers.DelayedSubmission(perform, *arguments)


perform.checkpoint = _go_on  # submitit looks for it


def _catch_signals():
  """Turns SLURM's signals into one SIGINT, which `jobs.run` passes on.

  SLURM sends SIGTERM (preempted or cancelled) and SIGUSR2 (time is up) to every
  process of a task, and those that read records, for one, would die of it
  before anything is saved. So all that are started inherit a mask that blocks
  them.

  Returns:
    SIGUSR2, or what submitit has in its place, and submitit's handler of it,
    which has the task queued again and leaves.
  """
  from submitit import JobEnvironment

  time_is_up = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
  requeue = signal.getsignal(time_is_up)
  # Before and after `jobs.run` nothing is to be saved. SLURM ends what goes on.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  main = threading.get_ident()
  reading, writing = os.pipe()
  os.set_blocking(writing, False)

  def watch() -> None:
    while number := os.read(reading, 1):
      if number[0] in (signal.SIGTERM, time_is_up):
        signal.pthread_kill(main, signal.SIGINT)

  # Python's own handlers would wait: a thread that does not block the signal
  # takes it, and the main thread, which has to act on it, is not woken.
  for number in (signal.SIGTERM, time_is_up):
    signal.signal(number, lambda *_: None)
  signal.set_wakeup_fd(writing)
  threading.Thread(target=watch, daemon=True).start()
  # It unblocks SIGTERM when it starts, so it must not start later.
  resource_tracker.ensure_running()
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, time_is_up})
  return time_is_up, requeue


def _state() -> str:
  """Returns what SLURM says of this task, as "RUNNING" or "COMPLETING"."""
  from submitit import JobEnvironment

  # As "12_0": the number 12 alone may be a task's own, and is the array's too.
  number = JobEnvironment().job_id
  command = ["squeue", f"--jobs={number}", "--noheader", "--format=%T"]
  return subprocess.run(
    command, capture_output=True, encoding="utf-8"
  ).stdout.strip()


def _own(folder: Path, name: str) -> Path:
  return Path(folder) / "slurm" / "jobs" / name
