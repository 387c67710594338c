"""Runs a config: `python -m ssl_music.main --config=FILE --workdir=DIR`."""

import functools
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from ssl_music import (
  benchmark,
  cluster,
  compiled,
  hosts,
  jobs,
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
  "dry-run", False, "Only print what a sweep or a benchmark would run."
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
  if _CONFIG.value is None or not _WORKDIR.value:
    raise InputError(
      "--config and --workdir are needed, as in python -m ssl_music.main"
      " --config=configs/contrastive.py --workdir=runs/contrastive"
    )
  logging.set_verbosity(logging.WARNING)
  config, folder = _CONFIG.value, _WORKDIR.value
  if config.job not in (*sweep.JOBS, "benchmark"):
    raise InputError(
      f"no job {config.job!r}: set --config.job to one of"
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
      "--executor, --dry-run and --status are for several jobs, and this config"
      " is of one: give it a grid, config.sweep = defaults.grid({'seed': (0,)})"
    )
  hosts.start(*meeting)
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
  compiled.keep()
  run = sweep.JOBS[config.job]
  if _PROFILE.value:
    run = functools.partial(train.train, profile=_PROFILE.value)
  try:
    run(config, folder)
  except workdir.Stopped as stopped:
    if first:
      print(stopped, file=sys.stderr)
    return stopped.code
  return 0


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
  try:
    remaining = flags.FLAGS(argv)
    if _CONFIG.value is not None:
      _ = _CONFIG.value.job  # a config file that is missing raises only here
  except SyntaxError as error:
    raise InputError(
      f"{error.filename} is no Python file ({error.msg}, line {error.lineno}):"
      " give one of configs/, or your own"
    ) from error
  except OSError as error:
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    raise InputError(
      f"no config file {file}: give one of configs/, or your own"
    ) from error
  except (
    AttributeError,
    ImportError,
    KeyError,
    TypeError,
    ValueError,
    flags.Error,
  ) as error:
    message = str(error.args[0] if error.args else error).strip()
    message = _unknown_field(error, argv) or message
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # Of a traceback inside the message, the last line says what is wrong.
    said = lines[-1] if "Traceback" in message else " ".join(lines[:2])
    raise InputError(f"{said} (see --help)") from error
  return remaining


def _unknown_field(error: Exception, argv: Sequence[str]) -> str:
  """Says which flag names a field that the config lacks; "" if none does."""
  cause = error.args[0] if error.args else None
  if not isinstance(cause, KeyError):
    return ""
  # The second line, if any, is "Did you mean …?".
  name, _, alike = str(cause.args[0]).partition("\n")
  for argument in argv:
    flag = argument.partition("=")[0]
    if flag.startswith("--config.") and flag.endswith("." + name.strip("'")):
      hint = f": {alike[0].lower()}{alike[1:]}" if alike else ""
      return f"the config has no field {flag}{hint}"
  return ""


if __name__ == "__main__":
  report(lambda: app.run(main, flags_parser=_parse))
