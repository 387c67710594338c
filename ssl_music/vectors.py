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
- `seal.json`, by which damage to these is found (see `seal`);
- `parts`, while it is written or after an interruption: tables of the same
  columns that have still to be merged into the one.

What was said last of a file counts: parts before the table, later parts before
earlier ones. Readers see parts, too. `vector_parts` writes.
"""

import csv
import io
import itertools
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_music import disk, seal, typed
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
_ADVICE = "embed again into another folder"
_KIND = {
  "format": str,
  "dimensions": int,
  "identity": str,
  "encoder": {"encoder": str},
  "hop": float,
  "seconds": float,
}


# What readers of tables raise for damaged ones.
_WRONG = (
  *(ArithmeticError, AttributeError, LookupError, NotImplementedError),
  *(OSError, SyntaxError, TypeError, ValueError),
  *(csv.Error, pa.ArrowException, tokenize.TokenError),
)


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
    entries: of the seal, of its files; {} where they are not sealed.
    failed: {file: reason} of what it says has no vector.
    dimensions: D, of its vectors.
  """

  format: str
  files: tuple[Path, ...]
  entries: Mapping[str, Any]
  failed: dict[str, str]
  dimensions: int


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
  folder = Path(folder)
  file = place(folder, ABOUT)
  if not file.exists():
    raise InputError(
      f"no vectors in {folder}: make some with python -m ssl_music.embed MUSIC"
      f" --encoder=PATH --out={folder}"
    )
  entry = _seal(folder).get(ABOUT)
  with (
    disk.readable(file, f"restore that file, or {_ADVICE}"),
    seal.stream(file, entry, _ADVICE) as opened,
  ):
    content = opened.read()
  about = typed.parse(content, {"format_version": int}, file, _ADVICE)
  version = about["format_version"]
  if version > VERSION:
    raise InputError(
      f"{folder} has vectors in format {version}, and this version of ssl_music"
      f" reads up to {VERSION}: use ssl_music"
      f" {about.get('ssl_music', 'of a newer version')}"
    )
  typed.check(about, _KIND, file, _ADVICE)
  if about["format"] not in FORMATS or about["dimensions"] < 1:
    raise InputError(f"{file} is damaged: {_ADVICE}")
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
        if len(paths) == count:
          raise InputError(
            f"{folder} is damaged (the rows of {path} are not together):"
            f" {_ADVICE}"
          )
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
  found, size = [], about["dimensions"]
  names = FORMATS[about["format"]]
  files = tuple(place(folder, name) for name in names)
  if not files[0].exists():  # it may have been moved since it was looked for
    files = tuple(place(folder, name) for name in names)
  if files[0].exists() or "tracks" in about:  # which merging has counted
    entries = _seal(folder)
    failed = _read_failed(folder, entries.get(FAILED))
    found.append(Source(about["format"], files, entries, failed, size))
  for part in part_files(folder):
    found.append(Source("parquet", (part,), {}, _failed_of(part), size))
  return found


def _seal(folder: Path) -> dict[str, Any]:
  """Returns the seal's entries of the merged table, wherever its files are."""
  return seal.entries(place(folder, seal.NAME).parent)


def part_files(folder: Path) -> list[Path]:
  """Returns the finished parts in the order in which they were written."""
  return sorted((folder / PARTS).glob("*.parquet"))


def tables(folder: Path) -> list[Path]:
  """Returns the files of merged tables, whatever they are of."""
  names = itertools.chain(*FORMATS.values())
  return [file for name in names if (file := place(folder, name)).exists()]


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
    read = _parquet_blocks if source.format == "parquet" else _numpy_blocks
    for block in read(source, vectors):
      width = source.dimensions if vectors else 0
      numbers = block.start, block.duration, block.vector
      sound = all(np.isfinite(one).all() for one in numbers)
      if not sound or block.vector.shape != (len(block.path), width):
        raise ValueError(f"no finite vectors of {width} numbers")
      yield block
  except FileNotFoundError as error:
    part = source.files[0].parent.name == PARTS
    if part or _is_merged_anew(source):
      raise _merged(source) from error
    raise InputError(
      f"{error.filename} is missing: restore that file, or {_ADVICE}"
    ) from error
  except InputError as error:
    if _is_merged_anew(source):
      raise _merged(source) from error
    raise
  except _WRONG as error:
    raise _damaged(source.files[0], error) from error


def _is_merged_anew(source: Source) -> bool:
  """Says whether a folder's table is another one by now."""
  folder = source.files[0].parent
  folder = folder.parent if folder.name == MERGED else folder
  return bool(source.entries) and _seal(folder) != source.entries


def _merged(source: Source) -> InputError:
  return InputError(
    f"{source.files[0]} is gone: another process has merged it meanwhile, so"
    " start again"
  )


def _damaged(file: Path, error: Exception) -> InputError:
  """Returns the error that tells what is wrong with a table."""
  if isinstance(error, OSError) and error.errno:
    with disk.readable(file, "check its disk"):
      raise error
  advice = _ADVICE
  if file.parent.name == PARTS:
    advice = "remove it and embed again, which makes it anew"
  return InputError(
    f"{file} is damaged or no table of vectors ({_one_line(error)}): restore"
    f" that file, or {advice}"
  )


def _opened(source: Source) -> list[BinaryIO]:
  """Opens a table's files, whose blocks are verified as they are read."""
  return [
    seal.stream(file, source.entries.get(file.name), _ADVICE)
    for file in source.files
  ]


def _parquet_blocks(source: Source, vectors: bool) -> Iterator[Block]:
  columns = [*COLUMNS, "vector"] if vectors else list(COLUMNS)
  # Read ahead, a table would be held in memory as a whole.
  (file,) = _opened(source)
  with (
    file,
    pq.ParquetFile(
      file, pre_buffer=False, page_checksum_verification=True
    ) as table,
  ):
    for batch in table.iter_batches(_READ_ROWS, columns=columns):
      arrays = {name: batch.column(name) for name in columns}
      vector = np.zeros((batch.num_rows, 0), np.float32)
      if vectors:
        vector = arrays["vector"].flatten().to_numpy()
        vector = vector.reshape(batch.num_rows, -1)
      rest = [arrays[name] for name in COLUMNS[1:]]
      rest = [column.to_numpy(zero_copy_only=False) for column in rest]
      yield Block(arrays["path"].to_pylist(), *rest, vector)


def _numpy_blocks(source: Source, vectors: bool) -> Iterator[Block]:
  seen = 0
  # What is mapped counts as this process's memory: it is read in pieces.
  numbers, table = _opened(source)
  with numbers, io.TextIOWrapper(table, encoding="utf-8", newline="") as opened:
    np.lib.format.read_magic(numbers)
    (count, width), _, kind = np.lib.format.read_array_header_1_0(numbers)
    if kind != np.float32:
      raise ValueError(f"an array of {kind}")
    lines = csv.DictReader(opened)
    while rows := list(itertools.islice(lines, _READ_ROWS)):
      columns = {name: [row[name] for row in rows] for name in COLUMNS}
      part = np.zeros((len(rows), 0), np.float32)
      if vectors:
        part = np.frombuffer(numbers.read(len(rows) * width * 4), kind)
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
    raise ValueError(f"{count} vectors, {seen} lines")


def _read_failed(
  folder: Path, entry: Mapping[str, Any] | None
) -> dict[str, str]:
  """Reads the table of what has failed; none says that nothing has."""
  for file in (place(folder, FAILED), folder / FAILED):
    try:
      with io.TextIOWrapper(
        seal.stream(file, entry, _ADVICE), encoding="utf-8", newline=""
      ) as opened:
        rows = list(csv.DictReader(opened))
      return {row["path"]: row["reason"] for row in rows}
    except FileNotFoundError:  # or it has been moved meanwhile
      missing = file
    except _WRONG as error:
      raise _damaged(file, error) from error
  if entry is not None:
    raise InputError(f"{missing} is missing: restore that file, or {_ADVICE}")
  return {}


def _failed_of(part: Path) -> dict[str, str]:
  try:
    metadata = pq.read_metadata(part).metadata or {}
  except _WRONG as error:
    raise _damaged(part, error) from error
  return typed.parse(metadata.get(b"failed", b"{}"), {str: str}, part)


def _one_line(error: Exception) -> str:
  return str(error).partition("\n")[0]
