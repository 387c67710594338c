import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from sklearn.metrics import average_precision_score, roc_auc_score

from ssl_music import encoder, features, online, parallel
from ssl_music.data import pipeline
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

RATE = 16_000
TAGS = ["half---pitch", "half---noise", "none---a", "none---b"]


def load(row):
  return tiny.load(row["heard"])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """The data set "hard": tiny's audio, but tags of which it tells a part."""
  rng = np.random.default_rng(0)
  rows = []
  for row in tiny.tracks():
    truth = ["pitch---low" in row["tags"], "timbre---noisy" in row["tags"]]
    flipped = [
      *(np.array(truth) ^ (rng.random(2) < 0.3)),
      *(rng.random(2) < 0.5),
    ]
    tags = [tag for tag, has in zip(TAGS, flipped, strict=True) if has]
    split = "train" if row["split"] == "train" else "validation"
    rows.append(row | {"tags": tags, "split": split, "heard": row})
  folder = tmp_path_factory.mktemp("hard")
  tiny.write(folder, "hard", rows, load, TAGS)
  return folder


def config(data_dir, **fields):
  made = tiny.pretraining(data_dir)
  settings = {"data": "hard", "tags": "", "tracks": 100, "segments": 8}
  made.online = ConfigDict(settings)
  made.update_from_flattened_dict(fields)
  return made


@functools.cache
def variables(seed):
  """An untrained backbone, whose statistics fit nothing."""
  network = encoder.backbone(tiny.pretraining("unused"))
  mel = jnp.zeros((2, 32, 1 + RATE // 512))
  quick = {"xla_backend_optimization_level": 0}  # it runs once
  init = jax.jit(
    functools.partial(network.init, train=True), compiler_options=quick
  )
  return init(jax.random.key(seed), mel)


def evaluate(made, network, devices=8):
  mesh = parallel.make_mesh(jax.devices()[:devices])
  return online.prepare(made, mesh)(parallel.replicate(network, mesh))


def track_means(made, network, split):
  """Mean embeddings, float64 [tracks, D], and labels."""
  tracks = Tracks("hard", (split,), made.data.data_dir)
  rows = []
  where = features.choose_segments(tracks, 1.0, 8)
  # One track at a time, on one device.
  embed = jax.jit(functools.partial(encoder.embed, made.to_dict()))
  for track in range(len(tracks)):
    starts = where[where[:, 0] == track, 1]
    wave = np.stack([tracks.read(track, s * 1600, RATE) for s in starts])
    rows.append(np.asarray(embed(network, wave), np.float64).mean(0))
  return np.array(rows), tracks.labels


def ridge(x, y, alpha, other):
  """By the normal equations."""
  mean, middle = x.mean(0), y.mean(0)
  gram = (x - mean).T @ (x - mean) + alpha * np.eye(x.shape[1])
  weights = np.linalg.solve(gram, (x - mean).T @ (y - middle))
  return (other - mean) @ weights + middle


def leave_one_out(x, y):
  """The alpha of least squared error on the tracks left out, one by one."""
  errors = []
  for alpha in online.ALPHAS:
    error = 0.0
    for out in range(len(x)):
      rest = np.arange(len(x)) != out
      guess = ridge(x[rest], y[rest], alpha, x[out])
      error += np.sum((guess - y[out]) ** 2)
    errors.append(error)
  return online.ALPHAS[int(np.argmin(errors))]


def nearest_shares(x, labels, other):
  """By hand: similarity-weighted share of each tag among ten neighbours."""
  shares = []
  for one in other:
    cosine = [a @ one / np.sqrt((a @ a) * (one @ one)) for a in x]
    ranked = sorted(range(len(x)), key=lambda i: -cosine[i])[:10]
    weight = {i: max(cosine[i], 0) for i in ranked}
    total = sum(weight.values())
    shares.append(sum(weight[i] * labels[i] for i in ranked) / total)
  return np.array(shares)


def macro(metric, labels, scores):
  tags = range(labels.shape[1])
  return np.mean([metric(labels[:, t], scores[:, t]) for t in tags])


def test_equals_a_slow_recomputation(data_dir):
  # Of 5 to 8 segments a track, and the last batch of them is filled up.
  made, network = config(data_dir, batch=64), variables(0)
  found = evaluate(made, network)
  x, labels = track_means(made, network, "train")
  other, truth = track_means(made, network, "validation")
  mean, deviation = x.mean(0), x.std(0)
  assert (deviation > 1e-6).all()
  x, other = (x - mean) / deviation, (other - mean) / deviation
  y = labels.astype(float)
  line = ridge(x, y, leave_one_out(x, y), other)
  shares = nearest_shares(x, labels, other)
  expected = {
    "validation_map": macro(average_precision_score, truth, line),
    "validation_roc_auc": macro(roc_auc_score, truth, line),
    "knn_map": macro(average_precision_score, truth, shares),
    "knn_roc_auc": macro(roc_auc_score, truth, shares),
  }
  assert found == pytest.approx(expected, abs=1e-6)
  assert all(0.3 < value < 0.99 for value in found.values())  # not trivial
  assert all(isinstance(value, float) for value in found.values())


def subset(made, devices, monkeypatch):
  """Which segments are read, as (track's id, start); what fills up, once."""
  seen = []

  def spy(tracks, where, **rest):
    seen.extend((tracks.ids[track], int(start)) for track, start in where)
    return original(tracks, where, **rest)

  original = pipeline.segment_batches
  with monkeypatch.context() as patch:
    patch.setattr(pipeline, "segment_batches", spy)
    online.prepare(made, parallel.make_mesh(jax.devices()[:devices]))
  return list(dict.fromkeys(seen))


def test_every_run_is_scored_on_the_same_subset(data_dir, monkeypatch):
  few = {"online.tracks": 6, "online.segments": 3}
  seen = subset(config(data_dir, **few), 8, monkeypatch)
  assert subset(config(data_dir, seed=5, **few), 8, monkeypatch) == seen
  assert subset(config(data_dir, batch=40, **few), 1, monkeypatch) == seen
  split = {f"t{i:02}": "train" if i < 24 else "validation" for i in range(40)}
  ids = list(dict.fromkeys(name for name, _ in seen))
  assert [split[name] for name in ids] == ["train"] * 6 + ["validation"] * 6
  assert ids[:6] != sorted(split)[:6]  # drawn, not the first
  assert len(seen) == 12 * 3
  more = subset(config(data_dir, **{"online.tracks": 7}), 8, monkeypatch)
  assert set(ids) < {name for name, _ in more}


def test_devices_make_no_difference(data_dir):
  made = config(data_dir)
  one = evaluate(made, variables(0), devices=1)
  assert evaluate(made, variables(0)) == pytest.approx(one, abs=1e-6)


def test_compiles_once_for_all_variables(data_dir, monkeypatch):
  traced = []

  def spy(*arguments):
    traced.append(1)
    return original(*arguments)

  original = encoder.embed
  monkeypatch.setattr(encoder, "embed", spy)
  mesh = parallel.make_mesh()
  score = online.prepare(config(data_dir), mesh)
  first = score(parallel.replicate(variables(0), mesh))
  once = len(traced)
  second = score(parallel.replicate(variables(1), mesh))
  assert once == len(traced) == 1
  assert first != second
  assert score(parallel.replicate(variables(0), mesh)) == first


def test_a_diverged_network_scores_nothing(data_dir):
  broken = jax.tree.map(lambda x: x * np.nan, variables(0))
  found = evaluate(config(data_dir), broken)
  assert set(found) == set(online.NAMES)
  assert all(math.isnan(value) for value in found.values())


def embeddings(seed=0, tracks=60, features=20, tags=4):
  """Embeddings of which the first few hold the tags, and the tags."""
  rng = np.random.default_rng(seed)
  labels = rng.random((tracks, tags)) < 0.4
  x = rng.standard_normal((tracks, features))
  x[:, :tags] += 3 * labels
  return x, labels


def split_score(x, labels):
  return online.score(x[:40], labels[:40], x[40:], labels[40:])


def test_predictions_equal_slow_ones():
  x, labels = embeddings()
  x, other = (x[:40] - x[:40].mean(0)) / x[:40].std(0), x[40:]
  y = labels[:40].astype(float)
  line = ridge(x, y, leave_one_out(x, y), other)
  np.testing.assert_allclose(online.ridge(x, labels[:40], other), line)
  shares = nearest_shares(x, labels[:40], other)
  found = online.neighbours(x, labels[:40], other)
  np.testing.assert_allclose(found, shares)


def test_validation_tracks_are_scaled_as_training_tracks_are():
  x, labels = embeddings()
  other = x[40:] * np.linspace(0.2, 5, 20) + np.linspace(-2, 2, 20)
  found = online.score(x[:40], labels[:40], other, labels[40:])
  mean, deviation = x[:40].mean(0), x[:40].std(0)
  shares = nearest_shares(
    (x[:40] - mean) / deviation, labels[:40], (other - mean) / deviation
  )
  expected = macro(roc_auc_score, labels[40:], shares)
  assert found["knn_roc_auc"] == pytest.approx(expected)


def test_what_is_in_the_embeddings_is_found():
  x, labels = embeddings()
  found = split_score(x, labels)
  assert found["validation_roc_auc"] > 0.9
  assert found["knn_roc_auc"] > 0.75
  order = np.random.default_rng(1).permutation(len(x))
  chance = split_score(x, labels[order])
  for name in online.NAMES:
    assert found[name] > chance[name] + 0.15, name


def test_scale_offset_and_dead_features_do_not_matter():
  x, labels = embeddings()
  found = split_score(x, labels)
  rng = np.random.default_rng(2)
  other = x * rng.uniform(0.01, 100, 20) + rng.uniform(-5, 5, 20)
  dead = np.full((60, 3), 7.0)
  assert split_score(np.hstack([other, dead]), labels) == pytest.approx(found)


def test_a_collapsed_network_scores_at_chance():
  _, labels = embeddings()
  found = split_score(np.full((60, 20), 0.3), labels)
  chance = labels[40:].mean()
  assert found == pytest.approx(
    {
      "validation_map": chance,
      "validation_roc_auc": 0.5,
      "knn_map": chance,
      "knn_roc_auc": 0.5,
    }
  )


def test_one_tag_and_few_tracks_suffice():
  x, labels = embeddings(tags=1)
  found = online.score(x[:6], labels[:6], x[40:], labels[40:])
  assert all(0 <= value <= 1 for value in found.values())


def test_tags_are_chosen_by_prefix(data_dir):
  made = config(data_dir, **{"online.tags": "half---"})
  network = variables(0)
  found = evaluate(made, network)
  assert evaluate(config(data_dir), network) != found
  other = config(data_dir, **{"online.tags": "half---pitch,half---n"})
  assert evaluate(other, network) == found


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"online.data": "absent"},
      r"no data set 'absent'.*--config\.online\.data",
    ),
    ({"online.tags": "colour---"}, r"begin with colour---.*online\.tags"),
    ({"online.tracks": 0}, r"online\.tracks=0 is too small"),
    ({"online.segments": 0}, r"online\.segments=0 is too small"),
    ({"data.seconds": 30.0}, "tracks of 30 s or more .* none in train"),
    ({"online.tracks": 1}, "among the 1 of train and the 1 of validation"),
  ],
)
def test_mistakes_are_explained(data_dir, fields, message):
  with pytest.raises(InputError, match=message):
    online.prepare(config(data_dir, **fields), parallel.make_mesh())


def test_unfit_data_sets_are_explained(tmp_path):
  rows = [track for track in tiny.tracks() if track["split"] == "train"]
  tiny.write(tmp_path / "a", "hard", rows)
  with pytest.raises(InputError, match="none in validation: prepare"):
    online.prepare(config(tmp_path / "a"), parallel.make_mesh())
  bare = [track | {"tags": []} for track in tiny.tracks()]
  tiny.write(tmp_path / "b", "hard", bare, tags=[])
  with pytest.raises(InputError, match="hard has no tags: name a single one"):
    online.prepare(config(tmp_path / "b"), parallel.make_mesh())
