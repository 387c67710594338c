"""Embeds files into a folder of `vectors`, as fast as they can be decoded.

Worker processes decode; this one fills batches across files and writes, while
the device computes.
"""

import contextlib
import importlib.metadata
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssl_music import (
  disk,
  embed_batches,
  lock,
  progress,
  seal,
  vector_parts,
  vectors,
)
from ssl_music.data import audio, cuts, files, workers
from ssl_music.data.segments import BLOCK
from ssl_music.errors import InputError
from ssl_music.pretrained import Encoder
from ssl_music.text import utf8
from ssl_music.vector_parts import PARTIAL, Track, Writer


class File(NamedTuple):
  """A file to embed.

  Attributes:
    path: absolute, as the system has it.
    name: the same, as UTF-8 can hold it.
    size: in bytes.
    modified: in nanoseconds since 1970.
  """

  path: str
  name: str
  size: int
  modified: int


class Done(NamedTuple):
  """What a run did.

  Attributes:
    about: the folder's `embeddings.json`.
    tracks: files that were embedded.
    segments: of them.
    seconds: of audio, of them.
    present: files whose vectors were there already.
    failed: {name: reason} of the others.
    merged: whether one table holds all.
  """

  about: dict[str, Any]
  tracks: int
  segments: int
  seconds: float
  present: int
  failed: dict[str, str]
  merged: bool


def find(sources: Iterable[str | os.PathLike]) -> list[str]:
  """Returns the files to embed, absolute and sorted, each once.

  Args:
    sources: folders, which are searched through for audio, and files of any
      name.

  Raises:
    InputError: one is not there, or a folder has no audio.
  """
  found = set()
  for source in map(os.path.abspath, sources):
    if os.path.isdir(source):  # noqa: PTH112 (str in, str out)
      inside = files.find_audio(source)
      if not inside:
        raise InputError(
          f"no audio under {source} (looked for"
          f" {', '.join(audio.EXTENSIONS + audio.AV_EXTENSIONS)}): give another"
          " folder"
        )
      found.update(os.path.join(source, path) for path in inside)  # noqa: PTH118
    elif os.path.lexists(source):
      found.add(source)
    else:
      raise InputError(f"no file or folder {source}: give one with audio")
  return sorted(found)


def embed_files(
  encoder: Encoder,
  paths: Sequence[str],
  folder: Path,
  *,
  hop: float | None = None,
  kind: str = "parquet",
  processes: int = 0,
  shard: tuple[int, int] | None = None,
) -> Done:
  """Embeds what is new or has changed, and merges it into one table.

  A file whose size and time of change are those of its vectors is passed over;
  of one that has changed, the old vectors go. Files that are not named here
  keep theirs. What fails is tried again by the next run. However a run ends,
  the tracks of its finished parts are kept.

  Args:
    encoder: of `pretrained.load`.
    paths: of `find`.
    folder: for the vectors; made if missing.
    hop: seconds from a segment's start to the next one's; None is a segment's
      length.
    kind: of the table, one of `vectors.FORMATS`.
    processes: that decode; 0 decodes in this one.
    shard: (i, n) embeds the i-th of n parts of the files alone, and leaves the
      merging to a run without it; any number of processes may do so at once.

  Raises:
    InputError: the folder holds vectors of another encoder or hop, in a newer
      format, or cannot be written to; another process writes there; the encoder
      does not work.
  """
  wanted = describe(encoder, hop, kind)
  advice = "give another --out"
  if shard is not None:
    paths = paths[shard[0] - 1 :: shard[1]]
  name = "all" if shard is None else f"{shard[0]}-of-{shard[1]}"
  with (
    lock.hold(folder, "embedding into", advice, shared=shard is not None),
    disk.explained(
      "write vectors to",
      folder,
      option="--out",
      after="finished parts are kept, and the same command goes on",
    ),
  ):
    parts = folder / vectors.PARTS
    parts.mkdir(exist_ok=True)
    with lock.hold(
      parts, f"embedding as {name} into", advice, name=f".{name}.lock"
    ):
      if shard is None:
        vector_parts.settle(folder)
      about = _begin(folder, wanted)
      _clear(parts, name)
      try:
        done = _embed(encoder, paths, folder, about, processes, name)
      finally:
        _clear(parts, name)
    if shard is not None:
      return done
    changed = about["format"] != kind or "tracks" not in about
    if changed or vectors.part_files(folder):
      done = done._replace(about=vector_parts.merge(folder, about, kind))
    return done._replace(merged=True)


def describe(encoder: Encoder, hop: float | None, kind: str) -> dict[str, Any]:
  """Returns what vectors are of, for `embeddings.json`.

  Args:
    encoder: of `pretrained.load`.
    hop: in seconds; None is a segment's length.
    kind: of the table.

  Raises:
    InputError: the hop is no positive multiple of 0.1 s.
  """
  hop = encoder.seconds if hop is None else hop
  cuts.blocks(hop)
  return {
    "format_version": vectors.VERSION,
    "ssl_music": importlib.metadata.version("ssl_music"),
    "format": kind,
    "encoder": encoder.described,
    "identity": encoder.identity,
    "dimensions": encoder.dimensions,
    "seconds": encoder.seconds,
    "hop": hop,
    "sample_rate": audio.SAMPLE_RATE,
    "frontend": encoder.settings["frontend"],
  }


def _begin(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a folder's `embeddings.json`, which it writes if there is none."""
  if not vectors.place(folder, vectors.ABOUT).exists():
    if vectors.part_files(folder) or vectors.tables(folder):
      raise InputError(
        f"{folder} has tables of vectors, but {vectors.ABOUT}, which says of"
        " what encoder they are, is gone: give another --out"
      )
    (folder / seal.NAME).unlink(missing_ok=True)  # of what is gone
    vector_parts.write_about(folder, wanted)
  about = vectors.read_about(folder)
  if about["identity"] != wanted["identity"]:
    raise InputError(
      f"{folder} holds vectors of another encoder"
      f" ({about['encoder'].get('encoder')}; its weights, settings or code"
      " differ): give another --out"
    )
  if about["hop"] != wanted["hop"]:
    raise InputError(
      f"{folder} holds vectors of segments every {about['hop']:g} s, not every"
      f" {wanted['hop']:g} s: give --hop={about['hop']:g} or another --out"
    )
  return about


def _embed(
  encoder: Encoder,
  paths: Sequence[str],
  folder: Path,
  about: dict[str, Any],
  processes: int,
  name: str,
) -> Done:
  """Embeds what is new or has changed into parts."""
  sources = vectors.find_sources(folder, about)
  known = vectors.find_owners(sources)
  told = {path: why for one in sources for path, why in one.failed.items()}
  wanted = []
  for file in map(_file, paths):
    before = known.get(file.name)
    same = before is not None and before[2:] == file[2:]
    if not (same and before.rows):
      wanted.append(file)
  length, step = cuts.blocks(encoder.seconds), cuts.blocks(about["hop"])
  ending = f"{name}.pcm{PARTIAL}"
  decode = cuts.Decode(length, step, folder / vectors.PARTS, ending)
  failed: dict[str, str] = {}
  with (
    _Progress(len(wanted), about["hop"]) as done,
    _kept_when_interrupted(folder, done),
    Writer(folder, name, encoder.dimensions) as writer,
    workers.pool(processes if wanted else 0) as run,
  ):

    def tracks() -> Iterator[cuts.Cut]:
      results = run(decode, enumerate(file.path for file in wanted))
      for file, (_, cut) in zip(wanted, results, strict=True):
        if isinstance(cut, str):
          failed[file.name] = cut
          if told.get(file.name) != cut or known[file.name].rows:
            writer.fail(file.name, cut)
          done.fail()
          continue
        starts = cut.starts / audio.SAMPLE_RATE
        writer.begin(Track(*file[1:], starts, encoder.seconds, cut.sounding))
        done.begin(cut)
        yield cut

    samples = length * BLOCK
    for found in embed_batches.embed(
      encoder, embed_batches.cut_batches(tracks(), encoder.batch, samples)
    ):
      writer.extend(found)
      done.extend(len(found))
  present = len(paths) - len(wanted)
  counts = done.tracks, done.segments, done.seconds
  return Done(about, *counts, present, failed, merged=False)


def _file(path: str) -> File:
  try:
    about = Path(path).stat()
  except OSError:  # whose reason decoding tells
    return File(path, utf8(path), 0, 0)
  return File(path, utf8(path), about.st_size, about.st_mtime_ns)


class _Progress:
  """Counts what is done, and shows it; a context."""

  def __init__(self, total: int, hop: float):
    self.tracks, self.segments, self.seconds = 0, 0, 0.0
    self._hop, self._begun = hop, 0
    self._open: deque[tuple[int, float]] = deque()
    self._started = time.monotonic()
    self._bar = progress.bar(total=total, unit="file", desc="embed")

  def __enter__(self) -> "_Progress":
    return self

  def __exit__(self, *_: Any) -> None:
    self._bar.close()

  def fail(self) -> None:
    """Counts a file that cannot be embedded."""
    self._bar.update()

  def begin(self, cut: cuts.Cut) -> None:
    """Notes a track whose vectors are to come."""
    self._begun += len(cut.starts)
    self._open.append((self._begun, cut.samples / audio.SAMPLE_RATE))

  def extend(self, count: int) -> None:
    """Counts vectors that have come."""
    self.segments += count
    while self._open and self._open[0][0] <= self.segments:
      self.tracks += 1
      self.seconds += self._open.popleft()[1]
      self._bar.update()
    hours = self.segments * self._hop / 3600
    minutes = (time.monotonic() - self._started) / 60
    said = f"{hours:.2f} h of audio, {hours / minutes:.2f} h/min"
    self._bar.set_postfix_str(said, refresh=False)


@contextlib.contextmanager
def _kept_when_interrupted(folder: Path, done: _Progress) -> Iterator[None]:
  """Says what an interruption leaves."""
  try:
    yield
  except (KeyboardInterrupt, SystemExit):
    print(
      f"\nthe vectors of {done.tracks} files are kept in {folder}; the same"
      " command goes on",
      file=sys.stderr,
    )
    raise


def _clear(parts: Path, name: str) -> None:
  """Removes what this process, or one of its name that was killed, left."""
  for pattern in (f"*.{name}.pcm{PARTIAL}", f"*.{name}.parquet{PARTIAL}"):
    for file in parts.glob(pattern):
      file.unlink(missing_ok=True)
