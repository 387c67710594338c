"""Tagging scores: mean average precision and ROC-AUC, for many weightings.

The definitions are scikit-learn's (`average_precision_score`, `roc_auc_score`),
ties and sample weights included. They are written anew because a bootstrap
needs them for thousands of weightings of one ranking: here a tag is sorted
once, and every weighting after that costs one pass over the tracks.

Both areas need the ranking only at its *thresholds*, the distinct scores of
positive tracks. At each, going down the ranking,

  found   = weight of the positives that have exactly this score,
  hits    = weight of the positives with this score or a higher one,
  tied    = weight of the negatives that have exactly this score,
  through = weight of the negatives with this score or a higher one,

  average precision = Σ found · hits / (hits + through) / positives,
  ROC-AUC = Σ found · (negatives − through + tied / 2)
            / (positives · negatives),

the second being the Mann-Whitney statistic, where a tie counts one half.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

METRICS = ("map_macro", "roc_auc_macro", "map_micro", "roc_auc_micro")


def rank(
  labels: np.ndarray, scores: np.ndarray, owners: np.ndarray | None = None
) -> scipy.sparse.csr_array:
  """Sorts items into the groups whose weights both areas are made of.

  Args:
    labels: [N] bool.
    scores: [N] finite.
    owners: None, or [N] int: the column of each item, where several share a
      weight (in a micro score, the tags of a track).

  Returns:
    A [3·G + 1, columns] matrix of zeros and ones for G thresholds, best first:
    G rows say which positives have a threshold's score; G + 1 rows which
    negatives reach this threshold first, the last row those that reach none; G
    rows which negatives have exactly a threshold's score. Its product with
    weights [columns, R] is what `areas` takes.
  """
  thresholds = np.unique(scores[labels])
  count = len(thresholds)
  if owners is None:
    owners = np.arange(len(labels))
  positives, negatives = np.flatnonzero(labels), np.flatnonzero(~labels)
  found = count - 1 - np.searchsorted(thresholds, scores[positives])
  reached = np.searchsorted(thresholds, scores[negatives], side="right")
  tied = reached > np.searchsorted(thresholds, scores[negatives], side="left")
  passed = count - reached
  rows = np.concatenate([found, count + passed, 2 * count + 1 + passed[tied]])
  columns = owners[np.concatenate([positives, negatives, negatives[tied]])]
  # int8 takes on the type of whatever weights it is multiplied with.
  ones = np.ones(len(rows), np.int8)
  shape = (3 * count + 1, int(owners.max()) + 1)
  # A pair of the same row and column counts twice, as it should.
  return scipy.sparse.csr_array((ones, (rows, columns)), shape=shape)


def _running_sums(rows: np.ndarray) -> np.ndarray:
  """Returns sums [G, R] of the first 1, 2, … G rows."""
  sums = rows.copy()
  # Row by row is several times faster than `np.cumsum` down the columns.
  for above, row in itertools.pairwise(sums):
    row += above
  return sums


def areas(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Average precision and ROC-AUC from the weights of a ranking's groups.

  Args:
    groups: [3·G + 1, R] float64, of `rank`; whole numbers stay exact.

  Returns:
    Average precision [R] and ROC-AUC [R], float64; NaN where no positive or no
    negative has any weight.
  """
  count = len(groups) // 3
  found, passed, tied = np.split(groups, [count, 2 * count + 1])
  positives, negatives = found.sum(axis=0), passed.sum(axis=0)
  hits = _running_sums(found)
  through = _running_sums(passed[:-1])
  retrieved = hits + through
  # Nothing retrieved means nothing found: any precision will do there.
  retrieved[retrieved == 0] = 1.0
  precision = np.divide(hits, retrieved, out=hits)
  below = np.subtract(negatives, through, out=through)
  below += tied / 2
  defined = (positives > 0) & (negatives > 0)
  with np.errstate(divide="ignore", invalid="ignore"):
    ap = np.einsum("gr,gr->r", found, precision) / positives
    auc = np.einsum("gr,gr->r", found, below) / (positives * negatives)
  return np.where(defined, ap, np.nan), np.where(defined, auc, np.nan)


def checked(labels: Any, scores: Any, axes: str) -> tuple[np.ndarray, ...]:
  """Returns labels as booleans and scores as floats, both with these axes."""
  labels, scores = np.asarray(labels), np.asarray(scores)
  if labels.ndim != len(axes) or labels.shape != scores.shape:
    raise ValueError(
      f"labels and scores must both be [{', '.join(axes)}], "
      f"not {labels.shape} and {scores.shape}"
    )
  if not np.isin(labels, (0, 1)).all():
    raise ValueError("labels must be 0 or 1")
  if not np.isfinite(scores).all():
    raise ValueError("scores must be finite")
  return labels.astype(bool), scores


def _unweighted(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
  """Average precision and ROC-AUC of one ranking, each item once."""
  ap, auc = areas(rank(labels, scores) @ np.ones((len(labels), 1)))
  return float(ap[0]), float(auc[0])


def decidable(labels: np.ndarray) -> np.ndarray:
  """Returns [T] bool: which tags of [N, T] have a positive and a negative."""
  kept = labels.any(axis=0) & ~labels.all(axis=0)
  if not kept.any():
    raise ValueError(
      f"none of the {labels.shape[1]} tags has both a positive and a negative "
      f"among these {len(labels)} tracks, so there is nothing to score"
    )
  return kept


def scores(labels: Any, scores: Any, tags: Sequence[str]) -> dict[str, Any]:
  """Macro and micro mean average precision and ROC-AUC of a tagger.

  Macro is the mean over tags of each tag's score; micro pools all pairs of
  track and tag into one ranking (scikit-learn's `average="macro"`, `"micro"`).
  A tag without a positive or without a negative among these tracks has no
  defined score: it is left out of macro and micro alike, and named.

  Args:
    labels: [N, T] 0 or 1: N tracks, T tags.
    scores: [N, T] finite; higher means more likely, comparable across tags
      for micro to mean anything (probabilities or logits).
    tags: the T names, in the order of the columns.

  Returns:
    A dict of plain Python values, ready for JSON: the four of `METRICS` as
    floats; `"per_tag"`, for each scored tag `{"ap", "roc_auc", "positives"}`;
    `"left_out"`, the tags that were not scored; `"tracks"`, N.

  Raises:
    ValueError: if shapes, labels or scores are wrong, names are missing or
      repeated, or no tag can be scored.
  """
  labels, scores = checked(labels, scores, "NT")
  if len(tags) != labels.shape[1] or len(set(tags)) != len(tags):
    raise ValueError(
      f"{labels.shape[1]} tags need as many different names, got {len(tags)} "
      f"of which {len(set(tags))} differ"
    )
  kept = decidable(labels)
  per_tag = {}
  for t in np.flatnonzero(kept):
    ap, auc = _unweighted(labels[:, t], scores[:, t])
    positives = int(labels[:, t].sum())
    per_tag[tags[t]] = {"ap": ap, "roc_auc": auc, "positives": positives}
  micro = _unweighted(labels[:, kept].ravel(), scores[:, kept].ravel())
  return {
    "map_macro": float(np.mean([tag["ap"] for tag in per_tag.values()])),
    "roc_auc_macro": float(
      np.mean([tag["roc_auc"] for tag in per_tag.values()])
    ),
    "map_micro": micro[0],
    "roc_auc_micro": micro[1],
    "per_tag": per_tag,
    "left_out": [tags[t] for t in np.flatnonzero(~kept)],
    "tracks": len(labels),
  }
