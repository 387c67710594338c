"""The paper's study: pre-trainings, then probes, then a report."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from ssl_music import features, finetune, jobs, online, probe, sweep, train
from ssl_music.config import PRETRAININGS, check_numbers
from ssl_music.data import demo
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

# Encoders that are probed without being trained; "random" has a seed.
FLOORS = ("random", "mel")
# A network that learns the tags from the start, and a task's that learns them
# after, "finetune-byol".
SCRATCH, TUNED = "supervised", "finetune-"


def run(
  config: ConfigDict,
  folder: str | Path,
  execute: Callable[[list[dict[str, Any]], str | Path], int] = jobs.run,
) -> int:
  """Pre-trains, probes and reports, going on where it was interrupted.

  Args:
    config: of `configs/benchmark.py`.
    folder: the workdir, which gets `pretrain/ENCODER`,
      `probe/DATA/ENCODER`, `embeddings`, `report` and `jobs.json`. An encoder
      of another than the first seed is called "contrastive-seed1".
    execute: takes the jobs and the workdir, as `jobs.run`; where it only
      submits them, the report is of what has been done before.

  Returns:
    the exit code, of `execute`.

  Raises:
    InputError: what is wrong with the config or the data sets, before anything
      has run; or another process is running in the folder.
  """
  planned = plan(config, folder)
  check_settings(config)
  check_data(config)
  code = execute(planned, folder)
  if code < 128:  # no signal asked to stop
    _report(Path(folder))
  return code


def plan(config: ConfigDict, folder: str | Path) -> list[dict[str, Any]]:
  """Lists the jobs of a benchmark, pre-trainings first.

  Args:
    config: of `configs/benchmark.py`.
    folder: the workdir.

  Returns:
    jobs, of `jobs.job`.

  Raises:
    InputError: an unknown encoder, one twice, or none; no data set; or a number
      out of its range.
  """
  given = {field for field in PRETRAININGS if config[field] is not None}
  optional = given & {"warmup_steps"}
  check_numbers(config, ["seeds", *given - optional], [*optional])
  folder = Path(folder)
  encoders = _names(config, "encoders")
  datasets = _names(config, "datasets")
  tasks = [name for name in encoders if name in config.pretrain]
  for name in encoders:
    known = (*config.pretrain, *FLOORS, SCRATCH)
    if name not in known and name.removeprefix(TUNED) not in tasks:
      raise InputError(
        f"no encoder {name!r} to compare: set --config.encoders to some of"
        f" {', '.join(known)}, or {TUNED}NAME beside the NAME of a task"
      )
  pretrainings, scored = {}, []
  for seed in range(config.seeds):
    for task in tasks:
      name = _with_seed(task, seed)
      pretrainings[name] = sweep.make_job(
        f"pretrain/{name}",
        _pretraining(config, task, seed),
        folder / "pretrain" / name,
      )
    for encoder in encoders:
      if seed and encoder == "mel":
        continue
      source, needs = encoder, []
      task = encoder.removeprefix(TUNED)
      if task in tasks:
        trained = pretrainings[_with_seed(task, seed)]
        source, needs = str(trained["folder"]), [trained["name"]]
      name = _with_seed(encoder, seed)
      for data in datasets:
        if task == encoder != SCRATCH:
          one = _probing(config, source, data, folder)
          # Draws and probes of a trained encoder have the same seeds whatever
          # its own; of an untrained one the seed is all that differs.
          one.seed += seed if encoder == "random" else 0
        else:
          one = _tuning(config, source, data, seed)
        where = folder / "probe" / data / name
        scored.append(sweep.make_job(f"probe/{data}/{name}", one, where, needs))
  return [*pretrainings.values(), *scored]


def check_settings(config: ConfigDict) -> None:
  """Finds mistakes in the jobs' settings, before hours go into pre-training.

  Whether batches divide over the devices is left to the jobs: this process must
  not take the devices' memory.

  Args:
    config: of `configs/benchmark.py`.

  Raises:
    InputError: the first one found, with the benchmark's own option.
  """
  alone = SimpleNamespace(size=1)  # in place of a mesh of devices
  data = _names(config, "datasets")[0]
  encoders = _names(config, "encoders")
  for name in encoders:
    if name in config.pretrain:
      with _option("", f"pretrain.{name}."):
        train.check(_pretraining(config, name, 0), alone)
  with _option("", "probe."):
    one = _probing(config, "mel", data, Path())
    probe.check(one, alone.size)
  if any(name == SCRATCH or name.startswith(TUNED) for name in encoders):
    with _option("", "finetune."):
      one = _tuning(config, SCRATCH, data, 0)
      train.check(one, alone)
      finetune.check(one, alone)


def check_data(config: ConfigDict) -> None:
  """Finds what is missing in the data sets before hours go into pre-training.

  The built-in demo set is made where it is asked for and not there.

  Args:
    config: of `configs/benchmark.py`.

  Raises:
    InputError: a data set is not prepared; one to probe on has no tags, no
      labelled track in one of its splits, or misses test tracks of a benchmark;
      or the pool has no track to pre-train on.
  """
  tasks = [
    name for name in _names(config, "encoders") if name in config.pretrain
  ]
  for task in tasks:
    data = _pretraining(config, task, 0).data
    with _option("data.name", "pool" if config.pool else "datasets"):
      demo.ensure(data.name, data.data_dir)
      Tracks(data.name, data.splits, data.data_dir)
    _check_online(config, task)
  for name in _names(config, "datasets"):
    data = _probing(config, "mel", name, Path()).data
    tuned = _tuning(config, SCRATCH, name, 0).data
    with _option("data.name", "datasets"):
      demo.ensure(name, data.data_dir)
      parts = {s: Tracks(name, (s,), data.data_dir) for s in probe.SPLITS}
    for split, part in parts.items():
      if not part.labels.any():
        raise InputError(
          f"data set {name} has no tags in {split} to probe: leave it to"
          " --config.pool, and name others with --config.datasets"
        )
    for tags, option in ((data.tags, "probe"), (tuned.tags, "finetune")):
      features.choose_tags(
        name, parts["train"].tags, tags, option=f"{option}.data.tags"
      )
    _check_complete(config.probe, parts["test"])


def _check_online(config: ConfigDict, task: str) -> None:
  """Finds what is missing in the data that a pre-training is watched on."""
  one = _pretraining(config, task, 0)
  if not one.online.data:
    return
  with _option("data.name", f"pretrain.{task}.online.data"):
    demo.ensure(one.online.data, one.data.data_dir)
    tracks = Tracks(one.online.data, online.SPLITS, one.data.data_dir)
  option = f"pretrain.{task}.online.tags"
  features.choose_tags(tracks.name, tracks.tags, one.online.tags, option=option)


def _pretraining(config: ConfigDict, name: str, seed: int) -> ConfigDict:
  one = config.pretrain[name].copy_and_resolve_references()
  datasets = _names(config, "datasets")
  one.seed += seed
  one.data.name = config.pool or "+".join(datasets)
  if config.data_dir is not None:
    one.data.data_dir = config.data_dir
  for field in PRETRAININGS:
    if config[field] is not None:
      if field.endswith("_steps"):
        length = field.removesuffix("_steps")
        one[f"{length}_epochs"] = one[f"{length}_examples"] = 0
      one[field] = config[field]
  if 0 < one.total_steps <= one.warmup_steps:
    raise InputError(
      f"the {one.total_steps} steps of {name} are no more than its"
      f" {one.warmup_steps} of warm-up: lower --config.warmup_steps, or raise"
      " --config.total_steps"
    )
  return one


def _probing(
  config: ConfigDict, encoder: str, data: str, folder: Path
) -> ConfigDict:
  one = config.probe.copy_and_resolve_references()
  one.encoder, one.data.name = encoder, data
  if config.data_dir is not None:
    one.data.data_dir = config.data_dir
  one.cache_dir = one.cache_dir or str(folder / "embeddings")
  return one


def _tuning(
  config: ConfigDict, encoder: str, data: str, seed: int
) -> ConfigDict:
  one = config.finetune.copy_and_resolve_references()
  one.encoder = "random" if encoder == SCRATCH else encoder
  one.data.name = data
  # Scores of the same tracks, segments and tags as the probes', if not said
  # otherwise.
  one.allow_missing = one.allow_missing or config.probe.allow_missing
  one.sounding = one.sounding or config.probe.probe.sounding
  one.data.tags = one.data.tags or config.probe.data.tags
  one.seed += seed
  if config.data_dir is not None:
    one.data.data_dir = config.data_dir
  return one


def _with_seed(name: str, seed: int) -> str:
  return name if seed == 0 else f"{name}-seed{seed}"


def _names(config: ConfigDict, field: str) -> list[str]:
  """Returns the names that a field of the config lists."""
  names = [name.strip() for name in config[field].split(",") if name.strip()]
  if not names or len(set(names)) < len(names):
    raise InputError(
      f"--config.{field}={config[field]!r} names"
      f" {'one twice' if names else 'none'}: name one or more, each once,"
      " separated by commas"
    )
  return names


@contextlib.contextmanager
def _option(of_job: str, of_benchmark: str) -> Iterator[None]:
  """Makes an error name the benchmark's option in place of its job's."""
  try:
    yield
  except InputError as error:
    message = str(error).replace(
      f"--config.{of_job}", f"--config.{of_benchmark}"
    )
    message = message.replace("--config.data.data_dir", "--config.data_dir")
    raise InputError(message) from error


def _check_complete(probing: ConfigDict, test: Tracks) -> None:
  """Refuses a benchmark without all its test tracks, as its probe will."""
  missing = test.missing["test"]
  if missing and test.card["benchmark"] and not probing.allow_missing:
    raise InputError(
      f"{len(missing)} test tracks of {test.card['benchmark']} are missing from"
      f" data set {test.name} (see skipped.csv in {test.folder}): prepare it"
      " with these, or report the number of missing ones with the scores, by"
      " --config.probe.allow_missing=True"
    )


def _report(folder: Path) -> None:
  """Writes the report of what there is, also where some jobs have failed."""
  # Not at the top: it draws, and other jobs start sooner without.
  from ssl_music import report

  if any((folder / "probe").glob("*/*/scores.json")):
    report.write([folder], folder / "report")
    print(f"report: {folder / 'report' / report.PAGE}")
