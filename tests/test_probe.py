import json

import jax
import numpy as np
import pytest
import small
import tiny
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssl_music import features, parallel, probe, results, scoring, study, tagger
from ssl_music.data import writer
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

CONFIG = {
  "hidden": (),
  "batch": 64,
  "steps": 200,
  "evaluations": 20,
  "learning_rates": (5e-2,),
  "weight_decays": (1e-2,),
  "seeds": 2,
  "aggregation": "embeddings",
}


def problem(draw, seed=0):
  """Tracks of one segment, far from standardised, of `draw`(random, tracks)."""
  rng = np.random.default_rng(seed)
  data = {}
  for split, tracks in {"train": 800, "validation": 200, "test": 300}.items():
    x, labels = draw(rng, tracks)
    x = (10 + 3 * x).astype(np.float16)
    data[split] = {"x": x, "owners": np.arange(tracks), "labels": labels}
  return data


def linear(rng, tracks, classes=4, features=20):
  """Labels that depend linearly on the features."""
  weights = np.random.default_rng(99).standard_normal((features, classes))
  x = rng.standard_normal((tracks, features))
  noise = rng.standard_normal((tracks, classes))
  return x, x @ weights + noise > 1.0


def fit(data, seed=0, **fields):
  mask = np.ones(len(data["train"]["labels"]), bool)
  whole = [{"share": 1.0, "draw": 0, "mask": mask}]
  found = study.run(
    CONFIG | fields,
    data,
    whole,
    seed=seed,
    mesh=parallel.make_mesh(jax.devices()[:1]),
  )
  return found["logits"][0], [one["step"] for one in found["chosen"][0]]


def macro_map(labels, scores):
  return np.mean(
    [
      average_precision_score(labels[:, tag], scores[:, tag])
      for tag in range(labels.shape[1])
    ]
  )


@pytest.fixture(scope="module")
def fitted():
  return fit(problem(linear))


def test_is_as_good_as_logistic_regression(fitted):
  data, (logits, steps) = problem(linear), fitted
  assert logits.shape == (2, 300, 4)
  assert all(10 <= step <= 200 for step in steps)
  x, y = (data["train"][name] for name in ("x", "labels"))
  test, labels = (data["test"][name] for name in ("x", "labels"))
  peer = make_pipeline(
    StandardScaler(), OneVsRestClassifier(LogisticRegression())
  )
  peer = peer.fit(x.astype(float), y).decision_function(test.astype(float))
  for one in logits:
    assert macro_map(labels, one) > macro_map(labels, peer) - 0.01


def test_hidden_layers_solve_what_a_line_cannot():
  def draw(rng, tracks):
    x = rng.uniform(-1, 1, (tracks, 2))
    return x, x[:, :1] * x[:, 1:] > 0  # exclusive or: .5 by a line

  data = problem(draw)
  curve, _ = fit(data, hidden=(32,))
  assert macro_map(data["test"]["labels"], curve[0]) > 0.95


def test_validation_alone_picks_the_step(fitted):
  data, (logits, steps) = problem(linear), fitted
  test = data["test"]
  other = test | {"x": test["x"][::-1], "labels": ~test["labels"]}
  reversed_logits, same_steps = fit(data | {"test": other})
  assert same_steps == steps
  np.testing.assert_allclose(
    reversed_logits[:, ::-1], logits, rtol=1e-4, atol=1e-4
  )


def test_seeds_differ_and_repeat(fitted):
  data, (one, _) = problem(linear), fitted
  again, _ = fit(data)
  shifted, _ = fit(data, seed=1)
  np.testing.assert_array_equal(one, again)
  assert not np.allclose(one[0], one[1])
  np.testing.assert_allclose(shifted[0], one[1], rtol=1e-4, atol=1e-4)


def test_dead_features_do_no_harm():
  data = problem(linear)
  for part in data.values():
    dead = np.full_like(part["x"][:, :3], 7)
    part["x"] = np.concatenate([part["x"], dead], axis=1)
  logits, _ = fit(data)
  assert np.isfinite(logits).all()


def test_summary_names_what_is_left_out():
  rng = np.random.default_rng(0)
  labels = rng.random((30, 3)) < 0.5
  labels[:, 1] = False
  logits = rng.standard_normal((2, 30, 3))
  found, samples = scoring.summarise(
    labels, logits, ["a", "b", "c"], resamples=20
  )
  assert found["left_out"] == ["b"]
  assert set(found["per_tag"]) == {"a", "c"}
  for name, value in found["test"].items():
    assert value == pytest.approx(np.mean(found["by_seed"][name]))
    low, high = found["interval"][name]
    assert 0 <= low < high <= 1
    assert samples[name].shape == (20,)
  draws = scoring.summarise_draws(
    labels, logits[None], ["a", "b", "c"], resamples=20
  )
  assert scoring.of_one_draw(found) == draws
  with pytest.raises(ValueError, match="nothing to score"):
    scoring.summarise(labels[:, 1:2], logits[..., 1:2], ["b"], resamples=20)


def test_chosen_segments_are_spread_over_the_track(data_dir):
  tracks = Tracks("tiny", ("train",), data_dir)
  every = features.choose_segments(tracks, 0.5, None)
  some = features.choose_segments(tracks, 0.5, 3)
  for track in range(len(tracks)):
    whole = every[every[:, 0] == track, 1]
    few = some[some[:, 0] == track, 1]
    assert len(few) == 3
    assert set(few) <= set(whole)
    assert few[0] == whole[0]
    assert few[-1] == whole[-1]
  with pytest.raises(InputError, match=r"no track .* as long as .* 30 s"):
    features.choose_segments(tracks, 30.0, None)


def test_an_untrained_network_does_not_depend_on_the_batch(data_dir):
  tracks = Tracks("tiny", ("train",), data_dir)
  made = [
    features.load_encoder(tiny.probing(data_dir, embed_batch=size), tracks)
    for size in (16, 24)
  ]
  assert made[0].identity == made[1].identity


@pytest.fixture
def _small_backbone():
  with small.backbone():
    yield


@pytest.mark.usefixtures("_small_backbone")
@pytest.mark.parametrize("encoder", ["random", "mel", "pretrained"])
def test_end_to_end(data_dir, tmp_path, encoder, capsys):
  config = tiny.probing(data_dir, encoder=encoder)
  if encoder == "pretrained":
    config.encoder = str(tmp_path / "pretrained")
    (tmp_path / "pretrained").mkdir()
    small.pretrained(data_dir, tmp_path / "pretrained")
  scores = probe.probe(config, tmp_path)
  assert json.loads((tmp_path / "scores.json").read_text()) == scores
  assert scores["tracks"] == {"train": 24, "validation": 8, "test": 8}
  assert scores["left_out"] == []
  assert set(scores["per_tag"]) == set(tiny.TAGS)
  if encoder == "mel":  # high and low tones differ in nothing as much
    assert scores["test"]["map_macro"] > 0.9
  if encoder == "pretrained":
    assert (scores["pretext"], scores["step"]) == ("contrastive", 7)
  printed = capsys.readouterr().out
  assert f"{scores['test']['map_macro']:.3f}" in printed
  again = probe.probe(config, tmp_path / "again")
  assert again["test"] == scores["test"]


def test_a_study_of_few_labels(data_dir, tmp_path):
  config = tiny.probing(data_dir, encoder="mel")
  config.probe.shares, config.probe.draws = (1.0, 0.25), 2
  scores = probe.probe(config, tmp_path)
  config.probe.shares = (1.0,)
  alone = probe.probe(config, tmp_path / "alone")
  for name in ("test", "interval", "by_seed", "per_tag"):
    assert alone[name] == scores[name]
  assert alone["chosen"] == [c for c in scores["chosen"] if c["share"] == 1]
  few, every = scores["shares"]
  assert (few["share"], few["tracks"]) == (0.25, 6)
  assert (every["share"], every["tracks"]) == (1.0, 24)
  for one, draws in ((few, 2), (every, 1)):
    for name, by in one["by_draw"].items():
      assert len(by) == draws
      assert one["test"][name] == pytest.approx(np.mean(by))
      assert one["interval"][name][0] <= one["interval"][name][1]
  assert every["test"] == pytest.approx(scores["test"])
  assert [(c["share"], c["draw"], c["seed"]) for c in scores["chosen"]] == [
    *[(0.25, draw, seed) for draw in (0, 1) for seed in (0, 1)],
    *[(1.0, 0, seed) for seed in (0, 1)],
  ]
  with np.load(tmp_path / "subsets.npz") as drawn:
    assert drawn["masks"].sum(axis=1).tolist() == [6, 6, 24]
    assert set(drawn["ids"]) == set(Tracks("tiny", ("train",), data_dir).ids)
  with np.load(tmp_path / "predictions.npz") as kept:
    quality = [
      macro_map(kept["labels"], one.astype(float)) for one in kept["logits"]
    ]
    assert scores["test"]["map_macro"] == pytest.approx(np.mean(quality))
    head, logits = tagger.load(tmp_path), kept["logits"]
  # The head is the one that all labels gave, and makes the same of embeddings.
  (file,) = (tmp_path / "embeddings").glob("tiny-test-*.npy")
  test = Tracks("tiny", ("test",), data_dir)
  where = features.choose_segments(test, 1, None, sounding=False)
  vectors = np.split(np.load(file), np.flatnonzero(np.diff(where[:, 0])) + 1)
  again = [tagger.logits(head, one) for one in vectors]
  np.testing.assert_allclose(np.swapaxes(again, 0, 1), logits, atol=1e-4)
  with np.load(tmp_path / "resamples.npz") as samples:
    assert samples["map_macro"].shape == (50,)
    assert samples["roc_auc_micro"].std() > 0


def with_pause(track):
  wave = tiny.waveform(track)
  wave[tiny.RATE : 3 * tiny.RATE] *= 1e-3
  return [wave]


@pytest.mark.parametrize("sounding", [False, True])
def test_which_segments_stand_for_a_test_track(tmp_path, sounding):
  """All of them, as published, or the sounding ones; training has those."""
  tiny.write(tmp_path, load=with_pause)
  config = tiny.probing(tmp_path, encoder="mel")
  assert config.probe.sounding is False
  config.probe.sounding = sounding
  scores = probe.probe(config, tmp_path / "run")
  assert scores["sounding"] is sounding
  which = "sounding" if sounding else "all"
  assert f"over {which} segments" in results.by_tag(scores)
  assert ("sounding" in results.label(scores)) == sounding
  head = tagger.load(tmp_path / "run")
  assert head["sounding"] is sounding
  rows = {}
  for split in probe.SPLITS:
    (file,) = (tmp_path / "run" / "embeddings").glob(f"tiny-{split}-*.npy")
    tracks = Tracks("tiny", (split,), tmp_path)
    seconds = tracks.samples // tiny.RATE
    rows[split] = np.load(file), seconds - 2 * (sounding or split == "train")
    assert len(rows[split][0]) == rows[split][1].sum()
  vectors = np.split(rows["test"][0], np.cumsum(rows["test"][1])[:-1])
  expected = [tagger.logits(head, one) for one in vectors]
  with np.load(tmp_path / "run" / "predictions.npz") as kept:
    np.testing.assert_allclose(
      kept["logits"], np.swapaxes(expected, 0, 1), atol=1e-4
    )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data.tags": "colour---"}, "no tags that begin with colour---"),
    ({"encoder": "/absent"}, "no encoder /absent"),
    ({"data.seconds": 30.0}, "no track in train of tiny is as long"),
    ({"frontend.hop": 500}, "multiple of hop"),
    ({"encoder": "random", "model.heads": 3}, "heads"),
    ({"probe.seeds": 0}, "probe.seeds=0 is too small"),
    ({"probe.segments": -2}, "probe.segments=-2 is too small"),
    ({"probe.evaluations": 3}, "40 steps .* no multiple of its 3 evaluations"),
    ({"probe.aggregation": "votes"}, "no aggregation 'votes': .* embeddings"),
    (
      {"probe.shares": (0.5,)},
      r"shares of the labels are \(0.5,\): .* 1 among",
    ),
    ({"probe.shares": (1.0, 1.0)}, "is repeated"),
    ({"probe.shares": ("all",)}, r"labels are \('all',\)"),
    ({"probe.learning_rates": ()}, "give one or more"),
    ({"probe.weight_decays": (0.1, np.nan)}, "give one or more finite"),
    ({"probe.hidden": (64, 0)}, r"\(64, 0\) are no sizes of layers"),
    ({"embed_batch": 0}, "embed_batch=0 is too small"),
    ({"embed_batch": 12}, "does not divide over 8 devices"),
  ],
)
def test_mistakes_are_explained(data_dir, tmp_path, fields, message):
  config = tiny.probing(data_dir, encoder="mel")
  config.update_from_flattened_dict(fields)
  with pytest.raises(InputError, match=message):
    probe.probe(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_splits_without_contrast_are_explained(tmp_path):
  rows = [track for track in tiny.tracks() if track["split"] != "test"]
  same = next(track for track in tiny.tracks() if track["split"] == "test")
  tiny.write(tmp_path, rows=[*rows, same])
  with pytest.raises(InputError, match="without it in test of tiny"):
    probe.probe(tiny.probing(tmp_path, encoder="mel"), tmp_path / "run")


def test_tags_are_chosen_by_prefix(data_dir, tmp_path):
  config = tiny.probing(data_dir)
  config.encoder = "mel"
  config.data.tags = "pitch---"
  scores = probe.probe(config, tmp_path)
  assert set(scores["per_tag"]) == {"pitch---high", "pitch---low"}


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory):
  """Tiny as a benchmark of which two test tracks are absent."""
  folder = tmp_path_factory.mktemp("incomplete")
  rows = tiny.tracks()
  for row in [row for row in rows if row["split"] == "test"][:2]:
    row["file"] = None
  plan = tiny.plan(rows, benchmark="Tiny, split 0")
  writer.write("tiny", plan, data_dir=folder)
  return folder


def test_a_benchmark_without_all_test_tracks_is_refused(incomplete, tmp_path):
  config = tiny.probing(incomplete, encoder="mel")
  with pytest.raises(
    InputError,
    match=r"^2 of the 8 test tracks of Tiny, split 0 are missing .*t32, t33",
  ):
    probe.probe(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_number_of_missing_tracks_stands_beside_the_score(
  incomplete, data_dir, tmp_path
):
  config = tiny.probing(incomplete, encoder="mel", allow_missing=True)
  scores = probe.probe(config, tmp_path / "run")
  assert scores["missing"] == {"train": 0, "validation": 0, "test": 2}
  assert scores["tracks"]["test"] == 6
  assert scores["benchmark"] == "Tiny, split 0"
  # It is the tables' hash, which a complete data set of them has as well.
  card = Tracks("tiny", ("test",), data_dir).card
  assert scores["fingerprint"] == card["fingerprint"]
  for said in (results.by_tag(scores), results.table([scores])):
    assert "6 (2 missing)" in said or "6 test tracks (2 missing)" in said
    assert "Tiny, split 0" in said
  config.data.tags = "pitch---"
  scores = probe.probe(config, tmp_path / "fewer")
  assert scores["benchmark"] == "Tiny, split 0, 2 of 3 tags"
  assert scores["fingerprint"] != card["fingerprint"]


def test_a_benchmark_of_cut_tracks_is_named_so(data_dir, tmp_path):
  plan = tiny.plan(benchmark="Tiny", max_seconds=4.0)
  writer.write("tiny", plan, data_dir=tmp_path)
  scores = probe.probe(tiny.probing(tmp_path, encoder="mel"), tmp_path / "run")
  assert scores["benchmark"] == "Tiny, first 4 s of a track"


def test_tracks_shorter_than_a_segment_are_missing(data_dir, tmp_path):
  config = tiny.probing(data_dir, encoder="mel")
  config.data.seconds = 6.0
  test = Tracks("tiny", ("test",), data_dir)
  short = int((test.samples < 6 * tiny.RATE).sum())
  assert 0 < short < 8
  scores = probe.probe(config, tmp_path)
  assert scores["missing"]["test"] == short
  assert scores["tracks"]["test"] == 8 - short
  # The labels of those that remain are still theirs.
  assert scores["test"]["map_macro"] > 0.9
  with np.load(tmp_path / "predictions.npz") as kept:
    rows = [test.ids.index(name) for name in kept["ids"]]
    np.testing.assert_array_equal(kept["labels"], test.labels[rows])
