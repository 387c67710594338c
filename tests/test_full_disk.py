"""Wherever a command writes, a full disk is one sentence."""

import contextlib
import resource
from pathlib import Path

import fake_runs
import numpy as np
import pytest

from ssl_music import jobs, music_map, report, scoring, tag, tagger, workdir
from ssl_music.errors import InputError


@contextlib.contextmanager
def full():
  """No file may grow: a full disk, for who is not root, too."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def begin(folder):
  with workdir.claim(folder, {"job": "pretrain", "seed": 0}):
    pass


def end_probe(folder):
  numbers = {"logits": np.zeros((1, 4, 3)), "tags": ["a", "b", "c"]}
  with workdir.writing(folder):
    scoring.save(folder, {"test": {}}, {"map_macro": np.zeros(9)}, numbers)


def save_head(folder):
  layers = [{"kernel": np.zeros((1, 2, 3)), "bias": np.zeros((1, 3))}]
  head = {"tags": ["a"], "aggregation": "logits", "sounding": True}
  head |= {"mean": np.zeros(2), "inverse": np.ones(2), "layers": layers}
  with workdir.writing(folder):
    tagger.save(folder, head)


def run_jobs(folder):
  record = {"name": "a", "workdir": "a", "state": "done", "seconds": 0.0}
  jobs.write(folder, {"a": record | {"error": ""}})


def write_report(folder):
  report.write([folder.parent / "runs"], folder / "report")


def draw_map(folder):
  means = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
  paths = [f"/m/{name}.wav" for name in "abcde"]
  music_map.write(folder / "map.html", paths, means, top=2)


def tag_files(folder):
  with tag._opened(str(folder / "tags.csv")) as file:
    file.write("a" * 100)


@pytest.mark.parametrize(
  "act",
  [
    *(begin, end_probe, save_head),
    *(run_jobs, write_report, draw_map, tag_files),
  ],
)
def test_a_full_disk_is_told(tmp_path, act):
  folder = tmp_path / "folder"
  folder.mkdir()
  fake_runs.probe(tmp_path / "runs", "mel")
  with full(), pytest.raises(InputError) as told:
    act(folder)
  said = r"cannot write .*folder\S* \(.*File too large\): free some space there"
  assert told.match(said)
  left = {path.name for path in folder.iterdir() if path.suffix != ".partial"}
  assert left <= {".lock"}
  act(folder)  # the same command, when there is room
  assert list(folder.iterdir())


def test_metrics_on_a_full_disk(tmp_path):
  with (
    pytest.raises(InputError, match=r"cannot write to .*: free some space"),
    workdir.open_metrics(tmp_path, 0) as (_, write),
    full(),
  ):
    write(1, {"loss": 0.5})
  Path(tmp_path, "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
  with (
    full(),
    pytest.raises(InputError, match=r"cannot write to .*: free some space"),
    workdir.open_metrics(tmp_path, 1),
  ):
    pass
  assert workdir.read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
