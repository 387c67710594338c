"""Nearest vectors: against scikit-learn, with ties, blocks and memory maps."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from ssl_music import neighbours


@pytest.fixture
def vectors():
  rng = np.random.default_rng(0)
  scale = np.logspace(-2, 2, 24)  # features of very different sizes
  made = rng.standard_normal((700, 24)) * scale + 10 * scale
  made[:, 5] = 3.0  # says nothing
  return made.astype(np.float32)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
  monkeypatch.setattr(neighbours, "_BLOCK", 24 * 64)
  monkeypatch.setattr(neighbours, "_LARGE_BLOCK", 24 * 96)
  monkeypatch.setattr(neighbours, "_QUERIES", 16)


def expected(queries, vectors, top):
  """Rows and cosines by scikit-learn, ties by row."""
  scaler = StandardScaler().fit(vectors.astype(np.float64))
  search = NearestNeighbors(metric="cosine", algorithm="brute")
  search.fit(scaler.transform(vectors.astype(np.float64)))
  distance, rows = search.kneighbors(
    scaler.transform(queries.astype(np.float64)), len(vectors)
  )
  order = np.lexsort([rows, distance.round(9)], axis=-1)[:, :top]
  return (
    np.take_along_axis(rows, order, 1),
    1 - np.take_along_axis(distance, order, 1),
  )


def test_equals_scikit_learn(vectors):
  queries = vectors[:40] + 0.1
  queries[:, 5] = 3.0
  rows, cosines = neighbours.nearest(
    queries, vectors, neighbours.fit(vectors), 10
  )
  right, similarity = expected(queries, vectors, 10)
  np.testing.assert_array_equal(rows, right)
  np.testing.assert_allclose(cosines, similarity, atol=1e-5)


def test_the_first_of_equal_vectors_comes_first(vectors):
  # Twelve copies in as many blocks, five of which are to be found.
  copies = np.arange(30, 630, 50)
  vectors[copies] = vectors[30]
  space = neighbours.fit(vectors)
  rows, cosines = neighbours.nearest(vectors[30:31], vectors, space, 5)
  np.testing.assert_array_equal(rows[0], copies[:5])
  np.testing.assert_allclose(cosines, 1, atol=1e-6)
  right, _ = expected(vectors[:40], vectors, 20)
  rows, _ = neighbours.nearest(vectors[:40], vectors, space, 20)
  np.testing.assert_array_equal(rows, right)


def test_queries_are_left_out_of_their_own_neighbours(vectors):
  copies = np.arange(30, 230, 10)
  vectors[copies] = vectors[30]
  space = neighbours.fit(vectors)
  own = np.arange(250)
  found = neighbours.nearest(vectors[own], vectors, space, 5)
  rows, cosines = neighbours.others(*found, own)
  assert rows.shape == cosines.shape == (250, 4)
  assert not (rows == own[:, None]).any()
  for query in own:
    right = found[0][query][found[0][query] != query][:4]
    np.testing.assert_array_equal(rows[query], right)


def test_a_memory_map_gives_the_same(vectors, tmp_path):
  np.save(tmp_path / "vectors.npy", vectors)
  mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
  space = neighbours.fit(mapped)
  for one, other in zip(space, neighbours.fit(vectors), strict=True):
    np.testing.assert_array_equal(one, other)
  one = neighbours.nearest(mapped[:3], mapped, space, 7)
  other = neighbours.nearest(vectors[:3], vectors, space, 7)
  np.testing.assert_array_equal(one, other)


def test_few_vectors(vectors):
  space = neighbours.fit(vectors[:1])
  rows, cosines = neighbours.nearest(vectors[:1], vectors[:1], space, 10)
  assert rows.tolist() == [[0]]
  assert cosines.tolist() == [[0]]  # it is the mean: no direction
  space = neighbours.fit(vectors[:3])
  rows, _ = neighbours.nearest(vectors[:3], vectors[:3], space, 10)
  assert sorted(rows[0]) == [0, 1, 2]
  assert rows[:, 0].tolist() == [0, 1, 2]


def test_features_are_standardised(vectors):
  space = neighbours.fit(vectors)
  np.testing.assert_allclose(
    space.mean, vectors.mean(axis=0, dtype=np.float64), rtol=1e-6
  )
  deviation = vectors.std(axis=0, dtype=np.float64)
  assert space.inverse[5] == 0
  alive = np.arange(24) != 5
  np.testing.assert_allclose(space.inverse[alive], 1 / deviation[alive], 1e-4)
