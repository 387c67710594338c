"""Scores of a tagger's test logits, and the files that keep them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_music import arrays, bootstrap, metrics, seal
from ssl_music.metrics import METRICS


def summarise(
  labels: np.ndarray,
  logits: np.ndarray,
  tags: Sequence[str],
  *,
  resamples: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Scores test logits: means over seeds, intervals over resampled tracks.

  Args:
    labels: bool [M, T].
    logits: [seeds, M, T].
    tags: T names.
    resamples: bootstrap resamples of the test tracks.

  Returns:
    {"test": {each of `METRICS`}, "interval": {each: [low, high] at 95 %},
    "by_seed": {each: [seeds]}, "per_tag": {tag: {"ap", "roc_auc",
    "positives"}}, "left_out": [tags]}; and {each: [resamples]}, the score of
    every resample.

  Raises:
    ValueError: no tag has positives and negatives among the test tracks.
  """
  scored = [metrics.scores(labels, one, tags) for one in logits]
  mean, interval, samples = _spread(labels, logits, scored, resamples)
  per_tag = {
    tag: {
      key: float(np.mean([one["per_tag"][tag][key] for one in scored]))
      for key in ("ap", "roc_auc")
    }
    | {"positives": first["positives"]}
    for tag, first in scored[0]["per_tag"].items()
  }
  return {
    "test": mean,
    "interval": interval,
    "by_seed": {name: [one[name] for one in scored] for name in METRICS},
    "per_tag": per_tag,
    "left_out": scored[0]["left_out"],
  }, samples


def summarise_draws(
  labels: np.ndarray,
  logits: np.ndarray,
  tags: Sequence[str],
  *,
  resamples: int,
) -> dict[str, Any]:
  """Scores test logits of several draws of a share of the labels.

  Args:
    labels: bool [M, T].
    logits: [draws, seeds, M, T].
    tags: T names.
    resamples: bootstrap resamples of the test tracks.

  Returns:
    {"test", "interval"} as `summarise`, over draws and seeds, and "by_draw",
    {each of `METRICS`: [draws]}. The interval is over test tracks: the spread
    of the draws is beside it.
  """
  every = logits.reshape(-1, *logits.shape[2:])
  scored = [metrics.scores(labels, one, tags) for one in every]
  mean, interval, _ = _spread(labels, every, scored, resamples)
  draws = {
    name: np.reshape([one[name] for one in scored], logits.shape[:2])
    for name in METRICS
  }
  return {
    "test": mean,
    "interval": interval,
    "by_draw": {name: by.mean(axis=1).tolist() for name, by in draws.items()},
  }


def of_one_draw(summary: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `summarise_draws` would of the one draw of a `summarise`."""
  by_draw = {name: [value] for name, value in summary["test"].items()}
  return {key: summary[key] for key in ("test", "interval")} | {
    "by_draw": by_draw
  }


def save(
  folder: Path,
  scores: Mapping[str, Any],
  samples: Mapping[str, np.ndarray],
  predictions: Mapping[str, np.ndarray],
) -> None:
  """Leaves a tagger's results in its workdir; `scores.json` comes last.

  Args:
    folder: the workdir.
    scores: of `summarise`, and what they are of.
    samples: of `summarise`, to compare with another's draw by draw.
    predictions: "logits" [seeds, M, T], "labels" bool [M, T], "ids" [M] and
      "tags" [T].

  Raises:
    OSError: one cannot be written.
  """
  files = {"resamples.npz": samples, "predictions.npz": predictions}
  content = {name: arrays.dump(found) for name, found in files.items()}
  content["scores.json"] = json.dumps(scores, indent=2) + "\n"
  for name, one in content.items():
    seal.put(folder, name, one, "make it again in a new workdir")


def _spread(
  labels: np.ndarray, logits: np.ndarray, scored: Sequence, resamples: int
) -> tuple[dict, dict, dict]:
  """Returns means over [K, M, T], their intervals and their resamples [R]."""
  mean = {
    name: float(np.mean([one[name] for one in scored])) for name in METRICS
  }
  drawn = bootstrap.bootstrap(labels, logits, resamples=resamples)
  samples = {name: every.mean(axis=0) for name, every in drawn.items()}
  return mean, bootstrap.intervals(samples, mean), samples
