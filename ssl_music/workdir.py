"""What a run leaves in its workdir, and who may write there."""

import contextlib
import hashlib
import json
import math
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from ssl_music import disk, hosts, seal, typed
from ssl_music.config import difference
from ssl_music.data.tracks import same_data, tracks_of
from ssl_music.errors import InputError
from ssl_music.lock import hold

# What may change when a run is resumed: it does not change its numbers.
FREE = (
  "data.data_dir",
  "data.workers",
  "cache_dir",
  "log_every_",
  "on_collapse",
)
# Fields that older runs lack, with the value that says what those did.
_NEWER = {
  "momentum_steps": 0,
  "momentum_epochs": 0,
  "momentum_examples": 0,
  "views_together": True,
  "sounding": True,
  "probe.sounding": True,
}
# What tells runs of one recipe apart.
_OF_ONE_RUN = ("seed", "encoder", "checkpoint")
_ADVICE = "start in a new workdir"
# What readers of a config rely on, where it is there.
_CONFIG = {
  "job?": str,
  "seed?": int,
  "encoder?": str,
  "checkpoint?": (str, int),
  "network?": str,
  "frontend?": dict,
  "model?": dict,
  "pretext?": {"name?": str, "head?": list},
  "data?": {"name?": str, "seconds?": float, "data_dir?": (str, None)},
  "source?": dict,
}


class Stopped(Exception):
  """A signal asked the run to stop, and its state is saved.

  Attributes:
    code: the exit code that tells so, 128 + the signal's number.
  """

  def __init__(self, step: int, total: int, number: int):
    super().__init__(
      f"stopped by {signal.Signals(number).name} at step {step} of {total},"
      " saved: the same command goes on from there"
    )
    self.code = 128 + number


@contextlib.contextmanager
def claim(folder: Path, config: Mapping[str, Any]) -> Iterator[None]:
  """Makes a workdir this process's; a new one gets `config.json`.

  Of several processes, the first does so for all.

  Args:
    folder: the workdir.
    config: as a plain dict.

  Raises:
    InputError: it holds a run of another config, or another process has it.
  """
  if not hosts.is_first():
    yield
    return
  config = json.loads(json.dumps(config))  # tuples become lists, as in the file
  with hold(folder, "running in", "give another --workdir"):
    file = folder / "config.json"
    if file.exists():
      changed = _changes(read_config(folder), config)
      if changed:
        raise InputError(
          f"the workdir {folder} holds a run of another config ({changed}):"
          " give another --workdir, or the config of that run"
        )
    else:
      content = json.dumps(config, indent=2) + "\n"
      with writing(folder):
        seal.put(folder, file.name, content, _ADVICE)
    yield


def check_alike(config: Mapping[str, Any]) -> None:
  """Finds that processes of one run have other settings, or other data.

  Args:
    config: of this process, as a plain dict, with the data's fingerprint.

  Raises:
    InputError: the first process has another one.
  """
  text = json.dumps(config)
  changed = _changes(json.loads(hosts.from_first(text)), json.loads(text))
  if changed:
    raise InputError(
      f"other settings or data than process 0 has ({changed}): give all"
      " processes the same command and the same data set"
    )


def _changes(old: dict, new: dict) -> str:
  """Says in which fields two configs differ; "" where none matters."""
  was, now = (one.get("data", {}).get("fingerprint") for one in (old, new))
  if was and now and same_data(was, now):
    old = old | {"data": old["data"] | {"fingerprint": now}}
  lines = difference(as_before(old), as_before(new))
  lines = [line for line in lines if not line.startswith(FREE)]
  more = [f"and {len(lines) - 5} more"] if len(lines) > 5 else []
  return "; ".join(lines[:5] + more)


def as_before(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns a config without the fields that older runs lack, if as they were.

  Args:
    config: as a plain dict.
    prefix: of the names of its fields.
  """
  return {
    name: as_before(value, f"{prefix}{name}.")
    if isinstance(value, Mapping)
    else value
    for name, value in config.items()
    if prefix + name not in _NEWER or _NEWER[prefix + name] != value
  }


def read_config(folder: Path) -> dict[str, Any]:
  """Reads the config of a workdir.

  Raises:
    InputError: there is none, or it is damaged.
  """
  file = Path(folder) / "config.json"
  if not file.exists():
    raise InputError(
      f"no run in {folder} (it has no config.json): give the workdir of a run"
    )
  content = seal.read(Path(folder), file.name, _ADVICE)
  return typed.parse(content, _CONFIG, file, f"restore that file, or {_ADVICE}")


def recipe(config: Mapping[str, Any]) -> str:
  """Returns a hash of a run's settings, by which runs are grouped.

  The seed does not count, and neither does the encoder that it begins with,
  which has a recipe of its own.

  Args:
    config: as of `read_config`.
  """
  settings = {
    name: value
    for name, value in _fields(as_before(config))
    if not name.startswith((*FREE, *_OF_ONE_RUN))
  }
  if "data.fingerprint" in settings:  # all that runs of versions before have
    settings["data.fingerprint"] = tracks_of(settings["data.fingerprint"])
  text = json.dumps(settings, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _fields(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
  """Yields (dotted name, value) of nested dicts."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _fields(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def read_metrics(folder: Path) -> list[dict[str, float]]:
  """Returns the entries of a run's `metrics.jsonl`, as far as there are any.

  Damaged lines are left out, with a warning. Of two lines for one step, the
  last counts.

  Returns:
    {"step", "loss", and whatever else was measured} by rising step; finite
    numbers.

  Raises:
    InputError: the file cannot be read.
  """
  file = Path(folder) / "metrics.jsonl"
  if not file.exists():
    return []
  with disk.readable(file, "check its disk"):
    *lines, _ = file.read_bytes().split(b"\n")  # the last, of a killed run
  entries, damaged = {}, 0
  for line in lines:
    entry = _entry(line)
    if entry is None:
      damaged += 1
    else:
      entries[entry["step"]] = entry
  if damaged:
    logging.warning("%s has %d damaged lines: they are left out", file, damaged)
  return [entries[step] for step in sorted(entries)]


def _line(entry: Mapping[str, float]) -> str:
  return json.dumps({**entry, "crc32": _crc32(entry)}) + "\n"


def _crc32(entry: Mapping[str, float]) -> int:
  return zlib.crc32(json.dumps(entry).encode())


def _entry(line: bytes) -> dict[str, float] | None:
  """Returns the finite numbers of a line; None of one that is damaged."""
  try:
    entry = json.loads(line)
    sealed = entry.pop("crc32", None)  # older lines have none
    if sealed not in (None, _crc32(entry)):
      return None
    kinds = {type(value) for value in entry.values()}
    entry = {name: one for name, one in entry.items() if math.isfinite(one)}
  except (AttributeError, OverflowError, RecursionError, TypeError, ValueError):
    return None
  step = entry.get("step")
  whole = kinds <= {int, float} and type(step) is int and "loss" in entry
  return entry if whole and 0 < step < 1 << 53 else None


@contextlib.contextmanager
def open_metrics(
  folder: Path, step: int
) -> Iterator[tuple[list[dict], Callable[[int, Mapping[str, float]], None]]]:
  """Opens `metrics.jsonl` and TensorBoard events to go on after a step.

  What a killed run wrote after its last checkpoint is cut off: the steps come
  again. Of several processes, all read and the first writes.

  Args:
    folder: the workdir.
    step: the number of steps done.

  Yields:
    the entries so far, and write(step, values).

  Raises:
    InputError: the folder cannot be written to.
  """
  file = folder / "metrics.jsonl"
  entries = [entry for entry in read_metrics(folder) if entry["step"] <= step]
  if not hosts.is_first():
    yield entries, lambda step, values: None
    return
  with contextlib.ExitStack() as stack:
    with writing(folder):
      disk.write(file, "".join(map(_line, entries)))
      jsonl = file.open("a", buffering=1, encoding="utf-8")
      stack.callback(_close, jsonl, folder)
      # Not SummaryWriter: its thread dies of a full disk, and those that have
      # something to write then wait for it for ever.
      events = EventsWriter(str(folder / "events"))
      stack.callback(_close, events, folder)
      start = SessionLog(status=SessionLog.START)
      events.write_event(Event(step=step + 1, session_log=start))

    def write(step: int, values: Mapping[str, float]) -> None:
      values = {name: float(value) for name, value in sorted(values.items())}
      now = time.time()
      with writing(folder):
        jsonl.write(_line({"step": step} | values))
        for name, value in values.items():
          summary = scalar(name, value)
          events.write_event(Event(wall_time=now, step=step, summary=summary))
        events.flush()

    yield entries, write


def _close(opened: Any, folder: Path) -> None:
  with writing(folder):  # what is buffered
    opened.close()


def writing(folder: Path) -> contextlib.AbstractContextManager[None]:
  """Explains why a workdir cannot be written to, see `disk.explained`."""
  after = "the same command then goes on from the last save"
  return disk.explained("write to", folder, after=after)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], int]]:
  """Turns SIGTERM and SIGINT into a request; a second one acts at once.

  Yields:
    requested(), the signal's number, or 0 as long as there was none. Signals
    act as before until its first call, when there is something to save.
  """
  received = [0]
  before = {}

  def handle(number: int, frame: object) -> None:
    del frame
    if received[0]:
      signal.signal(number, before[number])
      signal.raise_signal(number)
    received[0] = number

  def requested() -> int:
    if not before:
      for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, handle)
    return received[0]

  try:
    yield requested
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
