"""Times preparing: tracks a second, beside a bare loop over the same files.

The bare loop is what one writes first: soundfile reads a file, its channels are
averaged, soxr resamples. It is timed once as it is, and once with its int16
written to plain files, which is the least that any program would add. All run
with a process for each core, and their start counts; how fast they go without
it is taken from a second, short run of each: the difference of the tracks over
that of the times.

What is compared takes turns, so that what else the machine does hits all alike;
of the rounds the median counts. Time is the wall's, and beside it that of all
processors.

  python -m benchmarks.prepare --source=DIR --files=2000

What is slow to import is imported where it is used: worker processes import
this module, too.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ssl_music.data import audio

_PART = 8  # files that a process of the bare loop takes at once
_ROWS = {
  "write": "writer.write",
  "bare": "soundfile + soxr",
  "plain": "soundfile + soxr, and written",
}


def main() -> None:
  """Prints the table."""
  from absl import flags, logging

  options = _options()
  flags.FLAGS(["prepare"])
  logging.set_verbosity(logging.ERROR)
  cores = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
    paths = _find(options, Path(scratch))
    chosen = list(itertools.islice(itertools.cycle(paths), options.files))
    few = chosen[: _PART * cores]
    target = Path(scratch) / "out"
    runs = {}
    for part, files in (("all", chosen), ("few", few)):
      for name in _ROWS:
        runs["clean", name, part] = lambda: _clean(target)
        runs[name, part] = _run(name, files, cores, target)
    taken = in_turn(runs, options.rounds, _clocks)
  print(
    f"{len(chosen)} tracks of {len(paths)} files, {cores} processes,"
    f" {options.rounds} rounds\n\n| | tracks/s | by processors' time |"
    " without start | by processors' time |\n" + "| --- " * 5 + "|"
  )
  _print(taken, len(chosen), len(few), cores)


def _options() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--source", help="audio files; else mp3 are made of a data set")
  add("--name", default="demo", help="the data set to make mp3 of")
  add("--data_dir", help="TFDS's folder")
  add("--files", type=int, default=2000, help="tracks, files again and again")
  add("--rounds", type=int, default=5)
  add("--scratch", help="for temporary files; 1 MB a track of 30 s")
  return parser.parse_args()


def _find(options: argparse.Namespace, scratch: Path) -> list[Path]:
  from ssl_music.data import files

  if options.source:
    source = Path(options.source)
    paths = [source / path for path in files.find_audio(source)]
  else:
    paths = _make_mp3(options, scratch / "mp3")
  return [path for path in paths if _decodes(path)]


def _make_mp3(options: argparse.Namespace, target: Path) -> list[Path]:
  """Encodes up to 40 tracks as MTG-Jamendo's: 320 kbit/s, 44.1 kHz, stereo."""
  from ssl_music.data import demo, plans
  from ssl_music.data.tracks import Tracks

  demo.ensure(options.name, options.data_dir)
  tracks = Tracks(options.name, plans.SPLITS, options.data_dir)
  target.mkdir()
  for track in range(min(len(tracks), 40)):
    samples = int(tracks.samples[track : track + 2].min())
    both = [
      tracks.read(t % len(tracks), 0, samples) for t in (track, track + 1)
    ]
    wave = soxr.resample(np.stack(both, 1) / 32_768, audio.SAMPLE_RATE, 44_100)
    soundfile.write(
      target / f"{track:02}.mp3",
      np.clip(wave, -1, 1),
      44_100,
      bitrate_mode="CONSTANT",
      compression_level=0,
    )
  return sorted(target.iterdir())


def _decodes(path: Path) -> bool:
  with contextlib.suppress(soundfile.LibsndfileError):
    return soundfile.info(path).frames > audio.SAMPLE_RATE
  return False


def _clean(target: Path) -> None:
  """Empties the folder, so that nobody waits for what another has written."""
  shutil.rmtree(target, ignore_errors=True)
  target.mkdir()
  os.sync()


def _run(
  name: str, paths: Sequence[Path], cores: int, target: Path
) -> Callable[[], None]:
  """Returns a function that goes through the files in one of the ways."""
  from ssl_music.data import folder, plans, writer

  one = {"split": "train", "tags": [], "artist": ""}
  planned = [
    one | {"id": str(n), "path": str(n), "file": str(path)}
    for n, path in enumerate(paths)
  ]
  plan = plans.make("prepared", planned, folder.Load(None))

  def write() -> None:
    writer.write(
      "prepared",
      plan,
      data_dir=target,
      min_seconds=0,
      processes=cores,
    )
    for worker in multiprocessing.active_children():
      worker.join()  # only then is its time counted

  def bare(function: Callable) -> None:
    names = [track["file"] for track in planned]
    jobs = [
      (names[start : start + _PART], target / str(start))
      for start in range(0, len(names), _PART)
    ]
    with multiprocessing.get_context("fork").Pool(cores) as pool:
      pool.starmap(function, jobs, chunksize=1)
      pool.close()
      pool.join()

  ways = {"bare": _decode_all, "plain": _write_all}
  return write if name == "write" else lambda: bare(ways[name])


def _decode_all(paths: Sequence[str], _: Path) -> None:
  for path in paths:
    _decode_bare(path)


def _write_all(paths: Sequence[str], target: Path) -> None:
  with target.open("wb") as file:
    for path in paths:
      file.write((_decode_bare(path) * 32_767).astype(np.int16).data)


def _decode_bare(path: str) -> np.ndarray:
  wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
  # `mean` over so short an axis would take half as long as decoding.
  wave = sum(wave.T) / wave.shape[1]
  if rate != audio.SAMPLE_RATE:
    wave = soxr.resample(wave, rate, audio.SAMPLE_RATE, "HQ")
  return wave


def _print(taken: Mapping, many: int, few: int, cores: int) -> None:
  """Prints a row for each way, and ratios to the bare loop's."""
  speeds = {}
  for name in _ROWS:
    # Of the processors' time, as if none of them ever waited.
    whole, short = (
      np.divide(taken[name, part], (1, cores)) for part in ("all", "few")
    )
    # The short runs' median, as the noise of both would add up.
    inner = whole - np.median(short, 0)
    speeds[name] = np.hstack([many / whole, (many - few) / inner])
    _row(_ROWS[name], np.median(speeds[name], 0), ".1f")
  for name in ("write", "plain"):
    ratio = np.median(speeds[name] / speeds["bare"], 0)
    _row(f"ratio, {_ROWS[name]}", ratio, ".2f")


def _row(name: str, numbers: Sequence[float], form: str) -> None:
  print(f"| {name} | {' | '.join(format(n, form) for n in numbers)} |")


def _clocks() -> np.ndarray:
  """Returns the wall's clock and the time of all processors, in seconds."""
  return np.array([time.perf_counter(), sum(os.times()[:4])])


def in_turn(
  runs: Mapping[object, Callable], rounds: int, clock: Callable
) -> dict[object, list]:
  """Times each run once a round, after one round that does not count."""
  taken = {name: [] for name in runs}
  for index in range(rounds + 1):
    for name, run in runs.items():
      began = clock()
      run()
      if index:
        taken[name].append(clock() - began)
  return taken


if __name__ == "__main__":
  main()
