"""The nearest of many vectors: exact, by cosine, in bounded memory.

Vectors are standardised first, by the mean and deviation of each feature over
the collection. Embeddings have features that are much alike for all music, and
some that are many times larger than others; without this they decide, and all
tracks seem alike. `benchmarks/search_quality.py` compared: of the neighbours of
a trained encoder as many are of the same genre and artist as without it, in
some collections more, and of an untrained network's more.

Products are computed in float32, a block of vectors at a time. The best of them
are computed again in float64, so that vectors that are equal are equally near,
whatever block they are in; the first of these comes first.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Numbers of a block of vectors. For one query it fits a core's cache, since
# memory takes the time; for many their product does, which wants more at once.
_BLOCK = 1 << 18
_LARGE_BLOCK = 1 << 21
_QUERIES = 512  # computed at once
# So many more than asked for are compared in float64: what rounding in float32
# puts in the wrong order lies closely together.
_SPARE = 16
_DEAD = 1e-6  # deviation of a feature that says nothing


class Space(NamedTuple):
  """How vectors are standardised.

  Attributes:
    mean: float32 [D].
    inverse: float32 [D], one over the deviation; 0 of a constant feature.
  """

  mean: np.ndarray
  inverse: np.ndarray


def fit(vectors: np.ndarray) -> Space:
  """Returns how to standardise a collection.

  Args:
    vectors: float [N, D], N at least 1; may be a memory map.
  """
  shift = np.array(vectors[0], np.float32)
  total = np.zeros(len(shift))
  squares = np.zeros(len(shift))
  for _, block in _blocks(vectors):
    apart = block - shift  # or squares would cancel
    total += apart.sum(axis=0)
    squares += np.einsum("nd,nd->d", apart, apart)
  mean = total / len(vectors)
  deviation = np.sqrt(np.maximum(squares / len(vectors) - mean**2, 0))
  alive = deviation > _DEAD
  inverse = np.divide(1, deviation, out=np.zeros_like(mean), where=alive)
  return Space((mean + shift).astype(np.float32), inverse.astype(np.float32))


def directions(vectors: np.ndarray, space: Space) -> np.ndarray:
  """Standardises vectors and scales them to a length of 1.

  Args:
    vectors: float [N, D].
    space: of `fit`.

  Returns:
    [N, D] of the same type; zeros of a vector that is the mean.
  """
  moved, length = _standardise(vectors, space)
  return moved / length[:, None]


def nearest(
  queries: np.ndarray,
  vectors: np.ndarray,
  space: Space,
  top: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the vectors that are nearest to some others.

  Besides its arguments and results it holds some tens of megabytes.

  Args:
    queries: float [Q, D].
    vectors: float [N, D]; may be a memory map.
    space: of `fit(vectors)`.
    top: how many to find.

  Returns:
    rows of `vectors`, int64 [Q, k], the nearest first, of equally near ones the
    first (some, where more than `_SPARE` of them are too many); and their
    cosines, float32 [Q, k], from -1 to 1. k is `top`, or N where that is less.
  """
  most = min(top, len(vectors))
  found = np.zeros((len(queries), most), np.int64)
  cosines = np.zeros((len(queries), most), np.float32)
  for first in range(0, len(queries), _QUERIES):
    part = queries[first : first + _QUERIES]
    rows = _candidates(part, vectors, space, top + _SPARE)
    for query, near in enumerate(np.sort(rows, axis=1), first):
      exact = _cosines(queries[query], vectors[near], space)
      order = np.argsort(-exact, kind="stable")[:most]
      found[query], cosines[query] = near[order], exact[order]
  return found, cosines


def others(
  rows: np.ndarray, cosines: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Leaves queries out of their own neighbours.

  Args:
    rows: int [Q, k], of `nearest`.
    cosines: float32 [Q, k].
    own: int [Q], the row that each query is.

  Returns:
    both without it, [Q, k - 1]; without the last neighbour where a query is not
    among its own neighbours, as when it has many copies.
  """
  same = rows == own[:, None]
  same[~same.any(axis=1), -1] = True
  shape = len(rows), rows.shape[1] - 1
  return rows[~same].reshape(shape), cosines[~same].reshape(shape)


def _candidates(
  queries: np.ndarray, vectors: np.ndarray, space: Space, count: int
) -> np.ndarray:
  """Returns the rows of the best products, int64 [Q, up to `count`]."""
  wanted = directions(np.asarray(queries, np.float32), space)
  best = np.zeros((len(queries), 0), np.float32)
  rows = np.zeros((len(queries), 0), np.int64)
  for first, block in _blocks(vectors, len(queries)):
    # As `directions`, but what is divided is the smaller array.
    moved, length = _standardise(block, space)
    products = ((moved @ wanted.T) / length[:, None]).T
    columns = _best(products, count)
    best = np.hstack([best, np.take_along_axis(products, columns, 1)])
    rows = np.hstack([rows, columns + first])
    columns = _best(best, count)
    best = np.take_along_axis(best, columns, 1)
    rows = np.take_along_axis(rows, columns, 1)
  return rows


def _best(values: np.ndarray, count: int) -> np.ndarray:
  """Returns the columns of each row's largest values, [Q, up to count]."""
  if values.shape[1] <= count:
    return np.broadcast_to(np.arange(values.shape[1]), values.shape)
  return np.argpartition(values, -count, axis=1)[:, -count:]


def _cosines(
  query: np.ndarray, vectors: np.ndarray, space: Space
) -> np.ndarray:
  """Returns cosines in float64, [n]: the same of equal vectors."""
  both = np.concatenate([query[None], vectors]).astype(np.float64)
  one, *others = directions(both, space)
  return np.array([one @ other for other in others])


def _standardise(
  vectors: np.ndarray, space: Space
) -> tuple[np.ndarray, np.ndarray]:
  """Returns standardised vectors [N, D], and their lengths [N], never 0."""
  moved = vectors - space.mean
  moved *= space.inverse
  length = np.sqrt(np.einsum("nd,nd->n", moved, moved))
  return moved, np.maximum(length, np.finfo(moved.dtype).tiny)


def _blocks(
  vectors: np.ndarray, queries: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (its first row, a block of vectors as float32 [n, D])."""
  numbers = _BLOCK if queries == 1 else _LARGE_BLOCK
  step = max(numbers // vectors.shape[1], 1)
  for first in range(0, len(vectors), step):
    yield first, np.asarray(vectors[first : first + step], np.float32)
