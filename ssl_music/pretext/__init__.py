"""The pretext tasks, one file each.

To add one, write a file with a `loss` of the signature below and a line here.
"""

from collections.abc import Callable
from typing import NamedTuple

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

  loss: Callable
  follows: tuple[str, ...] = ()
  init_memory: Callable | None = None
  update_memory: Callable | None = None
  rates: tuple[str, ...] = ()
  labels: bool = False


PRETEXTS: dict[str, Pretext] = {
  "contrastive": Pretext(contrastive.loss),
  "byol": Pretext(byol.loss, follows=("params", "batch_stats")),
  "clustering": Pretext(
    clustering.loss,
    follows=("params",),
    init_memory=clustering.init_memory,
    update_memory=clustering.update_memory,
    rates=("teacher_temperature",),
  ),
  "barlow_twins": Pretext(barlow_twins.loss),
  "vicreg": Pretext(vicreg.loss),
  "supervised": Pretext(supervised.loss, labels=True),
}
