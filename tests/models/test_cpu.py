"""What has a form for CPUs: both forms against NumPy."""

import functools

import golden
import jax
import numpy as np
import pytest

from ssl_music.models import cpu, frontend


@pytest.fixture(params=["cpu", "default"], autouse=True)
def form(request, monkeypatch):
  """Computes here what a CPU, and what an accelerator, gets."""
  choose = lambda *operands, **forms: forms[request.param](*operands)
  monkeypatch.setattr(jax.lax, "platform_dependent", choose)


@pytest.mark.parametrize(
  "shape", [(1, 3), (37, 3), (64, 3), (5, 7, 9, 2), (64, 32, 31, 4)]
)
def test_channel_sum(shape):
  rng = np.random.default_rng(0)
  x = 50 + rng.standard_normal(shape).astype(np.float32)
  expected = x.astype(np.float64).reshape(-1, shape[-1]).sum(0)
  summed = jax.jit(lambda x: cpu.channel_sum(x))(x)
  np.testing.assert_allclose(summed, expected, rtol=1e-5)


@pytest.mark.parametrize("outputs", [2, 8])
def test_product_has_the_derivative_of_a_product(outputs):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 5, 4)).astype(np.float32)
  kernel = rng.standard_normal((4, outputs)).astype(np.float32)
  back = rng.standard_normal((3, 5, outputs)).astype(np.float32)
  y, pull = jax.vjp(cpu.product, x, kernel)
  to_x, to_kernel = pull(back)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(y, x @ kernel)
  close(to_x, back @ kernel.T)
  close(to_kernel, np.einsum("abi,abo->io", x, back))


def test_mean_of_squares():
  x = np.random.default_rng(0).standard_normal((2, 5, 7, 3)).astype(np.float32)
  y, pull = jax.vjp(lambda x: cpu.mean_of_squares(x, 2), x)
  expected = x[:, :4, :6].reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
  (back,) = pull(y)
  share = np.repeat(np.repeat(expected / 4, 2, 1), 2, 2)
  padded = np.pad(share, ((0, 0), (0, 1), (0, 1), (0, 0)))
  np.testing.assert_allclose(back, padded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("size", "hop", "bins"),
  [(8, 4, slice(1, 4)), (64, 16, slice(33)), (16, 16, slice(9))],
)
def test_power_spectrum(size, hop, bins):
  samples = np.random.default_rng(0).standard_normal((2, 3, 200))
  window = frontend.hann_window(size)
  frames = np.lib.stride_tricks.sliding_window_view(samples, size, axis=-1)
  spectrum = np.fft.rfft(frames[..., ::hop, :] * window)
  power = cpu.power_spectrum(samples.astype(np.float32), window, hop, bins)
  expected = np.abs(spectrum[..., bins]) ** 2
  np.testing.assert_allclose(power, expected, rtol=1e-4, atol=1e-5)


def test_log_mel_agrees_with_the_published_front_end():
  spectrogram = frontend.log_mel(golden.wave())
  expected = golden.models()["logmel"]
  assert golden.relative_error(spectrogram, expected) < 1e-5
