import numpy as np
import pytest

from ssl_music import subsets
from ssl_music.errors import InputError


def make_labels(tracks=400):
  random = np.random.default_rng(0)
  return random.random((tracks, 5)) < [0.01, 0.03, 0.1, 0.3, 0.6]


def test_draws_have_their_sizes_and_hold_the_smaller_ones():
  found = subsets.draw(make_labels(), (1.0, 0.05, 0.2), 3, seed=1)
  sizes = [(one["share"], one["draw"], one["mask"].sum()) for one in found]
  assert sizes == [
    *[(0.05, draw, 20) for draw in range(3)],
    *[(0.2, draw, 80) for draw in range(3)],
    (1.0, 0, 400),
  ]
  masks = [one["mask"] for one in found]
  for draw in range(3):
    assert (masks[draw] <= masks[3 + draw]).all()
  assert (masks[3] != masks[4]).any()
  again = subsets.draw(make_labels(), (0.2, 1.0), 2, seed=1)
  np.testing.assert_array_equal(again[1]["mask"], masks[4])
  other = subsets.draw(make_labels(), (0.05, 1.0), 3, seed=2)
  assert (other[1]["mask"] != masks[1]).any()


def test_the_smallest_share_is_one_track():
  found = subsets.draw(make_labels(30), (0.01, 1.0), 2, seed=0)
  assert [one["mask"].sum() for one in found] == [1, 1, 30]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_stratified_draws_keep_the_tags_frequencies(share):
  labels = make_labels()
  wanted = labels.sum(axis=0) * share
  errors = {True: [], False: []}
  for stratified, found in errors.items():
    for one in subsets.draw(
      labels, (share, 1.0), 20, seed=0, stratified=stratified
    )[:-1]:
      assert one["mask"].sum() == round(400 * share)
      found.append(np.abs(labels[one["mask"]].sum(axis=0) - wanted))
  assert np.max(errors[True]) < 1
  assert np.mean(errors[True]) < np.mean(errors[False]) / 2.5


def test_stratified_draws_differ_and_leave_no_track_out():
  rng = np.random.default_rng(0)
  # A few frequent tags and many that hardly any track has, as people write.
  labels = rng.random((100, 90)) < np.r_[np.full(5, 0.3), np.full(85, 0.015)]
  drawn = np.array(
    [
      one["mask"]
      for seed in range(50)
      for one in subsets.draw(
        labels, (0.1, 1.0), 4, seed=seed, stratified=True
      )[:-1]
    ]
  )
  pairs = (drawn.astype(int) @ drawn.T.astype(int))[~np.eye(200, dtype=bool)]
  assert pairs.mean() / 10 < 0.13  # 0.1 where tracks are drawn alike
  assert drawn.any(axis=0).all()
  assert drawn.mean(axis=0).max() < 0.25
  frequent, rare = np.split((drawn @ labels.astype(int)).mean(0) / 10, [5])
  np.testing.assert_allclose(frequent, labels[:, :5].mean(0), rtol=0.1)
  assert rare.mean() == pytest.approx(labels[:, 5:].mean(), rel=0.4)


@pytest.mark.parametrize("shares", [(0.5,), (0.0, 1.0), (1.0, 1.5), ()])
def test_shares_out_of_range_are_explained(shares):
  with pytest.raises(InputError, match="give numbers over 0 up to 1, and 1"):
    subsets.draw(make_labels(), shares, 2, seed=0)
