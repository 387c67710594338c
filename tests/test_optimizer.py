"""The optimisers, against their formulas in NumPy."""

import jax
import numpy as np
import optax
import pytest

from ssl_music.errors import InputError
from ssl_music.optimizer import (
  check,
  flatten,
  learning_schedules,
  make_optimizer,
)

STEPS = 3
LENGTHS = {"warmup": 2, "total": 4}
SHAPES = {"kernel": (4, 3), "bias": (3,), "scale": ()}


def config(**fields):
  settings = {
    "name": "adamw",
    "learning_rate": 0.1,
    "final_learning_rate": 0.01,
    "weight_decay": 0.04,
    "final_weight_decay": 0.4,
    "b1": 0.8,
    "b2": 0.9,
    "momentum": 0.7,
    "trust": 0.05,
    "clip": 0.0,
  }
  assert fields.keys() <= settings.keys()
  return {"optimizer": settings | fields}


def draw(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {n: scale * rng.standard_normal(s) for n, s in SHAPES.items()}


PARAMS = draw(99)
GRADIENTS = [draw(step, scale=3.0) for step in range(STEPS)]


def rate(step):
  """Linear rise over the warm-up of 2, then a half cosine of 2."""
  return [0.01, 0.1, 0.1, 0.055][step]


def decay(step):
  return 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * step / 4))


def optimised(gradients=GRADIENTS, params=PARAMS, **fields):
  """Parameters after each step of ours, in float64."""
  with jax.enable_x64(True):
    settings = config(**fields)
    optimizer = make_optimizer(settings, learning_schedules(settings, LENGTHS))
    params = jax.tree.map(np.asarray, params)
    state, found = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for gradient in gradients:
      updates, state = update(gradient, state, params)
      params = jax.device_get(optax.apply_updates(params, updates))
      found.append(params)
    return found


def adamw(gradients, b1=0.8, b2=0.9, decay=decay):
  """Algorithm 2 of Loshchilov & Hutter, 2019."""
  found, params = [], dict(PARAMS)
  first = {n: np.zeros(s) for n, s in SHAPES.items()}
  second = {n: np.zeros(s) for n, s in SHAPES.items()}
  for step, gradient in enumerate(gradients):
    params = dict(params)
    for name, g in gradient.items():
      first[name] = b1 * first[name] + (1 - b1) * g
      second[name] = b2 * second[name] + (1 - b2) * g**2
      m = first[name] / (1 - b1 ** (step + 1))
      v = second[name] / (1 - b2 ** (step + 1))
      update = m / (np.sqrt(v) + 1e-8)
      if name == "kernel":
        update = update + decay(step) * params[name]
      params[name] = params[name] - rate(step) * update
    found.append(params)
  return found


def lars(gradients, momentum=0.7, trust=0.05, decay=decay):
  """Algorithm 1 of You et al., 2017, with the norm of the decayed gradient."""
  found, params = [], dict(PARAMS)
  velocity = {n: np.zeros(s) for n, s in SHAPES.items()}
  for step, gradient in enumerate(gradients):
    params = dict(params)
    for name, g in gradient.items():
      local = 1.0
      if name == "kernel":
        g = g + decay(step) * params[name]
        size = np.sqrt((params[name] ** 2).sum())
        local = trust * size / np.sqrt((g**2).sum())
      velocity[name] = momentum * velocity[name] + rate(step) * local * g
      params[name] = params[name] - velocity[name]
    found.append(params)
  return found


def close(found, expected, rtol=1e-6):
  for one, other in zip(found, expected, strict=True):
    for name in SHAPES:
      np.testing.assert_allclose(one[name], other[name], rtol, err_msg=name)


def clipped(gradients, largest):
  def norm(gradient):
    return np.sqrt(sum((g**2).sum() for g in gradient.values()))

  return [
    {n: g * min(1, largest / norm(gradient)) for n, g in gradient.items()}
    for gradient in gradients
  ]


@pytest.mark.parametrize("reference", [adamw, lars])
def test_equals_the_formula(reference):
  close(optimised(name=reference.__name__), reference(GRADIENTS))


@pytest.mark.parametrize("reference", [adamw, lars])
def test_weight_decay_takes_effect_on_matrices_alone(reference):
  name = reference.__name__
  without = optimised(name=name, weight_decay=0.0, final_weight_decay=0.0)
  close(without, reference(GRADIENTS, decay=lambda step: 0.0))
  scheduled = optimised(name=name)
  constant = optimised(name=name, final_weight_decay=0.04)
  close(constant[:1], scheduled[:1])  # the schedules begin alike …
  for other in (without, constant):  # … and part
    assert abs(other[-1]["kernel"] - scheduled[-1]["kernel"]).max() > 1e-4
    for name in ("bias", "scale"):
      np.testing.assert_array_equal(other[-1][name], scheduled[-1][name])


def test_lars_trusts_by_layer():
  # However large a matrix's gradient, its step is trust x rate x its norm; a
  # bias follows its gradient.
  grown = [{n: 1000 * g for n, g in draw(0).items()}]
  fields = {"name": "lars", "weight_decay": 0.0, "final_weight_decay": 0.0}
  (after,) = optimised(grown, **fields)
  moved = np.linalg.norm(after["kernel"] - PARAMS["kernel"])
  expected = 0.05 * rate(0) * np.linalg.norm(PARAMS["kernel"])
  np.testing.assert_allclose(moved, expected, rtol=1e-6)
  np.testing.assert_allclose(
    after["bias"], PARAMS["bias"] - rate(0) * grown[0]["bias"], rtol=1e-6
  )


def test_lars_survives_zeros():
  # Norms of 0 must not divide: neither a new matrix of zeros, nor a gradient
  # of zeros (a layer that takes no part in the loss).
  zeros = {n: np.zeros(s) for n, s in SHAPES.items()}
  fields = {"name": "lars", "weight_decay": 0.0, "final_weight_decay": 0.0}
  close(optimised([zeros], **fields), [PARAMS])
  (after,) = optimised(GRADIENTS[:1], params=zeros, **fields)
  expected = -rate(0) * GRADIENTS[0]["kernel"]
  np.testing.assert_allclose(after["kernel"], expected, rtol=1e-6)


@pytest.mark.parametrize("reference", [adamw, lars])
def test_clips_the_global_norm(reference):
  # Of momenta, only a clip that binds in some steps and not in others tells a
  # wrong norm: AdamW, and LARS's matrices, ignore a common factor.
  gradients = [GRADIENTS[0], draw(7, scale=0.1), GRADIENTS[2]]
  found = optimised(gradients, name=reference.__name__, clip=2.0)
  close(found, reference(clipped(gradients, 2.0)))
  raw = optimised(gradients, name=reference.__name__)
  assert abs(found[-1]["bias"] - raw[-1]["bias"]).max() > 1e-3
  loose = optimised(gradients, name=reference.__name__, clip=1e3)
  close(loose, raw, rtol=1e-12)


def test_flatten_joins_matrices_and_others():
  tree = {"a": {"bias": np.arange(3.0)}, "b": {"kernel": np.ones((2, 3))}}
  tree["c"] = {"kernel": np.full((1, 1, 2, 2), 5.0), "scale": np.float64(7)}
  flat = flatten(tree)
  np.testing.assert_array_equal(flat["matrices"], [1] * 6 + [5] * 4)
  np.testing.assert_array_equal(flat["others"], [0, 1, 2, 7])
  assert set(flatten({"kernel": np.ones((2, 2))})) == {"matrices"}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"name": "adam"}, "no optimiser 'adam': .* one of adamw, lars"),
    ({"clip": -1.0}, "optimizer.clip=-1.0 .* or 0 not to clip"),
    ({"clip": float("nan")}, "optimizer.clip=nan"),
    ({"b1": 1.0}, "optimizer.b1=1.0 .* less than 1"),
    ({"b2": -0.1}, "optimizer.b2=-0.1"),
    ({"b2": 1.5}, "optimizer.b2=1.5"),
    ({"momentum": 1.0}, "optimizer.momentum=1.0"),
    ({"trust": 0.0}, "optimizer.trust=0.0 .* more than 0"),
  ],
)
def test_mistakes_are_explained(fields, message):
  settings = config(**fields)
  with pytest.raises(InputError, match=message):
    check(settings)
  with pytest.raises(InputError, match=message):
    make_optimizer(settings, learning_schedules(settings, LENGTHS))
