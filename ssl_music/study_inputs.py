"""What a study's probes are trained on and picked by, made on the host."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ssl_music import online, randomness

SEGMENTS = 4096  # that are looked at or scored at a time, and …
TRACKS = 256  # … tracks whose segments are averaged


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and deviation of each column, float64 [D], block by block.

  Args:
    x: [N, D], such as a memory map.
  """
  total = np.zeros((2, x.shape[1]))
  # Differences from one row: squares of a large mean would drown the rest.
  first = x[0].astype(np.float64)
  for start in range(0, len(x), SEGMENTS):
    part = x[start : start + SEGMENTS].astype(np.float64) - first
    total += part.sum(axis=0), np.square(part).sum(axis=0)
  mean, square = total / len(x)
  return first + mean, np.sqrt(np.maximum(square - mean**2, 0))


def track_means(part: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns a block of one, of the mean embedding of each track."""
  owners, tracks = part["owners"], len(part["labels"])
  # Where each track's segments begin, and where the last one's end.
  bounds = np.flatnonzero(np.diff(owners, prepend=-1, append=tracks))
  means = []
  for first in range(0, tracks, TRACKS):
    some = bounds[first : first + TRACKS + 1]
    x = part["x"][some[0] : some[-1]]
    means.append(online.track_means(x, some[:-1] - some[0]))
  alone = np.arange(tracks, dtype=np.int32)
  return {
    "x": np.concatenate(means)[None].astype(np.float32),
    "owners": alone[None],
  }


def in_blocks(part: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns segments [blocks, N, D]; those that fill up have no track."""
  owners = part["owners"].astype(np.int32)
  more = -len(owners) % min(SEGMENTS, len(owners))
  owners = np.pad(owners, (0, more), constant_values=len(part["labels"]))
  x = np.pad(part["x"], [(0, more), (0, 0)])
  shape = -1, min(SEGMENTS, len(owners))
  return {"x": x.reshape(*shape, x.shape[1]), "owners": owners.reshape(shape)}


def blocks(
  groups: Sequence[dict], batch: int, size: int
) -> Iterator[list[dict]]:
  """Divides groups into blocks with minibatches of one length.

  A minibatch of a subset with fewer segments than `batch` is no longer than the
  next power of two: few lengths, since each is a program of its own. It follows
  from the subset alone, whatever else is trained.

  Args:
    groups: as in `study.run`; each gets its "batch".
    batch: the longest.
    size: groups of a block, at most.
  """
  by_length: dict[int, list[dict]] = {}
  for group in groups:
    length = min(batch, 1 << (len(group["rows"]) - 1).bit_length())
    by_length.setdefault(length, []).append(group | {"batch": length})
  # The longest first: what is left at the end is soon done.
  for _, some in sorted(by_length.items(), reverse=True):
    for start in range(0, len(some), size):
      yield some[start : start + size]


def minibatches(group: Mapping, steps: int) -> np.ndarray:
  """Returns segments of a group's minibatches, int32 [steps, group["batch"]].

  They go through all its segments, in a new order each time, again and again;
  of fewer segments than a minibatch has, some come twice. The orders follow
  from the group's seed, share and draw alone.
  """
  cell = group["share"], group["draw"]
  rng = randomness.generator(group["seed"], "minibatches", *cell)
  rows, batch = group["rows"].astype(np.int32), group["batch"]
  epochs = -(-steps * batch // len(rows))
  orders = rng.permuted(np.broadcast_to(rows, (epochs, len(rows))), axis=1)
  return orders.ravel()[: steps * batch].reshape(steps, batch)


def macro_map(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Returns macro mAP of many rankings, in a few passes over sorted integers.

  That of `metrics.scores` but for ties: where a negative's score is a
  positive's to the last bit of float32, the negative comes first.

  Args:
    labels: bool [M, T]; tags without a positive or a negative are left out.
    scores: float32 [K, M, T].

  Returns:
    float64 [K]; 0 where a score is not finite.
  """
  positives = labels.sum(axis=0)
  kept = (positives > 0) & (positives < len(labels))
  ordered = np.ascontiguousarray(scores[..., kept].swapaxes(1, 2), np.float32)
  finite = np.isfinite(ordered).all(axis=(1, 2))
  # As integers, floats of one sign sort like numbers; of the others, all bits
  # but the sign are flipped. The last bit, then, tells positives. Negated, so
  # that the best comes first.
  bits = (-ordered).view(np.int32)
  bits ^= (bits >> 31) & 0x7FFF_FFFF
  bits = (bits & ~1) | labels[:, kept].T
  bits.sort(axis=-1)
  hit = (bits & 1).astype(np.float32)
  precision = np.cumsum(hit, axis=-1) / np.arange(1, len(labels) + 1)
  values = (precision * hit).sum(axis=-1) / positives[kept]
  return np.where(finite, values.mean(axis=-1), 0.0)
