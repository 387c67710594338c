"""Eight CPU devices for every test; it must be said before jax is imported."""

import os

# With two processes on two cores there is nobody to compile parts for, and to
# make them costs a tenth of the time.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  + " --xla_cpu_parallel_codegen_split_count=1"
)
# Else submitit closes all handlers of logs, and absl's closes pytest's stream.
os.environ["SUBMITIT_LOG_LEVEL"] = "NOCONFIG"

import signal
from pathlib import Path

import jax
import pytest
import tiny
from absl import flags

# What starts the tests may ignore Ctrl-C, and their processes would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A cluster of the tests' own: none that people work with gets their jobs.
_SLURM = "ClusterName=ssl_music_tests"


def _has_slurm():
  file = os.environ.get("SLURM_CONF")
  return file and Path(file).is_file() and _SLURM in Path(file).read_text()


def pytest_collection_modifyitems(config, items):
  """Leaves out what needs SLURM, where `tests/slurm/start.sh` has not run."""
  if _has_slurm():
    return
  without = [item for item in items if item.get_closest_marker("slurm")]
  if without:
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in without]


def pytest_terminal_summary(terminalreporter):
  if not _has_slurm():
    terminalreporter.write_line(
      "tests marked slurm were left out: no cluster of the tests' own is"
      ' running; start it by: eval "$(tests/slurm/start.sh DIR)"'
    )


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
