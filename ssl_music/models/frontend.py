"""The published front end: a waveform becomes a log-mel spectrogram in dB.

Everything here is a pure function, safe under `jax.jit` and `jax.vmap`, so
that the spectrogram is computed on the device as part of a train step.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssl_music.models.cpu import power_spectrum

# Full scale of int16 audio. Not 32768: a track stored with its peak at 32767
# comes back with a peak of exactly 1, as the published loader normalises it.
INT16_PEAK = 32767

# The Slaney mel scale: linear up to 1 kHz (15 mel), then logarithmic with 27
# mel for a factor of 6.4.
_HERTZ_PER_MEL = 200 / 3
_LOG_START_HERTZ = 1000.0
_LOG_START_MEL = _LOG_START_HERTZ / _HERTZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27

# Power below which the logarithm is cut off: -100 dB.
_SMALLEST_POWER = 1e-10


def frames(samples: int, hop: int = 512) -> int:
  """Number of frames of the centred spectrogram of a waveform.

  Args:
    samples: length of the waveform in samples.
    hop: distance between two frames in samples.

  Returns:
    1 + samples // hop: 126 for 4 s at 16 kHz.
  """
  return 1 + samples // hop


def hertz_to_mel(hertz: np.ndarray | float) -> np.ndarray:
  """Slaney's mel scale (Auditory Toolbox, 1998) of frequencies in hertz."""
  hertz = np.asarray(hertz, np.float64)
  octaves = np.log(np.maximum(hertz, _LOG_START_HERTZ) / _LOG_START_HERTZ)
  return np.where(
    hertz < _LOG_START_HERTZ,
    hertz / _HERTZ_PER_MEL,
    _LOG_START_MEL + octaves / _LOG_STEP,
  )


def mel_to_hertz(mel: np.ndarray | float) -> np.ndarray:
  """Inverse of `hertz_to_mel`."""
  mel = np.asarray(mel, np.float64)
  steps = np.maximum(mel, _LOG_START_MEL) - _LOG_START_MEL
  return np.where(
    mel < _LOG_START_MEL,
    mel * _HERTZ_PER_MEL,
    _LOG_START_HERTZ * np.exp(_LOG_STEP * steps),
  )


@functools.lru_cache(maxsize=16)
def mel_filterbank(
  *,
  sample_rate: int = 16000,
  n_fft: int = 1024,
  n_mels: int = 128,
  f_min: float = 0.0,
  f_max: float = 11025.0,
) -> np.ndarray:
  """Triangular mel filters with a peak of one, evenly spaced in mel.

  As published, `f_max` may lie above half the sample rate: with the defaults
  the 11 highest bands hold no frequency and stay zero. They are kept because
  the published weights expect 128 bands.

  Args:
    sample_rate: in hertz.
    n_fft: length of the Fourier transform in samples.
    n_mels: number of bands.
    f_min: lower edge of the lowest band in hertz, at least 0.
    f_max: upper edge of the highest band in hertz, above `f_min`.

  Returns:
    Weights of the power spectrum, [n_fft // 2 + 1, n_mels], float64, from 0 to
    1. The array is cached and read-only.

  Raises:
    ValueError: if `n_mels` is not positive or 0 <= f_min < f_max does not hold.
  """
  if n_mels < 1:
    raise ValueError(f"n_mels must be at least 1, got {n_mels}")
  if not 0 <= f_min < f_max:
    raise ValueError(
      f"need 0 <= f_min < f_max, got f_min={f_min} and f_max={f_max}"
    )
  bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
  edges = mel_to_hertz(
    np.linspace(hertz_to_mel(f_min), hertz_to_mel(f_max), n_mels + 2)
  )
  lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
  rising = (bins - lower) / (centre - lower)
  falling = (upper - bins) / (upper - centre)
  bank = np.maximum(0.0, np.minimum(rising, falling))
  bank.setflags(write=False)  # every caller shares the cached array
  return bank


@functools.lru_cache(maxsize=16)
def hann_window(n_fft: int = 1024) -> np.ndarray:
  """Periodic Hann window, [n_fft], float64, cached and read-only."""
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
  window.setflags(write=False)
  return window


def _check(waveform: jax.Array, n_fft: int, hop: int, top_db: float) -> None:
  """Raises a ValueError as `log_mel` says."""
  if hop < 1 or n_fft % hop or n_fft % 2:
    raise ValueError(
      f"n_fft must be even and a multiple of hop, got n_fft={n_fft} and "
      f"hop={hop}"
    )
  if top_db < 0:
    raise ValueError(f"top_db must not be negative, got {top_db}")
  floating = jnp.issubdtype(waveform.dtype, jnp.floating)
  if waveform.dtype != jnp.int16 and not floating:
    raise ValueError(
      f"the waveform must be int16 or floating, got {waveform.dtype}"
    )
  if waveform.ndim < 1 or waveform.shape[-1] <= n_fft // 2:
    raise ValueError(
      f"the waveform must have more than n_fft / 2 = {n_fft // 2} samples, got "
      f"shape {waveform.shape}"
    )


def log_mel(
  waveform: jax.Array,
  *,
  sample_rate: int = 16000,
  n_fft: int = 1024,
  hop: int = 512,
  n_mels: int = 128,
  f_min: float = 0.0,
  f_max: float = 11025.0,
  top_db: float = 100.0,
) -> jax.Array:
  """Log-mel spectrogram, as published with the paper (arXiv:2404.09177).

  Power spectrum of frames centred on multiples of `hop` (the ends reflected),
  weighted by a periodic Hann window of unit L2 norm, summed in mel bands, in
  decibels: 10 log10(max(power, 1e-10)), and never more than `top_db` below the
  segment's own maximum.

  Args:
    waveform: [..., samples], int16 (divided by 32767) or floating, nominally
      from -1 to 1. float64 is computed in float64, all else in float32.
    sample_rate: in hertz.
    n_fft: length of a frame in samples, even, a multiple of `hop`.
    hop: distance between two frames in samples.
    n_mels: number of mel bands.
    f_min: lower edge of the lowest band in hertz.
    f_max: upper edge of the highest band in hertz; may exceed half the sample
      rate, see `mel_filterbank`.
    top_db: range kept below the maximum of each segment, in decibels, >= 0.

  Returns:
    [..., n_mels, frames] in decibels, at least -100, with
    frames = 1 + samples // hop.

  Raises:
    ValueError: if `n_fft` is odd or no multiple of `hop`, if `top_db` is
      negative, if the waveform is neither int16 nor floating or is too short
      to be reflected (it needs more than n_fft / 2 samples), or if the mel
      bands make no sense.
  """
  waveform = jnp.asarray(waveform)
  _check(waveform, n_fft, hop, top_db)
  pad = [(0, 0)] * (waveform.ndim - 1) + [(n_fft // 2, n_fft // 2)]
  samples = jnp.pad(waveform, pad, mode="reflect")
  window = hann_window(n_fft)
  # Dividing the window divides the spectrum: by the window's norm, as
  # published, and by the peak of int16, so that samples stay int16, half as
  # many bytes, until they are framed.
  window = window / np.linalg.norm(window)
  if waveform.dtype == jnp.int16:
    window = window / INT16_PEAK
  bank = mel_filterbank(
    sample_rate=sample_rate,
    n_fft=n_fft,
    n_mels=n_mels,
    f_min=f_min,
    f_max=f_max,
  )
  used = np.flatnonzero(bank.any(axis=1))  # the others' power is not needed
  bins = slice(used[0], used[-1] + 1) if len(used) else slice(0, 1)
  power = power_spectrum(samples, window, hop, bins)
  # The default precision would round to bfloat16 on a TPU: 40 dB of range.
  mel = jnp.matmul(
    power,
    jnp.asarray(bank[bins], power.dtype),
    precision=jax.lax.Precision.HIGHEST,
  )
  decibels = 10 * jnp.log10(jnp.maximum(mel, _SMALLEST_POWER))
  floor = jnp.max(decibels, axis=(-2, -1), keepdims=True) - top_db
  return jnp.swapaxes(jnp.maximum(decibels, floor), -2, -1)
