"""What of the steps reaches the compilers of accelerators."""

import functools

import pytest
import tiny

from benchmarks import programs
from ssl_music import parallel
from ssl_music.pretext import PRETEXTS

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
