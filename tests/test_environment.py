"""What a machine lacks is worked around, or named with what helps."""

import errno
import os
import posixpath
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from ssl_music import command_line, compiled, disk, home
from ssl_music.data import tracks, workers
from ssl_music.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def homeless(monkeypatch):
  """As HOME unset, of a user whom the system does not know."""
  monkeypatch.setattr(posixpath, "expanduser", lambda path: path)


def test_the_home_folder_stands_for_a_tilde(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  spelled = command_line.spelled(
    ["--data-dir=~/data", "--out", "~/out", "~", "a~b", "--tags=~soft"],
    {"--data_dir", "--out"},
  )
  assert spelled == [
    "--data_dir=/home/me/data",
    "--out",
    "/home/me/out",
    "/home/me",
    "a~b",
    "--tags=~soft",
  ]
  monkeypatch.setenv("TFDS_DATA_DIR", "~/sets")
  assert tracks.default_data_dir() == Path("/home/me/sets")


def test_without_a_home(homeless, monkeypatch):
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  with pytest.raises(InputError, match="for ~/x: set HOME, or give a path"):
    home.expanded("~/x")
  with pytest.raises(InputError, match="for ~/tensorflow_datasets: set HOME"):
    tracks.default_data_dir()
  # Compiled programs are not kept, and that is all.
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  try:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    compiled.keep()
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_same_rows_in_every_locale(tmp_path):
  source = tmp_path / "müsic"
  source.mkdir()
  rng = np.random.default_rng(0)
  for name in ("tråck.wav", "日.wav"):
    soundfile.write(source / name, rng.uniform(-0.1, 0.1, 96_000), 16_000)
  (source / "brökén.wav").write_bytes(b"RIFF")
  (tmp_path / "m.csv").write_text("path,tags\ntråck.wav,süß\n", "utf-8")
  found, said = [], []
  for place, settings in (
    ("utf-8", {"PYTHONUTF8": "1"}),
    ("ascii", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
  ):
    done = subprocess.run(
      [
        *(sys.executable, "-m", "ssl_music.prepare", "folder"),
        *(f"--source={source}", f"--manifest={tmp_path / 'm.csv'}"),
        *(f"--data_dir={tmp_path / place}", "--processes=0"),
      ],
      cwd=ROOT,
      env=os.environ | settings,
      capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    said.append(done.stdout)
    (table,) = (tmp_path / place).rglob("tracks.csv")
    found.append(
      [
        (table.parent / name).read_bytes()
        for name in ("tracks.csv", "skipped.csv", "card.json")
      ]
    )
  assert found[0] == found[1]
  assert "tråck.wav".encode() in found[0][0]
  assert "skipped brökén.wav".encode() in said[0]
  assert rb"skipped br\xf6k\xe9n.wav" in said[1]


@pytest.mark.parametrize(
  ("number", "said"),
  [
    (errno.EMFILE, r"Too many open files\): allow more .* `ulimit -n`"),
    (errno.EAGAIN, "allow more processes with `ulimit -u`"),
    (errno.EROFS, r"Read-only file system\): mount a writable /dev/shm"),
    (errno.ENOENT, "mount a writable /dev/shm"),
  ],
)
def test_processes_that_cannot_be_started(monkeypatch, number, said):
  def fail(*arguments):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(workers, "ProcessPoolExecutor", fail)
  with (
    workers.pool(1) as run,
    pytest.raises(InputError, match=f"cannot run worker processes.*{said}"),
  ):
    list(run(abs, [1]))


def test_a_script_without_a_guard_is_told(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(
    "from ssl_music.data import workers\n"
    "with workers.pool(1) as run:\n"
    "  print(list(run(abs, [1, 2])))\n",
    "utf-8",
  )
  done = subprocess.run(
    [sys.executable, script],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    encoding="utf-8",
  )
  assert "crashed" not in done.stdout
  assert "bootstrapping" not in done.stderr
  last = next(
    line
    for line in done.stderr.splitlines()
    if line.startswith("ssl_music.errors.InputError")
  )
  assert "InputError: worker processes end before they begin" in last
  assert 'below `if __name__ == "__main__":`' in last


def test_no_folder_for_temporary_files(monkeypatch):
  def fail():
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

  monkeypatch.setattr(tempfile, "gettempdir", fail)
  with pytest.raises(InputError, match="set TMPDIR to one"), disk.temporary():
    pass
