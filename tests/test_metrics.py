import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ssl_music import metrics


def draw(generator, tracks, *, ties):
  """Labels of both kinds and scores, with many ties or hardly any."""
  labels = generator.random(tracks) < generator.uniform(0.05, 0.95)
  labels[:2] = True, False
  scores = generator.normal(size=tracks) + labels
  if ties:
    scores = np.round(scores * generator.choice([0.5, 1, 3]))
  order = generator.permutation(tracks)
  return labels[order], scores[order]


def tagger(generator, tracks, tags, *, ties=True):
  columns = [draw(generator, tracks, ties=ties) for _ in range(tags)]
  labels, scores = zip(*columns, strict=True)
  return np.stack(labels, axis=1), np.stack(scores, axis=1)


def areas(labels, scores, weights=None):
  """Average precision and ROC-AUC of one tag, a number for each weighting."""
  if weights is None:
    weights = np.ones((1, len(labels)))
  ranking = metrics.rank(np.asarray(labels, bool), np.asarray(scores))
  return metrics.areas(ranking @ np.asarray(weights, np.float64).T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [False, True])
def test_single_tag_equals_scikit_learn(ties, dtype):
  generator = np.random.default_rng(0)
  for _ in range(60):
    tracks = int(generator.integers(2, 80))
    labels, scores = draw(generator, tracks, ties=ties)
    scores = scores.astype(dtype)
    (ap,), (auc,) = areas(labels, scores)
    np.testing.assert_allclose(
      [ap, auc],
      [average_precision_score(labels, scores), roc_auc_score(labels, scores)],
      rtol=1e-12,
    )


@pytest.mark.parametrize("kind", ["integers", "floats", "booleans"])
def test_weights_equal_scikit_learn(kind):
  generator = np.random.default_rng(1)
  compared = 0
  for _ in range(15):
    tracks = int(generator.integers(5, 40))
    labels, scores = draw(generator, tracks, ties=True)
    weights = {
      "integers": generator.poisson(0.7, (8, tracks)),
      "floats": generator.exponential(size=(8, tracks))
      * (generator.random((8, tracks)) < 0.6),
      "booleans": generator.random((8, tracks)) < 0.5,
    }[kind]
    ap, auc = areas(labels, scores, weights)
    assert ap.shape == auc.shape == (8,)
    for r, weight in enumerate(weights):
      if len(np.unique(labels[weight > 0])) < 2:
        assert np.isnan([ap[r], auc[r]]).all()
        continue
      compared += 1
      # Of tracks without weight scikit-learn still asks both labels.
      some = weight > 0
      arguments = (labels[some], scores[some])
      expected = average_precision_score(*arguments, sample_weight=weight[some])
      np.testing.assert_allclose(ap[r], expected, rtol=1e-12)
      expected = roc_auc_score(*arguments, sample_weight=weight[some])
      np.testing.assert_allclose(auc[r], expected, rtol=1e-12)
  assert compared > 80


def test_weights_count_repetitions():
  generator = np.random.default_rng(2)
  labels, scores = draw(generator, 50, ties=True)
  weights = generator.integers(0, 4, (5, 50))
  repeated = [
    areas(np.repeat(labels, w), np.repeat(scores, w)) for w in weights
  ]
  np.testing.assert_allclose(
    areas(labels, scores, weights), np.concatenate(repeated, axis=1)
  )
  np.testing.assert_allclose(
    areas(labels, scores, 3 * np.ones((1, 50), int)), areas(labels, scores)
  )


@pytest.mark.parametrize(
  ("labels", "scores", "ap", "auc"),
  [
    ([1, 0], [2.0, 1.0], 1, 1),
    ([0, 1], [2.0, 1.0], 0.5, 0),
    ([0, 1, 0, 1], [0.0, 0.0, 0.0, 0.0], 0.5, 0.5),
    ([1, 1], [2.0, 1.0], np.nan, np.nan),
    ([0, 0], [2.0, 1.0], np.nan, np.nan),
  ],
)
def test_by_hand(labels, scores, ap, auc):
  ones = np.ones((2, len(labels)), int)
  found = areas(labels, scores, ones)
  np.testing.assert_equal(found, ([ap, ap], [auc, auc]))


def test_long_sums_stay_exact():
  # 2^24 + 1 is where float32 stops counting.
  labels = np.tile([True, False], 1000)
  scores = np.arange(2000)[::-1].astype(np.float32)
  weights = np.full((1, 2000), 2**40 + 1)
  np.testing.assert_allclose(
    areas(labels, scores, weights)[0],
    average_precision_score(labels, scores),
    rtol=1e-12,
  )


@pytest.mark.parametrize("tracks", [6, 200])
def test_scores_equal_scikit_learn(tracks):
  labels, scores = tagger(np.random.default_rng(3), tracks, 7)
  tags = [f"genre---{t}" for t in range(7)]
  result = metrics.scores(labels.astype(int), scores, tags)
  for average in ("macro", "micro"):
    np.testing.assert_allclose(
      [result[f"map_{average}"], result[f"roc_auc_{average}"]],
      [
        average_precision_score(labels, scores, average=average),
        roc_auc_score(labels, scores, average=average),
      ],
      rtol=1e-12,
    )
  assert list(result["per_tag"]) == tags
  assert result["per_tag"][tags[3]] == {
    "ap": areas(labels[:, 3], scores[:, 3])[0][0],
    "roc_auc": areas(labels[:, 3], scores[:, 3])[1][0],
    "positives": labels[:, 3].sum(),
  }
  assert result["left_out"] == []
  assert result["tracks"] == tracks
  assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_tags_without_both_kinds_are_left_out_everywhere():
  labels, scores = tagger(np.random.default_rng(4), 30, 4)
  labels[:, 1], labels[:, 3] = False, True
  result = metrics.scores(labels, scores, ["a", "b", "c", "d"])
  assert result["left_out"] == ["b", "d"]
  kept = metrics.scores(labels[:, ::2], scores[:, ::2], ["a", "c"])
  assert result == {**kept, "left_out": ["b", "d"]}


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: metrics.scores([[0], [1]], [[1.0]], ["a"]), "must both be"),
    (lambda: metrics.scores([[0], [2]], [[1.0], [2.0]], ["a"]), "0 or 1"),
    (lambda: metrics.scores([[0], [1]], [[1.0], [np.nan]], ["a"]), "finite"),
    (lambda: metrics.scores([[1], [1]], [[1.0], [2.0]], ["a"]), "nothing"),
    (lambda: metrics.scores([[1], [0]], [[1.0], [2.0]], "ab"), "names"),
  ],
)
def test_bad_input_is_told(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_micro_groups_pairs_of_a_track():
  # Pairs that share a track and a score add up in one place.
  labels, scores = tagger(np.random.default_rng(9), 25, 4)
  owners = np.repeat(np.arange(25), 4)
  ranking = metrics.rank(labels.ravel(), scores.ravel(), owners)
  counts = np.random.default_rng(10).poisson(1.0, (25, 6))
  ap, auc = metrics.areas(ranking @ counts.astype(float))
  for r in range(6):
    pairs = labels.ravel(), scores.ravel()
    weight = np.repeat(counts[:, r], 4)
    np.testing.assert_allclose(
      [ap[r], auc[r]],
      [
        average_precision_score(*pairs, sample_weight=weight),
        roc_auc_score(*pairs, sample_weight=weight),
      ],
      rtol=1e-12,
    )
