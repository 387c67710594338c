"""What a command begins and ends with: its devices, and what comes next."""

import os
import shlex
import subprocess
import sys

import jax
import pytest
import tiny

from ssl_music import embed, export, main, parallel, tag
from ssl_music.errors import InputError


def test_a_device_that_is_asked_for_and_not_there_is_one_sentence(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "ssl_music.main",
      "--config=configs/contrastive.py",
      f"--workdir={tmp_path / 'run'}",
    ],
    env=os.environ | {"JAX_PLATFORMS": "abacus"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: JAX_PLATFORMS=abacus asks for devices that")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "error",
  [AssertionError(), RuntimeError("Unable to initialize backend 'tpu': No.")],
)
def test_however_jax_says_so(error, monkeypatch):
  def devices():
    raise error

  monkeypatch.setattr(jax, "devices", devices)
  with pytest.raises(type(error)):  # nobody has asked: a fault of its own
    parallel.start()
  monkeypatch.setattr(type(jax.config), "jax_platforms", "tpu")
  with pytest.raises(InputError, match=r"=tpu asks for .* unset it to compute"):
    parallel.start()


@pytest.mark.parametrize(
  "command",
  [
    lambda: embed.main(["none", "--encoder=none", "--out=none"]),
    lambda: tag.main(["none", "--encoder=none"]),
    lambda: export.main(["none", "--out=none"]),
  ],
)
def test_every_command_looks_for_devices_first(command, monkeypatch):
  def start():
    raise InputError("no devices")

  monkeypatch.setattr(parallel, "start", start)
  with pytest.raises(InputError, match="no devices"):
    command()


def test_the_next_command_is_one_to_copy(data_dir):
  config = tiny.pretraining(data_dir)
  config.data.name = "tiny+other"
  words = shlex.split(main._next(config, "my runs/one/"))
  assert words[:3] == ["python", "-m", "ssl_music.main"]
  assert words[3:] == [
    "--config=configs/probe.py",
    "--config.encoder=my runs/one/",
    "--config.data.name=tiny",
    f"--config.data.data_dir={data_dir}",
    "--workdir=my runs/one_probe",
  ]


@pytest.mark.parametrize("several", [True, False])
def test_processes_of_a_run_share_what_is_compiled(monkeypatch, several):
  kept = []
  monkeypatch.setattr(parallel.compiled, "keep", kept.append)
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: several)
  parallel.start("workdir")
  assert kept == ["workdir" if several else None]
