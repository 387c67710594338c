"""Times the training step of each pretext task beside contrastive's.

Every task has a step of its own, compiled for the same backbone and batch; the
steps take turns on the same random audio, so that what else the machine does
hits all alike. Of each task the median time and the median of its ratios to
the contrastive step of the same round are printed.

  python -m benchmarks.pretext_cost --preset=laptop --rounds=10
"""

import importlib
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from ssl_music import optimizer, parallel, step
from ssl_music.data import audio
from ssl_music.pretext import PRETEXTS

_PRESET = flags.DEFINE_enum("preset", "laptop", ("laptop", "paper"), "Of what.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed steps of each task.")
_BATCH = flags.DEFINE_integer("batch", 0, "Tracks a step; 0: the preset's.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Of the computation.")

TAGS = 50  # of the supervised task
LENGTHS = {"warmup": 10, "total": 1000, "temperature_warmup": 50}


def prepare(config: ConfigDict, mesh) -> Callable[[], float]:
  """Returns a function that takes a step and returns its time, in seconds."""
  settings = config.to_dict()
  task = PRETEXTS[config.pretext.name]
  if task.labels:
    settings["pretext"]["head"] = (*config.pretext.head, TAGS)
  rates = optimizer.learning_schedules(settings, LENGTHS)
  rates |= step.teacher_schedules(settings, LENGTHS)
  updates = optimizer.make_optimizer(settings, rates)
  state = parallel.replicate(step.init_state(settings, updates), mesh)
  samples = round(config.data.seconds * audio.SAMPLE_RATE)
  rng = np.random.default_rng(0)
  shape = (config.views, config.batch, samples)
  batch = {"views": rng.integers(-9999, 9999, shape, np.int16)}
  if task.labels:
    batch["labels"] = rng.integers(0, 2, (1, config.batch, TAGS), np.int8)
  batch = parallel.shard(batch, mesh, axis=1)
  compiled = step.map_train_step(settings, updates, rates, mesh)
  compiled = compiled.lower(state, batch).compile()

  def run() -> float:
    nonlocal state
    began = time.perf_counter()
    state, metrics, _ = compiled(state, batch)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - began

  return run


def main(_) -> None:
  """Prints the table."""
  mesh = parallel.make_mesh()
  steps = {}
  for name in PRETEXTS:
    config = importlib.import_module(f"configs.{name}").get_config(
      _PRESET.value
    )
    config.batch = _BATCH.value or config.batch
    config.model.dtype = _DTYPE.value
    steps[name] = prepare(config, mesh)
  times = []
  for index in range(_ROUNDS.value + 2):
    taken = {name: run() for name, run in steps.items()}
    if index >= 2:  # the first ones allocate
      times.append(taken)
  device = jax.devices()[0]
  print(
    f"{len(jax.devices())} x {device.device_kind}, {config.batch} x"
    f" {config.views} segments of {config.data.seconds:g} s, {_DTYPE.value},"
    f" preset {_PRESET.value}, median of {_ROUNDS.value} rounds"
  )
  print("| task | seconds a step | times contrastive |\n| --- | --- | --- |")
  for name in PRETEXTS:
    seconds = np.median([taken[name] for taken in times])
    ratio = np.median([taken[name] / taken["contrastive"] for taken in times])
    print(f"| {name} | {seconds:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
  app.run(main)
