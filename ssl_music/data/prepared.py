"""Opens the files of a prepared data set, and refuses damaged ones.

What is sealed (`ssl_music.seal`) is verified; that the tables agree with each
other is checked besides, which is all that there is to check of data sets that
were made before there were seals.
"""

import csv
import io
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_music import seal
from ssl_music.data import records
from ssl_music.data.plans import SPLITS
from ssl_music.data.segments import BLOCK
from ssl_music.data.shards import CHUNK
from ssl_music.data.writer import COLUMNS, SKIPPED
from ssl_music.text import raw_cell

ADVICE = (
  "make that data set again by python -m ssl_music.prepare with --overwrite"
)
_SLAB = 4096  # tracks looked at at once
_LOUDEST = 2.0**15  # root mean square of int16
_CARD = {
  "benchmark": str,
  "as_published": (bool, None),
  "max_seconds?": (float, None),  # which the first versions did not have
}
_INFO = {"name": str, "splits": [{"name": str, "shardLengths?": [str]}]}
_CLASSES = {"sequence": {"feature": {"classLabel": {"numClasses": str}}}}
_FEATURES = {"featuresDict": {"features": {"audio": dict, "tags?": _CLASSES}}}


class Prepared(NamedTuple):
  """A data set's files.

  Attributes:
    folder: of it.
    sealed: verifies what is read.
    table: {column of `tracks.csv`: an array [tracks]}: of str, for "row" and
      "samples" int64, for "rms" float64, for "tags" lists of str; besides
      "block", int64, where a track's energies begin.
    skipped: (split, id) of each track that is not there.
    card: see `plans.describe`.
    tags: the vocabulary in label order.
    shards: {split: [(file, its records)]}.
  """

  folder: Path
  sealed: seal.Sealed
  table: dict[str, np.ndarray]
  skipped: list[tuple[str, str]]
  card: dict[str, Any]
  tags: list[str]
  shards: dict[str, list[tuple[Path, int]]]


def read(folder: Path) -> Prepared:
  """Opens a data set.

  Args:
    folder: of `tracks.find`.

  Raises:
    InputError: a file is missing or damaged, or disagrees with another.
  """
  sealed = seal.Sealed(folder, ADVICE, "card.json")
  card = {"max_seconds": None} | sealed.json("card.json", _CARD)
  tags = _read_tags(sealed)
  table = _read_table(sealed)
  if not set(itertools.chain(*table["tags"])) <= set(tags):
    raise sealed.damaged("tracks.csv", "it has a tag that is no label")
  shards = _read_shards(sealed, folder)
  for split in SPLITS:
    own = table["split"] == split
    ends = np.cumsum(-(-table["samples"][own] // CHUNK))
    starts = np.concatenate([[0], ends])
    there = sum(count for _, count in shards.get(split, ()))
    if starts[-1] != there or (starts[:-1] != table["row"][own]).any():
      said = f"its records of {split} are not those of dataset_info.json"
      raise sealed.damaged("tracks.csv", said)
  _check_energies(sealed, table)
  skipped = _rows(sealed, "skipped.csv", SKIPPED)
  lost = [(row[2], raw_cell(row[0])) for row in skipped]
  return Prepared(folder, sealed, table, lost, card, tags, shards)


def _check_energies(sealed: seal.Sealed, table: dict[str, np.ndarray]) -> None:
  """Compares `energy.f32` with a table, to which it adds "block"."""
  energies = sealed.map("energy.f32", "<f4")
  counts = table["samples"] // BLOCK
  table["block"] = np.cumsum(counts) - counts
  if len(energies) != counts.sum():
    said = f"{len(energies)} energies instead of {counts.sum()}"
    raise sealed.damaged("energy.f32", said)
  # What is sealed is verified as it is read.
  for first in range(0, 0 if sealed.files else len(counts), _SLAB):
    starts = table["block"][first : first + _SLAB]
    count = counts[first : first + _SLAB]
    slab = energies[starts[0] : starts[-1] + count[-1]]
    with np.errstate(all="ignore"):  # NaN is not close to anything
      slab = slab.astype(np.float64)
      rms = np.sqrt(np.add.reduceat(slab, starts - starts[0]) / count)
    if not np.allclose(rms, table["rms"][first : first + _SLAB], rtol=1e-6):
      said = "its energies have another mean than tracks.csv says"
      raise sealed.damaged("energy.f32", said)


def _read_table(sealed: seal.Sealed) -> dict[str, np.ndarray]:
  """Returns the columns of `tracks.csv`."""
  rows = _rows(sealed, "tracks.csv", COLUMNS)
  text = np.array(rows, object).reshape(len(rows), len(COLUMNS)).T
  table = dict(zip(COLUMNS, text, strict=True))
  try:
    for name in ("row", "samples"):
      table[name] = np.array([*map(int, table[name])], np.int64)
    table["rms"] = np.array([*map(float, table["rms"])])
  except (ValueError, OverflowError) as error:
    raise sealed.damaged("tracks.csv", str(error)) from error
  loud = (table["rms"] >= 0) & (table["rms"] <= _LOUDEST)  # nor NaN
  if not loud.all() or (table["samples"] < BLOCK).any():
    raise sealed.damaged("tracks.csv", "a number is out of its range")
  tags = (entry.split("|") if entry else [] for entry in table["tags"])
  table["tags"] = np.fromiter(tags, object, len(rows))
  return table


def _rows(sealed: seal.Sealed, name: str, columns: tuple) -> list[list[str]]:
  """Returns the rows of a table of these columns, with a known split each."""
  try:
    text = io.StringIO(sealed.read(name).decode(), newline="")
    rows = list(csv.reader(text, strict=True))
  except (csv.Error, UnicodeDecodeError) as error:
    raise sealed.damaged(name, str(error)) from error
  if not rows or rows[0] != list(columns):
    raise sealed.damaged(name, f"its columns are not {', '.join(columns)}")
  wrong = (
    number
    for number, row in enumerate(rows[1:], 1)
    if len(row) != len(columns) or row[2] not in SPLITS or not row[0]
  )
  if (number := next(wrong, None)) is not None:
    raise sealed.damaged(name, f"row {number} is none of a track")
  return rows[1:]


def _read_tags(sealed: seal.Sealed) -> list[str]:
  """Returns the vocabulary, in the order of the labels."""
  features = sealed.json("features.json", _FEATURES)
  features = features["featuresDict"]["features"]
  if "tags" not in features:
    return []
  count = features["tags"]["sequence"]["feature"]["classLabel"]["numClasses"]
  try:
    tags = sealed.read("tags.labels.txt").decode().split("\n")
  except UnicodeDecodeError as error:
    raise sealed.damaged("tags.labels.txt", str(error)) from error
  tags = [tag.strip() for tag in tags if tag.strip()]  # as TFDS does
  if count != str(len(tags)) or len(set(tags)) < len(tags):
    said = f"it has {len(tags)} labels, and features.json {count}"
    raise sealed.damaged("tags.labels.txt", said)
  return tags


def _read_shards(
  sealed: seal.Sealed, folder: Path
) -> dict[str, list[tuple[Path, int]]]:
  """Returns {split: [(file, its records)]}; each file is there."""
  info = sealed.json("dataset_info.json", _INFO)
  shards = {}
  for split in info["splits"]:
    lengths = split.get("shardLengths", [])
    if split["name"] not in SPLITS or not all(map(str.isdecimal, lengths)):
      raise sealed.damaged("dataset_info.json", "a split of it is unknown")
    shards[split["name"]] = [
      (folder / records.shard_name(info["name"], split["name"], index), int(n))
      for index, n in enumerate(lengths)
    ]
  for file, _ in (shard for every in shards.values() for shard in every):
    if not file.exists():
      raise sealed.damaged(file.name, "it is missing")
  return shards
