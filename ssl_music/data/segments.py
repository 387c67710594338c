"""Which segments of a track are used: NumPy on block energies, no audio.

Starts lie on a grid of blocks (0.1 s), so that a segment's energy is exactly
the mean of its blocks' and the choice needs no audio.
"""

import numpy as np

from ssl_music.data import audio

BLOCK = audio.SAMPLE_RATE // 10  # samples

# A segment counts as sounding when 10 ln(rms_segment / rms_track) > -7.5, the
# criterion of the published code: a ratio over 0.472.
SOUNDING = float(np.exp(-7.5 / 10))


def segment_rms(energy: np.ndarray, length: int) -> np.ndarray:
  """Returns the root mean square of the segment at every start.

  Args:
    energy: mean square of each block, [blocks].
    length: of a segment, in blocks.

  Returns:
    float64 [blocks - length + 1]; empty when the track is shorter.
  """
  if len(energy) < length:
    return np.zeros(0)
  total = np.concatenate([[0.0], np.cumsum(energy, dtype=np.float64)])
  mean = (total[length:] - total[:-length]) / length
  return np.sqrt(np.maximum(mean, 0))


def sounding(energy: np.ndarray, rms: float, length: int) -> np.ndarray:
  """Returns which starts give a sounding segment, bool [starts].

  Args:
    energy: mean square of each block, [blocks].
    rms: of the whole track.
    length: of a segment, in blocks.
  """
  return segment_rms(energy, length) > SOUNDING * rms


def choices(allowed: np.ndarray, views: int, gap: int) -> np.ndarray:
  """Counts how many ways there are to go on from each start.

  Args:
    allowed: which starts may be drawn, bool [starts].
    views: starts to draw.
    gap: smallest distance between two starts.

  Returns:
    float64 [views, starts]: entry [v, s] is the number of increasing
    sequences of v + 1 allowed starts, each at least `gap` after the one
    before, that begin at s.
  """
  count = np.zeros((views, len(allowed)))
  count[0] = allowed
  for view in range(1, views):
    later = np.cumsum(count[view - 1][::-1])[::-1]  # from s to the end
    count[view, : max(len(allowed) - gap, 0)] = later[gap:]
    count[view] *= allowed
  return count


def draw(
  rng: np.random.Generator, allowed: np.ndarray, views: int, gap: int
) -> np.ndarray | None:
  """Draws starts at least `gap` apart, uniformly over all admissible sets.

  Args:
    rng: the generator to draw with.
    allowed: which starts may be drawn, bool [starts].
    views: starts to draw.
    gap: smallest distance between two starts.

  Returns:
    int64 [views] in random order; None when there is no admissible set.
  """
  count = choices(allowed, views, gap)
  if not count[-1].any():
    return None
  starts, earliest = [], 0
  for view in reversed(range(views)):
    weight = np.cumsum(count[view, earliest:])
    pick = np.searchsorted(weight, rng.random() * weight[-1], side="right")
    starts.append(earliest + int(pick))
    earliest = starts[-1] + gap
  return rng.permutation(np.array(starts))


def draw_any(
  rng: np.random.Generator, allowed: np.ndarray, count: int
) -> np.ndarray | None:
  """Draws starts independently and uniformly; they may overlap or repeat.

  Args:
    rng: the generator to draw with.
    allowed: which starts may be drawn, bool [starts].
    count: starts to draw.

  Returns:
    int64 [count]; None when no start is allowed.
  """
  starts = np.flatnonzero(allowed)
  if not starts.size:
    return None
  return starts[rng.integers(starts.size, size=count)]


def grid(
  energy: np.ndarray, rms: float, length: int, *, sounding: bool
) -> np.ndarray:
  """Returns a track's consecutive segments; a shorter rest is left out.

  Args:
    energy: mean square of each block, [blocks].
    rms: of the whole track.
    length: of a segment, in blocks.
    sounding: leave out those that are not sounding.

  Returns:
    starts, int64 [segments]. Where none is sounding (all the energy lies in the
    rest), the loudest start of the track alone; empty when the track is shorter
    than a segment.
  """
  loudness = segment_rms(energy, length)
  starts = np.arange(0, len(loudness), length)
  if not sounding or not starts.size:
    return starts
  chosen = starts[loudness[starts] > SOUNDING * rms]
  return chosen if chosen.size else np.array([loudness.argmax()])
