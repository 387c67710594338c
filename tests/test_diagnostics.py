"""The diagnostics, against slow references in NumPy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_music import diagnostics, parallel
from ssl_music.diagnostics import RANK_VECTORS, describe, effective_rank

NAMES = ("std", "rank", "cosine")


def draw(views=2, items=16, features=12, seed=0, offset=0.0):
  rng = np.random.default_rng(seed)
  # Views of a track are alike, so that to mix up pairs would show.
  track = rng.standard_normal((1, items, features))
  own = rng.standard_normal((views, items, features))
  return (offset + track + 0.3 * own).astype(np.float32)


def reference(x):
  """Pair by pair; {"std", "rank", "cosine"}."""
  x = x.astype(np.float64)
  views, items, features = x.shape
  unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
  flat, track = unit.reshape(-1, features), np.tile(np.arange(items), views)
  cosines = (flat @ flat.T)[track[:, None] != track]
  deviations = [unit[..., d].std() for d in range(features)]
  singular = np.linalg.svd(x.reshape(-1, features), compute_uv=False)
  share = singular[singular > 1e-9 * singular[0]] / singular.sum()
  return {
    "std": np.mean(deviations) * np.sqrt(features),
    "rank": np.exp(-(share * np.log(share)).sum()),
    "cosine": np.mean(cosines),
  }


@pytest.mark.parametrize("offset", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_equals_the_reference(views, offset):
  given = {
    "embedding": draw(views, seed=1, offset=offset),
    "projection": draw(views, features=40, seed=2, offset=offset),
    "teacher": draw(2, features=7, seed=3, offset=offset),
  }
  found = describe(**given)
  assert found.keys() == {f"{a}_{b}" for a in given for b in NAMES}
  for name, x in given.items():
    for kind, value in reference(x).items():
      np.testing.assert_allclose(
        found[f"{name}_{kind}"], value, rtol=1e-4, atol=1e-6
      )


def test_without_a_teacher():
  found = describe(draw(), draw(features=5))
  assert found.keys() == {
    f"{a}_{b}" for a in ("embedding", "projection") for b in NAMES
  }


def test_devices_make_no_difference():
  mesh = parallel.make_mesh()
  assert mesh.size == 8
  given = [draw(seed=1), draw(features=40, seed=2), draw(features=7, seed=3)]
  divided = [parallel.shard(x, mesh, axis=1) for x in given]
  whole, found = describe(*given), describe(*divided)
  for name in whole:
    np.testing.assert_allclose(
      found[name], whole[name], rtol=1e-5, atol=1e-7, err_msg=name
    )


def test_isotropic_and_collapsed():
  rng = np.random.default_rng(0)
  wide = rng.standard_normal((2, 2000, 8)).astype(np.float32)
  same = np.broadcast_to(wide[:1, :1], wide.shape)
  line = wide[:1, :1] * rng.standard_normal((2, 2000, 1)).astype(np.float32)
  wide, same = describe(wide, line), describe(same, np.zeros_like(same))
  np.testing.assert_allclose(wide["embedding_std"], 1, rtol=0.01)
  np.testing.assert_allclose(wide["embedding_rank"], 8, rtol=0.01)
  np.testing.assert_allclose(wide["embedding_cosine"], 0, atol=0.005)
  np.testing.assert_allclose(wide["projection_rank"], 1, rtol=1e-3)
  np.testing.assert_allclose(wide["projection_cosine"], 0, atol=0.005)
  np.testing.assert_allclose(same["embedding_std"], 0, atol=1e-6)
  np.testing.assert_allclose(same["embedding_rank"], 1, rtol=1e-3)
  np.testing.assert_allclose(same["embedding_cosine"], 1, atol=1e-6)
  # A network that is dead puts out zeros: finite numbers, no spread.
  assert same["projection_std"] == same["projection_cosine"] == 0
  np.testing.assert_allclose(same["projection_rank"], 1, rtol=1e-3)


@pytest.mark.parametrize("noise", [1e-3, 1e-5, 1e-7])
def test_a_nearly_collapsed_batch_in_float32(noise):
  rng = np.random.default_rng(0)
  x = 3 + noise * rng.standard_normal((2, 64, 2048))
  x = x.astype(np.float32)
  found, expected = describe(x, x), reference(x)
  # A thousand times under the smallest spread that means anything (0.05).
  assert abs(found["embedding_std"] - expected["std"]) < 1e-6
  assert abs(found["embedding_cosine"] - expected["cosine"]) < 2e-6
  assert abs(found["embedding_rank"] - expected["rank"]) < 0.01


def test_orthogonal_tracks_have_no_cosine_whatever_their_views():
  x = np.broadcast_to(np.eye(16, dtype=np.float32), (2, 16, 16))
  found = describe(x, x - 1 / 16)
  np.testing.assert_allclose(found["embedding_cosine"], 0, atol=1e-7)
  # Centred, they are as far apart as 16 vectors can be.
  np.testing.assert_allclose(found["projection_cosine"], -1 / 15, rtol=1e-5)


def test_a_single_track():
  found = describe(draw(items=1), draw(items=1))
  assert found["embedding_cosine"] == 0
  assert all(np.isfinite(value) for value in found.values())


def test_rank_of_many_vectors_is_that_of_the_first_tracks():
  x = draw(views=2, items=RANK_VECTORS, features=24, seed=4)
  x[:, RANK_VECTORS // 2 :] = 1  # past the limit, nothing counts
  found = describe(x, x[:, : RANK_VECTORS // 2])
  np.testing.assert_allclose(
    found["embedding_rank"], found["projection_rank"], rtol=1e-5
  )
  assert found["embedding_rank"] > 15
  # … but for spread and cosine, which are cheap, everything does.
  for kind in ("std", "cosine"):
    value = reference(x)[kind]
    np.testing.assert_allclose(found[f"embedding_{kind}"], value, rtol=1e-4)
  # A limit under one vector a view is still one track.
  many = np.ones((RANK_VECTORS + 1, 1, 2), np.float32)
  np.testing.assert_allclose(describe(many, many)["embedding_rank"], 1, 1e-3)


def test_bfloat16_is_measured_in_float32():
  x = jnp.asarray(draw(), jnp.bfloat16)
  found = describe(x, x)
  expected = reference(np.asarray(x.astype(jnp.float32)))
  for kind, value in expected.items():
    assert found[f"embedding_{kind}"].dtype == jnp.float32
    np.testing.assert_allclose(
      found[f"embedding_{kind}"], value, rtol=1e-4, atol=1e-6
    )


def test_effective_rank_counts_equal_directions():
  for rank in (1, 3, 8):
    x = np.zeros((20, 8), np.float32)
    x[:rank, :rank] = 5 * np.eye(rank)
    np.testing.assert_allclose(effective_rank(x), rank, rtol=1e-3)


def test_no_matrix_of_all_pairs():
  # [N, N] of this batch would be 16 times the batch itself.
  x = jax.ShapeDtypeStruct((2, 8192, 1024), jnp.float32)
  shapes = {
    value.aval.shape
    for equation in jax.make_jaxpr(diagnostics.mean_cosine)(x).jaxpr.eqns
    for value in equation.outvars
  }
  assert max(np.prod(shape) for shape in shapes) <= np.prod(x.shape)
