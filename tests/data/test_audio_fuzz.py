"""Damaged audio files: they give audio or a reason, and nothing else.

`SSL_MUSIC_FUZZ=5000 python -m pytest tests/data/test_audio_fuzz.py -s` tries
so many files instead of a few hundred and prints what became of them.
"""

import collections
import io
import os
import re
import time

import numpy as np
import pytest
import soundfile

from ssl_music.data import audio

try:
  import av
except ImportError:
  av = None

COUNT = int(os.environ.get("SSL_MUSIC_FUZZ", "300"))
RATE = 48_000
SECONDS = 1.5
LIMIT = 10  # seconds for one file
SNDFILE = {
  "a.wav": {},
  "float.wav": {"subtype": "FLOAT"},
  "a.flac": {},
  "a.ogg": {},
  "a.opus": {"format": "OGG", "subtype": "OPUS"},
  "a.mp3": {},
  "a.aiff": {},
  "a.au": {},
}
AV = {
  "a.m4a": "aac",
  "a.aac": "aac",
  "a.webm": "libopus",
  "a.mka": "libmp3lame",
  "a.wma": "wmav2",
  "a.wv": "wavpack",
  "a.mov": "alac",
  "a.tta": "tta",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  """Whole files, {name: bytes}."""
  folder = tmp_path_factory.mktemp("whole")
  samples = 0.1 * np.random.default_rng(0).standard_normal(int(SECONDS * RATE))
  for name, options in SNDFILE.items():
    soundfile.write(folder / name, samples, RATE, **options)
  for name, codec in AV.items() if av else ():
    with av.open(str(folder / name), "w") as out:
      stream = out.add_stream(codec, rate=RATE, layout="mono")
      stream.bit_rate = 128_000
      for start in range(0, len(samples), 960):
        part = samples[None, start : start + 960].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(part, "fltp", "mono")
        frame.sample_rate, frame.pts = RATE, start
        out.mux(stream.encode(frame))
      out.mux(stream.encode(None))
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def somewhere(random, data):
  """A position, as often in the first or last kilobyte as anywhere."""
  low, high = [(0, 1024), (-1024, len(data)), (0, len(data))][
    random.integers(3)
  ]
  low = max(len(data) + low, 0) if low < 0 else low
  return int(random.integers(low, max(min(high, len(data)), low + 1)))


def flip(random, data):
  for _ in range(random.integers(1, 20)):
    data[min(somewhere(random, data), len(data) - 1)] = random.integers(256)
  return data


def cut(random, data):
  return data[: somewhere(random, data)]


def cut_front(random, data):
  return data[somewhere(random, data) :]


def zero(random, data):
  start, size = somewhere(random, data), int(random.integers(1, 4_000))
  data[start : start + size] = bytes(len(data[start : start + size]))
  return data


def extreme(random, data):
  """Writes one of the numbers that lengths and rates overflow with."""
  value = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 1 << 62]
  value = value[random.integers(len(value))]
  size = 8 if value > 0xFFFFFFFF else int(random.choice([2, 4]))
  order = ["little", "big"][random.integers(2)]
  start = somewhere(random, data)
  number = (value % (1 << 8 * size)).to_bytes(size, order)
  data[start : start + size] = number
  return data


def swap(random, data):
  first, second = sorted(somewhere(random, data) for _ in range(2))
  size = min(int(random.integers(1, 2_000)), second - first)
  kept = data[first : first + size]
  data[first : first + size] = data[second : second + size]
  data[second : second + size] = kept
  return data


def repeat(random, data):
  start, size = somewhere(random, data), int(random.integers(1, 2_000))
  data[start:start] = data[start : start + size] * int(random.integers(1, 5))
  return data


def join(random, data):
  return data + data[somewhere(random, data) * int(random.integers(2)) :]


MUTATIONS = (join, flip, cut, cut_front, zero, extreme, extreme, swap, repeat)


def mutate(random, data):
  """Returns a damaged copy, by one to three mutations."""
  data = bytearray(data)
  for _ in range(random.integers(1, 4)):
    data = MUTATIONS[random.integers(len(MUTATIONS))](random, data)
    data = data or bytearray(1)
  return bytes(data)


def outcome(path):
  """Prepares a file and checks what came out; returns it in a few words."""
  start = time.monotonic()
  try:
    pcm = audio.normalise(audio.stream(path), path.parent)
  except audio.AudioError as error:
    result = re.sub(r"[^a-z ].*", "", str(error)).strip() or str(error)
    assert str(error).isprintable(), str(error)
  else:
    assert np.abs(pcm.astype(int)).max() == 32_767
    result = "audio"
  assert time.monotonic() - start < LIMIT
  return result


def test_damaged_files_give_audio_or_a_reason(sources, tmp_path):
  counts = collections.defaultdict(collections.Counter)
  names = list(sources)
  for seed in range(COUNT):
    name = names[seed % len(names)]
    data = mutate(np.random.default_rng(seed), sources[name])
    path = tmp_path / name
    path.write_bytes(data)
    try:
      counts[name][outcome(path)] += 1
    except Exception as error:
      raise AssertionError(f"seed {seed}, {name}") from error
  for name, found in counts.items():
    print(f"{name:10}", dict(found.most_common()))
  # Neither is everything refused, nor is damage overlooked.
  share = sum(found["audio"] for found in counts.values()) / COUNT
  assert 0.05 < share < 0.7


def by_libav(data):
  """Returns the seconds that libav decodes."""
  with av.open(io.BytesIO(data)) as file:
    return sum(f.samples / f.sample_rate for f in file.decode(audio=0))


def test_joined_and_cut_files_give_all_or_a_reason(sources, tmp_path):
  if av is None:
    pytest.skip("lengths are compared with those of libav")
  names = [*SNDFILE, "a.m4a", "a.mov", "a.tta"]
  alone = {name: by_libav(sources[name]) for name in names}
  told = 0
  for seed in range(COUNT // 3):
    random = np.random.default_rng(seed)
    name = names[seed % len(names)]
    data, count = sources[name], int(random.integers(1, 4))
    cut = int(random.integers(1_000, len(data))) if random.integers(2) else None
    path = tmp_path / name
    path.write_bytes(data * (count - 1) + data[:cut])
    try:
      found = len(audio.decode(path)) / audio.SAMPLE_RATE
    except audio.AudioError as error:
      assert cut, f"seed {seed}, {name}: {error}"
      told += 1
      continue
    wanted = alone[name] * count
    tolerance = audio.TRUNCATION_TOLERANCE if cut else 1e-3
    assert abs(found - wanted) < tolerance, f"seed {seed}, {name}, {cut}"
  assert told > COUNT // 9


def test_whole_files_give_audio(sources, tmp_path):
  for name, data in sources.items():
    (tmp_path / name).write_bytes(data)
    assert outcome(tmp_path / name) == "audio", name
