"""Estimates what the paper's recipe costs on a Cloud TPU.

Of every task's step, 128 pairs of 4 s, the floating-point operations and the
bytes moved are counted (XLA's analysis of the program compiled here, which is
not run). The floor is the longer of the two on one chip; the estimates reach
only a share of that speed, and 999 x 512 such steps are paid for. Assumptions,
to be changed by flags:

- A TPU v6e chip computes 918 TFLOP/s in bfloat16 and moves 1,638 GB/s
  (docs.cloud.google.com/tpu/docs/v6e).
- It costs 2.70 dollars an hour on demand, 0.54 as a spot one in us-central1 and
  1.22 in us-east5: Google's list prices as SkyPilot's catalogue has them
  (github.com/skypilot-org/skypilot-catalog, catalogs/v8/gcp/vms.csv at 006059e,
  read on 25 November 2026). Storage and traffic are not counted.
- A quarter of the floor's speed. Nobody has measured it.
- The bytes are those of this machine's compiler, in float32: bfloat16 and a
  TPU's larger fusions move fewer.

  python -m benchmarks.tpu_cost
"""

import importlib

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import ConfigDict

from ssl_music import compiled, optimizer, parallel, step
from ssl_music.data import audio

STEPS = 999 * 512

_TASKS = flags.DEFINE_list(
  "tasks",
  ["contrastive", "byol", "clustering", "barlow_twins", "vicreg"],
  "Names of configs.",
)
_PEAK = flags.DEFINE_float("peak", 918e12, "FLOP/s of a chip.")
_BANDWIDTH = flags.DEFINE_float("bandwidth", 1638e9, "Bytes/s of a chip.")
_SHARES = flags.DEFINE_list("shares", ["0.5", "0.25", "0.1"], "Of the floor.")
_PRICE = flags.DEFINE_float("price", 2.70, "Dollars for a chip's hour.")


def count(config: ConfigDict) -> tuple[float, float]:
  """Returns the operations and the bytes of a step."""
  settings = config.to_dict()
  lengths = {"warmup": config.warmup_steps, "total": STEPS}
  lengths["temperature_warmup"] = config.get("temperature_warmup_steps", 1)
  rates = optimizer.learning_schedules(settings, lengths)
  rates |= step.teacher_schedules(settings, lengths)
  updates = optimizer.make_optimizer(settings, rates)
  mesh = parallel.make_mesh(jax.devices()[:1])
  state = step.init_state(settings, updates)
  samples = round(config.data.seconds * audio.SAMPLE_RATE)
  shape = (config.views, config.batch, samples)
  batch = {"views": jax.ShapeDtypeStruct(shape, jnp.int16)}
  program = step.map_train_step(settings, updates, rates, mesh)
  found = program.lower(state, batch).compile().cost_analysis()
  return found["flops"], found["bytes accessed"]


def main(_) -> None:
  """Prints the table."""
  compiled.keep()
  shares = [float(share) for share in _SHARES.value]
  names = [f"at {share:g} of it: hours, dollars" for share in shares]
  titles = ["task", "GFLOP a step", "GB a step", "floor, chip-hours", *names]
  print(f"| {' | '.join(titles)} |")
  print("| --- " * len(titles) + "|")
  for name in _TASKS.value:
    config = importlib.import_module(f"configs.{name}").get_config("paper")
    operations, moved = count(config)
    seconds = max(operations / _PEAK.value, moved / _BANDWIDTH.value)
    floor = seconds * STEPS / 3600
    cells = [name, f"{operations / 1e9:.0f}", f"{moved / 1e9:.1f}"]
    cells.append(f"{floor:.1f}")
    for share in shares:
      hours = floor / share
      cells.append(f"{hours:.0f}, {hours * _PRICE.value:.0f}")
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
