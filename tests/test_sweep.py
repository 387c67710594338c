import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import job_functions
import pytest
import tiny
from job_functions import fail, job, slow
from ml_collections import ConfigDict

from ssl_music import config as defaults
from ssl_music import jobs, lock, sweep
from ssl_music.data.tracks import find
from ssl_music.errors import InputError

ROOT = Path(__file__).parent.parent


def contrastive(grid, preset="laptop"):
  config = defaults.read(ROOT / "configs" / "contrastive.py", preset)
  config.sweep = defaults.grid(grid)
  return config.lock()


def test_a_grid_gives_every_combination_its_config_and_folder(tmp_path):
  config = contrastive({"seed": (0, 3), "optimizer.learning_rate": (1, 1e-5)})
  found = sweep.expand(config, tmp_path)
  assert [job["name"] for job in found] == [
    "seed=0,learning_rate=1.0",
    "seed=0,learning_rate=1e-05",
    "seed=3,learning_rate=1.0",
    "seed=3,learning_rate=1e-05",
  ]
  last = found[-1]
  assert last["folder"] == tmp_path / last["name"]
  assert last["config"].seed == 3
  assert last["config"].optimizer.learning_rate == 1e-5
  assert "sweep" not in last["config"]
  # The rest is as it was, and so is the config that was given.
  same = last["config"].copy_and_resolve_references()
  same.update({"seed": 0, "optimizer": {"learning_rate": 2e-3}})
  assert same.to_dict() == defaults.read("configs/contrastive.py").to_dict()
  assert config.seed == 0
  assert "sweep" in config
  assert not list(tmp_path.iterdir())


def test_names_are_safe_for_files_and_differ(tmp_path):
  odd = ("a/b", "a b", "a_b", "../a", "", "x" * 300, "x" * 299 + "y", "ü", "")
  config = contrastive({"data.name": odd[:-1]})
  folders = [job["folder"] for job in sweep.expand(config, tmp_path)]
  assert len({str(folder).lower() for folder in folders}) == len(odd) - 1
  for folder in folders:
    assert folder.parent == tmp_path
    folder.mkdir()  # as the file system sees it
  with pytest.raises(InputError, match="twice"):
    sweep.expand(contrastive({"data.name": odd}), tmp_path)
  # Fields that end alike keep what tells them apart.
  config = contrastive({"data.name": ("a",), "optimizer.name": ("lars",)})
  (job,) = sweep.expand(config, tmp_path)
  assert job["name"] == "data.name=a,optimizer.name=lars"


def test_a_folder_that_could_not_be_read_back_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"has the character \*, and no"):
    sweep.expand(contrastive({"seed": (0, 1)}), tmp_path / "all*")


def test_a_task_brings_its_own_file_with_the_preset(tmp_path):
  config = contrastive({"pretext": ("contrastive", "clustering")}, "paper")
  with config.unlocked():
    config.batch = 32  # as on the command line
    config.data.name = "mine"
    config.pretext.head = (8, 8)
  file = f"{ROOT}/configs/contrastive.py:paper"
  own, other = sweep.expand(config, tmp_path, file)
  assert (own["name"], other["name"]) == (
    "pretext=contrastive",
    "pretext=clustering",
  )
  expected = defaults.read(ROOT / "configs" / "clustering.py", "paper")
  expected.batch, expected.data.name = 32, "mine"
  assert other["config"].to_dict() == expected.to_dict()
  assert own["config"].pretext.head == (8, 8)
  with pytest.raises(InputError, match=r"no config file .*absent\.py"):
    sweep.expand(contrastive({"pretext": ("absent",)}), tmp_path, file)
  with pytest.raises(InputError, match="needs the running config's file"):
    sweep.expand(config, tmp_path)


@pytest.mark.parametrize(
  ("grid", "message"),
  [
    ({"sede": (0,)}, "sets sede, which"),
    ({"optimizer.rate": (0,)}, r"sets optimizer\.rate, which"),
    ({"seed": ("zero",)}, "seed to 'zero', a str: give values like 0"),
    ({"seed": (0.5,)}, "seed to 0.5, a float"),
    ({"seed": ()}, "give a list of one or more"),
    ({"seed": (1, 1)}, "seed=1 twice"),
  ],
)
def test_wrong_grids_are_explained(tmp_path, grid, message):
  with pytest.raises(InputError, match=message):
    sweep.expand(contrastive(grid), tmp_path)


def states(folder):
  return {record["name"]: record["state"] for record in jobs.read(folder)}


def processes(folder):
  """Returns the ids of the processes that a job has had."""
  file = folder / "calls"
  return [int(line) for line in file.read_text().split()] * file.exists()


def squares(seed):
  return str(sum((step + seed) ** 2 for step in range(job_functions.STEPS)))


def test_a_failed_job_stops_no_other(tmp_path, capfd):
  planned = [
    job("wrong", tmp_path, fail, way="error"),
    job("killed", tmp_path, fail, way="killed"),
    job("after", tmp_path, needs=["killed"]),
    job("good", tmp_path),
  ]
  assert jobs.run(planned, tmp_path) == 1
  out, err = capfd.readouterr()
  assert "Traceback" in err
  assert f"ValueError: of no use (workdir {tmp_path / 'wrong'})" in out
  assert states(tmp_path) == {
    "wrong": "failed",
    "killed": "failed",
    "after": "skipped",
    "good": "done",
  }
  records = {record["name"]: record for record in jobs.read(tmp_path)}
  assert "SIGKILL (out of memory?)" in records["killed"]["error"]
  assert "it needs killed" in records["after"]["error"]
  assert records["good"]["error"] == ""
  assert records["good"]["seconds"] > 0
  # Other jobs in the same folder: what is done is not done again, what is no
  # longer asked for stays in the list, and a workdir refuses another config.
  changed = job("wrong", tmp_path, fail, way="input")
  assert jobs.run([planned[3], changed], tmp_path) == 1
  _, err = capfd.readouterr()
  assert "way: 'error' -> 'input'" in err
  assert "Traceback" not in err
  assert len(processes(tmp_path / "good")) == 1
  assert states(tmp_path)["killed"] == "failed"


def test_what_is_done_is_found_without_records(tmp_path):
  first, second = job("a", tmp_path), job("b", tmp_path, needs=["a"])
  for one in (first, second):
    job_functions.count(one["config"], one["folder"])
  unknown = job("c", tmp_path, product=None)
  assert jobs.run([first, second, unknown], tmp_path) == 0
  assert len(processes(tmp_path / "a")) == len(processes(tmp_path / "b")) == 1
  # What "b" was made of has been made anew since.
  later = time.time() + 10
  os.utime(tmp_path / "a" / "config.json", (later, later))
  assert jobs.run([first, second, unknown], tmp_path) == 0
  assert len(processes(tmp_path / "a")) == 1
  assert len(processes(tmp_path / "b")) == 2
  # Of this one, the record alone says that it is done.
  assert len(processes(tmp_path / "c")) == 1


def test_what_an_older_version_has_done_is_found(tmp_path):
  one = job("a", tmp_path)
  job_functions.count(one["config"], one["folder"])
  for together in (True, False):  # as it was then, or otherwise
    with one["config"].unlocked():
      one["config"].views_together = together
    assert jobs.found_done(one, {}, []) == together


def test_data_that_were_prepared_anew_are_not_done(tmp_path):
  tiny.write(tmp_path / "data")
  one = job("a", tmp_path)
  with one["config"].unlocked():
    one["config"].data = ConfigDict(
      {"name": "tiny", "data_dir": str(tmp_path / "data")}
    )
  for _ in range(2):
    assert jobs.run([one], tmp_path) == 0
  assert len(processes(tmp_path / "a")) == 1
  table = find("tiny", tmp_path / "data") / "tracks.csv"
  later = time.time() + 1
  os.utime(table, (later, later))
  time.sleep(1)
  for _ in range(2):
    assert jobs.run([one], tmp_path) == 0
  assert len(processes(tmp_path / "a")) == 2


def test_only_one_may_run_in_a_folder(tmp_path):
  with (
    lock.hold(tmp_path, "running jobs in", ""),
    pytest.raises(InputError, match="another process is running jobs in"),
  ):
    jobs.run([job("a", tmp_path)], tmp_path)
  assert jobs.read(tmp_path) == []


def start(folder):
  """Runs two jobs in another process; returns it with the first on its way."""
  path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
  process = subprocess.Popen(
    [
      sys.executable,
      "-c",
      "import job_functions as f; f.run_slow()",
      str(folder),
    ],
    env=os.environ | {"PYTHONPATH": path},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  state = folder / "job0" / "state.json"
  before = json.loads(state.read_text())[0] if state.exists() else 0
  deadline = time.time() + 60
  while not state.exists() or json.loads(state.read_text())[0] <= before:
    assert process.poll() is None, process.communicate()
    assert time.time() < deadline
    time.sleep(0.01)
  return process


def gone(number):
  """Says whether a process has ended within some seconds."""
  for _ in range(500):
    try:
      os.kill(number, 0)
    except ProcessLookupError:
      return True
    stat = Path(f"/proc/{number}/stat")
    if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
      return True
    time.sleep(0.01)
  return False


def test_stopped_and_killed_jobs_go_on_to_the_same_results(tmp_path):
  seed = random.SystemRandom().randrange(2**32)
  print("seed of the moments:", seed)  # shown where the test fails
  moments = random.Random(seed)
  process = start(tmp_path)
  time.sleep(moments.uniform(0, 0.3))
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate()
  assert process.returncode == 128 + signal.SIGTERM, err
  assert "the same command goes on from there" in err
  assert states(tmp_path) == {"job0": "waiting", "job1": "waiting"}
  step = json.loads((tmp_path / "job0" / "state.json").read_text())[0]
  assert 0 < step < job_functions.STEPS
  process = start(tmp_path)
  time.sleep(moments.uniform(0, 0.3))
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert all(gone(number) for number in processes(tmp_path / "job0"))
  assert states(tmp_path)["job0"] == "running"
  assert not (tmp_path / "job0" / "result").exists()
  assert jobs.run(slow(tmp_path), tmp_path) == 0
  for index in (0, 1):
    assert (tmp_path / f"job{index}" / "result").read_text() == squares(index)
  assert len(processes(tmp_path / "job0")) == 3
