"""Tracks cut into segments of equal distance, to be embedded.

Worker processes import this module, so it imports nothing heavy.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_music.data import audio, ready, segments
from ssl_music.data.segments import BLOCK
from ssl_music.errors import InputError

_SLAB = 600 * BLOCK  # samples of a long track that are read at once


class Cut(NamedTuple):
  """A track cut into segments.

  Attributes:
    pcm: int16 [samples], 16 kHz, normalised; may be a memory map. Of `Decode`,
      and of a long track, the file that holds them.
    starts: int64 [N], of the segments, in samples.
    sounding: bool [N], which of them count for the track.
    samples: of the track.
  """

  pcm: np.ndarray | Path
  starts: np.ndarray
  sounding: np.ndarray
  samples: int


class Decode:
  """Decodes a file and cuts it; pickles to worker processes.

  No long track goes from process to process: it waits in a file, whose reader
  has to remove it.
  """

  def __init__(self, length: int, step: int, folder: Path, ending: str):
    """Takes what is the same for all files.

    Args:
      length: of a segment, in blocks.
      step: from a segment's start to the next one's, in blocks.
      folder: for the files of long tracks.
      ending: of their names.
    """
    self._length, self._step = length, step
    self._folder, self._ending = folder, ending

  def __call__(self, job: tuple[int, str]) -> Cut | str:
    """Decodes one file.

    Args:
      job: a number that no other file has, and the file.

    Returns:
      the track; or why it cannot be embedded, in a few words.

    Raises:
      OSError: the folder cannot be written to.
    """
    number, path = job
    file = self._folder / f"{number:08}.{self._ending}"
    try:
      pcm = audio.normalise(audio.stream(path), self._folder, file)
      if not isinstance(pcm, np.memmap):
        return cut(pcm, self._length, self._step)
      # What is mapped counts as this process's memory: it is read in pieces.
      samples, energy = len(pcm), []
      del pcm
      with file.open("rb") as opened:
        while len(slab := np.fromfile(opened, "<i2", _SLAB)):
          energy.append(ready.block_energy(slab))
      chosen = choose(np.concatenate(energy), self._length, self._step)
      return Cut(file, *chosen, samples)
    except audio.AudioError as error:
      file.unlink(missing_ok=True)
      return str(error)
    except OSError:
      file.unlink(missing_ok=True)
      raise


def cut(pcm: np.ndarray, length: int, step: int) -> Cut:
  """Cuts a track.

  Args:
    pcm: int16 [samples], of `audio.normalise`.
    length: of a segment, in blocks.
    step: from a segment's start to the next one's, in blocks.

  Raises:
    AudioError: the track is shorter than a segment.
  """
  return Cut(pcm, *choose(ready.block_energy(pcm), length, step), len(pcm))


def choose(
  energy: np.ndarray, length: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the segments of a track: their starts, and which are sounding.

  Args:
    energy: float32 [blocks], of `ready.block_energy`.
    length: of a segment, in blocks.
    step: from a segment's start to the next one's, in blocks.

  Returns:
    int64 [N], in samples; bool [N], one or more of them true.

  Raises:
    AudioError: the track is shorter than a segment.
  """
  if len(energy) < length:
    seconds = BLOCK / audio.SAMPLE_RATE
    raise audio.AudioError(
      f"too short ({len(energy) * seconds:.1f} s, under a segment's"
      f" {length * seconds:g} s)"
    )
  starts = np.arange(0, len(energy) - length + 1, step)
  rms = float(np.sqrt(energy.mean(dtype=np.float64)))
  sounding = segments.sounding(energy, rms, length)[starts]
  if not sounding.any():
    # All the energy lies in a rest that is left out.
    loudness = segments.segment_rms(energy, length)[starts]
    sounding = loudness == loudness.max()
  return starts * BLOCK, sounding


def blocks(hop: float) -> int:
  """Returns a hop in blocks of 0.1 s.

  Args:
    hop: in seconds.

  Raises:
    InputError: it is no positive multiple of 0.1 s.
  """
  count = round(hop * audio.SAMPLE_RATE / BLOCK)
  if count < 1 or abs(count * BLOCK - hop * audio.SAMPLE_RATE) > 1e-6:
    raise InputError(
      f"a hop of {hop:g} s does not fit the grid of 0.1 s that segments start"
      f" on: give a positive multiple of it, such as {max(count, 1) / 10}"
    )
  return count
