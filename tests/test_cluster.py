import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_functions import STEPS, fail, job

from ssl_music import cluster, jobs, lock
from ssl_music import config as defaults
from ssl_music.errors import InputError

ROOT = Path(__file__).parent.parent
SMALL = {"gpus": 0, "cpus": 1, "memory": 0.0}


def run(planned, folder, **more):
  return cluster.run(planned, folder, defaults.slurm(**SMALL), **more)


def states(planned, folder):
  found = cluster.status(planned, folder)
  return {one["name"]: found[one["name"]]["state"] for one in planned}


def wait(reached, seconds=60):
  end = time.time() + seconds
  while not reached():
    assert time.time() < end
    time.sleep(0.1)


def ended(planned, folder):
  found = states(planned, folder).values()
  return not set(found) & {"queued", "running"}


def calls(one):
  """Returns how many processes a job has had."""
  return len((one["folder"] / "calls").read_text().split())


def step(one):
  file = one["folder"] / "state.json"
  return json.loads(file.read_text())[0] if file.exists() else 0


def assert_right(one):
  seed = one["config"].seed
  expected = sum((step + seed) ** 2 for step in range(STEPS))
  assert (one["folder"] / "result").read_text() == str(expected)


def task_process(one):
  """Returns the process of a job's task: its own process's parent."""
  number = (one["folder"] / "calls").read_text().split()[-1]
  stat = Path(f"/proc/{number}/stat").read_text()
  return int(stat.rpartition(")")[2].split()[1])


def task(one, folder):
  """Returns the number of a job's task."""
  return jobs.known([one], folder)[one["name"]]["slurm"]


def slurm(*command):
  return subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.fixture
def importable(monkeypatch):
  """The nodes find this package, and the jobs' functions."""
  monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")


@pytest.mark.slurm
def test_an_array_runs_what_is_missing(tmp_path, capsys, importable):
  planned = [
    job("fine", tmp_path),
    job("slow", tmp_path, seed=1, pause=0.1),
    job("wrong", tmp_path, fail, way="error"),
    job("after", tmp_path, seed=2, needs=["fine"]),
    job("useless", tmp_path, needs=["wrong"]),
  ]
  # Nothing of a dry run is left, and it shows what sbatch would be given.
  assert run(planned, tmp_path, dry_run=True) == 0
  out = capsys.readouterr().out
  assert not list(tmp_path.iterdir())
  assert "#SBATCH --array=0-2%3\n" in out
  assert "#SBATCH --requeue\n" in out
  assert "#SBATCH --dependency=afterany:ARRAY0_0:ARRAY0_2\n" in out
  assert "5 of 5 jobs would be submitted" in out

  assert run(planned, tmp_path) == 0
  out = capsys.readouterr().out
  assert "5 of 5 jobs submitted" in out
  first = task(planned[0], tmp_path).split("_")[0]
  assert f"{first}_2: wrong" in out
  assert cluster.show(planned, tmp_path) == 0
  assert " queued" in capsys.readouterr().out
  # They are in the queue: none is submitted twice.
  assert run(planned, tmp_path) == 0
  assert "0 of 5 jobs submitted" in capsys.readouterr().out

  # Requeued by somebody: it saves, and its next process goes on.
  wait(lambda: step(planned[1]) > 0)
  slurm("scontrol", "requeue", task(planned[1], tmp_path))
  wait(lambda: ended(planned, tmp_path))
  assert states(planned, tmp_path) == {
    "fine": "done",
    "slow": "done",
    "wrong": "failed",
    "after": "done",
    "useless": "skipped",
  }
  for one in (planned[0], planned[1], planned[3]):
    assert_right(one)
  assert calls(planned[1]) == 2
  assert cluster.show(planned, tmp_path) == 1
  out = capsys.readouterr().out
  assert "wrong failed: ValueError: of no use" in out
  assert "useless skipped: it needs wrong, which failed" in out

  # A new one, and those that have failed: these are missing.
  planned[2] = job("wrong", tmp_path / "again", seed=3)
  planned.append(job("new", tmp_path, seed=4))
  assert run(planned, tmp_path) == 0
  out = capsys.readouterr().out
  assert "3 of 6 jobs submitted" in out
  wait(lambda: ended(planned, tmp_path))
  assert set(states(planned, tmp_path).values()) == {"done"}
  assert calls(planned[0]) == 1
  # This machine takes over what the cluster has done.
  assert jobs.run(planned, tmp_path) == 0
  assert all(calls(one) == 1 for one in (planned[0], planned[2], planned[5]))


@pytest.mark.slurm
def test_ended_tasks_go_on_where_they_were(tmp_path, capsys, importable):
  planned = [
    job(name, tmp_path, seed=seed, pause=0.15)
    for seed, name in enumerate(["time_is_up", "cancelled", "killed", "other"])
  ]
  run(planned, tmp_path)
  wait(lambda: all(step(one) for one in planned))
  tasks = [task(one, tmp_path) for one in planned]
  slurm("scancel", "--signal=USR2", tasks[0])
  slurm("scancel", tasks[1])
  os.kill(task_process(planned[2]), signal.SIGKILL)  # as for lack of memory
  # One of more weight: the fourth has to make room, and does so by itself.
  began = time.time()
  slurm("srun", "--partition=urgent", "--ntasks=4", "true")
  print("it took, seconds:", time.time() - began)
  assert calls(planned[3]) == 1
  assert not (planned[3]["folder"] / "result").exists()
  found = cluster.status(planned, tmp_path)
  assert found["cancelled"]["state"] == "waiting"
  assert found["killed"]["state"] == "failed"
  assert "ended from outside" in found["killed"]["error"]
  log = Path(found["killed"]["error"].partition("see ")[2])
  assert "Killed" in log.read_text()

  wait(lambda: ended(planned, tmp_path))
  for one in (planned[0], planned[3]):
    assert calls(one) == 2
    assert_right(one)
  capsys.readouterr()
  run(planned, tmp_path)
  assert "2 of 4 jobs submitted" in capsys.readouterr().out
  wait(lambda: ended(planned, tmp_path))
  for one in planned:
    assert calls(one) == 2
    assert_right(one)


@pytest.mark.slurm
def test_what_slurm_refuses_is_explained(tmp_path, importable):
  refused = defaults.slurm(**SMALL | {"partition": "absent"})
  with pytest.raises(InputError, match=r"SLURM takes no such jobs .*partition"):
    cluster.run([job("a", tmp_path)], tmp_path, refused)
  assert states([job("a", tmp_path)], tmp_path) == {"a": "waiting"}


def main(*arguments, **environment):
  return subprocess.run(
    [sys.executable, "-m", "ssl_music.main", *arguments],
    cwd=ROOT,
    env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"} | environment,
    capture_output=True,
    text=True,
  )


@pytest.mark.slurm
def test_a_benchmark_is_two_arrays(tmp_path):
  done = main(
    "--config=configs/benchmark.py",
    f"--workdir={tmp_path}",
    "--config.encoders=byol,vicreg,random",
    "--config.slurm.hours=0.5",
    "--config.slurm.at_once=1",
    "--config.slurm.partition=urgent",
    "--executor=slurm",
    "--dry-run",
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("#!/bin/bash") == 2
  for line in (
    "--array=0-2%1",
    "--array=0-1%1",
    "--cpus-per-task=8",
    "--dependency=afterany:ARRAY0_0:ARRAY0_1",
    "--gpus-per-node=1",
    "--mem=32768M",
    "--partition=urgent",
    "--time=30",
  ):
    assert f"#SBATCH {line}\n" in done.stdout
  assert "ARRAY0_2: probe/demo/random" in done.stdout
  assert not list(tmp_path.iterdir())


SWEEP = """
from ssl_music import config as defaults


def get_config():
  config = defaults.read("configs/contrastive.py")
  config.sweep = defaults.grid({"seed": (0, 1)})
  config.slurm = defaults.slurm(hours=2)
  return config
"""


def test_without_a_cluster(tmp_path, monkeypatch):
  (tmp_path / "sweep.py").write_text(SWEEP)
  folder = tmp_path / "runs"
  common = (f"--config={tmp_path / 'sweep.py'}", f"--workdir={folder}")
  done = main(*common, "--dry-run")
  assert done.returncode == 0, done.stderr
  assert "2 jobs: 2 waiting" in done.stdout
  done = main("--config=configs/byol.py", f"--workdir={folder}", "--status")
  assert done.returncode == 2
  assert "this config is of one: give it a grid" in done.stderr
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(InputError, match="this machine has no SLURM"):
    run([job("a", folder)], folder, dry_run=True)
  with pytest.raises(InputError, match=r"slurm\.cpus=0 is too small"):
    cluster.run([], folder, defaults.slurm(cpus=0))
  with pytest.raises(InputError, match=r"slurm\.hours=0\.0 is no time limit"):
    cluster.run([], folder, defaults.slurm(hours=0.0))
  assert not folder.exists()
  # Told from a list in which nobody can look any more.
  folder.mkdir()
  one = job("a", folder)
  known = jobs.known([one], folder)
  known["a"]["slurm"] = "1_0"
  jobs.write(folder, known)
  with pytest.raises(InputError, match="do it where squeue works"):
    cluster.show([one], folder)


def test_states_of_jobs_on_this_machine(tmp_path):
  planned = [job("a", tmp_path), job("b", tmp_path)]
  planned[0]["run"](planned[0]["config"], planned[0]["folder"])
  records = jobs.known(planned, tmp_path)
  records["b"]["state"] = "running"
  jobs.write(tmp_path, records)
  assert states(planned, tmp_path) == {"a": "done", "b": "waiting"}
  with lock.hold(tmp_path, "running jobs in", ""):
    assert lock.is_held(tmp_path)
    found = cluster.status(planned, tmp_path, running_here=True)
    assert found["b"]["state"] == "running"
  assert not lock.is_held(tmp_path)
