"""Submits jobs to a SLURM cluster, by `submitit`, and says how jobs stand.

Every job is a task of an array, see `ssl_music.task`.
"""

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssl_music import jobs, lock, task
from ssl_music.errors import InputError

# A task gets SIGUSR2 so many seconds before its time is up: enough to end a
# step and to save.
_TO_SAVE = 120
# How often a task may run out of time: each time it has saved, and goes on.
_TURNS = 100


def run(
  planned: Sequence[Mapping[str, Any]],
  folder: str | Path,
  slurm: ConfigDict,
  dry_run: bool = False,
) -> int:
  """Submits the jobs that are neither done nor in SLURM's queue.

  Jobs that wait for no other are one array. Those that need some of these are
  the next one, which SLURM starts when those have ended. A task that is
  preempted, or whose time is up, saves and is queued again.

  Args:
    planned: of `jobs.job`, or of `sweep.expand`.
    folder: the workdir, in a file system that all nodes share.
    slurm: of `config.slurm`.
    dry_run: print what would be submitted instead.

  Returns:
    the exit code, 0.

  Raises:
    InputError: no SLURM or no submitit here, SLURM refuses the jobs, a number
      is out of its range, or another process is running jobs in this folder.
  """
  _check(slurm)
  folder = Path(folder)
  if dry_run:
    return _submit(planned, folder, slurm, dry_run=True)
  with lock.hold(folder, "running jobs in", "give another --workdir"):
    return _submit(planned, folder, slurm, dry_run=False)


def show(planned: Sequence[Mapping[str, Any]], folder: str | Path) -> int:
  """Prints how jobs stand, wherever they were started; changes nothing.

  Args:
    planned: the jobs.
    folder: the workdir.

  Returns:
    the exit code, 1 where a job has failed.

  Raises:
    InputError: SLURM was given some of the jobs, and cannot be asked.
  """
  records = status(planned, folder, running_here=lock.is_held(Path(folder)))
  mine = [records[one["name"]] for one in planned]
  print(jobs.summary(mine))
  states = [record["state"] for record in mine]
  counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
  print(f"{len(mine)} jobs: {', '.join(counts)}", flush=True)
  return int("failed" in states or "skipped" in states)


def status(
  planned: Iterable[Mapping[str, Any]],
  folder: str | Path,
  running_here: bool = False,
) -> dict[str, dict[str, Any]]:
  """Returns the records of jobs by name, as they are now.

  Besides the states of `jobs.run` there is "queued": SLURM will start it. What
  is "waiting" is in no queue.

  Args:
    planned: the jobs.
    folder: the workdir.
    running_here: whether a process of `jobs.run` is at work in the folder.

  Raises:
    InputError: SLURM was given some of the jobs, and cannot be asked.
  """
  folder = Path(folder)
  before = jobs.known(planned, folder)
  # The queue first: a task that is not in it has written its last word.
  given = any("slurm" in record for record in before.values())
  queue = _queue(_job_name(folder)) if given else {}
  records = {name: task.record(old, folder) for name, old in before.items()}
  for one in planned:
    record = records[one["name"]]
    needed = [records[name] for name in one["needs"]]
    if jobs.found_done(one, record, needed):
      record |= {"state": "done", "error": ""}
    elif jobs.is_done(record):  # of another config, or deleted since
      record["state"] = "waiting"
    elif "slurm" in record:
      record |= _in_queue(record, queue.get(record["slurm"]), folder)
    elif record["state"] == "running" and not running_here:
      record["state"] = "waiting"  # it was killed
  return records


def _submit(planned, folder: Path, slurm: ConfigDict, *, dry_run: bool) -> int:
  records = status(planned, folder)
  print(jobs.summary([records[one["name"]] for one in planned]), flush=True)
  states = ("waiting", "failed", "skipped")
  missing = [one for one in planned if records[one["name"]]["state"] in states]
  for number, wave in enumerate(_waves(missing, records)):
    executor = _executor(folder, slurm, _dependency(wave, records))
    if dry_run:
      print(_script(executor, len(wave)))
      numbers = [f"ARRAY{number}_{index}" for index in range(len(wave))]
    else:
      for one in wave:
        task.prepare(records[one["name"]], folder)
      numbers = _send(executor, wave, folder)
    for one, name in zip(wave, numbers, strict=True):
      records[one["name"]] |= {"slurm": name, "state": "queued", "error": ""}
      print(f"{name}: {one['name']}", flush=True)
    if not dry_run:
      _remember(records, folder)
  said = "would be submitted" if dry_run else "submitted"
  print(f"{len(missing)} of {len(planned)} jobs {said}", flush=True)
  return 0


def _waves(missing, records) -> list[list[Mapping]]:
  """Returns the jobs to submit, those that need others' ends after these."""
  level: dict[str, int] = {}
  for one in missing:  # what is needed comes first
    going = [name for name in one["needs"] if not jobs.is_done(records[name])]
    # What is needed and not missing is in the queue already.
    level[one["name"]] = max((1 + level.get(n, 0) for n in going), default=0)
  return [
    [one for one in missing if level[one["name"]] == number]
    for number in sorted(set(level.values()))
  ]


def _dependency(wave, records) -> str:
  """Returns the tasks that a wave waits for, as sbatch has them; or ""."""
  needed = {name for one in wave for name in one["needs"]}
  going = [records[n]["slurm"] for n in needed if not jobs.is_done(records[n])]
  # However they end: a job says itself that what it needs has failed.
  return ":".join(["afterany", *sorted(going)]) if going else ""


def _executor(folder: Path, slurm: ConfigDict, dependency: str):
  """Returns submitit's executor, with the options of sbatch."""
  try:
    import submitit
  except ImportError as error:
    raise InputError(
      "submitit is not installed: pip install -e '.[cluster]'"
    ) from error
  logs = task.logs(folder)
  try:
    executor = submitit.SlurmExecutor(logs, max_num_timeout=_TURNS)
  except RuntimeError as error:
    raise InputError(
      "this machine has no SLURM (no srun): submit from the cluster's login"
      " node, or run the jobs here with --executor=local"
    ) from error
  options = {"requeue": True}
  if dependency:
    options["dependency"] = dependency
  parameters = {
    "job_name": _job_name(folder),
    "time": max(1, round(slurm.hours * 60)),
    "array_parallelism": slurm.at_once,
    "cpus_per_task": slurm.cpus,
    "signal_delay_s": _TO_SAVE,
    "stderr_to_stdout": True,
    "additional_parameters": options,
    # srun has stopped taking it over from sbatch.
    "srun_args": [f"--cpus-per-task={slurm.cpus}"],
  }
  if slurm.partition:
    parameters["partition"] = slurm.partition
  if slurm.gpus:
    parameters["gpus_per_node"] = slurm.gpus
  if slurm.memory:
    parameters["mem"] = f"{round(slurm.memory * 1024)}M"
  executor.update_parameters(**parameters)
  return executor


def _job_name(folder: Path) -> str:
  return f"ssl_music-{folder.absolute().name}"


def _script(executor, tasks: int) -> str:
  """Returns what would be given to sbatch, as submitit makes it."""
  executor.parameters["map_count"] = tasks
  return executor._make_submission_file_text(executor._submitit_command_str, "")


def _send(executor, wave, folder: Path) -> list[str]:
  """Submits an array; returns its tasks' numbers, as "12_0"."""
  from submitit.core import utils

  try:
    sent = executor.map_array(task.perform, wave, [folder] * len(wave))
  except (utils.FailedJobError, utils.FailedSubmissionError) as error:
    lines = [line for line in str(error).splitlines() if "error:" in line]
    said = lines[0] if lines else str(error).strip().splitlines()[-1]
    raise InputError(
      f"SLURM takes no such jobs ({said.strip()}): change --config.slurm"
    ) from error
  return [one.job_id for one in sent]


def _remember(records: Mapping[str, Mapping], folder: Path) -> None:
  """Writes `jobs.json`; how a task stands is not for this file to say."""
  kept = {}
  for name, record in records.items():
    going = "slurm" in record and not jobs.is_done(record)
    kept[name] = record | ({"state": "waiting", "error": ""} if going else {})
  jobs.write(folder, kept)


def _in_queue(record: Mapping, state: str | None, folder: Path) -> dict:
  """Returns what SLURM's word on a task changes in a job's record."""
  if state is None:
    if record["state"] != "running":
      return {}
    log = task.logs(folder) / f"{record['slurm']}_0_log.out"
    error = f"its task was ended from outside (out of memory?): see {log}"
    return {"state": "failed", "error": error}
  if state == "COMPLETING" and record["state"] in ("failed", "skipped"):
    return {}
  running = state in ("RUNNING", "COMPLETING")
  return {"state": "running" if running else "queued", "error": ""}


def _queue(name: str) -> dict[str, str]:
  """Asks SLURM for the tasks in its queue, as {"12_0": "RUNNING"}.

  By their name: asked for a number that has left long ago, it gives an error,
  and numbers come again.
  """
  command = ["squeue", "--array", "--noheader", f"--name={name}"]
  command += ["--format=%i %T"]
  try:
    found = subprocess.run(
      command, capture_output=True, check=True, encoding="utf-8"
    )
  except (OSError, subprocess.CalledProcessError) as error:
    said = (getattr(error, "stderr", "") or str(error)).strip()
    raise InputError(
      f"SLURM was given jobs and cannot be asked for them ({said}): do it where"
      " squeue works"
    ) from error
  return dict(line.split(maxsplit=1) for line in found.stdout.splitlines())


def _check(slurm: ConfigDict) -> None:
  for name, least in (("at_once", 1), ("cpus", 1), ("gpus", 0), ("memory", 0)):
    if slurm[name] < least:
      raise InputError(
        f"--config.slurm.{name}={slurm[name]} is too small: give {least} or"
        " more"
      )
  if slurm.hours <= 0:
    raise InputError(
      f"--config.slurm.hours={slurm.hours} is no time limit: give more than 0"
    )
