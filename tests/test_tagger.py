import io
import itertools
import zipfile

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
  assert {file.name for file in tmp_path.iterdir()} == {"head.npz", "seal.json"}
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
  (tmp_path / "seal.json").unlink()
  assert tagger.load(tmp_path)["sounding"] is True


def test_certainty_is_a_number():
  head = make_head("probabilities", ())
  for layer in head["layers"]:
    layer["kernel"] *= 1e4
  found = tagger.logits(head, np.ones((1, 5)))
  assert np.isfinite(found).all()
  assert np.abs(found).max() > 100


def test_mistakes_are_explained(tmp_path):
  with pytest.raises(InputError, match=r"no tag head .* has no head\.npz"):
    tagger.load(tmp_path)
  for shape in ((2, 4), (5,), (0, 5)):
    with pytest.raises(InputError, match=r"for embeddings \[segments, 5\]"):
      tagger.logits(make_head(), np.zeros(shape))


def test_a_damaged_head_is_refused(tmp_path):
  """With its seal, and as an older version has left it, without."""
  tagger.save(tmp_path, make_head())
  file = tmp_path / "head.npz"
  whole = file.read_bytes()
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 1
  for damaged in (flipped, whole[:200], b"", b"PK\x03\x04 no archive"):
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"head\.npz is damaged \("):
      tagger.load(tmp_path)
  (tmp_path / "seal.json").unlink()
  for damaged in (flipped, whole[:200], b"", b"PK\x03\x04 no archive"):
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"head\.npz is damaged \("):
      tagger.load(tmp_path)
  file.write_bytes(whole)
  assert tagger.load(tmp_path)["tags"] == make_head()["tags"]


@pytest.mark.parametrize(
  ("wrong", "said"),
  [
    ({"mean": np.full(5, np.nan)}, "no finite number"),
    ({"mean": np.arange(5)}, "no finite number"),
    ({"inverse": np.zeros(4)}, "do not fit together"),
    ({"mean": np.float32(1)}, "unpack"),
    ({"tags": np.arange(3)}, "no tags"),
    ({"tags": ["a", "b"]}, "do not fit together"),
    ({"aggregation": "median"}, "no aggregation 'median'"),
    ({"kernel_1": np.zeros((2, 7, 4))}, "do not fit together"),
    ({"tags": np.array([{}], object)}, "no array of object"),
  ],
)
def test_a_head_that_makes_no_sense_is_refused(tmp_path, wrong, said):
  file = tmp_path / "head.npz"
  with np.load(io.BytesIO(tagger.dump(make_head()))) as whole:
    np.savez(file, allow_pickle=True, **dict(whole) | wrong)
  with pytest.raises(InputError, match=rf"head\.npz is damaged \(.*{said}"):
    tagger.load(tmp_path)


@pytest.mark.parametrize("method", [8, 12, 14, 99])
def test_another_way_of_packing_is_damage(tmp_path, method):
  content = bytearray(tagger.dump(make_head()))
  for sign, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
    content[content.rindex(sign) + place] = method
  (tmp_path / "head.npz").write_bytes(content)
  with pytest.raises(InputError, match=r"head\.npz is damaged \(it is compr"):
    tagger.load(tmp_path)


def test_a_small_file_does_not_become_gigabytes(tmp_path):
  file = tmp_path / "head.npz"
  np.savez_compressed(file, mean=np.zeros(1 << 24, np.float32))
  assert file.stat().st_size < 1 << 17
  with pytest.raises(InputError, match=r"is damaged \(it is compressed"):
    tagger.load(tmp_path)
  header = io.BytesIO()
  shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
  np.lib.format.write_array_header_1_0(header, shape)
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("mean.npy", header.getvalue() + bytes(400))
  with pytest.raises(
    InputError, match=r"no array of float32 \[1099511627776\]"
  ):
    tagger.load(tmp_path)
