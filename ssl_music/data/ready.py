"""Makes a track ready to be written."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ssl_music.data import audio
from ssl_music.data.segments import BLOCK

_SLAB = 30 * BLOCK  # samples: what the cache holds goes faster


class Ready:
  """Decodes, normalises and measures a track; pickles to worker processes."""

  def __init__(
    self,
    load: Callable[[Mapping], Iterable[np.ndarray]],
    min_seconds: float,
    folder: str | os.PathLike,
  ):
    """Takes what is the same for all tracks.

    Args:
      load: of a plan.
      min_seconds: shorter tracks are of no use.
      folder: for the temporary files of long tracks.
    """
    self._load, self._min_seconds, self._folder = load, min_seconds, folder

  def __call__(self, track: Mapping) -> dict[str, Any] | str:
    """Makes one track ready.

    Args:
      track: of a plan.

    Returns:
      "pcm", int16 [samples]; "energy", of `block_energy`; "rms", root mean
      square. Or what is wrong with the track, in a few words.

    Raises:
      OSError: the folder cannot be written to.
    """
    try:
      pcm = audio.normalise(self._load(track), self._folder)
    except audio.AudioError as error:
      return str(error)
    seconds = len(pcm) / audio.SAMPLE_RATE
    if seconds < max(self._min_seconds, BLOCK / audio.SAMPLE_RATE):
      return f"too short ({seconds:.1f} s, under {self._min_seconds:g} s)"
    energy = block_energy(pcm)
    rms = float(np.sqrt(energy.mean(dtype=np.float64)))
    return {"pcm": pcm, "energy": energy, "rms": rms}


def block_energy(pcm: np.ndarray) -> np.ndarray:
  """Returns the mean square of every whole block, float32 [samples // BLOCK].

  Args:
    pcm: int16 [samples].
  """
  whole = pcm[: len(pcm) // BLOCK * BLOCK]
  energy = np.empty(len(whole) // BLOCK, np.float32)
  for start in range(0, len(whole), _SLAB):
    slab = whole[start : start + _SLAB].astype(np.float32).reshape(-1, BLOCK)
    np.square(slab, out=slab)
    # Integers of 53 bits at most: exact in whatever order they are added.
    total = np.einsum("bs->b", slab, dtype=np.float64)
    first = start // BLOCK
    energy[first : first + len(slab)] = total / BLOCK
  return energy
