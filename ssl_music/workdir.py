"""What a run leaves in its workdir, and who may write there."""

import contextlib
import errno
import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from ssl_music import hosts
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
}
# What tells runs of one recipe apart.
_OF_ONE_RUN = ("seed", "encoder", "checkpoint")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
      partial = folder / "config.json.partial"
      with _room(folder):
        partial.write_text(
          json.dumps(config, indent=2) + "\n", encoding="utf-8"
        )
        partial.rename(file)
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
  lines = difference(_as_before(old), _as_before(new))
  lines = [line for line in lines if not line.startswith(FREE)]
  more = [f"and {len(lines) - 5} more"] if len(lines) > 5 else []
  return "; ".join(lines[:5] + more)


def _as_before(config: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves out the fields of `_NEWER` that change nothing."""
  return {
    name: value
    for name, value in config.items()
    if name not in _NEWER or _NEWER[name] != value
  }


def read_config(folder: Path) -> dict[str, Any]:
  """Reads the config of a workdir.

  Raises:
    InputError: there is none.
  """
  file = Path(folder) / "config.json"
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise InputError(
      f"no run in {folder} (its config.json is missing or damaged): give the"
      " workdir of a run"
    ) from error


def recipe(config: Mapping[str, Any]) -> str:
  """Returns a hash of a run's settings but its seed: what seeds compare.

  Nor does count which encoder it begins with, which has a recipe of its own.

  Args:
    config: as of `read_config`.
  """
  settings = {
    name: value
    for name, value in _fields(_as_before(config))
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
  """Returns the entries of a run's `metrics.jsonl`, as far as there are any."""
  file = Path(folder) / "metrics.jsonl"
  entries = []
  for line in (
    file.read_text(encoding="utf-8").splitlines() if file.exists() else ()
  ):
    with contextlib.suppress(ValueError):  # half a line, of a killed run
      entries.append(json.loads(line))
  return entries


@contextlib.contextmanager
def open_metrics(
  folder: Path, step: int
) -> Iterator[tuple[list[dict], Callable[[int, Mapping[str, float]], None]]]:
  """Opens `metrics.jsonl` and TensorBoard events to go on after a step.

  What a killed run wrote after its last checkpoint is cut off: the steps come
  again.

  Args:
    folder: the workdir.
    step: the number of steps done.

  Of several processes, all read and the first writes.

  Yields:
    the entries so far, and write(step, values).

  Raises:
    InputError: the disk is full.
  """
  file = folder / "metrics.jsonl"
  entries = [entry for entry in read_metrics(folder) if entry["step"] <= step]
  if not hosts.is_first():
    yield entries, lambda step, values: None
    return
  partial = folder / "metrics.jsonl.partial"
  with _room(folder):
    partial.write_text(
      "".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8"
    )
    partial.rename(file)
    with (
      file.open("a", buffering=1, encoding="utf-8") as jsonl,
      # Not SummaryWriter: its thread dies of a full disk, and those that have
      # something to write then wait for it for ever.
      contextlib.closing(EventsWriter(str(folder / "events"))) as events,
    ):
      start = SessionLog(status=SessionLog.START)
      events.write_event(Event(step=step + 1, session_log=start))

      def write(step: int, values: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in sorted(values.items())}
        jsonl.write(json.dumps({"step": step} | values) + "\n")
        now = time.time()
        for name, value in values.items():
          summary = scalar(name, value)
          events.write_event(Event(wall_time=now, step=step, summary=summary))
        events.flush()

      yield entries, write


@contextlib.contextmanager
def _room(folder: Path) -> Iterator[None]:
  """Explains a full disk."""
  try:
    yield
  except OSError as error:
    if error.errno not in _NO_ROOM:
      raise
    raise InputError(
      f"cannot write to {folder} ({error.strerror}): free some space there; the"
      " same command then goes on from the last save"
    ) from error


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
