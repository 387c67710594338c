import itertools

import numpy as np
import pytest
from scipy.special import expit

from ssl_music import tagger
from ssl_music.errors import InputError


def make_head(how="embeddings", hidden=(7,)):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  sizes = (5, *hidden, 3)
  layers = [
    {"kernel": draw(2, a, b), "bias": draw(2, b)}
    for a, b in itertools.pairwise(sizes)
  ]
  about = {"tags": ["a", "ü", "genre---c"], "aggregation": how}
  about["sounding"] = False
  return about | {"mean": draw(5), "inverse": draw(5), "layers": layers}


@pytest.mark.parametrize("hidden", [(), (7,), (4, 6)])
def test_a_head_is_kept_whole(tmp_path, hidden):
  head = make_head("logits", hidden)
  tagger.save(tmp_path, head)
  assert [file.name for file in tmp_path.iterdir()] == ["head.npz"]
  found = tagger.load(tmp_path)
  assert found["tags"] == head["tags"]
  vectors = np.random.default_rng(1).standard_normal((4, 5))
  np.testing.assert_array_equal(
    tagger.apply(found, vectors), tagger.apply(head, vectors)
  )


@pytest.mark.parametrize("how", tagger.AGGREGATIONS)
def test_every_segment_and_seed_alone(how):
  head = make_head(how)
  vectors = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float16)
  given = vectors.astype(np.float64)
  if how == "embeddings":
    given = given.mean(axis=0)[None]
  by_seed = []
  for seed in range(2):
    (first, last), y = head["layers"], []
    for x in (given - head["mean"]) * head["inverse"]:
      x = np.maximum(x @ first["kernel"][seed] + first["bias"][seed], 0)
      y.append(x @ last["kernel"][seed] + last["bias"][seed])
    if how == "probabilities":
      by_seed.append(expit(y).mean(axis=0))
    else:
      by_seed.append(expit(np.mean(y, axis=0)))
  found = tagger.logits(head, vectors)
  np.testing.assert_allclose(expit(found), by_seed, rtol=1e-5)
  values = tagger.apply(head, vectors)
  assert values.dtype == np.float32
  np.testing.assert_allclose(values, np.mean(by_seed, axis=0), rtol=1e-5)


def test_a_head_says_which_segments_count(tmp_path):
  for sounding in (False, True):
    tagger.save(tmp_path, make_head() | {"sounding": sounding})
    assert tagger.load(tmp_path)["sounding"] is sounding
  with np.load(tmp_path / "head.npz") as found:
    old = {name: found[name] for name in found if name != "sounding"}
  np.savez(tmp_path / "head.npz", **old)
  assert tagger.load(tmp_path)["sounding"] is True


def test_certainty_is_a_number():
  head = make_head("probabilities", ())
  for layer in head["layers"]:
    layer["kernel"] *= 1e4
  found = tagger.logits(head, np.ones((1, 5)))
  assert np.isfinite(found).all()
  assert np.abs(found).max() > 100


def test_mistakes_are_explained(tmp_path):
  with pytest.raises(InputError, match=r"no tag head .* missing or damaged"):
    tagger.load(tmp_path)
  tagger.save(tmp_path, make_head())
  file = tmp_path / "head.npz"
  for damaged in (file.read_bytes()[:200], b"", b"PK\x03\x04 no archive"):
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"no tag head .* missing or damaged"):
      tagger.load(tmp_path)
  for shape in ((2, 4), (5,), (0, 5)):
    with pytest.raises(InputError, match=r"for embeddings \[segments, 5\]"):
      tagger.logits(make_head(), np.zeros(shape))
