"""`./run.sh tpu`, with a gcloud that only writes down how it was called."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
# It fails where FAIL has the call's verb, or a part of the call. The workdir's
# archive comes down as it went up.
GCLOUD = """#!/usr/bin/env python3
import json, os, pathlib, shutil, sys, time
here = pathlib.Path(__file__).parent
call = sys.argv[1:]
with (here / "calls").open("a") as file:
  file.write(json.dumps(call) + "\\n")
text = " ".join(call)
if "describe" in call:
  sys.exit(0 if os.environ.get("EXISTS") else 1)
if os.environ.get("FAIL", "nothing at all") in text:
  sys.exit(7)
if os.environ.get("WAIT", "nothing at all") in text:
  time.sleep(60)
if text.endswith("build/ --zone=" + os.environ["TPU_ZONE"]):
  shutil.copy(here / "workdir.tar.gz", "build")
"""
PREFIX = ["compute", "tpus", "tpu-vm"]
TRAIN = ["--config=configs/byol.py:paper", "--config.pretext.head=(8, 8)"]


@pytest.fixture
def tpu(tmp_path):
  """Returns a function that starts the script, in a copy of what it needs."""
  copy = tmp_path / "project"
  (copy / "scripts").mkdir(parents=True)
  for name in ("run.sh", "scripts/tpu.sh"):
    shutil.copy(ROOT / name, copy / name)
  for name in ("ssl_music", "configs"):
    (copy / name).mkdir()
  (copy / "configs" / "byol.py").touch()
  for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
    (copy / name).touch()
  (tmp_path / "gcloud").write_text(GCLOUD)
  (tmp_path / "gcloud").chmod(0o755)
  (tmp_path / "trained").mkdir()
  (tmp_path / "trained" / "config.json").touch()
  subprocess.run(
    ["tar", "-czf", "workdir.tar.gz", "-C", "trained", "."],
    cwd=tmp_path,
    check=True,
  )

  def start(*arguments, **environment):
    settings = {"TPU_ZONE": "here-a", "TFDS_DATA_DIR": ""} | environment
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
      ["./run.sh", "tpu", *arguments],
      cwd=copy,
      env=os.environ | {"PATH": path} | settings,
      # Heard also where whoever runs the tests ignores Ctrl-C.
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


def calls(tmp_path):
  """Returns the calls of gcloud so far."""
  file = tmp_path / "calls"
  lines = file.read_text().splitlines() if file.exists() else []
  return [json.loads(line) for line in lines]


def verbs(tmp_path):
  return [call[3] for call in calls(tmp_path)]


def test_a_dry_run_prints_what_a_run_does(tpu, tmp_path):
  settings = {"TPU_SPOT": "1", "TPU_BUCKET": "gs://mine/run"}
  settings |= {"TPU_DATA": "my data", "TPU_TYPE": "v6e-4"}
  dry = tpu("--dry-run", *TRAIN, **settings)
  printed, error = dry.communicate()
  assert dry.returncode == 0, error
  assert not calls(tmp_path)
  assert not (tmp_path / "project" / "build").exists()
  process = tpu(*TRAIN, **settings)
  said, error = process.communicate()
  assert process.returncode == 0, error
  assert said == printed
  # A person can copy the lines: a shell reads them as they were run.
  lines = [shlex.split(line) for line in printed.splitlines()]
  asked, *done = calls(tmp_path)
  assert asked[3] == "describe"
  assert [line[1:] for line in lines if line[0] == "gcloud"] == done
  assert all(call[:3] == PREFIX for call in done)
  assert all(call[-1] == "--zone=here-a" for call in done)
  create, code, data, *_, run, pack, _, delete = [call[3:-1] for call in done]
  assert create == [
    "create",
    "ssl-music",
    "--accelerator-type=v6e-4",
    "--version=v2-alpha-tpuv6e",
    "--spot",
  ]
  assert code[-2:] == ["build/ssl_music.tar.gz", "ssl-music:"]
  assert data[-2:] == ["my data", "ssl-music:data"]
  assert all("--worker=all" in call for call in (code, data, run))
  assert "--worker=0" in pack
  command = run[-1].removeprefix("--command=")
  *_, arguments = command.partition("python -m ssl_music.main ")
  arguments, *_ = arguments.partition(";")
  assert shlex.split(arguments) == ["--workdir=workdir", *TRAIN]
  assert delete == ["delete", "ssl-music", "--quiet"]
  # What was learned is here, and the next run begins with it.
  assert (tmp_path / "project/runs/tpu/config.json").exists()
  tpu(*TRAIN).communicate()
  sent = [call for call in calls(tmp_path) if "build/workdir.tar.gz" in call]
  assert len(sent) == 1


def test_a_failed_run_is_fetched_and_deleted(tpu, tmp_path):
  process = tpu(*TRAIN, FAIL="ssl_music.main")
  process.communicate()
  assert process.returncode == 7
  assert verbs(tmp_path)[-3:] == ["ssh", "scp", "delete"]
  assert (tmp_path / "project/runs/tpu/config.json").exists()


@pytest.mark.parametrize(
  ("failing", "code", "expected", "said"),
  [
    ("create", 7, ["describe", "create", "delete"], ""),
    ("uv pip", 7, ["describe", "create", "scp", "ssh", "ssh", "delete"], ""),
    ("tar -czf", 1, None, "error: the workdir could not be fetched"),
    ("delete", 1, None, "error: the TPU ssl-music could not be deleted"),
  ],
)
def test_whatever_fails_it_is_deleted(
  tpu, tmp_path, failing, code, expected, said
):
  process = tpu(*TRAIN, FAIL=failing)
  _, error = process.communicate()
  assert process.returncode == code
  assert said in error
  assert verbs(tmp_path)[-1] == "delete"
  assert expected in (None, verbs(tmp_path))


@pytest.mark.parametrize("moment", ["create", "ssl_music.main"])
def test_interrupted_it_is_deleted(tpu, tmp_path, moment):
  process = tpu(*TRAIN, WAIT=moment)
  end = time.time() + 20
  while not any(moment in " ".join(call) for call in calls(tmp_path)):
    assert time.time() < end
    time.sleep(0.05)
  # As Ctrl-C, which reaches all that a terminal runs.
  gcloud = subprocess.run(
    ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
  )
  process.send_signal(signal.SIGINT)
  for number in gcloud.stdout.split():
    os.kill(int(number), signal.SIGTERM)
  process.communicate(timeout=20)
  assert process.returncode == 130
  assert verbs(tmp_path)[-1] == "delete"


def test_a_tpu_is_kept_where_asked(tpu, tmp_path):
  process = tpu("--keep", *TRAIN)
  out, _ = process.communicate()
  assert process.returncode == 0
  assert "delete" not in verbs(tmp_path)
  assert "gcloud compute tpus tpu-vm delete ssl-music --zone=here-a" in out


def test_others_tpus_are_left_alone(tpu, tmp_path):
  process = tpu(*TRAIN, EXISTS="1")
  _, error = process.communicate()
  assert process.returncode == 2
  assert "error: there is a TPU ssl-music in here-a" in error
  assert verbs(tmp_path) == ["describe"]
  process = tpu()
  out, _ = process.communicate()
  assert process.returncode == 2
  assert "./run.sh tpu --config=FILE" in out


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_dry_run_is_one_wherever_the_flag_stands(tpu, tmp_path, flag, place):
  process = tpu(*TRAIN[:place], flag, *TRAIN[place:])
  out, error = process.communicate()
  assert process.returncode == 0, error
  assert "gcloud compute tpus tpu-vm create" in out
  assert not calls(tmp_path)


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ([*TRAIN, "--dryrun"], "error: ./run.sh tpu knows no --dryrun"),
    ([*TRAIN, "-dry-run"], "knows no -dry-run"),
    ([*TRAIN, "--dry-run=true"], "knows no --dry-run=true"),
    ([*TRAIN, "--workdir=x"], "knows no --workdir=x"),
    ([*TRAIN, "--config", "configs/byol.py"], "knows no --config: give"),
    ([*TRAIN, "--", "--dry-run"], "knows no --:"),
    (["--config=configs/byo.py"], "error: no config file configs/byo.py"),
  ],
)
def test_what_is_not_known_runs_nothing(tpu, tmp_path, arguments, said):
  process = tpu(*arguments)
  _, error = process.communicate()
  assert process.returncode == 2
  assert said in error
  assert not calls(tmp_path)


# On the TPU: buckets are folders of $BUCKETS, and a minute is short. It trains
# until a preemption kills it, or to the end where it goes on.
ON_TPU = {
  "gcloud": """#!/usr/bin/env python3
import os, pathlib, shutil, sys
_, verb, *options, source, target = sys.argv[1:]
find = lambda name: pathlib.Path(name.replace("gs:/", os.environ["BUCKETS"]))
if verb == "cp":
  find(target).parent.mkdir(parents=True, exist_ok=True)
  find(target).write_text(sys.stdin.read())
  sys.exit()
assert verb == "rsync" and "--recursive" in options
source, target = find(source), find(target)
shutil.copytree(source, target, dirs_exist_ok=True)
if "--delete-unmatched-destination-objects" in options:
  for file in target.rglob("*"):
    if not (source / file.relative_to(target)).exists():
      file.unlink()
""",
  "sleep": "#!/bin/sh\nexec /bin/sleep 0.1\n",
  "ssl_music/.venv/bin/python": """#!/usr/bin/env python3
import pathlib, time
workdir = pathlib.Path("workdir")
first = workdir / "first"
if first.exists():
  first.unlink()
  (workdir / "second").touch()
else:
  first.touch()
  time.sleep(60)
""",
}


def test_a_spot_tpu_that_is_taken_away_loses_nothing(tpu, tmp_path):
  settings = {"TPU_SPOT": "1", "TPU_BUCKET": "gs://mine/run"}
  process = tpu(*TRAIN, **settings)
  _, error = process.communicate()
  assert process.returncode == 0, error
  given = [c[-2].removeprefix("--command=") for c in calls(tmp_path)]
  (restore,) = [c for c in given if "storage cp" in c]
  (train,) = [c for c in given if "ssl_music.main" in c]
  buckets = tmp_path / "buckets"
  for name in ("one", "two"):
    machine = tmp_path / name
    (machine / "ssl_music" / "workdir").mkdir(parents=True)
    for file, text in ON_TPU.items():
      (machine / file).parent.mkdir(parents=True, exist_ok=True)
      (machine / file).write_text(text)
      (machine / file).chmod(0o755)
    path = f"{machine}{os.pathsep}{os.environ['PATH']}"
    started = {
      "cwd": machine,
      "env": os.environ | {"PATH": path, "BUCKETS": str(buckets)},
      "start_new_session": True,
    }
    subprocess.run(["bash", "-c", restore], check=True, **started)
    process = subprocess.Popen(["bash", "-c", train], **started)
    if name == "one":
      end = time.time() + 20
      while not (buckets / "mine/run/first").exists():
        assert time.time() < end
        time.sleep(0.05)
      os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == (-signal.SIGKILL if name == "one" else 0)
  assert {f.name for f in (buckets / "mine/run").iterdir()} == {
    "started",
    "second",
  }


def test_a_spot_tpu_needs_a_bucket(tpu, tmp_path):
  for bucket in ("", "mine/run", "gs://mine", "gs://mine/my run"):
    process = tpu(*TRAIN, TPU_SPOT="1", TPU_BUCKET=bucket)
    _, error = process.communicate()
    assert process.returncode == 2
    assert "give TPU_BUCKET=gs://BUCKET/FOLDER" in error
  assert not calls(tmp_path)


def test_skypilot_gets_the_same(tpu):
  process = tpu("--dry-run", *TRAIN)
  printed, _ = process.communicate()
  create, *_ = printed.splitlines()
  task = yaml.safe_load((ROOT / "configs" / "skypilot.yaml").read_text())
  wanted = task["resources"]
  kind = wanted["accelerators"].removeprefix("tpu-")
  assert f"--accelerator-type={kind} " in create
  version = wanted["accelerator_args"]["runtime_version"]
  assert f"--version={version} " in create
  # The same commands install and run it, one a line.
  for line in task["setup"].splitlines():
    assert line.replace("'", "") in printed
  assert ".venv/bin/python -m ssl_music.main" in task["run"]
