"""What lies in a workdir is what was written, or is refused."""

import json
import random

import fake_runs
import fuzz
import numpy as np
import pytest
from test_tagger import make_head

from ssl_music import jobs, results, scoring, tagger, workdir
from ssl_music.errors import InputError

READERS = {
  "config.json": workdir.read_config,
  "head.npz": tagger.load,
  "scores.json": results.read_probe,
  "resamples.npz": results.read_probe,
  "metrics.jsonl": workdir.read_metrics,
}


@pytest.fixture
def run(tmp_path):
  """A workdir with all that the readers read."""
  scores = fake_runs.probe(tmp_path / "fake", "byol")
  config = json.loads((tmp_path / "fake" / "config.json").read_text())
  with np.load(tmp_path / "fake" / "resamples.npz") as file:
    drawn = dict(file)
  folder = tmp_path / "run"
  with (
    workdir.claim(folder, config),
    workdir.open_metrics(folder, 0) as (_, write),
    workdir.writing(folder),
  ):
    for step in range(1, 9):
      write(step, {"loss": 1 / step})
    tagger.save(folder, make_head())
    scoring.save(folder, scores, drawn, {"tags": ["a"]})
  return folder


def plain(value):
  """What tells two readings apart."""
  as_plain = lambda one: one.tolist() if hasattr(one, "tolist") else str(one)
  return json.dumps(value, default=as_plain)


@pytest.mark.parametrize("seed", range(3))
def test_no_damage_goes_unnoticed(run, seed, caplog):
  """The fuzzer's small sister."""
  rng = random.Random(seed)
  for name, read in READERS.items():
    file = run / name
    whole, expected = file.read_bytes(), plain(read(run))
    for content in fuzz.mutations(whole, rng):
      fuzz.put(file, content)
      caplog.clear()
      try:
        found = plain(read(run))
      except InputError as error:
        assert name in str(error)
      else:
        lost = content is None and name in ("resamples.npz", "metrics.jsonl")
        cut = name == "metrics.jsonl" and len(content or b"") < len(whole)
        same = found == expected
        assert same or lost or cut or "damaged lines" in caplog.text
    file.write_bytes(whole)


def test_workdirs_made_before_there_were_seals_are_read(run):
  expected = {name: plain(read(run)) for name, read in READERS.items()}
  (run / "seal.json").unlink()
  lines = (run / "metrics.jsonl").read_text().splitlines()
  old = [
    {k: v for k, v in json.loads(s).items() if k != "crc32"} for s in lines
  ]
  (run / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in old))
  assert {n: plain(read(run)) for n, read in READERS.items()} == expected


def test_a_probe_of_an_older_version_goes_on_as_it_was(tmp_path):
  old = {"job": "probe", "probe": {"steps": 3}}
  with workdir.claim(tmp_path, old):
    pass
  new = {"job": "probe", "probe": {"steps": 3, "sounding": True}}
  with workdir.claim(tmp_path, new):
    assert workdir.recipe(old) == workdir.recipe(new)
  new["probe"]["sounding"] = False
  with (
    pytest.raises(InputError, match=r"\(probe\.sounding only in the new one\)"),
    workdir.claim(tmp_path, new),
  ):
    pass


def test_a_damaged_seal_can_be_done_without(run):
  (run / "seal.json").write_text("")  # as a power cut leaves it
  with pytest.raises(InputError, match=r"seal\.json is damaged .*or delete it"):
    workdir.read_config(run)
  (run / "seal.json").unlink()
  assert workdir.read_config(run)["job"] == "probe"


@pytest.mark.parametrize(
  "wrong",
  [[], {"job": 3}, {"pretext": {"name": None}}, {"data": {"seconds": "2"}}],
)
def test_an_old_config_is_read_typed(tmp_path, wrong):
  (tmp_path / "config.json").write_text(json.dumps(wrong))
  with pytest.raises(InputError, match=r"config\.json is damaged \("):
    workdir.read_config(tmp_path)


@pytest.mark.parametrize(
  "wrong", [{}, [{"name": "a"}], [{"name": "a", "seconds": "1"}], [[]]]
)
def test_a_damaged_list_of_jobs_is_told(tmp_path, wrong):
  (tmp_path / "jobs.json").write_text(json.dumps(wrong))
  with pytest.raises(InputError, match=r"jobs\.json is damaged \(.*delete it"):
    jobs.read(tmp_path)
