import gzip
import json
import shutil
import signal

import jax
import numpy as np
import pytest
import small
import tiny

from ssl_music import checkpoint, encoder, lock, train, workdir
from ssl_music.errors import InputError

RESNET = encoder.backbone


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
  with small.backbone():
    yield


def losses(folder):
  entries = workdir.read_metrics(folder)
  return {entry["step"]: entry["loss"] for entry in entries}


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
  entries = workdir.read_metrics(folder)
  assert [entry["step"] for entry in entries] == [2, 4, 6, 8, 10, 12]
  expected = {
    "accuracy",
    "collapsed",
    "embedding_cosine",
    "embedding_rank",
    "embedding_std",
    "gradient_norm",
    "learning_rate",
    "loss",
    "probing",
    "projection_cosine",
    "projection_rank",
    "projection_std",
    "segments_per_second",
    "step",
    "waiting_for_data",
    "weight_decay",
  }
  for entry in entries:
    assert set(entry) == expected
    assert 0 <= entry["waiting_for_data"] <= 1
    assert entry["probing"] == entry["collapsed"] == 0
    assert 1 <= entry["embedding_rank"] <= 16
  assert entries[-1]["learning_rate"] < entries[0]["learning_rate"]
  assert entries[-1]["loss"] < entries[0]["loss"]
  assert list(folder.glob("events*"))
  saved = workdir.read_config(folder)
  assert len(saved["data"].pop("fingerprint")) == 29
  assert saved == json.loads(json.dumps(config.to_dict()))


def test_a_profile_is_of_some_steps_and_changes_nothing(unbroken, tmp_path):
  config, _, state = unbroken
  assert_same(jax.device_get(train.train(config, tmp_path, profile=3)), state)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))  # TensorBoard's
  (file,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
  events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
  steps = [e["args"]["step_num"] for e in events if e.get("name") == "step"]
  assert sorted(map(int, steps)) == [3, 4, 5]


def test_a_finished_run_is_not_run_again(unbroken, capsys):
  config, folder, state = unbroken
  before = (folder / "metrics.jsonl").read_text()
  assert_same(jax.device_get(train.train(config, folder)), state)
  assert (folder / "metrics.jsonl").read_text() == before
  said = capsys.readouterr().err
  assert "contrastive on 8 x cpu: 12 steps of 16 of the 24 tracks of" in said
  assert "compiled in " in said
  assert "goes on" not in said


@pytest.mark.parametrize("stop_after", [3, 4, 9])
def test_resumes_bit_for_bit(
  unbroken, tmp_path, monkeypatch, capsys, stop_after
):
  config, folder, state = unbroken
  request = iter([0] * (stop_after - 1) + [signal.SIGTERM])
  with monkeypatch.context() as patch:
    patch.setattr(workdir, "stop_on_signals", _fake_signals(request))
    with pytest.raises(workdir.Stopped, match=f"at step {stop_after} of 12"):
      train.train(config, tmp_path)
  assert_same(jax.device_get(train.train(config, tmp_path)), state)
  assert f"is at step {stop_after} of 12" in capsys.readouterr().err
  kept = losses(folder)
  resumed = losses(tmp_path)
  assert {step: resumed[step] for step in kept if step > stop_after + 1} == {
    step: kept[step] for step in kept if step > stop_after + 1
  }


def test_a_damaged_checkpoint_costs_its_own_steps_alone(unbroken, tmp_path):
  config, folder, state = unbroken
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  saved = tmp_path / "checkpoints"
  for file in (saved / "12").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")  # as a power cut leaves them
  assert checkpoint.load(tmp_path)[0] < 12
  assert_same(jax.device_get(train.train(config, tmp_path)), state)
  assert losses(tmp_path)[12] == losses(folder)[12]
  assert checkpoint.load(tmp_path)[0] == 12


def test_a_path_that_could_not_be_read_back_is_refused(data_dir, tmp_path):
  with pytest.raises(InputError, match=r"run\[1\] has the character \[, and"):
    train.train(tiny.pretraining(data_dir), tmp_path / "run[1]")
  assert not list(tmp_path.iterdir())


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
  with workdir.open_metrics(tmp_path, 6) as (entries, write):
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    write(8, {"loss": 1.0})
  assert sorted(losses(tmp_path)) == [2, 4, 6, 8]


def test_damaged_metrics_are_left_out(unbroken, tmp_path, caplog):
  _, folder, _ = unbroken
  whole = (folder / "metrics.jsonl").read_bytes()
  wrong = [
    b'{"loss": 1.0}',
    b'{"step": 4',
    b"[4]",
    b"null",
    b"",
    b"\xff\xfe",
    b"[" * 9999,
    b'{"step": "4", "loss": 1}',
    b'{"step": true, "loss": 1}',
    b'{"step": 4.0, "loss": 1}',
    b'{"step": -4, "loss": 1}',
    b'{"step": 4}',
    b'{"step": 4, "loss": NaN}',
    b'{"step": 4, "loss": [1]}',
    b'{"step": 4, "loss": 1' + b"0" * 400 + b"}",
  ]
  again = b'{"step": 2, "loss": 0.5, "knn_map": NaN}\n'
  file = tmp_path / "metrics.jsonl"
  file.write_bytes(b"\n".join(wrong) + b"\n" + whole + again + b'{"step": 14,')
  entries = workdir.read_metrics(tmp_path)
  assert entries[0] == {"step": 2, "loss": 0.5}
  assert entries[1:] == workdir.read_metrics(folder)[1:]
  assert f"{len(wrong)} damaged lines" in caplog.text
  loss = whole.index(b'"loss": ') + len(b'"loss": 0.1')
  digit = bytes([whole[loss] ^ 1])  # another number
  file.write_bytes(whole[:loss] + digit + whole[loss + 1 :])
  assert workdir.read_metrics(tmp_path) == workdir.read_metrics(folder)[1:]
  file.write_bytes(whole)
  with workdir.open_metrics(tmp_path, 6) as (entries, write):
    assert [entry["step"] for entry in entries] == [2, 4, 6]
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


def test_a_run_from_before_a_field_was_there_is_resumed(tmp_path):
  config = {"seed": 0, "views_together": True, "momentum_steps": 0}
  with workdir.claim(tmp_path, {"seed": 0}):
    pass
  with workdir.claim(tmp_path, config):
    pass
  assert workdir.recipe(config) == workdir.recipe({"seed": 0})
  changed = config | {"views_together": False}
  with (
    pytest.raises(InputError, match="views_together only in the new one"),
    workdir.claim(tmp_path, changed),
  ):
    pass


def test_changed_data_are_noticed(unbroken, tmp_path):
  _, folder, _ = unbroken
  tiny.write(tmp_path, rows=tiny.tracks()[:20])
  with pytest.raises(InputError, match=r"another config \(data.fingerprint"):
    train.train(tiny.pretraining(tmp_path), folder)


def _louder(track):
  return [tiny.waveform(track) * 1.01]


def test_other_audio_of_the_same_names_and_lengths_is_noticed(
  unbroken, tmp_path
):
  _, folder, _ = unbroken
  tiny.write(tmp_path, load=_louder)
  with pytest.raises(InputError, match=r"another config \(data.fingerprint"):
    train.train(tiny.pretraining(tmp_path), folder)


def test_a_run_that_knows_but_its_tracks_is_resumed(unbroken, tmp_path):
  """As versions before have written it, whose fingerprint held no audio."""
  config, folder, state = unbroken
  shutil.copytree(folder, tmp_path / "run")
  file = tmp_path / "run" / "config.json"
  saved = json.loads(file.read_text())
  whole = saved["data"]["fingerprint"]
  saved["data"]["fingerprint"] = whole.partition("-")[0]
  file.write_text(json.dumps(saved))
  (tmp_path / "run" / "seal.json").unlink()  # which they did not write
  assert_same(jax.device_get(train.train(config, tmp_path / "run")), state)
  recipes = {
    workdir.recipe(workdir.read_config(f)) for f in (folder, file.parent)
  }
  assert len(recipes) == 1
  saved["data"]["fingerprint"] = "0123456789ab"
  file.write_text(json.dumps(saved))
  with pytest.raises(InputError, match=r"another config \(data.fingerprint"):
    train.train(config, tmp_path / "run")


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


@pytest.mark.parametrize("task", ["barlow_twins", "vicreg", "supervised"])
def test_other_tasks_learn(data_dir, tmp_path, task):
  config = tiny.pretraining(data_dir, task, total_steps=40)
  config.optimizer.learning_rate = 0.01
  train.train(config, tmp_path)
  found = losses(tmp_path)
  mean = lambda first: np.mean([found[first + k] for k in range(0, 10, 2)])
  assert mean(32) < mean(2)
  assert not any(e["collapsed"] for e in workdir.read_metrics(tmp_path))


@pytest.fixture(scope="module", params=["byol", "clustering"])
def taught(request, data_dir, tmp_path_factory):
  """A whole run of a task with a teacher, probed while it goes on."""
  config = tiny.pretraining(data_dir, request.param)
  config.online.data = "tiny"
  config.probe_every_steps = 3
  folder = tmp_path_factory.mktemp("taught")
  return config, folder, jax.device_get(train.train(config, folder))


def test_a_teacher_and_its_memory_resume_bit_for_bit(
  taught, tmp_path, monkeypatch
):
  config, folder, state = taught
  assert ("memory" in state) == (config.pretext.name == "clustering")
  request = iter([0] * 6 + [signal.SIGTERM])
  with monkeypatch.context() as patch:
    patch.setattr(workdir, "stop_on_signals", _fake_signals(request))
    with pytest.raises(workdir.Stopped, match="at step 7 of 12"):
      train.train(config, tmp_path)
  assert_same(jax.device_get(train.train(config, tmp_path)), state)
  assert losses(tmp_path)[12] == losses(folder)[12]
  assert not any(e["collapsed"] for e in workdir.read_metrics(tmp_path))


def test_teacher_and_student_are_both_there_to_probe(taught):
  _, folder, state = taught
  for network, expected in (("student", state), ("teacher", state["teacher"])):
    _, found = checkpoint.load(folder, network=network)
    assert_same(
      found["params"]["backbone"], dict(expected["params"]["backbone"])
    )
  student, teacher = state["params"], state["teacher"]["params"]
  distance = lambda a, b: np.linalg.norm(a["dense_0"]["kernel"] - b)
  assert distance(student["head"], teacher["head"]["dense_0"]["kernel"]) > 0


def test_the_probe_chooses_the_best(taught):
  config, folder, _ = taught
  entries = workdir.read_metrics(folder)
  probed = {e["step"]: e for e in entries if "validation_map" in e}
  assert sorted(probed) == [3, 4, 6, 8, 9, 12]  # every third, and every save
  best = max((4, 8, 12), key=lambda step: probed[step]["validation_map"])
  score = probed[best]["validation_map"]
  step, _ = checkpoint.load(folder, "best")
  assert probed[step]["validation_map"] == score
  assert all(0 < e["probing"] < 1 for e in probed.values())
  assert config.save_every_steps == 4


COLLAPSING = {
  "byol": {"predictor": (), "momentum": 0.0, "final_momentum": 0.0},
  "clustering": {
    "targets": "centring",
    "centre_momentum": 1.0,  # the centre stays 0
    "cosine_prototypes": False,
    "head": (16, 8, 128),
    "momentum": 0.0,
    "final_momentum": 0.0,
  },
}


@pytest.mark.parametrize("task", COLLAPSING)
def test_a_collapse_stops_the_run(data_dir, tmp_path, capsys, task):
  config = tiny.pretraining(data_dir, task, total_steps=200, on_collapse="stop")
  config.pretext.update(COLLAPSING[task])
  config.optimizer.learning_rate = {"byol": 0.1, "clustering": 0.02}[task]
  with pytest.raises(InputError, match=r"collapsed since step \d+: all"):
    train.train(config, tmp_path)
  assert capsys.readouterr().err.count("warning: collapsed since step") == 1
  entries = workdir.read_metrics(tmp_path)
  assert entries[-1]["collapsed"] == 1
  assert entries[-1]["step"] < 200
  # Started again, it remembers.
  with pytest.raises(InputError, match="collapsed since"):
    train.train(config, tmp_path)


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
    ({"accumulate": 3}, "divide over 8 devices in 3 parts.* to 24"),
    ({"pretext.name": "byol"}, "lacks predictor, .* from configs/byol.py"),
    ({"pretext.temperature": 0.0}, "temperature=0.0 is out of range"),
    ({"pretext.head": ()}, "head has no layer"),
    ({"probe_every_steps": 2}, "how often to probe"),
    ({"short_views": 1, "data.short_seconds": 0.1}, "7 frames, got .* 4"),
    ({"short_views": 1, "data.short_seconds": 1.5}, "short_seconds"),
    ({"on_collapse": "weep"}, "on_collapse is 'weep'"),
    ({"optimizer.name": "sgd"}, "no optimiser 'sgd'"),
    ({"online.data": "absent"}, "no data set 'absent'"),
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
    ({"frontend.n_mels": 4}, "at least 7 bands"),
    ({"frontend.hop": 500}, "multiple of hop"),
    ({"data.name": "absent"}, "no data set 'absent'"),
  ],
)
def test_mistakes_are_explained(
  data_dir, tmp_path, monkeypatch, fields, message
):
  monkeypatch.setattr(encoder, "backbone", RESNET)
  config = tiny.pretraining(data_dir)
  config.update_from_flattened_dict(fields)
  with pytest.raises(InputError, match=message):
    train.train(config, tmp_path)
  assert not list(tmp_path.iterdir())
