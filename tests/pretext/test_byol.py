import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssl_music import parallel
from ssl_music.pretext import byol

SHAPES = [((2, 5, 7), 2), ((2, 5, 7), 1), ((4, 3, 6), 2), ((3, 1, 4), 3)]


@jax.jit
def loss(p, teacher):
  return byol.loss({"prediction": p, "teacher": teacher}, {})[0]


def arrays(shape, given):
  return golden.rand("p", shape), golden.rand("t", (given, *shape[1:]))


def reference(p, teacher):
  """Grill et al. (2020), equation 2: distances of unit vectors; loops only."""
  unit = lambda x: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64))
  return np.mean(
    [
      np.sum((unit(one) - unit(other)) ** 2)
      for i, view in enumerate(teacher)
      for j, seen in enumerate(p)
      if i != j
      for one, other in zip(view, seen, strict=True)
    ]
  )


def test_relation_to_the_published_slip():
  # The published code sums over the batch and takes the mean over features,
  # so its cosine term is batch / features of the mean over items:
  # published = 2 - (batch / features) · 2 · mean cosine.
  vectors = golden.losses()
  p, teacher = golden.z(), golden.teacher()
  _, batch, features = p.shape
  slip = batch / features
  value, grad = jax.value_and_grad(loss)(p, teacher)
  published = 2 - slip * (2 - value)
  expected = vectors["byol_as_published/loss"]
  assert published == pytest.approx(expected, rel=1e-5)
  assert 2 - published == pytest.approx(2 - expected, rel=1e-4)
  expected = vectors["byol_as_published/grad"]
  assert golden.relative_error(slip * grad, expected) < 1e-5


@pytest.mark.parametrize(("shape", "given"), SHAPES)
def test_equals_the_slow_reference(shape, given):
  p, teacher = arrays(shape, given)
  seen = {"prediction": jnp.asarray(p), "teacher": jnp.asarray(teacher)}
  value, metrics = byol.loss(seen, {})
  expected = reference(p, teacher)
  assert value == pytest.approx(expected, rel=1e-5)
  assert metrics["cosine"] == pytest.approx(1 - expected / 2, abs=1e-6)


def test_range():
  p = golden.rand("p", (1, 4, 6))
  same = np.concatenate([p, p, p])
  assert loss(same, same[:2]) == pytest.approx(0, abs=1e-5)
  assert loss(same, -same[:2]) == pytest.approx(4, rel=1e-5)


def test_a_view_is_not_compared_with_itself():
  p, teacher = arrays((3, 4, 6), 1)
  changed = p.copy()
  changed[0] = golden.rand("other", (4, 6))
  assert loss(changed, teacher) == pytest.approx(
    float(loss(p, teacher)), rel=1e-5
  )
  grad = jax.grad(loss)(p, teacher)
  np.testing.assert_allclose(grad[0], 0, atol=1e-7)
  assert np.abs(grad[1:]).max() > 1e-3


def test_invariances():
  p, teacher = arrays((3, 8, 6), 3)
  rng = np.random.default_rng(0)
  views, items = rng.permutation(3), rng.permutation(8)
  rotation = np.linalg.qr(golden.rand("rotation", (6, 6)))[0]
  scale = lambda: rng.uniform(0.1, 10, (3, 8, 1)).astype(np.float32)
  expected = float(loss(p, teacher))
  for changed in (
    (p[views], teacher[views]),
    (p[:, items], teacher[:, items]),
    (p @ rotation, teacher @ rotation),
    (p * scale(), teacher * scale()),
  ):
    assert loss(*changed) == pytest.approx(expected, rel=1e-5)
  assert loss(p[:, items], teacher) != pytest.approx(expected, rel=1e-3)
  # With all views seen by both, student and teacher may change places.
  assert loss(teacher, p) == pytest.approx(expected, rel=1e-5)


def test_no_gradient_into_the_teacher():
  p, teacher = arrays((2, 4, 6), 2)
  np.testing.assert_array_equal(jax.grad(loss, 1)(p, teacher), 0)


def test_zero_vectors_stay_finite():
  zero, (p, teacher) = np.zeros((2, 4, 6), np.float32), arrays((2, 4, 6), 2)
  for pair in ((zero, teacher), (p, zero), (zero, zero)):
    value, grad = jax.value_and_grad(loss)(*pair)
    assert value == pytest.approx(2)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
  p, teacher = (jnp.asarray(x, dtype) for x in arrays((2, 9, 6), 2))
  value = loss(p, teacher)
  assert value.dtype == jnp.float32
  expected = reference(*(np.asarray(x, np.float32) for x in (p, teacher)))
  assert value == pytest.approx(expected, rel=1e-5)


def test_eight_devices_equal_one():
  p, teacher = arrays((3, 16, 48), 2)
  mean = lambda x: jax.lax.pmean(x, parallel.AXIS)

  def step(p, teacher):
    run = lambda p: byol.loss(
      {"prediction": p, "teacher": teacher}, {}, parallel.AXIS
    )
    (value, metrics), grad = jax.value_and_grad(run, has_aux=True)(p)
    # The gradient is that of the sum over devices: 8 times that of the mean.
    return mean(value), mean(metrics), grad / 8

  whole, divided = PartitionSpec(), PartitionSpec(None, parallel.AXIS)
  mesh = parallel.make_mesh()
  mapped = parallel.map_step(
    step, mesh, (divided, divided), (whole, whole, divided)
  )
  shard = lambda x: parallel.shard(x, mesh, axis=1)
  value, metrics, grad = mapped(shard(p), shard(teacher))
  one, expected = jax.value_and_grad(loss)(p, teacher)
  assert value == pytest.approx(float(one), rel=1e-5)
  assert metrics["cosine"] == pytest.approx(1 - float(one) / 2, abs=1e-6)
  assert golden.relative_error(grad, expected) < 1e-5
