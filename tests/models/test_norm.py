"""Batch normalisation against Flax's, NumPy's, and itself over 8 devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ssl_music.models.norm import BatchNorm, batch_moments


def normal(*shape, seed=0):
  generator = np.random.default_rng(seed)
  return generator.standard_normal(shape).astype(np.float32)


def some_variables(channels):
  return {
    "params": {
      "scale": 1 + 0.1 * normal(channels, seed=1),
      "bias": normal(channels, seed=2),
    },
    "batch_stats": {
      "mean": normal(channels, seed=3),
      "var": 0.5 + np.abs(normal(channels, seed=4)),
    },
  }


def train_step(module, variables, x, cotangent):
  """Output, new running statistics and gradients of a training pass."""

  def loss(params, x):
    y, updates = module.apply(
      variables | {"params": params}, x, train=True, mutable="batch_stats"
    )
    return jnp.sum(y * cotangent), (y, updates["batch_stats"])

  gradients, (y, stats) = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    variables["params"], x
  )
  return y, stats, gradients


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 5)])
def test_output_and_gradients_are_those_of_flax(shape):
  x, cotangent = 3 + 2 * normal(*shape), normal(*shape, seed=5)
  variables = some_variables(5)
  y, stats, gradients = train_step(BatchNorm(), variables, x, cotangent)

  def flax_output(params, x):
    module = nn.BatchNorm(use_running_average=False, momentum=0.9)
    return module.apply(
      variables | {"params": params}, x, mutable="batch_stats"
    )

  (expected, updates), pull = jax.vjp(flax_output, variables["params"], x)
  zeros = jax.tree.map(jnp.zeros_like, updates)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  close(y, expected)
  close(stats["mean"], updates["batch_stats"]["mean"])
  jax.tree.map(close, gradients, pull((cotangent, zeros)))


def test_running_variance_is_the_unbiased_one():
  x = 3 + 2 * normal(4, 3, 5)
  variables = some_variables(5)
  _, updates = BatchNorm().apply(
    variables, x, train=True, mutable="batch_stats"
  )
  old, new = variables["batch_stats"], updates["batch_stats"]
  rows = x.reshape(-1, 5).astype(np.float64)
  expected = 0.9 * old["var"] + 0.1 * rows.var(0, ddof=1)
  np.testing.assert_allclose(new["var"], expected, rtol=1e-6)
  expected = 0.9 * old["mean"] + 0.1 * rows.mean(0)
  np.testing.assert_allclose(new["mean"], expected, rtol=1e-6)


def test_evaluation_uses_the_running_statistics():
  x = normal(4, 3, 5)
  variables = some_variables(5)
  stats, params = variables["batch_stats"], variables["params"]
  y = BatchNorm().apply(variables, x, train=False)
  expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
  expected = expected * params["scale"] + params["bias"]
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_variance_survives_a_large_mean():
  # The running mean is near it: of what the batch is off, little is lost.
  x = 1000 + 0.01 * normal(512, 5)
  variables = {
    "params": {"scale": np.ones(5), "bias": np.zeros(5)},
    "batch_stats": {"mean": np.full(5, 999.99, "f"), "var": np.ones(5, "f")},
  }
  y, _ = BatchNorm().apply(variables, x, train=True, mutable="batch_stats")
  wide = x.astype(np.float64)
  expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
  np.testing.assert_allclose(y, expected, atol=0.02)


def test_a_new_networks_variance_is_exact_enough():
  # Decibels, of which the first convolution's mean is three deviations away.
  x = -60 + 20 * normal(4096, 5)
  _, variance = batch_moments(x, np.zeros(5, "f"))
  np.testing.assert_allclose(variance, x.astype(np.float64).var(0), rtol=1e-5)


def test_statistics_of_bfloat16_are_taken_in_float32():
  x = (100 + normal(512, 5)).astype(jnp.bfloat16)
  y, updates = BatchNorm(dtype=jnp.bfloat16).apply(
    some_variables(5), x, train=True, mutable="batch_stats"
  )
  assert y.dtype == jnp.bfloat16
  stats = updates["batch_stats"]
  assert stats["mean"].dtype == stats["var"].dtype == jnp.float32
  expected = 0.9 * some_variables(5)["batch_stats"]["mean"]
  expected += 0.1 * x.astype(np.float64).mean(0)
  np.testing.assert_allclose(stats["mean"], expected, rtol=1e-5)


def test_8_devices_are_one_device_with_the_full_batch():
  x, cotangent = 3 + 2 * normal(16, 3, 5), normal(16, 3, 5, seed=5)
  variables = some_variables(5)
  expected = train_step(BatchNorm(), variables, x, cotangent)

  def step(x, cotangent):
    module = BatchNorm(axis_name="batch")
    y, stats, (params, inputs) = train_step(module, variables, x, cotangent)
    return y, stats, (jax.lax.psum(params, "batch"), inputs)

  split, whole = PartitionSpec("batch"), PartitionSpec()
  mapped = jax.shard_map(
    step,
    mesh=Mesh(np.array(jax.devices()[:8]), ("batch",)),
    in_specs=split,
    out_specs=(split, whole, (whole, split)),
    check_vma=False,
  )
  measured = jax.jit(mapped)(x, cotangent)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, measured, expected)


@pytest.mark.parametrize(("devices", "collectives"), [(8, 1), (1, 0)])
def test_both_moments_travel_in_one_collective(devices, collectives):
  def forward(x):
    return BatchNorm(axis_name="batch").apply(
      some_variables(5), x, train=True, mutable="batch_stats"
    )

  split, whole = PartitionSpec("batch"), PartitionSpec()
  mapped = jax.shard_map(
    forward,
    mesh=Mesh(np.array(jax.devices()[:devices]), ("batch",)),
    in_specs=split,
    out_specs=(split, whole),
    check_vma=False,
  )
  program = jax.jit(mapped).lower(normal(16, 5)).as_text()
  assert program.count("stablehlo.all_reduce") == collectives


def test_init_needs_no_mapped_axis_and_keeps_the_statistics():
  module = BatchNorm(axis_name="batch")
  variables = module.init(jax.random.key(0), normal(1, 5), train=True)
  stats = variables["batch_stats"]
  np.testing.assert_array_equal(stats["mean"], np.zeros(5))
  np.testing.assert_array_equal(stats["var"], np.ones(5))
  assert set(variables["params"]) == {"scale", "bias"}


def test_a_single_value_has_no_variance():
  with pytest.raises(ValueError, match=r"more than one value.*\(1, 5\)"):
    BatchNorm().apply(
      some_variables(5), normal(1, 5), train=True, mutable="batch_stats"
    )
