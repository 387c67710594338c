"""The projection head between the backbone and a pretext loss."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_music.models.norm import BatchNorm
from ssl_music.models.resnet import torch_uniform


class Head(nn.Module):
  """Multi-layer perceptron, as published with the paper (arXiv:2404.09177).

  Each hidden layer is linear without bias, batch normalisation and ReLU; the
  last layer is linear without bias. The published "head 1024-1024-2048" has
  sizes (1024, 1024, 2048), BYOL's predictor (256, 2048).

  Variables: `dense_{i}` (kernel) and `bn_{i}` in "params", `bn_{i}` in
  "batch_stats", with i from 0; the last layer has no `bn_{i}` (with `cosine`,
  neither has the one before it).

  With `cosine`, the end of the head is DINO's own (Caron et al., 2021, section
  3.1 and appendix C), which the paper left out: the layer before the last is a
  bottleneck, without batch normalisation and ReLU, and the outputs are the
  cosines of what it puts out with the columns of the last layer's kernel.

  Attributes:
    sizes: outputs of each layer; () makes the head the identity.
    dtype: type of the computation, e.g. float32 or bfloat16.
    param_dtype: type of parameters and running statistics.
    axis_name: mapped axis for synchronised batch normalisation, or None.
    cosine: whether the last layer gives cosines.
  """

  sizes: tuple[int, ...]
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  axis_name: str | None = None
  cosine: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Projects a batch of embeddings.

    Args:
      x: [N, features], floating.
      train: whether batch normalisation uses, and updates, the statistics of
        the batch ("batch_stats" must then be mutable).

    Returns:
      [N, sizes[-1]], float32 (float64 if `dtype` is), with `cosine` in [-1, 1]
      up to rounding; `x` itself if `sizes` is empty.

    Raises:
      ValueError: when training with hidden layers on a single item.
    """
    if not self.sizes:
      return x
    types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    last = len(self.sizes) - 1
    for i, size in enumerate(self.sizes):
      if i == last and self.cosine:
        layer = functools.partial(Cosine, size)
      else:
        layer = functools.partial(
          nn.Dense, size, use_bias=False, kernel_init=torch_uniform
        )
      x = layer(name=f"dense_{i}", **types)(x)
      if i < last - self.cosine:
        norm = BatchNorm(axis_name=self.axis_name, name=f"bn_{i}", **types)
        x = nn.relu(norm(x, train=train))
    return x.astype(jnp.promote_types(self.dtype, jnp.float32))


class Cosine(nn.Module):
  """Cosines with learnt directions: weight norm with a gain fixed at 1.

  Variables: "kernel" [features, size] in "params", as of a dense layer.

  Attributes:
    size: number of directions.
    dtype: type of the factors; their products are summed in float32 at least.
    param_dtype: type of the kernel.
  """

  size: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the cosines of x [N, features], [N, size]; zeros give zeros."""
    shape = (x.shape[-1], self.size)
    kernel = self.param("kernel", torch_uniform, shape, self.param_dtype)
    # At temperatures of 0.02, TF32 or bfloat16 for float32 would show.
    return jnp.dot(
      _unit(x, -1).astype(self.dtype),
      _unit(kernel, 0).astype(self.dtype),
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=jnp.promote_types(self.dtype, jnp.float32),
    )


def _unit(x: jax.Array, axis: int) -> jax.Array:
  """Scales x to length 1 along an axis, in float32 at least."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  # Squared, since a norm has no gradient at 0.
  square = jnp.square(x).sum(axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-16))
