"""What is computed in other ways on a CPU than on an accelerator.

Each function has a plain form, which the compilers for TPUs and GPUs make the
best of, and one for XLA's CPU compiler. Which of them a program gets is decided
when it is compiled, by what it is compiled for; both give the same numbers up
to rounding.
"""

import jax
import jax.numpy as jnp

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
