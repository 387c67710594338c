"""What a file of weights tells of its network, and what that makes of it."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_music import config as configs
from ssl_music.errors import InputError
from ssl_music.models import frontend
from ssl_music.models.resnet import ResNet, feature_map_size

SAMPLE_RATE = 16000
_BLOCK = re.compile(r"embedding\.layer([1-9]\d?)\.(\d{1,3})\.")
_ADVICE = "give a checkpoint of the published network, or of one like it"
_MOST_BLOCKS = 256
_DTYPES = ("float32", "bfloat16", "float16")
# The most that a config in a file may ask for.
_LIMITS = {
  "model": {"width": 4096, "heads": 4096, "output": 2**20},
  "frontend": {
    "n_fft": 2**16,
    "hop": 2**16,
    "n_mels": 4096,
    "f_min": 1e6,
    "f_max": 1e6,
    "top_db": 1e6,
  },
  "data": {"seconds": 3600.0},
}


def published() -> dict[str, Any]:
  """Returns {"model", "frontend", "data": {"seconds"}} of the published one."""
  return _parts(configs.probing("paper").to_dict())


def guess(backbone: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Reads off a published state dict what its names and shapes tell.

  Args:
    backbone: the state dict, without a prefix.

  Returns:
    settings as of `published`, with width, depths and output those of the
    state dict, and segments as long (in tenths of a second) as they can be for
    as many positions. Heads and front end are the published ones.

  Raises:
    InputError: it is no such network's. The message does not name the file.
  """
  settings = published()
  blocks = [found.groups() for found in map(_BLOCK.match, backbone) if found]
  stages = max((int(stage) for stage, _ in blocks), default=0)
  try:
    positions = backbone["embedding.attnpool.positional_embedding"].shape[0]
    settings["model"] |= {
      "width": 2 * backbone["embedding.conv1.weight"].shape[0],
      "depths": [
        1 + max(int(block) for of, block in blocks if int(of) == stage)
        for stage in range(1, stages + 1)
      ],
      "output": backbone["embedding.attnpool.c_proj.weight"].shape[0],
    }
    rows = feature_map_size(settings["frontend"]["n_mels"], stages)
    columns, rest = divmod(positions - 1, rows)
  except KeyError as error:
    raise InputError(f"it lacks {error.args[0]}: {_ADVICE}") from error
  except (ArithmeticError, IndexError, ValueError) as error:
    raise InputError(
      f"its layers are not those of a backbone: {_ADVICE}"
    ) from error
  if columns < 1 or rest:
    raise InputError(
      f"its positional embedding has {positions} rows, which the published"
      f" front end never leads to: {_ADVICE}"
    )
  hop = settings["frontend"]["hop"]
  settings["data"]["seconds"] = _longest(columns, stages, hop)
  return checked(settings)


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the parts of a config that a backbone needs.

  Args:
    config: with "model", "frontend", "data" and anything else; from a file.

  Raises:
    InputError: something is missing, or no such network can be. The message
      does not name the file.
  """
  try:
    parts = _parts(config)
    for part, limits in _LIMITS.items():
      for name, most in limits.items():
        if not 0 <= parts[part][name] <= most:
          raise ValueError(f"{name}={parts[part][name]!r}")
    if parts["model"]["dtype"] not in _DTYPES:
      raise ValueError(f"dtype={parts['model']['dtype']!r}")
    depths = parts["model"]["depths"]
    if not 0 < sum(depths) <= _MOST_BLOCKS:
      raise ValueError(f"depths={depths}")
  except (ArithmeticError, LookupError, TypeError, ValueError) as error:
    raise _impossible(error) from error
  return parts


def shapes(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {"params", "batch_stats"} of a network as shapes, float32.

  Args:
    settings: of `checked`.

  Raises:
    InputError: the sizes do not go together. The message does not name the
      file.
  """
  model, front_end = settings["model"], settings["frontend"]
  samples = round(settings["data"]["seconds"] * SAMPLE_RATE)
  try:
    network = ResNet(
      width=model["width"],
      depths=tuple(model["depths"]),
      heads=model["heads"],
      output=model["output"],
    )
    size = (1, front_end["n_mels"], frontend.frames(samples, front_end["hop"]))
    return jax.eval_shape(
      functools.partial(network.init, train=False),
      jax.random.key(0),
      jax.ShapeDtypeStruct(size, jnp.float32),
    )
  except (ArithmeticError, TypeError, ValueError) as error:
    raise _impossible(error) from error


def _impossible(error: Exception) -> InputError:
  said = str(error).split("\n")[0][:200]
  return InputError(f"it describes no possible network ({said}): {_ADVICE}")


def _parts(config: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "model": {**config["model"], "depths": list(config["model"]["depths"])},
    "frontend": dict(config["frontend"]),
    "data": {"seconds": config["data"]["seconds"]},
  }


def _longest(columns: int, stages: int, hop: int) -> float:
  """The longest segment, in tenths of a second, of so many positions."""
  # The most frames for as many columns: see `feature_map_size`.
  most = 2 ** (stages + 1) * (columns + 1) - 2
  samples = most * hop - 1  # the most for as many frames: see `frames`
  return samples // (SAMPLE_RATE // 10) / 10
