"""Times `python -m ssl_music.embed` beside what bounds it, and a plain loop.

Of the same files, taking turns:

- decode: they are decoded and resampled, and no more, by soundfile and soxr in
  a process for each core, which have started already;
- encode: as many segments are embedded, which are in memory already;
- embed: what the command does, from the start of its worker processes to the
  merged table, but for loading and compiling the encoder; and
- PyTorch: one file after the other, decoded and resampled, then embedded, all
  its segments at once, by another build of the same network.

What decodes while an accelerator computes is as fast as the slower of the two.
Where both share the cores, the sum of their times is the bound.

  python -m benchmarks.embed --source=MUSIC --preset=paper --rounds=3
"""

import argparse
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16_000


def main() -> None:
  """Prints the table."""
  options = _options()
  from ssl_music import embed_files, pretrained

  cores = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
    folder = Path(scratch)
    weights = options.encoder or _untrained(options.preset, folder)
    encoder = pretrained.load(weights, batch=options.batch)
    paths, tracks = _usable(options, encoder, folder / "music")
    segments = sum(len(cut.starts) for cut in tracks)
    hours = sum(cut.samples for cut in tracks) / RATE / 3600
    pool = multiprocessing.get_context("spawn").Pool(cores)
    pool.map(_decode, paths[:cores], 1)
    batch = np.concatenate([_segments(encoder, cut) for cut in tracks[:20]])
    batch = np.resize(batch, (encoder.batch, batch.shape[1]))
    runs = itertools.count()

    def encode() -> None:
      started = None
      for _ in range(-(-segments // encoder.batch)):
        before, started = started, encoder.start(batch)
        np.asarray(before if before is not None else 0)
      np.asarray(started)

    def embed() -> None:
      done = embed_files.embed_files(
        encoder, paths, folder / f"out{next(runs)}", processes=cores
      )
      assert done.tracks == len(paths), done.failed

    parts = {
      "decode": lambda: pool.map(_decode, paths, 4),
      "encode": encode,
      "embed": embed,
    }
    torch = _torch_loop(weights, encoder, paths, tracks)
    if torch is not None:
      parts["PyTorch"] = torch
    encode()  # compiled by now
    taken = {name: [] for name in parts}
    for _ in range(options.rounds):
      for name, part in parts.items():
        start = time.perf_counter()
        part()
        taken[name].append(time.perf_counter() - start)
    pool.terminate()
  print(
    f"{cores} cores; {len(paths)} files, {hours:.2f} hours, {segments} segments"
    f" of {encoder.seconds:g} s, batches of {encoder.batch};"
    f" {options.rounds} rounds\n"
  )
  _print_table(taken, hours)


def _options() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("--source", nargs="+", required=True, help="audio files")
  add("--files", type=int, default=600, help="to embed; the source's, repeated")
  add("--preset", choices=("laptop", "paper"), default="laptop")
  add("--encoder", help="safetensors with the published names; else untrained")
  add("--batch", type=int, default=32)
  add("--rounds", type=int, default=3)
  add("--scratch", help="for temporary files")
  return parser.parse_args()


def _print_table(taken: dict[str, list[float]], hours: float) -> None:
  seconds = {name: float(np.median(times)) for name, times in taken.items()}
  print("| | seconds | range | hours of audio a minute |")
  print("| --- | --- | --- | --- |")
  for name, value in seconds.items():
    low, high = min(taken[name]), max(taken[name])
    speed = hours / value * 60
    print(f"| {name} | {value:.2f} | {low:.2f}-{high:.2f} | {speed:.2f} |")
  slower = max(seconds["decode"], seconds["encode"])
  both = seconds["decode"] + seconds["encode"]
  print(
    f"\nembed has {slower / seconds['embed']:.2f} of the slower one's speed,"
  )
  print(
    f"{both / seconds['embed']:.2f} of that of both one after the other", end=""
  )
  if "PyTorch" in seconds:
    ratio = seconds["PyTorch"] / seconds["embed"]
    print(f", and is {ratio:.2f} times as fast as the loop", end="")
  print()


def _usable(options, encoder, music: Path) -> tuple[list[str], list]:
  """Returns links to files that can be embedded, and their segments."""
  from ssl_music import embed_files
  from ssl_music.errors import InputError

  good = []
  for path in embed_files.find(options.source):
    try:
      good.append((path, encoder.cut(path)))
    except InputError:
      continue
    if len(good) == options.files:
      break
  music.mkdir()
  paths, cuts = [], []
  for number, (path, cut) in zip(
    range(options.files), itertools.cycle(good), strict=False
  ):
    link = music / f"{number:06}{Path(path).suffix}"
    link.symlink_to(path)
    paths.append(str(link))
    cuts.append(cut)
  return paths, cuts


def _decode(path: str) -> np.ndarray | int:
  """Decodes and resamples a file; nothing goes back to the parent process."""
  return len(_waveform(path))


def _waveform(path: str) -> np.ndarray:
  wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
  wave = wave.mean(axis=1) if wave.shape[1] > 1 else wave[:, 0]
  return wave if rate == RATE else soxr.resample(wave, rate, RATE, quality="HQ")


def _segments(encoder, cut) -> np.ndarray:
  samples = np.arange(round(encoder.seconds * RATE))
  return cut.pcm[cut.starts[:, None] + samples]


def _torch_loop(
  weights: str, encoder, paths: Sequence[str], tracks: Sequence
) -> Callable[[], None] | None:
  """Returns the plain loop, whose vectors are ours; None without PyTorch."""
  try:
    import torch
  except ImportError:
    print("without PyTorch, which is not installed")
    return None
  from benchmarks import torch_network

  network, _ = torch_network.load(weights)
  length = round(encoder.seconds * RATE)

  def embed(waves: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
      return network(torch.from_numpy(waves)).numpy()

  def embed_one(path: str) -> np.ndarray:
    wave = _waveform(path)
    wave = wave[: len(wave) // length * length] / np.abs(wave).max()
    return embed(wave.reshape(-1, length))

  for cut in tracks[:3]:
    ours = encoder.embed_cut(cut)
    theirs = embed(_segments(encoder, cut).astype(np.float32) / 32767)
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(ours)
    assert error < 1e-4, error
  return lambda: [embed_one(path) for path in paths] and None


def _untrained(preset: str, folder: Path) -> str:
  """Writes an untrained network whose batch statistics fit music."""
  import jax
  import optax

  from ssl_music import config as defaults
  from ssl_music import encoder, step
  from ssl_music.data import demo
  from ssl_music.models import torch_checkpoint

  config = defaults.read("configs/contrastive.py", preset).to_dict()
  state = jax.device_get(step.init_state(config, optax.identity()))
  variables = {kind: state[kind]["backbone"] for kind in step.KINDS}
  length = round(config["data"]["seconds"] * RATE)
  music = np.stack([demo.track(n)[0][:length] for n in range(0, 160, 10)])
  network = encoder.backbone(config)

  @jax.jit
  def update(variables):
    mel = encoder.spectrogram(config, music)
    _, new = network.apply(variables, mel, train=True, mutable=["batch_stats"])
    return variables | new

  for _ in range(40):  # until the initial statistics are forgotten
    variables = update(variables)
  file = folder / f"{preset}.safetensors"
  settings = {part: config[part] for part in ("model", "frontend")}
  settings["data"] = {"seconds": config["data"]["seconds"]}
  torch_checkpoint.write_published(file, jax.device_get(variables), settings)
  return str(file)


if __name__ == "__main__":
  main()
