"""The defaults that every config starts from, its presets, and durations."""

import functools
import importlib.machinery
import math
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from ssl_music import augment, command_line
from ssl_music.errors import InputError

PRESETS = ("laptop", "paper")
UNITS = ("steps", "epochs", "examples")
# What a benchmark's config can set for all its pre-trainings at once.
PRETRAININGS = ("total_steps", "warmup_steps", "save_every_steps", "batch")


def pretraining(preset: str = "laptop") -> ConfigDict:
  """Returns the pre-training defaults, to be specialised by pretext task.

  Args:
    preset: "laptop" is a small network that learns within minutes on two CPU
      cores; "paper" is the published recipe (arXiv:2404.09177).

  Raises:
    InputError: no such preset.
  """
  config = _common(preset)
  config.job = "pretrain"  # what is run
  config.pretext = ConfigDict()
  config.pretext.name = ""  # the task
  config.pretext.head = (1024, 1024, 2048)  # sizes of the projection head
  config.augment = ConfigDict(augment.DEFAULTS)
  config.views = 2  # segments of a track in a batch
  config.short_views = 0  # shorter ones besides, which no teacher sees
  config.batch = 128  # tracks, so views × batch segments
  config.accumulate = 1  # parts of the batch that the network sees in turn
  # Whether batch norm takes its statistics of all views at once, or, as the
  # published code does, of one view after another.
  config.views_together = preset == "laptop"
  config.on_collapse = "warn"  # "warn" or "stop"
  config.data.name = "demo"  # a prepared data set; "a+b" pools two
  config.data.splits = ("train", "unlabelled")  # of its tracks, to learn from
  config.data.gap = 4.0  # smallest distance between two starts, seconds
  config.data.short_seconds = 2.0  # length of a short view, seconds
  # Processes that read, at most one a core; 0: threads of this one.
  config.data.workers = 8
  # Of each duration one unit is given, the others are 0.
  add_duration(config, "total")  # length of the training
  add_duration(config, "warmup")  # of the learning rate, to its peak
  add_duration(config, "save_every")  # from one checkpoint to the next
  add_duration(config, "log_every")  # from one log entry to the next
  add_duration(config, "probe_every")  # between online probes, if not at saves
  # A probe of the network as it is, at every save and every `probe_every`.
  config.online = ConfigDict(
    {
      "data": "",  # a prepared data set with tags; "": no probe
      "tags": "",  # prefixes of the tags to probe, "a,b"; "": all
      "tracks": 256,  # of train and of validation, at most
      "segments": 2,  # of a track, at most
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "adamw",  # "adamw" or "lars"
      "learning_rate": 1e-3,  # peak; the published code leaves it open
      "final_learning_rate": 1e-7,  # at the last step, and the warm-up's first
      "weight_decay": 0.04,  # at the first step
      "final_weight_decay": 0.4,  # at the last step, by a cosine
      "b1": 0.9,  # of AdamW
      "b2": 0.98,  # of AdamW
      "momentum": 0.9,  # of LARS
      "trust": 0.001,  # coefficient of LARS
      "clip": 0.0,  # largest norm of the gradient; 0: any
    }
  )
  if preset == "laptop":
    config.batch = 48
    config.pretext.head = (512, 512, 256)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_weight_decay = 0.04
    config.augment.gain = 6.0
    config.augment.equaliser = 3.0
    config.data.workers = 0
    config.data.short_seconds = 1.0
    config.total_steps = 400
    config.warmup_steps = 40
    config.save_every_steps = 100
    config.log_every_steps = 10
  else:
    config.total_steps = 999 * 512
    config.warmup_steps = 10 * 512
    config.save_every_steps = 512
    config.log_every_steps = 50
  return config


def add_duration(config: ConfigDict, name: str) -> None:
  """Adds a duration's fields to a config, one a unit, none of them given."""
  for unit in UNITS:
    config[f"{name}_{unit}"] = 0


def probing(preset: str = "laptop") -> ConfigDict:
  """Returns the defaults of a probe on frozen embeddings.

  Args:
    preset: as of `pretraining`; it sizes the encoders "random" and "mel",
      while a trained one brings its own sizes along.

  Raises:
    InputError: no such preset.
  """
  config = _common(preset)
  config.job = "probe"  # what is run
  config.encoder = "random"  # a pre-training's workdir, "random" or "mel"
  config.checkpoint = "latest"  # "latest", "best" or a step
  config.network = "student"  # or "teacher", of tasks that have one
  config.data.name = "demo"  # a prepared data set with tags
  config.data.tags = ""  # prefixes of the tags to probe, "a,b"; "": all
  # Score a benchmark though test tracks are missing, and say how many.
  config.allow_missing = False
  config.embed_batch = 64  # segments
  # Where embeddings are kept, so that no probe computes another's again.
  config.cache_dir = config_dict.placeholder(str)  # None: in the workdir
  config.probe = ConfigDict(
    {
      "hidden": (),  # sizes of hidden layers; none: a linear probe
      "segments": 25,  # of a training track, at most
      "batch": 256,  # segments
      "steps": 400,  # of AdamW
      "evaluations": 20,  # on the validation tracks; the best is taken
      "learning_rates": (1e-3, 3e-3, 1e-2),  # each, with each of …
      "weight_decays": (0.01, 1.0),  # … these; the best pair is taken
      "seeds": 3,  # of the probe's own training; the scores are their mean
      "shares": (1.0,),  # of the training tracks, for the study of few labels
      "draws": 4,  # of every share under 1
      "stratified": False,  # keep the tags' frequencies in the draws
      "aggregation": "embeddings",  # averaged; or "logits" or "probabilities"
      # Average only the sounding segments of validation and test tracks; the
      # published code averages all, and filters training tracks alone.
      "sounding": False,
      "resamples": 1000,  # of the test tracks, for the intervals
    }
  )
  if preset == "paper":
    config.probe.steps = 5000
  return config


def grid(fields: Mapping[str, Sequence[Any]]) -> ConfigDict:
  """Returns what a config's "sweep" is: the values of some of its fields.

  Args:
    fields: {"seed": (0, 1), "optimizer.learning_rate": (1e-3, 2e-3)}, dotted
      where nested.
  """
  return ConfigDict(
    {field: tuple(values) for field, values in fields.items()},
    sort_keys=False,
    allow_dotted_keys=True,
  )


def slurm(**fields: Any) -> ConfigDict:
  """Returns what a config's "slurm" is: what every job gets on a cluster.

  Args:
    **fields: other values than these.
  """
  config = ConfigDict(
    {
      "partition": "",  # "": the cluster's default
      "hours": 24.0,  # of a turn; a job that needs more goes on in the next
      "gpus": 1,  # of a job
      "cpus": 8,  # of a job
      "memory": 32.0,  # GiB; 0: the cluster's default
      "at_once": 16,  # jobs of an array, at most
    }
  )
  config.lock().update(fields)
  return config


def read(file: str | Path, preset: str = "") -> ConfigDict:
  """Returns the config of a file, as `--config=FILE:PRESET` does.

  Args:
    file: with a function `get_config`.
    preset: what it is given; "" leaves it out.

  Raises:
    InputError: there is no such file, or it makes no config.
  """
  file = Path(file)
  if not file.is_file():
    beside = {
      one.stem: str(one)
      for folder in (Path("configs"), file.parent)
      for one in folder.glob("*.py")
    }
    alike = [beside[name] for name in command_line.nearest(file.stem, beside)]
    meant = command_line.did_you_mean(alike)
    what = " (it is a folder)" if file.is_dir() else ""
    hint = meant or ": give one of configs/, or your own"
    raise InputError(f"no config file {file}{what}{hint}")
  loader = importlib.machinery.SourceFileLoader(f"_{file.stem}", str(file))
  module = types.ModuleType(loader.name)
  module.__file__ = str(file)
  try:
    loader.exec_module(module)
    make = getattr(module, "get_config", None)
    config = make(*([preset] if preset else [])) if make else None
  except InputError:
    raise
  except SyntaxError as error:
    raise InputError(
      f"{error.filename} is no Python file ({error.msg}, line {error.lineno}):"
      " give one of configs/, or your own"
    ) from error
  except Exception as error:  # whatever the file does
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == str(file)]
    line = f", line {lines[-1]}" if lines else ""
    raise InputError(
      f"the config {file}{line} raises {type(error).__name__}: {error}: correct"
      " it"
    ) from error
  if not isinstance(config, ConfigDict):
    raise InputError(
      f"{file} has no function get_config that returns a ConfigDict: give one"
      " of configs/, or write it as they are written"
    )
  return config


def benchmark(preset: str = "laptop") -> ConfigDict:
  """Returns the defaults of the paper's study, without its pre-trainings.

  Args:
    preset: as of `pretraining`.

  Returns:
    a config to which `configs/benchmark.py` adds "pretrain", the config of each
    pretext task by its name, and "finetune".

  Raises:
    InputError: no such preset.
  """
  config = ConfigDict()
  config.job = "benchmark"  # what is run
  config.datasets = "demo"  # prepared data sets to probe on, "a,b"
  config.pool = ""  # "a+b": data sets to pre-train on; "": those of `datasets`
  # Tasks and floors; "supervised" and "finetune-TASK" can be added.
  config.encoders = "contrastive,byol,clustering,barlow_twins,vicreg,random,mel"
  config.seeds = 1  # pre-trainings of each task, and random networks
  # Of every pre-training; None: as its own config says.
  config.total_steps = config_dict.placeholder(int)
  config.warmup_steps = config_dict.placeholder(int)  # of every one, likewise
  config.save_every_steps = config_dict.placeholder(int)  # likewise
  config.batch = config_dict.placeholder(int)  # tracks, likewise
  config.data_dir = config_dict.placeholder(str)  # None: TFDS's default
  config.slurm = slurm()  # where --executor=slurm
  config.probe = probing(preset)
  # Of the training tracks, as in the paper's study of limited data.
  config.probe.probe.shares = (0.01, 0.05, 0.1, 0.2, 1.0)
  config.probe.probe.draws = 4
  return config


def duration(
  config: ConfigDict, name: str, *, batch: int, steps_per_epoch: int
) -> int:
  """Returns a duration in steps, whichever unit the config gives it in.

  Args:
    config: with `{name}_steps`, `{name}_epochs` and `{name}_examples`, of
      which one at most is not 0.
    name: "total", "warmup", "save_every", …
    batch: examples (tracks) a step.
    steps_per_epoch: steps in which every track is drawn from once.

  Returns:
    steps, rounded up; 0 where the duration is not given.

  Raises:
    InputError: it is given in two units, or negative.
  """
  given = {
    unit: config[f"{name}_{unit}"] for unit in UNITS if config[f"{name}_{unit}"]
  }
  if not given:
    return 0
  if len(given) > 1:
    names = " and ".join(f"{name}_{unit}" for unit in given)
    raise InputError(
      f"the config gives {names}: keep one, and unset the other with"
      f" --config.{name}_{next(iter(given))}=0"
    )
  ((unit, value),) = given.items()
  if value < 0:
    raise InputError(f"{name}_{unit}={value} is negative: give 0 or more")
  if unit == "steps":
    return value
  if unit == "epochs":
    return value * steps_per_epoch
  return math.ceil(value / batch)


def check_numbers(
  config: ConfigDict,
  positive: Sequence[str],
  not_negative: Sequence[str] = ("seed",),
) -> None:
  """Checks whole numbers of a config.

  Args:
    config: the config.
    positive: fields that must be 1 or more, dotted where nested.
    not_negative: fields that must be 0 or more.

  Raises:
    InputError: with the field, its value and its range.
  """
  for least, names in ((1, positive), (0, not_negative)):
    for name in names:
      value = functools.reduce(getattr, name.split("."), config)
      if value < least:
        raise InputError(
          f"--config.{name}={value} is too small: give {least} or more"
        )


def difference(old: dict, new: dict, prefix: str = "") -> list[str]:
  """Lists the fields in which two configs differ, as "field: old -> new".

  Args:
    old: a nested dict.
    new: the other.
    prefix: of the names of the fields.
  """
  lines = []
  for key in sorted(old.keys() | new.keys()):
    name = f"{prefix}{key}"
    if key not in old or key not in new:
      lines.append(f"{name} only in the {'old' if key in old else 'new'} one")
    elif isinstance(old[key], dict) and isinstance(new[key], dict):
      lines += difference(old[key], new[key], f"{name}.")
    elif old[key] != new[key]:
      lines.append(f"{name}: {old[key]!r} -> {new[key]!r}")
  return lines


def _common(preset: str) -> ConfigDict:
  """What pre-training and probe share: network, front end, data set."""
  if preset not in PRESETS:
    raise InputError(
      f"no preset {preset!r}: choose one of {', '.join(PRESETS)}, as in"
      f" --config=configs/contrastive.py:{PRESETS[-1]}"
    )
  config = ConfigDict()
  config.seed = 0  # of everything random
  config.frontend = ConfigDict(
    {
      "n_fft": 1024,  # samples of a window, at 16 kHz
      "hop": 512,  # samples from a window's start to the next one's
      "n_mels": 128,  # bands of the spectrogram
      "f_min": 0.0,  # lower end of the lowest band, Hz
      "f_max": 11025.0,  # upper end of the highest band, Hz
      "top_db": 100.0,  # range below a spectrogram's maximum, dB
    }
  )
  config.model = ConfigDict(
    {
      "width": 16,  # channels of the first stage
      "depths": (3, 4, 6, 3),  # blocks of each stage
      "heads": 8,  # of attention
      "output": 1024,  # size of an embedding
      "dtype": "float32",  # of the computation; or "bfloat16", on TPU and GPU
    }
  )
  config.data = ConfigDict(
    {
      "data_dir": config_dict.placeholder(str),  # None: TFDS's default
      "seconds": 4.0,  # length of a segment, seconds
    }
  )
  if preset == "laptop":
    config.model.update({"width": 8, "depths": (1, 1, 1, 1), "output": 512})
    config.data.seconds = 2.0
  return config
