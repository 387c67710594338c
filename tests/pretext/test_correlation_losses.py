"""Barlow Twins and VICReg: both made of statistics over the batch."""

import functools
import itertools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssl_music import parallel
from ssl_music.pretext import barlow_twins, vicreg

CONFIGS = {
  "barlow_twins": {"off_diagonal": 1.0},
  "vicreg": {
    "invariance": 1.0,
    "variance": 1.0,
    "covariance": 1.0,
    "gamma": 1.0,
  },
}
LOSSES = {"barlow_twins": barlow_twins.loss, "vicreg": vicreg.loss}
TERMS = {
  "barlow_twins": {"on_diagonal": "on_diag", "off_diagonal": "off_diag"},
  "vicreg": {"invariance": "inv", "variance": "var", "covariance": "cov"},
}
both = pytest.mark.parametrize("name", LOSSES)


def value(name, z, config=None):
  return compiled(name, **(config or CONFIGS[name]))(z)[0]


@functools.cache
def compiled(name, **config):
  return jax.jit(lambda z: LOSSES[name]({"projection": z}, config))


def off_diagonal(matrix):
  size = len(matrix)
  pairs = itertools.permutations(range(size), 2)
  return np.mean([matrix[i, j] ** 2 for i, j in pairs])


def slow_barlow_twins(z):
  """Equations 1 and 2, with means for sums; one pair of views at a time."""
  losses = []
  for one, other in itertools.combinations(z.astype(np.float64), 2):
    scale = lambda x: (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    matrix = scale(one).T @ scale(other) / (len(one) - 1)
    on = np.mean([(1 - matrix[i, i]) ** 2 for i in range(len(matrix))])
    losses.append(on + off_diagonal(matrix))
  return np.mean(losses)


def slow_vicreg(z):
  """Equations 1 to 6, the covariance's replaced by the correlation."""
  z = z.astype(np.float64)
  pairs = itertools.combinations(z, 2)
  total = np.mean([((one - other) ** 2).mean() for one, other in pairs])
  for view in z:
    deviation = np.sqrt(view.var(0, ddof=1) + 1e-5)
    total += np.maximum(0, 1 - deviation).mean() / len(z)
    unit = (view - view.mean(0)) / np.sqrt(view.var(0) + 1e-5)
    total += off_diagonal(unit.T @ unit / (len(view) - 1)) / len(z)
  return total


SLOW = {"barlow_twins": slow_barlow_twins, "vicreg": slow_vicreg}


@both
def test_golden_vectors(name):
  vectors = golden.losses()
  z = golden.rand("z", (2, 16, 48))
  loss, terms = compiled(name, **CONFIGS[name])(z)
  assert loss == pytest.approx(vectors[f"{name}/loss"], rel=1e-5)
  for ours, theirs in TERMS[name].items():
    expected = vectors[f"{name}/{theirs}"]
    assert terms[ours] == pytest.approx(expected, rel=1e-5)
  grad = jax.grad(lambda z: value(name, z))(z)
  expected = vectors[f"{name}/grad"]
  error = np.linalg.norm(grad - expected) / np.linalg.norm(expected)
  assert error < 1e-5


@both
@pytest.mark.parametrize("shape", [(2, 9, 5), (3, 12, 4), (4, 6, 2)])
def test_equals_the_slow_reference(name, shape):
  z = golden.rand(f"views {shape}", shape)
  assert value(name, z) == pytest.approx(SLOW[name](z), rel=1e-5)


@both
def test_invariances(name):
  z = golden.rand("z", (3, 8, 6))
  rng = np.random.default_rng(0)
  for changed in (
    z[::-1],
    z[:, rng.permutation(8)],
    z[..., rng.permutation(6)],
    z + rng.standard_normal(6).astype(np.float32),  # the same for all views
  ):
    expected = float(value(name, z))
    assert value(name, changed) == pytest.approx(expected, rel=1e-4)


def test_barlow_twins_ignores_scale_and_vicreg_does_not():
  z = golden.rand("z", (2, 32, 6))
  scaled = z * np.arange(1, 7, dtype=np.float32)
  expected = float(value("barlow_twins", z))
  assert value("barlow_twins", scaled) == pytest.approx(expected, rel=1e-4)
  assert value("vicreg", scaled) > 2 * value("vicreg", z)


@both
def test_weights_scale_their_terms(name):
  z = golden.rand("z", (2, 16, 8))
  terms = compiled(name, **CONFIGS[name])(z)[1]
  for weight in ("off_diagonal", "covariance"):
    if weight in CONFIGS[name]:
      heavier = value(name, z, CONFIGS[name] | {weight: 3.0})
      expected = value(name, z) + 2 * terms[weight]
      assert heavier == pytest.approx(float(expected), rel=1e-5)


@both
def test_collapsed_projections_stay_finite(name):
  z = jnp.ones((2, 8, 4))
  assert np.isfinite(value(name, z))
  assert np.isfinite(jax.grad(lambda z: value(name, z))(z)).all()


@both
def test_eight_devices_equal_one(name):
  z = golden.rand("z", (2, 16, 48))
  mean = lambda x: jax.lax.pmean(x, parallel.AXIS)

  def step(z):
    loss = lambda z: LOSSES[name](
      {"projection": z}, CONFIGS[name], parallel.AXIS
    )
    (total, terms), grad = jax.value_and_grad(loss, has_aux=True)(z)
    # The gradient is that of the sum over devices: 8 times that of the mean.
    return mean(total), mean(terms), grad / 8

  whole, divided = PartitionSpec(), PartitionSpec(None, parallel.AXIS)
  mesh = parallel.make_mesh()
  mapped = parallel.map_step(step, mesh, (divided,), (whole, whole, divided))
  total, terms, grad = mapped(parallel.shard(z, mesh, axis=1))
  one, one_terms = compiled(name, **CONFIGS[name])(z)
  assert total == pytest.approx(float(one), rel=1e-5)
  for term, expected in one_terms.items():
    assert terms[term] == pytest.approx(float(expected), rel=1e-5)
  expected = jax.grad(lambda z: value(name, z))(z)
  assert np.linalg.norm(grad - expected) < 1e-5 * np.linalg.norm(expected)
