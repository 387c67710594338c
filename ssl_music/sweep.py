"""A config's grid: the same job again and again with other values.

A config file gives it as `config.sweep = defaults.grid({"seed": (0, 1, 2),
"optimizer.learning_rate": (1e-3, 2e-3)})`, with `ssl_music.config` as
`defaults`; `python -m ssl_music.main` then runs every combination.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssl_music import config as defaults
from ssl_music import finetune, probe, train
from ssl_music.errors import InputError
from ssl_music.jobs import job, run

__all__ = ["expand", "run"]  # a notebook needs no more than these two

# What a config's "job" means: a function of the config and a workdir.
JOBS = {
  "pretrain": train.train,
  "probe": probe.probe,
  "finetune": finetune.finetune,
}

# Characters of a job's name and of a value in it, at most.
_LONGEST = 120
_LONGEST_VALUE = 48


def expand(
  config: ConfigDict, folder: str | Path, file: str = ""
) -> list[dict[str, Any]]:
  """Lists the jobs of a config's grid, a job a combination of values.

  Args:
    config: with "sweep", of `config.grid`: dotted fields and the values that
      each takes. "pretext" means the name of the task, whose own config file
      beside the running one is then taken, with what the running config has
      changed outside of "pretext". No job's config has "sweep" or "slurm".
    folder: the sweep's workdir; a job's is below it and named by its values.
    file: the running config's, with its preset, "configs/byol.py:paper"; needed
      where the grid has "pretext".

  Returns:
    jobs as `jobs.job` returns them, the last field changing fastest.

  Raises:
    InputError: a field that the config does not have, a value of another type,
      the same value twice, or no value.
  """
  if config.job not in JOBS:
    raise InputError(
      f"a job {config.job!r} has no sweep: give the grid to one of"
      f" {', '.join(JOBS)}"
    )
  grid = _flat(config.sweep)
  for field, values in grid.items():
    if not isinstance(values, tuple | list) or not values:
      raise InputError(
        f"the sweep gives {field} the values {values!r}: give a list of one or"
        " more"
      )
  base = _without(config.copy_and_resolve_references())
  shown = _short_names(grid)
  jobs: dict[str, dict] = {}
  for values in itertools.product(*grid.values()):
    chosen = dict(zip(grid, values, strict=True))
    one = base
    if "pretext" in chosen:
      one = _of_task(base, chosen["pretext"], file)
      chosen = {"pretext.name": chosen.pop("pretext"), **chosen}
    one = _replace(one, chosen)
    now = _flat(one)  # with the types of the fields: 1 is 1.0
    parts = [
      f"{shown[field]}={_text(now.get(field, now.get(f'{field}.name')))}"
      for field in grid
    ]
    name = _shorten(",".join(parts), _LONGEST)
    if name in jobs:
      raise InputError(
        f"the sweep has the combination {name} twice: give each value once"
      )
    jobs[name] = make_job(name, one, Path(folder) / name)
  return list(jobs.values())


def make_job(
  name: str,
  config: ConfigDict,
  folder: str | Path,
  needs: Iterable[str] = (),
) -> dict[str, Any]:
  """Returns the job of a config, see `jobs.job`.

  Args:
    name: of the job.
    config: whose "job" is one of `JOBS`.
    folder: its workdir.
    needs: names of jobs that come before.
  """
  product = "scores.json"  # of whatever ends with scores
  if config.job == "pretrain":
    product = None
    if not config.total_epochs:  # whose length only the data tell
      steps = defaults.duration(
        config, "total", batch=config.batch, steps_per_epoch=0
      )
      product = f"checkpoints/{steps}"
  function = JOBS[config.job]
  return job(name, function, config, folder, product=product, needs=needs)


def _without(config: ConfigDict) -> ConfigDict:
  """Takes from a config what says which jobs there are, and where they run."""
  with config.unlocked():
    for name in ("sweep", "slurm"):
      if name in config:
        del config[name]
  return config


def _flat(config: ConfigDict | Mapping, prefix: str = "") -> dict[str, Any]:
  """Returns a nested config's values by dotted field."""
  found = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict | dict):
      found |= _flat(value, f"{prefix}{key}.")
    else:
      found[f"{prefix}{key}"] = value
  return found


def _replace(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
  """Returns a copy with other values of some dotted fields."""
  new = config.copy_and_resolve_references().lock()
  for field, value in values.items():
    if field not in _flat(new):
      raise InputError(
        f"the sweep sets {field}, which the config of"
        f" {new.get('pretext', {}).get('name', new.job)} does not have: name"
        " one of its fields, dotted where nested"
      )
    try:
      new.update_from_flattened_dict({field: value})
    except (TypeError, ValueError) as error:
      raise InputError(
        f"the sweep sets {field} to {value!r}, a {type(value).__name__}: give"
        f" values like {_flat(new)[field]!r}"
      ) from error
  return new


def _of_task(base: ConfigDict, name: str, file: str) -> ConfigDict:
  """Returns another task's config, changed as the running one is."""
  path, _, preset = file.partition(":")
  if not path:
    raise InputError(
      "a sweep over pretext needs the running config's file: start it by"
      " python -m ssl_music.main --config=FILE, or expand with file=FILE"
    )
  if name == base.pretext.name:
    return base
  beside = Path(path).parent
  own = defaults.read(beside / f"{base.pretext.name}.py", preset)
  other = defaults.read(beside / f"{name}.py", preset)
  other = _without(other)
  before, there = _flat(own), _flat(other)
  changed = {
    field: value
    for field, value in _flat(base).items()
    if field in there
    and not field.startswith("pretext.")
    and (field not in before or before[field] != value)
  }
  return _replace(other, changed)


def _short_names(fields: Iterable[str]) -> dict[str, str]:
  """Returns each field's last part, where no other field shares it."""
  last = {field: field.rpartition(".")[2] for field in fields}
  count = list(last.values()).count
  return {f: short if count(short) == 1 else f for f, short in last.items()}


def _text(value: Any) -> str:
  """Returns a value in characters that any file system takes."""
  if isinstance(value, tuple | list):
    text = "x".join(map(str, value)) or "none"
  else:
    text = str(value)
  safe = re.sub(r"[^A-Za-z0-9.+-]+", "_", text)
  # The same characters in place of others: only a hash tells them apart.
  return _shorten(safe, _LONGEST_VALUE, of=text, always=safe != text)


def _shorten(text: str, most: int, of: str = "", always: bool = False) -> str:
  if len(text) <= most and not always:
    return text
  mark = hashlib.sha256((of or text).encode()).hexdigest()[:8]
  return f"{text[: most - 9]}-{mark}"
