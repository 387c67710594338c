"""Runs jobs one after another, each in a process of its own.

What kills one job (a crash, memory) leaves the others alone, and a device's
memory is free for the next. What is done is skipped when the same jobs are run
again, and what was interrupted goes on.
"""

import contextlib
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from ssl_music import (
  checkpoint,
  disk,
  interrupts,
  lock,
  typed,
  workdir,
)
from ssl_music import config as defaults
from ssl_music.data.tracks import find
from ssl_music.data.workers import NOT_BEGUN, starting
from ssl_music.errors import InputError

# What is known of a job.
_RECORD = {
  "name": str,
  "workdir": str,
  "state": str,
  "seconds": float,
  "error": str,
  "config?": str,
  "slurm?": (int, str),
}
_SCORES = {"test": {"map_macro": float, "roc_auc_macro": float}}


def job(
  name: str,
  run: Callable[[ConfigDict, str], Any],
  config: ConfigDict,
  folder: str | Path,
  *,
  product: str | None,
  needs: Iterable[str] = (),
) -> dict[str, Any]:
  """Describes a job.

  Args:
    name: unique among those that run in the same folder.
    run: what to call, `run(config, folder)`, a function of a module's top
      level. It must be able to go on where a killed one was, and leave
      `config.json` as `workdir.claim` does.
    config: of the job.
    folder: its workdir.
    product: a path in the workdir that is there as soon as the job is done;
      None: not known, so that the job itself has to find out.
    needs: names of jobs that must be done before; they come first in a list.

  Returns:
    a dict of these.

  Raises:
    InputError: no checkpoint could be read from such a folder.
  """
  checkpoint.check_path(folder)
  return {
    "name": name,
    "run": run,
    "config": config,
    "folder": Path(folder),
    "product": product,
    "needs": tuple(needs),
  }


def run(jobs: Sequence[Mapping[str, Any]], folder: str | Path) -> int:
  """Runs jobs one after another and prints what came of them.

  `folder/jobs.json` holds, for every job that was ever run there, its "name",
  "workdir", "state" ("waiting", "running", "done", "failed" or "skipped", where
  what it needs has failed), "seconds" (of all its processes), "error" and, of a
  job that has ended well, "config", a hash of its config.

  SIGTERM and SIGINT are passed on to the job, and no other is started. It must
  be called in the main thread and, in a script, below `if __name__ ==
  "__main__"`, since processes are spawned.

  Args:
    jobs: of `job`, or of `sweep.expand`.
    folder: where `jobs.json` is.

  Returns:
    the exit code: 0, 1 where a job has failed, or 128 + a signal's number.

  Raises:
    InputError: another process is running jobs in this folder.
  """
  folder = Path(folder)
  with lock.hold(folder, "running jobs in", "give another --workdir"):
    records = known(jobs, folder)
    for one in jobs:
      record = records[one["name"]]
      record["error"] = ""
      record.pop("slurm", None)  # whatever a cluster's task said
      if not is_done(record):
        record["state"] = "waiting"
    for record in records.values():
      if record["state"] == "running":  # when an earlier process was killed
        record["state"] = "waiting"
    write(folder, records)
    with _passing_on() as passed:
      for index, one in enumerate(jobs, 1):
        if passed["signal"]:
          break
        print(f"[{index}/{len(jobs)}] {one['name']}", flush=True)
        _perform(one, records, passed, folder)
    write(folder, records)
  mine = [records[one["name"]] for one in jobs]
  print(summary(mine), flush=True)
  states = {record["state"] for record in mine}
  if passed["signal"] and "waiting" in states:
    print(
      f"stopped by {signal.Signals(passed['signal']).name}: the same command"
      " goes on from there",
      file=sys.stderr,
    )
    return 128 + passed["signal"]
  return 0 if states <= {"done"} else 1


def read(folder: str | Path) -> list[dict[str, Any]]:
  """Reads `jobs.json`; [] where there is none.

  Raises:
    InputError: it cannot be read, or is damaged.
  """
  file = Path(folder) / "jobs.json"
  if not file.exists():
    return []
  with disk.readable(file, "check its disk"):
    content = file.read_bytes()
  advice = "delete it, what is done will be found again"
  return typed.parse(content, [_RECORD], file, advice)


def known(
  jobs: Iterable[Mapping[str, Any]], folder: str | Path
) -> dict[str, dict[str, Any]]:
  """Returns the records of `jobs.json` by name, with those of new jobs.

  Raises:
    InputError: the file is damaged.
  """
  records = {record["name"]: record for record in read(folder)}
  for one in jobs:
    new = {"name": one["name"], "workdir": str(one["folder"])}
    old = {"state": "waiting", "seconds": 0.0, "error": ""}
    records[one["name"]] = new | old | records.get(one["name"], {}) | new
  return records


def write(folder: Path, records: Mapping[str, Mapping]) -> None:
  """Writes `jobs.json`.

  Raises:
    InputError: it cannot be written.
  """
  with workdir.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(list(records.values()), indent=2) + "\n"
    disk.write(folder / "jobs.json", text)


def summary(records: Sequence[Mapping[str, Any]]) -> str:
  """Returns a Markdown table of records of `jobs.json`, and what failed."""
  rows = [["job", "state", "minutes", "result"]]
  for record in records:
    reached = _result if is_done(record) else _step
    result = reached(Path(record["workdir"]))
    minutes = f"{record['seconds'] / 60:.1f}"
    rows.append([record["name"], record["state"], minutes, result])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  rows.insert(1, ["-" * width for width in widths])
  lines = [
    "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
  ]
  for record in records:
    if record["error"]:
      lines.append(
        f"{record['name']} {record['state']}: {record['error']}"
        f" (workdir {record['workdir']})"
      )
  return "\n".join(lines)


def _perform(one, records, passed, folder: Path) -> None:
  """Runs a job, unless it is done or cannot be; keeps the record."""
  record = records[one["name"]]
  needed = [records[name] for name in one["needs"]]
  lacking = [other["name"] for other in needed if not is_done(other)]
  if lacking:
    record["state"] = "skipped"
    record["error"] = f"it needs {' and '.join(lacking)}, which failed"
  elif found_done(one, record, needed):
    record["state"] = "done"
  else:
    record["state"] = "running"
    write(folder, records)
    began = time.monotonic()
    code, told = _in_process(one, passed)
    record["seconds"] += time.monotonic() - began
    if code == 0:
      record |= {"state": "done", "config": _identity(one)}
      if one["product"] is not None:  # older, where there was nothing to do
        os.utime(one["folder"] / one["product"])
    elif passed["signal"]:
      record["state"] = "waiting"
    else:
      record["state"], record["error"] = "failed", told
      print(f"{one['name']} failed: {told}", file=sys.stderr, flush=True)
  write(folder, records)


def _in_process(one: Mapping, passed: dict) -> tuple[int, str]:
  """Runs a job in a process; returns its exit code and what it said of it."""
  # Forking would copy locks of jax's threads.
  context = multiprocessing.get_context("spawn")
  hearing, telling = context.Pipe(duplex=False)
  process = context.Process(
    target=_work, args=(one["run"], one["config"], str(one["folder"]), telling)
  )
  with starting():
    process.start()
  telling.close()
  passed["process"] = process
  if passed["signal"]:  # it came before the process was there
    os.kill(process.pid, passed["signal"])
  multiprocessing.connection.wait([process.sentinel])
  passed["process"] = None
  # Before its id is free for others: what a killed job left, such as readers.
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(process.pid, signal.SIGKILL)
  process.join()
  code, told = process.exitcode, NOT_BEGUN
  with contextlib.suppress(EOFError), hearing:
    while hearing.poll():
      told = hearing.recv()
  if code < 0:
    told = f"its process was ended by {signal.Signals(-code).name}"
    told += " (out of memory?)" if code == -signal.SIGKILL else ""
  return code, told or f"its process ended with exit code {code}"


def _work(run: Callable, config: ConfigDict, folder: str, telling: Connection):
  """What a job's process does."""
  # A group of its own: Ctrl-C in a terminal reaches the parent alone, which
  # passes it on, and once; and all that the job starts can be ended with it.
  os.setpgid(0, 0)
  telling.send("")  # it has begun
  threading.Thread(target=_end_with_parent, daemon=True).start()
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a SLURM task
    signal.signal(signal.SIGINT, signal.default_int_handler)
  interrupts.leave_at_once()
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(sys.argv[:1])  # Grain's workers read flags
  logging.set_verbosity(logging.WARNING)
  try:
    run(config, folder)
  except workdir.Stopped as stopped:
    telling.send(str(stopped))
    sys.exit(stopped.code)
  except InputError as error:
    telling.send(str(error))
    sys.exit(2)
  except Exception as error:
    traceback.print_exc()
    telling.send(f"{type(error).__name__}: {error}".strip().split("\n")[0])
    sys.exit(1)


def _end_with_parent() -> None:
  """A killed parent cannot stop its job: the job watches it."""
  parent = multiprocessing.parent_process()
  multiprocessing.connection.wait([parent.sentinel])
  os.killpg(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _passing_on() -> Iterator[dict[str, Any]]:
  """Passes SIGTERM and SIGINT on to the process of the moment.

  Yields:
    {"signal": the last one's number or 0, "process": to be set}.
  """
  passed: dict[str, Any] = {"signal": 0, "process": None}

  def handle(number: int, frame: object) -> None:
    del frame
    passed["signal"] = number
    if passed["process"]:
      os.kill(passed["process"].pid, number)

  numbers = signal.SIGTERM, signal.SIGINT
  before = [signal.signal(number, handle) for number in numbers]
  try:
    yield passed
  finally:
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)


def found_done(
  one: Mapping, record: Mapping, needed: Iterable[Mapping]
) -> bool:
  """Says whether a workdir holds what a job makes, of the same config.

  Args:
    one: the job.
    record: of it.
    needed: records of what it needs.
  """
  recorded = is_done(record) and record.get("config") == _identity(one)
  if not recorded and not _same_config(one):
    return False
  if one["product"] is None:
    return recorded and (one["folder"] / "config.json").exists()
  product = one["folder"] / one["product"]
  if not product.exists():
    return False
  # What is needed may have been deleted and made anew, of another config; so
  # may the data.
  begun = [Path(other["workdir"]) / "config.json" for other in needed]
  made = product.stat().st_mtime
  return all(
    f.exists() and f.stat().st_mtime <= made for f in (*begun, *_tables(one))
  )


def _tables(one: Mapping) -> list[Path]:
  """Returns the tables of the data sets that a job reads."""
  data = one["config"].get("data")
  names = data.name.split("+") if data else []
  try:
    return [find(name, data.data_dir) / "tracks.csv" for name in names]
  except InputError:  # not there, which the job will say
    return []


def _identity(one: Mapping) -> str:
  config = json.dumps(one["config"].to_dict(), sort_keys=True)
  return hashlib.sha256(config.encode()).hexdigest()[:16]


def _same_config(one: Mapping) -> bool:
  """Says whether a workdir's config is the job's, without a record of it."""
  try:
    old = workdir.read_config(one["folder"])
  except InputError:
    return False
  if "labels" in old.get("data", {}):  # a run adds a layer of the tags
    old["pretext"]["head"] = old["pretext"]["head"][:-1]
  new = json.loads(json.dumps(one["config"].to_dict()))
  old, new = workdir.as_before(old), workdir.as_before(new)
  for line in defaults.difference(old, new):
    # Runs add to a config what identifies the data.
    if not line.startswith(workdir.FREE) and "only in the old" not in line:
      return False
  return True


def is_done(record: Mapping) -> bool:
  """Says whether a record is of a job that has ended well."""
  return record.get("state") == "done"


def _step(folder: Path) -> str:
  """Returns how far a job has come that is not done, as far as it tells."""
  entries = workdir.read_metrics(folder)
  return f"step {entries[-1]['step']}" if entries else ""


def _result(folder: Path) -> str:
  """Returns a few words on what a job has reached."""
  with contextlib.suppress(InputError):  # no scores, or damaged ones
    test = typed.read(folder / "scores.json", _SCORES)["test"]
    return f"mAP {test['map_macro']:.3f}, ROC-AUC {test['roc_auc_macro']:.3f}"
  last = (workdir.read_metrics(folder) or [{}])[-1]
  names = {"validation_map": "validation mAP", "loss": "loss"}
  found = [f"{names[n]} {last[n]:.3f}" for n in names if n in last]
  return ", ".join(found)
