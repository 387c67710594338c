"""The README's commands, in its order, each as a person copies it.

Those in blocks behind the comment below. They share a folder with music, and
runs are made short; nothing else of them is changed.
"""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from ssl_music.data import demo

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- tested -->\n+```(\w+)\n(.*?)```", re.DOTALL)
# What makes a run short, by its config. The small network compiles sooner.
SHORT = {
  "contrastive.py": [
    "--config.total_steps=2",
    "--config.warmup_steps=1",
    "--config.batch=4",
    "--config.frontend.n_mels=32",
    "--config.model.width=4",
    "--config.model.depths=(1,1)",
    "--config.model.heads=2",
    "--config.model.output=16",
    "--config.pretext.head=(16,8)",
  ],
  "probe.py": ["--config.probe.steps=20", "--config.probe.resamples=20"],
}


def commands():
  """Yields (kind, text) of what is to be run."""
  for kind, text in BLOCK.findall((ROOT / "README.md").read_text("utf-8")):
    if kind == "python":
      yield kind, text
      continue
    for line in text.replace("\\\n", " ").splitlines():
      if line.strip():
        yield kind, " ".join(line.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with music, its manifest, and the configs."""
  folder = tmp_path_factory.mktemp("readme")
  (folder / "configs").symlink_to(ROOT / "configs")
  (folder / "MUSIC").mkdir()
  rows = [("path", "artist", "tags", "split")]
  for number, index in enumerate(range(0, demo.TRACKS, 11)):
    waveform, about = demo.track(index)
    name = f"{about['id']}.wav"
    soundfile.write(folder / "MUSIC" / name, waveform, demo.SAMPLE_RATE)
    split = ("train", "train", "validation", "test")[number % 4]
    rows.append((name, f"artist {number}", "|".join(about["tags"]), split))
  soundfile.write(folder / "song.mp3", waveform, demo.SAMPLE_RATE)
  with (folder / "TAGS.csv").open("w", newline="") as file:
    csv.writer(file).writerows(rows)
  return folder


def test_commands_work(folder):
  environment = os.environ | {
    "TFDS_DATA_DIR": str(folder / "data"),
    "PYTHONPATH": str(ROOT),
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "XLA_FLAGS": "",
  }
  ran = 0
  for kind, text in commands():
    if kind == "python":
      command = [sys.executable, "-c", text]
    else:
      program, *arguments = shlex.split(text)
      assert program == "python", text
      command = [sys.executable, *arguments]
      for config, more in SHORT.items():
        if any(argument.endswith(config) for argument in arguments):
          command += more
    done = subprocess.run(
      command, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    ran += 1
  assert ran > 9
