"""The projection head between the backbone and a pretext loss."""

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
  "batch_stats", with i from 0; the last layer has no `bn_{i}`.

  Attributes:
    sizes: outputs of each layer; () makes the head the identity.
    dtype: type of the computation, e.g. float32 or bfloat16.
    param_dtype: type of parameters and running statistics.
    axis_name: mapped axis for synchronised batch normalisation, or None.
  """

  sizes: tuple[int, ...]
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Projects a batch of embeddings.

    Args:
      x: [N, features], floating.
      train: whether batch normalisation uses, and updates, the statistics of
        the batch ("batch_stats" must then be mutable).

    Returns:
      [N, sizes[-1]], float32 (float64 if `dtype` is); `x` itself if `sizes` is
      empty.

    Raises:
      ValueError: when training with hidden layers on a single item.
    """
    if not self.sizes:
      return x
    types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    last = len(self.sizes) - 1
    for i, size in enumerate(self.sizes):
      x = nn.Dense(
        size,
        use_bias=False,
        kernel_init=torch_uniform,
        name=f"dense_{i}",
        **types,
      )(x)
      if i < last:
        norm = BatchNorm(axis_name=self.axis_name, name=f"bn_{i}", **types)
        x = nn.relu(norm(x, train=train))
    return x.astype(jnp.promote_types(self.dtype, jnp.float32))
