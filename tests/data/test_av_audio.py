import errno
import io
import os
import sys

import numpy as np
import pytest

import ssl_music.data
from ssl_music.data import audio

av = pytest.importorskip("av")

RATE = 48_000
KINDS = {  # the name says the container
  "a.m4a": "aac",
  "a.aac": "aac",
  "a.mka": "aac",
  "a.webm": "libopus",
  "a.wma": "wmav2",
  "a.wv": "wavpack",
  "a.mov": "alac",
  "a.tta": "tta",
  "video.mp4": "aac",
  "video.mkv": "libopus",
}
LOSSLESS = ("wavpack", "alac", "tta")


def sweep(seconds=3.0, rate=RATE):
  time = np.arange(int(seconds * rate)) / rate
  phase = 2 * np.pi * (100 * time + 100 * time**2)
  return (0.5 * np.sin(phase)).astype(np.float32)


def write(path, channels, codec, video_seconds=0, **options):
  """Encodes [channels, samples], and grey pictures if a video is wanted."""
  layout = {1: "mono", 2: "stereo"}[len(channels)]
  packets = []
  with av.open(str(path), "w", options=options) as out:
    if video_seconds:
      video = out.add_stream("mpeg4", rate=10)
      video.width = video.height = 32
      video.pix_fmt = "yuv420p"
    if codec:
      sound = out.add_stream(codec, rate=RATE, layout=layout)
      sound.bit_rate = 128_000
      for start in range(0, channels.shape[1], 960):
        part = np.ascontiguousarray(channels[:, start : start + 960])
        frame = av.AudioFrame.from_ndarray(part, "fltp", layout)
        frame.sample_rate, frame.pts = RATE, start
        packets += sound.encode(frame)
      packets += sound.encode(None)
    for index in range(int(video_seconds * 10)):
      grey = np.full((32, 32, 3), index, np.uint8)
      frame = av.VideoFrame.from_ndarray(grey).reformat(format="yuv420p")
      frame.pts = index
      packets += video.encode(frame)
    if video_seconds:
      packets += video.encode(None)
    packets = [packet for packet in packets if packet.dts is not None]
    for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
      out.mux(packet)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("containers")
  for name, codec in KINDS.items():
    seconds = 4 if name.startswith("video") else 0  # longer than the sound
    write(folder / name, sweep()[None], codec, seconds)
  return folder


def correlation(found, expected):
  """At the best of all delays, apart from 0.1 s at both ends."""
  inner = expected[1_600:-1_600]
  size = len(found) + len(inner)
  product = np.fft.rfft(found, size) * np.fft.rfft(inner, size).conj()
  delay = np.fft.irfft(product, size)[: len(found) - len(inner)].argmax()
  assert abs(delay - 1_600) < 1_600
  return np.corrcoef(found[delay:][: len(inner)], inner)[0, 1]


@pytest.mark.parametrize("name", KINDS)
def test_decodes_what_was_encoded(folder, name):
  expected = sweep(rate=audio.SAMPLE_RATE)
  found = audio.decode(folder / name)
  assert found.dtype == np.float32
  assert abs(len(found) - len(expected)) < 0.1 * audio.SAMPLE_RATE
  if KINDS[name] in LOSSLESS:
    assert np.abs(found - expected)[500:-500].max() < 0.01
  assert correlation(found, expected) > 0.99


def test_averages_channels_and_limits_the_length(tmp_path):
  stereo = np.stack([sweep(), np.zeros_like(sweep())])
  write(tmp_path / "a.wv", stereo, "wavpack")
  found = audio.decode(tmp_path / "a.wv")
  np.testing.assert_allclose(
    found[500:-500], sweep(rate=audio.SAMPLE_RATE)[500:-500] / 2, atol=0.01
  )
  start = audio.decode(tmp_path / "a.wv", max_seconds=1.5)
  assert len(start) == 1.5 * audio.SAMPLE_RATE
  np.testing.assert_allclose(start[:-500], found[: len(start) - 500], atol=1e-6)


def test_reading_errors_are_told(folder, tmp_path, monkeypatch):
  whole = (folder / "a.m4a").read_bytes()
  (tmp_path / "a.m4a").write_bytes(whole + whole)  # read by parts
  read = io.FileIO.readinto

  def refuse(self, buffer):
    if self.tell() > len(whole):
      raise OSError(errno.EIO, os.strerror(errno.EIO))
    return read(self, buffer)

  class Bad(io.FileIO):
    readinto = refuse

  monkeypatch.setattr(type(tmp_path), "open", lambda path, mode: Bad(path))
  with pytest.raises(audio.AudioError, match=r"unreadable \(Input/output"):
    audio.decode(tmp_path / "a.m4a")


def test_blocks_are_small(tmp_path):
  write(tmp_path / "a.mka", sweep(20)[None], "pcm_s16le")
  blocks = list(audio.stream(tmp_path / "a.mka"))
  assert len(blocks) > 5
  assert max(map(len, blocks)) < 5 * audio.SAMPLE_RATE
  assert sum(map(len, blocks)) == 20 * audio.SAMPLE_RATE


@pytest.mark.parametrize("name", [*KINDS, "fast.m4a", "frag.m4a"])
def test_truncated_files_are_told(folder, tmp_path, name):
  path = folder / name
  if name == "fast.m4a":  # with its table in front, as for streaming
    write(path, sweep()[None], "aac", movflags="faststart")
  if name == "frag.m4a":
    flags = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}
    write(path, sweep()[None], "aac", **flags)
  assert len(audio.decode(path)) > 2.9 * audio.SAMPLE_RATE
  whole = path.read_bytes()
  (tmp_path / name).write_bytes(whole[: len(whole) * 6 // 10])
  # An mp4 without its table, which is at the end, is not recognised at all.
  with pytest.raises(audio.AudioError, match=r"truncated|undecodable"):
    audio.decode(tmp_path / name)


def test_a_cut_behind_what_is_read_does_not_matter(folder, tmp_path):
  whole = (folder / "a.webm").read_bytes()
  (tmp_path / "a.webm").write_bytes(whole[: len(whole) * 6 // 10])
  found = audio.decode(tmp_path / "a.webm", max_seconds=1)
  assert len(found) == audio.SAMPLE_RATE


def test_without_a_promised_length_all_is_well(tmp_path):
  write(tmp_path / "a.mka", sweep()[None], "aac", live="1")
  found = audio.decode(tmp_path / "a.mka")
  assert abs(len(found) - 3 * audio.SAMPLE_RATE) < 0.1 * audio.SAMPLE_RATE


def test_video_without_sound(tmp_path):
  write(tmp_path / "a.mp4", np.zeros((1, 0)), None, 1)
  with pytest.raises(audio.AudioError, match="has no audio stream"):
    audio.decode(tmp_path / "a.mp4")


@pytest.mark.parametrize("kind", audio.AV_EXTENSIONS)
def test_files_without_audio(tmp_path, kind, capfd):
  (tmp_path / f"a{kind}").write_bytes(b"no \0udio " * 500)
  with pytest.raises(audio.AudioError, match="undecodable"):
    audio.decode(tmp_path / f"a{kind}")
  (tmp_path / f"a{kind}").write_bytes(b"")
  with pytest.raises(audio.AudioError, match="empty"):
    audio.decode(tmp_path / f"a{kind}")
  assert capfd.readouterr() == ("", "")


def test_a_playlist_leads_nowhere(folder, tmp_path):
  os.link(folder / "a.aac", tmp_path / "a.aac")
  for text, said in (
    ("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\na.aac\n", "a playlist"),
    ("\0#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\na.aac\n", "undecodable"),
    ("ffconcat version 1.0\nfile a.aac\n", "a text file"),
  ):
    (tmp_path / "list.m4a").write_text(text)
    with pytest.raises(audio.AudioError, match=said):
      audio.decode(tmp_path / "list.m4a")


def test_any_file_name(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("http:a b.m4a", "ünï%20d#?.M4A", os.fsdecode(b"\xff\xfe.m4a")):
    os.link(folder / "a.m4a", name)
    assert audio.decode(name, max_seconds=1).any()


def test_joined_files_are_as_long_as_their_parts(folder, tmp_path):
  for name in ("a.m4a", "a.mov", "a.aac", "a.wma", "a.tta"):
    data = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(data + data)
    alone = len(audio.decode(folder / name))
    assert len(audio.decode(tmp_path / name)) == pytest.approx(2 * alone, abs=2)


@pytest.mark.parametrize("rate", [RATE, 22_050])
def test_mp2_is_read_whole(tmp_path, rate):
  """As radio stations have it: layer II, which has no count of its frames."""
  with av.open(str(tmp_path / "a.mp2"), "w") as out:
    stream = out.add_stream("mp2", rate=rate, layout="mono")
    for start in range(0, 4 * rate // 1152 * 1152, 1152):
      part = np.int16(9_000 * sweep(4, rate)[start : start + 1152])[None]
      frame = av.AudioFrame.from_ndarray(part, "s16", "mono")
      frame.sample_rate, frame.pts = rate, start
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  with av.open(str(tmp_path / "a.mp2")) as file:
    wanted = sum(frame.samples for frame in file.decode(audio=0))
  (tmp_path / "a.mp2").rename(tmp_path / "a.mp3")
  found = audio.decode(tmp_path / "a.mp3")
  assert abs(len(found) - wanted * audio.SAMPLE_RATE / rate) <= 1


def test_without_pyav_it_is_told_what_to_do(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "av", None)
  monkeypatch.delitem(sys.modules, "ssl_music.data.av_audio", raising=False)
  monkeypatch.delattr(ssl_music.data, "av_audio", raising=False)
  with pytest.raises(audio.AudioError) as caught:
    audio.decode(folder / "a.m4a")
  said = ".m4a needs PyAV: pip install 'ssl_music[av]'"
  assert str(caught.value) == said
