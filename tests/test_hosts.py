"""Several processes of this machine, over gloo, as they would be of a pod.

In float64: in float32, the gradients through batch norm are so ill-conditioned
that rounding would hide a mistake of 1 %.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import small
import tiny

from ssl_music import checkpoint, hosts, parallel, train, workdir
from ssl_music.errors import InputError

ROOT = Path(__file__).parent.parent
STEPS = 10
FIELDS = {"total_steps": STEPS, "save_every_steps": 4, "log_every_steps": 1}
FIELDS |= {"accumulate": 2, "views": 3}


def config_of(data_dir):
  config = tiny.pretraining(data_dir, **FIELDS)
  config.model.dtype = "float64"
  config.online.data = "tiny"
  return config


@contextlib.contextmanager
def devices(count):
  """All runs inside have so many devices and compute in float64."""
  mesh = parallel.make_mesh(jax.devices()[:count])
  with (
    pytest.MonkeyPatch.context() as patch,
    small.backbone(),
    jax.enable_x64(True),
  ):
    patch.setattr(parallel, "make_mesh", lambda: mesh)
    yield


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
  """The workdir of an unbroken run of a single device."""
  folder = tmp_path_factory.mktemp("alone")
  with devices(1):
    train.train(config_of(data_dir), folder)
  return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """Of a plain machine: one device."""
  settings = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "1"}
  settings["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles soon
  settings["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("made"))
  settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
  return settings


@pytest.fixture
def together(environment, data_dir, tmp_path):
  """Runs so many processes; returns each one's exit code and errors."""
  file = tmp_path / "config.py"
  text = json.dumps(config_of(data_dir).to_dict(), default=list)
  file.write_text(
    "import json\nfrom ml_collections import ConfigDict\n"
    f"def get_config():\n  return ConfigDict(json.loads({text!r}))\n"
  )

  def run(count, folder, plan="-", more=None):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    command = [sys.executable, ROOT / "tests" / "host_process.py", plan]
    command += [f"--config={file}", f"--workdir={folder}"]
    command += [f"--coordinator=127.0.0.1:{port}", f"--processes={count}"]
    started = [
      subprocess.Popen(
        [*command, f"--process={process}", *(more or {}).get(process, ())],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
      )
      for process in range(count)
    ]
    try:
      said = [process.communicate(timeout=180)[1] for process in started]
    finally:
      for process in started:
        process.kill()
    return [process.returncode for process in started], said

  return run


def assert_same_run(folder, alone):
  """Losses, scores and parameters are equal, but for rounding."""
  found, expected = (workdir.read_metrics(f) for f in (folder, alone))
  last = {entry["step"]: entry for entry in found}
  assert [entry["step"] for entry in found] == list(range(1, STEPS + 1))
  for entry in expected:
    names = {"loss", "gradient_norm", "accuracy", "learning_rate"}
    names |= entry.keys() & {"validation_map", "knn_map"}
    for name in names:
      assert last[entry["step"]][name] == pytest.approx(entry[name], rel=1e-5)
  for which in ("latest", "best"):
    (step, state), (again, other) = (
      checkpoint.load(f, which) for f in (folder, alone)
    )
    assert step == again
    jax.tree_util.tree_map_with_path(assert_close, state, other)


def assert_close(path, a, b):
  # The head's batch norm takes away what a bias before it adds: its gradient is
  # nothing but rounding, which AdamW scales up.
  without = r"'backbone'.*'bias'|'params'.*'bn_0'.*'bias'|'bn_0'.*'mean'"
  name = jax.tree_util.keystr(path)
  if not re.search(without, name):
    assert np.linalg.norm(a - b) <= 1e-5 * max(np.linalg.norm(b), 1e-3), name


@pytest.mark.parametrize(("first", "then"), [(8, 1), (1, 8)])
def test_other_devices_go_on(data_dir, alone, tmp_path, first, then):
  stop = iter([0] * 4 + [signal.SIGTERM])
  with devices(first), pytest.MonkeyPatch.context() as patch:
    agree = lambda mesh: lambda number: next(stop)
    patch.setattr(hosts, "agreement", agree)
    with pytest.raises(workdir.Stopped, match=f"step 5 of {STEPS}"):
      train.train(config_of(data_dir), tmp_path)
  with devices(then):
    train.train(config_of(data_dir), tmp_path)
  assert_same_run(tmp_path, alone)


def test_a_notice_to_one_stops_all(together, alone, tmp_path):
  codes, said = together(2, tmp_path, plan=f"1:{int(signal.SIGTERM)}:4")
  assert codes == [128 + signal.SIGTERM] * 2
  assert f"stopped by SIGTERM at step 6 of {STEPS}, saved" in said[0]
  assert "stopped" not in said[1]
  assert checkpoint.load(tmp_path)[0] == 6
  codes, _ = together(2, tmp_path)
  assert codes == [0, 0]
  assert_same_run(tmp_path, alone)


def test_a_killed_one_ends_all_and_one_goes_on(
  together, data_dir, alone, tmp_path
):
  codes, said = together(4, tmp_path, plan=f"2:{int(signal.SIGKILL)}:7")
  assert codes == [1, 1, -signal.SIGKILL, 1]
  for process in (0, 1, 3):
    assert "error: process 2 has ended or hangs" in said[process]
    assert "goes on from the last save" in said[process]
  assert checkpoint.load(tmp_path)[0] == 4
  with devices(1):
    train.train(config_of(data_dir), tmp_path)
  assert_same_run(tmp_path, alone)


def test_the_first_one_killed_ends_all(together, tmp_path):
  codes, said = together(2, tmp_path, plan=f"0:{int(signal.SIGKILL)}:2")
  assert codes == [-signal.SIGKILL, 1]
  *_, last = said[1].strip().splitlines()
  assert re.match("error: .* so this one ends, too", last)


def test_a_mistake_of_one_ends_all(together, tmp_path):
  wrong = f"--config.data.data_dir={tmp_path}"
  codes, said = together(2, tmp_path / "run", more={1: [wrong]})
  assert codes == [2, 2]
  assert "error: process 1 has ended: no data set 'tiny'" in said[0]
  assert "error: no data set 'tiny'" in said[1]


@pytest.mark.parametrize("changed", ["seed", "data"])
def test_others_settings_or_data_are_refused(
  together, data_dir, tmp_path, changed
):
  more = "--config.seed=3"
  if changed == "data":
    tiny.write(tmp_path / "copy", rows=tiny.tracks()[1:])
    more = f"--config.data.data_dir={tmp_path / 'copy'}"
  codes, said = together(2, tmp_path / "run", more={1: [more]})
  assert codes == [2, 2]
  field = "seed: 0 -> 3" if changed == "seed" else "data.fingerprint: "
  assert f"other settings or data than process 0 has ({field}" in said[1]
  assert "error: process 1 has ended: other settings or data" in said[0]


def test_mistakes_of_all_are_said_once(together, tmp_path):
  more = ["--config.job=probe"]
  codes, said = together(2, tmp_path / "run", more={0: more, 1: more})
  assert codes == [2, 2]
  assert "".join(said).count("2 processes share one pre-training") == 1


@pytest.mark.parametrize(
  "given", [("host:1", 2, None), ("host", 2, 0), ("host:1", 2, 2)]
)
def test_wrong_flags_are_explained(given):
  with pytest.raises(InputError, match=r"--coordinator.* give"):
    hosts.start(*given)


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]"}
PTY = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PTY_PORT": "5"}
SLURM |= {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
  ("changed", "found"),
  [
    ({}, "slurm"),
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    ({"SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell in an allocation
    # In a shell that is a task, and as a task, both of srun --pty.
    (PTY | {"SLURM_TASK_PID": "1"}, None),
    (PTY | {"SLURM_TASK_PID": str(os.getpid())}, "slurm"),
  ],
)
def test_slurms_tasks_are_found(monkeypatch, changed, found):
  assert hosts._detect() is None
  for name, value in (SLURM | changed).items():
    monkeypatch.setenv(name, value)
  assert hosts._detect() == found


def test_who_comes_alone_does_not_wait_for_ever():
  script = (
    "from ssl_music import hosts; hosts._MEETING = 1;"
    " hosts.start('localhost:9', 2, 1)"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 1
  meeting, _, error = done.stderr.splitlines()
  assert meeting == "meeting the other processes, for 1 s at most"
  assert "error: not all processes have met within 1 s: start the" in error


def test_a_single_process_does_not_wait():
  hosts.start(None, None, None)
  hosts.start("nowhere:1", 1, 0)
  assert not jax.distributed.is_initialized()
  hosts.barrier()
  assert hosts.together(lambda: 5) == 5
  assert hosts.agreement(parallel.make_mesh())(15) == 15
