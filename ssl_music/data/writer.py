"""Writes tracks as a TFDS data set in ArrayRecord.

A track is stored as records of `CHUNK` samples, in order, so that a segment is
read without the rest of its track. Beside the shards lie

- `tracks.csv`, one row a track: id, path, split, its first record in that
  split, samples, root mean square, tags;
- `energy.f32`, float32 energies of every track (`ready.block_energy`), in the
  order of the rows: what tells sounding segments without reading audio;
- `skipped.csv`, one row for each track of the plan that is not there: id, path,
  split, reason;
- `card.json`, what `plans.describe` says of the plan; and
- `seal.json`, lengths and checksums of all these, see `ssl_music.seal`.

Worker processes write it in parts (`parts`), and memory grows neither with a
track's length nor, but for the table, with their number.
"""

import contextlib
import csv
import functools
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ssl_music import disk, progress
from ssl_music.data import audio, finish, parts, plans, records, workers
from ssl_music.errors import InputError, Resumable
from ssl_music.lock import hold
from ssl_music.text import cells

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

  It is written to a folder called `incomplete.…`, see `finish`, and renamed
  when whole. A run that was killed, interrupted or found the disk full leaves
  that folder, and the same again goes on after the parts that were finished.

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
  work = finish.unfinished(folder)
  if not plan["tracks"]:
    raise InputError(f"{name} has no tracks: give another source")
  settings = min_seconds, VERSION, plan["tags"], plan["max_seconds"]
  with (
    hold(folder.parent, "preparing", "choose another --name or --data_dir"),
    disk.explained(
      f"write data set {name} to",
      folder.parent,
      option="--data_dir",
      after="the same command goes on after the parts that are finished"
      f" ({work.name})",
      kind=Resumable,
    ),
  ):
    signature = functools.partial(parts.signature, plan, *settings)
    state = finish.recover(folder, signature)
    if state is None:
      if folder.exists() and not overwrite:
        raise InputError(
          f"data set {name} exists at {folder}: choose another --name, or"
          " replace it with --overwrite"
        )
      finish.begin(folder, signature())
      state = finish.written(folder, name)
      if state is None:
        pool = contextlib.nullcontext(run) if run else workers.pool(processes)
        state = _write_parts(work, name, plan, min_seconds, pool)
        finish.store(folder, state)
      finish.complete(folder, _info(name, folder, plan), state)
  return {"name": name, "folder": folder} | {
    "prepared": {s: count for s, count in state["prepared"].items() if count},
    "skipped": state["skipped"],
    "seconds": state["seconds"],
  }


def _write_parts(
  folder: Path,
  name: str,
  plan: Mapping[str, Any],
  min_seconds: float,
  pool: contextlib.AbstractContextManager[workers.Run],
) -> dict[str, Any]:
  """Writes all parts and the tables; returns what `finished.json` holds."""
  whole = folder / finish.WHOLE
  shutil.rmtree(whole, ignore_errors=True)  # of a run that was killed
  whole.mkdir()
  work = (folder / finish.PARTS).absolute()  # workers may run anywhere
  write_part = parts.Write(plan["load"], plan["tags"], min_seconds, work)
  shards = {split: [] for split in plans.SPLITS}
  prepared = dict.fromkeys(plans.SPLITS, 0)
  first = dict.fromkeys(plans.SPLITS, 0)
  skipped, samples = [], 0
  with (
    (whole / "tracks.csv").open("w", newline="", encoding="utf-8") as file,
    (whole / "energy.f32").open("wb") as energies,
    pool as run,
    _progress(len(plan["tracks"]), name, work),
  ):
    table = csv.DictWriter(file, COLUMNS)
    table.writeheader()
    for part, done in run(write_part, parts.divide(plan["tracks"])):
      if isinstance(done, str):  # its process crashed twice
        done = write_part.carefully(part)
      split, tracks = part["split"], part["tracks"]
      for row in done["rows"]:
        track = tracks[row["track"]]
        entry = {"row": first[split] + row["row"], "samples": row["samples"]}
        entry |= {"rms": f"{row['rms']:.9g}", "tags": "|".join(track["tags"])}
        table.writerow(_pick(track, COLUMNS[:3]) | entry)
        samples += row["samples"]
      for place, reason in done["skipped"]:
        track = tracks[place]
        if track["id"] in plan["known_bad"] and reason != parts.ABSENT:
          reason += f" (known: {plan['known_bad'][track['id']]})"
        skipped.append(_pick(track, SKIPPED[:3]) | {"reason": reason})
      np.fromfile(done["energy"], "<f4").tofile(energies)
      first[split] += done["shard"].records
      prepared[split] += len(done["rows"])
      if done["shard"].records:
        shards[split].append(_moved(done))
  if not samples:
    finish.remove(folder)  # nothing to go on with
    some = "; ".join(f"{one['path']}: {one['reason']}" for one in skipped[:3])
    raise InputError(
      f"none of the {len(skipped)} tracks of {name} can be used ({some}):"
      " give others"
    )
  with (whole / "skipped.csv").open("w", newline="", encoding="utf-8") as file:
    table = csv.DictWriter(file, SKIPPED)
    table.writeheader()
    table.writerows(map(cells, skipped))
  card = plans.describe(plan) | {"sealed": True}
  text = json.dumps(card, indent=2, ensure_ascii=False)
  (whole / "card.json").write_text(text + "\n", encoding="utf-8")
  seconds = samples / audio.SAMPLE_RATE
  counts = {"prepared": prepared, "skipped": skipped, "seconds": seconds}
  return {"shards": shards} | counts


def _moved(done: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `finished.json` holds of a part's shard."""
  shard, size = done["shard"], done["sizes"][0]
  about = {"records": shard.records, "bytes": shard.bytes, "size": size}
  return {"file": Path(shard.path).name} | about


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
