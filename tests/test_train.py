import functools
import importlib
import json
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ssl_music import checkpoint, lock, parallel, train, workdir
from ssl_music.data import writer
from ssl_music.errors import InputError

LENGTHS = {"warmup": 2, "total": 12}


def losses(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def unbroken(data_dir, tmp_path_factory):
  """The config, workdir and final state of a run without interruption."""
  config = tiny.pretraining(data_dir)
  folder = tmp_path_factory.mktemp("runs") / "unbroken"
  return config, folder, jax.device_get(train.train(config, folder))


def test_leaves_metrics_events_and_checkpoints(unbroken):
  config, folder, state = unbroken
  assert state["step"] == 12
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  entries = [json.loads(line) for line in lines]
  assert [entry["step"] for entry in entries] == [2, 4, 6, 8, 10, 12]
  expected = {
    "accuracy",
    "embedding_rank",
    "embedding_std",
    "gradient_norm",
    "learning_rate",
    "loss",
    "segments_per_second",
    "step",
    "waiting_for_data",
    "weight_decay",
  }
  for entry in entries:
    assert set(entry) == expected
    assert 0 <= entry["waiting_for_data"] <= 1
    assert 1 <= entry["embedding_rank"] <= 16
  assert entries[-1]["learning_rate"] < entries[0]["learning_rate"]
  assert entries[-1]["loss"] < entries[0]["loss"]
  assert list(folder.glob("events*"))
  saved = workdir.read_config(folder)
  assert len(saved["data"].pop("fingerprint")) == 12
  assert saved == json.loads(json.dumps(config.to_dict()))


def test_a_finished_run_is_not_run_again(unbroken):
  config, folder, state = unbroken
  before = (folder / "metrics.jsonl").read_text()
  assert_same(jax.device_get(train.train(config, folder)), state)
  assert (folder / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("stop_after", [3, 4, 9])
def test_resumes_bit_for_bit(unbroken, tmp_path, monkeypatch, stop_after):
  config, folder, state = unbroken
  request = iter([0] * (stop_after - 1) + [signal.SIGTERM])
  with monkeypatch.context() as patch:
    patch.setattr(workdir, "stop_on_signals", _fake_signals(request))
    with pytest.raises(workdir.Stopped, match=f"at step {stop_after} of 12"):
      train.train(config, tmp_path)
  assert_same(jax.device_get(train.train(config, tmp_path)), state)
  kept = losses(folder)
  resumed = losses(tmp_path)
  assert {step: resumed[step] for step in kept if step > stop_after + 1} == {
    step: kept[step] for step in kept if step > stop_after + 1
  }


def _fake_signals(answers):
  import contextlib

  @contextlib.contextmanager
  def stop_on_signals():
    yield lambda: next(answers, 0)

  return stop_on_signals


def test_metrics_after_the_checkpoint_are_cut(unbroken, tmp_path):
  _, folder, _ = unbroken
  text = (folder / "metrics.jsonl").read_text() + '{"step": 13, "lo'
  (tmp_path / "metrics.jsonl").write_text(text)
  with workdir.open_metrics(tmp_path, 6) as write:
    write(8, {"loss": 1.0})
  assert sorted(losses(tmp_path)) == [2, 4, 6, 8]


def test_another_config_is_refused(unbroken, data_dir):
  _, folder, _ = unbroken
  config = tiny.pretraining(data_dir, seed=1)
  with pytest.raises(InputError, match=r"another config \(seed: 0 -> 1\)"):
    train.train(config, folder)
  config = tiny.pretraining(data_dir, log_every_steps=5)
  config.data.workers = 1
  train.train(config, folder)  # what does not change the numbers may change


def test_changed_data_are_noticed(unbroken, tmp_path):
  _, folder, _ = unbroken
  rows = tiny.tracks()[:20]
  writer.write("tiny", rows, tiny.waveform, tags=tiny.TAGS, data_dir=tmp_path)
  with pytest.raises(InputError, match=r"another config \(data.fingerprint"):
    train.train(tiny.pretraining(tmp_path), folder)


def test_a_busy_workdir_is_refused(unbroken):
  config, folder, _ = unbroken
  with (
    lock.hold(folder, "testing", "wait"),
    pytest.raises(InputError, match="another process is running in"),
  ):
    train.train(config, folder)


def test_divergence_stops_with_a_word(data_dir, tmp_path):
  config = tiny.pretraining(data_dir)
  config.optimizer.learning_rate = 1e30
  config.save_every_steps = 1
  with pytest.raises(InputError, match="training has diverged"):
    train.train(config, tmp_path)
  step, state = checkpoint.load(tmp_path)
  assert step < 12
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["params"]))


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_other_tasks_learn(data_dir, tmp_path, name):
  get_config = importlib.import_module(f"configs.{name}").get_config
  config = tiny.pretraining(data_dir)
  config.pretext = get_config().pretext
  config.pretext.head = (16, 8)
  train.train(config, tmp_path)
  found = losses(tmp_path)
  assert found[12] < found[2]


def test_mixing_needs_groups_on_every_device(data_dir, tmp_path):
  config = tiny.pretraining(data_dir)
  config.augment.mix = 0.2
  with pytest.raises(InputError, match="multiple of 8 items on every device"):
    train.train(config, tmp_path)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"batch": 12}, "does not divide over 8 devices.* to 8 or 16"),
    ({"views": 1}, "1 views"),
    ({"warmup_steps": 12}, "not shorter than the 12 steps"),
    ({"total_steps": 0}, "gives no total"),
    ({"total_epochs": 2}, "total_steps and total_epochs"),
    ({"batch": 0}, "batch=0 is too small: give 1"),
    ({"seed": -1}, "seed=-1 is too small: give 0"),
    ({"data.workers": -1}, "workers=-1 is too small"),
    ({"frontend.hop": 0}, "hop=0 is too small"),
    ({"model.dtype": "float99"}, "float99"),
    ({"pretext.name": "jigsaw"}, "no pretext task 'jigsaw'"),
    ({"augment.mix": 0.7}, "mix"),
    ({"model.heads": 3}, "heads"),
    ({"frontend.n_mels": 16}, "at least 31 bands"),
    ({"frontend.hop": 500}, "multiple of hop"),
    ({"data.name": "absent"}, "no data set 'absent'"),
  ],
)
def test_mistakes_are_explained(data_dir, tmp_path, fields, message):
  config = tiny.pretraining(data_dir)
  config.update_from_flattened_dict(fields)
  with pytest.raises(InputError, match=message):
    train.train(config, tmp_path)
  assert not list(tmp_path.iterdir())


@functools.cache
def settings():
  # In float64: in float32, the gradients through batch norm are so
  # ill-conditioned that rounding would hide a mistake of 1 %.
  config = tiny.pretraining("unused", batch=32)
  config.model.dtype = "float64"
  return config.to_dict()


@functools.cache
def stepped(mapping):
  """State, metrics and embeddings after two steps, by one way of mapping."""
  with jax.enable_x64(True):
    rates = train.learning_schedules(settings(), LENGTHS)
    optimizer = train.make_optimizer(settings(), rates)
    state = train.init_state(settings(), optimizer)
    rng = np.random.default_rng(0)
    batches = rng.integers(-9999, 9999, (2, 2, 32, 16_000)).astype(np.int16)
    if mapping == "pmap":
      step = jax.pmap(
        train.make_train_step(settings(), optimizer),
        axis_name=parallel.AXIS,
        in_axes=(None, 1),
        out_axes=(None, None, 1),
      )
      for batch in batches:
        split = batch.reshape(2, 8, 4, 16_000)
        state, metrics, embedding = step(state, jnp.asarray(split))
      embedding = embedding.reshape(2, 32, -1)
    else:
      mesh = parallel.make_mesh(jax.devices()[:mapping])
      step = train.map_train_step(settings(), optimizer, mesh)
      state = parallel.replicate(state, mesh)
      for batch in batches:
        sharded = parallel.shard(batch, mesh, axis=1)
        state, metrics, embedding = step(state, sharded)
    return jax.device_get((state, metrics, embedding))


@pytest.mark.parametrize("mapping", [8, "pmap"])
def test_devices_make_no_difference(mapping):
  one, other = stepped(1), stepped(mapping)

  def compare(path, a, b):
    # A softmax ignores what the keys' bias adds to all its scores, and the
    # head's batch norm what the others add to all embeddings: their gradients
    # are nothing but rounding, which AdamW scales up.
    name = jax.tree_util.keystr(path)
    if not re.search(r"\['[kvc]_proj'\]\['bias'\]", name):
      distance = np.linalg.norm(a - b)
      assert distance <= 1e-5 * max(np.linalg.norm(a), 1e-3), name

  # Parameters, batch statistics, both of AdamW's moments (which hold the
  # gradients), loss and gradient norm, and every item's embedding.
  jax.tree_util.tree_map_with_path(compare, one, other)
