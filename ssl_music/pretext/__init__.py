"""The pretext tasks, one file each.

To add one, write a file with a `loss` of the signature below and a line here.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ssl_music.errors import InputError
from ssl_music.pretext import (
  barlow_twins,
  byol,
  clustering,
  contrastive,
  supervised,
  vicreg,
)


class Pretext(NamedTuple):
  """What a task adds to the step that all share.

  Attributes:
    fields: of the config's "pretext", besides its name and head.
    loss: `loss(z, config, axis_name, **given) -> (loss, metrics)`, where
      z [V, B, D] holds this device's projections (predictions, where there is
      a predictor); with an axis name the batch is spread over its devices, and
      the mean of their losses is the loss of the global batch. `given` is what
      the fields below say.
    follows: the kinds of variables in which a teacher follows the student by
      an exponential moving average; () for a task without a teacher. With one,
      the loss is given `teacher` [G, B, D], the teacher's projections of the
      first G views.
    init_memory: `init_memory(config) -> dict of arrays` that the task keeps in
      the state; the loss is given them as `memory`.
    update_memory: `update_memory(memory, teacher, config, axis_name)` returns
      the memory for the next step.
    rates: names of the schedules whose values at this step the loss is given.
    labels: whether the loss is given the tracks' `labels` [1, B, tags].
  """

  fields: tuple[str, ...]
  loss: Callable
  follows: tuple[str, ...] = ()
  init_memory: Callable | None = None
  update_memory: Callable | None = None
  rates: tuple[str, ...] = ()
  labels: bool = False


_MOMENTUM = ("momentum", "final_momentum")

PRETEXTS: dict[str, Pretext] = {
  "contrastive": Pretext(("temperature",), contrastive.loss),
  "byol": Pretext(
    ("predictor", *_MOMENTUM), byol.loss, follows=("params", "batch_stats")
  ),
  "clustering": Pretext(
    (
      "cosine_prototypes",
      "targets",
      "sinkhorn_iterations",
      "centre_momentum",
      "mean_entropy",
      "temperature",
      "teacher_temperature",
      "final_teacher_temperature",
      *_MOMENTUM,
    ),
    clustering.loss,
    follows=("params",),
    init_memory=clustering.init_memory,
    update_memory=clustering.update_memory,
    rates=("teacher_temperature",),
  ),
  "barlow_twins": Pretext(("off_diagonal",), barlow_twins.loss),
  "vicreg": Pretext(
    ("invariance", "variance", "covariance", "gamma"), vicreg.loss
  ),
  "supervised": Pretext((), supervised.loss, labels=True),
}

# Ranges of numbers, whichever task has them.
_POSITIVE = (
  "temperature",
  "teacher_temperature",
  "final_teacher_temperature",
  "sinkhorn_iterations",
  "gamma",
)
_SHARES = (*_MOMENTUM, "centre_momentum")
_WEIGHTS = (
  "mean_entropy",
  "off_diagonal",
  "invariance",
  "variance",
  "covariance",
)


def check(config: Mapping) -> None:
  """Checks a config's "pretext".

  Raises:
    InputError: no such task, a field that it needs is missing, or a number is
      out of its range.
  """
  name = config["name"]
  if name not in PRETEXTS:
    raise InputError(
      f"no pretext task {name!r}: set --config.pretext.name to one of"
      f" {', '.join(PRETEXTS)}"
    )
  task = PRETEXTS[name]
  missing = [field for field in task.fields if field not in config]
  if missing:
    raise InputError(
      f"the config lacks {', '.join(missing)} of the pretext task {name}: start"
      f" from configs/{name}.py"
    )
  if not config["head"] and not task.labels:
    raise InputError(
      "the projection head has no layer: give --config.pretext.head one or more"
      " sizes"
    )
  ranges = (
    (_POSITIVE, lambda value: value > 0, "more than 0"),
    (_SHARES, lambda value: 0 <= value <= 1, "0 to 1"),
    (_WEIGHTS, lambda value: value >= 0, "0 or more"),
  )
  for fields, holds, span in ranges:
    for field in fields:
      if field in config and not holds(config[field]):
        raise InputError(
          f"--config.pretext.{field}={config[field]} is out of range: give"
          f" {span}"
        )
  predictor = config.get("predictor", ())
  if predictor and predictor[-1] != config["head"][-1]:
    raise InputError(
      f"the predictor puts out {predictor[-1]} values and the head"
      f" {config['head'][-1]}, which the loss compares: give"
      " --config.pretext.predictor and --config.pretext.head the same last size"
    )
