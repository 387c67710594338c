import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_music import checkpoint, parallel
from ssl_music.errors import InputError


def state(value, mesh=None):
  tree = {
    "step": jnp.int32(value),
    "params": {"backbone": {"kernel": jnp.arange(4.0) + value}},
    "batch_stats": {"backbone": {"mean": jnp.full(3, value, jnp.float32)}},
    "opt_state": ((), {"mu": jnp.ones(2)}),
  }
  return parallel.replicate(tree, mesh or parallel.make_mesh())


LOSSES = {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.7}


@pytest.fixture
def run(tmp_path):
  with checkpoint.open_run(tmp_path) as manager:
    for step, loss in LOSSES.items():
      checkpoint.save(manager, step, state(step), loss)
  return tmp_path


def test_keeps_latest_and_best(run):
  with checkpoint.open_run(run) as manager:
    assert sorted(manager.all_steps()) == [2, 4]


def test_without_a_loss_it_is_latest_but_never_best(run):
  with checkpoint.open_run(run) as manager:
    checkpoint.save(manager, 5, state(5), None)
  assert checkpoint.load(run, "latest")[0] == 5
  assert checkpoint.load(run, "best")[0] == 2
  with checkpoint.open_run(run) as manager:
    checkpoint.save(manager, 6, state(6), 0.3)
  with checkpoint.open_run(run) as manager:
    assert sorted(manager.all_steps()) == [2, 6]


@pytest.mark.parametrize(
  ("which", "step"), [("latest", 4), ("best", 2), (2, 2)]
)
def test_loads_the_network_alone(run, which, step):
  found, loaded = checkpoint.load(run, which)
  assert found == step
  assert set(loaded) == {"params", "batch_stats"}
  kernel = loaded["params"]["backbone"]["kernel"]
  assert isinstance(kernel, np.ndarray)
  np.testing.assert_array_equal(kernel, np.arange(4.0) + step)


@pytest.mark.parametrize("devices", [1, 8])
def test_restores_on_any_number_of_devices(run, devices):
  mesh = parallel.make_mesh(jax.devices()[:devices])
  with checkpoint.open_run(run) as manager:
    restored = checkpoint.restore(manager, state(0, mesh))
  jax.tree.map(np.testing.assert_array_equal, restored, state(4))
  assert restored["step"].sharding.device_set == set(mesh.devices.flat)


def test_a_new_run_has_nothing(tmp_path):
  with checkpoint.open_run(tmp_path) as manager:
    assert checkpoint.restore(manager, state(0)) is None


def test_missing_checkpoints_are_explained(run, tmp_path):
  with pytest.raises(InputError, match=r"no checkpoint 3 in .*there: 2, 4"):
    checkpoint.load(run, 3)
  with pytest.raises(InputError, match="no checkpoint 'latest'"):
    checkpoint.load(tmp_path / "absent")


def test_damaged_checkpoints_are_explained(run):
  for file in (run / "checkpoints" / "4" / "default").rglob("*"):
    if file.is_file():
      file.write_bytes(b"damaged")
  with pytest.raises(InputError, match=r"unreadable checkpoint .*delete"):
    checkpoint.load(run)
  with (
    checkpoint.open_run(run) as manager,
    pytest.raises(InputError, match="unreadable checkpoint"),
  ):
    checkpoint.restore(manager, state(0))


def test_reading_does_not_disturb_a_save_in_progress(run):
  unfinished = run / "checkpoints" / "5.orbax-checkpoint-tmp-1"
  unfinished.mkdir()
  checkpoint.load(run)
  assert unfinished.exists()
