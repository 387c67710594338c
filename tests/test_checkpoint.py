import resource
import shutil

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


LOSSES = {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.7, 5: 0.8}


@pytest.fixture
def run(tmp_path):
  with checkpoint.open_run(tmp_path) as manager:
    for step, loss in LOSSES.items():
      checkpoint.save(manager, step, state(step), {"loss": loss})
  return tmp_path


def test_keeps_the_two_latest_and_the_best(run):
  with checkpoint.open_run(run) as manager:
    assert sorted(manager.all_steps()) == [2, 4, 5]


def test_nothing_is_compiled_to_save(tmp_path):
  """Not a program for every shape, where several devices hold the state."""
  wide = state(1) | {
    "memory": parallel.replicate(jnp.ones(64), parallel.make_mesh())
  }
  compiled = []

  def listen(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  jnp.ones(3) @ jnp.arange(3.0)
  assert compiled  # such as this
  compiled.clear()
  with checkpoint.open_run(tmp_path) as manager:
    checkpoint.save(manager, 1, wide, None)
  assert not compiled


def test_without_the_latest_the_one_before_goes_on(run):
  shutil.rmtree(run / "checkpoints" / "5")  # as advised where it is damaged
  with checkpoint.open_run(run) as manager:
    assert checkpoint.restore(manager, state(0))["step"] == 4


def test_without_metrics_it_is_latest_but_never_best(run):
  with checkpoint.open_run(run) as manager:
    checkpoint.save(manager, 6, state(6), None)
  assert checkpoint.load(run, "latest")[0] == 6
  assert checkpoint.load(run, "best")[0] == 2
  with checkpoint.open_run(run) as manager:
    checkpoint.save(manager, 7, state(7), {"loss": 0.3})
  with checkpoint.open_run(run) as manager:
    assert sorted(manager.all_steps()) == [2, 6, 7]


NAN = float("nan")


@pytest.mark.parametrize(
  ("metrics", "best"),
  [
    ([{"loss": 3.0}, {"loss": 1.0}, {"loss": 2.0}], 2),
    ([{"loss": 3.0}, {"loss": NAN}, {"loss": 4.0}], 1),
    # The probe's word counts more than the loss, which falls all along.
    (
      [
        {"loss": 3.0, "validation_map": 0.3, "knn_map": 0.9},
        {"loss": 2.0, "validation_map": 0.5, "knn_map": 0.2},
        {"loss": 1.0, "validation_map": 0.4, "knn_map": 0.3},
      ],
      2,
    ),
    (
      [
        {"loss": 3.0, "validation_map": 0.3},
        {"loss": 2.0, "validation_map": NAN},
        {"loss": 1.0, "validation_map": NAN},
      ],
      1,
    ),
    (
      [
        {"loss": 3.0, "validation_map": NAN},
        {"loss": 2.0, "validation_map": np.float32(0.1)},
        None,
      ],
      2,
    ),
  ],
)
def test_best_is_highest_validation_map_else_lowest_loss(
  tmp_path, metrics, best
):
  with checkpoint.open_run(tmp_path) as manager:
    for step, one in enumerate(metrics, start=1):
      checkpoint.save(manager, step, state(step), one)
  assert checkpoint.load(tmp_path, "best")[0] == best
  assert checkpoint.load(tmp_path, "latest")[0] == 3


def test_where_no_score_is_finite_none_is_best(tmp_path):
  with checkpoint.open_run(tmp_path) as manager:
    for step in (1, 2):
      metrics = {"loss": 1.0, "validation_map": NAN}
      checkpoint.save(manager, step, state(step), metrics)
  assert checkpoint.load(tmp_path)[0] == 2
  with pytest.raises(InputError, match="no checkpoint 'best'"):
    checkpoint.load(tmp_path, "best")


def test_loads_the_teacher(tmp_path):
  mesh = parallel.make_mesh()
  slow = {key: state(7)[key] for key in ("params", "batch_stats")}
  more = {"teacher": slow, "memory": jnp.ones((4, 2))}
  with checkpoint.open_run(tmp_path) as manager:
    both = parallel.replicate(state(3) | more, mesh)
    checkpoint.save(manager, 3, both, {"loss": 1.0})
  for network, value in (("student", 3), ("teacher", 7)):
    step, loaded = checkpoint.load(tmp_path, "latest", network)
    assert step == 3
    assert set(loaded) == {"params", "batch_stats"}
    for kind in loaded:
      jax.tree.map(
        np.testing.assert_array_equal, loaded[kind], state(value)[kind]
      )
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoint.load(tmp_path)[1]["params"],
    state(3)["params"],
  )


@pytest.mark.parametrize("more", [{}, {"teacher": {}}, {"teacher": None}])
def test_a_run_without_a_teacher_is_explained(tmp_path, more):
  with checkpoint.open_run(tmp_path) as manager:
    checkpoint.save(manager, 1, state(1) | more, {"loss": 1.0})
  assert checkpoint.load(tmp_path)[0] == 1
  with pytest.raises(InputError, match=r"has no teacher: .*network=student"):
    checkpoint.load(tmp_path, "latest", "teacher")
  with pytest.raises(InputError, match="no network 'master': set"):
    checkpoint.load(tmp_path, "latest", "master")


@pytest.mark.parametrize(
  ("which", "step"), [("latest", 5), ("best", 2), (2, 2)]
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
  jax.tree.map(np.testing.assert_array_equal, restored, state(5))
  assert restored["step"].sharding.device_set == set(mesh.devices.flat)


def test_a_new_run_has_nothing(tmp_path):
  with checkpoint.open_run(tmp_path) as manager:
    assert checkpoint.restore(manager, state(0)) is None


def test_missing_checkpoints_are_explained(run, tmp_path):
  with pytest.raises(InputError, match=r"no checkpoint 3 in .*there: 2, 4, 5"):
    checkpoint.load(run, 3)
  with pytest.raises(InputError, match="no checkpoint 'latest'"):
    checkpoint.load(tmp_path / "absent")


def test_damaged_checkpoints_are_explained(run):
  for file in (run / "checkpoints" / "5" / "default").rglob("*"):
    if file.is_file():
      file.write_bytes(b"damaged")
  with pytest.raises(InputError, match=r"unreadable checkpoint .*delete"):
    checkpoint.load(run)
  with (
    checkpoint.open_run(run) as manager,
    pytest.raises(InputError, match="unreadable checkpoint"),
  ):
    checkpoint.restore(manager, state(0))


def test_a_flipped_bit_is_noticed(tmp_path):
  # Among an array's bytes, of which Orbax keeps no checksum.
  rng = np.random.default_rng(0)
  noise = {"kernel": rng.standard_normal(4096).astype(np.float32)}
  saved = state(1) | {"params": {"backbone": noise}}
  with checkpoint.open_run(tmp_path) as manager:
    checkpoint.save(manager, 1, saved, {"loss": 1.0})
  files = (tmp_path / "checkpoints" / "1").rglob("*")
  file = max(files, key=lambda file: file.stat().st_size)
  whole = bytearray(file.read_bytes())
  whole[len(whole) // 2] ^= 1
  file.write_bytes(whole)
  for which in ("latest", 1, "1"):
    with pytest.raises(InputError, match="its params are not what was saved"):
      checkpoint.load(tmp_path, which)
  with (
    checkpoint.open_run(tmp_path) as manager,
    pytest.raises(InputError, match="its params are not what was saved"),
  ):
    checkpoint.restore(manager, saved)


def test_a_full_disk_is_explained(tmp_path):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    with (
      pytest.raises(InputError, match=r"cannot save .*File too large.*free"),
      checkpoint.open_run(tmp_path) as manager,
    ):
      checkpoint.save(manager, 1, state(1), {"loss": 1.0})
      manager.wait_until_finished()
      resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
      checkpoint.save(manager, 2, state(2), {"loss": 1.0})
      checkpoint.save(manager, 3, state(3), {"loss": 1.0})
  finally:  # not before Orbax's threads have ended: they may be writing yet
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert checkpoint.load(tmp_path)[0] == 1


def test_reading_does_not_disturb_a_save_in_progress(run):
  unfinished = run / "checkpoints" / "5.orbax-checkpoint-tmp-1"
  unfinished.mkdir()
  checkpoint.load(run)
  assert unfinished.exists()
