"""Batch normalisation with PyTorch's running statistics."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def batch_moments(
  x: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """Mean and biased variance of each channel over all leading axes.

  The variance is the mean of squared deviations, not the difference of two
  large numbers, E[x²] - E[x]²: spectrograms in decibels are far from zero. With
  an axis, that difference is taken of what devices exchange, a value a channel.

  Args:
    x: [..., channels], floating.
    axis_name: mapped axis over which the batch is spread in equal parts. Its
      devices exchange both moments in one collective.

  Returns:
    Mean and variance, [channels] each, float32 (float64 for float64 input).
  """
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  axes = tuple(range(x.ndim - 1))
  mean = jnp.mean(x, axes)
  variance = jnp.mean(jnp.square(x - mean), axes)
  if axis_name is None:
    return mean, variance
  local = jnp.stack([mean, variance + jnp.square(mean)])
  mean, mean_of_squares = jax.lax.pmean(local, axis_name)
  return mean, jnp.maximum(0.0, mean_of_squares - jnp.square(mean))


class BatchNorm(nn.Module):
  """Batch normalisation (Ioffe & Szegedy, 2015) per channel, the last axis.

  `flax.linen.BatchNorm` keeps a running average of the biased variance;
  PyTorch, and so every published weight, of the unbiased one. That is the one
  difference in what is computed. Statistics are taken in float32 at least.

  Variables: `scale` and `bias` in "params", running `mean` and `var` in
  "batch_stats", [channels] each.

  Attributes:
    momentum: share of the old running statistics kept at each step, from 0 to
      1. PyTorch's momentum of 0.1 is 0.9 here.
    epsilon: added to the variance.
    dtype: type of the output.
    param_dtype: type of parameters and running statistics.
    axis_name: mapped axis over which the batch is spread in equal parts, for
      statistics of the global batch; None for those of this device's.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Normalises `x`, [..., channels].

    Args:
      x: floating values, any number of leading axes.
      train: with True, by the batch's statistics, and the running ones are
        updated ("batch_stats" must be mutable); with False, by the running
        ones.

    Returns:
      Array of the shape of `x`, of type `dtype`.

    Raises:
      ValueError: when training on a single value per channel, which has no
        variance.
    """
    shape = (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
    bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
    running_mean = self.variable(
      "batch_stats", "mean", jnp.zeros, shape, self.param_dtype
    )
    running_var = self.variable(
      "batch_stats", "var", jnp.ones, shape, self.param_dtype
    )
    if not train:
      mean, variance = running_mean.value, running_var.value
    elif self.is_initializing():
      # `init` runs outside the mapped axis, and leaves the statistics alone.
      mean, variance = batch_moments(x)
    else:
      mean, variance = batch_moments(x, self.axis_name)
      devices = jax.lax.axis_size(self.axis_name) if self.axis_name else 1
      count = devices * math.prod(x.shape[:-1])
      if count < 2:
        raise ValueError(
          "batch normalisation needs more than one value per channel to train "
          f"on, got input of shape {x.shape} on {devices} device(s)"
        )
      unbiased = variance * (count / (count - 1))
      for running, new in ((running_mean, mean), (running_var, unbiased)):
        kept = self.momentum * running.value
        running.value = kept + (1 - self.momentum) * new.astype(kept.dtype)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    factor = scale * jax.lax.rsqrt(variance + self.epsilon)
    return ((wide - mean) * factor + bias).astype(self.dtype)
