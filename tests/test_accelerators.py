"""What of the steps reaches the compilers of accelerators."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from benchmarks import programs, targets
from ssl_music import parallel
from ssl_music.errors import InputError
from ssl_music.pretext import PRETEXTS

ROOT = Path(__file__).parent.parent
CPU_FORMS = ("stablehlo.optimization_barrier", "stablehlo.fft")
# Collectives of a tiny network's step. Of every norm one forward and one back
# (a teacher's has none back), besides what the loss sends, and one mean of each
# gradient, which XLA sends together.
COLLECTIVES = {
  "contrastive": 75,
  "byol": 90,
  "clustering": 98,
  "barlow_twins": 78,
  "vicreg": 83,
  "supervised": 66,
}
MOST = 98  # of any other task
# Of the paper's tasks, when a TPU's compiler has joined some of its program's,
# see `compile_for_tpu.py`.
JOINED = {
  "contrastive": 17,
  "byol": 7,
  "clustering": 11,
  "barlow_twins": 10,
  "vicreg": 10,
  "supervised": 3,
}


@functools.cache
def lowered(task, platform):
  """The text of a task's step on 8 devices, before it is compiled."""
  config = tiny.pretraining("unused", task).to_dict()
  if task == "supervised":
    config["pretext"]["head"] = (len(tiny.TAGS),)
  mesh = parallel.make_mesh()
  return programs.lower_step(config, mesh, platform).as_text()


@pytest.mark.parametrize("task", PRETEXTS)
def test_a_step_is_plain(task):
  text = lowered(task, "tpu")
  assert not any(form in text for form in CPU_FORMS)
  collectives = ("all_reduce", "all_gather", "reduce_scatter")
  found = sum(text.count(f'"stablehlo.{name}"') for name in collectives)
  assert found <= COLLECTIVES.get(task, MOST)


def test_a_cpu_gets_its_own():
  text = lowered("contrastive", "cpu")
  assert all(form in text for form in CPU_FORMS)


def test_steps_as_a_tpus_compiler_makes_them():
  """On four chips, with XLA's own passes behind them, and what those join."""
  try:
    environment = targets.environment("v5e:4")
  except InputError as error:
    pytest.skip(str(error))
  environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nothing is run
  environment["PYTHONPATH"] += os.pathsep + str(ROOT)
  done = subprocess.run(
    [sys.executable, ROOT / "tests" / "compile_for_tpu.py", *JOINED],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr[-2000:]
  found = [json.loads(line) for line in done.stdout.splitlines()]
  assert [one["task"] for one in found] == list(JOINED)
  for one in found:
    assert one["barriers"] == one["branches"] == 0, one
    assert one["collectives"] <= JOINED[one["task"]], one
