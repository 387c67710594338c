"""Tasks six to eight against loops in NumPy, and 8 devices against one."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssl_music import parallel
from ssl_music.pretext import lejepa, mmcr, simsiam

KEY = jax.random.key(3)
CONFIGS = {
  "simsiam": {},
  "mmcr": {"compression": 0.5},
  "lejepa": {"weight": 0.3, "directions": 5},
}
LOSSES = {"simsiam": simsiam.loss, "mmcr": mmcr.loss, "lejepa": lejepa.loss}
LEARNING = {
  "simsiam": "prediction",
  "mmcr": "projection",
  "lejepa": "projection",
}
every = pytest.mark.parametrize("name", LOSSES)


def run(name, features, axis_name=None):
  given = {"key": KEY} if name == "lejepa" else {}
  return LOSSES[name](features, CONFIGS[name], axis_name, **given)


def features(shape=(3, 16, 6)):
  kinds = ("projection", "prediction")
  return {kind: golden.rand(kind, shape) for kind in kinds}


def unit(x):
  return x / np.linalg.norm(x)


def slow_simsiam(z, p):
  """Chen & He (2021), equations 1 to 4, for each pair of views."""
  return -np.mean(
    [
      unit(p[j, b]) @ unit(z[i, b])
      for i in range(len(z))
      for j in range(len(p))
      if i != j
      for b in range(z.shape[1])
    ]
  )


def slow_mmcr(z, p):
  """Yerxa et al. (2023), by eigenvalues of Gram matrices."""
  gram = lambda m: min(m @ m.T, m.T @ m, key=len)
  nuclear = lambda m: np.sqrt(np.linalg.eigvalsh(gram(m)).clip(0)).sum()
  z = np.array([[unit(vector) for vector in view] for view in z])
  tracks = z.swapaxes(0, 1)
  centroids = np.array([track.mean(0) for track in tracks])
  own = np.mean([nuclear(track) for track in tracks])
  return CONFIGS["mmcr"]["compression"] * own - nuclear(centroids)


def slow_lejepa(z, p):
  """Balestriero & LeCun (2025), algorithms 1 and 2, step by step."""
  config = CONFIGS["lejepa"]
  shape = z.shape[-1], config["directions"]
  directions = np.asarray(jax.random.normal(KEY, shape), np.float64)
  t = np.linspace(-5, 5, 17)
  normal = np.exp(-(t**2) / 2)
  statistics = []
  for view in z:
    for direction in directions.T:
      found = np.exp(1j * np.outer(view @ unit(direction), t)).mean(0)
      error = np.abs(found - normal) ** 2 * normal
      widths = np.diff(t)
      area = ((error[1:] + error[:-1]) / 2 * widths).sum()
      statistics.append(len(view) * area)
  distance = np.mean((z - z.mean(0)) ** 2)
  weight = config["weight"]
  return (1 - weight) * distance + weight * np.mean(statistics)


SLOW = {"simsiam": slow_simsiam, "mmcr": slow_mmcr, "lejepa": slow_lejepa}


@every
@pytest.mark.parametrize("shape", [(2, 7, 4), (3, 16, 6)])
def test_equals_the_slow_reference(name, shape):
  given = features(shape)
  exact = [given[kind].astype(np.float64) for kind in given]
  value, metrics = run(name, given)
  assert value == pytest.approx(SLOW[name](*exact), rel=1e-5)
  assert all(np.isfinite(x) for x in metrics.values())


@every
@pytest.mark.parametrize("shape", [(2, 7, 4), (2, 4, 7)])
def test_gradient_is_the_slow_references_slope(name, shape):
  given, kind = features(shape), LEARNING[name]
  grad = jax.grad(lambda given: run(name, given)[0])(given)[kind]
  exact = {kind: x.astype(np.float64) for kind, x in given.items()}
  way = golden.rand("way", shape).astype(np.float64)
  there, back = (
    SLOW[name](*(exact | {kind: exact[kind] + step * way}).values())
    for step in (1e-5, -1e-5)
  )
  assert (grad * way).sum() == pytest.approx((there - back) / 2e-5, rel=1e-3)


@every
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_batch_has_a_finite_gradient(name, value):
  given = {k: jnp.full((2, 4, 7), value) for k in ("projection", "prediction")}
  grads = jax.grad(lambda given: run(name, given)[0])(given)
  assert all(np.isfinite(grad).all() for grad in grads.values())


def test_simsiam_has_no_gradient_through_targets():
  grads = jax.grad(lambda given: run("simsiam", given)[0])(features())
  assert not np.any(grads["projection"])
  assert np.any(grads["prediction"])


def epps_pulley(x):
  """Epps & Pulley (1983) for a standard normal law, the integral solved."""
  # |f(t) - n(t)|^2 n(t) of f(t) = mean exp(i t x), n(t) = exp(-t^2 / 2) is a
  # sum of Gaussians times cosines, each with an integral in closed form.
  pairs = np.exp(-((x[:, None] - x) ** 2) / 2).mean() * np.sqrt(2 * np.pi)
  single = np.exp(-(x**2) / 4).mean() * np.sqrt(np.pi)
  return len(x) * (pairs - 2 * single + np.sqrt(2 * np.pi / 3))


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (0.1, 0), (0.7, 1)])
def test_sigreg_is_the_integral(scale, shift):
  z = scale * golden.rand("normal", (2, 64, 3)) + shift
  found = lejepa.sigreg(jnp.asarray(z), jnp.eye(3), None)
  expected = [[epps_pulley(x) for x in view.T] for view in z.astype(float)]
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_mmcr_is_least_where_views_agree_and_tracks_are_orthogonal():
  agree = jnp.broadcast_to(jnp.eye(6), (2, 6, 6))
  value, metrics = mmcr.loss({"projection": 5 * agree}, {"compression": 0})
  assert value == pytest.approx(-6) and metrics["centroid_length"] == 1
  opposite = agree.at[1].multiply(-1)
  value, metrics = mmcr.loss({"projection": opposite}, {"compression": 0})
  assert value == metrics["centroid_length"] == 0
  same = jnp.ones((2, 6, 6))
  value, _ = mmcr.loss({"projection": same}, {"compression": 0})
  assert value == pytest.approx(-np.sqrt(6))


def test_normal_projections_are_what_sigreg_asks_for():
  directions = np.eye(6, dtype=np.float32)
  normal = golden.rand("normal", (1, 4096, 6))
  test = lambda z: np.asarray(lejepa.sigreg(z, directions, None)).mean()
  assert test(normal) < 2
  for other in (0 * normal, 2 * normal, normal + 1, np.sign(normal)):
    assert test(other) > 50


@every
def test_eight_devices_equal_one(name):
  given, mesh = features(), parallel.make_mesh()

  def step(given):
    of = lambda given: run(name, given, parallel.AXIS)[0]
    value, grad = jax.value_and_grad(of)(given)
    # The gradient is that of the sum over devices: 8 times that of the mean.
    mean = jax.lax.pmean(value, parallel.AXIS)
    return mean, jax.tree.map(lambda x: x / 8, grad)

  divided = PartitionSpec(None, parallel.AXIS)
  mapped = parallel.map_step(step, mesh, (divided,), (PartitionSpec(), divided))
  value, grad = mapped(parallel.shard(given, mesh, axis=1))
  one, expected = jax.value_and_grad(lambda given: run(name, given)[0])(given)
  assert value == pytest.approx(float(one), rel=1e-5)
  for kind, of_one in expected.items():
    np.testing.assert_allclose(grad[kind], of_one, rtol=1e-4, atol=1e-6)
