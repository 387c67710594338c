"""The published backbone: CLIP's modified ResNet on a log-mel spectrogram.

Architecture of Radford et al., "Learning Transferable Visual Models From
Natural Language Supervision" (2021), as the paper's authors narrowed it
(arXiv:2404.09177). Inside, images are [N, mel, frame, channel].

A 1x1 convolution is a `Dense` layer, for which compilers make faster code.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_music.models.cpu import dot_general, mean_of_squares
from ssl_music.models.norm import BatchNorm

# A block of `planes` channels puts out this many times as many.
EXPANSION = 4

# PyTorch's default for convolutions and linear layers, which the published
# network starts from: uniform within 1 / sqrt(fan_in).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def average_pool(x: jax.Array, size: int) -> jax.Array:
  """Mean of non-overlapping squares of `size` x `size`.

  Args:
    x: [N, height, width, channels].
    size: side of the squares. Rows and columns at the end that do not fill a
      square are dropped, as PyTorch's avg_pool2d drops them.

  Returns:
    [N, height // size, width // size, channels].
  """
  return x if size == 1 else mean_of_squares(x, size)


def resize_columns(positions: jax.Array, rows: int, columns: int) -> jax.Array:
  """Fits positional embeddings to a feature map of another number of columns.

  The grid of positions is interpolated linearly along time, as vision
  transformers do for images of another size (Dosovitskiy et al., "An Image is
  Worth 16x16 Words", 2021, section 3.2). Both grids span the same time, and a
  position stands at the middle of its share of it; before the first and after
  the last, the nearest one's value holds. The mean token's embedding stays.

  Args:
    positions: [1 + rows * old columns, channels], the grid row by row.
    rows: of the feature map, the old and the new.
    columns: of the new one.

  Returns:
    [1 + rows * columns, channels].
  """
  channels = positions.shape[1]
  grid = jax.image.resize(
    positions[1:].reshape(rows, -1, channels),
    (rows, columns, channels),
    "linear",
    antialias=False,
  )
  return jnp.concatenate([positions[:1], grid.reshape(-1, channels)])


def feature_map_size(size: int, stages: int = 4) -> int:
  """Positions left of `size` bands or frames at the end of the backbone.

  Args:
    size: number of bands, or of frames.
    stages: number of stages of residual blocks (`len(depths)`).

  Returns:
    The number of rows, or columns, of the feature map: the stem halves twice
    (the convolution rounds up, the pooling down), each stage but the first
    once (rounding down). 4 for 128 bands, 3 for 126 frames, 2 for 63.
  """
  return -(-size // 2) // 2**stages


def smallest_input(stages: int = 4) -> int:
  """Fewest bands or frames that leave one position, see `feature_map_size`."""
  return 2 ** (stages + 1) - 1


class Stem(nn.Module):
  """Three 3x3 convolutions, the first of stride 2, and a 2x2 average pool.

  Attributes:
    width: output channels; the two inner convolutions have half as many.
    dtype: type of the computation.
    param_dtype: type of parameters and running statistics.
    axis_name: mapped axis for synchronised batch normalisation, or None.
  """

  width: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [N, mel, frame, 1] to [N, ~mel / 4, ~frame / 4, width]."""
    types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    half = self.width // 2
    layers = ((half, 2), (half, 1), (self.width, 1))
    for i, (channels, stride) in enumerate(layers, start=1):
      x = nn.Conv(
        channels,
        (3, 3),
        strides=stride,
        padding=1,
        use_bias=False,
        kernel_init=torch_uniform,
        name=f"conv{i}",
        **types,
      )(x)
      x = BatchNorm(axis_name=self.axis_name, name=f"bn{i}", **types)(
        x, train=train
      )
      x = nn.relu(x)
    return average_pool(x, 2)


class Bottleneck(nn.Module):
  """Residual block: 1x1, 3x3, average pool for a stride, 1x1.

  The shortcut is the identity where the shape stays, else an average pool, a
  1x1 convolution and batch normalisation (`downsample_conv`, `downsample_bn`).

  Attributes:
    planes: channels of the inner convolutions; 4 times as many come out.
    stride: side of the average pool.
    dtype: type of the computation.
    param_dtype: type of parameters and running statistics.
    axis_name: mapped axis for synchronised batch normalisation, or None.
  """

  planes: int
  stride: int = 1
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [N, h, w, c] to [N, h // stride, w // stride, 4 * planes]."""
    types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    weights = {"use_bias": False, "kernel_init": torch_uniform, **types}
    pointwise = {"dot_general": dot_general, **weights}

    def norm(x: jax.Array, name: str) -> jax.Array:
      layer = BatchNorm(axis_name=self.axis_name, name=name, **types)
      return layer(x, train=train)

    channels = EXPANSION * self.planes
    shortcut = x
    if self.stride > 1 or x.shape[-1] != channels:
      shortcut = average_pool(x, self.stride)
      shortcut = nn.Dense(channels, name="downsample_conv", **pointwise)(
        shortcut
      )
      shortcut = norm(shortcut, "downsample_bn")
    x = nn.relu(
      norm(nn.Dense(self.planes, name="conv1", **pointwise)(x), "bn1")
    )
    x = nn.Conv(self.planes, (3, 3), padding=1, name="conv2", **weights)(x)
    x = average_pool(nn.relu(norm(x, "bn2")), self.stride)
    x = norm(nn.Dense(channels, name="conv3", **pointwise)(x), "bn3")
    return nn.relu(x + shortcut)


class AttentionPool(nn.Module):
  """Pools a feature map by attention from its mean (CLIP's AttentionPool2d).

  The tokens are the mean of all positions and the positions, row by row, each
  with a learned embedding added. Only the mean's answer is used, so only its
  query is computed. The softmax is taken in float32 at least.

  Attributes:
    output: size of the answer.
    heads: number of attention heads; it must divide the number of channels.
    dtype: type of the computation.
    param_dtype: type of the parameters.
    resize_positions: whether a feature map of another number of columns than
      the parameters were made for gets its positions from theirs, by
      `resize_columns`. The parameters hold a number of positions, no shape:
      the number of rows must be that which they were made for.
  """

  output: int
  heads: int = 8
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  resize_positions: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [N, h, w, channels] to [N, output].

    Raises:
      ValueError: if the parameters were made for another number of positions
        (with `resize_positions`, one that does not fill h rows), or `heads`
        does not divide the number of channels.
    """
    n, height, width, channels = x.shape
    if channels % self.heads:
      raise ValueError(f"{self.heads} heads do not divide {channels} channels")
    # From the feature map, not from bands // 32 * (frames // 32) as published:
    # for 63 frames, for instance, the map has two columns.
    shape = (height * width + 1, channels)
    name = "positional_embedding"
    made_for = shape
    if self.has_variable("params", name):
      made_for = self.get_variable("params", name).shape
    positions_fit = made_for == shape or (
      self.resize_positions
      and made_for[0] > 1
      and (made_for[0] - 1) % height == 0
      and made_for[1] == channels
    )
    if not positions_fit:
      raise ValueError(
        f"the input leaves a feature map of {height} x {width}, whose "
        f"positional embedding has shape {shape}, but the weights have "
        f"{made_for}: they were made for another number of bands or frames"
      )
    positions = self.param(
      name,
      nn.initializers.normal(channels**-0.5),
      made_for,
      self.param_dtype,
    )
    if made_for != shape:
      positions = resize_columns(positions, height, width)
    x = x.reshape(n, height * width, channels)
    tokens = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
    tokens = (tokens + positions).astype(self.dtype)

    def project(x: jax.Array, features: int, name: str) -> jax.Array:
      limit = x.shape[-1] ** -0.5
      return nn.Dense(
        features,
        kernel_init=torch_uniform,
        bias_init=functools.partial(_uniform_within, limit=limit),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=name,
      )(x)

    split = (self.heads, channels // self.heads)
    query = project(tokens[:, 0], channels, "q_proj").reshape(n, *split)
    key = project(tokens, channels, "k_proj").reshape(n, -1, *split)
    value = project(tokens, channels, "v_proj").reshape(n, -1, *split)
    query = query * split[1] ** -0.5
    scores = jnp.einsum("nhd,nthd->nht", query, key)
    scores = scores.astype(jnp.promote_types(self.dtype, jnp.float32))
    weights = nn.softmax(scores).astype(self.dtype)
    answer = jnp.einsum("nht,nthd->nhd", weights, value)
    return project(answer.reshape(n, channels), self.output, "c_proj")


def _uniform_within(
  key: jax.Array, shape: tuple[int, ...], dtype: Any, *, limit: float
) -> jax.Array:
  """Initialiser: uniform from -limit to limit, PyTorch's for biases."""
  return jax.random.uniform(key, shape, dtype, -limit, limit)


class ResNet(nn.Module):
  """The backbone: a log-mel spectrogram in decibels becomes an embedding.

  The defaults are the published network: 2,800,392 parameters for 128 bands
  and 126 frames. The spectrogram is not scaled before the first convolution.

  Parameters, running statistics and the attention's softmax stay float32
  whatever `dtype` is; for float64 throughout (with `jax.enable_x64`), set both
  `dtype` and `param_dtype`.

  Variables: `stem`, `layer{stage}_{block}` (stages from 1, blocks from 0) and
  `attnpool` in "params"; all but `attnpool` in "batch_stats".

  Attributes:
    width: channels of the stem, even; stage i has width * 4 * 2^i of them.
    depths: number of residual blocks in each stage.
    heads: attention heads of the pooling.
    output: size of the embedding.
    dtype: type of the computation, e.g. float32 or bfloat16.
    param_dtype: type of parameters and running statistics.
    axis_name: mapped axis for synchronised batch normalisation, or None.
    resize_positions: whether weights made for another number of frames (of as
      many bands) are used, with the positional embedding interpolated along
      time, see `AttentionPool`.
  """

  width: int = 16
  depths: tuple[int, ...] = (3, 4, 6, 3)
  heads: int = 8
  output: int = 1024
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  axis_name: str | None = None
  resize_positions: bool = False

  @nn.compact
  def __call__(self, spectrogram: jax.Array, *, train: bool) -> jax.Array:
    """Embeds a batch of spectrograms.

    Args:
      spectrogram: [N, mel, frame], decibels, floating.
      train: whether batch normalisation uses, and updates, the statistics of
        the batch ("batch_stats" must then be mutable).

    Returns:
      [N, output], float32 (float64 if `dtype` is).

    Raises:
      ValueError: if the spectrogram is not of three axes or leaves an empty
        feature map, if the weights were made for another size of it, if
        `width` is odd, or `heads` does not divide the channels.
    """
    if spectrogram.ndim != 3:
      raise ValueError(
        f"expected a spectrogram [N, mel, frame], got {spectrogram.shape}"
      )
    if self.width % 2:
      raise ValueError(f"the width must be even, got {self.width}")
    smallest = smallest_input(len(self.depths))
    if min(spectrogram.shape[1:]) < smallest:
      raise ValueError(
        f"the backbone needs at least {smallest} bands and {smallest} frames, "
        f"got {spectrogram.shape[1]} bands and {spectrogram.shape[2]} frames"
      )
    types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = spectrogram[..., None].astype(self.dtype)
    x = Stem(self.width, axis_name=self.axis_name, name="stem", **types)(
      x, train=train
    )
    for stage, depth in enumerate(self.depths):
      for block in range(depth):
        x = Bottleneck(
          planes=self.width * 2**stage,
          stride=2 if stage > 0 and block == 0 else 1,
          axis_name=self.axis_name,
          name=f"layer{stage + 1}_{block}",
          **types,
        )(x, train=train)
    x = AttentionPool(
      self.output,
      self.heads,
      resize_positions=self.resize_positions,
      name="attnpool",
      **types,
    )(x)
    return x.astype(jnp.promote_types(self.dtype, jnp.float32))
