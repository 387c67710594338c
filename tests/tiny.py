"""A data set and a network so small that a test takes moments."""

import importlib

import numpy as np

from ssl_music import config as defaults
from ssl_music.data import plans, writer

RATE = 16_000
TAGS = ["pitch---high", "pitch---low", "timbre---noisy"]
SPLITS = ["train"] * 24 + ["validation"] * 8 + ["test"] * 8


def waveform(track):
  """A tone with vibrato or noise whose loudness wanders, 5 to 9 s."""
  rng = np.random.default_rng(track["index"])
  time = np.arange(int(rng.uniform(5, 9) * RATE)) / RATE
  low = "pitch---low" in track["tags"]
  pitch = rng.uniform(100, 200) if low else rng.uniform(1500, 2500)
  tone = np.sin(2 * np.pi * pitch * time + np.sin(2 * np.pi * 5 * time))
  if "timbre---noisy" in track["tags"]:
    tone += rng.standard_normal(len(time))
  tone *= 1 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.1, 0.3) * time)
  return (0.1 * tone).astype(np.float32)


def load(track):
  """What a plan has to load a track."""
  return [waveform(track)]


def tracks():
  """The tracks of a plan: 40, every tag in every split."""
  found = []
  for index, split in enumerate(SPLITS):
    tags = ["pitch---low" if index % 2 else "pitch---high"]
    tags += ["timbre---noisy"] if index % 3 == 0 else []
    name = f"t{index:02}"
    found.append(
      {"index": index, "id": name, "path": name, "split": split, "tags": tags}
      | {"artist": ""}
    )
  return found


def plan(rows=None, load=load, tags=TAGS, **fields):
  """A plan of these tracks, or of all."""
  rows = tracks() if rows is None else rows
  return plans.make("tiny", rows, load, tags=tags, **fields)


def write(data_dir, name="tiny", rows=None, load=load, tags=TAGS, **fields):
  """Writes a data set of these tracks, or of all; returns the summary."""
  return writer.write(name, plan(rows, load, tags), data_dir=data_dir, **fields)


def shrink(config):
  """Makes a config's network and segments tiny; returns the config."""
  config.frontend.n_mels = 32
  config.frontend.f_max = 8000.0
  config.model.update({"width": 4, "depths": (1, 1), "heads": 2, "output": 16})
  config.data.seconds = 1.0
  config.data.name = "tiny"
  return config


HEADS = {"clustering": (16, 8, 32), "supervised": ()}


def pretraining(data_dir, task="contrastive", **fields):
  """A pre-training config of 12 steps; `fields` replace some."""
  get_config = importlib.import_module(f"configs.{task}").get_config
  config = shrink(get_config())
  config.pretext.head = HEADS.get(task, (16, 8))
  if task == "contrastive":
    config.pretext.temperature = 0.1
  if "predictor" in config.pretext:
    config.pretext.predictor = (16, 8)
  if task == "clustering":
    config.temperature_warmup_steps = 6
  config.data.gap = 1.0
  config.data.data_dir = str(data_dir)
  config.batch = 16
  config.total_steps = 12
  config.warmup_steps = 2
  config.save_every_steps = 4
  config.log_every_steps = 2
  config.augment.gain = 6.0
  config.augment.equaliser = 2.0
  config.update(fields)
  return config


def probing(data_dir, **fields):
  """A probe config of two seeds; `fields` replace some."""
  config = shrink(defaults.probing())
  config.data.data_dir = str(data_dir)
  config.embed_batch = 16
  config.probe.update(
    {"steps": 40, "evaluations": 4, "learning_rates": (1e-2,)}
    | {"weight_decays": (1e-2,), "seeds": 2, "resamples": 50}
  )
  config.update(fields)
  return config
