"""What is computed in other ways on a CPU than on an accelerator.

Each function has a plain form, from which the compilers for TPUs and GPUs make
the fastest code, and one for XLA's CPU compiler. The platform that a program is
compiled for decides which of them it gets; both give the same numbers up to
rounding.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Most terms that XLA sums at once on a CPU. A longer sum becomes a tree of
# windows, whose inner loop is not vectorised: 20 times slower, and less exact.
_SUMMED_AT_ONCE = 32


def channel_sum(x: jax.Array) -> jax.Array:
  """Sums [..., channels] over all axes but the last."""
  plain = lambda x: x.sum(range(x.ndim - 1))
  return jax.lax.platform_dependent(x, cpu=_in_two_rounds, default=plain)


def _in_two_rounds(x: jax.Array) -> jax.Array:
  rows = x.reshape(-1, x.shape[-1])
  terms = min(_SUMMED_AT_ONCE, len(rows))
  while len(rows) % terms:
    terms -= 1
  partial = rows.reshape(terms, -1, x.shape[-1]).sum(0)
  # Without the barrier the compiler makes one sum of the two.
  return jax.lax.optimization_barrier(partial).sum(0)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies [..., inputs] by [inputs, outputs]."""
  return x @ kernel


def _product_backward(kept, back):
  x, kernel = kept
  to_kernel = jax.lax.platform_dependent(
    x, back, cpu=_narrower_transposed, default=_rows_product
  )
  return back @ kernel.T, to_kernel


product.defvjp(
  lambda x, kernel: (product(x, kernel), (x, kernel)), _product_backward
)


def _rows_product(x: jax.Array, back: jax.Array) -> jax.Array:
  rows = tuple(range(x.ndim - 1))
  return jnp.tensordot(x, back, (rows, rows))


def _narrower_transposed(x: jax.Array, back: jax.Array) -> jax.Array:
  """Returns the product over rows, with the narrower operand first.

  A CPU transposes the first operand of this product. JAX would make that the
  gradient of the output, which after a block's last convolution has four times
  as many channels as the input.
  """
  if x.shape[-1] <= back.shape[-1]:
    return _rows_product(x, back)
  return _rows_product(back, x).T


def dot_general(x, kernel, dimension_numbers, precision=None):
  """`product` as `nn.Dense` calls it."""
  del dimension_numbers, precision  # the last axis of x, the first of kernel
  return product(x, kernel)


def mean_of_squares(x: jax.Array, size: int) -> jax.Array:
  """Averages [N, height, width, channels] over squares that do not overlap."""
  plain = lambda x: nn.avg_pool(x, (size, size), (size, size))
  own = functools.partial(_by_reshape, size=size)
  return jax.lax.platform_dependent(x, cpu=own, default=plain)


def _by_reshape(x: jax.Array, *, size: int) -> jax.Array:
  n, height, width, channels = x.shape
  rows, columns = height // size, width // size
  x = x[:, : rows * size, : columns * size]
  return x.reshape(n, rows, size, columns, size, channels).mean((2, 4))


def power_spectrum(
  samples: jax.Array, window: np.ndarray, hop: int, bins: slice
) -> jax.Array:
  """Squares the magnitudes of the short-time Fourier transform.

  Args:
    samples: [..., samples], as many as the window or more; float64 is computed
      in float64, all else in float32.
    window: [n_fft], even about its middle, and 0 at its beginning.
    hop: distance between two frames in samples.
    bins: of the frequencies from 0 to n_fft // 2, those wanted.

  Returns:
    [..., frames, bins], of all frames that lie within the samples.
  """
  given = {"window": window, "hop": hop, "bins": bins}
  return jax.lax.platform_dependent(
    samples,
    cpu=functools.partial(_by_fft, **given),
    default=functools.partial(_by_product, **given),
  )


def _by_fft(samples, *, window, hop, bins):
  # 64 segments of 4 s take 64 ms on two cores, mel and logarithm included, and
  # 165 ms by a product, 111 ms by the two below.
  frames = _frames(samples, len(window), hop, len(window))
  spectrum = jnp.fft.rfft(frames * jnp.asarray(window, frames.dtype))
  spectrum = spectrum[..., bins]
  return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def _by_product(samples, *, window, hop, bins):
  """Multiplies the frames' even and odd halves by cosines and by sines.

  Half the operations of one product with both. At the highest precision: with
  three passes of bfloat16 (`HIGH`), bands between two pure tones are off by up
  to 0.2 dB, with one by 37 dB.
  """
  half = len(window) // 2
  # x[n] and x[-n] share a weight, for n from 1 to the middle, its own partner.
  ahead = _frames(samples[..., 1:], len(window) - 1, hop, half)
  behind = _frames(samples[..., half:], half, hop, half)[..., ::-1]
  turns = np.outer(np.arange(1, half + 1), np.arange(half + 1)[bins]) / half
  weights = window[1 : half + 1, None] * np.exp(1j * np.pi * turns)
  weights[-1] /= 2
  parts = ((ahead + behind, weights.real), (ahead - behind, weights.imag))
  real, imaginary = (
    jnp.matmul(
      part,
      jnp.asarray(weight, part.dtype),
      precision=jax.lax.Precision.HIGHEST,
    )
    for part, weight in parts
  )
  return jnp.square(real) + jnp.square(imaginary)


def _frames(x: jax.Array, room: int, hop: int, length: int) -> jax.Array:
  """Cuts frames, [..., frames, length], of which each has `room` samples.

  The samples are cut into pieces of one hop, and a frame is a row of
  neighbouring pieces. That takes slices and at most one concatenation, where
  indexing would take a gather (slow, and its gradient a scatter).
  """
  count = 1 + (x.shape[-1] - room) // hop
  pieces = -(-length // hop)
  size = (count + pieces - 1) * hop
  missing = max(0, size - x.shape[-1])
  x = jnp.pad(x[..., :size], [(0, 0)] * (x.ndim - 1) + [(0, missing)])
  x = x.reshape(*x.shape[:-1], -1, hop)
  rows = [x[..., first : first + count, :] for first in range(pieces)]
  frames = jnp.concatenate(rows, axis=-1)[..., :length]
  return frames.astype(jnp.promote_types(x.dtype, jnp.float32))
