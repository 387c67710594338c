"""Tagging scores: mean average precision, ROC-AUC and their bootstrap.

The definitions are scikit-learn's (`average_precision_score`, `roc_auc_score`),
ties and sample weights included. They are written anew because a bootstrap
needs them for thousands of weightings of one ranking: here a tag is sorted
once and every resample after that costs two gathers and two running sums.

Both areas need the ranking only at its *thresholds*, the distinct scores of
positive tracks. At each, going down the ranking,

  found   = weight of the positives that have exactly this score,
  hits    = weight of the positives with this score or a higher one,
  above   = weight of the negatives with a higher score,
  through = weight of the negatives with this score or a higher one,

  average precision = Σ found · hits / (hits + through) / positives,
  ROC-AUC = Σ found · (negatives − (above + through) / 2)
            / (positives · negatives),

the second being the Mann-Whitney statistic, where a tie counts one half.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

METRICS = ("map_macro", "roc_auc_macro", "map_micro", "roc_auc_micro")

# A block of resamples holds so many multiplicities (1 MiB): large enough to
# hide Python's overhead, small enough for its gathers to stay in the cache.
_BLOCK_ELEMENTS = 2**18


class _Ranking(NamedTuple):
  """What sorting says about one ranking, whatever the weights.

  Attributes:
    positives: [P] indices of the positive items, best score first.
    negatives: [M] indices of the negative items, best score first.
    last: [G] for each threshold, the place in `positives` of its last item.
    above: [G] how many negatives score higher than the threshold.
    through: [G] how many negatives score as high as it or higher.
  """

  positives: np.ndarray
  negatives: np.ndarray
  last: np.ndarray
  above: np.ndarray
  through: np.ndarray


def _rank(labels: np.ndarray, scores: np.ndarray) -> _Ranking:
  """Sorts items with `labels` [N] bool by `scores` [N]."""
  order = np.argsort(scores)[::-1]
  positives, negatives = order[labels[order]], order[~labels[order]]
  hits = scores[positives]
  last = np.flatnonzero(np.append(hits[1:] != hits[:-1], True)[: len(hits)])
  ascending = scores[negatives][::-1]
  count = len(negatives)
  above = count - np.searchsorted(ascending, hits[last], side="right")
  through = count - np.searchsorted(ascending, hits[last], side="left")
  return _Ranking(positives, negatives, last, above, through)


def _running_sum(weights: np.ndarray, order: np.ndarray) -> np.ndarray:
  """[R, N] weights -> [R, len(order) + 1] sums of the first 0, 1, … items.

  The sum keeps the type of the weights: integers stay exact, and are twice as
  fast at 32 bits, for which the caller makes sure that the total fits.
  """
  sums = np.zeros((len(weights), len(order) + 1), weights.dtype)
  np.cumsum(
    np.take(weights, order, axis=1),
    axis=1,
    dtype=weights.dtype,
    out=sums[:, 1:],
  )
  return sums


def _areas(
  ranking: _Ranking, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Average precision [R] and ROC-AUC [R] for weights [R, N]; NaN if void."""
  # Only [R, G] numbers are left after the running sums: those go to float64.
  hit_sums = _running_sum(weights, ranking.positives)
  hits = hit_sums[:, ranking.last + 1].astype(np.float64)
  positives = hit_sums[:, -1].astype(np.float64)
  false_sums = _running_sum(weights, ranking.negatives)
  above = false_sums[:, ranking.above].astype(np.float64)
  through = false_sums[:, ranking.through].astype(np.float64)
  negatives = false_sums[:, -1].astype(np.float64)

  found = np.diff(hits, axis=1, prepend=0.0)
  retrieved = hits + through
  # Nothing retrieved means nothing found: any precision will do there.
  precision = np.divide(
    hits, retrieved, out=np.zeros_like(hits), where=retrieved > 0
  )
  below = negatives[:, None] - (above + through) / 2
  defined = (positives > 0) & (negatives > 0)
  with np.errstate(divide="ignore", invalid="ignore"):
    ap = np.sum(found * precision, axis=1) / positives
    auc = np.sum(found * below, axis=1) / (positives * negatives)
  return np.where(defined, ap, np.nan), np.where(defined, auc, np.nan)


def _checked(labels: Any, scores: Any, axes: str) -> tuple[np.ndarray, ...]:
  """Labels as booleans and scores as floats, both with the named axes."""
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


def _weighted_areas(labels: Any, scores: Any, weights: Any) -> tuple[Any, Any]:
  labels, scores = _checked(labels, scores, "N")
  ranking = _rank(labels, scores)
  if weights is None:
    ap, auc = _areas(ranking, np.ones((1, len(labels)), np.int64))
    return float(ap[0]), float(auc[0])
  weights = np.asarray(weights)
  if weights.ndim != 2 or weights.shape[1] != len(labels):
    raise ValueError(f"weights must be [R, {len(labels)}], not {weights.shape}")
  if not (np.isfinite(weights).all() and (weights >= 0).all()):
    raise ValueError("weights must be finite and not negative")
  exact = np.issubdtype(weights.dtype, np.integer) or weights.dtype == bool
  return _areas(ranking, weights.astype(np.int64 if exact else np.float64))


def average_precision(
  labels: Any, scores: Any, weights: Any = None
) -> float | np.ndarray:
  """Area under the precision-recall steps of one tag, not interpolated.

  Equals scikit-learn's `average_precision_score`: tracks with equal scores
  are retrieved together.

  Args:
    labels: [N] whether a track has the tag, 0 or 1.
    scores: [N] finite; higher means more likely.
    weights: None, or [R, N] weights ≥ 0 of the tracks, a row for each of R
      weightings (the multiplicities of a bootstrap).

  Returns:
    A float in (0, 1] without weights, else [R] float64; NaN where no positive
    or no negative has any weight.

  Raises:
    ValueError: if shapes differ, labels are not 0 or 1, scores are not finite
      or weights are negative.
  """
  return _weighted_areas(labels, scores, weights)[0]


def roc_auc(
  labels: Any, scores: Any, weights: Any = None
) -> float | np.ndarray:
  """Chance that a positive track outscores a negative one, ties one half.

  Equals scikit-learn's `roc_auc_score`.

  Args:
    labels: [N] whether a track has the tag, 0 or 1.
    scores: [N] finite; higher means more likely.
    weights: None, or [R, N] weights ≥ 0 of the tracks, a row for each of R
      weightings (the multiplicities of a bootstrap).

  Returns:
    A float in [0, 1] without weights, else [R] float64; NaN where no positive
    or no negative has any weight.

  Raises:
    ValueError: as `average_precision`.
  """
  return _weighted_areas(labels, scores, weights)[1]


def _decidable(labels: np.ndarray) -> np.ndarray:
  """[N, T] bool -> [T] bool: tags with a positive and a negative track."""
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
  labels, scores = _checked(labels, scores, "NT")
  if len(tags) != labels.shape[1] or len(set(tags)) != len(tags):
    raise ValueError(
      f"{labels.shape[1]} tags need as many different names, got {len(tags)} "
      f"of which {len(set(tags))} differ"
    )
  kept = _decidable(labels)
  per_tag = {}
  for t in np.flatnonzero(kept):
    ap, auc = _weighted_areas(labels[:, t], scores[:, t], None)
    positives = int(labels[:, t].sum())
    per_tag[tags[t]] = {"ap": ap, "roc_auc": auc, "positives": positives}
  micro = _weighted_areas(
    labels[:, kept].ravel(), scores[:, kept].ravel(), None
  )
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


def _micro_areas(
  whole: _Ranking, counts: np.ndarray, defined: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Micro scores of R resamples, one at a time to bound the memory.

  Args:
    whole: the ranking of all N·T pairs of track and tag, row by row.
    counts: [R, N] how often each resample drew each track.
    defined: [R, T] which tags have a score in which resample.

  Returns:
    Average precision [R] and ROC-AUC [R].
  """
  tags = defined.shape[1]
  # A pair's weight is its track's: gathering from the N counts, which fit the
  # cache, is faster than laying out N·T weights.
  by_track = whole._replace(
    positives=whole.positives // tags, negatives=whole.negatives // tags
  )
  areas = []
  for count, kept in zip(counts, defined, strict=True):
    if kept.all():
      areas.append(_areas(by_track, count[None]))
    else:
      areas.append(_areas(whole, (count[:, None] * kept).reshape(1, -1)))
  return tuple(np.concatenate(area) for area in zip(*areas, strict=True))


def bootstrap(
  labels: Any, scores: Any, *, resamples: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
  """Scores of `resamples` draws of N tracks out of N, with replacement.

  Each resample is scored as `scores` would score it: tags that lost all their
  positives or all their negatives in the draw are left out of that resample's
  macro and micro. Tracks are the unit, so the spread says what another test
  set of the same kind might give; it does not hold the spread over training
  seeds. As a draw repeats positives, which then share a rank, its average
  precision lies on average a little above that of the tracks themselves. The
  first resamples do not depend on how many there are.

  Args:
    labels: [N, T] 0 or 1: N tracks, T tags.
    scores: [N, T] finite; higher means more likely.
    resamples: R ≥ 1, how many draws.
    seed: of the draws; equal seeds and N draw the same tracks, so that two
      taggers scored on the same tracks may be compared draw by draw.

  Returns:
    For each name in `METRICS` an [R] float64 array; NaN for a draw in which
    no tag could be scored.

  Raises:
    ValueError: as `scores`, or if `resamples` < 1.
  """
  labels, scores = _checked(labels, scores, "NT")
  if resamples < 1:
    raise ValueError(f"resamples must be at least 1, not {resamples}")
  kept = _decidable(labels)
  labels, scores = labels[:, kept], scores[:, kept]
  tracks, tags = labels.shape
  rankings = [_rank(labels[:, t], scores[:, t]) for t in range(tags)]
  whole = _rank(labels.ravel(), scores.ravel())
  # Multiplicities sum to N (N·T in micro): exact, and fast, as small integers.
  dtype = np.int32 if labels.size < 2**31 else np.int64
  generator = np.random.default_rng(seed)

  rows = max(1, _BLOCK_ELEMENTS // tracks)
  blocks = []
  for start in range(0, resamples, rows):
    counts = np.stack(
      [
        np.bincount(generator.integers(tracks, size=tracks), minlength=tracks)
        for _ in range(min(rows, resamples - start))
      ]
    ).astype(dtype)
    areas = np.array([_areas(ranking, counts) for ranking in rankings])
    defined = ~np.isnan(areas[:, 0])  # [T, R]
    with np.errstate(invalid="ignore"):
      macro = np.nansum(areas, axis=0) / defined.sum(axis=0)  # [2, R]
    blocks.append([*macro, *_micro_areas(whole, counts, defined.T)])
  return dict(zip(METRICS, np.concatenate(blocks, axis=1), strict=True))


def interval(samples: Any, level: float = 0.95) -> tuple[float, float]:
  """The percentile interval of bootstrap samples.

  Args:
    samples: [R] scores of resamples; NaN (nothing to score) is passed over.
    level: the share of the samples inside, in (0, 1).

  Returns:
    The lower and the upper end.

  Raises:
    ValueError: if `level` is out of range or no sample is defined.
  """
  samples = np.asarray(samples, dtype=np.float64)
  samples = samples[~np.isnan(samples)]
  if not 0 < level < 1:
    raise ValueError(f"level must lie in (0, 1), not {level}")
  if not len(samples):
    raise ValueError("no resample has a defined score")
  outside = (1 - level) / 2
  low, high = np.quantile(samples, [outside, 1 - outside])
  return float(low), float(high)
