"""What a pretext task says of itself."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
  """The values that a field may have.

  Attributes:
    span: in words, after "give".
    holds: whether a value is one of them.
  """

  span: str
  holds: Callable[[Any], bool]


POSITIVE = Range("a finite number above 0", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = Range(
  "a finite number of 0 or more", lambda value: 0 <= value < math.inf
)
SHARE = Range("0 to 1", lambda value: 0 <= value <= 1)
SIZES = Range("sizes of 1 or more", lambda sizes: all(x > 0 for x in sizes))


def one_of(*values: Any) -> Range:
  """Returns the range of these values."""
  return Range(" or ".join(map(str, values)), lambda value: value in values)


class Sign(NamedTuple):
  """Something that the log entries of a healthy run never show.

  Attributes:
    metric: the entry's field.
    above: whether the field is too large, instead of too small.
    limit: beyond it, the sign holds.
    meaning: what it says of the run.
    advice: what to try; "" is the task's.
  """

  metric: str
  above: bool
  limit: float
  meaning: str
  advice: str = ""


# Measured on the demo music with 48 pairs at a rate of 2e-3, the first step
# included: the paper's five tasks in 150 steps with a perceptron with batch
# norm in the ResNet's place (BYOL and clustering with two seeds, the rest with
# one), and contrastive and BYOL in 60 steps with a small ResNet. "Healthy" are
# the tasks as configured, "collapsed" those without what holds them up, and
# without a teacher's momentum (with the perceptron only). The limits lie near
# collapsed values: a warning that comes late costs less than one that is wrong.
#
# Cosine: healthy 0.49 at most (ResNet) and 0.31 (perceptron); BYOL without its
# predictor 0.997 after 40 steps and 0.999 at last.
# Deviation: healthy 0.66 at least (ResNet) and 0.82; the same BYOL 0.025. Zeros
# show here alone: they have no cosine.
# Rank: healthy 4.4 at least, of 96 vectors (BYOL, ResNet; contrastive 31), and
# 18; on one line 1. This is the narrowest margin. Vectors that nearly coincide
# keep more, 2.5, from what still differs.
#
# No sign is taken from embeddings: an untrained network's may be all alike, and
# those below collapsed projections kept their rank (35 of 96). Nor is one taken
# from lengths: where a loss rewards short vectors, as VICReg's invariance does
# on its own, these shrink long before they point the same way (0.965 after 150
# steps), and no sign shows.
PROJECTIONS = (
  Sign("projection_cosine", True, 0.99, "all projections point the same way"),
  Sign("projection_std", False, 0.05, "all projections coincide"),
  Sign("projection_rank", False, 2.0, "all projections lie on one line"),
)
LEARNING_RATE = "lower --config.optimizer.learning_rate"


class Pretext(NamedTuple):
  """A task: what it adds to the step that all share, and how reports show it.

  Attributes:
    loss: `loss(features, config, axis_name, **given) -> (loss, metrics)`, where
      features holds this device's "embedding", "projection", "prediction" (the
      projection, where there is no predictor), [V, B, D] each, and with a
      teacher "teacher" [G, B, D], its projections of the first G views; config
      is the config's "pretext". With an axis name the batch is spread over its
      devices, and the mean of their losses is the loss of the global batch.
      `given` is what the fields below say.
    colour: in figures, of no other task.
    marker: in figures, matplotlib's.
    fields: of the config's "pretext", besides its name and head.
    follows: the kinds of variables in which a teacher follows the student by
      an exponential moving average; () for a task without a teacher.
    init_memory: `init_memory(config) -> dict of arrays` that the task keeps in
      the state; the loss is given them as `memory`.
    update_memory: `update_memory(memory, features, config, axis_name)` returns
      the memory for the next step.
    rates: names of the schedules whose values at this step the loss is given.
    labels: whether the loss is given the tracks' `labels` [1, B, tags].
    draws: whether the loss is given a `key`, another at each step and the same
      on all devices.
    signs: of a collapse.
    advice: what to try after one.
  """

  loss: Callable
  colour: str
  marker: str
  fields: Mapping[str, Range] = {}
  follows: tuple[str, ...] = ()
  init_memory: Callable | None = None
  update_memory: Callable | None = None
  rates: tuple[str, ...] = ()
  labels: bool = False
  draws: bool = False
  signs: tuple[Sign, ...] = PROJECTIONS
  advice: str = LEARNING_RATE
