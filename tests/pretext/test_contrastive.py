import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from ssl_music import parallel
from ssl_music.pretext import contrastive

CONFIG = {"temperature": 0.1}


@functools.partial(jax.jit, static_argnums=1)
def loss(z, temperature=0.1):
  return contrastive.nt_xent(z, temperature)[0]


def reference(z, temperature):
  """Chen et al. (2020), equation 1, for any number of views; loops only."""
  views, items, _ = z.shape
  z = z.astype(np.float64)
  rows = [(v, i) for v in range(views) for i in range(items)]
  cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  terms = []
  for v, i in rows:
    other = [(u, j) for u, j in rows if (u, j) != (v, i)]
    exp = {(u, j): cosine(z[v, i], z[u, j]) / temperature for u, j in other}
    normaliser = np.log(sum(np.exp(s) for s in exp.values()))
    terms += [normaliser - exp[u, i] for u in range(views) if u != v]
  return np.mean(terms)


def test_golden_vector():
  vectors = golden.losses()
  z = golden.rand("z", (2, 16, 48))
  value, grad = jax.value_and_grad(loss)(z)
  assert value == pytest.approx(vectors["contrastive/loss"], rel=1e-5)
  expected = vectors["contrastive/grad"]
  error = np.linalg.norm(grad - expected) / np.linalg.norm(expected)
  assert error < 1e-5


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 4, 6), (4, 1, 3)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_the_slow_reference(shape, temperature):
  z = golden.rand(f"views {shape}", shape)
  expected = reference(z, temperature)
  assert loss(z, temperature) == pytest.approx(expected, rel=1e-5)


def test_equals_optax():
  z = golden.rand("z", (2, 9, 5))
  labels = jnp.tile(jnp.arange(9), 2)
  expected = optax.losses.ntxent(
    jnp.asarray(z.reshape(18, 5)), labels, temperature=0.5
  )
  # Optax counts each of its positive pairs in the denominator too.
  assert loss(z, 0.5) == pytest.approx(float(expected), rel=1e-5)


def test_invariances():
  z = golden.rand("z", (3, 8, 6))
  order = np.random.default_rng(0).permutation(8)
  scale = np.random.default_rng(1).uniform(0.1, 10, (3, 8, 1))
  rotation = np.linalg.qr(golden.rand("rotation", (6, 6)))[0]
  for changed in (z[::-1], z[:, order], z * scale, z @ rotation):
    assert loss(changed) == pytest.approx(float(loss(z)), rel=1e-5)


def test_accuracy_counts_rows_that_find_their_track():
  items = np.eye(8, dtype=np.float32)
  metrics = lambda z: contrastive.loss({"projection": jnp.asarray(z)}, CONFIG)[
    1
  ]
  assert metrics(np.stack([items, items]))["accuracy"] == 1
  shifted = np.stack([items, np.roll(items, 1, axis=0)])
  assert metrics(shifted)["accuracy"] == 0
  half = np.stack([items, items])
  half[1, :4] = items[[1, 0, 3, 2]]
  assert metrics(half)["accuracy"] == 0.5


def test_zero_projections_stay_finite():
  z = jnp.zeros((2, 4, 3))
  value, grad = jax.value_and_grad(loss)(z)
  assert value == pytest.approx(np.log(7), rel=1e-5)
  assert np.isfinite(grad).all()


def test_eight_devices_equal_one():
  z = golden.rand("z", (2, 16, 48))

  def step(z):
    def both(z):
      value, metrics = contrastive.loss(
        {"projection": z}, CONFIG, parallel.AXIS
      )
      return value, metrics

    (value, metrics), grad = jax.value_and_grad(both, has_aux=True)(z)
    mean = lambda x: jax.lax.pmean(x, parallel.AXIS)
    # The gradient is that of the sum over devices: 8 times that of the mean.
    return mean(value), mean(metrics["accuracy"]), grad / 8

  whole, divided = PartitionSpec(), PartitionSpec(None, parallel.AXIS)
  mesh = parallel.make_mesh()
  assert mesh.size == 8
  mapped = parallel.map_step(step, mesh, (divided,), (whole, whole, divided))
  value, accuracy, grad = mapped(parallel.shard(z, mesh, axis=1))
  one, metrics = contrastive.loss({"projection": jnp.asarray(z)}, CONFIG)
  assert value == pytest.approx(float(one), rel=1e-5)
  assert accuracy == metrics["accuracy"]
  expected = jax.grad(loss)(z)
  assert np.linalg.norm(grad - expected) < 1e-5 * np.linalg.norm(expected)
