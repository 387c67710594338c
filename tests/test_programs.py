"""What the benchmarks read from compiled programs."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from benchmarks import programs, start_parts
from ssl_music import parallel
from ssl_music.parallel import AXIS

DIVIDED = PartitionSpec(AXIS)


def compiled(function, *shapes):
  """The program of a function over all 8 devices, and its text."""
  given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  mapped = parallel.map_step(
    function, parallel.make_mesh(), (DIVIDED,) * len(shapes), DIVIDED
  )
  program = mapped.lower(*given).compile()
  return program, program.as_text()


def test_counts_each_kind_of_collective():
  devices = len(jax.devices())

  def function(x):  # [2, 3] on each device
    every = jax.lax.all_gather(x, AXIS, tiled=True)
    total = jax.lax.psum(jnp.sin(x), AXIS)
    part = jax.lax.psum_scatter(jnp.cos(every), AXIS, tiled=True)
    return total + part

  found = programs.collectives(compiled(function, (2 * devices, 3))[1], devices)
  whole = devices * 2 * 3 * 4
  assert sorted(found) == sorted(
    programs.Collective(kind, size)
    for kind, size in (
      ("all-gather", whole),
      ("reduce-scatter", whole),
      ("all-reduce", 2 * 3 * 4),
    )
  )
  # A ring: each device passes on all but one part, of a sum twice.
  sent = {c.kind: c.sent(devices) for c in found}
  assert sent["all-gather"] == sent["reduce-scatter"] == whole - 24
  assert sent["all-reduce"] == 2 * 24 * (devices - 1) / devices


def test_counts_all_arrays_of_one_collective():
  # XLA makes one all-reduce of the two.
  def function(x):
    return x * sum(
      term.sum() for term in jax.lax.psum((jnp.sin(x), jnp.cos(x[0])), AXIS)
    )

  devices = len(jax.devices())
  found = programs.collectives(compiled(function, (devices * 2, 3))[1], devices)
  assert {c.kind for c in found} == {"all-reduce"}
  assert sum(c.payload for c in found) == (2 * 3 + 3) * 4


def test_refuses_what_it_cannot_count():
  def function(x):
    turn = lambda x, _: (jax.lax.psum(jnp.sin(x), AXIS), None)
    return jax.lax.scan(turn, x, length=50)[0]

  with pytest.raises(ValueError, match="any often"):
    programs.collectives(compiled(function, (8, 300))[1], 8)
  with pytest.raises(ValueError, match="no rule"):
    programs.collectives(
      compiled(lambda x: jax.lax.all_to_all(x, AXIS, 0, 0), (64, 3))[1], 8
    )


def test_the_losses_largest_array_is_no_matrix_of_all_with_all():
  config = tiny.pretraining("unused", batch=64 * len(jax.devices())).to_dict()
  text = programs.compile_loss(config, parallel.make_mesh()).as_text()
  # Rows of this device against columns of all, two views of each.
  rows, columns = 2 * 64, 2 * config["batch"]
  _, size = programs.largest_array(text)
  assert size == rows * columns * 4


@pytest.mark.parametrize("task", ["barlow_twins", "vicreg"])
def test_the_losses_send_their_matrix_once(task):
  config = importlib.import_module(f"configs.{task}").get_config("laptop")
  config.batch, config.pretext.head = 4 * len(jax.devices()), (8, 96)
  devices = parallel.make_mesh()
  text = programs.compile_loss(config.to_dict(), devices).as_text()
  found = programs.collectives(text, devices.size)
  matrices = {"barlow_twins": 1, "vicreg": 2}[task]  # a pair, or a view
  matrix = matrices * 96 * 96 * 4
  # Besides there are means of features, of each view.
  assert matrix <= sum(c.payload for c in found) < 1.4 * matrix


def test_memory_holds_arguments_and_results():
  program, _ = compiled(lambda x: jnp.sin(x), (800, 3))
  held = 2 * 100 * 3 * 4
  assert held <= programs.memory(program) < 2 * held


def test_counts_kernels_and_what_they_move():
  _, text = compiled(lambda x: jnp.sin(x) * 2, (800, 3))
  (kernel,) = programs.kernels(text)
  assert kernel == ("fusion", 2 * 100 * 3 * 4, 0)


def test_parts_last_from_one_end_to_the_next():
  found = start_parts.durations({"a": [1.0, 0.5], "b": [3.0, 0.75]})
  assert list(found) == ["a", "b", "all"]
  np.testing.assert_array_equal(found["b"], [2.0, 0.25])
  np.testing.assert_array_equal(found["all"], [3.0, 0.75])
