"""Steps of every task beside the published modules', in float64.

The authors published networks, losses, teachers and schedules, but no loop.
`published_modules` has a loop around them, with PyTorch's AdamW; here is the
same through `ssl_music.step`, on weights and spectrograms that are made up by
the golden rule. Printed is how far parameters and running statistics are from
each other in the end, ‖a − b‖ / ‖b‖. Their code is not part of this project:

  git clone https://github.com/deezer/multi-view-ssl-benchmark DIR
  pip install torch==2.13.0 einops
  python -m benchmarks.published_steps --published=DIR

BYOL comes twice: the published loss sums over the batch where it should sum
over features ("with its slip"); without that it is the paper's formula, which
is ours. The temperature of clustering's teacher, which the published code
raises by epoch and this project by step, is given by step to both.
"""

import argparse
import contextlib
import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import published_modules
from ssl_music import optimizer, parallel, step
from ssl_music.models import torch_weights
from tests import golden

TASKS = ("contrastive", "byol", "clustering", "barlow_twins", "vicreg")
EPOCHS = 4, 5  # and steps in each
# Optimising a program for few steps would take longer than they do.
_QUICK = {"xla_backend_optimization_level": 0}
_PREFIX = {"backbone": "embedding."}


def recipe(task: str) -> tuple[dict, dict]:
  """Returns the preset "paper" of a task, narrow, and its schedules."""
  config = importlib.import_module(f"configs.{task}").get_config("paper")
  config.batch = 8
  config.model.update(
    {"width": 4, "depths": (1, 1, 1, 1), "output": 32, "dtype": "float64"}
  )
  config.pretext.head = (24, 24, 40)
  if task == "byol":
    config.pretext.predictor = (16, 40)
  if task == "clustering":
    config.pretext.head = (24, 24, 16, 64)
  settings, steps = config.to_dict(), EPOCHS[1]
  lengths = {"total": EPOCHS[0] * steps, "warmup": steps}
  lengths |= {"momentum": 999 * steps, "temperature_warmup": 2 * steps}
  rates = optimizer.learning_schedules(settings, lengths)
  return settings, rates | step.teacher_schedules(settings, lengths)


def mels(number: int) -> np.ndarray:
  """Returns a step's log-mel spectrograms, float64 [2, 8, bands, frames]."""
  shape = (2, 8, 128, 126)
  tracks = golden.rand(f"tracks{number}", (1, *shape[1:3], 1))
  return -40 + 15.0 * tracks + 8.0 * golden.rand(f"mels{number}", shape)


def _initial(config: Mapping, updates: Any) -> dict[str, Any]:
  """Returns the state at step 0 with made-up weights, all in float64."""
  state = jax.device_get(step.init_state(config, updates))

  def fill(held: Mapping, name: str) -> None:
    empty = {kind: held[kind][name] for kind in step.KINDS}
    weights = {
      key: golden.weight(key, np.shape(value))
      for key, value in torch_weights.to_torch(empty).items()
    }
    for kind, tree in torch_weights.from_torch(weights, empty).items():
      held[kind][name] = jax.tree.map(np.float64, tree)

  for held in (state, state.get("teacher", {"params": ()})):
    for name in held["params"]:
      fill(held, name)
  if "memory" in state:
    state["memory"] = jax.tree.map(np.float64, state["memory"])
  state["opt_state"] = updates.init(state["params"])
  return state


def train(
  config: Mapping, rates: Mapping, batches: Sequence[np.ndarray]
) -> dict[str, Any]:
  """Returns our state after a step of each batch.

  Args:
    config: as of `recipe`.
    rates: as of `recipe`.
    batches: as of `mels`.
  """
  updates = optimizer.make_optimizer(config, rates)
  mesh = parallel.make_mesh(jax.devices()[:1])
  state = parallel.replicate(_initial(config, updates), mesh)
  of_batch = step._spectrograms
  step._spectrograms = lambda config, step, batch: [batch["views"]]
  try:
    run = step.map_train_step(config, updates, rates, mesh)
    batch = parallel.shard({"views": batches[0]}, mesh, axis=1)
    run = run.lower(state, batch).compile(_QUICK)
  finally:
    step._spectrograms = of_batch
  for views in batches:
    batch = parallel.shard({"views": views}, mesh, axis=1)
    state, _, _ = run(state, batch)
  return jax.device_get(state)


def _difference(state: Mapping, name: str, theirs: Mapping) -> str:
  """Says how far our network is from theirs, as "teacher head" is named."""
  owner, _, part = name.rpartition(" ")
  held = state["teacher"] if owner else state
  ours = {kind: held[kind][part] for kind in step.KINDS}
  prefix = _PREFIX.get(part, "")
  weights = {prefix + n: v.numpy() for n, v in theirs.items()}
  other = torch_weights.from_torch(weights, ours)
  flat = lambda tree: np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
  return " | ".join(
    f"{golden.relative_error(flat(ours[kind]), flat(other[kind])):.0e}"
    for kind in step.KINDS
  )


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--published", type=Path, required=True)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--tasks", nargs="+", default=TASKS)
  options = parser.parse_args()
  batches = [mels(number) for number in range(options.steps)]
  jax.config.update("jax_enable_x64", True)
  print("| task | network | parameters | running statistics |")
  print("| --- | --- | --- | --- |", flush=True)
  for task in options.tasks:
    config, rates = recipe(task)
    state = train(config, rates, batches)
    at = rates.get("teacher_temperature", lambda step: 0)
    temperatures = [float(at(step)) for step in range(len(batches))]
    for slip in (False, True) if task == "byol" else (False,):
      with contextlib.redirect_stdout(io.StringIO()):  # they print a lot
        networks = published_modules.train(
          options.published, config, batches, EPOCHS, temperatures, slip=slip
        )
      named = f"{task}, with its slip" if slip else task
      for name, network in networks.items():
        row = _difference(state, name, network.state_dict())
        print(f"| {named} | {name} | {row} |", flush=True)


if __name__ == "__main__":
  main()
