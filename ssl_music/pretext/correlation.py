"""Statistics of features over the global batch, for the losses made of them."""

import functools

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

  Each device sends a feature × feature matrix, whatever the batch. All devices
  have to make the same of it, whose gradient then needs no further exchange.

  Args:
    a: [..., B, D].
    b: [..., B, D].
    axis_name: as of `mean_over_batch`.
  """
  total = jnp.einsum(
    "...bd,...be->...de", a, b, precision=jax.lax.Precision.HIGHEST
  )
  if axis_name is not None:
    total = _sum(total, axis_name)
  return total / (batch_size(a, axis_name) - 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum(x: jax.Array, axis_name: str) -> jax.Array:
  """Returns the sum over devices, whose gradient is the same on all of them.

  The derivative of `jax.lax.psum` adds up the devices' gradients, which here is
  one of them times their number: a matrix less to send.
  """
  return jax.lax.psum(x, axis_name)


def _sum_forward(x: jax.Array, axis_name: str) -> tuple[jax.Array, None]:
  return _sum(x, axis_name), None


def _sum_backward(axis_name: str, _: None, grad: jax.Array) -> tuple[jax.Array]:
  return (grad * jax.lax.axis_size(axis_name),)


_sum.defvjp(_sum_forward, _sum_backward)


def mean_off_diagonal(matrix: jax.Array) -> jax.Array:
  """Returns the mean of the squares off the diagonal of [..., D, D], [...]."""
  size = matrix.shape[-1]
  off = jnp.where(jnp.eye(size, dtype=bool), 0, matrix)
  return jnp.square(off).sum(axis=(-2, -1)) / (size * (size - 1))
