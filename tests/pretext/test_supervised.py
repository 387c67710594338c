import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssl_music import parallel
from ssl_music.pretext import supervised


def loss(z, labels):
  return supervised.loss(
    {"projection": jnp.asarray(z)}, {}, labels=jnp.asarray(labels)
  )[0]


def arrays(shape):
  return golden.rand("z", shape), golden.rand("tags", (1, *shape[1:])) > 0.5


def reference(z, labels):
  """Minus the log-likelihood of each tag of each view; loops only."""
  terms = []
  for view, item, tag in np.ndindex(z.shape):
    probability = 1 / (1 + np.exp(-np.float64(z[view, item, tag])))
    seen = labels[0, item, tag]
    terms.append(-np.log(probability if seen else 1 - probability))
  return np.mean(terms)


@pytest.mark.parametrize("shape", [(1, 4, 3), (2, 5, 7), (3, 1, 4)])
@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_equals_the_slow_reference(shape, dtype):
  z, labels = arrays(shape)
  value, metrics = supervised.loss(
    {"projection": jnp.asarray(z)}, {}, labels=labels.astype(dtype)
  )
  assert value == pytest.approx(reference(z, labels), rel=1e-5)
  assert metrics == {}


def test_gradient_is_probability_minus_label():
  z, labels = arrays((2, 5, 7))
  expected = (1 / (1 + np.exp(-z)) - labels) / z.size
  grad = jax.grad(loss)(z, labels)
  assert golden.relative_error(grad, expected) < 1e-5


def test_invariances():
  z, labels = arrays((3, 6, 4))
  order = np.random.default_rng(0).permutation(6)
  expected = float(loss(z, labels))
  for changed in ((z[::-1], labels), (z[:, order], labels[:, order])):
    assert loss(*changed) == pytest.approx(expected, rel=1e-5)
  # Tags and their absence weigh the same.
  assert loss(-z, ~labels) == pytest.approx(expected, rel=1e-5)
  assert loss(z[:, order], labels) != pytest.approx(expected, rel=1e-3)


def test_zero_and_huge_logits_stay_finite():
  _, labels = arrays((2, 5, 7))
  assert loss(np.zeros((2, 5, 7)), labels) == pytest.approx(np.log(2))
  wrong = np.where(labels, -1e4, 1e4).astype(np.float32)
  value, grad = jax.value_and_grad(loss)(wrong, labels)
  assert value == pytest.approx(1e4)
  assert np.isfinite(grad).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
  z, labels = arrays((2, 5, 7))
  z = jnp.asarray(z, dtype)
  value = loss(z, labels)
  assert value.dtype == jnp.float32
  expected = reference(np.asarray(z, np.float32), labels)
  assert value == pytest.approx(expected, rel=1e-5)


def test_eight_devices_equal_one():
  z, labels = arrays((2, 16, 7))

  def step(z, labels):
    run = lambda z: supervised.loss(
      {"projection": z}, {}, parallel.AXIS, labels=labels
    )[0]
    value, grad = jax.value_and_grad(run)(z)
    # The gradient is that of the sum over devices: 8 times that of the mean.
    return jax.lax.pmean(value, parallel.AXIS), grad / 8

  whole, divided = PartitionSpec(), PartitionSpec(None, parallel.AXIS)
  mesh = parallel.make_mesh()
  mapped = parallel.map_step(step, mesh, (divided, divided), (whole, divided))
  shard = lambda x: parallel.shard(x, mesh, axis=1)
  value, grad = mapped(shard(z), shard(labels))
  one, expected = jax.value_and_grad(loss)(z, labels)
  assert value == pytest.approx(float(one), rel=1e-5)
  assert golden.relative_error(grad, expected) < 1e-5
