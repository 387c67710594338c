"""What `benchmarks.targets` says where it cannot compile."""

import subprocess

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from benchmarks import plain_step, targets
from ssl_music.errors import InputError

LOCK = 'Internal error when accessing libtpu multi-process lockfile. Run "$ s'
UNKNOWN = "Invalid TPU external name: TPU v6e"


@pytest.mark.parametrize(
  ("said", "message"),
  [(LOCK, "another process .* its lock: wait"), (UNKNOWN, f"v6e:1.*{UNKNOWN}")],
)
def test_a_compiler_that_refuses(monkeypatch, said, message):
  def refuse(*_, **__):
    raise RuntimeError(said)

  monkeypatch.setattr(topologies, "get_topology_desc", refuse)
  with pytest.raises(InputError, match=message):
    targets.make_mesh("v6e:1")


def test_an_unknown_device():
  with pytest.raises(InputError, match=r"no device 'v9z'.* v5e:1"):
    targets.environment("v9z")


@pytest.mark.parametrize("extra", ["tpu", "cuda12"])
def test_no_package_index(monkeypatch, tmp_path, extra):
  def pip(command, **_):
    wanted = [word for word in command if word.startswith(("libtpu", "jax-"))]
    assert len(wanted) == 1
    return subprocess.CompletedProcess(command, 1, "", "ERROR: No network\n")

  monkeypatch.setattr(subprocess, "run", pip)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  with pytest.raises(InputError, match=r"installed \(ERROR: No network\)"):
    targets.wheels(extra)


def test_the_peer_is_as_large_as_the_published_network():
  init = plain_step.Network("bfloat16").init
  mel = jnp.zeros((2, 128, 126, 1))
  made = jax.eval_shape(init, jax.random.key(0), mel)
  count = sum(x.size for x in jax.tree.leaves(made["params"]))
  backbone, matrices, norms = 2_800_392, 2**20 + 2**20 + 2**21, 2 * 2 * 1024
  assert count == backbone + matrices + norms
