"""The networks that a config describes, as pure functions of variables."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssl_music.models.frontend import log_mel
from ssl_music.models.heads import Head
from ssl_music.models.resnet import ResNet


def backbone(
  config: Mapping,
  axis_name: str | None = None,
  *,
  resize_positions: bool = False,
) -> ResNet:
  """Returns the backbone of a config's "model"; see `ResNet`."""
  model = config["model"]
  return ResNet(
    width=model["width"],
    depths=tuple(model["depths"]),
    heads=model["heads"],
    output=model["output"],
    dtype=jnp.dtype(model["dtype"]),
    axis_name=axis_name,
    resize_positions=resize_positions,
  )


def head(config: Mapping, axis_name: str | None = None) -> Head:
  """Returns the projection head of a config's "pretext"; see `Head`."""
  pretext = config["pretext"]
  return Head(
    sizes=tuple(pretext["head"]),
    cosine=pretext.get("cosine_prototypes", False),
    dtype=jnp.dtype(config["model"]["dtype"]),
    axis_name=axis_name,
  )


def predictor(config: Mapping, axis_name: str | None = None) -> Head:
  """Returns the predictor of a config's "pretext"; without one, an identity."""
  return Head(
    sizes=tuple(config["pretext"].get("predictor", ())),
    dtype=jnp.dtype(config["model"]["dtype"]),
    axis_name=axis_name,
  )


def spectrogram(config: Mapping, waveform: jax.Array) -> jax.Array:
  """Returns the log-mel spectrogram of a config's "frontend"; see `log_mel`."""
  return log_mel(waveform, **config["frontend"])


def embed(
  config: Mapping, variables: Mapping[str, Any], waveform: jax.Array
) -> jax.Array:
  """Embeds segments with frozen statistics.

  Args:
    config: with "model" and "frontend".
    variables: "params" and "batch_stats" of the backbone.
    waveform: int16 or float [N, samples].

  Returns:
    float32 [N, output].
  """
  mel = spectrogram(config, waveform)
  return backbone(config).apply(variables, mel, train=False)
