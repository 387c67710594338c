"""Times the whole training step beside the same step built in PyTorch.

A step is front end, augmentation (gain and equaliser), network, head, loss and
AdamW, on random audio, for each pretext task as published. Every variant runs
in a process of its own, in turns, so that what else the machine does hits all
alike; of each the median step is taken, and the floor is counted from the
compiled program's operations and the machine's own speed at a product of
matrices.

  python -m benchmarks.train_step --batch=32 --rounds=2

PyTorch is not among the requirements: without it the peer's rows are missing.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

TASKS = ("contrastive", "byol", "clustering", "barlow_twins", "vicreg")
_TASKS = flags.DEFINE_list("tasks", list(TASKS), "Pretext tasks.")
_BATCH = flags.DEFINE_integer("batch", 32, "Pairs of segments a step.")
_STEPS = flags.DEFINE_integer("steps", 8, "Timed steps of a variant a round.")
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Turns of every variant.")
_PRESET = flags.DEFINE_enum("preset", "paper", ("laptop", "paper"), "Of what.")
_VARIANT = flags.DEFINE_string("variant", "", "Internal: what a child times.")
_ON_CPU = {
  "ssl_music": {},
  "PyTorch eager": {},
  "PyTorch channels-last": {"channels_last": True},
  "PyTorch compiled": {"compiled": True},
}
_ON_GPU = {
  "ssl_music": {},
  "ssl_music bfloat16": {"bfloat16": True},
  "PyTorch eager": {},
  "PyTorch eager bfloat16": {"bfloat16": True, "channels_last": True},
  "PyTorch compiled": {"compiled": True, "channels_last": True},
  "PyTorch compiled bfloat16": {
    "compiled": True,
    "channels_last": True,
    "bfloat16": True,
  },
}


def read_config(task: str, batch: int, preset: str):
  """Returns a task's preset, with augmentation."""
  config = importlib.import_module(f"configs.{task}").get_config(preset)
  config.batch = batch
  config.augment.gain = 6.0
  config.augment.equaliser = 3.0
  return config


def audio(batch: int, seconds: float) -> np.ndarray:
  """Returns random segments, int16 [2, batch, samples]."""
  shape = 2, batch, round(16_000 * seconds)
  return np.random.default_rng(0).integers(-9999, 9999, shape, np.int16)


def jax_step(
  task: str, batch: int, *, bfloat16: bool = False
) -> tuple[Callable[[], None], dict[str, float]]:
  """Returns a function that takes a step, and what its program costs."""
  import jax

  from ssl_music import optimizer, parallel, step

  config = read_config(task, batch, _PRESET.value)
  config.model.dtype = "bfloat16" if bfloat16 else "float32"
  settings = config.to_dict()
  lengths = {"warmup": 10, "total": 1000, "temperature_warmup": 50}
  rates = optimizer.learning_schedules(settings, lengths)
  rates |= step.teacher_schedules(settings, lengths)
  updates = optimizer.make_optimizer(settings, rates)
  mesh = parallel.make_mesh()
  state = parallel.replicate(step.init_state(settings, updates), mesh)
  mapped = step.map_train_step(settings, updates, rates, mesh)
  waveform = audio(batch, settings["data"]["seconds"])
  began = time.perf_counter()
  given = {"views": parallel.shard(waveform, mesh, axis=1)}
  compiled = mapped.lower(state, given).compile()
  cost = compiled.cost_analysis()
  about = {"compile": time.perf_counter() - began, "flops": cost["flops"]}
  about["bytes"] = cost["bytes accessed"]

  def run() -> None:
    nonlocal state
    given = {"views": parallel.shard(waveform, mesh, axis=1)}
    state, metrics, _ = compiled(state, given)
    jax.block_until_ready((state, metrics))

  return run, about


def torch_step(
  task: str, batch: int, **how: bool
) -> tuple[Callable[[], None], dict[str, float]]:
  """Returns a function that takes a step in PyTorch."""
  import torch

  from benchmarks import torch_step

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_float32_matmul_precision("high")  # as JAX's default on a GPU
  config = read_config(task, batch, _PRESET.value).to_dict()
  step = torch_step.make_step(config, device=device, **how)
  waveform = torch.from_numpy(audio(batch, config["data"]["seconds"]))

  def run() -> None:
    loss = step(waveform)
    if device == "cuda":
      torch.cuda.synchronize()
    float(loss)

  return run, {}


def matmul_speed() -> float:
  """Returns the machine's float32 FLOP/s at a product of large matrices."""
  import jax
  import jax.numpy as jnp

  size = 2048
  a = jnp.ones((size, size))
  product = jax.jit(lambda a: a @ a)
  product(a).block_until_ready()
  best = np.inf
  for _ in range(5):
    began = time.perf_counter()
    product(a).block_until_ready()
    best = min(best, time.perf_counter() - began)
  return 2 * size**3 / best


def child(variant: str) -> None:
  """Times one variant of one task and prints what it found, as JSON."""
  task, name, how = json.loads(variant)
  make = jax_step if name.startswith("ssl_music") else torch_step
  run, about = make(task, _BATCH.value, **how)
  began = time.perf_counter()
  run()
  about["first"] = time.perf_counter() - began
  run()
  times = []
  for _ in range(_STEPS.value):
    began = time.perf_counter()
    run()
    times.append(time.perf_counter() - began)
  if make is jax_step:
    about["peak"] = matmul_speed()
  print(json.dumps(about | {"times": times}))


def measure(task: str, name: str, how: dict) -> dict:
  """Runs a variant in a process of its own."""
  command = [sys.executable, "-m", "benchmarks.train_step"]
  command += [f"--variant={json.dumps([task, name, how])}"]
  command += [f"--batch={_BATCH.value}", f"--steps={_STEPS.value}"]
  command += [f"--preset={_PRESET.value}"]
  done = subprocess.run(
    command,
    capture_output=True,
    env=dict(os.environ),
    check=False,
    encoding="utf-8",
  )
  if done.returncode:
    sys.exit(f"{name}: {done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def main(_) -> None:
  """Prints the table."""
  if _VARIANT.value:
    child(_VARIANT.value)
    return
  import jax

  device = jax.devices()[0]
  variants = _ON_GPU if device.platform == "gpu" else _ON_CPU
  if importlib.util.find_spec("torch") is None:
    variants = {n: how for n, how in variants.items() if "PyTorch" not in n}
  print(
    f"{device.device_kind}, {_BATCH.value} pairs, preset {_PRESET.value};"
    f" median of {_ROUNDS.value} x {_STEPS.value} steps\n"
  )
  print("| task | variant | s a step | segments/s | times ssl_music's |")
  print("| --- | --- | --- | --- | --- |", flush=True)
  for task in _TASKS.value:
    found = {name: [] for name in variants}
    for _ in range(_ROUNDS.value):
      for name, how in variants.items():
        found[name].append(measure(task, name, how))
    medians = {
      name: float(np.median([one["times"] for one in every]))
      for name, every in found.items()
    }
    for name, seconds in medians.items():
      ratio = seconds / medians["ssl_music"]
      print(
        f"| {task} | {name} | {seconds:.3f} |"
        f" {2 * _BATCH.value / seconds:.0f} | {ratio:.2f} |",
        flush=True,
      )
    about = found["ssl_music"][0]
    floor = about["flops"] / max(one["peak"] for one in found["ssl_music"])
    print(
      f"| {task} | floor: {about['flops'] / 1e9:.0f} GFLOP at the speed of a"
      f" large product | {floor:.3f} | {2 * _BATCH.value / floor:.0f} |"
      f" {floor / medians['ssl_music']:.2f} |",
      flush=True,
    )


if __name__ == "__main__":
  app.run(main)
