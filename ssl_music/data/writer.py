"""Writes tracks as a TFDS data set in ArrayRecord.

A track is stored as records of `CHUNK` samples, in order, so that a segment is
read without the rest of its track. Beside the shards lie

- `tracks.csv`, one row a track: id, path, split, its first record in that
  split, samples, root mean square, tags;
- `energy.f32`, float32 energies of every track (`ready.block_energy`), in the
  order of the rows: what tells sounding segments without reading audio;
- `skipped.csv`, one row for each track of the plan that is not there: id, path,
  split, reason; and
- `card.json`, what `plans.describe` says of the plan.

Worker processes write it in parts (`parts`), and memory grows neither with a
track's length nor, but for the table, with their number.
"""

import contextlib
import csv
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ssl_music import progress
from ssl_music.data import audio, parts, plans, records, workers
from ssl_music.errors import InputError, Resumable
from ssl_music.lock import hold

COLUMNS = ("id", "path", "split", "row", "samples", "rms", "tags")
SKIPPED = ("id", "path", "split", "reason")
VERSION = "2.0.0"


def write(
  name: str,
  plan: Mapping[str, Any],
  *,
  data_dir: Path,
  min_seconds: float = 4.0,
  processes: int = 0,
  run: workers.Run | None = None,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes a data set; an interrupted one leaves nothing that looks finished.

  It is written to a folder called `incomplete.…` and renamed when whole. A run
  that was killed, interrupted or found the disk full leaves that folder, and
  the same again goes on after the parts that were finished.

  Args:
    name: of the data set, its folder under `data_dir`.
    plan: see `plans`; a split's tracks are written in their order.
    data_dir: TFDS's.
    min_seconds: shorter tracks are skipped.
    processes: worker processes that decode; 0 decodes in this one.
    run: of `engine.runner`, which then takes the place of the processes.
    overwrite: replace a data set of this name.

  Returns:
    {"name", "folder", "prepared": {split: tracks}, "skipped": [dicts with
    `SKIPPED`], "seconds": of audio}.

  Raises:
    InputError: the data set exists, another process is writing it, no track
      can be used, the disk is full, or the engine failed.
  """
  folder = Path(data_dir) / name / VERSION
  try:
    os.fspath(folder).encode()
  except UnicodeEncodeError as error:
    raise InputError(
      f"the folder's name {str(folder)!a} is not UTF-8: give another --data_dir"
    ) from error
  if os.path.exists(folder) and not overwrite:  # noqa: PTH110 (never raises)
    raise InputError(
      f"data set {name} exists at {folder}: choose another --name, or replace"
      " it with --overwrite"
    )
  with hold(folder.parent, "preparing", "choose another --name or --data_dir"):
    unfinished = folder.with_name(f"incomplete.{VERSION}")
    replaced = folder.with_name(f"replaced.{VERSION}")
    try:
      if replaced.exists() and not folder.exists():
        replaced.rename(folder)  # killed between the two renamings below
      _begin(
        unfinished,
        parts.signature(
          plan, min_seconds, VERSION, plan["tags"], plan["max_seconds"]
        ),
      )
      pool = contextlib.nullcontext(run) if run else workers.pool(processes)
      summary = _write_into(unfinished, name, plan, min_seconds, pool)
      if folder.exists():  # moved, since removing it takes time
        folder.rename(replaced)
      unfinished.rename(folder)
      shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
      raise Resumable(
        f"cannot write data set {name} to {folder.parent}"
        f" ({error.strerror or error}): free some space there, or make it"
        " writable, and run the same command again, which goes on after the"
        f" parts that are finished ({unfinished.name}); or give another"
        " --data_dir"
      ) from error
    finally:
      error = sys.exception()
      given_up = isinstance(error, InputError)
      given_up &= not isinstance(error, Resumable)
      if unfinished.exists() and given_up:
        # Renamed first, so that no worker finds its way there.
        unfinished = unfinished.rename(folder.with_name("incomplete.given_up"))
        shutil.rmtree(unfinished, ignore_errors=True)
  return {"name": name, "folder": folder} | summary


def _begin(folder: Path, signature: str) -> None:
  """Makes the folder of a new run, or keeps that of one which was killed."""
  file = folder / "signature"
  resumed = file.exists() and file.read_text() == signature
  for leftover in folder.parent.glob("incomplete.*"):
    if leftover != folder or not resumed:
      shutil.rmtree(leftover)
  if resumed:
    for attempt in (folder / "parts").glob(f"{parts.ATTEMPT}*"):
      shutil.rmtree(attempt, ignore_errors=True)
    finished = len([*(folder / "parts").glob(f"*{parts.FINISHED}")])
    print(f"going on after {finished} finished parts", file=sys.stderr)
  else:
    (folder / "parts").mkdir(parents=True)
    file.write_text(signature)


def _write_into(
  folder: Path,
  name: str,
  plan: Mapping[str, Any],
  min_seconds: float,
  pool: contextlib.AbstractContextManager[workers.Run],
) -> dict[str, Any]:
  work = (folder / "parts").absolute()  # workers may run anywhere
  write_part = parts.Write(plan["load"], plan["tags"], min_seconds, work)
  shards = {split: [] for split in plans.SPLITS}
  prepared = dict.fromkeys(plans.SPLITS, 0)
  skipped, samples = [], 0
  with (
    (folder / "tracks.csv").open("w", newline="", encoding="utf-8") as file,
    (folder / "energy.f32").open("wb") as energies,
    pool as run,
    _progress(len(plan["tracks"]), name, work),
  ):
    table = csv.DictWriter(file, COLUMNS)
    table.writeheader()
    for part, done in run(write_part, parts.divide(plan["tracks"])):
      if isinstance(done, str):  # its process crashed twice
        done = write_part.carefully(part)
      split, tracks = part["split"], part["tracks"]
      first = sum(shard.records for shard in shards[split])
      for row in done["rows"]:
        track = tracks[row["track"]]
        entry = {"row": first + row["row"], "samples": row["samples"]}
        entry |= {"rms": f"{row['rms']:.9g}", "tags": "|".join(track["tags"])}
        table.writerow(_pick(track, COLUMNS[:3]) | entry)
        samples += row["samples"]
      for place, reason in done["skipped"]:
        track = tracks[place]
        if track["id"] in plan["known_bad"] and reason != parts.ABSENT:
          reason += f" (known: {plan['known_bad'][track['id']]})"
        skipped.append(_pick(track, SKIPPED[:3]) | {"reason": reason})
      np.fromfile(done["energy"], "<f4").tofile(energies)
      shards[split].append(done["shard"])
      prepared[split] += len(done["rows"])
  if not plan["tracks"]:
    raise InputError(f"{name} has no tracks: give another source")
  if not samples:
    some = "; ".join(f"{one['path']}: {one['reason']}" for one in skipped[:3])
    raise InputError(
      f"none of the {len(skipped)} tracks of {name} can be used ({some}):"
      " give others"
    )
  records.complete(folder, _info(name, folder, plan), shards)
  # Renamed first, so that no late attempt of an engine's finds its way there.
  shutil.rmtree(work.rename(folder / "written"))
  (folder / "signature").unlink()
  with (folder / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
    table = csv.DictWriter(file, SKIPPED)
    table.writeheader()
    table.writerows(skipped)
  card = json.dumps(plans.describe(plan), indent=2, ensure_ascii=False)
  (folder / "card.json").write_text(card + "\n", encoding="utf-8")
  return {
    "prepared": {split: count for split, count in prepared.items() if count},
    "skipped": skipped,
    "seconds": samples / audio.SAMPLE_RATE,
  }


@contextlib.contextmanager
def _progress(total: int, name: str, work: Path) -> Iterator[None]:
  """Shows how many tracks the workers are through with."""
  ended = threading.Event()

  def count() -> int:
    return sum(file.stat().st_size for file in work.glob(f"*{parts.DONE}"))

  with progress.bar(total=total, unit="track", desc=name) as bar:

    def watch() -> None:
      while not ended.wait(0.5):
        bar.update(count() - bar.n)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
      yield
    finally:
      ended.set()
      watcher.join()
      bar.update(count() - bar.n)


def _info(
  name: str, folder: Path, plan: Mapping[str, Any]
) -> tfds.core.DatasetInfo:
  identity = tfds.core.dataset_info.DatasetIdentity(
    name=name,
    version=tfds.core.Version(VERSION),
    data_dir=str(folder),
    module_name=__name__,
  )
  return tfds.core.DatasetInfo(
    builder=identity,
    features=records.features(plan["tags"]),
    description=plan["description"],
    citation=plan["citation"],
    license=plan["licence"],
    disable_shuffling=True,
  )


def _pick(track: Mapping, names: Iterable[str]) -> dict:
  return {name: track[name] for name in names}
