"""Grain pipelines: batches of int16 segments from prepared tracks."""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging

from ssl_music.data import audio, segments
from ssl_music.data.segments import BLOCK
from ssl_music.data.tracks import Tracks
from ssl_music.data.workers import NOT_BEGUN, cores, starting
from ssl_music.errors import InputError


def blocks(seconds: float, field: str = "seconds") -> int:
  """Returns a duration in blocks of 0.1 s.

  Args:
    seconds: the duration.
    field: of `config.data` that gives it, for the error.

  Raises:
    InputError: it is no multiple of 0.1 s, or not positive.
  """
  count = round(seconds * audio.SAMPLE_RATE / BLOCK)
  if count < 1 or abs(count * BLOCK - seconds * audio.SAMPLE_RATE) > 1e-6:
    raise InputError(
      f"--config.data.{field}={seconds} does not fit the grid of 0.1 s that"
      " energies are stored on: give a positive multiple of it, such as"
      f" {max(count, 1) / 10}"
    )
  return count


def pretraining_batches(
  tracks: Tracks,
  *,
  seconds: float,
  gap: float,
  views: int,
  batch: int,
  seed: int,
  short_views: int = 0,
  short_seconds: float = 2.0,
  labels: bool = False,
  process: int = 0,
  processes: int = 1,
) -> grain.MapDataset:
  """Builds the batches of an epoch, to be repeated and indexed by step.

  Every epoch shuffles the tracks; of each track it draws `views` sounding
  segments anew and batches different tracks only (an epoch's rest that fills
  no batch waits for the next epoch's shuffle). Element `n` depends on the
  arguments and n alone: `batches.repeat()[step:]` resumes.

  Short views are those of multi-crop (Caron et al., "Unsupervised Learning of
  Visual Features by Contrasting Cluster Assignments", 2020, section 3.3), which
  a student network alone sees: shorter segments of the same track, each drawn
  uniformly from all that are sounding, whatever it overlaps with. The views are
  the same with and without them.

  Args:
    tracks: to draw from.
    seconds: length of a segment, a multiple of 0.1 s.
    gap: smallest distance between two segments' starts, in seconds.
    views: segments a track, 1 or more.
    batch: tracks a batch.
    seed: of shuffle and draws.
    short_views: shorter segments a track, 0 or more.
    short_seconds: their length, a multiple of 0.1 s and at most `seconds`.
    labels: whether batches hold the tracks' tags. A track without any, as those
      of the split "unlabelled", is then one that no tag applies to.
    process: of several, which one this is; it reads its rows of each batch and
      no others, those of `parallel.rows`.
    processes: their number, which divides the batch.

  Returns:
    A MapDataset of dicts; its length is the steps of an epoch. In all arrays
    the second axis is the batch's, of which a process has its part:
      "views": int16 [views, batch, samples].
      "short": int16 [short_views, batch, shorter samples]; if there are any.
      "labels": int8 [1, batch, tags], 0 or 1; if asked for.

  Raises:
    InputError: segments longer than every track, short ones longer than the
      others, too few tracks that have `views` sounding segments (and a short
      one) for a batch, or labels of a data set without tags.
  """
  length, distance = blocks(seconds), blocks(gap, "gap")
  short = blocks(short_seconds, "short_seconds") if short_views else 0
  if short > length:
    raise InputError(
      f"--config.data.short_seconds={short_seconds:g} is longer than the"
      f" {seconds:g} s of --config.data.seconds: give {seconds:g} or less"
    )
  if labels and not tracks.tags:
    raise InputError(
      f"{tracks.name} has no tags to learn: name one data set that was prepared"
      " with tags by --config.data.name (several joined by + have none)"
    )
  needed = length + (views - 1) * distance
  long_enough = np.flatnonzero(tracks.samples // BLOCK >= needed)
  number, apart, lower = "", "", "--config.data.seconds"
  if views > 1:
    number, apart = f"{views} ", f" whose starts are {gap:g} s apart"
    lower += " and --config.data.gap"
  if not long_enough.size:
    longest = tracks.samples.max() / audio.SAMPLE_RATE
    raise InputError(
      f"{number}segments of {seconds:g} s{apart} need tracks of"
      f" {needed / 10:g} s, and the longest of {tracks.name} has"
      f" {longest:.1f} s: lower {lower}, or prepare longer tracks"
    )

  def can_be_drawn(track: int) -> bool:
    allowed = _allowed(tracks, track, length)
    if not segments.choices(allowed, views, distance)[-1].any():
      return False
    return not short_views or _allowed(tracks, track, short).any()

  usable = np.array([track for track in long_enough if can_be_drawn(track)])
  wanted = f"{number}sounding segments of {seconds:g} s{apart}"
  if short_views:
    wanted += f" and one of {short_seconds:g} s"
  if len(usable) < batch:
    raise InputError(
      f"{tracks.name} has {len(usable)} tracks with {wanted} (of"
      f" {len(tracks)}), too few for a batch of {batch}: lower --config.batch"
      f" to {max(len(usable), 1)} or fewer, or prepare more tracks"
    )
  if len(usable) < len(tracks):
    logging.warning(
      "pre-training on %d of %d tracks: the others hold no %s",
      *(len(usable), len(tracks), wanted),
    )
  draw = _Draw(tracks, length, distance, views, short, short_views)
  read = _ReadBatch(tracks, length, short, labels=labels)
  drawn = grain.MapDataset.source(usable).seed(seed).shuffle().random_map(draw)
  # An epoch's whole batches, and of each the process's part.
  whole = drawn[: len(usable) // batch * batch]
  return whole.batch(batch // processes, batch_fn=read)[process::processes]


def segment_batches(
  tracks: Tracks,
  where: np.ndarray,
  *,
  seconds: float,
  batch: int,
) -> grain.MapDataset:
  """Builds the data set of given segments, in order, for embedding.

  Args:
    tracks: to read from.
    where: int64 [segments, 2], track and start (in blocks) of each segment.
    seconds: length of a segment, a multiple of 0.1 s.
    batch: segments a batch; the last is smaller.

  Returns:
    A MapDataset of int16 [batch, samples].
  """
  read = _ReadSegments(tracks, blocks(seconds))
  return grain.MapDataset.source(where).batch(batch, batch_fn=read)


def iterate(dataset: grain.MapDataset, workers: int) -> Iterator[Any]:
  """Iterates with reading ahead, in the same order for any `workers`.

  Args:
    dataset: batched already, so that batches do not depend on `workers`.
    workers: processes that read, at most one for each core; 0 reads in
      threads of this process, which is enough as long as the device is the
      bottleneck.

  Returns:
    An iterator over the elements, arrays or dicts of arrays. It raises an
    InputError where a shard is damaged, or where a worker is killed.
  """
  if not workers:
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(options))
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  processes = grain.MultiprocessingOptions(
    num_workers=min(workers, cores()), per_worker_buffer_size=2
  )
  ahead = dataset.to_iter_dataset(options)
  return _survived(ahead.mp_prefetch(processes, _end_with_parent))


def _end_with_parent(worker: int, workers: int) -> None:
  """Ends a worker when its parent does, also if that is killed.

  Ctrl-C in a terminal reaches all processes, and the parent saves first.

  A killed process cannot stop its workers, and Grain's own wait for ever for
  somebody to take what they have read.
  """
  del worker, workers
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def watch() -> None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _survived(batches: grain.IterDataset) -> Iterator[Any]:
  """Iterates; says clearly where a worker process has been killed."""
  begun = False
  try:
    with starting():
      source = iter(batches)
      yield from itertools.islice(source, 1)
      begun = True
      yield from source
  except RuntimeError as error:  # Grain has no kind of its own for it
    if "Worker process was terminated" not in str(error):
      raise
    if not begun:
      raise InputError(NOT_BEGUN) from error
    raise InputError(
      "a process that reads the data was killed, perhaps for want of memory or"
      " of room in /dev/shm: start again, a training goes on from its last"
      " save; fewer of them, or none with --config.data.workers=0, need less"
    ) from error


def _allowed(tracks: Tracks, track: int, length: int) -> np.ndarray:
  return segments.sounding(tracks.energy(track), tracks.rms[track], length)


class _Draw(grain.transforms.RandomMap):
  """A track's index to it and its starts: {"track", "views", "short"}.

  Only whole batches are read, each into its own place, since copying takes as
  long as reading.
  """

  def __init__(
    self,
    tracks: Tracks,
    length: int,
    gap: int,
    views: int,
    short: int,
    short_views: int,
  ):
    self._tracks, self._length = tracks, length
    self._gap, self._views = gap, views
    self._short, self._short_views = short, short_views

  def random_map(
    self, track: int, rng: np.random.Generator
  ) -> dict[str, int | np.ndarray]:
    allowed = _allowed(self._tracks, track, self._length)
    starts = segments.draw(rng, allowed, self._views, self._gap)
    item = {"track": int(track), "views": starts}
    if self._short_views:  # after the views, which are to stay as they are
      allowed = _allowed(self._tracks, track, self._short)
      item["short"] = segments.draw_any(rng, allowed, self._short_views)
    return item


class _ReadBatch:
  """What `_Draw` drew of some tracks to their batch."""

  def __init__(self, tracks: Tracks, length: int, short: int, *, labels: bool):
    self._tracks, self._labels = tracks, labels
    self._lengths = {"views": length, "short": short}

  def __call__(self, items: list[dict]) -> dict[str, np.ndarray]:
    chosen = [item["track"] for item in items]
    batch = {}
    for name in [name for name in self._lengths if name in items[0]]:
      starts = np.stack([item[name] for item in items], axis=1)
      where = [list(zip(chosen, view, strict=True)) for view in starts.tolist()]
      length = self._lengths[name] * BLOCK
      batch[name] = np.empty((*starts.shape, length), np.int16)
      for view, places in enumerate(where):
        _read_into(batch[name][view], self._tracks, places)
    if self._labels:
      batch["labels"] = self._tracks.labels[chosen][None].astype(np.int8)
    return batch


class _ReadSegments:
  """Pairs of a track and a start to their segments, int16 [batch, samples]."""

  def __init__(self, tracks: Tracks, length: int):
    self._tracks, self._length = tracks, length

  def __call__(self, where: list[np.ndarray]) -> np.ndarray:
    segments_read = np.empty((len(where), self._length * BLOCK), np.int16)
    _read_into(segments_read, self._tracks, np.stack(where).tolist())
    return segments_read


def _read_into(
  out: np.ndarray, tracks: Tracks, where: Sequence[tuple[int, int]]
) -> None:
  """Reads segments from (track, start in blocks) into int16 [n, samples]."""
  for segment, (track, start) in zip(out, where, strict=True):
    tracks.read(track, start * BLOCK, len(segment), segment)
