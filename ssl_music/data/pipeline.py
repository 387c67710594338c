"""Grain pipelines: batches of int16 segments from prepared tracks."""

from collections.abc import Iterator

import grain
import numpy as np
from absl import logging

from ssl_music.data import audio, segments
from ssl_music.data.tracks import Tracks
from ssl_music.data.writer import BLOCK
from ssl_music.errors import InputError


def blocks(seconds: float) -> int:
  """Returns a duration in blocks of 0.1 s.

  Raises:
    InputError: it is no multiple of 0.1 s, or not positive.
  """
  count = round(seconds * audio.SAMPLE_RATE / BLOCK)
  if count < 1 or abs(count * BLOCK - seconds * audio.SAMPLE_RATE) > 1e-6:
    raise InputError(
      f"{seconds} s does not fit the grid of 0.1 s that energies are stored on:"
      f" give a positive multiple of it, such as {max(count, 1) / 10}"
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
) -> grain.MapDataset:
  """Builds the batches of an epoch, to be repeated and indexed by step.

  Every epoch shuffles the tracks; of each track it draws `views` sounding
  segments anew and batches different tracks only (an epoch's rest that fills
  no batch waits for the next epoch's shuffle). Element `n` depends on the
  arguments and n alone: `batches.repeat()[step:]` resumes.

  Args:
    tracks: to draw from.
    seconds: length of a segment, a multiple of 0.1 s.
    gap: smallest distance between two segments' starts, in seconds.
    views: segments a track.
    batch: tracks a batch.
    seed: of shuffle and draws.

  Returns:
    A MapDataset of int16 [views, batch, samples]; its length is the steps of
    an epoch.

  Raises:
    InputError: segments longer than every track, or too few tracks that have
      `views` sounding segments for a batch.
  """
  length, distance = blocks(seconds), blocks(gap)
  needed = length + (views - 1) * distance
  long_enough = np.flatnonzero(tracks.samples // BLOCK >= needed)
  if not long_enough.size:
    longest = tracks.samples.max() / audio.SAMPLE_RATE
    raise InputError(
      f"{views} segments of {seconds:g} s whose starts are {gap:g} s apart need"
      f" tracks of {needed / 10:g} s, and the longest of {tracks.name} has"
      f" {longest:.1f} s: lower --config.data.seconds and --config.data.gap, or"
      " prepare longer tracks"
    )
  usable = np.array(
    [
      track
      for track in long_enough
      if segments.choices(_allowed(tracks, track, length), views, distance)[
        -1
      ].any()
    ]
  )
  if len(usable) < batch:
    raise InputError(
      f"{tracks.name} has {len(usable)} tracks with {views} sounding segments"
      f" of {seconds:g} s (of {len(tracks)}), too few for a batch of {batch}:"
      f" lower --config.batch to {max(len(usable), 1)} or fewer, or prepare"
      " more tracks"
    )
  if len(usable) < len(tracks):
    logging.warning(
      "pre-training on %d of %d tracks: the others hold no %d sounding segments"
      " %g s apart",
      *(len(usable), len(tracks), views, gap),
    )
  return (
    grain.MapDataset.source(usable)
    .seed(seed)
    .shuffle()
    .random_map(_Draw(tracks, length, distance, views))
    .batch(batch, drop_remainder=True, batch_fn=_views_first)
  )


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
  return (
    grain.MapDataset.source(where)
    .map(_Read(tracks, blocks(seconds)))
    .batch(batch, batch_fn=np.stack)
  )


def iterate(dataset: grain.MapDataset, workers: int) -> Iterator[np.ndarray]:
  """Iterates with reading ahead, in the same order for any `workers`.

  Args:
    dataset: batched already, so that batches do not depend on `workers`.
    workers: processes that read; 0 reads in threads of this process, which
      is enough as long as the device is the bottleneck.
  """
  if not workers:
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(options))
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  processes = grain.MultiprocessingOptions(
    num_workers=workers, per_worker_buffer_size=2
  )
  return iter(dataset.to_iter_dataset(options).mp_prefetch(processes))


def _allowed(tracks: Tracks, track: int, length: int) -> np.ndarray:
  return segments.sounding(tracks.energy(track), tracks.rms[track], length)


class _Draw(grain.transforms.RandomMap):
  """A track's index to its segments, int16 [views, samples]."""

  def __init__(self, tracks: Tracks, length: int, gap: int, views: int):
    self._tracks, self._length = tracks, length
    self._gap, self._views = gap, views

  def random_map(self, track: int, rng: np.random.Generator) -> np.ndarray:
    allowed = _allowed(self._tracks, track, self._length)
    starts = segments.draw(rng, allowed, self._views, self._gap)
    return np.stack(
      [
        self._tracks.read(track, start * BLOCK, self._length * BLOCK)
        for start in starts
      ]
    )


class _Read(grain.transforms.Map):
  """A (track, start) to its segment, int16 [samples]."""

  def __init__(self, tracks: Tracks, length: int):
    self._tracks, self._length = tracks, length

  def map(self, where: np.ndarray) -> np.ndarray:
    track, start = where
    return self._tracks.read(track, start * BLOCK, self._length * BLOCK)


def _views_first(items: list[np.ndarray]) -> np.ndarray:
  return np.stack(items, axis=1)
