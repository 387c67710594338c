"""Eight CPU devices for every test; it must be said before jax is imported."""

import os

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest
import tiny
from absl import flags


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory, worker_id):
  """Many tests run the same program: it is compiled once a session."""
  base = tmp_path_factory.getbasetemp()
  # Of several processes, each has its own below the session's.
  folder = (base if worker_id == "master" else base.parent) / "compiled"
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session", autouse=True)
def _parsed_flags():
  flags.FLAGS(["tests"])  # Grain's workers read flags


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """A folder with the data set "tiny"."""
  folder = tmp_path_factory.mktemp("data")
  tiny.write(folder)
  return folder
