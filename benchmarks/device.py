"""Spends some minutes of an accelerator on what matters most, in that order.

For a machine that is there for a short while. Every part is a process of its
own with a time limit, and its output goes to a file of `--out` as it comes: a
part that fails or takes too long costs the others nothing.

  python -m benchmarks.device --minutes=8 --out=runs/device

- numbers: 20 steps of each task beside the same on the host's CPU.
- golden: the tests of the front end, network, heads and losses.
- step: `benchmarks.train_step`, beside PyTorch where that is installed.
- batch: the contrastive step in bfloat16 at ever larger batches.
- embed: `benchmarks.embed` on demo music.
- start: `benchmarks.start`.
- training: the published preset on the demo data set, for the rest of the time.

`--rehearse` runs all of it at a tiny size on whatever device there is.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

TASKS = ("contrastive", "byol", "clustering", "barlow_twins", "vicreg")
_MINUTES = flags.DEFINE_float("minutes", 8.0, "For all parts together.")
_OUT = flags.DEFINE_string("out", "runs/device", "Folder of the results.")
_REHEARSE = flags.DEFINE_bool("rehearse", False, "Run it all at a tiny size.")
_PART = flags.DEFINE_string("part", "", "Internal: what this process does.")
_GOLDEN = ("models/test_frontend.py", "models/test_resnet.py", "pretext")


def main(_) -> int:
  """Runs the parts, or is one of them; 1 says that a part failed."""
  if _PART.value:
    {"numbers": print_numbers, "music": make_music}[_PART.value]()
    return 0
  end = time.monotonic() + 60 * _MINUTES.value
  out = Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  good = True
  for name, share, arguments in parts(out):
    left = end - time.monotonic()
    most = min(60 * share * _MINUTES.value, left)
    good &= run(out / f"{name}.txt", arguments, most)
  print(f"\nEverything is in {out}.")
  return int(not good)


def parts(out: Path) -> list[tuple[str, float, list[str]]]:
  """Returns (name, largest share of the minutes, module and arguments)."""
  tiny = _REHEARSE.value
  preset = f"--preset={'laptop' if tiny else 'paper'}"
  once = [preset, "--rounds=1"] + ["--steps=1"] * tiny
  own = ["benchmarks.device", f"--out={out}", f"--rehearse={tiny}"]
  largest = json.dumps(["contrastive", "ssl_music", {"bfloat16": True}])
  step = ["benchmarks.train_step", *once]
  tests = [f"tests/{name}" for name in (_GOLDEN[:1] if tiny else _GOLDEN)]
  sizes = (2, 4) if tiny else (256, 512, 1024, 2048, 4096)
  files = ["--files=2"] if tiny else []
  training = [
    *("ssl_music.main", f"--config=configs/contrastive.py:{preset[9:]}"),
    *(f"--workdir={out}/run", f"--config.data.data_dir={out}/data"),
    *("--config.batch=8" if tiny else "--config.batch=96",),
    *("--config.log_every_steps=1" if tiny else "--config.log_every_steps=20",),
    *("--config.model.dtype=bfloat16",),
  ]
  tasks, batch = (TASKS[0], 2) if tiny else (",".join(TASKS), 128)
  return [
    ("numbers", 0.15, [*own, "--part=numbers"]),
    ("golden", 0.1, ["pytest", "-q", "-n0", *tests]),
    ("step", 0.4, [*step, f"--tasks={tasks}", f"--batch={batch}"]),
    *(
      (f"batch_{size}", 0.1, [*step, f"--batch={size}", f"--variant={largest}"])
      for size in sizes
    ),
    ("music", 0.1, [*own, "--part=music"]),
    (
      "embed",
      0.1,
      ["benchmarks.embed", *once[:2], *files, f"--source={out}/music"],
    ),
    (
      "start",
      0.2,
      [
        *("benchmarks.start", preset, f"--batch={8 if tiny else 96}"),
        f"--data_dir={out}/data",
      ],
    ),
    ("training", 1.0, training),
  ]


def run(file: Path, arguments: list[str], seconds: float) -> bool:
  """Runs a part for so long at most, and shows the end of what it printed.

  At the limit it gets SIGTERM, on which a training saves; ten seconds later it
  is killed.

  Returns:
    whether it came to its end, or to its limit, without an error.
  """
  began = time.monotonic()
  # As precise as the CPU's, where a GPU would round to fewer bits.
  precise = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
  environment = os.environ | (precise if "golden" in file.name else {})
  with file.open("w", encoding="utf-8") as output:
    process = subprocess.Popen(
      [sys.executable, "-m", *arguments],
      stdout=output,
      stderr=subprocess.STDOUT,
      env=environment,
      start_new_session=True,
    )
    code = 0
    try:
      code = process.wait(max(seconds, 0.1))
      ended = f"exit code {code}"
    except subprocess.TimeoutExpired:
      ended = "stopped at its limit"
      process.terminate()
      try:
        process.wait(10)
      except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
  print(f"\n## {file.stem}: {ended}, {time.monotonic() - began:.0f} s\n")
  print(
    "\n".join(
      file.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
    ),
    flush=True,
  )
  return not code


def print_numbers() -> None:
  """Prints a table: steps on the accelerator beside the CPU's, in float32."""
  import jax
  import numpy as np

  import ssl_music  # noqa: F401 (before jax starts)

  jax.config.update("jax_default_matmul_precision", "highest")
  device = jax.devices()[0]
  print(f"{device.device_kind} beside its host's CPU\n")
  print("| task | loss, first and last | CPU's | parameters apart |")
  print("| --- | --- | --- | --- |", flush=True)
  for task in TASKS[:1] if _REHEARSE.value else TASKS:
    losses, params = zip(
      *(steps(task, one) for one in (device, jax.devices("cpu")[0])),
      strict=True,
    )
    apart = np.linalg.norm(params[0] - params[1]) / np.linalg.norm(params[1])
    first, second = (f"{every[0]:.6f} {every[-1]:.6f}" for every in losses)
    print(f"| {task} | {first} | {second} | {apart:.1e} |", flush=True)


def steps(task: str, device) -> tuple[list[float], "np.ndarray"]:  # noqa: F821
  """Takes steps of the laptop's network on a device, always the same ones.

  Returns:
    the losses, and all parameters at the end, float32 [P].
  """
  import jax
  import numpy as np

  from benchmarks import train_step
  from ssl_music import optimizer, parallel, step

  config = train_step.read_config(task, 8, "laptop").to_dict()
  lengths = {"warmup": 5, "total": 20, "temperature_warmup": 5}
  rates = optimizer.learning_schedules(config, lengths)
  rates |= step.teacher_schedules(config, lengths)
  updates = optimizer.make_optimizer(config, rates)
  mesh = parallel.make_mesh([device])
  with jax.default_device(device):
    state = parallel.replicate(step.init_state(config, updates), mesh)
  mapped = step.map_train_step(config, updates, rates, mesh)
  samples = round(16_000 * config["data"]["seconds"])
  rng, losses = np.random.default_rng(0), []
  for _ in range(2 if _REHEARSE.value else 20):
    wave = rng.integers(-9999, 9999, (2, 8, samples), np.int16)
    given = {"views": parallel.shard(wave, mesh, axis=1)}
    state, metrics, _ = mapped(state, given)
    losses.append(float(metrics["loss"]))
  leaves = jax.tree.leaves(jax.device_get(state["params"]))
  return losses, np.concatenate([leaf.ravel() for leaf in leaves])


def make_music() -> None:
  """Makes the demo music, as files and as a data set."""
  import soundfile

  from ssl_music.data import demo

  out = Path(_OUT.value)
  (out / "music").mkdir(exist_ok=True)
  for index in range(2 if _REHEARSE.value else 40):
    pcm, about = demo.track(index)
    soundfile.write(out / "music" / f"{about['id']}.wav", pcm, 16_000)
  demo.ensure("demo", out / "data")


if __name__ == "__main__":
  app.run(main)
