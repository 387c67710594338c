"""What the published step sends and holds, for 1 to 256 devices.

Of every task's step (preset "paper") the program is compiled for so many
virtual devices of this machine and not run; nothing of its size is allocated.
From its text and XLA's analysis come the bytes that a device sends, by kind of
collective, and the memory that it holds at most (of this machine's compiler;
others fuse and pack otherwise). Parts:

- "devices": what is sent and held, for a fixed batch per device;
- "step": what one device holds as its batch grows, all at once and with the
  network seeing 128 pairs in turn (`--config.accumulate`);
- "loss": the same of the loss with its gradient alone.

At last, how fast each grows, as the power of the devices or of the batch,
beside the fastest that it must. What grows faster is marked, and the exit code
is 1.

And a projection to slices of TPU v6e, of which nothing was measured:

- A chip computes 918 TFLOP/s in bfloat16, moves 1,638 GB/s and sends 400 GB/s:
  102.4 TB/s of all-reduce in a pod of 256 (docs.cloud.google.com/tpu/docs/v6e).
- It reaches a quarter of each, computing and moving at once, and sends when
  nothing else goes on.
- A collective costs another microsecond for each of the 2 sqrt(n) chips that a
  message passes on a torus of n and, of an all-reduce, twice that.
- Operations and bytes are those of this machine's compiler, in float32.

  python -m benchmarks.scale
"""

import importlib
import math

import jax
from absl import app, flags

from benchmarks import programs
from ssl_music import parallel

_TASKS = flags.DEFINE_list(
  "tasks",
  ["contrastive", "byol", "clustering", "barlow_twins", "vicreg"],
  "Names of configs.",
)
_DEVICES = flags.DEFINE_list("devices", ["1", "8", "64", "256"], "Rising.")
_PARTS = flags.DEFINE_list("parts", ["devices", "step", "loss"], "Tables.")
_PAIRS = flags.DEFINE_integer("pairs", 32, "Pairs a step on each device.")
_BATCHES = flags.DEFINE_list(
  "batches", ["512", "2048", "8192"], "Pairs a step on one device, rising."
)
_PEAK = flags.DEFINE_float("peak", 918e12, "FLOP/s of a chip.")
_BANDWIDTH = flags.DEFINE_float("bandwidth", 1638e9, "Bytes/s of a chip.")
_LINKS = flags.DEFINE_float("links", 400e9, "Bytes/s that a chip sends.")
_HOP = flags.DEFINE_float("hop", 1e-6, "Seconds from chip to chip.")
_SHARE = flags.DEFINE_float("share", 0.25, "Of all those that is reached.")

IN_TURN = 128  # pairs that the network sees at once, where it sees parts

# The powers by which terms must grow: those that are sent and held, of the
# number of devices at a fixed batch on each; the others, of the batch on one
# device. Contrastive compares each of a device's rows with all of the others',
# and so it gathers them; other tasks exchange statistics of features.
MUST = dict.fromkeys(programs.KINDS, 0) | {
  "held by a device": 0,
  "step": 1,
  "step in turn": 1,
  "loss": 1,
}
MUST_CONTRASTIVE = MUST | {
  "all-gather": 1,
  "reduce-scatter": 1,
  "held by a device": 1,
  "step": 2,
  "step in turn": 2,
  "loss": 2,
}


def growth(sizes: dict[int, float]) -> float:
  """Returns the power by which the last size has grown from the one before."""
  (x, size), (larger, grown) = sorted(sizes.items())[-2:]
  if not size:
    return 0.0 if not grown else math.inf
  return math.log(grown / size) / math.log(larger / x)


def project(
  found: list[programs.Collective],
  operations: float,
  moved: float,
  devices: int,
) -> tuple[float, float]:
  """Returns the seconds that a chip computes, and that it sends."""
  share = _SHARE.value
  computing = max(operations / _PEAK.value, moved / _BANDWIDTH.value) / share
  if devices == 1:
    return computing, 0.0
  passed = sum(2 if c.kind == "all-reduce" else 1 for c in found)
  hops = passed * 2 * math.sqrt(devices)
  sending = sum(c.sent(devices) for c in found) / (_LINKS.value * share)
  return computing, sending + hops * _HOP.value


def settings(task: str, batch: int) -> dict:
  """Returns the published config of a task as a plain dict."""
  config = importlib.import_module(f"configs.{task}").get_config("paper")
  config.batch = batch
  return config.to_dict()


def by_devices(task: str) -> dict[str, dict[int, float]]:
  """Prints a row for each number of devices; returns the terms that grow."""
  terms = {name: {} for name in (*programs.KINDS, "held by a device")}
  for devices in map(int, _DEVICES.value):
    batch = devices * _PAIRS.value
    mesh = parallel.make_mesh(jax.devices()[:devices])
    program = programs.compile_step(settings(task, batch), mesh)
    text = program.as_text()
    # Those of a single device go nowhere.
    found = programs.collectives(text, devices) if devices > 1 else []
    for kind in programs.KINDS if found else ():
      terms[kind][devices] = sum(c.payload for c in found if c.kind == kind)
    held = terms["held by a device"][devices] = programs.memory(program)
    cost = program.cost_analysis()
    computing, sending = project(
      found, cost["flops"], cost["bytes accessed"], devices
    )
    sent = [
      sum(c.sent(devices) for c in found if c.kind == kind) / 1e6
      for kind in programs.KINDS
    ]
    cells = [task, devices, batch, *[f"{size:.2f}" for size in sent]]
    cells += [len(found), f"{held / 1e6:,.0f}", f"{1000 * computing:.1f}"]
    cells += [f"{1000 * sending:.1f}"]
    cells += [f"{100 * computing / (computing + sending):.0f} %"]
    row(*cells)
  return terms


def by_batch(task: str) -> dict[str, dict[int, float]]:
  """Prints a row for each batch on one device; returns what the step holds."""
  terms = {"step": {}, "step in turn": {}}
  mesh = parallel.make_mesh(jax.devices()[:1])
  for batch in map(int, _BATCHES.value):
    config = settings(task, batch)
    for name, parts in (("step", 1), ("step in turn", batch // IN_TURN)):
      config["accumulate"] = parts
      program = programs.compile_step(config, mesh)
      terms[name][batch] = programs.memory(program)
    row(
      task, f"{batch:,}", *[f"{terms[name][batch] / 1e9:.2f}" for name in terms]
    )
  return terms


def by_loss(task: str) -> dict[str, dict[int, float]]:
  """Prints a row for each batch; returns what the loss holds on one device.

  Beside it stands what it holds on each of 256 devices that share the batch.
  """
  held = {}
  for batch in map(int, _BATCHES.value):
    cells = [task, f"{batch:,}"]
    for devices in (1, max(map(int, _DEVICES.value))):
      mesh = parallel.make_mesh(jax.devices()[:devices])
      program = programs.compile_loss(settings(task, batch), mesh)
      size = programs.memory(program)
      shape, _ = programs.largest_array(program.as_text())
      cells += [f"{size / 1e6:,.1f}", shape]
      held.setdefault(batch, size)
    row(*cells)
  return {"loss": held}


def by_growth(task: str, terms: dict[str, dict[int, float]]) -> bool:
  """Prints a row for each term; returns whether none grows too fast."""
  must = MUST_CONTRASTIVE if task == "contrastive" else MUST
  fine = True
  for name, sizes in terms.items():
    if len(sizes) > 1:
      power = growth(sizes)
      good = power <= must[name] + 0.05
      fine = fine and good
      row(task, name, f"{power:.2f}", must[name], "" if good else "too fast")
  return fine


def row(*cells: object) -> None:
  """Prints a row of a table."""
  print(f"| {' | '.join(map(str, cells))} |", flush=True)


def title(*names: str) -> None:
  """Prints the head of a table."""
  print()
  row(*names)
  row(*["---"] * len(names))


def main(_) -> int:
  """Prints the tables."""
  most = max(map(int, _DEVICES.value))
  jax.config.update("jax_num_cpu_devices", most)
  sent = [f"{kind}, MB" for kind in programs.KINDS]
  sending = (*sent, "collectives", "held, MB", "computing, ms", "sending, ms")
  several = f"each of {most}, MB"
  parts = {
    "devices": (by_devices, ("devices", "pairs", *sending, "computing")),
    "step": (by_batch, ("pairs", "at once, GB", "in turn, GB")),
    "loss": (by_loss, ("pairs", "1 device, MB", "largest", several, "largest")),
  }
  terms = {task: {} for task in _TASKS.value}
  for part in _PARTS.value:
    measure, names = parts[part]
    title("task", *names)
    for task in _TASKS.value:
      terms[task] |= measure(task)
  title("task", "term", "grows by the power", "must", "")
  fine = [by_growth(task, terms[task]) for task in _TASKS.value]
  return 0 if all(fine) else 1


if __name__ == "__main__":
  app.run(main)
