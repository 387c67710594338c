"""Reads prepared data sets: a table of tracks, random access to their audio."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from ssl_music.data import records
from ssl_music.data.segments import BLOCK
from ssl_music.data.shards import CHUNK
from ssl_music.data.writer import VERSION
from ssl_music.errors import InputError


def default_data_dir() -> Path:
  """Returns TFDS's data folder: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
  folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  return Path(folder).expanduser()


class Tracks:
  """The tracks of some splits of one or several data sets.

  Instances are cheap to pickle: audio and energies are opened by the process
  that reads them.

  Attributes:
    name: as given, such as "demo" or "a+b".
    ids, paths, splits: lists of str, one entry a track.
    missing: {split: ids} of tracks that the data set's tables put into a split
      and that are not in it, since they are absent or unusable.
    card, folder: of the data set, see `plans.describe`; of several, the first
      one's and the last one's.
    samples: int64 [tracks], lengths at 16 kHz.
    rms: float64 [tracks], of the int16 samples.
    tags: the vocabulary in label order; empty for several data sets.
    labels: bool [tracks, tags].
  """

  def __init__(
    self,
    name: str,
    splits: Sequence[str] = ("train", "unlabelled"),
    data_dir: str | os.PathLike | None = None,
  ):
    """Opens data sets.

    Args:
      name: of a prepared data set, or several joined by "+".
      splits: those to take, as far as a data set has them.
      data_dir: TFDS's; None is the default.

    Raises:
      InputError: a data set is not there or none of the splits is.
    """
    self.name = name
    self._data_dir = Path(data_dir) if data_dir else default_data_dir()
    self._parts: list[tuple[str, Path, str]] = []  # name, folder, split
    self._handles: dict = {}
    rows, vocabularies, cards = [], [], []
    self.missing: dict[str, list[str]] = {split: [] for split in splits}
    names = name.split("+")
    if len(set(names)) < len(names):
      raise InputError(
        f"--config.data.name={name} names a data set twice: name each once"
      )
    for part in names:
      folder = find(part, self._data_dir)
      table = _read_table(folder)
      vocabularies.append(_read_tags(folder))
      cards.append(json.loads((folder / "card.json").read_text("utf-8")))
      for row in _read_rows(folder / "skipped.csv"):
        if row["split"] in splits:
          self.missing[row["split"]].append(row["id"])
      for split in splits:
        chosen = [row for row in table if row["split"] == split]
        if chosen:
          self._parts.append((part, folder, split))
        rows += [row | {"part": len(self._parts) - 1} for row in chosen]
    if not rows:
      raise InputError(
        f"data set {name} in {self._data_dir} has no track in"
        f" {' or '.join(splits)}: prepare it with such a split, or choose"
        " others with --config.data.splits"
      )
    self.card, self.folder = cards[0], folder
    self.ids = [row["id"] for row in rows]
    self.paths = [row["path"] for row in rows]
    self.splits = [row["split"] for row in rows]
    self.samples = np.array([row["samples"] for row in rows])
    self.rms = np.array([row["rms"] for row in rows])
    self._part = np.array([row["part"] for row in rows])
    self._row = np.array([row["row"] for row in rows])
    self._first_block = np.array([row["first_block"] for row in rows])
    self.tags = vocabularies[0] if len(vocabularies) == 1 else []
    self.labels = np.zeros((len(rows), len(self.tags)), bool)
    column = {tag: index for index, tag in enumerate(self.tags)}
    for index, row in enumerate(rows if self.tags else []):
      self.labels[index, [column[tag] for tag in row["tags"]]] = True

  def __len__(self) -> int:
    return len(self.ids)

  def __getstate__(self) -> dict:
    return self.__dict__ | {"_handles": {}}

  def keep_tags(self, columns: Sequence[int]) -> None:
    """Reduces vocabulary and labels to some columns."""
    self.tags = [self.tags[column] for column in columns]
    self.labels = self.labels[:, list(columns)]

  def energy(self, track: int) -> np.ndarray:
    """Returns the mean square of a track's blocks, float32 [blocks]."""
    folder = self._parts[self._part[track]][1]
    if folder not in self._handles:
      energies = np.memmap(folder / "energy.f32", "<f4", "r")
      # A view of a memmap is slow to make, of an array quick.
      self._handles[folder] = energies.view(np.ndarray)
    first = self._first_block[track]
    blocks = self.samples[track] // BLOCK
    return self._handles[folder][first : first + blocks]

  def read(
    self, track: int, start: int, length: int, out: np.ndarray | None = None
  ) -> np.ndarray:
    """Reads part of a track.

    Args:
      track: index into the table.
      start: first sample.
      length: in samples; `start + length` is within the track.
      out: int16 [length] to read into; None makes a new array.

    Returns:
      int16 [length].
    """
    out = np.empty(length, np.int16) if out is None else out
    row, record = int(self._row[track]), self._source(int(self._part[track]))
    for chunk in range(start // CHUNK, -(-(start + length) // CHUNK)):
      shift = chunk * CHUNK - start  # of the record against `out`
      first, last = max(-shift, 0), min(length - shift, CHUNK)
      out[shift + first : shift + last] = record(row + chunk)[first:last]
    return out

  def _source(self, part: int) -> records.Reader:
    if part not in self._handles:
      _, folder, split = self._parts[part]
      self._handles[part] = records.Reader(folder, split)
    return self._handles[part]


def find(name: str, data_dir: str | os.PathLike | None = None) -> Path:
  """Returns the folder of a data set.

  Raises:
    InputError: it is not there, or of a version that is no longer read.
  """
  data_dir = Path(data_dir) if data_dir else default_data_dir()
  folder = data_dir / name / VERSION
  if name and (folder / "card.json").exists():
    return folder
  versions = sorted(
    f.parent.name for f in folder.parent.glob("[0-9]*/tracks.csv")
  )
  if name and versions:
    raise InputError(
      f"data set {name} in {data_dir} is of version {' and '.join(versions)},"
      f" and this program reads {VERSION}: make it again with python -m"
      " ssl_music.prepare"
    )
  there = sorted(
    f.parent.parent.name for f in data_dir.glob(f"*/{VERSION}/card.json")
  )
  raise InputError(
    f"no data set {name!r} in {data_dir} (there: {', '.join(there) or 'none'}):"
    " make it with python -m ssl_music.prepare, or give the right"
    " --config.data.name and --config.data.data_dir"
  )


def _read_table(folder: Path) -> list[dict]:
  rows, block = [], 0
  for row in _read_rows(folder / "tracks.csv"):
    samples = int(row["samples"])
    rows.append(
      row
      | {
        "samples": samples,
        "row": int(row["row"]),
        "rms": float(row["rms"]),
        "tags": row["tags"].split("|") if row["tags"] else [],
        "first_block": block,
      }
    )
    block += samples // BLOCK
  return rows


def _read_rows(path: Path) -> Iterator[dict[str, str]]:
  with path.open(newline="", encoding="utf-8") as file:
    yield from csv.DictReader(file)


def _read_tags(folder: Path) -> list[str]:
  features = tfds.builder_from_directory(folder).info.features
  return list(features["tags"].feature.names) if "tags" in features else []
