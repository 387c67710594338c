"""The optimisers that a config may name, and their schedules."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ssl_music import schedules
from ssl_music.errors import InputError

NAMES = ("adamw", "lars")
MATRICES, OTHERS = "matrices", "others"  # what `flatten` joins


def make_optimizer(
  config: Mapping, rates: Mapping[str, optax.Schedule]
) -> optax.GradientTransformation:
  """Returns the optimiser of a config, with both its rates scheduled.

  "adamw" (Loshchilov & Hutter, 2019, algorithm 2) has the fields "b1" and "b2".
  "lars" (You et al., 2017, algorithm 1) has "momentum" and "trust" (eta); as in
  its use for SimCLR and BYOL, a layer's rate is eta |w| / |g + beta w|, with
  the weight decay beta inside the norm, where the paper has |g| + beta |w|.
  Parameters of one dimension (biases, batch norm's) do not decay, and LARS
  takes them by the learning rate alone. With a "clip" above 0, gradients whose
  global norm is larger are scaled down to it first.

  Args:
    config: as a plain dict; its "optimizer" has all the fields above and
      "name", one of `NAMES`.
    rates: of `learning_schedules`.

  Raises:
    InputError: as of `check`.
  """
  check(config)
  settings = config["optimizer"]
  clip = []
  if settings["clip"]:
    clip = [optax.clip_by_global_norm(settings["clip"])]
  if settings["name"] == "adamw":
    adamw = optax.adamw(
      rates["learning_rate"],
      b1=settings["b1"],
      b2=settings["b2"],
      weight_decay=rates["weight_decay"],
      mask=lambda flat: {group: group == MATRICES for group in flat},
    )
    return _flattened(optax.chain(*clip, adamw))
  lars = optax.lars(
    rates["learning_rate"],
    weight_decay=rates["weight_decay"],
    weight_decay_mask=_matrices,
    trust_coefficient=settings["trust"],
    trust_ratio_mask=_matrices,
    momentum=settings["momentum"],
  )
  return optax.chain(*clip, lars)


def learning_schedules(
  config: Mapping, lengths: Mapping[str, int]
) -> dict[str, optax.Schedule]:
  """Returns the published schedules of learning rate and weight decay.

  Args:
    config: as a plain dict; its "optimizer" has first and last values.
    lengths: "warmup" and "total", in steps.
  """
  settings = config["optimizer"]
  return {
    "learning_rate": schedules.warmup_cosine(
      settings["learning_rate"],
      settings["final_learning_rate"],
      lengths["warmup"],
      lengths["total"],
    ),
    "weight_decay": schedules.cosine(
      settings["weight_decay"],
      settings["final_weight_decay"],
      lengths["total"],
    ),
  }


def check(config: Mapping) -> None:
  """Checks a config's "optimizer".

  Raises:
    InputError: no such optimiser, or a number out of its range.
  """
  settings = config["optimizer"]
  if settings["name"] not in NAMES:
    raise InputError(
      f"no optimiser {settings['name']!r}: set --config.optimizer.name to one"
      f" of {', '.join(NAMES)}"
    )
  for name in ("b1", "b2", "momentum"):
    if not 0 <= settings[name] < 1:
      raise InputError(
        f"--config.optimizer.{name}={settings[name]} is no decay rate: give 0"
        " or more, and less than 1"
      )
  if not settings["trust"] > 0:
    raise InputError(
      f"--config.optimizer.trust={settings['trust']} would stop or reverse"
      " LARS: give more than 0, such as 0.001"
    )
  if not settings["clip"] >= 0:
    raise InputError(
      f"--config.optimizer.clip={settings['clip']} is no largest norm of the"
      " gradient: give more than 0, or 0 not to clip"
    )


def flatten(tree: Any) -> dict[str, jax.Array]:
  """Joins parameters, or what has their shapes, to two long vectors.

  A program has a kernel for every operation on every array, and a network has
  hundreds of arrays, most of them small. On two long ones a step of AdamW is a
  few kernels, and the training step has a third fewer of them to compile.

  Args:
    tree: of arrays.

  Returns:
    `MATRICES`, all that have two dimensions or more, and `OTHERS`, each where
    there are any, in the order of the tree's leaves.
  """
  found = {}
  for x in jax.tree.leaves(tree):
    found.setdefault(_group(x), []).append(x.ravel())
  return {group: jnp.concatenate(parts) for group, parts in found.items()}


def _unflatten(flat: Mapping[str, jax.Array], like: Any) -> Any:
  """Takes apart what `flatten` has joined, to the shapes of a tree."""
  taken = dict.fromkeys(flat, 0)

  def take(x):
    group, first = _group(x), taken[_group(x)]
    taken[group] += x.size
    return flat[group][first : taken[group]].reshape(x.shape)

  return jax.tree.map(take, like)


def _flattened(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Gives an optimiser that treats each number alone the long vectors."""

  def init(params):
    return optimizer.init(flatten(params))

  def update(gradients, state, params):
    flat = flatten(gradients), state, flatten(params)
    updates, state = optimizer.update(*flat)
    return _unflatten(updates, gradients), state

  return optax.GradientTransformation(init, update)


def _group(x: jax.Array) -> str:
  return MATRICES if x.ndim > 1 else OTHERS


def _matrices(params: Any) -> Any:
  """Marks what decays: weights, but no biases nor batch norm's parameters."""
  return jax.tree.map(lambda p: p.ndim > 1, params)
