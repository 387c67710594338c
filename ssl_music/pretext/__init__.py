"""The pretext tasks, one file each, which owns all that is the task's."""

from collections.abc import Mapping

from ssl_music.errors import InputError
from ssl_music.pretext import (
  barlow_twins,
  byol,
  clustering,
  contrastive,
  lejepa,
  mmcr,
  simsiam,
  supervised,
  vicreg,
)
from ssl_music.pretext.record import SIZES, Pretext

PRETEXTS: dict[str, Pretext] = {
  "contrastive": contrastive.TASK,
  "byol": byol.TASK,
  "clustering": clustering.TASK,
  "barlow_twins": barlow_twins.TASK,
  "vicreg": vicreg.TASK,
  "mmcr": mmcr.TASK,
  "simsiam": simsiam.TASK,
  "lejepa": lejepa.TASK,
  "supervised": supervised.TASK,
}


def check(config: Mapping) -> None:
  """Checks a config's "pretext".

  Raises:
    InputError: no such task, a field that it needs is missing, or a value is
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
  for field, allowed in {"head": SIZES, **task.fields}.items():
    if not allowed.holds(config[field]):
      raise InputError(
        f"--config.pretext.{field}={config[field]} is out of range: give"
        f" {allowed.span}"
      )
  predictor = config.get("predictor", ())
  if predictor and predictor[-1] != config["head"][-1]:
    raise InputError(
      f"the predictor puts out {predictor[-1]} values and the head"
      f" {config['head'][-1]}, which the loss compares: give"
      " --config.pretext.predictor and --config.pretext.head the same last size"
    )
