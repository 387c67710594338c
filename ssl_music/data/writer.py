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

Memory does not grow with a track's length: workers pass audio on in files.
"""

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ssl_music import progress
from ssl_music.data import audio, plans, ready, records, workers
from ssl_music.data.records import CHUNK
from ssl_music.errors import InputError
from ssl_music.lock import hold

COLUMNS = ("id", "path", "split", "row", "samples", "rms", "tags")
SKIPPED = ("id", "path", "split", "reason")
VERSION = "2.0.0"
ABSENT = "no such file"


def write(
  name: str,
  plan: Mapping[str, Any],
  *,
  data_dir: Path,
  min_seconds: float = 4.0,
  processes: int = 0,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes a data set; an interrupted one leaves nothing that looks finished.

  It is written to a folder called `incomplete.…` and renamed when whole.

  Args:
    name: of the data set, its folder under `data_dir`.
    plan: see `plans`; its tracks are written in their order.
    data_dir: TFDS's.
    min_seconds: shorter tracks are skipped.
    processes: worker processes that decode; 0 decodes in this one.
    overwrite: replace a data set of this name.

  Returns:
    {"name", "folder", "prepared": {split: tracks}, "skipped": [dicts with
    `SKIPPED`], "seconds": of audio}.

  Raises:
    InputError: the data set exists, another process is writing it, no track
      can be used, or the disk is full.
  """
  folder = Path(data_dir) / name / VERSION
  if folder.exists() and not overwrite:
    raise InputError(
      f"data set {name} exists at {folder}: choose another --name, or replace"
      " it with --overwrite"
    )
  with hold(folder.parent, "preparing", "choose another --name"):
    for leftover in folder.parent.glob("incomplete.*"):
      shutil.rmtree(leftover)  # of a run that was killed
    unfinished = folder.with_name(f"incomplete.{VERSION}")
    try:
      unfinished.mkdir()
      summary = _write_into(
        unfinished, name, plan, min_seconds=min_seconds, processes=processes
      )
      replaced = folder.with_name("incomplete.replaced")
      if folder.exists():  # moved, since removing it takes time
        folder.rename(replaced)
      unfinished.rename(folder)
      shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
      raise InputError(
        f"cannot write data set {name} to {folder.parent}"
        f" ({error.strerror or error}), and nothing of it is kept: free some"
        " space there, make it writable, or give another --data_dir"
      ) from error
    finally:
      shutil.rmtree(unfinished, ignore_errors=True)
  return {"name": name, "folder": folder} | summary


def _write_into(
  folder: Path,
  name: str,
  plan: Mapping[str, Any],
  *,
  min_seconds: float,
  processes: int,
) -> dict[str, Any]:
  info = _info(name, folder, plan)
  passed_on = folder / "passed_on"
  passed_on.mkdir()
  make_ready = ready.Ready(plan["load"], min_seconds, passed_on)
  rows = dict.fromkeys(plans.SPLITS, 0)
  prepared = dict.fromkeys(plans.SPLITS, 0)
  skipped, samples = [], 0
  with (
    (folder / "tracks.csv").open("w", newline="", encoding="utf-8") as file,
    (folder / "energy.f32").open("wb") as energies,
    records.Shards(folder, info) as shards,
    workers.pool(processes) as run,
    progress.bar(total=len(plan["tracks"]), unit="track", desc=name) as bar,
  ):
    table = csv.DictWriter(file, COLUMNS)
    table.writeheader()
    for track, result in _in_order(plan["tracks"], make_ready, run):
      bar.update()
      if isinstance(result, str):
        reason = result
        if track["id"] in plan["known_bad"]:
          reason += f" (known: {plan['known_bad'][track['id']]})"
        skipped.append(_pick(track, SKIPPED[:3]) | {"reason": reason})
        continue
      split = track["split"]
      entry = {"row": rows[split], "samples": result["samples"]}
      entry |= {"rms": f"{result['rms']:.9g}", "tags": "|".join(track["tags"])}
      table.writerow(_pick(track, COLUMNS[:3]) | entry)
      result["energy"].astype("<f4").tofile(energies)
      pcm = ready.samples(result)
      examples = _examples(track, pcm, "tags" in info.features)
      rows[split] += shards.add(split, examples)
      prepared[split] += 1
      samples += result["samples"]
    if not samples:
      some = "; ".join(f"{one['path']}: {one['reason']}" for one in skipped[:3])
      raise InputError(
        f"none of the {len(skipped)} tracks of {name} can be used ({some}):"
        " give others"
      )
  shutil.rmtree(passed_on)  # a crashed worker leaves its file there
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


def _info(
  name: str, folder: Path, plan: Mapping[str, Any]
) -> tfds.core.DatasetInfo:
  features = {
    "audio": tfds.features.Tensor(
      shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
    ),
    "id": tfds.features.Text(),
    "path": tfds.features.Text(),
    "chunk": np.int32,
  }
  if plan["tags"]:
    labels = tfds.features.ClassLabel(names=list(plan["tags"]))
    features["tags"] = tfds.features.Sequence(labels)
  identity = tfds.core.dataset_info.DatasetIdentity(
    name=name,
    version=tfds.core.Version(VERSION),
    data_dir=str(folder),
    module_name=__name__,
  )
  return tfds.core.DatasetInfo(
    builder=identity,
    features=tfds.features.FeaturesDict(features),
    description=plan["description"],
    citation=plan["citation"],
    license=plan["licence"],
    disable_shuffling=True,
  )


def _in_order(
  tracks: Iterable[dict], make_ready: ready.Ready, run: workers.Run
) -> Iterator[tuple[dict, dict | str]]:
  """Yields each track with its result; absent ones trouble no worker."""
  tracks = list(tracks)
  present = (track for track in tracks if track.get("file", "") is not None)
  results = run(make_ready, present)
  for track in tracks:
    if track.get("file", "") is None:
      yield track, ABSENT
    else:
      yield track, next(results)[1]


def _examples(
  track: Mapping, pcm: np.ndarray, with_tags: bool
) -> Iterator[dict]:
  for chunk in range(-(-len(pcm) // CHUNK)):
    example = {
      "audio": np.asarray(pcm[chunk * CHUNK : (chunk + 1) * CHUNK]),
      "id": track["id"],
      "path": track["path"],
      "chunk": chunk,
    }
    yield example | ({"tags": track["tags"]} if with_tags else {})


def _pick(track: Mapping, names: Iterable[str]) -> dict:
  return {name: track[name] for name in names}
