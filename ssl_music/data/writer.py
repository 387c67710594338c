"""Writes tracks as a TFDS data set in ArrayRecord.

A track is stored as records of `CHUNK_SECONDS`, in order, so that a segment
is read without the rest of its track. Beside the shards lie

- `tracks.csv`, one row a track: id, path, split, its first record in that
  split, samples, root mean square, tags; and
- `energy.npy`, the mean square of every `BLOCK` samples of every track, in
  the order of the rows: what tells sounding segments without reading audio.

TFDS's generator-based builders collect a split in memory and, over 1 GB of
it, need TensorFlow for their temporary files; its sequential writer streams.
Only this module writes data sets.
"""

import csv
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from ssl_music import progress
from ssl_music.data import audio, workers
from ssl_music.errors import InputError
from ssl_music.lock import hold

CHUNK_SECONDS = 4
CHUNK = CHUNK_SECONDS * audio.SAMPLE_RATE
BLOCK = audio.SAMPLE_RATE // 10
COLUMNS = ("id", "path", "split", "row", "samples", "rms", "tags")
SPLITS = ("train", "validation", "test", "unlabelled")
VERSION = "1.0.0"
_CHUNKS_PER_SHARD = 4096  # 0.5 GB of int16


def write(
  name: str,
  tracks: Sequence[dict],
  load: Callable[[dict], np.ndarray],
  *,
  data_dir: Path,
  tags: Sequence[str] = (),
  description: str = "",
  citation: str = "",
  min_seconds: float = 4.0,
  processes: int = 0,
  overwrite: bool = False,
) -> dict:
  """Writes a data set; an interrupted one leaves nothing that looks finished.

  It is written to a folder called `incomplete.…` and renamed when whole.

  Args:
    name: of the data set, its folder under `data_dir`.
    tracks: dicts with "id", "path", "split" (one of `SPLITS`) and "tags" (a
      list from `tags`), unique by id; written in this order.
    load: a picklable function that takes one of `tracks` and returns float
      [samples] at 16 kHz, or raises `audio.AudioError`.
    data_dir: TFDS's.
    tags: the vocabulary, in the order of the label columns.
    description: for the data set's card.
    citation: BibTeX, for the data set's card.
    min_seconds: shorter tracks are skipped.
    processes: worker processes that load; 0 loads in this one.
    overwrite: replace a data set of this name.

  Returns:
    {"name", "folder", "prepared": {split: tracks}, "skipped": [(path,
    reason)], "seconds": of audio}.

  Raises:
    InputError: the data set exists, another process is writing it, or no
      track can be used.
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
    unfinished.mkdir()
    try:
      info = _info(name, unfinished, tags, description, citation)
      prepare = _Prepare(load, min_seconds)
      summary = _write_into(unfinished, info, tracks, prepare, processes)
      if folder.exists():
        shutil.rmtree(folder)
      unfinished.rename(folder)
    finally:
      shutil.rmtree(unfinished, ignore_errors=True)
  return {"name": name, "folder": folder} | summary


def _info(
  name: str,
  folder: Path,
  tags: Sequence[str],
  description: str,
  citation: str,
) -> tfds.core.DatasetInfo:
  features = {
    "audio": tfds.features.Tensor(
      shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
    ),
    "id": tfds.features.Text(),
    "path": tfds.features.Text(),
    "chunk": np.int32,
  }
  if tags:
    labels = tfds.features.ClassLabel(names=list(tags))
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
    description=description,
    citation=citation,
    disable_shuffling=True,
  )


def _write_into(
  folder: Path,
  info: tfds.core.DatasetInfo,
  tracks: Sequence[dict],
  prepare: Callable[[dict], dict | str],
  processes: int,
) -> dict:
  shards = tfds.core.SequentialWriter(
    info, _CHUNKS_PER_SHARD, file_format="array_record"
  )
  rows = dict.fromkeys(SPLITS, 0)
  prepared = dict.fromkeys(SPLITS, 0)
  skipped: list[tuple[str, str]] = []
  energies: list[np.ndarray] = []
  with (
    (folder / "tracks.csv").open("w", newline="", encoding="utf-8") as file,
    workers.pool(processes) as run,
    progress.bar(total=len(tracks), unit="track", desc=info.name) as bar,
  ):
    table = csv.DictWriter(file, COLUMNS)
    table.writeheader()
    for track, result in run(prepare, tracks):
      bar.update()
      if isinstance(result, str):
        skipped.append((track["path"], result))
        continue
      split, pcm = track["split"], result["pcm"]
      if not prepared[split]:
        shards.initialize_splits([split])
      examples = list(_examples(track, pcm, with_tags="tags" in info.features))
      shards.add_examples({split: examples})
      entry = {
        "id": track["id"],
        "path": track["path"],
        "split": split,
        "row": rows[split],
        "samples": len(pcm),
        "rms": f"{result['rms']:.9g}",
        "tags": "|".join(track["tags"]),
      }
      table.writerow(entry)
      rows[split] += len(examples)
      prepared[split] += 1
      energies.append(result["energy"])
  if not energies:
    reasons = "; ".join(f"{path}: {why}" for path, why in skipped[:3])
    raise InputError(
      f"none of the {len(skipped)} audio files of {info.name} can be used"
      f" ({reasons}): give others"
    )
  shards.close_all()
  np.save(folder / "energy.npy", np.concatenate(energies))
  _write_skipped(folder / "skipped.csv", skipped)
  return {
    "prepared": {split: count for split, count in prepared.items() if count},
    "skipped": skipped,
    "seconds": float(sum(map(len, energies))) * BLOCK / audio.SAMPLE_RATE,
  }


class _Prepare:
  """Loads and measures one track, in a worker process."""

  def __init__(self, load: Callable[[dict], np.ndarray], min_seconds: float):
    self._load, self._min_seconds = load, min_seconds

  def __call__(self, track: dict) -> dict | str:
    try:
      pcm = audio.to_pcm(self._load(track))
    except audio.AudioError as error:
      return str(error)
    seconds = len(pcm) / audio.SAMPLE_RATE
    if seconds < self._min_seconds:
      return f"too short ({seconds:.1f} s, under {self._min_seconds:g} s)"
    energy = block_energy(pcm)
    rms = float(np.sqrt(energy.mean(dtype=np.float64)))
    return {"pcm": pcm, "energy": energy, "rms": rms}


def block_energy(pcm: np.ndarray) -> np.ndarray:
  """Returns the mean square of every whole block, float32 [samples // BLOCK].

  Args:
    pcm: int16 [samples].
  """
  blocks = pcm[: len(pcm) // BLOCK * BLOCK].reshape(-1, BLOCK)
  return (
    np.square(blocks.astype(np.float32))
    .mean(axis=1, dtype=np.float64)
    .astype(np.float32)
  )


def _examples(
  track: dict, pcm: np.ndarray, *, with_tags: bool
) -> Iterator[dict]:
  for chunk in range(-(-len(pcm) // CHUNK)):
    example = {
      "audio": pcm[chunk * CHUNK : (chunk + 1) * CHUNK],
      "id": track["id"],
      "path": track["path"],
      "chunk": chunk,
    }
    yield example | ({"tags": track["tags"]} if with_tags else {})


def _write_skipped(path: Path, skipped: list[tuple[str, str]]) -> None:
  with path.open("w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(("path", "reason"))
    table.writerows(skipped)
