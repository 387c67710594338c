"""The product against NumPy."""

import functools

import jax
import numpy as np
import pytest

from ssl_music.models.product import product


@pytest.mark.parametrize("outputs", [2, 8])
def test_product_has_the_derivative_of_a_product(outputs):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 5, 4)).astype(np.float32)
  kernel = rng.standard_normal((4, outputs)).astype(np.float32)
  back = rng.standard_normal((3, 5, outputs)).astype(np.float32)
  y, pull = jax.vjp(product, x, kernel)
  to_x, to_kernel = pull(back)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(y, x @ kernel)
  close(to_x, back @ kernel.T)
  close(to_kernel, np.einsum("abi,abo->io", x, back))
