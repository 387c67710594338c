"""Vectors of tracks on disk: a table with a row a segment, and what made it.

A folder that `python -m ssl_music.embed` writes holds

- `embeddings.parquet`, with the columns path, start and duration (in seconds),
  sounding (whether the segment counts for its track's mean), vector (float32,
  a list of fixed size), and the file's size (in bytes) and modified (in
  nanoseconds since 1970), which tell whether it has changed; or
  `embeddings.npy`, float32 [rows, D], beside `embeddings.csv`, a line with the
  other columns for each of its rows;
- `failed.csv`, with the columns path and reason: files that have no vector;
- `embeddings.json`: the encoder, its front end, the length of a segment, the
  hop, versions, and how much there is;
- `parts`, while it is written or after an interruption: tables of the same
  columns that have still to be merged into the one.

What was said last of a file counts: parts before the table, later parts before
earlier ones. Readers see parts, too. `vector_parts` writes.
"""

import contextlib
import csv
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_music.errors import InputError

VERSION = 1  # of this layout
ABOUT = "embeddings.json"
FAILED = "failed.csv"
PARTS = "parts"
# Where a merged table waits, whole, until its files are moved to their places:
# what is here counts, and what has the same name outside does not.
MERGED = "merged"
FORMATS = {
  "parquet": ("embeddings.parquet",),
  "npy": ("embeddings.npy", "embeddings.csv"),
}
COLUMNS = ("path", "start", "duration", "sounding", "size", "modified")
_READ_ROWS = 4096


class Block(NamedTuple):
  """Some rows of a table; those of a track follow one another.

  Attributes:
    path: N names of files, absolute.
    start: float64 [N], of the segment, in seconds.
    duration: float64 [N], of the segment, in seconds.
    sounding: bool [N], whether the segment counts for its track's mean.
    size: int64 [N], of the file, in bytes.
    modified: int64 [N], of the file, in nanoseconds since 1970.
    vector: float32 [N, D]; [N, 0] where only the rest was asked for.
  """

  path: list[str]
  start: np.ndarray
  duration: np.ndarray
  sounding: np.ndarray
  size: np.ndarray
  modified: np.ndarray
  vector: np.ndarray


class Source(NamedTuple):
  """A table.

  Attributes:
    format: one of `FORMATS`.
    files: its files.
    failed: {file: reason} of what it says has no vector.
  """

  format: str
  files: tuple[Path, ...]
  failed: dict[str, str]


class Owner(NamedTuple):
  """Who has the last word on a file.

  Attributes:
    source: its place in `find_sources`.
    rows: how many there are; 0 where the file has failed.
    size: of the file when it was embedded, in bytes.
    modified: of the file, in nanoseconds since 1970.
  """

  source: int
  rows: int
  size: int
  modified: int


def read_about(folder: Path | str) -> dict[str, Any]:
  """Returns what a folder's vectors are of: its `embeddings.json`.

  Raises:
    InputError: there are none, or a newer version of this package made them.
  """
  file = place(Path(folder), ABOUT)
  try:
    about = json.loads(file.read_text("utf-8"))
    version = int(about["format_version"])
  except (FileNotFoundError, NotADirectoryError) as error:
    raise InputError(
      f"no vectors in {folder}: make some with python -m ssl_music.embed MUSIC"
      f" --encoder=PATH --out={folder}"
    ) from error
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"cannot read {file} ({_one_line(error)}): embed into another folder"
    ) from error
  if version > VERSION:
    raise InputError(
      f"{folder} has vectors in format {version}, and this version of ssl_music"
      f" reads up to {VERSION}: use ssl_music"
      f" {about.get('ssl_music', 'of a newer version')}"
    )
  return about


def read_tracks(
  folder: Path | str,
) -> tuple[list[str], np.ndarray, dict[str, Any]]:
  """Returns the mean vector of every track: that of its sounding segments.

  Memory is that of the result and of a block of rows.

  Args:
    folder: that `python -m ssl_music.embed` has written, or is writing.

  Returns:
    names of the files, absolute; float32 [tracks, D], in their order; and
    `read_about`.

  Raises:
    InputError: as `read_about`, or a table is damaged.
  """
  about = read_about(folder)
  sources = find_sources(Path(folder), about)
  owners = find_owners(sources)
  count = sum(owner.rows > 0 for owner in owners.values())
  means = np.zeros((count, about["dimensions"]), np.float32)
  paths: list[str] = []
  total, sounding = np.zeros(about["dimensions"]), 0
  for block in kept(sources, owners):
    for path, rows in runs(block.path):
      if not paths or paths[-1] != path:
        paths.append(path)
        total, sounding = np.zeros(about["dimensions"]), 0
      chosen = block.vector[rows][block.sounding[rows]]
      total += chosen.sum(axis=0, dtype=np.float64)
      sounding += len(chosen)
      means[len(paths) - 1] = total / max(sounding, 1)
  return paths, means, about


def read(folder: Path | str) -> Iterator[Block]:
  """Yields all rows, block by block, those of a track one after another.

  Args:
    folder: as of `read_tracks`.

  Raises:
    InputError: as `read_tracks`.
  """
  sources = find_sources(Path(folder), read_about(folder))
  yield from kept(sources, find_owners(sources))


def find_sources(folder: Path, about: Mapping[str, Any]) -> list[Source]:
  """Returns the tables of a folder, the last word last."""
  found = []
  names = FORMATS[about["format"]]
  files = tuple(place(folder, name) for name in names)
  if not files[0].exists():  # it may have been moved since it was looked for
    files = tuple(place(folder, name) for name in names)
  if files[0].exists():
    failed = _read_failed(place(folder, FAILED), folder / FAILED)
    found.append(Source(about["format"], files, failed))
  for part in part_files(folder):
    found.append(Source("parquet", (part,), _failed_of(part)))
  return found


def part_files(folder: Path) -> list[Path]:
  """Returns the finished parts in the order in which they were written."""
  return sorted((folder / PARTS).glob("*.parquet"))


def find_owners(sources: Sequence[Source]) -> dict[str, Owner]:
  """Returns {file: who has the last word on it}, of all that are known."""
  owners: dict[str, Owner] = {}
  for number, source in enumerate(sources):
    for path in source.failed:
      owners[path] = Owner(number, 0, 0, 0)
    for block in _blocks(source, vectors=False):
      for path, rows in runs(block.path):
        count = rows.stop - rows.start
        before = owners.get(path)
        if before is not None and before.source == number:  # it goes on
          count += before.rows
        about = int(block.size[rows.start]), int(block.modified[rows.start])
        owners[path] = Owner(number, count, *about)
  return owners


def kept(
  sources: Sequence[Source], owners: Mapping[str, Owner]
) -> Iterator[Block]:
  """Yields the rows that count, with their vectors."""
  for number, source in enumerate(sources):
    for block in _blocks(source, vectors=True):
      counts = np.array([owners[path].source == number for path in block.path])
      if counts.all():
        yield block
      elif counts.any():
        paths = list(itertools.compress(block.path, counts))
        yield Block(paths, *(column[counts] for column in block[1:]))


def place(folder: Path, name: str) -> Path:
  """Returns where a file of the merged table is, or would be."""
  waiting = folder / MERGED / name
  return waiting if waiting.exists() else folder / name


def schema(dimensions: int) -> pa.Schema:
  """Returns the columns of a Parquet table."""
  number = pa.field("element", pa.float32(), nullable=False)
  types = {
    "path": pa.string(),
    "start": pa.float64(),
    "duration": pa.float64(),
    "sounding": pa.bool_(),
    "vector": pa.list_(number, dimensions),
    "size": pa.int64(),
    "modified": pa.int64(),
  }
  return pa.schema(
    [pa.field(name, kind, nullable=False) for name, kind in types.items()]
  )


def runs(paths: Sequence[str]) -> Iterator[tuple[str, slice]]:
  """Yields (file, its rows) of rows that follow one another."""
  start = 0
  for path, rows in itertools.groupby(paths):
    stop = start + sum(1 for _ in rows)
    yield path, slice(start, stop)
    start = stop


def _blocks(source: Source, *, vectors: bool) -> Iterator[Block]:
  """Yields a table's rows; what is wrong with it becomes an InputError."""
  try:
    if source.format == "parquet":
      yield from _parquet_blocks(source.files[0], vectors)
    else:
      yield from _numpy_blocks(*source.files, vectors)
  except FileNotFoundError as error:
    raise InputError(
      f"{source.files[0]} is gone: another process has merged it meanwhile, so"
      " start again"
    ) from error
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise InputError(
      f"{source.files[0]} is damaged or no table of vectors"
      f" ({_one_line(error)}): remove it and embed again what it held"
    ) from error


def _parquet_blocks(file: Path, vectors: bool) -> Iterator[Block]:
  columns = [*COLUMNS, "vector"] if vectors else list(COLUMNS)
  # Read ahead, a table would be held in memory as a whole.
  with pq.ParquetFile(file, pre_buffer=False) as table:
    for batch in table.iter_batches(_READ_ROWS, columns=columns):
      arrays = {name: batch.column(name) for name in columns}
      vector = np.zeros((batch.num_rows, 0), np.float32)
      if vectors:
        vector = arrays["vector"].flatten().to_numpy()
        vector = vector.reshape(batch.num_rows, -1)
      rest = [arrays[name] for name in COLUMNS[1:]]
      rest = [column.to_numpy(zero_copy_only=False) for column in rest]
      yield Block(arrays["path"].to_pylist(), *rest, vector)


def _numpy_blocks(file: Path, table: Path, vectors: bool) -> Iterator[Block]:
  seen = 0
  # What is mapped counts as this process's memory: it is read in pieces.
  with (
    file.open("rb") as numbers,
    table.open(newline="", encoding="utf-8") as opened,
  ):
    np.lib.format.read_magic(numbers)
    (count, width), _, kind = np.lib.format.read_array_header_1_0(numbers)
    lines = csv.DictReader(opened)
    while rows := list(itertools.islice(lines, _READ_ROWS)):
      columns = {name: [row[name] for row in rows] for name in COLUMNS}
      part = np.zeros((len(rows), 0), np.float32)
      if vectors:
        part = np.fromfile(numbers, kind, len(rows) * width)
        part = part.reshape(len(rows), width)
      yield Block(
        columns["path"],
        np.array(columns["start"], np.float64),
        np.array(columns["duration"], np.float64),
        np.array(columns["sounding"]) == "1",
        np.array(columns["size"], np.int64),
        np.array(columns["modified"], np.int64),
        part,
      )
      seen += len(rows)
  if seen != count:
    raise ValueError(f"{count} vectors, {seen} lines in {table.name}")


def _read_failed(*files: Path) -> dict[str, str]:
  """Reads the first table that is there; none says that nothing has failed."""
  for file in files:
    with (
      contextlib.suppress(FileNotFoundError),
      file.open(newline="", encoding="utf-8") as opened,
    ):
      return {row["path"]: row["reason"] for row in csv.DictReader(opened)}
  return {}


def _failed_of(part: Path) -> dict[str, str]:
  try:
    metadata = pq.read_metadata(part).metadata or {}
    return json.loads(metadata.get(b"failed", b"{}"))
  except (OSError, ValueError) as error:
    raise InputError(
      f"{part} is damaged ({_one_line(error)}): remove it and embed again"
    ) from error


def _one_line(error: Exception) -> str:
  return str(error).partition("\n")[0]
