"""Whether a run has collapsed, judged by the entries of its log."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Sign(NamedTuple):
  """Something that a healthy run's entries never show.

  Attributes:
    metric: the entry's field.
    above: whether the field is too large, instead of too small.
    limit: beyond it, the sign holds.
    meaning: what it says of the run.
  """

  metric: str
  above: bool
  limit: float
  meaning: str


# Measured on the demo music with 48 pairs at a rate of 2e-3, the first step
# included: all tasks in 150 steps with a perceptron with batch norm in the
# ResNet's place (BYOL and clustering with two seeds, the rest with one), and
# contrastive and BYOL in 60 steps with a small ResNet. "Healthy" are the tasks
# as configured, "collapsed" those without what holds them up, and without a
# teacher's momentum (with the perceptron only). The limits lie near collapsed
# values: a warning that comes late costs less than one that is wrong.

# Healthy 0.49 at most (ResNet) and 0.31 (perceptron); BYOL without its
# predictor 0.997 after 40 steps and 0.999 at last.
_COSINE = 0.99
# Healthy 0.66 at least (ResNet) and 0.82; the same BYOL 0.025. Zeros show here
# alone: they have no cosine.
_STD = 0.05
# Healthy 4.4 at least, of 96 vectors (BYOL, ResNet; contrastive 31), and 18; on
# one line 1. This is the narrowest margin. Vectors that nearly coincide keep
# more, 2.5, from what still differs.
_RANK = 2.0
# Healthy 0.60 to 0.80; without centre 0.13 after 20 steps, 0 after 40. At 0.2,
# targets use 2 of 32 clusters, or 5 of 4096.
_MEAN_ENTROPY = 0.2
# Healthy 0.04 to 0.25; at a teacher's temperature of 1, 0.997 after 20 steps.
_ENTROPY = 0.99
# On real music, 200 steps of the published form: 0.11 to 0.17 at last at rates
# of 2e-3 and 5e-4; at 5e-3, where the embedding's rank fell to 2 and its score
# to half of an untrained network's, 0.035 from step 150 on. With Sinkhorn and
# cosine prototypes 0.11 at least in 400 steps. A uniform teacher 0.002, a
# single cluster 0.
_KL = 0.05

PROJECTIONS = (
  Sign(
    "projection_cosine", True, _COSINE, "all projections point the same way"
  ),
  Sign("projection_std", False, _STD, "all projections coincide"),
  Sign("projection_rank", False, _RANK, "all projections lie on one line"),
)
TARGETS = (
  Sign(
    "teacher_mean_entropy",
    False,
    _MEAN_ENTROPY,
    "all targets are the same few clusters",
  ),
  Sign("teacher_entropy", True, _ENTROPY, "the targets are uniform"),
  Sign("teacher_kl", False, _KL, "the targets do not depend on the input"),
)
# Tasks that projections say nothing about. What all logits share is no sign:
# the centre takes it from the targets, and rare tags ask for it. (Clustering
# whose targets stayed sound had a rank of 1.3 in passing; in one that
# collapsed, the cosine stayed at 0.92 and the rank at 14.)
_OTHERS = {"clustering": TARGETS, "supervised": ()}
# No sign is taken from embeddings: an untrained network's may be all alike, and
# those below collapsed projections kept their rank (35 of 96). Nor is one taken
# from lengths: where a loss rewards short vectors, as VICReg's invariance does
# on its own, these shrink long before they point the same way (0.965 after 150
# steps), and no sign shows.

_LEARNING_RATE = "lower --config.optimizer.learning_rate"
_ADVICE = {
  "contrastive": f"{_LEARNING_RATE} or lengthen the warm-up",
  "byol": f"{_LEARNING_RATE}, or keep the predictor and raise"
  " --config.pretext.momentum",
  "barlow_twins": f"{_LEARNING_RATE} or raise --config.pretext.off_diagonal",
  "vicreg": f"{_LEARNING_RATE} or raise --config.pretext.variance and"
  " --config.pretext.covariance",
  "clustering": f"{_LEARNING_RATE} or raise --config.pretext.momentum",
}
_ADVICE_ON = {
  "teacher_mean_entropy": "raise --config.pretext.mean_entropy, set"
  " --config.pretext.targets=sinkhorn, or lower"
  " --config.optimizer.learning_rate",
  "teacher_entropy": "lower --config.pretext.teacher_temperature and"
  " --config.pretext.final_teacher_temperature",
}


def signs(entry: Mapping[str, float], task: str) -> list[Sign]:
  """Returns the signs of collapse that an entry shows.

  Args:
    entry: of metrics.jsonl, with the fields of `diagnostics.describe` and, for
      clustering, "teacher_mean_entropy", "teacher_entropy" and "teacher_kl" in
      [0, 1]; a field that is missing or not a number is no sign.
    task: the pretext task's name. "clustering" is judged by its targets,
      "supervised" not at all, any other by its projections.
  """
  return [
    sign
    for sign in _OTHERS.get(task, PROJECTIONS)
    if sign.metric in entry and _holds(sign, entry)
  ]


def watch(
  entries: Sequence[Mapping[str, float]],
  *,
  task: str,
  warmup: int = 0,
  patience: int = 3,
) -> str | None:
  """Says whether a run has collapsed.

  It has when the same sign holds in each of the last `patience` entries that
  have its field.

  Args:
    entries: of metrics.jsonl so far, in order of their "step"; see `signs`.
    task: the pretext task's name.
    warmup: entries up to this step do not count.
    patience: entries, at least 1.

  Returns:
    One sentence with the sign, its value now, the step since which it holds
    without a break, and what to try; None if the run has not collapsed.
  """
  counted = [entry for entry in entries if entry["step"] > warmup]
  for sign in _OTHERS.get(task, PROJECTIONS):
    since, held, value = None, 0, None
    for entry in reversed([e for e in counted if sign.metric in e]):
      if sign not in signs(entry, task):
        break
      since, held = entry["step"], held + 1
      value = entry[sign.metric] if value is None else value
    if held >= patience:
      advice = _ADVICE_ON.get(sign.metric) or _ADVICE.get(task, _LEARNING_RATE)
      return (
        f"collapsed since step {since}: {sign.meaning} ({sign.metric}"
        f" {value:.4g}): {advice}"
      )
  return None


def _holds(sign: Sign, entry: Mapping[str, float]) -> bool:
  value = entry[sign.metric]
  return value > sign.limit if sign.above else value < sign.limit
