"""Statistics of features over the global batch, for the losses made of them."""

import jax
import jax.numpy as jnp


def mean_over_batch(x: jax.Array, axis_name: str | None) -> jax.Array:
  """Returns the mean over the batch of x [..., B, D], [..., 1, D].

  Args:
    x: this device's part of the batch; all devices have as many items.
    axis_name: the mapped axis over which the batch is spread, or None.
  """
  mean = x.mean(axis=-2, keepdims=True)
  return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def batch_size(x: jax.Array, axis_name: str | None) -> int:
  """Returns the items of the global batch of which x [..., B, D] is a part."""
  devices = 1 if axis_name is None else jax.lax.axis_size(axis_name)
  return x.shape[-2] * devices


def standardise(
  z: jax.Array, axis_name: str | None, epsilon: float = 1e-5
) -> jax.Array:
  """Scales features to mean 0 and variance 1 over the batch, view by view.

  Args:
    z: [V, B, D].
    axis_name: as of `mean_over_batch`.
    epsilon: added to the (biased) variance, as by the published code.
  """
  centred = z - mean_over_batch(z, axis_name)
  variance = mean_over_batch(jnp.square(centred), axis_name)
  return centred * jax.lax.rsqrt(variance + epsilon)


def product(a: jax.Array, b: jax.Array, axis_name: str | None) -> jax.Array:
  """Returns a'b / (B - 1) over the global batch, [..., D, D].

  Each device sends a feature × feature matrix, whatever the batch.

  Args:
    a: [..., B, D].
    b: [..., B, D].
    axis_name: as of `mean_over_batch`.
  """
  total = jnp.einsum(
    "...bd,...be->...de", a, b, precision=jax.lax.Precision.HIGHEST
  )
  if axis_name is not None:
    total = jax.lax.psum(total, axis_name)
  return total / (batch_size(a, axis_name) - 1)


def mean_off_diagonal(matrix: jax.Array) -> jax.Array:
  """Returns the mean of the squares off the diagonal of [..., D, D], [...]."""
  size = matrix.shape[-1]
  off = jnp.where(jnp.eye(size, dtype=bool), 0, matrix)
  return jnp.square(off).sum(axis=(-2, -1)) / (size * (size - 1))
