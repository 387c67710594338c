"""Reads prepared data sets: a table of tracks, random access to their audio."""

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from ssl_music.data.writer import BLOCK, CHUNK
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
    rows, vocabularies = [], []
    names = name.split("+")
    if len(set(names)) < len(names):
      raise InputError(
        f"--config.data.name={name} names a data set twice: name each once"
      )
    for part in names:
      folder = find(part, self._data_dir)
      table = _read_table(folder)
      vocabularies.append(_read_tags(folder))
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
      self._handles[folder] = np.load(folder / "energy.npy", mmap_mode="r")
    first = self._first_block[track]
    blocks = self.samples[track] // BLOCK
    return np.asarray(self._handles[folder][first : first + blocks])

  def read(self, track: int, start: int, length: int) -> np.ndarray:
    """Reads part of a track.

    Args:
      track: index into the table.
      start: first sample.
      length: in samples; `start + length` is within the track.

    Returns:
      int16 [length].
    """
    first, last = start // CHUNK, (start + length - 1) // CHUNK
    row = self._row[track]
    source = self._source(self._part[track])
    # One by one: for so few, asking for all at once only starts threads.
    pcm = np.concatenate(
      [_audio(source[row + chunk]) for chunk in range(first, last + 1)]
    )
    offset = start - first * CHUNK
    return pcm[offset : offset + length]

  def _source(self, part: int):
    if part not in self._handles:
      _, folder, split = self._parts[part]
      # Raw, since decoding all features takes twice as long as reading.
      self._handles[part] = tfds.builder_from_directory(folder).as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
      )
    return self._handles[part]


def find(name: str, data_dir: str | os.PathLike | None = None) -> Path:
  """Returns the folder of a data set's newest version.

  Raises:
    InputError: it is not there.
  """
  data_dir = Path(data_dir) if data_dir else default_data_dir()
  versions = [
    folder
    for folder in (data_dir / name).glob("[0-9]*.[0-9]*.[0-9]*")
    if (folder / "tracks.csv").exists()
  ]
  if name and versions:
    return max(versions, key=lambda f: tuple(map(int, f.name.split("."))))
  there = sorted(
    {f.parent.parent.name for f in data_dir.glob("*/*/tracks.csv")}
  )
  raise InputError(
    f"no data set {name!r} in {data_dir} (there: {', '.join(there) or 'none'}):"
    " make it with python -m ssl_music.prepare, or give the right"
    " --config.data.name and --config.data.data_dir"
  )


def fingerprint(tracks: Iterable[tuple[str, ...]], tags: Sequence[str]) -> str:
  """Returns a hash of which track is in which split and of the tags' order.

  Scores with the same fingerprint are of the same tracks and label columns.

  Args:
    tracks: (split, id) of each, in any order.
    tags: in the order of the columns.
  """
  digest = hashlib.sha256()
  for tag in tags:
    digest.update(f"tag\t{tag}\n".encode())
  for line in sorted(tracks):
    digest.update("\t".join(line).encode() + b"\n")
  return digest.hexdigest()[:12]


def _audio(record: bytes) -> np.ndarray:
  features = tf_example_pb2.Example.FromString(record).features.feature
  return np.frombuffer(features["audio"].bytes_list.value[0], np.int16)


def _read_table(folder: Path) -> list[dict]:
  rows, block = [], 0
  with (folder / "tracks.csv").open(newline="", encoding="utf-8") as file:
    for row in csv.DictReader(file):
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


def _read_tags(folder: Path) -> list[str]:
  features = tfds.builder_from_directory(folder).info.features
  return list(features["tags"].feature.names) if "tags" in features else []
