import numpy as np
import pytest
from scipy import integrate
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from ssl_music import bootstrap, metrics


def tagger(generator, tracks, tags):
  """Labels of both kinds and scores with many ties."""
  labels = generator.random((tracks, tags)) < generator.uniform(0.1, 0.9, tags)
  labels[:2] = [[True], [False]]
  scores = np.round(2 * generator.normal(size=(tracks, tags)) + labels)
  return labels, scores


def by_scikit_learn(labels, scores):
  kept = labels.any(axis=0) & ~labels.all(axis=0)
  return [
    function(labels[:, kept], scores[:, kept], average=average)
    for average in ("macro", "micro")
    for function in (average_precision_score, roc_auc_score)
  ]


@pytest.mark.parametrize("block", [3, 1000])
def test_every_resample_equals_scikit_learn(block, monkeypatch):
  monkeypatch.setattr(bootstrap, "_BLOCK", block)
  monkeypatch.setattr(bootstrap, "_WEIGHTS", 60)  # two or five at a time
  labels, scores = tagger(np.random.default_rng(5), 12, 4)
  labels[:, 0] = np.arange(12) == 3  # often missing from a resample
  result = bootstrap.bootstrap(labels, scores, resamples=20, seed=7)
  assert tuple(result) == metrics.METRICS
  generator = np.random.default_rng(7)
  missing = 0
  for r in range(20):
    chosen = generator.integers(12, size=12)
    missing += not labels[chosen, 0].any()
    np.testing.assert_allclose(
      [samples[r] for samples in result.values()],
      by_scikit_learn(labels[chosen], scores[chosen]),
      rtol=1e-12,
    )
  assert 3 < missing < 17
  # The first do not depend on how many there are.
  fewer = bootstrap.bootstrap(labels, scores, resamples=10, seed=7)
  for name, samples in fewer.items():
    np.testing.assert_allclose(samples, result[name][:10], rtol=1e-14)


def test_several_taggers_have_the_same_draws():
  labels, _ = tagger(np.random.default_rng(0), 30, 4)
  scores = np.random.default_rng(1).normal(size=(3, 30, 4))
  together = bootstrap.bootstrap(labels, scores, resamples=6)
  for index, one in enumerate(scores):
    alone = bootstrap.bootstrap(labels, one, resamples=6)
    for name, samples in alone.items():
      np.testing.assert_array_equal(together[name][index], samples)
  macro = bootstrap.bootstrap(labels, scores, resamples=6, micro=False)
  assert list(macro) == ["map_macro", "roc_auc_macro"]
  np.testing.assert_array_equal(macro["map_macro"], together["map_macro"])


def test_tags_without_both_kinds_leave_no_trace():
  labels, scores = tagger(np.random.default_rng(4), 30, 4)
  labels[:, 1], labels[:, 3] = False, True
  whole = bootstrap.bootstrap(labels, scores, resamples=5)
  part = bootstrap.bootstrap(labels[:, ::2], scores[:, ::2], resamples=5)
  np.testing.assert_equal(whole, part)


def test_hopelessly_few_tracks_are_nan_at_times():
  labels, scores = np.array([[1], [0]]), np.array([[1.0], [0.0]])
  result = bootstrap.bootstrap(labels, scores, resamples=50)
  for samples in result.values():
    assert 10 < np.isnan(samples).sum() < 40
    assert bootstrap.interval(samples) == (1.0, 1.0)
    assert bootstrap.interval(samples, 1.0) == (1.0, 1.0)


def test_resamples_spread_as_independent_test_sets_do():
  generator = np.random.default_rng(6)
  labels = np.arange(400)[:, None] < 200
  sets = [generator.normal(size=(400, 1)) + labels for _ in range(200)]
  spread = np.std([roc_auc_score(labels[:, 0], s[:, 0]) for s in sets])
  result = bootstrap.bootstrap(labels, sets[0], resamples=200)
  assert 0.8 < result["roc_auc_macro"].std() / spread < 1.25


def test_percentile_interval_holds_the_stated_share():
  samples = np.random.default_rng(8).permutation(np.arange(1001.0))
  np.testing.assert_allclose(bootstrap.interval(samples), (25, 975))
  np.testing.assert_allclose(bootstrap.interval(samples, level=0.5), (250, 750))
  some = np.append(samples, np.nan)
  np.testing.assert_allclose(bootstrap.interval(some), (25, 975))


def test_corrected_interval():
  samples = np.linspace(0.4, 0.5, 1001)
  # Where samples show no bias the ends stay.
  np.testing.assert_allclose(
    bootstrap.interval(samples, 0.45), (0.4025, 0.4975)
  )
  # The samples lie 0.02 higher than the estimate; that lies 0.03 too high.
  low, high = bootstrap.interval(samples, 0.43)
  np.testing.assert_allclose((low + high) / 2, 0.40)
  np.testing.assert_allclose((high - low) / 2, np.hypot(0.0475, 0.03))
  assert bootstrap.interval(samples / 5, 0.04)[0] == 0.0
  both = dict.fromkeys(metrics.METRICS, samples)
  estimates = dict.fromkeys(metrics.METRICS, 0.43)
  ends = bootstrap.intervals(both, estimates)
  assert ends["map_macro"] == ends["map_micro"] == [low, high]
  np.testing.assert_allclose(ends["roc_auc_macro"], (0.4025, 0.4975))


def test_intervals_hold_the_truth():
  """Gaussian scores, whose area over the whole population is an integral."""
  generator = np.random.default_rng(0)
  prevalence = np.array([0.04, 0.06, 0.1, 0.15, 0.2])
  separation = np.array([0.5, 2.0, 1.0, 1.5, 1.0])

  def area(p, d):
    def found(x):
      hits = p * norm.sf(x - d)
      return norm.pdf(x - d) * hits / (hits + (1 - p) * norm.sf(x))

    return integrate.quad(found, -9, 9)[0]

  truth = {
    "map_macro": np.mean(list(map(area, prevalence, separation))),
    "roc_auc_macro": norm.cdf(separation / np.sqrt(2)).mean(),
  }
  inside = {name: [] for name in [*truth, "percentile"]}
  for seed in range(120):
    labels = generator.random((300, 5)) < prevalence
    scores = generator.normal(size=(300, 5)) + separation * labels
    samples = bootstrap.bootstrap(
      labels, scores, resamples=200, seed=seed, micro=False
    )
    ends = bootstrap.intervals(samples, metrics.scores(labels, scores, "abcde"))
    ends["percentile"] = bootstrap.interval(samples["map_macro"])
    for name, (low, high) in ends.items():
      right = truth[name if name in truth else "map_macro"]
      inside[name].append(low <= right <= high)
  # 95 % of 120 are 114 ± 2.4: as few as 106 come by chance once in a thousand.
  assert np.sum(inside["map_macro"]) >= 106
  assert np.sum(inside["roc_auc_macro"]) >= 106
  # Without a correction average precision is held to be better than it is.
  assert np.sum(inside["percentile"]) < 106


def test_compare():
  first = np.array([0.5, 0.6, 0.7, np.nan, 0.8])
  second = np.array([0.4, 0.6, 0.8, 0.9, 0.6])
  result = bootstrap.compare(first, second)
  np.testing.assert_allclose(result["difference"], 0.05)
  assert result["probability"] == 2.5 / 4
  other = bootstrap.compare(second, first)
  assert other["difference"] == -result["difference"]
  assert other["probability"] == 1.5 / 4
  np.testing.assert_allclose(other["interval"], -np.flip(result["interval"]))
  assert result["interval"][0] < 0 < result["interval"][1]
  same = bootstrap.compare(first, first)
  assert same == {
    "difference": 0.0,
    "interval": [0.0, 0.0],
    "probability": 0.5,
  }


def test_pairing_tells_apart_what_two_intervals_do_not():
  generator = np.random.default_rng(3)
  labels = generator.random((300, 4)) < 0.2
  noise = generator.normal(size=(300, 4))
  scores = np.stack([noise + 1.3 * labels, noise + labels])
  samples = bootstrap.bootstrap(labels, scores, resamples=200, micro=False)
  better, worse = samples["map_macro"]
  assert bootstrap.interval(better)[0] < bootstrap.interval(worse)[1]
  result = bootstrap.compare(better, worse)
  assert result["interval"][0] > 0
  assert result["probability"] > 0.99


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: bootstrap.bootstrap([[1], [1]], [[1.0], [2.0]]), "nothing"),
    (lambda: bootstrap.bootstrap([[1], [0]], [[[1.0]]]), "must both be"),
    (lambda: bootstrap.bootstrap([[1]], np.ones((0, 1, 1))), "no tagger"),
    (
      lambda: bootstrap.bootstrap([[1], [0]], [[1.0], [2.0]], resamples=0),
      "resamples",
    ),
    (lambda: bootstrap.interval([np.nan]), "no resample"),
    (lambda: bootstrap.interval([0.5], level=95), "level"),
    (lambda: bootstrap.compare([0.5], [0.5, 0.6]), "same draws"),
    (lambda: bootstrap.compare([np.nan], [0.5]), "no resample"),
  ],
)
def test_bad_input_is_told(call, message):
  with pytest.raises(ValueError, match=message):
    call()
