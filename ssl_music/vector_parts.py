"""Writes the vectors of `vectors`: in parts, which are merged at the end.

A part gets its name when it is whole and on the disk, so that a process that is
killed loses no more than its last part. Processes that write into a folder at
the same time have names, their shards, which their parts bear.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_music import seal, vectors
from ssl_music.vectors import Block

PARTIAL = ".partial"
_GROUP_BYTES = 1 << 24  # of vectors: so much is held in memory
_PART_SECONDS = 30.0  # of time: so much may be lost


class Track(NamedTuple):
  """A file whose vectors are to come.

  Attributes:
    path: its name, absolute.
    size: in bytes.
    modified: in nanoseconds since 1970.
    start: float64 [N], of its segments, in seconds.
    duration: of each segment, in seconds.
    sounding: bool [N], which of them count for the track's mean.
  """

  path: str
  size: int
  modified: int
  start: np.ndarray
  duration: float
  sounding: np.ndarray


class Writer:
  """Writes tracks into parts; a context, at whose end the last one is closed.

  A track whose vectors have not all come by then is left out.
  """

  def __init__(self, folder: Path, shard: str, dimensions: int):
    """Writes nothing yet.

    Args:
      folder: of the vectors; it has a folder `vectors.PARTS`.
      shard: a name that no other process uses at the same time.
      dimensions: D, of a vector.
    """
    self._folder, self._shard = folder / vectors.PARTS, shard
    self._dimensions = dimensions
    self._waiting: deque[Track] = deque()
    self._taken = 0  # vectors of the first of these that have come
    self._pieces: list[Block] = []  # its rows
    self._long: _Part | None = None  # or where they are, if they are many
    self._whole: list[Block] = []  # tracks that are complete, ..
    self._rows = 0  # .. their rows, ..
    self._failed: dict[str, str] = {}  # .. and what else the next part tells
    self._since = time.monotonic()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_: Any) -> None:
    if self._long is not None:
      self._long.drop()
    self._write_whole()

  def begin(self, track: Track) -> None:
    """Announces a track: its vectors come after those of the one before."""
    self._waiting.append(track)

  def fail(self, path: str, reason: str) -> None:
    """Says that a file has no vectors, and why."""
    self._failed[path] = reason

  def extend(self, found: np.ndarray) -> None:
    """Takes the next vectors, in the order of the tracks and their segments.

    Args:
      found: float32 [n, D].

    Raises:
      OSError: the folder cannot be written to.
    """
    while len(found):
      track = self._waiting[0]
      stop = min(self._taken + len(found), len(track.start))
      now, found = np.split(found, [stop - self._taken])
      self._pieces.append(_block(track, self._taken, now))
      self._taken = stop
      if len(track.start) > self._limit:
        self._write_long(last=stop == len(track.start))
      if stop == len(track.start):
        self._whole += self._pieces
        self._rows += sum(len(piece.start) for piece in self._pieces)
        self._waiting.popleft()
        self._taken, self._pieces = 0, []
    late = time.monotonic() - self._since > _PART_SECONDS
    if self._rows >= self._limit or late:
      self._write_whole()

  @property
  def _limit(self) -> int:
    """Rows that are held in memory."""
    return max(1, _GROUP_BYTES // (4 * self._dimensions))

  def _write_long(self, last: bool) -> None:
    """Writes what there is of a track too long to be held, in its own part."""
    if self._long is None:
      self._write_whole()
      self._long = self._new_part()
    if last or sum(len(piece.start) for piece in self._pieces) >= self._limit:
      self._long.write(_join(self._pieces))
      self._pieces = []
    if last:
      self._long.finish({})
      self._long = None

  def _write_whole(self) -> None:
    """Writes the tracks that are complete as a part."""
    if self._whole or self._failed:
      part = self._new_part()
      try:
        if self._whole:
          part.write(_join(self._whole))
        part.finish(self._failed)
      except BaseException:
        part.drop()
        raise
    self._whole, self._rows, self._failed = [], 0, {}
    self._since = time.monotonic()

  def _new_part(self) -> "_Part":
    others = self._folder.glob("*.parquet*")  # unfinished ones, too
    last = max((int(file.name.split(".")[0]) for file in others), default=-1)
    name = f"{last + 1:08}.{self._shard}.parquet"
    return _Part(self._folder / name, self._dimensions)


class _Part:
  """A Parquet file that gets its name when it is whole."""

  def __init__(self, file: Path, dimensions: int):
    self._file, self._draft = file, file.with_name(file.name + PARTIAL)
    self._schema = vectors.schema(dimensions)
    self._opened = pq.ParquetWriter(
      self._draft,
      self._schema,
      # Vectors do not get smaller; names do, many times.
      use_dictionary=[*vectors.COLUMNS],
      compression=dict.fromkeys(vectors.COLUMNS, "zstd")
      | {"vector.list.element": "none"},
      write_statistics=[*vectors.COLUMNS],
      write_page_checksum=True,
    )

  def write(self, block: Block) -> None:
    """Writes rows, as a group of their own."""
    self._opened.write_batch(_batch(block, self._schema))

  def finish(self, failed: Mapping[str, str]) -> None:
    """Closes it; besides, it tells {file: reason} of those without vectors."""
    if failed:
      said = {"failed": json.dumps(failed)}
      self._opened.add_key_value_metadata(said)
    self._opened.close()
    _sync(self._draft)
    self._draft.rename(self._file)

  def drop(self) -> None:
    """Gives it up."""
    with contextlib.suppress(OSError):
      self._opened.close()
    self._draft.unlink(missing_ok=True)


def settle(folder: Path) -> None:
  """Finishes what a process that was killed left; no other may be writing.

  Args:
    folder: of the vectors.
  """
  merged = folder / vectors.MERGED
  shutil.rmtree(merged.with_name(merged.name + PARTIAL), ignore_errors=True)
  for place in (folder, folder / vectors.PARTS):
    for draft in place.glob(f"*{PARTIAL}"):
      draft.unlink()
  if not merged.exists():
    return
  kept = vectors.FORMATS[vectors.read_about(folder)["format"]]
  for file in list(merged.iterdir()):
    file.replace(folder / file.name)
  for name in itertools.chain(*vectors.FORMATS.values()):
    if name not in kept:
      (folder / name).unlink(missing_ok=True)
  merged.rmdir()


def merge(folder: Path, about: Mapping[str, Any], kind: str) -> dict[str, Any]:
  """Merges the table and the parts into a new table, in flat memory.

  Whenever it is interrupted, the rows that count are the same before and after.

  Args:
    folder: of the vectors; no other process may be writing into it.
    about: its `embeddings.json`.
    kind: of the table, one of `vectors.FORMATS`.

  Returns:
    the new `embeddings.json`.

  Raises:
    InputError: a table is damaged.
    OSError: the folder cannot be written to; nothing is lost.
  """
  settle(folder)
  parts = vectors.part_files(folder)
  sources = vectors.find_sources(folder, about)
  owners = vectors.find_owners(sources)
  failed = {
    path: reason
    for number, source in enumerate(sources)
    for path, reason in source.failed.items()
    if owners[path].source == number
  }
  rows = sum(owner.rows for owner in owners.values())
  tracks = len(owners) - len(failed)
  about = {**about, "format": kind, "tracks": tracks, "segments": rows}
  merged = folder / vectors.MERGED
  draft = merged.with_name(merged.name + PARTIAL)
  draft.mkdir()
  try:
    blocks = _regrouped(vectors.kept(sources, owners), about["dimensions"])
    write = _write_parquet if kind == "parquet" else _write_numpy
    write(draft, blocks, rows, about["dimensions"])
    write_failed(draft / vectors.FAILED, failed)
    write_about(draft, about)
    seal.close(draft, [file.name for file in draft.iterdir()])
    draft.rename(merged)
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  settle(folder)
  for part in parts:  # the oldest first: none of them may get the last word
    part.unlink()
  return about


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
  """Writes `embeddings.json`, whole or not at all."""
  # Several processes may begin a folder at once.
  draft = folder / f"{vectors.ABOUT}.{uuid.uuid4().hex}{PARTIAL}"
  draft.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
  draft.replace(folder / vectors.ABOUT)


def write_failed(file: Path, failed: Mapping[str, str]) -> None:
  """Writes a table of {file: reason}."""
  with file.open("w", newline="", encoding="utf-8") as opened:
    table = csv.writer(opened)
    table.writerow(("path", "reason"))
    table.writerows(sorted(failed.items()))


def _write_parquet(
  folder: Path, blocks: Iterable[Block], rows: int, dimensions: int
) -> None:
  part = _Part(folder / vectors.FORMATS["parquet"][0], dimensions)
  for block in blocks:
    part.write(block)
  part.finish({})


def _write_numpy(
  folder: Path, blocks: Iterable[Block], rows: int, dimensions: int
) -> None:
  array, table = (folder / name for name in vectors.FORMATS["npy"])
  header = io.BytesIO()
  shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimensions)}
  np.lib.format.write_array_header_1_0(header, shape)
  with (
    array.open("wb") as numbers,
    table.open("w", newline="", encoding="utf-8") as opened,
  ):
    numbers.write(header.getvalue())
    lines = csv.writer(opened)
    lines.writerow(vectors.COLUMNS)
    for block in blocks:
      numbers.write(np.ascontiguousarray(block.vector, "<f4").data)
      columns = [column.tolist() for column in block[1:-1]]
      columns[2] = map(int, columns[2])  # sounding
      lines.writerows(zip(block.path, *columns, strict=True))


def _regrouped(blocks: Iterable[Block], dimensions: int) -> Iterator[Block]:
  """Joins small blocks, which many small parts are full of."""
  held: list[Block] = []
  for block in blocks:
    held.append(block)
    if sum(part.vector.nbytes for part in held) >= _GROUP_BYTES:
      yield _join(held)
      held = []
  if held:
    yield _join(held)


def _block(track: Track, first: int, found: np.ndarray) -> Block:
  rows = slice(first, first + len(found))
  alike = lambda value, kind: np.full(len(found), value, kind)
  return Block(
    [track.path] * len(found),
    track.start[rows],
    alike(track.duration, np.float64),
    track.sounding[rows],
    alike(track.size, np.int64),
    alike(track.modified, np.int64),
    found,
  )


def _join(blocks: Sequence[Block]) -> Block:
  paths = itertools.chain.from_iterable(block.path for block in blocks)
  columns = zip(*(block[1:] for block in blocks), strict=True)
  return Block(list(paths), *map(np.concatenate, columns))


def _batch(block: Block, columns: pa.Schema) -> pa.RecordBatch:
  arrays = {
    name: pa.array(getattr(block, name), columns.field(name).type)
    for name in vectors.COLUMNS
  }
  arrays["vector"] = pa.FixedSizeListArray.from_arrays(
    pa.array(np.ascontiguousarray(block.vector).reshape(-1)),
    type=columns.field("vector").type,
  )
  return pa.RecordBatch.from_arrays(
    [arrays[name] for name in columns.names], schema=columns
  )


def _sync(file: Path) -> None:
  with file.open("rb") as opened:
    os.fsync(opened.fileno())
