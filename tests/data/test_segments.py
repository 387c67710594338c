import collections
import functools
import itertools

import numpy as np
import pytest

from ssl_music.data import segments


def admissible(allowed, views, gap):
  starts = np.flatnonzero(allowed)
  return [
    chosen
    for chosen in itertools.combinations(starts, views)
    if all(b - a >= gap for a, b in itertools.pairwise(chosen))
  ]


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("gap", [1, 4, 7])
def test_draws_uniformly_from_all_admissible_sets(views, gap):
  allowed = np.random.default_rng(views + gap).random(20) < 0.6
  expected = admissible(allowed, views, gap)
  count = segments.choices(allowed, views, gap)
  assert count[-1].sum() == len(expected)
  rng = np.random.default_rng(0)
  draws = 60 * len(expected)
  seen = collections.Counter(
    tuple(sorted(segments.draw(rng, allowed, views, gap))) for _ in range(draws)
  )
  assert set(seen) <= set(expected)
  # Chi-square: its mean is the degrees of freedom, its deviation sqrt(2 df).
  chi = sum((seen[chosen] - 60) ** 2 / 60 for chosen in expected)
  freedom = len(expected) - 1
  assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom + 1)


def test_order_of_views_is_random():
  rng = np.random.default_rng(0)
  allowed = np.ones(30, bool)
  rising = sum(
    np.diff(segments.draw(rng, allowed, 2, 5))[0] > 0 for _ in range(1000)
  )
  assert 430 < rising < 570


@pytest.mark.parametrize(
  ("allowed", "gap"), [(np.ones(5, bool), 5), (np.zeros(9, bool), 1), ([], 1)]
)
def test_nothing_to_draw(allowed, gap):
  rng = np.random.default_rng(0)
  assert segments.draw(rng, np.array(allowed, bool), 2, gap) is None


def test_draws_any_independently_and_uniformly():
  allowed = np.array([0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0], bool)
  expected = set(itertools.product(np.flatnonzero(allowed), repeat=2))
  rng = np.random.default_rng(0)
  draws = 60 * len(expected)
  seen = collections.Counter(
    tuple(segments.draw_any(rng, allowed, 2)) for _ in range(draws)
  )
  assert set(seen) == expected
  chi = sum((count - 60) ** 2 / 60 for count in seen.values())
  freedom = len(expected) - 1
  assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom)
  assert segments.draw_any(rng, np.zeros(3, bool), 2) is None
  assert segments.draw_any(rng, np.zeros(0, bool), 2) is None


def test_segment_rms_is_that_of_the_samples():
  samples = np.random.default_rng(0).standard_normal((50, 100))
  energy = np.square(samples).mean(axis=1)
  found = segments.segment_rms(energy, 7)
  expected = [
    np.sqrt(np.square(samples[start : start + 7]).mean()) for start in range(44)
  ]
  np.testing.assert_allclose(found, expected)
  assert segments.segment_rms(energy, 51).size == 0


def test_published_criterion():
  energy = np.array([1.0, 0.3, 0.2])
  rms = 1.0
  published = 10 * np.log(np.sqrt(energy) / rms) > -7.5
  np.testing.assert_array_equal(segments.sounding(energy, rms, 1), published)
  assert published.tolist() == [True, True, False]


def test_grid_skips_silence_and_keeps_something():
  energy = np.repeat([1.0, 0.0, 1.0, 0.0], 4)
  rms = np.sqrt(energy.mean())
  grid = functools.partial(segments.grid, sounding=True)
  assert grid(energy, rms, 4).tolist() == [0, 8]
  late = np.r_[np.zeros(8), 10.0]  # all energy in a rest of the grid
  assert grid(late, np.sqrt(late.mean()), 4).tolist() == [5]
  assert grid(energy[:3], rms, 4).size == 0


def test_a_grid_of_all_segments_leaves_out_the_rest():
  energy = np.repeat([0.0, 1.0, 0.0, 9.0], [4, 4, 4, 3])
  for size, starts in ((15, [0, 4, 8]), (12, [0, 4, 8]), (4, [0]), (3, [])):
    found = segments.grid(energy[:size], 1.0, 4, sounding=False)
    assert found.tolist() == starts
