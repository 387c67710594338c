"""Batches of segments, filled across tracks, to vectors."""

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssl_music.data import cuts
from ssl_music.errors import InputError
from ssl_music.pretrained import Encoder


def cut_batches(
  tracks: Iterable[cuts.Cut], size: int, samples: int
) -> Iterator[np.ndarray]:
  """Fills batches with the segments of tracks, one track after another.

  Args:
    tracks: of `cuts.Decode`; the file of a long one is removed.
    size: segments a batch.
    samples: of a segment.

  Yields:
    int16 [size, samples]; the last may be smaller.
  """
  batch, filled = np.empty((size, samples), np.int16), 0
  for cut in tracks:
    with _opened(cut.pcm) as read:
      for start in cut.starts.tolist():
        read(start, batch[filled])
        filled += 1
        if filled == size:
          yield batch
          batch, filled = np.empty((size, samples), np.int16), 0
  if filled:
    yield batch[:filled]


@contextlib.contextmanager
def _opened(
  pcm: np.ndarray | Path,
) -> Iterator[Callable[[int, np.ndarray], None]]:
  """Yields `read(start, out)`, which copies samples of a track."""
  if isinstance(pcm, np.ndarray):
    yield lambda start, out: np.copyto(out, pcm[start : start + len(out)])
    return
  with pcm.open("rb", buffering=0) as file:
    pcm.unlink()  # nobody else needs its name

    def read(start: int, out: np.ndarray) -> None:
      if os.preadv(file.fileno(), [out], 2 * start) != out.nbytes:
        raise OSError("a temporary file is too short")
      if sys.byteorder == "big":
        out.byteswap(inplace=True)

    yield read


def embed(
  encoder: Encoder, batches: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
  """Embeds batches; while one is handed out, the next is being computed.

  Args:
    encoder: of `pretrained.load`.
    batches: int16 [n, samples], n at most the encoder's batch.

  Yields:
    float32 [n, D] of each.

  Raises:
    InputError: the device has too little memory, or a vector is not finite.
  """
  waiting: deque[tuple[Any, int]] = deque()
  try:
    for batch in batches:
      waiting.append((encoder.start(batch), len(batch)))
      if len(waiting) > 1:
        yield _finished(encoder, *waiting.popleft())
    while waiting:
      yield _finished(encoder, *waiting.popleft())
  except jax.errors.JaxRuntimeError as error:
    said = str(error).partition("\n")[0]
    raise InputError(
      f"the device cannot embed {encoder.batch} segments at once ({said}):"
      " lower --batch"
    ) from error


def _finished(encoder: Encoder, started: Any, count: int) -> np.ndarray:
  found = np.asarray(started)[:count]
  if not np.isfinite(found).all():
    raise InputError(
      f"the encoder {encoder.described['encoder']} gives vectors that are not"
      " finite: its training has diverged or hardly begun, so give another"
      " --checkpoint or --encoder"
    )
  return found
