import numpy as np
import pytest
import soundfile

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


def test_flac_of_unknown_length_is_told(tmp_path):
  path = tmp_path / "a.flac"  # as written by a program that cannot seek
  soundfile.write(path, tone(), RATE)
  data = bytearray(path.read_bytes())
  data[21] &= 0xF0  # 36 bits of STREAMINFO
  data[22:26] = bytes(4)
  path.write_bytes(data)
  with pytest.raises(audio.AudioError, match="gives no length"):
    audio.decode(path)


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
  [(b"", "empty"), (b"no audio " * 500, "undecodable")],
)
@pytest.mark.parametrize("kind", FORMATS)
def test_files_without_audio(tmp_path, kind, content, reason):
  (tmp_path / f"a.{kind}").write_bytes(content)
  with pytest.raises(audio.AudioError, match=reason):
    audio.decode(tmp_path / f"a.{kind}")


def test_m4a_is_named(tmp_path):
  (tmp_path / "a.M4A").write_bytes(b"x")
  with pytest.raises(audio.AudioError, match=r"\.m4a is not decodable"):
    audio.decode(tmp_path / "a.M4A")


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
