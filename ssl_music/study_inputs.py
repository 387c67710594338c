"""What a study's probes are trained and scored on, made on the host."""

from collections.abc import Mapping

import numpy as np

from ssl_music import online

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


def minibatches(group: Mapping, batch: int, steps: int) -> np.ndarray:
  """Returns segments of a group's minibatches, int32 [steps, batch].

  They go through all its segments, in a new order each time, again and again;
  of fewer segments than a minibatch has, each comes several times.
  """
  rng = np.random.default_rng([group["seed"], group["subset"]])
  rows = group["rows"].astype(np.int32)
  epochs = -(-steps * batch // len(rows))
  orders = rng.permuted(np.broadcast_to(rows, (epochs, len(rows))), axis=1)
  return orders.ravel()[: steps * batch].reshape(steps, batch)
