"""Measures the bootstrap: how often its intervals hold the truth, and its time.

Taggers are simulated whose scores for the whole population are known: a tag is
had where a latent Gaussian passes a threshold, its score is a Gaussian too,
higher by a separation where the tag is had, and both are correlated over tags.
Of each simulated test set the intervals of all metrics are asked whether they
hold the population's score of the tags that can be scored, and the interval of
the difference to a second tagger, slightly better at every tag, whether it
holds theirs. A figure of S simulations is uncertain by
± 2 · sqrt(0.05 · 0.95 / S).

  python -m benchmarks.bootstrap --simulations=300
"""

import time

import numpy as np
from absl import app, flags
from scipy.special import ndtr, ndtri

from ssl_music import bootstrap, metrics

_SIMULATIONS = flags.DEFINE_integer("simulations", 300, "Test sets of a size.")
_RESAMPLES = flags.DEFINE_integer("resamples", 1000, "Draws of a test set.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed runs; the best is printed.")
_SIZES = flags.DEFINE_list(
  "sizes", ["300x10", "300x50", "1000x20", "4000x20"], "Tracks x tags."
)
_PREVALENCE = flags.DEFINE_list(
  "prevalence", ["0.01", "0.2"], "Of the rarest and of the commonest tag."
)

CORRELATION = 0.3  # of the latent Gaussians of two tags
BETTER = 0.2  # how much further the second tagger separates a tag
TIMED = {"MagnaTagATune": (4332, 50), "MTG-Jamendo top50": (11356, 50)}


def area(prevalence, separation, offset) -> tuple[float, float]:
  """The population's average precision and ROC-AUC of some tags in one ranking.

  Args:
    prevalence: [T] shares of tracks that have a tag.
    separation: [T] how much higher tracks with the tag score, in deviations.
    offset: [T] mean score of tracks without the tag.

  Returns:
    the areas under both curves, by the trapezoidal rule over thresholds.
  """
  threshold = np.linspace(-12, 12, 4001)
  x = threshold[:, None] - offset
  hits = ndtr(separation - x) @ prevalence
  false = ndtr(-x) @ (1 - prevalence)
  recall = hits / prevalence.sum()
  precision = hits / (hits + false)
  fallout = false / (1 - prevalence).sum()
  return np.trapezoid(precision, -recall), np.trapezoid(recall, -fallout)


def truth(prevalence, separation, offset) -> dict[str, float]:
  """The population's score of tags [T], by name of the metric."""
  single = [
    area(*(one[t : t + 1] for one in (prevalence, separation, offset)))
    for t in range(len(prevalence))
  ]
  whole = area(prevalence, separation, offset)
  return dict(
    zip(metrics.METRICS, [*np.mean(single, axis=0), *whole], strict=True)
  )


def latent(generator: np.random.Generator, tracks: int, tags: int):
  """Gaussians [N, T] of variance 1, correlated over tags."""
  common = generator.normal(size=(tracks, 1))
  own = generator.normal(size=(tracks, tags))
  return CORRELATION**0.5 * common + (1 - CORRELATION) ** 0.5 * own


def simulate(tracks: int, tags: int) -> None:
  """Prints how often intervals of test sets of this size hold the truth."""
  prevalence = np.geomspace(*map(float, _PREVALENCE.value), tags)
  separation = np.random.default_rng(1).uniform(0.3, 2.5, tags)
  offset = 0.5 * np.log(prevalence)
  positives = []
  inside = {
    kind: {name: [] for name in metrics.METRICS}
    for kind in ("percentile", "corrected", "difference")
  }
  for seed in range(_SIMULATIONS.value):
    # Not the generator of the draws, which has the seed alone.
    generator = np.random.default_rng((tracks, tags, seed))
    labels = latent(generator, tracks, tags) < ndtri(prevalence)
    kept = metrics.decidable(labels)
    positives.append(np.median(labels[:, kept].sum(axis=0)))
    labels, settings = (
      labels[:, kept],
      [prevalence[kept], separation[kept], offset[kept]],
    )
    noise = latent(generator, tracks, tags)[:, kept]
    first = noise + labels * settings[1] + settings[2]
    again = latent(generator, tracks, tags)[:, kept]
    second = (
      0.8 * noise + 0.6 * again + labels * (settings[1] + BETTER) + settings[2]
    )
    names = [str(tag) for tag in range(kept.sum())]
    scores = np.stack([first, second]).astype(np.float32)
    samples = bootstrap.bootstrap(
      labels, scores, resamples=_RESAMPLES.value, seed=seed
    )
    estimates = metrics.scores(labels, scores[0], names)
    one = truth(*settings)
    other = truth(settings[0], settings[1] + BETTER, settings[2])
    corrected = bootstrap.intervals(
      {name: both[0] for name, both in samples.items()}, estimates
    )
    for name, both in samples.items():
      ends = {
        "percentile": (bootstrap.interval(both[0]), one[name]),
        "corrected": (corrected[name], one[name]),
        "difference": (
          bootstrap.compare(both[1], both[0])["interval"],
          other[name] - one[name],
        ),
      }
      for kind, ((low, high), right) in ends.items():
        inside[kind][name].append(low <= right <= high)
  for kind, by_name in inside.items():
    shares = [f"{100 * np.mean(held):.1f}" for held in by_name.values()]
    few = f"{np.median(positives):g}"
    row = f"{tracks:,}", str(tags), few, kind, *shares
    print(f"| {' | '.join(row)} |", flush=True)


def measure(name: str, tracks: int, tags: int) -> None:
  """Prints the time of one core for a data set's size."""
  generator = np.random.default_rng(0)
  prevalence = np.geomspace(0.01, 0.2, tags)
  labels = generator.random((tracks, tags)) < prevalence
  scores = generator.normal(size=(tracks, tags)) + 1.5 * labels
  scores = (scores + np.log(prevalence)).astype(np.float32)
  best = {}
  for micro in (True, False):
    times = []
    for _ in range(_ROUNDS.value):
      began = time.process_time()
      bootstrap.bootstrap(
        labels, scores, resamples=_RESAMPLES.value, micro=micro
      )
      times.append(time.process_time() - began)
    best[micro] = min(times)
  print(
    f"| {name} | {tracks:,} x {tags} | {best[True]:.2f} | {best[False]:.2f} |"
  )


def main(_) -> None:
  """Prints both tables."""
  print(f"| data set | size | {_RESAMPLES.value} resamples, s | macro alone |")
  print("| --- | --- | --- | --- |")
  for name, size in TIMED.items():
    measure(name, *size)
  names = " | ".join(metrics.METRICS)
  print(f"\n| tracks | tags | positives | interval | {names} |")
  print("| --- | --- | --- | --- | --- | --- | --- | --- |")
  for size in _SIZES.value:
    simulate(*map(int, size.split("x")))


if __name__ == "__main__":
  app.run(main)
