import os
import subprocess
import sys

SCRIPT = """
import jax
from ssl_music import compiled

compiled.keep()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_log_compiles", True)
jax.jit(lambda x: x * 2 + 1)(1.0)
"""


def run(folder, **settings):
  """Compiles in a new process; returns what it says of compiling."""
  environment = os.environ | {"XDG_CACHE_HOME": str(folder)} | settings
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    capture_output=True,
    text=True,
    env=environment,
    check=True,
  )
  return done.stderr


def test_programs_are_found_by_the_next_process(tmp_path):
  assert "Persistent compilation cache hit" not in run(tmp_path)
  assert any((tmp_path / "ssl_music" / "compiled").rglob("*-cache"))
  assert "Persistent compilation cache hit" in run(tmp_path)


def test_a_folder_that_is_given_stands(tmp_path):
  run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
  assert any((tmp_path / "own").iterdir())
  assert not (tmp_path / "ssl_music").exists()
