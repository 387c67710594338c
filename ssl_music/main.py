"""Runs a config: `python -m ssl_music.main --config=FILE --workdir=DIR`."""

import functools
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from ssl_music import (
  benchmark,
  cluster,
  command_line,
  compiled,
  config_help,
  home,
  hosts,
  jobs,
  parallel,
  sweep,
  train,
  workdir,
)
from ssl_music import config as defaults
from ssl_music.errors import InputError, report

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "A file of configs/, with a preset behind a colon; any field can be"
  " overridden, as in --config.seed=1.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run keeps its config, metrics and results."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of the first of several processes."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.")
_PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0.")
_EXECUTOR = flags.DEFINE_enum(
  "executor",
  "local",
  ["local", "slurm"],
  "Where the jobs of a sweep or a benchmark run: one after another on this"
  " machine, or as an array of a SLURM cluster (see config.slurm).",
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Only print what a sweep or a benchmark would run."
)
_STATUS = flags.DEFINE_bool(
  "status", False, "Only print how the jobs of a sweep or a benchmark stand."
)
_PROFILE = flags.DEFINE_integer(
  "profile",
  0,
  "Trace so many steps of a pre-training into WORKDIR/profile, for TensorBoard"
  " and Perfetto.",
  lower_bound=0,
)


# By what a config of each job is known.
_FIELDS = {
  "pretrain": ("pretext", "online"),
  "probe": ("encoder", "probe"),
  "finetune": ("encoder", "aggregation"),
  "benchmark": ("pretrain", "datasets"),
}


def main(argv: Sequence[str]) -> int:
  """Runs the job or jobs of the config; returns the exit code."""
  if len(argv) > 1:
    raise InputError(f"unexpected argument {argv[1]!r}: flags begin with --")
  if not _config_of(sys.argv)[0] or not _WORKDIR.value:
    raise InputError(
      "--config and --workdir are needed, as in python -m ssl_music.main"
      " --config=configs/contrastive.py --workdir=runs/contrastive"
    )
  logging.set_verbosity(logging.WARNING)
  config, folder = _CONFIG.value, _WORKDIR.value
  _expand_homes(config)
  if config.get("job") not in (*sweep.JOBS, "benchmark"):
    raise InputError(
      f"no job {config.get('job')!r}: set --config.job to one of"
      f" {', '.join((*sweep.JOBS, 'benchmark'))}"
    )
  meeting = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  several = config.job == "benchmark" or "sweep" in config
  if _PROFILE.value and (several or config.job != "pretrain"):
    raise InputError(
      "--profile is of a single pre-training, and this config is of something"
      " else: give one of configs/, without a sweep"
    )
  if several:
    if meeting != (None, None, None):
      raise InputError(
        "several processes share one pre-training, and this config is of"
        " several jobs: leave --coordinator, --processes and --process away"
      )
    return _run_several(config, folder)
  if _EXECUTOR.value != "local" or _DRY_RUN.value or _STATUS.value:
    raise InputError(
      "--executor, --dry_run and --status are for several jobs, and this config"
      " is of one: give it a grid, config.sweep = defaults.grid({'seed': (0,)})"
    )
  hosts.start(*meeting)
  parallel.start(folder)
  return hosts.together(lambda: _run(config, folder))


def _run(config: ConfigDict, folder: str) -> int:
  """Runs a job, in one of several processes where there are."""
  alone = not jax.distributed.is_initialized()
  if not alone and config.job != "pretrain":
    raise InputError(
      f"{jax.process_count()} processes share one pre-training, and this is the"
      f" job {config.job}: run it in a single process"
    )
  _check_fields(config)
  first = alone or hosts.is_first()
  if not first:  # what there is to say, one says for all
    logging.set_verbosity(logging.ERROR)
  run = sweep.JOBS[config.job]
  if _PROFILE.value:
    run = functools.partial(train.train, profile=_PROFILE.value)
  try:
    run(config, folder)
  except workdir.Stopped as stopped:
    if first:
      print(stopped, file=sys.stderr)
    return stopped.code
  if first and config.job == "pretrain":
    print(f"saved in {folder}; next: {_next(config, folder)}", file=sys.stderr)
  return 0


def _next(config: ConfigDict, folder: str) -> str:
  """Returns the command that probes what was pre-trained."""
  options = {
    "--config": "configs/probe.py",
    "--config.encoder": folder,
    "--config.data.name": config.data.name.partition("+")[0],
    "--config.data.data_dir": config.data.data_dir,
    "--workdir": f"{folder.rstrip('/')}_probe",
  }
  words = [f"{name}={value}" for name, value in options.items() if value]
  return shlex.join(["python", "-m", "ssl_music.main", *words])


def _run_several(config: ConfigDict, folder: str) -> int:
  """Runs, submits or shows the jobs of a benchmark or of a sweep."""
  _check_fields(config)
  slurm = config.get("slurm", defaults.slurm())

  def submit(planned: list, folder: str) -> int:
    return cluster.run(planned, folder, slurm, dry_run=_DRY_RUN.value)

  execute = submit if _EXECUTOR.value == "slurm" else jobs.run
  if _STATUS.value or (_DRY_RUN.value and execute is jobs.run):
    execute = cluster.show
  if execute is jobs.run:
    compiled.keep()  # a node of a cluster has its own
  if config.job != "benchmark":
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    return execute(sweep.expand(config, folder, file), folder)
  if _STATUS.value or _DRY_RUN.value:
    return execute(benchmark.plan(config, folder), folder)
  return benchmark.run(config, folder, execute)


def _expand_homes(config: ConfigDict) -> None:
  """Replaces the ~ of paths that a config's file gives."""
  for name, value in config_help.fields(config):
    if isinstance(value, str):
      config.update_from_flattened_dict({name: home.expanded(value)})


def _check_fields(config: ConfigDict) -> None:
  """Refuses a config that was written for another job."""
  for name in _FIELDS[config.job]:
    if name not in config:
      raise InputError(
        f"the job {config.job} needs config.{name}, and this config is of"
        " another job: leave --config.job away, or take a file of configs/ that"
        " is of this one"
      )


def _parse(argv: Sequence[str]) -> list[str]:
  """Parses the flags; a wrong one is an `InputError`, not a traceback."""
  file, preset = _config_of(argv)
  config = defaults.read(file, preset) if file else ConfigDict()
  fields = [name for name, _ in config_help.fields(config)]
  known = {f"--{name}" for name in flags.FLAGS}
  known |= {f"--config.{name}" for name in fields}
  argv = command_line.spelled(argv, known)
  sys.argv[:] = argv  # where the config's flag looks for what it overrides
  if {"--help", "-help", "-h"} & set(argv):
    _print_help(file, config)
    sys.exit(0)
  given = f"--config={file} " if file else ""
  see = f"(see python -m ssl_music.main {given}--help)"
  for argument in argv if file else ():
    name = re.split(r"[=\[]", argument)[0]
    if name.startswith("--config.") and name not in known:
      alike = command_line.nearest(name.removeprefix("--config."), fields)
      meant = command_line.did_you_mean([f"--config.{one}" for one in alike])
      raise InputError(f"the config has no field {name}{meant} {see}")
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    said = command_line.unknown(f"--{error.flagname}", known)
  except (
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    flags.Error,
  ) as error:
    said = str(error.args[0] if error.args else error)
  raise InputError(f"{' '.join(said.split())} {see}")


def _config_of(argv: Sequence[str]) -> tuple[str, str]:
  """Returns the file and the preset of --config=FILE:PRESET."""
  given = ""
  for argument, following in zip(argv, [*argv[1:], ""], strict=True):
    name, mark, value = argument.partition("=")
    if name in ("--config", "-config"):
      given = value if mark else following
  file, _, preset = given.partition(":")
  return home.expanded(file), preset


def _print_help(file: str, config: ConfigDict) -> None:
  """Prints the flags, and the fields of the config where one is given."""
  print(__doc__.splitlines()[0])
  print(flags.FLAGS.main_module_help())
  if not file:
    print(
      "\nWith --config=configs/contrastive.py, --help shows the fields of that"
      " config, too."
    )
    return
  print(f"\nFields of {file}, with their values unless given:")
  print(config_help.text(config, Path(file).read_text("utf-8")))


if __name__ == "__main__":
  report(lambda: app.run(main, flags_parser=_parse))
