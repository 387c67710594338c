"""The step that all tasks share: devices, teachers, parts, precision."""

import contextlib
import functools
import importlib
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
import tiny

from ssl_music import optimizer, parallel, step
from ssl_music.pretext import PRETEXTS, contrastive, correlation, record

# What these tests compare does not depend on how well it is compiled.
QUICK = {"xla_backend_optimization_level": 0}
LENGTHS = {"warmup": 2, "total": 12, "temperature_warmup": 6}
TAGS = 3
SHORT_VIEWS = {"short_views": 2, "data.short_seconds": 0.6}
IN_TURN = {"views_together": False}


def settings(task, **fields):
  """A config in float64.

  In float32, the gradients through batch norm are so ill-conditioned that
  rounding would hide a mistake of 1 %.
  """
  config = tiny.pretraining("unused", task, batch=32)
  config.model.update({"dtype": "float64", "depths": (1,)})
  config.augment.update({"gain": 0.0, "equaliser": 0.0})  # slow to compile
  config.update_from_flattened_dict(fields)
  config = config.to_dict()
  if task == "supervised":
    config["pretext"]["head"] = (TAGS,)
  return config


def made(config):
  """The optimiser, the schedules and the first state."""
  rates = optimizer.learning_schedules(config, LENGTHS)
  rates |= step.teacher_schedules(config, LENGTHS)
  updates = optimizer.make_optimizer(config, rates)
  return updates, rates, step.init_state(config, updates)


def batches(config):
  rng = np.random.default_rng(0)
  noise = lambda views, seconds: rng.integers(
    -9999, 9999, (views, config["batch"], round(16_000 * seconds)), np.int16
  )
  while True:
    batch = {"views": noise(config["views"], config["data"]["seconds"])}
    if config["short_views"]:
      short = config["data"]["short_seconds"]
      batch["short"] = noise(config["short_views"], short)
    if PRETEXTS[config["pretext"]["name"]].labels:
      shape = (1, config["batch"], TAGS)
      batch["labels"] = rng.integers(0, 2, shape, np.int8)
    yield batch


@functools.cache
def stepped(mapping, task, steps=2, resnet=False, **fields):
  """State, metrics and features after some steps, by one way of mapping."""
  config = settings(task, **fields)
  network = contextlib.nullcontext() if resnet else small.backbone()
  with jax.enable_x64(config["model"]["dtype"] == "float64"), network:
    updates, rates, state = made(config)
    source = batches(config)
    if mapping == "pmap":
      run = jax.pmap(
        step.make_train_step(config, updates, rates),
        axis_name=parallel.AXIS,
        in_axes=(None, 1),
        out_axes=(None, None, 1),
      )
      divide = lambda x: x.reshape(x.shape[0], 8, -1, *x.shape[2:])
      compiled = None
      for _ in range(steps):
        batch = jax.tree.map(divide, next(source))
        compiled = compiled or run.lower(state, batch).compile(QUICK)
        state, metrics, features = compiled(state, batch)
      join = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
      features = jax.tree.map(join, features)
    else:
      mesh = parallel.make_mesh(jax.devices()[:mapping])
      run = step.map_train_step(config, updates, rates, mesh)
      state = parallel.replicate(state, mesh)
      compiled = None
      for _ in range(steps):
        batch = parallel.shard(next(source), mesh, axis=1)
        compiled = compiled or run.lower(state, batch).compile(QUICK)
        state, metrics, features = compiled(state, batch)
    return jax.device_get((state, metrics, features))


def assert_close(one, other):
  def compare(path, a, b):
    # A softmax ignores what the keys' bias adds to all its scores, and the
    # head's batch norm what the others add to all embeddings: their gradients
    # are nothing but rounding, which AdamW scales up.
    name = jax.tree_util.keystr(path)
    if not re.search(r"\['[kvc]_proj'\]\['bias'\]", name):
      # Each device's gradients are rounded to float32 before their mean is
      # taken, where much may cancel: hence the floor.
      distance = np.linalg.norm(np.float64(a) - b)
      assert distance <= 1e-4 * max(np.linalg.norm(a), 3e-3), name

  jax.tree_util.tree_map_with_path(compare, one, other)


@pytest.mark.parametrize("mapping", [8, "pmap"])
@pytest.mark.parametrize("task", PRETEXTS)
def test_devices_make_no_difference(task, mapping):
  # Parameters, batch statistics, teacher and centre, both of AdamW's moments
  # (which hold the gradients), every metric, and every item's features.
  assert_close(stepped(1, task), stepped(mapping, task))


def test_a_memory_needs_no_teacher_and_a_loss_may_draw(monkeypatch):
  def loss(features, config, axis_name, *, memory, key):
    far = features["projection"] - memory["mean"]
    return (far @ jax.random.normal(key, far.shape[-1:])).mean(), {}

  def update_memory(memory, features, config, axis_name):
    mean = correlation.mean_over_batch(features["projection"], axis_name)
    return {"mean": mean.mean(0)}

  task = record.Pretext(
    loss,
    colour="",
    marker="",
    init_memory=lambda config: {"mean": jnp.zeros((1, config["head"][-1]))},
    update_memory=update_memory,
    draws=True,
  )
  monkeypatch.setitem(PRETEXTS, "sixth", task)
  sixth = {"pretext.name": "sixth"}
  states = [stepped(n, "contrastive", **sixth) for n in (1, 8)]
  assert_close(*states)
  assert np.abs(states[0][0]["memory"]["mean"]).max() > 0


@pytest.mark.parametrize(
  ("task", "fields"),
  [
    ("contrastive", {"accumulate": 2}),
    ("clustering", {"pretext.targets": "centring", "accumulate": 4}),
    ("byol", {"accumulate": 2} | IN_TURN),
  ],
)
def test_nor_do_they_with_options(task, fields):
  assert_close(stepped(1, task, **fields), stepped(8, task, **fields))


@pytest.mark.parametrize(
  ("task", "fields"),
  [
    ("contrastive", {"model.depths": (1, 1, 1, 1), "augment.gain": 6.0}),
    ("clustering", SHORT_VIEWS | IN_TURN),
  ],
)
def test_nor_do_they_to_the_published_network(task, fields):
  assert_close(
    stepped(1, task, resnet=True, **fields),
    stepped(8, task, resnet=True, **fields),
  )


def test_shapes_with_short_views():
  state, metrics, features = stepped(
    1, "clustering", resnet=True, **SHORT_VIEWS, **IN_TURN
  )
  shapes = {name: x.shape for name, x in features.items()}
  assert shapes == {
    "embedding": (4, 32, 16),
    "projection": (4, 32, 32),
    "teacher": (2, 32, 32),
  }
  assert state["memory"]["centre"].shape == (1, 32)
  assert np.abs(state["memory"]["centre"]).max() > 0
  assert all(np.isfinite(x) for x in metrics.values())


def test_momentum_spans_the_run_or_what_is_said():
  """Published: 999 epochs, however long the run is."""
  config = importlib.import_module("configs.byol").get_config("paper")
  spans = lambda **more: step.teacher_schedules(
    config.to_dict(), {"total": 20, **more}
  )["teacher_momentum"]
  published = golden.losses()["schedule/teacher_momentum"]
  assert config.momentum_steps == 999 * 512
  steps = np.arange(len(published))
  np.testing.assert_allclose(
    spans(momentum=len(steps))(steps), published, rtol=1e-6
  )
  np.testing.assert_allclose(spans(momentum=0)(20), 1)


@pytest.mark.parametrize("task", ["byol", "clustering"])
def test_the_teacher_follows(task):
  """Momentum 0.996 at step 0 (published, equation 1 of BYOL)."""
  fields = {"pretext.momentum": 0.9, "pretext.final_momentum": 0.9}
  with jax.enable_x64(True), small.backbone():
    first = jax.device_get(made(settings(task, **fields))[2])
  state, _, _ = stepped(1, task, steps=1, **fields)
  followed = {k: state["params"][k] for k in ("backbone", "head")}
  initial = {k: first["params"][k] for k in ("backbone", "head")}
  assert_close(first["teacher"]["params"], initial)
  expected = jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, initial, followed)
  assert_close(state["teacher"]["params"], expected)
  assert "predictor" not in state["teacher"]["params"]


def test_byols_teacher_follows_statistics_and_clusterings_does_not():
  """In training mode they are not used, so all else stays the same."""
  # Three steps: the first one's learning rate is as good as 0.
  steps = 3
  fields = {"pretext.momentum": 0.5, "pretext.final_momentum": 0.5}
  stats = lambda state: {
    k: state["batch_stats"][k] for k in ("backbone", "head")
  }
  state, _, _ = stepped(1, "byol", steps, **fields)
  published = PRETEXTS["byol"]
  PRETEXTS["byol"] = published._replace(follows=("params",))
  try:
    alone, _, _ = stepped.__wrapped__(1, "byol", steps, **fields)
  finally:
    PRETEXTS["byol"] = published
  assert_close(alone["teacher"]["params"], state["teacher"]["params"])
  own = alone["teacher"]["batch_stats"]
  between = jax.tree.map(lambda a, b: (a + b) / 2, own, stats(state))
  assert_close(state["teacher"]["batch_stats"], between)
  change = (
    own["backbone"]["bn"]["mean"] - stats(state)["backbone"]["bn"]["mean"]
  )
  assert np.abs(change).max() > 1e-6
  assert PRETEXTS["clustering"].follows == ("params",)


def test_one_view_after_another_is_one_pass_after_another():
  """Features and running statistics of backbone, head and predictor."""
  config = settings("byol", batch=4)
  mels = [golden.rand("views", (2, 4, 32, 9)), golden.rand("s", (3, 4, 32, 5))]
  one_device = functools.partial(
    jax.vmap, axis_name=parallel.AXIS, in_axes=None, axis_size=1
  )
  with jax.enable_x64(True), small.backbone():
    _, _, state = made(config)
    variables = golden.variables({kind: state[kind] for kind in step.KINDS})
    run = one_device(functools.partial(step._network, config | IN_TURN))
    found = run(variables, mels)
    run, passes = one_device(functools.partial(step._network, config)), []
    for view in [view for mel in mels for view in mel]:
      features, variables["batch_stats"] = jax.tree.map(
        lambda x: x[0], run(variables, [view[None]])
      )
      passes.append(features)
    features = jax.tree.map(lambda *x: np.concatenate(x), *passes)
    assert_close(
      jax.tree.map(lambda x: x[0], found), (features, variables["batch_stats"])
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_the_loss_sees_all_parts(parts):
  """Without batch norm, parts give the gradients of the whole batch."""
  rng = np.random.default_rng(0)
  params = {"w": jnp.asarray(rng.standard_normal((12, 5)), jnp.float32)}
  mels = [jnp.asarray(rng.standard_normal((2, 8, 3, 4)), jnp.float32)]

  def network(variables, mels):
    (mel,) = mels
    flat = mel.reshape(*mel.shape[:2], -1)
    projection = jnp.tanh(flat @ variables["params"]["w"])
    seen = variables["batch_stats"]["seen"] + flat.shape[1]
    return {"prediction": projection}, {"seen": seen}

  def loss_of(features, given):
    return contrastive.nt_xent(features["prediction"], given["temperature"])

  variables = {"params": params, "batch_stats": {"seen": jnp.zeros(())}}
  run = lambda parts: step._gradients(
    network, loss_of, parts, variables, mels, {"temperature": 0.5}
  )
  grads, metrics, stats, features = run(1)
  split = run(parts)
  # A product of fewer rows may round otherwise, on some processors.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  close(split[0]["w"], grads["w"])
  jax.tree.map(close, split[1], metrics)
  assert split[2]["seen"] == stats["seen"] == 8
  close(split[3]["prediction"], features["prediction"])


@pytest.mark.parametrize(
  ("task", "resnet"), [("contrastive", True), ("clustering", False)]
)
def test_bfloat16_leaves_state_and_loss_in_float32(task, resnet):
  bfloat16 = {"model.dtype": "bfloat16"}
  state, metrics, _ = stepped(1, task, steps=1, resnet=resnet, **bfloat16)
  types = {x.dtype for x in jax.tree.leaves((state, metrics))}
  assert types <= {np.dtype("float32"), np.dtype("int32")}
  _, exact, _ = stepped(1, task, steps=1, resnet=resnet)
  assert metrics["loss"] == pytest.approx(exact["loss"], rel=0.05)
  assert metrics["loss"] != exact["loss"]
