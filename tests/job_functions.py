"""Jobs for tests: quick to import in a process of their own."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from ssl_music import jobs, workdir
from ssl_music.errors import InputError

STEPS = 40


def count(config, folder):
  """Sums squares, a step at a time; keeps its state and goes on from it."""
  folder = Path(folder)
  with (
    workdir.claim(folder, config.to_dict()),
    workdir.stop_on_signals() as requested,
  ):
    with (folder / "calls").open("a") as file:
      file.write(f"{os.getpid()}\n")
    state = folder / "state.json"
    step, total = json.loads(state.read_text()) if state.exists() else (0, 0)
    while step < STEPS:
      time.sleep(config.pause)
      step, total = step + 1, total + (step + config.seed) ** 2
      partial = folder / "state.partial"
      partial.write_text(json.dumps([step, total]))
      partial.rename(state)
      if requested() and step < STEPS:
        raise workdir.Stopped(step, STEPS, requested())
    (folder / "result").write_text(str(total))


def fail(config, folder):
  """Fails in the way that the config says."""
  with workdir.claim(Path(folder), config.to_dict()):
    if config.way == "input":
      raise InputError("the input is wrong: give another")
    if config.way == "killed":
      os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("of no use\nand more")


def pretrain(config, folder):
  """Leaves what a pre-training leaves, unless its task is BYOL."""
  with workdir.claim(Path(folder), config.to_dict()):
    if config.pretext.name == "byol":
      raise InputError("the teacher is ill: call another")
    Path(folder, "checkpoints", str(config.total_steps)).mkdir(parents=True)


def probe(config, folder):
  """Leaves scores, of an encoder that is there."""
  with workdir.claim(Path(folder), config.to_dict()):
    if config.encoder != "mel":
      assert Path(config.encoder, "checkpoints").is_dir()
    test = {"map_macro": 0.25, "roc_auc_macro": 0.75}
    Path(folder, "scores.json").write_text(json.dumps({"test": test}))


def job(name, folder, function=count, needs=(), product="result", **fields):
  """A job of one of the functions above."""
  config = ConfigDict({"seed": 0, "pause": 0.0, **fields})
  folder = folder / name
  return jobs.job(name, function, config, folder, product=product, needs=needs)


def slow(folder):
  """Two jobs of a second and more."""
  return [
    job(f"job{seed}", folder, seed=seed, pause=pause)
    for seed, pause in ((0, 0.03), (1, 0.0))
  ]


def run_slow():
  """Runs them, as a command: the folder is its argument."""
  folder = Path(sys.argv[1])
  sys.exit(jobs.run(slow(folder), folder))
