"""The log-mel front end against golden vectors and its definition."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_music.models import frontend

log_mel = jax.jit(frontend.log_mel, static_argnames="top_db")


def noise(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, shape)


def slow_log_mel(
  wave, *, sample_rate, n_fft, hop, n_mels, f_min, f_max, top_db
):
  """One waveform, float64, frame by frame and band by band."""

  def to_mel(f):
    return 3 * f / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)

  def to_hertz(m):
    return 200 * m / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27)

  turns = np.arange(n_fft) / n_fft
  window = np.sin(np.pi * turns) ** 2
  half = n_fft // 2
  bins = np.arange(half + 1)
  transform = np.exp(-2j * np.pi * np.outer(bins, turns))
  mirrored = np.concatenate([wave[half:0:-1], wave, wave[-2 : -half - 2 : -1]])
  low, high = to_mel(f_min), to_mel(f_max)
  edges = [
    to_hertz(low + (high - low) * i / (n_mels + 1)) for i in range(n_mels + 2)
  ]
  bands = np.zeros((n_mels, half + 1))
  for band in range(n_mels):
    peak = [0.0, 1.0, 0.0]
    hertz = bins * sample_rate / n_fft
    bands[band] = np.interp(hertz, edges[band : band + 3], peak)
  columns = []
  for start in range(0, len(mirrored) - n_fft + 1, hop):
    spectrum = transform @ (mirrored[start : start + n_fft] * window)
    spectrum /= np.sqrt(np.sum(window**2))
    power = bands @ np.abs(spectrum) ** 2
    columns.append(10 * np.log10(np.maximum(power, 1e-10)))
  spectrogram = np.stack(columns, axis=1)
  return np.maximum(spectrogram, spectrogram.max() - top_db)


PUBLISHED = {
  "sample_rate": 16000,
  "n_fft": 1024,
  "hop": 512,
  "n_mels": 128,
  "f_min": 0.0,
  "f_max": 11025.0,
  "top_db": 100.0,
}


def test_log_mel_agrees_with_the_published_front_end():
  spectrogram = log_mel(golden.wave())
  assert spectrogram.shape == (4, 128, 126)
  assert spectrogram.dtype == jnp.float32
  assert golden.relative_error(spectrogram, golden.models()["logmel"]) < 1e-5


@pytest.mark.parametrize(
  ("changes", "samples"),
  [
    ({}, 3000),
    ({"hop": 256}, 2048),
    ({"hop": 1024, "n_mels": 40}, 2500),
    ({"n_fft": 256, "hop": 64, "n_mels": 20, "sample_rate": 8000}, 1000),
    ({"f_min": 300.0, "f_max": 5000.0, "n_mels": 32, "top_db": 20.0}, 2000),
  ],
)
def test_log_mel_agrees_with_its_definition(changes, samples):
  settings = PUBLISHED | changes
  envelope = np.geomspace(1, 1e-4, samples)
  wave = noise(samples) * envelope
  expected = slow_log_mel(wave, **settings)
  assert expected.shape[1] == frontend.frames(samples, settings["hop"])
  compiled = jax.jit(functools.partial(frontend.log_mel, **settings))
  measured = compiled(wave.astype(np.float32))
  np.testing.assert_allclose(measured, expected, atol=1e-2)
  with jax.enable_x64():
    measured = compiled(wave)
    assert measured.dtype == jnp.float64
  np.testing.assert_allclose(measured, expected, atol=1e-9)


def test_filter_bank_has_unit_peaks_and_empty_bands_above_nyquist():
  bank = frontend.mel_filterbank()
  assert bank.shape == (513, 128)
  assert bank.dtype == np.float64
  assert 0.9 < bank.max() <= 1
  assert np.sum(bank.sum(0) == 0) == 11
  assert np.all(bank.sum(0)[:117] > 0)
  assert frontend.mel_filterbank() is bank
  with pytest.raises(ValueError, match="read-only"):
    bank[0] = 1


def test_mel_scale_and_its_inverse():
  hertz = np.array([0.0, 500.0, 1000.0, 6400.0, 11025.0])
  mel = frontend.hertz_to_mel(hertz)
  np.testing.assert_allclose(mel[:4], [0, 7.5, 15, 42])
  np.testing.assert_allclose(frontend.mel_to_hertz(mel), hertz)


def test_int16_is_divided_by_its_peak():
  pcm = (noise(2, 4096) * 32767).astype(np.int16)
  expected = log_mel(pcm.astype(np.float32) / np.float32(32767))
  np.testing.assert_allclose(log_mel(pcm), expected, atol=1e-3)


def test_leading_axes_and_vmap():
  wave = noise(2, 3, 2048).astype(np.float32)
  expected = np.stack([[log_mel(segment) for segment in view] for view in wave])
  assert expected.shape == (2, 3, 128, 5)
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-3)
  close(log_mel(wave), expected)
  close(jax.jit(jax.vmap(jax.vmap(frontend.log_mel)))(wave), expected)


def test_the_floor_is_each_segments_own():
  quiet = 1e-2 * noise(4096)
  loud = noise(4096) * (np.arange(4096) < 1000)
  both = np.stack([quiet, loud]).astype(np.float32)
  spectrograms = log_mel(both, top_db=30.0)
  for spectrogram, segment in zip(spectrograms, both, strict=True):
    alone = log_mel(segment, top_db=30.0)
    np.testing.assert_allclose(spectrogram, alone, atol=1e-3)
    np.testing.assert_allclose(np.ptp(spectrogram), 30, atol=1e-3)


def test_silence_is_minus_100_db():
  silence = np.zeros((2, 4096), np.int16)
  np.testing.assert_array_equal(log_mel(silence), -100)


def test_frames_are_cut_without_a_gather():
  jaxpr = jax.make_jaxpr(frontend.log_mel)(np.zeros((2, 4096), np.int16))
  assert "concatenate" in str(jaxpr)
  assert "gather" not in str(jaxpr)


@pytest.mark.parametrize(
  ("wave", "settings", "message"),
  [
    (np.zeros(4096), {"hop": 500}, "multiple of hop"),
    (np.zeros(4096), {"n_fft": 513, "hop": 513}, "must be even"),
    (np.zeros(4096), {"top_db": -1.0}, "top_db"),
    (np.zeros(4096), {"n_mels": 0}, "n_mels"),
    (np.zeros(4096), {"f_min": 9000.0, "f_max": 8000.0}, "f_min"),
    (np.zeros(512), {}, "more than n_fft / 2 = 512"),
    (np.zeros(4096, np.int32), {}, "int16 or floating, got int32"),
  ],
)
def test_bad_input_is_refused(wave, settings, message):
  with pytest.raises(ValueError, match=message):
    frontend.log_mel(wave, **settings)
