"""Times the way of audio from records to batches.

Two parts, of any prepared data set (the built-in demo is made if need be):

- reading: pairs of segments a second through Grain, this process pinned to one
  core and the page cache warm, beside a bare memory copy of the same bytes; and
- what length, encoding and compression of the records cost on disk and in time.

Whatever is compared takes turns, so that what else the machine does hits all
alike; of the rounds the median is printed and the best, which a busy machine
moves less. Time is the processor's. `benchmarks.prepare` times what comes
before.

  python -m benchmarks.input --name=demo --rounds=5
"""

import argparse
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from absl import flags, logging
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from benchmarks.prepare import in_turn
from ssl_music.data import audio, demo, plans
from ssl_music.data import segments as choice
from ssl_music.data.segments import BLOCK
from ssl_music.data.tracks import Tracks

BATCH, SECONDS, GAP = 128, 4.0, 4.0
SEGMENT = round(SECONDS * audio.SAMPLE_RATE)
MANY = 20_000  # tracks of a large data set
LENGTHS = 1, 2, 4, 8, 30  # of a record, in seconds
FORMATS = [  # encoding, and options of ArrayRecord's writer
  ("int16", "group_size:1,uncompressed"),
  ("int16", "group_size:1,snappy"),
  ("int16", "group_size:1,zstd:1"),
  ("int16", "group_size:1,zstd:3"),
  ("int16", "group_size:1,brotli:1"),
  ("int16", "group_size:4,uncompressed"),
  ("flac", "group_size:1,uncompressed"),
]


def main() -> None:
  """Prints the tables."""
  options = _options()
  flags.FLAGS(["input"])
  logging.set_verbosity(logging.ERROR)
  cores = sorted(os.sched_getaffinity(0))
  demo.ensure(options.name, options.data_dir)
  tracks = Tracks(options.name, plans.SPLITS, options.data_dir)
  print(f"{len(cores)} cores; {options.name}; {options.rounds} rounds")
  with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
    parts = options.parts.split(",")
    os.sched_setaffinity(0, cores[-1:])
    if "read" in parts:
      read(tracks, options.rounds)
    if "records" in parts:
      compare_records(tracks, options, Path(scratch))


def _options() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--name", default="demo", help="a prepared data set")
  add("--data_dir", help="TFDS's folder")
  add("--minutes", type=float, default=60, help="of audio to compare records")
  add("--rounds", type=int, default=5)
  add("--parts", default="read,records")
  add("--scratch", help="for temporary files; records take 4 GB an hour")
  return parser.parse_args()


def read(tracks: Tracks, rounds: int) -> None:
  """Prints pairs a second through Grain beside a copy, and where time goes."""
  # Here, as the processes of `prepare` import this file, too.
  from grain._src.python.experimental.index_shuffle.python import (
    index_shuffle_module,
  )

  from ssl_music.data import pipeline

  many = _Many(tracks)
  batches = {
    f"Grain, {len(one)} tracks": pipeline.pretraining_batches(
      one, seconds=SECONDS, gap=GAP, views=2, batch=BATCH, seed=0
    ).repeat()
    for one in (tracks, many)
    if len(one) >= BATCH
  }
  runs = {name: _through_grain(dataset) for name, dataset in batches.items()}
  views = next(iter(batches.values()))[0]["views"]
  rng = np.random.default_rng(0)
  out = np.empty_like(views).reshape(-1, SEGMENT)

  def records() -> None:
    for _ in range(8):  # others each time: a processor's cache holds many
      where = _where(rng, tracks.samples, len(out))
      for segment, (track, start) in zip(out, where, strict=True):
        tracks.read(track, start, SEGMENT, segment)

  def draw() -> None:
    for track in rng.integers(len(tracks), size=8 * BATCH):
      energy, length = tracks.energy(track), SEGMENT // BLOCK
      allowed = choice.sounding(energy, tracks.rms[track], length)
      choice.draw(rng, allowed, 2, length)

  def shuffle(count: int) -> None:
    for index in range(8 * BATCH):
      index_shuffle_module.index_shuffle(
        index % count, max_index=count - 1, seed=index, rounds=4
      )

  runs |= {
    "- of it, reading records": records,
    "- of it, drawing starts": draw,
    f"- of it, Grain's shuffle of {len(tracks)}": lambda: shuffle(len(tracks)),
    f"- of it, Grain's shuffle of {MANY}": lambda: shuffle(MANY),
    "memory copy": lambda: any(views.copy() is None for _ in range(8)),
  }
  taken = in_turn(runs, rounds, time.process_time)
  print(
    f"\nread, batches of {BATCH} pairs of {SECONDS:g} s, one core\n\n"
    "| | pairs/s | best | best, microseconds a pair | times the copy's |\n"
    + "| --- "
    * 5,
    end="|\n",
  )
  for name, seconds in taken.items():
    speed = 8 * BATCH / np.median(seconds), 8 * BATCH / min(seconds)
    ratio = np.median(np.divide(seconds, taken["memory copy"]))
    print(
      f"| {name} | {speed[0]:,.0f} | {speed[1]:,.0f} | {1e6 / speed[1]:.0f}"
      f" | {ratio:.1f} |"
    )


def _through_grain(dataset) -> Callable[[], None]:
  """Returns a function that reads 8 more batches, as a worker process does."""
  import grain

  starts = itertools.count(0, 8)

  def run() -> None:
    start = next(starts)
    part = dataset[start : start + 8]
    for _ in part.to_iter_dataset(grain.ReadOptions(1, 2)):
      pass

  return run


class _Many:
  """A few tracks that pass for `MANY`, with the same audio again and again."""

  tags = ()

  def __init__(self, tracks: Tracks):
    self._tracks, self.name = tracks, tracks.name
    self._index = np.resize(np.arange(len(tracks)), MANY)
    self.samples = tracks.samples[self._index]
    self.rms = tracks.rms[self._index]

  def __len__(self) -> int:
    return MANY

  def energy(self, track: int) -> np.ndarray:
    return self._tracks.energy(self._index[track])

  def read(self, track: int, *place) -> np.ndarray:
    return self._tracks.read(self._index[track], *place)


def compare_records(
  tracks: Tracks, options: argparse.Namespace, scratch: Path
) -> None:
  """Prints bytes on disk and pairs a second of every form of record."""
  pcm, samples = [], 0
  for track in np.random.default_rng(0).permutation(len(tracks)):
    if samples >= options.minutes * 60 * audio.SAMPLE_RATE:
      break
    pcm.append(tracks.read(track, 0, int(tracks.samples[track])))
    samples += len(pcm[-1])
  sizes, runs = {}, {}
  for encoding, settings in FORMATS:
    for seconds in LENGTHS:
      form = encoding, settings, seconds
      path = scratch / f"{encoding},{settings},{seconds}"
      rows = _write_records(path, pcm, *form)
      sizes[form] = path.stat().st_size / samples * audio.SAMPLE_RATE * 3600
      runs[form] = _reader(path, pcm, rows, encoding, seconds)
  taken = in_turn(runs, options.rounds, time.process_time)
  print(
    f"\nrecords, {samples / audio.SAMPLE_RATE / 60:.0f} minutes of audio,"
    " without Grain\n\n| encoding | ArrayRecord | seconds | MB an hour |"
    " pairs/s | best |\n" + "| --- " * 6 + "|"
  )
  for form, seconds in taken.items():
    speed = BATCH / np.median(seconds), BATCH / min(seconds)
    encoding, settings, length = form
    print(
      f"| {encoding} | {settings} | {length} | {sizes[form] / 1e6:.1f} |"
      f" {speed[0]:,.0f} | {speed[1]:,.0f} |"
    )


def _write_records(
  path: Path, pcm: list[np.ndarray], encoding: str, settings: str, seconds: int
) -> list[int]:
  """Writes a file; returns the first record of each track."""
  out = array_record_module.ArrayRecordWriter(str(path), settings)
  rows, row, length = [], 0, seconds * audio.SAMPLE_RATE
  for wave in pcm:
    rows.append(row)
    for start in range(0, len(wave), length):
      example = tf_example_pb2.Example()
      value = _encode(wave[start : start + length], encoding)
      example.features.feature["audio"].bytes_list.value.append(value)
      out.write(example.SerializeToString())
      row += 1
  out.close()
  return rows


def _encode(wave: np.ndarray, encoding: str) -> bytes:
  if encoding == "int16":
    return wave.tobytes()
  file = io.BytesIO()
  soundfile.write(file, wave, audio.SAMPLE_RATE, "PCM_16", format="FLAC")
  return file.getvalue()


def _decode(value: bytes, encoding: str, first: int, last: int) -> np.ndarray:
  if encoding == "int16":
    return np.frombuffer(value, "<i2")[first:last]
  with soundfile.SoundFile(io.BytesIO(value)) as file:
    file.seek(first)
    return file.read(last - first, dtype="int16")


def _reader(
  path: Path, pcm: list[np.ndarray], rows: list[int], encoding: str, seconds
) -> Callable[[], list]:
  """Returns a function that reads a batch of pairs, as `Tracks.read` does."""
  source = array_record_module.ArrayRecordReader(
    str(path), "readahead_buffer_size:0", file_reader_buffer_size=32_768
  )
  length = seconds * audio.SAMPLE_RATE
  out = np.empty((2 * BATCH, SEGMENT), np.int16)
  samples = np.array([len(wave) for wave in pcm])
  rng = np.random.default_rng(0)

  def run() -> list[tuple[int, int]]:
    where = _where(rng, samples, len(out))
    for segment, (track, start) in zip(out, where, strict=True):
      for chunk in range(start // length, -(-(start + SEGMENT) // length)):
        shift = chunk * length - start
        first, last = max(-shift, 0), min(SEGMENT - shift, length)
        record = source.read([rows[track] + chunk])[0]
        features = tf_example_pb2.Example.FromString(record).features.feature
        value = features["audio"].bytes_list.value[0]
        part = _decode(value, encoding, first, last)
        segment[shift + first : shift + last] = part
    return where

  for segment, (track, start) in zip(out, run(), strict=True):
    np.testing.assert_array_equal(segment, pcm[track][start : start + SEGMENT])
  return run


def _where(
  rng: np.random.Generator, samples: np.ndarray, count: int
) -> list[tuple[int, int]]:
  """Draws a track and a start in samples for each of some segments."""
  long = np.flatnonzero(samples >= SEGMENT)
  chosen = long[rng.integers(len(long), size=count)]
  starts = rng.integers((samples[chosen] - SEGMENT) // BLOCK + 1) * BLOCK
  return list(zip(chosen.tolist(), starts.tolist(), strict=True))


if __name__ == "__main__":
  main()
