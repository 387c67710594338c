import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssl_music import parallel, schedules
from ssl_music.errors import InputError
from ssl_music.pretext import clustering

CONFIG = {
  "temperature": 0.1,
  "targets": "centring",
  "mean_entropy": 0.0,
  "sinkhorn_iterations": 3,
  "centre_momentum": 0.9,
  "head": (32, 48),
}
SINKHORN = CONFIG | {"targets": "sinkhorn"}
both = pytest.mark.parametrize("config", [CONFIG, SINKHORN], ids="cs")
# Views and items of the student, views of the teacher.
SHAPES = [((2, 5, 7), 2), ((2, 5, 7), 1), ((4, 6, 3), 2), ((3, 1, 4), 3)]


def arrays(shape, given):
  s, teacher = golden.rand("s", shape), golden.rand("t", (given, *shape[1:]))
  return s, teacher, golden.rand("c", (1, shape[-1])) / 10


def run(s, teacher, centre, config=CONFIG, temperature=0.04, axis_name=None):
  compute = compiled(axis_name, **config)
  return compute(
    s,
    teacher=teacher,
    memory={"centre": centre},
    teacher_temperature=temperature,
  )


@functools.cache
def compiled(axis_name, **config):
  return jax.jit(
    lambda s, teacher, **given: clustering.loss(
      {"projection": s, "teacher": teacher}, config, axis_name, **given
    )
  )


def loss(*args):
  return run(*args)[0]


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def entropy(p):
  return -sum(x * np.log(x) for x in p if x > 0)


def slow_sinkhorn(logits, iterations):
  """Caron et al. (2020), section 3, as matrix scaling: Q [clusters, items]."""
  q = np.exp(logits.T - logits.max())
  clusters, items = q.shape
  for _ in range(iterations):
    for k in range(clusters):
      q[k] /= q[k].sum() * clusters
    for b in range(items):
      q[:, b] /= q[:, b].sum() * items
  return q.T * items


def slow_targets(teacher, centre, config, temperature):
  teacher = teacher.astype(np.float64)
  if config["targets"] == "centring":
    sharp = (teacher - centre) / temperature
    return np.array([[softmax(x) for x in view] for view in sharp])
  iterations = config["sinkhorn_iterations"]
  return np.array([slow_sinkhorn(v / temperature, iterations) for v in teacher])


def reference(s, teacher, centre, config, temperature):
  """The loss and its metrics from the papers' equations; loops only."""
  tau = config["temperature"]
  p = np.array([[softmax(x / tau) for x in v] for v in s.astype(np.float64)])
  q = slow_targets(teacher, centre, config, temperature)
  cross = np.mean(
    [
      -np.sum(q[i, b] * np.maximum(np.log(p[j, b]), -100))
      for i in range(len(q))
      for j in range(len(p))
      for b in range(p.shape[1])
      if i != j
    ]
  )
  targets = q.reshape(-1, q.shape[-1])
  mean = targets.mean(0)
  each = np.mean([entropy(x) for x in targets])
  positive = lambda x: x > 0
  divergence = np.mean(
    [np.sum(x[positive(x)] * np.log((x / mean)[positive(x)])) for x in targets]
  )
  most = np.log(len(mean))
  value = cross - config["mean_entropy"] * entropy(p.mean((0, 1)))
  return value, {
    "teacher_mean_entropy": entropy(mean) / most,
    "teacher_entropy": each / most,
    "teacher_kl": divergence / most,
    "student_teacher_kl": cross - each,
  }


@pytest.mark.parametrize("epoch", [0, 5, 50])
def test_golden_vectors(epoch):
  vector = lambda name: golden.losses()[f"clustering_epoch{epoch}/{name}"]
  # The published temperature rises over the first 10 epochs.
  temperature = schedules.cosine(0.02, 0.04, 10)(epoch)
  assert temperature == pytest.approx(vector("teacher_temp"), rel=1e-6)
  config = CONFIG | {"temperature": float(vector("student_temp"))}
  s, teacher, centre = golden.z(), golden.teacher(), golden.center()
  value, grad = jax.value_and_grad(loss)(
    s, teacher, centre, config, temperature
  )
  assert value == pytest.approx(vector("loss"), rel=1e-5)
  assert golden.relative_error(grad, vector("grad")) < 1e-5
  memory = clustering.update_memory(
    {"centre": jnp.asarray(centre)}, {"teacher": jnp.asarray(teacher)}, config
  )
  assert golden.relative_error(memory["centre"], vector("center_after")) < 1e-6


@both
@pytest.mark.parametrize(("shape", "given"), SHAPES)
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_equals_the_slow_reference(config, shape, given, weight):
  config = config | {"mean_entropy": weight}
  s, teacher, centre = arrays(shape, given)
  value, metrics = run(s, teacher, centre, config, 0.3)
  expected, expected_metrics = reference(s, teacher, centre, config, 0.3)
  assert value == pytest.approx(expected, rel=1e-5)
  assert metrics.keys() == expected_metrics.keys()
  for name, number in expected_metrics.items():
    assert metrics[name] == pytest.approx(number, rel=1e-5, abs=2e-6), name


@both
def test_a_view_is_not_compared_with_itself(config):
  s, teacher, centre = arrays((3, 4, 6), 1)
  grad = jax.grad(loss)(s, teacher, centre, config)
  np.testing.assert_allclose(grad[0], 0, atol=1e-6)
  assert np.abs(grad[1:]).max() > 1e-2


@both
def test_invariances(config):
  config = config | {"mean_entropy": 0.5}
  s, teacher, centre = arrays((3, 8, 6), 3)
  rng = np.random.default_rng(0)
  views, items, clusters = map(rng.permutation, (3, 8, 6))
  shift = rng.normal(size=(3, 8, 1)).astype(np.float32)
  expected = float(loss(s, teacher, centre, config))
  for changed in (
    (s[views], teacher[views], centre),
    (s[:, items], teacher[:, items], centre),
    (s[..., clusters], teacher[..., clusters], centre[:, clusters]),
    (s + shift, teacher, centre),  # a constant for all logits of an item
  ):
    assert loss(*changed, config) == pytest.approx(expected, rel=1e-5)
  wrong = loss(s[:, items], teacher, centre, config)
  assert wrong != pytest.approx(expected, rel=1e-3)


def test_what_targets_do_not_depend_on():
  s, teacher, centre = arrays((2, 8, 6), 2)
  rng = np.random.default_rng(0)
  by_item = rng.normal(size=(2, 8, 1)).astype(np.float32)
  by_cluster = rng.normal(size=(2, 1, 6)).astype(np.float32)
  value = lambda config, t, c: float(loss(s, t, c, config))
  centred, spread = (value(c, teacher, centre) for c in (CONFIG, SINKHORN))
  close = lambda x: pytest.approx(x, rel=1e-5)
  assert value(CONFIG, teacher + by_item, centre) == close(centred)
  assert value(CONFIG, teacher, centre + 3) == close(centred)
  assert value(CONFIG, teacher, centre[:, ::-1]) != close(centred)
  # Clusters get equal shares whatever their offset; the centre goes unused.
  assert value(SINKHORN, teacher + by_cluster, centre) == close(spread)
  assert value(SINKHORN, teacher, centre + 3 * by_cluster[0]) == spread
  assert value(CONFIG, teacher + by_cluster, centre) != close(centred)


def test_sinkhorn_marginals():
  logits = jnp.asarray(3 * golden.rand("logits", (2, 24, 6)))
  few = np.exp(clustering.log_sinkhorn(logits, 3))
  many = np.exp(clustering.log_sinkhorn(logits, 300))
  np.testing.assert_allclose(few.sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(many.sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(many.sum(-2), 24 / 6, rtol=1e-4)
  uneven = lambda q: np.abs(q.sum(-2) - 24 / 6).max()
  start = np.exp(jax.nn.log_softmax(logits))
  assert uneven(many) < uneven(few) < 0.5 * uneven(start)


def test_sinkhorn_at_a_low_temperature_neither_overflows_nor_vanishes():
  # One confident item: exp of the others' logits less the largest is 0.
  logits = golden.rand("logits", (1, 4, 5))
  logits[0, 3] = np.linspace(-150, 150, 5)
  q = np.exp(clustering.log_sinkhorn(jnp.asarray(logits), 3))
  assert np.isfinite(q).all()
  np.testing.assert_allclose(q.sum(-1), 1, rtol=1e-5)
  np.testing.assert_array_equal(np.exp(logits - logits.max())[0, :3], 0)
  expected = slow_sinkhorn(logits[0].astype(np.float64), 3)
  np.testing.assert_allclose(q[0], expected, rtol=1e-3, atol=1e-5)


def test_metrics_tell_collapse():
  s, _, centre = arrays((2, 12, 12), 2)
  metrics = lambda teacher: run(s, teacher, 0 * centre)[1]
  # Each item in a cluster of its own: sharp targets, evenly spread.
  healthy = metrics(np.tile(5 * np.eye(12, dtype=np.float32), (2, 1, 1)))
  assert healthy["teacher_kl"] == pytest.approx(1, abs=1e-5)
  assert healthy["teacher_entropy"] == pytest.approx(0, abs=1e-5)
  uniform = metrics(np.zeros((2, 12, 12), np.float32))
  assert uniform["teacher_entropy"] == pytest.approx(1, rel=1e-5)
  one = np.zeros((2, 12, 12), np.float32)
  one[..., 3] = 5
  single = metrics(one)
  assert single["teacher_mean_entropy"] == pytest.approx(0, abs=1e-5)
  for collapsed in (uniform, single):
    assert collapsed["teacher_kl"] == pytest.approx(0, abs=1e-5)


def test_the_student_that_copies_the_teacher_has_no_divergence():
  _, teacher, centre = arrays((2, 6, 5), 1)
  same = np.concatenate([teacher, teacher])
  centre *= 0
  copied = run(same, same, centre, CONFIG, 0.1)[1]
  assert copied["student_teacher_kl"] == pytest.approx(0, abs=1e-5)
  other = run(2 * same, same, centre, CONFIG, 0.1)[1]
  assert other["student_teacher_kl"] > 0.01


def test_mean_entropy_spreads_the_student():
  # All items in one cluster: only the mean's entropy pulls them out of it.
  s = np.zeros((2, 4, 3), np.float32)
  s[..., 0] = 0.1
  weighted = CONFIG | {"mean_entropy": 1.0}
  args = (s, np.zeros_like(s), np.zeros((1, 3), np.float32))
  difference = jax.grad(loss)(*args, weighted) - jax.grad(loss)(*args, CONFIG)
  assert (difference[..., 0] > 0).all()
  assert (difference[..., 1:] < 0).all()


def test_log_probabilities_are_clamped():
  s = np.zeros((2, 1, 2), np.float32)
  s[..., 0] = 50  # log probabilities 0 and -500
  teacher = np.zeros_like(s)
  teacher[..., 1] = 1e4
  value, grad = jax.value_and_grad(loss)(s, teacher, np.zeros((1, 2)))
  assert value == pytest.approx(100)
  np.testing.assert_array_equal(grad, 0)


@both
def test_no_gradient_into_the_teacher(config):
  args = arrays((2, 4, 6), 2)
  for argument in (1, 2):
    grad = jax.grad(loss, argument)(*args, config)
    np.testing.assert_array_equal(grad, 0)


@both
def test_zero_and_huge_logits_stay_finite(config):
  config = config | {"mean_entropy": 1.0}
  zero = np.zeros((2, 4, 3), np.float32)
  s, teacher, centre = arrays((2, 4, 3), 2)
  value = loss(zero, zero, centre[:, :1] * np.ones(3), config, 0.02)
  assert value == pytest.approx(0, abs=1e-5)  # log 3, less log 3
  for args in ((zero, zero), (1e4 * s, 1e4 * teacher), (1e4 * s, zero)):
    (value, metrics), grad = jax.value_and_grad(run, has_aux=True)(
      *args, centre, config, 0.02
    )
    for number in (value, grad, *metrics.values()):
      assert np.isfinite(number).all()


@both
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_in_float32(config, dtype):
  s, teacher, centre = arrays((2, 8, 6), 2)
  s, teacher = jnp.asarray(s, dtype), jnp.asarray(teacher, dtype)
  value, metrics = run(s, teacher, centre, config)
  assert value.dtype == jnp.float32
  assert {x.dtype for x in metrics.values()} == {jnp.dtype(jnp.float32)}
  exact = [np.asarray(x, np.float32) for x in (s, teacher)]
  expected, _ = reference(*exact, centre, config, 0.04)
  assert value == pytest.approx(expected, rel=1e-5)
  memory = clustering.init_memory(config | {"head": (6,)})
  memory = clustering.update_memory(memory, {"teacher": teacher}, config)
  assert memory["centre"].dtype == jnp.float32
  mean = exact[1].mean((0, 1))
  np.testing.assert_allclose(memory["centre"][0], mean / 10, rtol=1e-4)


def test_memory_starts_at_zero():
  memory = clustering.init_memory(CONFIG)
  assert memory.keys() == {"centre"}
  np.testing.assert_array_equal(memory["centre"], np.zeros((1, 48)))


def test_unknown_targets():
  with pytest.raises(InputError, match=r"'center'.*'centring' or 'sinkhorn'"):
    run(*arrays((2, 4, 3), 2), CONFIG | {"targets": "center"})


@both
@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_eight_devices_equal_one(config, weight):
  config = config | {"mean_entropy": weight}
  s, teacher, centre = arrays((3, 16, 48), 2)
  mean = lambda x: jax.lax.pmean(x, parallel.AXIS)

  def step(s, teacher, centre, temperature):
    of_s = lambda s: run(s, teacher, centre, config, temperature, parallel.AXIS)
    (value, metrics), grad = jax.value_and_grad(of_s, has_aux=True)(s)
    memory = clustering.update_memory(
      {"centre": centre}, {"teacher": teacher}, config, parallel.AXIS
    )
    # The gradient is that of the sum over devices: 8 times that of the mean.
    # Metrics and memory are the global batch's without a mean over devices.
    metrics = {name: number[None] for name, number in metrics.items()}
    return mean(value), metrics, grad / 8, memory

  whole, divided = PartitionSpec(), PartitionSpec(None, parallel.AXIS)
  stacked = PartitionSpec(parallel.AXIS)
  mesh = parallel.make_mesh()
  mapped = parallel.map_step(
    step,
    mesh,
    (divided, divided, whole, whole),
    (whole, stacked, divided, stacked),
  )
  shard = lambda x: parallel.shard(x, mesh, axis=1)
  value, metrics, grad, memory = mapped(
    shard(s), shard(teacher), centre, jnp.float32(0.04)
  )
  (one, expected_metrics), expected = jax.value_and_grad(run, has_aux=True)(
    s, teacher, centre, config, 0.04
  )
  assert value == pytest.approx(float(one), rel=1e-5)
  for name, number in expected_metrics.items():
    assert metrics[name].shape == (8,)
    np.testing.assert_allclose(metrics[name], number, rtol=1e-4, err_msg=name)
  assert golden.relative_error(grad, expected) < 1e-5
  centre = clustering.update_memory(
    {"centre": jnp.asarray(centre)}, {"teacher": jnp.asarray(teacher)}, config
  )["centre"]
  eight = np.repeat(centre, 8, axis=0)
  assert golden.relative_error(memory["centre"], eight) < 1e-6
