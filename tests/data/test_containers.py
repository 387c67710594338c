"""Files that are longer or shorter than their headers say.

Lengths are compared with those of a full decode by libav (PyAV).
"""

import io
import struct
import time

import numpy as np
import pytest
import soundfile

from ssl_music.data import audio, containers, kinds, window

av = pytest.importorskip("av")

RATE = 16_000  # so that nothing is resampled, and lengths are exact
KINDS = {
  "wav": {},
  "aiff": {},
  "au": {},
  "flac": {},
  "mp3": {},
  "ogg": {},
  "opus": {"format": "OGG", "subtype": "OPUS"},
}
JOINED = (*KINDS, "oga")  # FLAC in Ogg, which libsndfile does not write
ID3 = b"ID3\3\0\0\0\0\x10\0" + b"\xff\xfb\x90\xc4" * 512  # with false frames
ID3_OLD = b"TAG" + bytes(125)
APE = b"APETAGEX" + struct.pack("<III", 2000, 40, 1) + bytes(12 + 40)


def noise(seconds, seed=0, channels=1, rate=RATE):
  shape = (int(seconds * rate), channels)
  return 0.1 * np.random.default_rng(seed).standard_normal(shape)


def encode(kind, samples, rate=RATE, **options):
  file = io.BytesIO()
  if kind == "oga":
    with av.open(file, "w", format="ogg") as out:
      stream = out.add_stream("flac", rate=rate, layout="mono")
      whole = np.int16(samples.T * 32767)
      for start in range(0, whole.shape[1], 4096):
        part = np.ascontiguousarray(whole[:, start : start + 4096])
        frame = av.AudioFrame.from_ndarray(part, "s16", "mono")
        frame.sample_rate, frame.pts = rate, start
        out.mux(stream.encode(frame))
      out.mux(stream.encode(None))
    return file.getvalue()
  options = {"format": kind} | KINDS[kind] | options
  soundfile.write(file, samples, rate, **options)
  return file.getvalue()


def by_libav(data):
  """Returns (rate, samples [channels, frames])."""
  with av.open(io.BytesIO(data)) as opened:
    frames = list(opened.decode(audio=0))
  return frames[0].sample_rate, np.concatenate(
    [
      frame.to_ndarray().reshape(-1, frame.layout.nb_channels).T
      if not frame.format.is_planar
      else frame.to_ndarray()
      for frame in frames
    ],
    axis=1,
  )


def length(data):
  """Returns how many samples it has at 16 kHz."""
  rate, samples = by_libav(data)
  return samples.shape[1] * RATE // rate


def decoded(tmp_path, data, name="a.mp3"):
  (tmp_path / name).write_bytes(data)
  return audio.decode(tmp_path / name)


def info_of(mp3):
  """Returns where the first frame is, where its count, and where it ends."""
  count = max(mp3[:4096].find(b"Xing"), mp3[:4096].find(b"Info")) + 8
  start = mp3.rindex(b"\xff", 0, count)
  return start, count, mp3.index(mp3[start : start + 2], count)


def without_info(mp3):
  """Returns an MP3 without its first frame, which counts the others."""
  return mp3[info_of(mp3)[2] :]


def with_count(mp3, change):
  """Returns an MP3 whose first frame counts some frames more or fewer."""
  _, at, _ = info_of(mp3)
  (count,) = struct.unpack_from(">I", mp3, at)
  return mp3[:at] + struct.pack(">I", count + change) + mp3[at + 4 :]


def frames_of(mp3):
  """Returns where each frame starts, by the slow way of one rate and layer."""
  start, _, _ = info_of(mp3)
  sign, found = mp3[start : start + 2], [start]
  at = start + 24
  while (at := mp3.find(sign, at) + 24) >= 24:
    if mp3[at - 22] & 0x0C == mp3[start + 2] & 0x0C:
      found.append(at - 24)
  return found


@pytest.mark.parametrize("kind", JOINED)
@pytest.mark.parametrize("count", [2, 3])
def test_joined_files_are_as_long_as_their_parts(tmp_path, kind, count):
  sizes = (2.013, 1.4, 1.7)[:count]
  pieces = [
    encode(kind, noise(seconds, seed)) for seed, seconds in enumerate(sizes)
  ]
  found = decoded(tmp_path, b"".join(pieces), f"a.{kind}")
  wanted = sum(map(length, pieces))
  assert len(found) == wanted
  alone = [decoded(tmp_path, piece, f"b.{kind}") for piece in pieces]
  np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_a_count_is_read_whole(tmp_path, channels, mode):
  """Quiet after loud: from the first frame, libsndfile guesses half of it."""
  samples = noise(8, channels=channels, rate=44_100)
  samples[len(samples) // 10 :] *= 1e-3
  data = encode("mp3", samples, 44_100, bitrate_mode=mode)
  data = without_info(data)
  rate, wanted = by_libav(data)
  found = []
  (tmp_path / "a.mp3").write_bytes(data)
  for rate_found, block in audio._blocks(tmp_path / "a.mp3", None):
    assert rate_found == rate
    found.append(audio.average(block).copy())
  found = np.concatenate(found)
  assert len(found) == wanted.shape[1]
  np.testing.assert_allclose(found, wanted.mean(0), atol=1e-4)
  if mode == "VARIABLE":
    assert soundfile.info(tmp_path / "a.mp3").frames < len(found)


@pytest.mark.parametrize("change", [-400, -1, 1, 400])
def test_wrong_counts_in_an_mp3_do_not_count(tmp_path, change):
  data = encode("mp3", noise(20))
  found = decoded(tmp_path, with_count(data, change))
  assert len(found) == length(data) == 20 * RATE


@pytest.mark.parametrize("tag", [ID3, ID3_OLD, APE, ID3_OLD + ID3])
@pytest.mark.parametrize("counted", [True, False])
def test_tags_in_the_midst_of_an_mp3_are_passed_over(tmp_path, tag, counted):
  data = encode("mp3", noise(10))
  wanted = decoded(tmp_path, data if counted else without_info(data))
  middle = frames_of(data)[100]
  tagged = ID3 + data[:middle] + tag + data[middle:] + tag + ID3_OLD
  if not counted:
    tagged = ID3 + without_info(tagged)
  np.testing.assert_array_equal(decoded(tmp_path, tagged), wanted)


def test_joined_files_may_have_tags(tmp_path):
  pieces = [ID3 + encode("mp3", noise(2, seed)) + ID3_OLD for seed in (0, 1)]
  found = decoded(tmp_path, b"".join(pieces))
  assert len(found) == sum(map(length, pieces)) == 4 * RATE
  bare = [without_info(piece) for piece in pieces]
  assert len(decoded(tmp_path, b"".join(bare))) == sum(map(length, bare))


@pytest.mark.parametrize("kind", ["mp3", "ogg", "flac", "wav"])
def test_joined_files_may_differ(tmp_path, kind):
  pieces = [
    encode(kind, noise(2, 0)),
    encode(kind, noise(2, 1, channels=2)),
    encode(kind, noise(2, 2, rate=32_000), 32_000),
  ]
  found = decoded(tmp_path, b"".join(pieces), f"a.{kind}")
  alone = [decoded(tmp_path, piece, f"b.{kind}") for piece in pieces]
  np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-5)


@pytest.mark.parametrize("kind", ["mp3", "ogg", "wav"])
def test_no_more_is_read_of_joined_files_than_asked(tmp_path, kind):
  data = b"".join(encode(kind, noise(2, seed)) for seed in range(3))
  (tmp_path / f"a.{kind}").write_bytes(data)
  whole = audio.decode(tmp_path / f"a.{kind}")
  for seconds in (1, 2, 3.5, 4, 9):
    found = audio.decode(tmp_path / f"a.{kind}", max_seconds=seconds)
    np.testing.assert_array_equal(found, whole[: int(seconds * RATE)])


@pytest.mark.parametrize("kind", JOINED)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("joined", [False, True])
def test_every_cut_is_told(tmp_path, kind, share, joined):
  data = encode(kind, noise(6))
  cut = data[: int(share * len(data))]
  with pytest.raises(audio.AudioError, match="truncated"):
    decoded(tmp_path, data + cut if joined else cut, f"a.{kind}")


@pytest.mark.parametrize("kind", ["ogg", "opus", "oga"])
def test_an_ogg_stream_ends_with_a_page_that_says_so(tmp_path, kind):
  data = encode(kind, noise(20))
  last = data.rindex(b"OggS")
  with pytest.raises(
    audio.AudioError, match=r"damaged \(after 1.\.. s, .* does not end"
  ):
    decoded(tmp_path, data[:last], f"a.{kind}")
  (tmp_path / "a.ogg").write_bytes(data[:last])
  assert len(audio.decode(tmp_path / "a.ogg", max_seconds=5)) == 5 * RATE


def test_what_lies_behind_the_end_of_an_ogg_stream_is_not_lost(tmp_path):
  """Such as a joined file whose first pages are missing."""
  data = encode("ogg", noise(5))
  pages = [at for at in range(len(data)) if data[at : at + 4] == b"OggS"]
  with pytest.raises(audio.AudioError, match="does not end as it should"):
    decoded(tmp_path, data + data[pages[3] :], "a.ogg")


def test_mp3_with_junk_in_front_is_read_whole(tmp_path):
  data = without_info(encode("mp3", noise(5)))
  assert len(decoded(tmp_path, bytes(500) + data)) == length(data)


def test_what_an_mp3_loses_is_told(tmp_path):
  """The decoder looks for a next frame in 1,024 bytes, and then gives up."""
  data = without_info(encode("mp3", noise(5)))
  middle = len(data) // 2
  with pytest.raises(audio.AudioError, match=r"truncated|damaged"):
    decoded(tmp_path, data[:middle] + bytes(3_000) + data[middle:])


def test_damage_in_the_first_frame_does_not_hide_the_count(tmp_path):
  data = bytearray(encode("mp3", noise(5)))
  data[info_of(data)[0] + 9] = 77
  assert len(decoded(tmp_path, bytes(data))) == 5 * RATE


@pytest.mark.parametrize("kind", ["wav", "aiff", "au", "flac"])
def test_a_header_that_tells_too_little_is_not_believed(tmp_path, kind):
  """As a recorder leaves it that was stopped, or a program that cannot seek."""
  data = encode(kind, noise(40))
  for count in (0, RATE):
    if kind == "flac":
      place, number = 22, struct.pack(">I", count)
    else:
      sign = {"wav": b"data", "aiff": b"SSND", "au": b".snd"}[kind]
      place = data.index(sign) + (8 if kind == "au" else 4)
      number = struct.pack("<I" if kind == "wav" else ">I", 2 * count + 8)
    short = data[:place] + number + data[place + 4 :]
    found = decoded(tmp_path, short, f"a.{kind}")
    assert len(found) == 40 * RATE
    np.testing.assert_allclose(found, decoded(tmp_path, data), atol=1e-3)
    if kind in ("au", "flac"):
      assert length(short) == len(found)


def test_what_lies_behind_a_wav_is_not_sound(tmp_path):
  data = encode("wav", noise(3))
  for tail in (ID3_OLD, b"LIST" + struct.pack("<I", 9_000) + bytes(9_000)):
    assert len(decoded(tmp_path, data + tail, "a.wav")) == 3 * RATE


@pytest.mark.parametrize("size", ["00", "69"])
def test_what_looks_like_a_frame_of_flac_is_none(tmp_path, size):
  """Of no size; or of a number that no header could hold."""
  false = bytes.fromhex(f"fff8{size}00") + b"\xfe" + b"\xbf" * 6 + b"\0"
  false += bytes([containers._crc8(false)])
  data = encode("flac", noise(3))
  assert len(decoded(tmp_path, data + false + bytes(16), "a.flac")) == 3 * RATE


def test_an_au_file_that_points_to_itself_has_an_end(tmp_path):
  data = encode("au", noise(1))
  found = decoded(tmp_path, data[:4] + bytes(8) + data[12:], "a.au")
  assert len(found) <= RATE + 12


def test_an_au_file_that_points_beyond_its_end_holds_nothing(tmp_path):
  data = encode("au", noise(1))
  data = data[:4] + b"\x7f" * 4 + bytes(4) + data[12:]
  assert not len(decoded(tmp_path, data, "a.au"))


def test_reading_errors_are_told(tmp_path, monkeypatch):
  data = encode("mp3", noise(3))
  (tmp_path / "a.mp3").write_bytes(data + data)

  def refuse(self, start, whence=0):
    if start > len(data):
      raise OSError(5, "Input/output error")
    return seek(self, start, whence)

  class Bad(io.FileIO):
    seek = refuse

  seek = io.FileIO.seek
  part = window.Part(((0, len(data)), (len(data) + 9, 2 * len(data))))
  with Bad(tmp_path / "a.mp3") as file:
    seen = window.Window(file, part)
    assert len(seen.read()) == len(data)
    assert seen.error.errno == 5


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_a_file_full_of_false_starts_takes_no_time(tmp_path, name):
  frames = encode("mp3", noise(0.3))[-834:]
  junk = {"a.ogg": b"OggS" * 500_000, "a.mp3": (frames + bytes(300)) * 3_000}
  (tmp_path / name).write_bytes(junk[name])
  began = time.process_time()
  assert len(containers.parts(tmp_path / name)[0]) == 1
  assert time.process_time() - began < 3


IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(2_000)


@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.m4a", "a.flac"])
@pytest.mark.parametrize(
  ("content", "said"),
  [
    (IMAGE, "is a PNG image, not audio"),
    (ID3 + IMAGE, "is a PNG image, not audio"),
    (b"\xff\xd8\xff\xe0" + bytes(99), "is a JPEG image, not audio"),
    (b"\n <!DOCTYPE html><html>", "is an HTML page, not audio"),
    (b"PK\3\4" + bytes(99), "is a ZIP archive, not audio"),
    (b"%PDF-1.7\n", "is a PDF, not audio"),
    (b"MThd" + bytes(99), "is a MIDI file, which holds notes, not audio"),
    (b"RIFF\0\0\0\0WEBPVP8 " + bytes(99), "is a WebP image, not audio"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ("Künstler: …\n".encode() * 99, "is a text file, not audio"),
  ],
)
def test_what_is_no_audio_is_said_to_be_what_it_is(
  tmp_path, name, content, said
):
  with pytest.raises(audio.AudioError) as caught:
    decoded(tmp_path, content, name)
  assert str(caught.value).startswith(said)


@pytest.mark.parametrize("kind", JOINED)
@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.m4a", "a.txt"])
def test_audio_of_another_kind_than_its_name_works(tmp_path, kind, name):
  data = encode(kind, noise(2))
  assert len(decoded(tmp_path, data, name)) == length(data)


def test_mp4_of_another_name_works(tmp_path):
  with av.open(str(tmp_path / "a.m4a"), "w") as out:
    stream = out.add_stream("alac", rate=RATE, layout="mono")
    for start in range(0, 2 * RATE, 1_000):
      part = np.linspace(-0.1, 0.1, 1_000, dtype=np.float32)[None]
      frame = av.AudioFrame.from_ndarray(part, "fltp", "mono")
      frame.sample_rate, frame.pts = RATE, start
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  data = (tmp_path / "a.m4a").read_bytes()
  assert len(decoded(tmp_path, data, "a.mp3")) == 2 * RATE


def test_random_bytes_are_of_no_kind():
  random = np.random.default_rng(0)
  assert kinds.identify(b"\x80" + random.bytes(500)) is None
