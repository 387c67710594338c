"""Published PyTorch weights (state dicts) to and from our variables.

A state dict here is a mapping from names to NumPy arrays, for a backbone
(`embedding.layer1.0.conv1.weight`, ...) or for a head (`ops.0.weight`, ...),
without the prefix a trainer puts before them. Names and shapes are worked out
from the variables, so that any width and depth goes.

| ours | published | layout |
| --- | --- | --- |
| `stem/conv1/kernel` | `embedding.conv1.weight` | HWIO, OIHW |
| `layer1_0/conv1/kernel` | `embedding.layer1.0.conv1.weight` | IO, OI11 |
| `layer1_0/downsample_conv/kernel` | `....downsample.0.weight` | IO, OI11 |
| `layer1_0/downsample_bn` | `....downsample.1` | |
| `attnpool/q_proj/kernel` | `embedding.attnpool.q_proj.weight` | IO, OI |
| `dense_{i}/kernel` | `ops.{3i}.weight` | IO, OI |
| `bn_{i}` | `ops.{3i + 1}` | |
| batch norm `scale`, `bias` | `weight`, `bias` | |
| batch norm `mean`, `var` | `running_mean`, `running_var` | |
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ssl_music.models.frontend import hann_window, mel_filterbank

_LEAVES = {
  ("params", "kernel"): "weight",
  ("params", "scale"): "weight",
  ("params", "bias"): "bias",
  ("params", "positional_embedding"): "positional_embedding",
  ("batch_stats", "mean"): "running_mean",
  ("batch_stats", "var"): "running_var",
}
_COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class _Entry:
  """One array: where it is in the variables, and what PyTorch calls it."""

  path: tuple[str, ...]
  name: str
  shape: tuple[int, ...]  # ours
  pointwise: bool  # a Dense layer that PyTorch writes as a 1x1 convolution

  def to_torch(self, value: np.ndarray) -> np.ndarray:
    """Our layout to PyTorch's: outputs first."""
    if self.path[-1] != "kernel":
      return value
    value = np.moveaxis(value, (-1, -2), (0, 1))
    return value[:, :, None, None] if self.pointwise else value

  def from_torch(self, value: np.ndarray) -> np.ndarray:
    """PyTorch's layout to ours: outputs last."""
    if self.path[-1] != "kernel":
      return value
    if self.pointwise:
      value = value[:, :, 0, 0]
    return np.moveaxis(value, (0, 1), (-1, -2))

  @property
  def torch_shape(self) -> tuple[int, ...]:
    return self.to_torch(np.broadcast_to(0, self.shape)).shape


def front_end(
  settings: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Constants of the front end, which checkpoints hold beside the weights.

  The published front end (torchaudio's) keeps them as buffers; ours computes
  them.

  Args:
    settings: arguments of `frontend.log_mel`; None is the published front end.

  Returns:
    window and filter bank by their published names, float64.
  """
  settings = settings or {}
  names = ("n_fft", "n_mels", "f_min", "f_max")
  bank = {name: settings[name] for name in names if name in settings}
  window = {name: bank[name] for name in names[:1] if name in bank}
  return {
    "spec.spec.spectrogram.window": hann_window(**window),
    "spec.spec.mel_scale.fb": mel_filterbank(**bank),
  }


def from_torch(
  state: Mapping[str, np.ndarray],
  variables_like: Mapping[str, Any],
  settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Variables from a published state dict.

  `num_batches_tracked` may be there or not, and is dropped: nothing uses it. So
  are the constants of the published front end (window and filter bank), once
  they are found to be those of `frontend.log_mel`.

  Args:
    state: the state dict of one backbone or one head.
    variables_like: variables of the network to be filled, as its `init` (or
      `jax.eval_shape` of it) returns them: only names, shapes and types count.
    settings: of the front end, see `front_end`.

  Returns:
    Variables of that structure as nested dicts of NumPy arrays, of the types
    of `variables_like`.

  Raises:
    ValueError: if entries of `state` are missing, unexpected or of another
      shape, or if `variables_like` are not those of a backbone or a head. The
      message names the entries.
  """
  problems = misfits(state, variables_like, settings)
  if problems:
    raise ValueError("the state dict does not fit:\n  " + "\n  ".join(problems))
  values = {
    entry.path: entry.from_torch(np.asarray(state[entry.name]))
    for entry in _entries(variables_like)
  }
  return _fill(variables_like, values)


def misfits(
  state: Mapping[str, np.ndarray],
  variables_like: Mapping[str, Any],
  settings: Mapping[str, Any] | None = None,
) -> list[str]:
  """Says of each entry of a state dict that does not fit what is wrong.

  Args:
    state: as of `from_torch`.
    variables_like: as of `from_torch`.
    settings: as of `from_torch`.

  Returns:
    a few words on each missing, unexpected or mis-shaped entry and each
    constant of another front end; nothing where `from_torch` can do it.

  Raises:
    ValueError: if `variables_like` are not those of a backbone or a head.
  """
  entries = _entries(variables_like)
  expected = {entry.name: entry.torch_shape for entry in entries}
  optional = dict.fromkeys(_counters(entries), ())
  constants = {}
  if any(name.startswith("embedding.") for name in expected):
    constants = front_end(settings)
    optional |= {name: value.shape for name, value in constants.items()}
  problems = [
    f"missing {name}, expected shape {shape}"
    for name, shape in expected.items()
    if name not in state
  ]
  allowed = expected | optional
  for name, value in state.items():
    shape = np.shape(value)
    if name not in allowed:
      problems.append(f"unexpected {name} of shape {shape}")
    elif shape != allowed[name]:
      problems.append(f"{name} has shape {shape}, expected {allowed[name]}")
    elif name in constants and not np.allclose(
      np.asarray(value, np.float64), constants[name], atol=_tolerance(value)
    ):
      problems.append(f"{name} is that of another front end")
  return problems


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The published state dict of variables: the inverse of `from_torch`.

  Args:
    variables: variables of one backbone or one head, arrays of any kind that
      NumPy takes.

  Returns:
    Arrays by name, each a copy, in the types of `variables`;
    `num_batches_tracked` is written as zero (int64), as it is not kept.

  Raises:
    ValueError: if `variables` are not those of a backbone or a head.
  """
  entries = _entries(variables)
  leaves = dict(_leaves(variables))
  state = {
    entry.name: np.array(
      entry.to_torch(np.asarray(leaves[entry.path])), order="C"
    )
    for entry in entries
  }
  counters = {name: np.zeros((), np.int64) for name in _counters(entries)}
  return state | counters


def _tolerance(value: np.ndarray) -> float:
  """How far a constant from 0 to 1 may be off: more if it is of 16 bits."""
  dtype = np.asarray(value).dtype
  floating = jnp.issubdtype(dtype, np.floating)
  return max(1e-3, float(jnp.finfo(dtype).eps)) if floating else 1e-3


def _leaves(
  tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
  """Paths and arrays of a nested mapping."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, (*path, key))
    else:
      yield (*path, key), value


def _fill(
  like: Mapping[str, Any],
  values: Mapping[tuple[str, ...], np.ndarray],
  path: tuple[str, ...] = (),
) -> dict[str, Any]:
  """Copies of `values` in the structure and the types of `like`."""
  filled = {}
  for key, value in like.items():
    here = (*path, key)
    if isinstance(value, Mapping):
      filled[key] = _fill(value, values, here)
    else:
      filled[key] = np.array(values[here], dtype=value.dtype, order="C")
  return filled


def _entries(variables: Mapping[str, Any]) -> list[_Entry]:
  """Every array of the variables with its published name.

  Raises:
    ValueError: if an array has no published name, or the variables hold both
      a backbone and a head, whose names would be ambiguous.
  """
  entries = []
  for path, leaf in _leaves(variables):
    leaf_name = _LEAVES.get((path[0], path[-1]))
    module = _torch_module(path[1:-1])
    if leaf_name is None or module is None:
      raise ValueError(
        f"{'/'.join(path)} belongs to neither a published backbone nor a head; "
        "pass the variables of one network, {'params': ..., ...}"
      )
    shape = tuple(leaf.shape)
    pointwise = "conv" in path[-2] and len(shape) == 2
    name = f"{module}.{leaf_name}"
    entries.append(_Entry(path, name, shape, pointwise))
  if len({entry.name.split(".")[0] for entry in entries}) > 1:
    raise ValueError(
      "the variables hold both a backbone and a head: pass one at a time"
    )
  return entries


def _torch_module(path: tuple[str, ...]) -> str | None:
  """Published name of one of our modules, None if it has none."""
  match path:
    case ("stem" | "attnpool", *_):
      inner = path[1:] if path[0] == "stem" else path
      return ".".join(("embedding", *inner))
    case (block, layer) if found := re.fullmatch(r"(layer\d+)_(\d+)", block):
      layer = {
        "downsample_conv": "downsample.0",
        "downsample_bn": "downsample.1",
      }.get(layer, layer)
      return f"embedding.{found[1]}.{found[2]}.{layer}"
    case (layer,) if found := re.fullmatch(r"(dense|bn)_(\d+)", layer):
      offset = 0 if found[1] == "dense" else 1
      return f"ops.{3 * int(found[2]) + offset}"
  return None


def _counters(entries: list[_Entry]) -> list[str]:
  """Names of the step counters PyTorch keeps, one a batch norm."""
  end = "running_mean"
  return [
    entry.name.removesuffix(end) + _COUNTER
    for entry in entries
    if entry.name.endswith(end)
  ]
