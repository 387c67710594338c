import errno
import json
import logging
import os
import re
import resource
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
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
  with checkpoint.open_run(tmp_path) as opened:
    for step, loss in LOSSES.items():
      checkpoint.save(opened, step, state(step), {"loss": loss})
  return tmp_path


def test_keeps_the_two_latest_and_the_best(run):
  with checkpoint.open_run(run) as opened:
    assert sorted(opened.manager.all_steps()) == [2, 4, 5]


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
  with checkpoint.open_run(tmp_path) as opened:
    checkpoint.save(opened, 1, wide, None)
  assert not compiled


def test_without_the_latest_the_one_before_goes_on(run):
  shutil.rmtree(run / "checkpoints" / "5")
  with checkpoint.open_run(run) as opened:
    assert checkpoint.restore(opened, state(0))["step"] == 4


def test_without_metrics_it_is_latest_but_never_best(run):
  with checkpoint.open_run(run) as opened:
    checkpoint.save(opened, 6, state(6), None)
  assert checkpoint.load(run, "latest")[0] == 6
  assert checkpoint.load(run, "best")[0] == 2
  with checkpoint.open_run(run) as opened:
    checkpoint.save(opened, 7, state(7), {"loss": 0.3})
  with checkpoint.open_run(run) as opened:
    assert sorted(opened.manager.all_steps()) == [2, 6, 7]


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
  with checkpoint.open_run(tmp_path) as opened:
    for step, one in enumerate(metrics, start=1):
      checkpoint.save(opened, step, state(step), one)
  assert checkpoint.load(tmp_path, "best")[0] == best
  assert checkpoint.load(tmp_path, "latest")[0] == 3


def test_where_no_score_is_finite_none_is_best(tmp_path):
  with checkpoint.open_run(tmp_path) as opened:
    for step in (1, 2):
      metrics = {"loss": 1.0, "validation_map": NAN}
      checkpoint.save(opened, step, state(step), metrics)
  assert checkpoint.load(tmp_path)[0] == 2
  with pytest.raises(InputError, match="no checkpoint 'best'"):
    checkpoint.load(tmp_path, "best")


def test_loads_the_teacher(tmp_path):
  mesh = parallel.make_mesh()
  slow = {key: state(7)[key] for key in ("params", "batch_stats")}
  more = {"teacher": slow, "memory": jnp.ones((4, 2))}
  with checkpoint.open_run(tmp_path) as opened:
    both = parallel.replicate(state(3) | more, mesh)
    checkpoint.save(opened, 3, both, {"loss": 1.0})
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
  with checkpoint.open_run(tmp_path) as opened:
    checkpoint.save(opened, 1, state(1) | more, {"loss": 1.0})
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
  with checkpoint.open_run(run) as opened:
    restored = checkpoint.restore(opened, state(0, mesh))
  jax.tree.map(np.testing.assert_array_equal, restored, state(5))
  assert restored["step"].sharding.device_set == set(mesh.devices.flat)


def test_a_new_run_has_nothing(tmp_path):
  with checkpoint.open_run(tmp_path) as opened:
    assert checkpoint.restore(opened, state(0)) is None


def test_missing_checkpoints_are_explained(run, tmp_path):
  with pytest.raises(InputError, match=r"no checkpoint 3 in .*there: 2, 4, 5"):
    checkpoint.load(run, 3)
  with pytest.raises(InputError, match="no checkpoint 'latest'"):
    checkpoint.load(tmp_path / "absent")


def flip(file, place=None):
  content = bytearray(file.read_bytes())
  content[len(content) // 2 if place is None else place] ^= 1
  file.write_bytes(content)


def damage_all(folder):
  for file in folder.rglob("*"):
    if file.is_file():
      file.write_bytes(b"damaged")


def resumed(run, like=None):
  """The step that a training goes on from."""
  with checkpoint.open_run(run) as opened:
    found = checkpoint.restore(opened, state(0) if like is None else like)
  return found["step"]


@pytest.mark.parametrize(
  "damage",
  [
    lambda step: damage_all(step / "default"),
    lambda step: (step / "_CHECKPOINT_METADATA").write_bytes(b""),
    lambda step: (step / "default" / "_METADATA").unlink(),
    lambda step: shutil.rmtree(step / "default" / "d"),
    lambda step: shutil.rmtree(step / "default"),
  ],
)
def test_the_newest_whole_one_is_used(run, damage, caplog):
  damage(run / "checkpoints" / "5")
  assert checkpoint.load(run)[0] == 4
  assert checkpoint.load(run, "best")[0] == 2
  with pytest.raises(InputError, match=r"s/5 is damaged \(.* there: 2, 4\)"):
    checkpoint.load(run, 5)
  caplog.clear()
  assert resumed(run) == 4
  assert re.findall(r"checkpoints/(\d) is damaged", caplog.text) == ["5"]
  assert (run / "checkpoints" / "5").is_dir()  # somebody may look at it


def test_a_damaged_one_is_replaced_when_its_step_comes_again(run):
  damage_all(run / "checkpoints" / "5" / "default")
  with checkpoint.open_run(run) as opened:
    assert checkpoint.restore(opened, state(0))["step"] == 4
    checkpoint.save(opened, 5, state(50), {"loss": 0.05})
    checkpoint.save(opened, 6, state(60), {"loss": 0.9})
  assert checkpoint.load(run, "best")[0] == 5
  _, found = checkpoint.load(run, 5)
  assert found["params"]["backbone"]["kernel"][0] == 50


def test_the_best_may_be_damaged(run, caplog):
  flip(run / "checkpoints" / "2" / "_CHECKPOINT_METADATA")
  assert checkpoint.load(run, "best")[0] == 4
  assert "checkpoints/2 is damaged" in caplog.text
  assert checkpoint.load(run)[0] == 5
  with checkpoint.open_run(run) as opened:  # and it harms no later one
    checkpoint.save(opened, 6, state(6), {"loss": 0.3})
  assert checkpoint.load(run, "best")[0] == 6


def test_where_all_are_damaged_nothing_begins_anew(run):
  damage_all(run / "checkpoints")
  for read in (checkpoint.load, resumed):
    with pytest.raises(
      InputError, match=r"every checkpoint in .* \(steps 2, 4, 5\): restore"
    ):
      read(run)


def test_a_flipped_bit_is_noticed(tmp_path, caplog):
  # Among an array's bytes, of which Orbax keeps no checksum.
  rng = np.random.default_rng(0)
  noise = {"kernel": rng.standard_normal(4096).astype(np.float32)}
  saved = state(1) | {"params": {"backbone": noise}}
  with checkpoint.open_run(tmp_path) as opened:
    checkpoint.save(opened, 1, saved, {"loss": 1.0})
  files = (tmp_path / "checkpoints" / "1").rglob("*")
  flip(max(files, key=lambda file: file.stat().st_size))
  for which in (1, "1"):
    with pytest.raises(InputError, match="its params are not what was saved"):
      checkpoint.load(tmp_path, which)
  with pytest.raises(InputError, match="every checkpoint"):
    resumed(tmp_path, saved)
  assert "its params are not what was saved" in caplog.text


def test_another_network_is_no_damage(run):
  wider = state(0)
  wider["params"]["backbone"]["kernel"] = jnp.zeros((2, 9))
  for like in (wider, {"step": jnp.int32(0), "weights": jnp.zeros(3)}):
    with pytest.raises(InputError, match=r"s/5 is whole, but not of this"):
      resumed(run, like)


@pytest.mark.parametrize(
  ("number", "advice"),
  [
    (errno.EACCES, "make it readable"),
    (errno.EMFILE, "allow more open files"),
    (errno.EIO, "check its disk"),
  ],
)
def test_what_the_system_refuses_is_no_damage(run, monkeypatch, number, advice):
  text = f"UNKNOWN: opening [OS error {number}: {os.strerror(number)}]"

  def refuse(*_, **__):
    raise ValueError(text)

  monkeypatch.setattr(ocp.Checkpointer, "restore", refuse)
  monkeypatch.setattr(ocp.CheckpointManager, "restore", refuse)
  for read in (checkpoint.load, resumed):
    with pytest.raises(
      InputError, match=rf"cannot read .*5.* \({os.strerror(number)}.*{advice}"
    ):
      read(run)


def test_what_jax_lacks_is_no_damage(run, monkeypatch):
  def refuse(*_):
    raise RuntimeError("Unable to initialize backend 'cuda'")

  monkeypatch.setattr(jax, "devices", refuse)
  before = jax.config.jax_platforms
  jax.config.update("jax_platforms", "cuda")
  try:
    for read in (checkpoint.load, resumed):
      with pytest.raises(
        InputError, match=r"=cuda .*jax does not find .*unset"
      ):
        read(run)
  finally:
    jax.config.update("jax_platforms", before)


def test_older_runs_are_read(run):
  """Orbax kept the metrics in files of their own."""
  for step, loss in LOSSES.items():
    folder = run / "checkpoints" / str(step)
    if folder.is_dir():
      file = folder / "_CHECKPOINT_METADATA"
      about = json.loads(file.read_text())
      about["custom_metadata"] = {
        "checksums": about["custom_metadata"]["checksums"]
      }
      about["item_handlers"]["metrics"] = (
        "orbax.checkpoint._src.handlers.json_checkpoint_handler"
        ".JsonCheckpointHandler"
      )
      file.write_text(json.dumps(about))
      (folder / "metrics").mkdir()
      (folder / "metrics" / "metrics").write_text(f'{{"loss": {loss}}}')
  assert [checkpoint.load(run, w)[0] for w in ("latest", "best")] == [5, 2]
  # What a power cut leaves of an old one.
  (run / "checkpoints" / "2" / "metrics" / "metrics").write_text("")
  assert [checkpoint.load(run, w)[0] for w in ("latest", "best")] == [5, 4]
  assert resumed(run) == 5


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?", "a\\b"])
def test_a_path_that_could_not_be_read_back_is_refused(tmp_path, name):
  for use in (resumed, checkpoint.load):
    with pytest.raises(InputError, match=r"has the character .*take a path"):
      use(tmp_path / name)
  assert not (tmp_path / name).exists()


def test_the_first_save_is_read_back(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, "_PATTERNS", "")
  with (
    pytest.raises(InputError, match=r"1 cannot be read back \(.*--workdir"),
    checkpoint.open_run(tmp_path / "run[1]") as opened,
  ):
    checkpoint.save(opened, 1, state(1), {"loss": 1.0})


def test_logging_is_left_as_it_was(run):
  loggers = [logging.getLogger(name) for name in ("", "absl", "asyncio")]
  now = lambda: [
    (one.level, list(one.handlers), list(one.filters)) for one in loggers
  ]
  before, hook = now(), sys.unraisablehook
  checkpoint.load(run)
  assert resumed(run) == 5
  assert now() == before
  assert sys.unraisablehook is hook


def test_a_full_disk_is_explained(tmp_path):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    with (
      pytest.raises(InputError, match=r"cannot save .*File too large.*free"),
      checkpoint.open_run(tmp_path) as opened,
    ):
      checkpoint.save(opened, 1, state(1), {"loss": 1.0})
      opened.manager.wait_until_finished()
      resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
      checkpoint.save(opened, 2, state(2), {"loss": 1.0})
      checkpoint.save(opened, 3, state(3), {"loss": 1.0})
  finally:  # not before Orbax's threads have ended: they may be writing yet
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert checkpoint.load(tmp_path)[0] == 1


def test_reading_does_not_disturb_a_save_in_progress(run):
  unfinished = run / "checkpoints" / "5.orbax-checkpoint-tmp-1"
  unfinished.mkdir()
  checkpoint.load(run)
  assert unfinished.exists()
