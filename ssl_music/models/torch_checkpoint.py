"""Backbones in files: the authors' checkpoints, others' and our safetensors.

The authors published five files of `torch.save`, one a pretext task. Each
holds {"model": state dict, ...}, whose names begin with what was trained:

| task | prefixes |
| --- | --- |
| contrastive, barlow_twins, feature_stats (VICReg) | `module.backbone.` |
| byol, clustering | `student.module.backbone.`, `teacher.backbone.` |

A prefix without `module.` (which training on several GPUs puts there), and none
at all, are understood as well; so are these names in a file of safetensors,
and files that `write_ours` made.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ssl_music.errors import InputError
from ssl_music.models import (
  backbone_settings,
  safetensors_file,
  torch_file,
  torch_weights,
)

_FIRST = "embedding.conv1.weight"  # every backbone's, and no head's
_WRAPPERS = {"module", "backbone"}
_ADVICE = "give a whole checkpoint of such a network"
_NAMED = 3  # entries that an error names


def find_backbone(
  state: Mapping[str, np.ndarray], network: str = "student"
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
  """Takes a backbone out of a state dict.

  Args:
    state: of a whole training, or of a backbone alone.
    network: "student" or "teacher"; where there is one network, the student.

  Returns:
    the backbone's state dict without its prefix, and the networks that there
    are.

  Raises:
    InputError: there is no such network, or two of that kind. The message does
      not name the file.
  """
  found = {}
  for name in state:
    if name.endswith(_FIRST):
      prefix = name.removesuffix(_FIRST)
      parts = [part for part in prefix.split(".")[:-1] if part not in _WRAPPERS]
      found.setdefault(".".join(parts) or "student", []).append(prefix)
  networks = tuple(name for name in ("student", "teacher") if name in found)
  if network not in networks:
    others = sorted({".".join(name.split(".")[:2]) for name in state})
    prefixes = [prefix for group in found.values() for prefix in group]
    if networks:
      raise InputError(
        f"there is no {network} but only a {networks[0]}: take that one"
      )
    raise InputError(
      "no backbone is among names that begin with"
      f" {_few(prefixes or others)}: give a checkpoint whose names begin with"
      " module.backbone., student.module.backbone. or embedding."
    )
  if len(found[network]) > 1:
    raise InputError(
      f"more than one backbone could be the {network}, those under"
      f" {_few(found[network])}: give a checkpoint of one training"
    )
  (prefix,) = found[network]
  backbone = {
    name.removeprefix(prefix): value
    for name, value in state.items()
    if name.startswith(prefix)
  }
  return backbone, networks


def load(
  path: str | Path, network: str = "student"
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Loads a backbone from a file.

  Where the file has no config, width, depths and output are read off the
  tensors' shapes. Three things cannot be: the attention's heads are taken to be
  8, the front end the published one, and a segment as long as one (in tenths
  of a second) can be for as many positions: 4 s for the published files.

  Args:
    path: a checkpoint of `torch.save`, or a file of safetensors with the
      published names or with ours.
    network: as of `find_backbone`.

  Returns:
    {"model", "frontend", "data": {"seconds"}}, as a config has them, and
    {"params", "batch_stats"}, NumPy arrays, float32.

  Raises:
    InputError: the file cannot be read or is damaged; it holds no such network;
      tensors are missing, not expected, of another shape, of another front end
      or not finite; or it was written by a newer version.
  """
  arrays, config = _read(path)
  ours = any(name.startswith("params/") for name in arrays)
  try:
    if ours:
      if config is None:
        raise InputError("it has no config: export the encoder again")
      if network != "student":
        raise InputError(
          f"there is no {network} in an export: take the student"
        )
      settings = backbone_settings.checked(config)
      variables = _ours(arrays, backbone_settings.shapes(settings))
    else:
      backbone, _ = find_backbone(arrays, network)
      settings = (
        backbone_settings.guess(backbone)
        if config is None
        else backbone_settings.checked(config)
      )
      variables = _published(backbone, settings)
  except InputError as error:
    raise InputError(f"cannot use {path}: {error}") from error
  return settings, variables


def write_ours(
  path: str | Path, variables: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
  """Writes a backbone with our names ("params/stem/conv1/kernel") and config.

  Args:
    path: the `.safetensors` file; one that is there is replaced.
    variables: {"params", "batch_stats"} of a backbone.
    config: {"model", "frontend", "data": {"seconds"}, ...}, for JSON.

  Raises:
    OSError: it cannot be written.
  """
  safetensors_file.write(path, _flat(variables), config)


def write_published(
  path: str | Path,
  variables: Mapping[str, Any],
  config: Mapping[str, Any] | None = None,
) -> None:
  """Writes a backbone with the published names, front end included.

  Args:
    path: the `.safetensors` file; one that is there is replaced.
    variables: {"params", "batch_stats"} of a backbone.
    config: as of `write_ours`; without one the front end is the published one.

  Raises:
    OSError: it cannot be written.
  """
  settings = (config or backbone_settings.published())["frontend"]
  constants = {
    name: value.astype(np.float32)
    for name, value in torch_weights.front_end(settings).items()
  }
  state = torch_weights.to_torch(variables) | constants
  safetensors_file.write(path, state, config)


def _read(
  path: str | Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
  """Returns a file's arrays, and the config in it if there is one."""
  path = Path(path)
  if not path.is_file():
    raise InputError(
      f"{path} is no file: give a .pt checkpoint or a .safetensors file"
    )
  try:
    with path.open("rb") as file:
      head = file.read(32)
  except OSError as error:
    raise InputError(
      f"cannot read {path} ({error.strerror}): give a file that can be read"
    ) from error
  if torch_file.is_torch(head):
    return torch_file.read(path), None
  if safetensors_file.is_safetensors(head):
    return safetensors_file.read(path)
  raise InputError(
    f"{path} is neither a checkpoint of torch.save nor a file of safetensors:"
    " give one of these"
  )


def _published(
  state: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> dict[str, Any]:
  """Variables from a backbone's published state dict."""
  like, front_end = backbone_settings.shapes(settings), settings["frontend"]
  _refuse(torch_weights.misfits(state, like, front_end) + _not_float(state))
  with np.errstate(over="ignore"):
    variables = torch_weights.from_torch(state, like, front_end)
  return _finite(variables)


def _ours(
  arrays: Mapping[str, np.ndarray], like: Mapping[str, Any]
) -> dict[str, Any]:
  """Variables from arrays by our names."""
  expected = _flat(like)
  _refuse(
    [
      f"missing {name}, expected shape {leaf.shape}"
      for name, leaf in expected.items()
      if name not in arrays
    ]
    + [
      f"{name} has shape {value.shape}, expected {expected[name].shape}"
      if name in expected
      else f"unexpected {name} of shape {value.shape}"
      for name, value in arrays.items()
      if name not in expected or value.shape != expected[name].shape
    ]
    + _not_float(arrays)
  )
  variables: dict[str, Any] = {}
  for name in expected:
    *path, leaf = name.split("/")
    place = variables
    for key in path:
      place = place.setdefault(key, {})
    with np.errstate(over="ignore"):
      place[leaf] = arrays[name].astype(np.float32)
  return _finite(variables)


def _not_float(state: Mapping[str, np.ndarray]) -> list[str]:
  return [
    f"{name} holds {value.dtype} instead of floating point numbers"
    for name, value in state.items()
    if not jnp.issubdtype(value.dtype, np.floating)
    and not name.endswith("num_batches_tracked")
  ]


def _refuse(problems: list[str]) -> None:
  if problems:
    raise InputError(
      f"its tensors do not fit, {_few(problems, '; ')}: {_ADVICE}"
    )


def _finite(variables: dict[str, Any]) -> dict[str, Any]:
  names = [
    name
    for name, leaf in _flat(variables).items()
    if not np.isfinite(leaf).all()
  ]
  if names:
    raise InputError(
      f"its weights are not finite in {_few(names)}: give a checkpoint from"
      " before the training failed"
    )
  return variables


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Leaves of nested dicts by their keys, joined by slashes."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{key}/")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def _few(names: Sequence[str], between: str = ", ") -> str:
  """Names the first of some, and how many more there are."""
  more = len(names) - _NAMED
  shown = between.join(name[:200] for name in names[:_NAMED])
  return f"{shown} and {more} more" if more > 0 else shown
