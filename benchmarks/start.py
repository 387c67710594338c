"""Times the way from the command to the first step, cold and warm.

`python -m ssl_music.main --config=configs/contrastive.py` on the demo data set,
which is made before: with an empty folder for compiled programs (cold), then
with what that run has left there (warm). Beside it, in the same run, a plain
script of Flax and optax with the same network, batch and loss, which has no
data set, keeps no programs and augments nothing (`start_parts.plain`). Each is
a process of its own; they take turns. A part's figure is the median of its
seconds, and behind it of its processor time without that of reading processes.

  python -m benchmarks.start --preset=paper --batch=32
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks import start_parts
from ssl_music.data import demo

_PRESET = flags.DEFINE_enum("preset", "paper", ("laptop", "paper"), "Of what.")
_BATCH = flags.DEFINE_integer("batch", 32, "Tracks a step.")
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Starts of each kind.")
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where the demo data set is; None: a folder for this run."
)

KINDS = ("cold", "warm", "plain")


def start(arguments: list[str], cache: Path | None) -> dict[str, list[float]]:
  """Starts a program of `start_parts`; returns when its parts have ended.

  Args:
    arguments: its own.
    cache: of compiled programs; None keeps none.

  Returns:
    seconds and processor seconds at the end of each part, in order.

  Raises:
    RuntimeError: it failed, with the end of what it said.
  """
  setting = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
  if cache:
    setting = {"JAX_COMPILATION_CACHE_DIR": str(cache)}
  done = subprocess.run(
    [sys.executable, "-m", "benchmarks.start_parts", *arguments],
    env=os.environ | setting | {"BENCHMARK_BEGAN": str(time.time())},
    capture_output=True,
    encoding="utf-8",
  )
  lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
  if done.returncode or not lines:
    raise RuntimeError(f"{arguments[0]}: {done.stderr[-2000:]}")
  return json.loads(lines[-1])


def measure(data_dir: str) -> dict[str, list[dict[str, np.ndarray]]]:
  """Starts each kind so many times; returns the durations of their parts."""
  found = {kind: [] for kind in KINDS}
  batch = str(_BATCH.value)
  for _ in range(_ROUNDS.value):
    with tempfile.TemporaryDirectory() as folder:
      for kind in KINDS:
        arguments = ["plain", _PRESET.value, batch]
        if kind != "plain":
          arguments = [
            "command",
            f"--config=configs/contrastive.py:{_PRESET.value}",
            f"--config.batch={batch}",
            f"--config.data.data_dir={data_dir}",
            f"--workdir={folder}/{kind}",
          ]
        cache = None if kind == "plain" else Path(folder) / "compiled"
        found[kind].append(start_parts.durations(start(arguments, cache)))
  return found


def main(_) -> None:
  """Prints the table."""
  with tempfile.TemporaryDirectory() as folder:
    data_dir = _DATA_DIR.value or folder
    demo.ensure("demo", data_dir)
    found = measure(data_dir)
  print("| part | cold | warm | plain | cold / plain | warm / plain |")
  print("| --- " * 6 + "|")
  for part in found["cold"][0]:
    median = {
      kind: np.median([parts[part] for parts in found[kind]], axis=0)
      for kind in KINDS
    }
    cells = [f"{wall:.1f} ({cpu:.1f})" for wall, cpu in median.values()]
    ratios = [""] * 2
    if part == "all":
      ratios = [
        f"{ratio[0]:.2f} ({ratio[1]:.2f})"
        for ratio in (median[kind] / median["plain"] for kind in KINDS[:2])
      ]
    print(f"| {' | '.join([part, *cells, *ratios])} |")


if __name__ == "__main__":
  app.run(main)
