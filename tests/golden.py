"""Weights and inputs of the golden vectors, made by rule.

The vectors (`models/golden.npz`, `pretext/golden_losses.npz`) were computed by
the published PyTorch implementation (deezer/multi-view-ssl-benchmark) on CPU.
Its weights and inputs are not stored: each is drawn from a generator seeded by
its name. Two things the vectors' names do not say: `head_eval` was computed
after the training pass of `head_train`, with the statistics that left, and
`embedding_eval` before that of `embedding_train`.
"""

import functools
import json
import pathlib
import zlib

import jax
import numpy as np

_MODELS = pathlib.Path(__file__).parent / "models"
_PRETEXT = pathlib.Path(__file__).parent / "pretext"
_BATCH_NORMS = (".bn1.", ".bn2.", ".bn3.", ".downsample.1.")
_HEAD_BATCH_NORMS = ("ops.1.", "ops.4.")


def rand(key, shape):
  """The generator behind every weight and input: float32, standard normal."""
  generator = np.random.default_rng(zlib.crc32(key.encode()))
  return generator.standard_normal(shape).astype(np.float32)


@functools.cache
def models():
  """Vectors of the front end, the backbone and the head, by name."""
  return dict(np.load(_MODELS / "golden.npz"))


@functools.cache
def losses():
  """Vectors of the losses and schedules, by name."""
  return dict(np.load(_PRETEXT / "golden_losses.npz"))


def state_dict_shapes(network):
  """Shapes by name of the published `network`, "backbone" or "head"."""
  shapes = json.loads((_MODELS / "state_dict_shapes.json").read_text())
  return {name: tuple(shape) for name, shape in shapes[network].items()}


def weight(name, shape):
  """Value of the state dict's entry `name`."""
  if name.endswith("num_batches_tracked"):
    return np.zeros((), np.int64)
  r = rand(name, shape)
  batch_norm = name.startswith(_HEAD_BATCH_NORMS) or any(
    part in name for part in _BATCH_NORMS
  )
  if name.endswith("running_var"):
    return 0.5 + np.abs(r)
  if batch_norm and name.endswith("weight"):
    return 1 + 0.1 * r
  if name.endswith("positional_embedding"):
    return 0.05 * r
  if name.endswith(("bias", "running_mean")):
    return 0.1 * r
  fan_in = np.prod(shape[1:])
  gain = 2 if len(shape) == 4 else 1
  return (r * np.sqrt(gain / fan_in)).astype(np.float32)


def state_dict(network):
  """The whole state dict of `network`, "backbone" or "head"."""
  shapes = state_dict_shapes(network)
  return {name: weight(name, shape) for name, shape in shapes.items()}


def variables(shapes):
  """Variables of a network of any size, drawn by a rule like the one above.

  Args:
    shapes: what `jax.eval_shape` makes of the network's `init`, which takes
      far longer to compile than this takes to run.
  """

  def value(path, leaf):
    name, shape = jax.tree_util.keystr(path, simple=True), leaf.shape
    r = rand(name, shape)
    if name.endswith("var"):
      return (0.5 + np.abs(r)).astype(leaf.dtype)
    if name.endswith("scale"):
      return (1 + 0.1 * r).astype(leaf.dtype)
    gain = np.sqrt(1 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1
    return (gain * r).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(value, shapes)


def wave():
  """Four segments of 4 s at 16 kHz: noise, two tones, a sweep, a click."""
  t = np.arange(64000) / 16000
  return np.stack(
    [
      0.1 * rand("wave", (4, 64000))[0],
      0.5 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 3000 * t),
      np.sin(2 * np.pi * (200 + 900 * t) * t) * np.exp(-t),
      np.arange(64000) == 32000,
    ]
  ).astype(np.float32)


def head_in():
  """Input of the head, [8, 64]."""
  return rand("head_in", (8, 64))


def cotangent():
  """What the backbone's embeddings are multiplied with for the gradients."""
  return rand("cotangent", (4, 1024))


def z():
  """Projections for the losses: views, batch, features."""
  return rand("z", (2, 16, 48))


def teacher():
  """The teacher's projections for the losses, shaped as `z`."""
  return rand("teacher", (2, 16, 48))


def center():
  """The clustering loss's centre before the step, [1, 48]."""
  return 0.1 * rand("center", (1, 48))


def relative_error(a, b):
  """‖a − b‖ / ‖b‖, in float64."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  assert a.shape == b.shape, (a.shape, b.shape)
  return np.linalg.norm(a - b) / np.linalg.norm(b)
