"""Batch normalisation with PyTorch's running statistics."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_music.models.cpu import channel_sum


def batch_moments(
  x: jax.Array, about: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """Mean and biased variance of each channel over all leading axes.

  Both are taken in one pass over the batch, and exchanged in one collective,
  from values near zero: of d = x - about the mean is E[d] and the variance
  E[d²] - E[d]² (shifted data, Chan, Golub & LeVeque, 1983, section 1). The
  nearer `about` is to the mean, the less is lost in that difference; with the
  two one deviation apart, one bit.

  Args:
    x: [..., channels], floating.
    about: [channels], the same on all devices, such as the running mean.
    axis_name: mapped axis over which the batch is spread in equal parts.

  Returns:
    Mean and variance, [channels] each, float32 (float64 for float64 input).
  """
  d = x.astype(jnp.promote_types(x.dtype, jnp.float32)) - about
  sums = jnp.stack([channel_sum(d), channel_sum(jnp.square(d))])
  moments = sums / math.prod(x.shape[:-1])
  if axis_name is not None:
    moments = jax.lax.pmean(moments, axis_name)
  mean, square = moments
  return about + mean, jnp.maximum(0.0, square - jnp.square(mean))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalise(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  about: jax.Array,
  epsilon: float,
  axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises each channel by the batch's moments (Ioffe & Szegedy, 2015).

  Its derivative is written out: two sums over the batch, in one collective,
  where differentiating the moments would take several.

  Args:
    x: [..., channels], floating.
    scale: [channels].
    bias: [channels].
    about: as in `batch_moments`; what is computed does not depend on it.
    epsilon: added to the variance.
    axis_name: as in `batch_moments`.

  Returns:
    The normalised array, of the shape and type of `x`, and the mean and biased
    variance, [channels] each, which are taken for constants.
  """
  mean, variance = batch_moments(x, about, axis_name)
  y = _affine(x, mean, variance, scale, bias, epsilon).astype(x.dtype)
  return y, mean, variance


def _affine(x, mean, variance, scale, bias, epsilon):
  """Returns (x - mean) / deviation · scale + bias, in float32 at least."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return (wide - mean) * (scale * jax.lax.rsqrt(variance + epsilon)) + bias


def _normalise_forward(x, scale, bias, about, epsilon, axis_name):
  out = normalise(x, scale, bias, about, epsilon, axis_name)
  return out, (x, scale, bias, *out[1:])


def _normalise_backward(epsilon, axis_name, kept, given):
  """Ioffe & Szegedy (2015), section 3, with the sums taken apart."""
  x, scale, bias, mean, variance = kept
  wide = jnp.promote_types(x.dtype, jnp.float32)
  back = given[0].astype(wide)
  inverse = jax.lax.rsqrt(variance + epsilon)
  unit = (x.astype(wide) - mean) * inverse
  sums = jnp.stack([channel_sum(back), channel_sum(back * unit)])
  means = sums / math.prod(x.shape[:-1])
  if axis_name is not None:
    means = jax.lax.pmean(means, axis_name)
  to_x = scale * inverse * (back - means[0] - unit * means[1])
  return (
    to_x.astype(x.dtype),
    sums[1].astype(scale.dtype),
    sums[0].astype(bias.dtype),
    None,
  )


normalise.defvjp(_normalise_forward, _normalise_backward)


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
      statistics of the global batch; None for this device's alone.
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
      moments = running_mean.value, running_var.value
      return _affine(x, *moments, scale, bias, self.epsilon).astype(self.dtype)
    # `init` runs outside the mapped axis, and leaves the statistics alone.
    axis_name = None if self.is_initializing() else self.axis_name
    devices = jax.lax.axis_size(axis_name) if axis_name else 1
    if devices == 1:
      axis_name = None  # a collective would cost time, and keep kernels apart
    count = devices * math.prod(x.shape[:-1])
    if count < 2 and not self.is_initializing():
      raise ValueError(
        "batch normalisation needs more than one value per channel to train "
        f"on, got input of shape {x.shape} on {devices} device(s)"
      )
    y, mean, variance = normalise(
      x, scale, bias, running_mean.value, self.epsilon, axis_name
    )
    if not self.is_initializing():
      unbiased = variance * (count / (count - 1))
      for running, new in ((running_mean, mean), (running_var, unbiased)):
        kept = self.momentum * running.value
        running.value = kept + (1 - self.momentum) * new.astype(kept.dtype)
    return y.astype(self.dtype)
