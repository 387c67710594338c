import contextlib
import json
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
import tiny
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, roc_auc_score

from configs import finetune as config_file
from ssl_music import (
  checkpoint,
  encoder,
  features,
  finetune,
  optimizer,
  parallel,
  probe,
  tagger,
  train,
  workdir,
)
from ssl_music.data import writer
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
  with small.backbone():
    yield


def tuning(data_dir, **fields):
  """A fine-tuning of 6 steps."""
  config = tiny.shrink(config_file.get_config())
  config.data.data_dir = str(data_dir)
  config.update({"batch": 16, "embed_batch": 16, "resamples": 20})
  config.update({"total_steps": 6, "warmup_steps": 1})
  config.update({"save_every_steps": 2, "log_every_steps": 1})
  config.optimizer.learning_rate = 1e-2
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope="module")
def pretrained(data_dir, tmp_path_factory):
  """The workdir of a pre-training, and the backbone in its checkpoint."""
  folder = tmp_path_factory.mktemp("pretrained")
  return folder, small.pretrained(data_dir, folder)


def run(config, folder):
  """Fine-tunes on one device."""
  with small.one_device():
    return finetune.finetune(config, folder)


@pytest.fixture(scope="module")
def tuned(data_dir, pretrained, tmp_path_factory):
  """Config, workdir and scores of a run."""
  config = tuning(data_dir, encoder=str(pretrained[0]))
  config.pretext.head = (8,)
  config.model.output = 8  # the encoder's own counts
  folder = tmp_path_factory.mktemp("tuned")
  return config, folder, run(config, folder)


def head_by_numpy(networks, x):
  """The head of one hidden layer, on embeddings [N, D]."""
  params = networks["params"]["head"]
  stats = networks["batch_stats"]["head"]["bn_0"]
  x = x @ params["dense_0"]["kernel"]
  x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
  x = np.maximum(x * params["bn_0"]["scale"] + params["bn_0"]["bias"], 0)
  return x @ params["dense_1"]["kernel"]


def embeddings_by_track(config, networks, tracks):
  """Every track's segments, read and embedded one track after the other."""
  settings, samples = config.to_dict(), round(config.data.seconds * tiny.RATE)
  backbone = {kind: tree["backbone"] for kind, tree in networks.items()}
  embed = jax.jit(lambda waveform: encoder.embed(settings, backbone, waveform))
  for track in range(len(tracks)):
    where = features.choose_segments(
      tracks, config.data.seconds, None, among=[track], sounding=config.sounding
    )
    heard = [tracks.read(track, s * tiny.RATE // 10, samples) for _, s in where]
    # All calls of one size: 9 s have 9 segments at most.
    padded = np.zeros((9, samples), np.int16)
    padded[: len(heard)] = heard
    yield np.asarray(embed(padded), np.float64)[: len(heard)]


def test_what_it_leaves_belongs_together(tuned, data_dir, pretrained):
  _, folder, scores = tuned
  assert json.loads((folder / "scores.json").read_text()) == scores
  assert not list(folder.glob("*.partial"))
  assert scores["name"] == "finetune:contrastive"
  assert (scores["encoder"], scores["step"]) == (str(pretrained[0]), 7)
  assert scores["tracks"] == {"train": 24, "validation": 8, "test": 8}
  assert (scores["seeds"], scores["hidden"]) == (1, [8])
  with np.load(folder / "predictions.npz") as found:
    logits, labels, ids = found["logits"], found["labels"], found["ids"]
    assert list(found["tags"]) == tiny.TAGS
  test = Tracks("tiny", ("test",), data_dir)
  assert logits.shape == (1, 8, 3)
  assert list(ids) == test.ids
  np.testing.assert_array_equal(labels, test.labels)
  expected = average_precision_score(labels, logits[0], average="macro")
  assert scores["test"]["map_macro"] == pytest.approx(expected)
  (share,) = scores["shares"]
  assert (share["share"], share["tracks"]) == (1.0, 24)
  assert share["test"] == scores["test"]
  with np.load(folder / "resamples.npz") as found:
    assert set(found) == set(scores["test"])
    assert all(found[name].shape == (20,) for name in found)


def test_the_best_checkpoint_on_validation_is_scored(tuned, data_dir):
  config, folder, scores = tuned
  entries = workdir.read_metrics(folder)
  saved = [entry for entry in entries if entry["step"] % 2 == 0]
  assert len(saved) == 3
  best = max(saved, key=lambda entry: entry["validation_map"])
  (chosen,) = scores["chosen"]
  assert chosen["validation_map"] == best["validation_map"]
  assert scores["segments"]["train"] == chosen["step"] * 16
  _, networks = checkpoint.load(folder, chosen["step"])
  config, _, _ = finetune.start_from_encoder(config)
  head = tagger.load(folder)
  assert head["tags"] == tiny.TAGS
  for split in ("validation", "test"):
    tracks = Tracks("tiny", (split,), data_dir)
    every = [*embeddings_by_track(config, networks, tracks)]
    logits = np.concatenate(
      [head_by_numpy(networks, x.mean(0, keepdims=True)) for x in every]
    )
    kept = [tagger.logits(head, x)[0] for x in every]
    np.testing.assert_allclose(kept, logits, rtol=1e-5, atol=1e-5)
    if split == "validation":
      macro = average_precision_score(tracks.labels, logits, average="macro")
      assert best["validation_map"] == pytest.approx(macro)
      auc = roc_auc_score(tracks.labels, logits, average="macro")
      assert best["validation_roc_auc"] == pytest.approx(auc)
  with np.load(folder / "predictions.npz") as found:
    np.testing.assert_allclose(found["logits"][0], logits, atol=1e-3)


def test_starts_from_the_encoder_and_resumes_exactly(
  tuned, pretrained, tmp_path, monkeypatch
):
  config, folder, scores = tuned
  before = pretrained[1]

  @contextlib.contextmanager
  def stop_at_once():
    yield lambda: signal.SIGTERM

  with monkeypatch.context() as patch:
    patch.setattr(workdir, "stop_on_signals", stop_at_once)
    with pytest.raises(workdir.Stopped, match="at step 1 of 6"):
      run(config, tmp_path)
  assert not (tmp_path / "scores.json").exists()
  # The warm-up begins at a rate of 1e-7: the weights are still the encoder's …
  _, networks = checkpoint.load(tmp_path)
  jax.tree.map(
    lambda new, old: np.testing.assert_allclose(new, old, atol=1e-6),
    networks["params"]["backbone"],
    before["params"],
  )
  # … and of the statistics, which were 1.5, nine parts in ten.
  variance = networks["batch_stats"]["backbone"]["bn"]["var"]
  assert np.all(variance > 0.9 * 1.5)
  assert run(config, tmp_path) == scores
  with (
    np.load(folder / "predictions.npz") as one,
    np.load(tmp_path / "predictions.npz") as other,
  ):
    np.testing.assert_array_equal(one["logits"], other["logits"])


def test_from_scratch_it_learns(data_dir, tmp_path):
  config = tuning(data_dir, total_steps=60, save_every_steps=20)
  scores = run(config, tmp_path)
  assert (scores["name"], scores["encoder"]) == ("supervised", "random")
  # An untrained backbone keeps up with the head.
  assert workdir.read_config(tmp_path)["optimizer"]["backbone_rate"] == 1
  assert scores["test"]["map_macro"] > 0.9  # by chance .5, .5 and .375


@pytest.mark.parametrize("how", tagger.AGGREGATIONS)
def test_aggregation_of_segments(data_dir, monkeypatch, how):
  """Against one track after the other; eight devices share the segments."""
  kernel = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)

  # Quick to compile, and unlike in every segment.
  def embed(config, variables, waveform):
    x = waveform[:, 1000:1002].astype(jnp.float32) / 1000
    return x @ variables["params"]

  monkeypatch.setattr(encoder, "embed", embed)
  config = tuning(data_dir, aggregation=how)
  config.pretext.head = (8,)
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  head = {
    "dense_0": {"kernel": draw(4, 8)},
    "bn_0": {"scale": draw(8), "bias": draw(8)},
    "dense_1": {"kernel": draw(8, 3)},
  }
  stats = {"bn_0": {"mean": draw(8), "var": 1 + draw(8) ** 2}}
  networks = {
    "params": {"backbone": kernel, "head": head},
    "batch_stats": {"backbone": {}, "head": stats},
  }
  tracks = Tracks("tiny", ("test",), data_dir)
  where = features.choose_segments(
    tracks, config.data.seconds, None, sounding=False
  )
  where = where[np.isin(where[:, 0], [1, 2, 5])]
  assert len(where) % 16  # the last batch is filled up
  mesh = parallel.make_mesh()
  predict = finetune.make_predict(config, 3, mesh)
  found = predict(parallel.replicate(networks, mesh), tracks, where)
  expected = {name: [] for name in tagger.AGGREGATIONS}
  for index, x in enumerate(embeddings_by_track(config, networks, tracks)):
    if index in (1, 2, 5):
      y = head_by_numpy(networks, x)
      mean = head_by_numpy(networks, x.mean(0, keepdims=True))[0]
      expected["embeddings"].append(mean)
      expected["logits"].append(y.mean(0))
      expected["probabilities"].append(logit(expit(y).mean(0)))
  np.testing.assert_allclose(found, expected[how], rtol=1e-3, atol=1e-3)
  for other in set(tagger.AGGREGATIONS) - {how}:
    assert np.abs(found - expected[other]).max() > 0.01


@pytest.mark.parametrize("name", optimizer.NAMES)
def test_the_backbones_rate_is_a_part_of_the_heads(data_dir, name):
  """Against two optimisers, each with its own rate."""
  config = tuning(data_dir).to_dict()
  config["optimizer"] |= {"name": name, "backbone_rate": 0.25}
  rates = {
    "learning_rate": lambda count: 0.1 / (1 + count),
    "weight_decay": lambda count: 0.3,
  }
  slow = rates | {"learning_rate": lambda count: 0.025 / (1 + count)}
  rng = np.random.default_rng(0)
  draw = lambda: {
    part: {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}
    for part in ("backbone", "head")
  }
  both = train._make_optimizer(config, rates)
  alone = {
    "backbone": optimizer.make_optimizer(config, slow),
    "head": optimizer.make_optimizer(config, rates),
  }
  params = draw()
  expected = dict(params)
  state = both.init(params)
  states = {part: one.init(params[part]) for part, one in alone.items()}
  for _ in range(3):
    grads = draw()
    updates, state = both.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    for part, one in alone.items():
      updates, states[part] = one.update(
        grads[part], states[part], expected[part]
      )
      expected[part] = optax.apply_updates(expected[part], updates)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    params,
    expected,
  )


def test_broken_logits_have_no_score(data_dir):
  tracks = Tracks("tiny", ("validation",), data_dir)
  scored = probe.Part(
    tracks, np.zeros((8, 2), int), np.arange(8), tracks.labels
  )
  logits = np.full((8, 3), math.nan)
  found = finetune._evaluate(lambda *_: logits, scored, tiny.TAGS, {})
  assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"encoder": "mel"}, "mel has no parameters to fine-tune"),
    ({"encoder": "/absent"}, "no run in /absent"),
    ({"aggregation": "median"}, "no aggregation 'median'"),
    ({"pretext.name": "contrastive"}, "learns tags, not contrastive"),
    ({"optimizer.backbone_rate": -0.5}, "backbone_rate=-0.5 is no factor"),
    ({"data.splits": ("train", "test")}, "learns from train, not .*'test'"),
    ({"resamples": 0}, "resamples=0 is too small"),
    ({"embed_batch": 12}, "does not divide over 8 devices"),
    ({"data.tags": "colour---"}, "no tags that begin with colour---"),
  ],
)
def test_mistakes_are_explained(
  data_dir, pretrained, tmp_path, fields, message
):
  config = tuning(data_dir, encoder=str(pretrained[0]))
  config.update_from_flattened_dict(fields)
  with pytest.raises(InputError, match=message):
    finetune.finetune(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_benchmark_without_all_test_tracks_is_refused(tmp_path):
  rows = tiny.tracks()
  rows[-1]["file"] = None
  plan = tiny.plan(rows, benchmark="Tiny, split 0")
  writer.write("tiny", plan, data_dir=tmp_path)
  with pytest.raises(InputError, match="1 of the 8 test tracks of Tiny"):
    finetune.finetune(tuning(tmp_path), tmp_path / "run")
  assert not (tmp_path / "run").exists()
