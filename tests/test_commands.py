"""The commands as a person types them, each in a process of its own."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssl_music import checkpoint

ROOT = Path(__file__).parent.parent
# A network for 1 s of sound and 32 bands: it compiles in seconds.
SMALL = [
  "--config.frontend.n_mels=32",
  "--config.frontend.f_max=8000.0",
  "--config.model.width=4",
  "--config.model.depths=(1,1)",
  "--config.model.heads=2",
  "--config.model.output=16",
  "--config.data.seconds=1.0",
]
PRETRAIN = [
  *SMALL,
  "--config.data.gap=1.0",
  "--config.pretext.head=(16,8)",
  "--config.batch=16",
  "--config.warmup_steps=2",
  "--config.log_every_steps=2",
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory, data_dir):
  """Of a plain machine: one device, and data sets where `data_dir` is."""
  settings = os.environ | {"TFDS_DATA_DIR": str(data_dir)}
  settings.pop("XLA_FLAGS")
  settings["PYTHONWARNINGS"] = "default"  # also of what leaks
  cache = tmp_path_factory.mktemp("compiled")
  settings["JAX_COMPILATION_CACHE_DIR"] = str(cache)
  settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
  return settings


def start(environment, module, *arguments):
  return subprocess.Popen(
    [sys.executable, "-m", f"ssl_music.{module}", *map(str, arguments)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,  # as a terminal does
  )


def run(environment, module, *arguments):
  process = start(environment, module, *arguments)
  out, err = process.communicate()
  return process.returncode, out, err


def succeed(environment, module, *arguments):
  code, out, err = run(environment, module, *arguments)
  assert code == 0, err
  assert "leaked" not in err  # shared memory of reading processes
  return out


def fail(environment, module, *arguments):
  """Runs a command that must fail; returns its one sentence."""
  code, _, err = run(environment, module, *arguments)
  assert code == 2
  assert "Traceback" not in err
  said = [line for line in err.splitlines() if line.startswith("error: ")]
  assert len(said) == 1, err
  return said[0]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
  """Somebody's folder: 24 tracks, a manifest, and what else lies about."""
  source = tmp_path_factory.mktemp("library")
  rng = np.random.default_rng(0)
  rows = []
  for index in range(24):
    pitch = 220 if index % 2 else 1760
    time_ = np.arange(16_000 * 7) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * pitch * time_) + rng.uniform(
      -0.05, 0.05, len(time_)
    )
    name = f"disc {index % 3}/tråck {index}.{('flac', 'ogg', 'WAV')[index % 3]}"
    path = source / name
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, wave, 16_000)
    tag = "low" if index % 2 else "high"
    rows.append((name, f"artist {index // 2}", f"pitch---{tag}"))
  (source / "broken.mp3").write_bytes(b"not audio at all" * 100)
  (source / "empty.flac").write_bytes(b"")
  soundfile.write(source / "unnamed.wav", wave, 16_000)
  with (source / "manifest.csv").open("w", newline="") as file:
    csv.writer(file).writerows([("path", "artist", "tags"), *rows])
  return source


def test_from_a_folder_to_scores(environment, library, tmp_path):
  data = ["--data_dir", tmp_path / "data"]
  out = succeed(
    environment,
    "prepare",
    "folder",
    f"--source={library}",
    f"--manifest={library / 'manifest.csv'}",
    "--name=mine",
    *data,
  )
  assert "25 tracks prepared" in out
  assert "1 unlabelled" in out
  assert "2 files skipped, 0 absent" in out
  assert "skipped broken.mp3: is a text file, not audio" in out
  assert "skipped empty.flac: the file is empty" in out
  config = [
    "--config.data.name=mine",
    f"--config.data.data_dir={tmp_path / 'data'}",
  ]
  pretrained = tmp_path / "pretrained"
  succeed(
    environment,
    "main",
    "--config=configs/contrastive.py",
    f"--workdir={pretrained}",
    *PRETRAIN,
    *config,
    "--config.total_steps=0",
    "--config.total_epochs=4",
    "--config.data.workers=1",
  )
  for encoder in ("mel", pretrained):
    out = succeed(
      environment,
      "main",
      "--config=configs/probe.py",
      f"--workdir={tmp_path / f'probe_{Path(encoder).name}'}",
      f"--config.encoder={encoder}",
      *SMALL,
      *config,
      "--config.probe.steps=40",
    )
    assert "pitch---high" in out
  out = succeed(
    environment, "report", tmp_path / "probe_mel", tmp_path / "probe_pretrained"
  )
  lines = out.splitlines()
  assert len(lines) == 4
  assert "map_macro" in lines[0]
  with (tmp_path / "probe_mel" / "scores.json").open() as file:
    assert f"{json.load(file)['test']['map_macro']:.3f}" in out


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
  """MagnaTagATune's layout: 32 clips of noise or tone, one of them absent."""
  source = tmp_path_factory.mktemp("mtat")
  rng = np.random.default_rng(0)
  clips = []
  for index in range(32):
    tone = np.sin(np.arange(16_000 * 5) * (0.05 if index % 2 else 0.5))
    noise = rng.standard_normal(16_000 * 5)
    folder = "0123456789abcdef"[index % 16]
    path = f"{folder}/band_{index % 16}-album-01-song_{index}-0-29.mp3"
    file = source / "mp3" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.2 * (tone + noise * (index % 3 == 0))
    soundfile.write(file, wave, 16_000, format="MP3")
    labels = [index % 2, 1 - index % 2, int(index % 3 == 0)]
    clips.append((index, *labels, path))
  file.unlink()  # of folder f, so it is a test clip
  header = ("clip_id", "low", "high", "noisy", "mp3_path")
  with (source / "annotations_final.csv").open("w", newline="") as table:
    csv.writer(
      table, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\r\n"
    ).writerows([header, *clips])
  return source


def test_a_benchmark_is_checked_prepared_and_probed(
  environment, benchmark, tmp_path
):
  source = ["magnatagatune", f"--source={benchmark}"]
  data = ["--data_dir", tmp_path / "data"]
  report = tmp_path / "lost.csv"
  code, out, err = run(
    environment, "prepare", "check", *source, *data, f"--report={report}"
  )
  assert code == 1, err
  assert "1 files absent" in out
  assert f"prepare magnatagatune --source={benchmark} --data_dir" in out
  assert not (tmp_path / "data").exists()
  with report.open() as file:
    (lost,) = csv.DictReader(file)
  assert (lost["id"], lost["split"]) == ("31", "test")
  out = succeed(environment, "prepare", *source, *data)
  assert "31 tracks prepared (24 train, 2 validation, 5 test)" in out
  assert "0 files skipped, 1 absent" in out
  probe = [
    "--config=configs/probe.py",
    "--config.encoder=mel",
    "--config.data.name=magnatagatune",
    f"--config.data.data_dir={tmp_path / 'data'}",
    "--config.probe.steps=20",
    *SMALL,
  ]
  workdir = f"--workdir={tmp_path / 'probe'}"
  said = fail(environment, "main", *probe, workdir)
  assert "1 of the 6 test tracks of MagnaTagATune" in said
  assert "--config.allow_missing=True" in said
  out = succeed(
    environment, "main", *probe, workdir, "--config.allow_missing=True"
  )
  assert "5 test tracks (1 missing)" in out
  assert "other tables than published" in out


def pretraining(environment, workdir, *more):
  return start(
    environment,
    "main",
    "--config=configs/contrastive.py",
    f"--workdir={workdir}",
    *PRETRAIN,
    "--config.data.name=tiny",
    "--config.total_steps=60",
    "--config.save_every_steps=5",
    *more,
  )


@pytest.fixture(scope="module")
def unbroken(environment, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "unbroken"
  process = pretraining(environment, workdir)
  _, err = process.communicate()
  assert process.returncode == 0, err
  return checkpoint.load(workdir)


def assert_same_state(workdir, expected):
  step, state = checkpoint.load(workdir)
  assert step == expected[0] == 60
  flat = lambda tree: sorted(_flatten(tree))
  for (name, one), (other_name, other) in zip(
    flat(state), flat(expected[1]), strict=True
  ):
    assert name == other_name
    np.testing.assert_array_equal(one, other, err_msg=name)


def _flatten(tree, prefix=""):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flatten(value, f"{prefix}{key}/")
    else:
      yield f"{prefix}{key}", value


def wait_for_metrics(workdir, lines):
  file = workdir / "metrics.jsonl"
  deadline = time.time() + 300
  while time.time() < deadline:
    if file.exists() and len(file.read_text().splitlines()) >= lines:
      return
    time.sleep(0.02)
  raise AssertionError("no metrics within five minutes")


def test_kill_at_a_random_moment_and_start_again(
  environment, unbroken, tmp_path
):
  seed = random.SystemRandom().randrange(2**32)
  print("seed of the moments:", seed)  # shown where the test fails
  moments = random.Random(seed)
  for lines in (3, 12):
    process = pretraining(environment, tmp_path / "run")
    wait_for_metrics(tmp_path / "run", lines)
    time.sleep(moments.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
  process = pretraining(environment, tmp_path / "run")
  _, err = process.communicate()
  assert process.returncode == 0, err
  assert_same_state(tmp_path / "run", unbroken)


def test_sigterm_saves_and_leaves(environment, unbroken, tmp_path):
  workdir = tmp_path / "run"
  # Saves only at the end, so that what is there is the signal's doing.
  process = pretraining(environment, workdir, "--config.save_every_steps=60")
  wait_for_metrics(workdir, 3)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate()
  assert process.returncode == 128 + signal.SIGTERM, err
  assert "stopped by SIGTERM at step" in err
  assert "Traceback" not in err
  step, _ = checkpoint.load(workdir)
  assert 6 <= step < 60
  process = pretraining(environment, workdir, "--config.save_every_steps=60")
  _, err = process.communicate()
  assert process.returncode == 0, err
  assert_same_state(workdir, unbroken)


CONFIG = "--config=configs/contrastive.py"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--config and --workdir are needed"),
    ([CONFIG], "--config and --workdir are needed"),
    (["--config=absent.py"], "absent.py"),
    ([f"{CONFIG}:huge"], "no preset 'huge'"),
    (["--config=README.md"], "README.md is no Python file"),
    ([CONFIG, "--config.job=sweep", "--workdir=x"], "no job 'sweep'"),
    ([CONFIG, "--config.job=probe", "--workdir=x"], "is of another job"),
    ([CONFIG, "--config.job=benchmark", "--workdir=x"], "is of another job"),
    ([CONFIG, "--config.batchsize=3"], "no field --config.batchsize"),
    (["--config=configs/contrastve.py", "--config.seed=1"], "contrastive.py?"),
    (["--config=configs", "--config.seed=1"], "(it is a folder)"),
    ([CONFIG, "--config.batch=many"], "batch"),
    ([CONFIG, "--workd=x"], "no option --workd: did you mean --workdir?"),
    ([CONFIG, "--walkdir=x"], "walkdir"),
    ([CONFIG, "--workdir=x", "stray"], "unexpected argument 'stray'"),
    ([CONFIG, "--workdir=/proc/x", "--config.data.name=tiny"], "cannot write"),
    ([CONFIG, "--workdir=x", "--config.data.name=absent"], "no data set"),
  ],
)
def test_wrong_main_commands(environment, arguments, message):
  arguments = [*arguments]
  if "--config.data.name=tiny" in arguments:
    arguments += PRETRAIN
  assert message in fail(environment, "main", *arguments)
  assert not (ROOT / "x").exists()


def test_help_shows_the_fields_of_a_config(environment):
  out = succeed(environment, "main", "--help")
  assert "--workdir" in out
  out = succeed(environment, "main", CONFIG, "--help")
  assert re.search(r"--config.pretext.temperature=0.2 +of cosines", out)
  assert "--[no]dry_run" in out


def test_dashes_are_underscores(environment, tmp_path):
  arguments = ["--config=configs/benchmark.py", f"--workdir={tmp_path}"]
  arguments += ["--config.encoders=mel,byol", "--dry-run"]
  field = "--config.pretrain.byol.save-every-steps"
  assert "waiting" in succeed(environment, "main", *arguments, f"{field}=7")
  said = fail(environment, "main", *arguments, f"{field}=many")
  assert "save_every_steps" in said


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--source=/absent"], "no folder /absent"),
    (["--source={here}/tests"], "no audio under"),
    (["--source={library}", "--manifest=/absent"], "cannot read /absent"),
    (["--source={library}", "--name=No Name"], "is no data set's name"),
    (["--source={library}", "--min_seconds=100"], "none of the 27 tracks"),
  ],
)
def test_wrong_prepare_commands(
  environment, library, tmp_path, arguments, message
):
  filled = [text.format(here=ROOT, library=library) for text in arguments]
  data = f"--data_dir={tmp_path / 'data'}"
  said = fail(environment, "prepare", "folder", *filled, data)
  assert message in said
  assert not list(tmp_path.rglob("tracks.csv"))
