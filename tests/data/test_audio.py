import errno
import io
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from ssl_music.data import audio

RATE = 16_000
FORMATS = {
  "wav": {},
  "flac": {},
  "ogg": {},
  "opus": {"format": "OGG", "subtype": "OPUS"},
  "mp3": {},
  "aiff": {},
}


def tone(seconds=3.0, rate=RATE, pitch=440.0):
  time = np.arange(int(seconds * rate)) / rate
  return (0.5 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


def pitch_of(waveform):
  spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
  return spectrum.argmax() * RATE / len(waveform)


@pytest.mark.parametrize("kind", FORMATS)
def test_decodes_every_format(tmp_path, kind):
  path = tmp_path / f"Tön with space.{kind.upper()}"
  soundfile.write(path, tone(), RATE, **{"format": kind} | FORMATS[kind])
  decoded = audio.decode(path)
  assert decoded.dtype == np.float32
  assert abs(len(decoded) - 3 * RATE) <= 0.1 * RATE
  assert pitch_of(decoded) == pytest.approx(440, abs=1)
  level = np.sqrt(np.square(decoded[RATE : 2 * RATE]).mean())
  assert level == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resamples_to_16_khz(tmp_path, rate):
  soundfile.write(tmp_path / "a.wav", tone(rate=rate), rate)
  decoded = audio.decode(tmp_path / "a.wav")
  assert abs(len(decoded) - 3 * RATE) <= 1
  inner = slice(1000, -1000)
  error = decoded[inner] - tone()[: len(decoded)][inner]
  assert np.abs(error).max() < 1e-3


def test_averages_channels(tmp_path):
  stereo = np.stack([tone(), np.zeros_like(tone())], axis=1)
  soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
  np.testing.assert_allclose(audio.decode(tmp_path / "a.wav"), tone() / 2)


def test_blocks_leave_no_seam(tmp_path):
  long = tone(seconds=65, rate=8_000)
  soundfile.write(tmp_path / "a.wav", long, 8_000, subtype="FLOAT")
  decoded = audio.decode(tmp_path / "a.wav")
  expected = tone(seconds=65)
  assert len(decoded) == len(expected)
  assert np.abs(decoded - expected)[1000:-1000].max() < 1e-3


def test_reads_no_more_than_asked(tmp_path):
  soundfile.write(tmp_path / "a.flac", tone(5), RATE)
  decoded = audio.decode(tmp_path / "a.flac", max_seconds=2)
  assert len(decoded) == 2 * RATE


def names(folder):
  return [path.name for path in folder.iterdir()]


def cut(path, share=0.5):
  whole = path.read_bytes()
  path.write_bytes(whole[: int(len(whole) * share)])


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "aiff"])
def test_truncated_files_are_told(tmp_path, kind):
  path = tmp_path / f"a.{kind}"
  soundfile.write(path, tone(20), RATE)
  cut(path)
  with pytest.raises(audio.AudioError, match="truncated"):
    audio.decode(path)


def test_a_cut_behind_what_is_read_does_not_matter(tmp_path):
  soundfile.write(tmp_path / "a.wav", tone(20), RATE)
  cut(tmp_path / "a.wav")
  assert len(audio.decode(tmp_path / "a.wav", max_seconds=5)) == 5 * RATE


def test_wav_of_unknown_length_is_whole(tmp_path):
  path = tmp_path / "a.wav"  # as written by a program that cannot seek
  soundfile.write(path, tone(), RATE)
  data = bytearray(path.read_bytes())
  at = data.index(b"data") + 4
  data[at : at + 4] = b"\xff\xff\xff\xff"
  path.write_bytes(data)
  assert len(audio.decode(path)) == 3 * RATE


def test_odd_sample_rates_are_told(tmp_path):
  soundfile.write(tmp_path / "a.wav", tone(), 100)
  with pytest.raises(audio.AudioError, match="odd sample rate"):
    audio.decode(tmp_path / "a.wav")


def test_mp3_without_a_length_is_whole(tmp_path):
  # Of variable bit rate and without its first frame, the one with the length:
  # libsndfile then guesses 40 % too many samples.
  path = tmp_path / "a.mp3"
  quiet = np.zeros(RATE * 30)
  noise = np.random.default_rng(0).standard_normal(RATE * 20) * 0.1
  soundfile.write(
    path,
    np.concatenate([quiet, noise, quiet, quiet]),
    RATE,
    bitrate_mode="VARIABLE",
    compression_level=0.5,
  )
  data = path.read_bytes()
  second = data.index(data[:2], data.index(b"Xing"))
  path.write_bytes(data[second:])
  with soundfile.SoundFile(path) as file:
    assert file.frames > 120 * RATE
  assert len(audio.decode(path)) == pytest.approx(110 * RATE, abs=3000)


def test_id3_tag_does_not_hide_a_cut(tmp_path):
  path = tmp_path / "a.mp3"
  soundfile.write(path, tone(20), RATE)
  cut(path)
  tag = b"ID3\x03\x00\x00\x00\x00\x08\x00" + bytes(1024)
  path.write_bytes(tag + path.read_bytes())
  with pytest.raises(audio.AudioError, match="truncated"):
    audio.decode(path)


@pytest.mark.parametrize(
  ("content", "reason"),
  [(b"", "empty"), (b"no \0udio " * 500, "undecodable")],
)
@pytest.mark.parametrize("kind", FORMATS)
def test_files_without_audio(tmp_path, kind, content, reason):
  (tmp_path / f"a.{kind}").write_bytes(content)
  with pytest.raises(audio.AudioError, match=reason):
    audio.decode(tmp_path / f"a.{kind}")


def test_what_cannot_be_opened_is_unusable_audio(tmp_path, monkeypatch):
  (tmp_path / "folder.wav").mkdir()
  os.mkfifo(tmp_path / "pipe.wav")
  for name in ("folder.wav", "pipe.wav"):
    with pytest.raises(audio.AudioError, match="not a regular file"):
      audio.decode(tmp_path / name)
  with pytest.raises(audio.AudioError, match=r"unreadable \(No such file"):
    audio.decode(tmp_path / "absent.wav")
  soundfile.write(tmp_path / "a.wav", tone(), RATE)

  def refuse(*args, **kwargs):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(Path, "open", refuse)
  with pytest.raises(
    audio.AudioError, match=r"unreadable \(Input/output error"
  ):
    audio.decode(tmp_path / "a.wav")


def test_importing_does_not_import_pyav():
  script = (
    "import sys, ssl_music.data.audio;"
    "sys.exit(any(m.split('.')[0] in ('av', 'jax') for m in sys.modules))"
  )
  subprocess.run([sys.executable, "-c", script], check=True)


def test_not_finite(tmp_path):
  samples = tone()
  samples[7] = np.nan
  soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
  with pytest.raises(audio.AudioError, match="finite"):
    audio.decode(tmp_path / "a.wav")


def test_pcm_has_full_peak():
  pcm = audio.to_pcm(tone() * 0.01)
  assert pcm.dtype == np.int16
  assert np.abs(pcm.astype(int)).max() == 32_767
  np.testing.assert_allclose(pcm / 32_767, tone() / 0.5, atol=1e-4)


def test_pcm_refuses_silence():
  with pytest.raises(audio.AudioError, match="silent"):
    audio.to_pcm(np.full(1000, 1e-5, np.float32))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_stream_is_decoding_in_one_piece(tmp_path, monkeypatch, kind, channels):
  if kind == "mp3" and channels == 3:
    pytest.skip("mp3 has two channels at most")
  rate = 48_000 if kind == "opus" else 44_100
  noise = np.random.default_rng(0).standard_normal((rate * 2, channels)) * 0.1
  options = {"format": kind} | FORMATS[kind]
  soundfile.write(tmp_path / "a.x", noise, rate, **options)
  whole, _ = soundfile.read(tmp_path / "a.x", dtype="float32", always_2d=True)
  expected = soxr.resample(whole.mean(axis=1), rate, RATE, quality="HQ")
  # The mp3 decoder rounds otherwise where it starts to fill a block.
  tolerance = 2e-7 if kind == "mp3" else 0
  for size in (5_000, audio._BLOCK):
    monkeypatch.setattr(audio, "_BLOCK", size)
    blocks = list(audio.stream(tmp_path / "a.x"))
    assert all(block.dtype == np.float32 for block in blocks)
    assert max(map(len, blocks)) < 2 * size
    found = np.concatenate(blocks)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(audio.decode(tmp_path / "a.x"), found)


def test_stream_tells_a_cut_at_its_end(tmp_path, monkeypatch):
  monkeypatch.setattr(audio, "_BLOCK", RATE)
  soundfile.write(tmp_path / "a.wav", tone(20), RATE)
  cut(tmp_path / "a.wav")
  seconds = 0
  with pytest.raises(audio.AudioError, match=r"truncated \(10.0 s of the 20.0"):
    for block in audio.stream(tmp_path / "a.wav"):
      seconds += len(block) / RATE
  assert seconds == pytest.approx(10, abs=0.01)


def test_there_is_a_longest_track(tmp_path, monkeypatch):
  monkeypatch.setattr(audio, "_LONGEST_HOURS", 2 / 3600)
  soundfile.write(tmp_path / "a.wav", tone(3), RATE)
  assert len(audio.decode(tmp_path / "a.wav", max_seconds=2)) == 2 * RATE
  with pytest.raises(audio.AudioError, match="longer than"):
    audio.decode(tmp_path / "a.wav")


@pytest.mark.parametrize("channels", [1, 2, 5, 9])
def test_average(channels):
  samples = np.random.default_rng(0).standard_normal((100, channels))
  found = audio.average(samples.astype(np.float32))
  np.testing.assert_allclose(found, samples.mean(axis=1), atol=1e-6)
  # Both layouts: PyAV gives channels first.
  planar = np.asfortranarray(samples.astype(np.float32))
  np.testing.assert_array_equal(audio.average(planar), found)


@pytest.mark.parametrize("held", [100, audio.HELD])
def test_a_track_in_blocks_is_normalised_as_a_whole(
  tmp_path, monkeypatch, held
):
  monkeypatch.setattr(audio, "HELD", held)
  monkeypatch.setattr(audio, "_SCALED", 777)
  random = np.random.default_rng(0)
  sizes = (1, 0, 5_000, 20, 33_333)
  blocks = [random.standard_normal(n).astype(np.float32) for n in sizes]
  found = audio.normalise(iter(blocks), tmp_path)
  whole = np.concatenate(blocks)
  expected = np.rint(whole * (32_767 / np.abs(whole).max()))
  assert found.dtype == np.int16
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(audio.to_pcm(whole), expected)
  assert isinstance(found, np.memmap) == (held == 100)
  assert not names(tmp_path)


@pytest.mark.parametrize(
  ("blocks", "reason"),
  [
    ([], "no samples"),
    ([np.zeros(0, np.float32)], "no samples"),
    ([np.full(1000, 1e-5, np.float32)] * 3, "silent"),
  ],
)
@pytest.mark.parametrize("held", [100, audio.HELD])
def test_nothing_is_made_of_nothing(
  tmp_path, monkeypatch, blocks, reason, held
):
  monkeypatch.setattr(audio, "HELD", held)
  with pytest.raises(audio.AudioError, match=reason):
    audio.normalise(blocks, tmp_path)
  assert not names(tmp_path)


@pytest.mark.parametrize("held", [100, audio.HELD])
def test_nothing_is_made_of_a_broken_track(tmp_path, monkeypatch, held):
  monkeypatch.setattr(audio, "HELD", held)
  soundfile.write(tmp_path / "a.wav", tone(20), RATE)
  cut(tmp_path / "a.wav")
  with pytest.raises(audio.AudioError, match="truncated"):
    audio.normalise(audio.stream(tmp_path / "a.wav"), tmp_path)
  assert names(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("waiting", ["on disk", "in memory"])
def test_a_full_disk_is_not_the_tracks_fault(tmp_path, monkeypatch, waiting):
  """It fills up with what waits as float32, or else with the result."""
  monkeypatch.setattr(audio, "HELD", 1_000)
  if waiting == "in memory":
    files = iter([io.BytesIO(), tempfile.TemporaryFile(dir=tmp_path)])  # noqa: SIM115
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: next(files))
  soundfile.write(tmp_path / "a.wav", tone(20), RATE)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
  try:
    with pytest.raises(OSError, match="File too large"):
      audio.normalise(audio.stream(tmp_path / "a.wav"), tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert names(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_found(tmp_path, value):
  wave = tone()
  wave[len(wave) // 2] = value
  soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
  with pytest.raises(audio.AudioError, match="not finite"):
    audio.decode(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
def test_channels_that_cancel_out_are_said_to_do_so(tmp_path, kind):
  path = tmp_path / f"a.{kind}"
  soundfile.write(path, np.stack([tone(), -tone()], 1), RATE)
  with pytest.raises(audio.AudioError, match="its channels cancel out"):
    audio.normalise(audio.stream(path), tmp_path)
  if kind == "wav":  # the last block is silent
    long = np.concatenate([np.resize(tone(), 1 << 18), np.zeros(RATE)])
    soundfile.write(path, np.stack([long, -long], 1), RATE)
    with pytest.raises(audio.AudioError, match="its channels cancel out"):
      audio.normalise(audio.stream(path), tmp_path)
  late = np.concatenate([np.zeros(RATE * 40), tone()])
  soundfile.write(path, np.stack([late, 0.5 * late], 1), RATE)
  assert np.abs(audio.normalise(audio.stream(path), tmp_path)).max() == 32_767


@pytest.mark.parametrize("rate", [RATE, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("value", [0.5, -0.1, 0.0])
def test_what_does_not_change_is_silent(tmp_path, rate, channels, value):
  path = tmp_path / "a.wav"
  soundfile.write(path, np.full((rate * 3, channels), value), rate)
  with pytest.raises(audio.AudioError, match="silent"):
    audio.normalise(audio.stream(path), tmp_path)


def test_a_sum_beyond_float32_is_a_number_still(tmp_path):
  wave = np.tile(np.float32([1e35, -1e35]), 10_000)
  soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
  assert np.isfinite(audio.decode(tmp_path / "a.wav")).all()
