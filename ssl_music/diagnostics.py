"""How spread out the representations are, over the global batch."""

import jax
import jax.numpy as jnp

# Vectors of which the effective rank is taken. It grows with their number, so
# a fixed one also keeps batches of different sizes comparable.
RANK_VECTORS = 512


@jax.jit
def describe(
  embedding: jax.Array,
  projection: jax.Array,
  teacher: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Measures the spread of a batch of representations.

  Args:
    embedding: the backbone's, [V, B, D] (views, tracks, features); like the
      others it may be spread over devices along B, and any D will do.
    projection: the head's, [V, B, D].
    teacher: the teacher network's projections, [V, B, D], if there is one.

  Returns:
    float32 scalars, for each NAME in "embedding", "projection" and, where
    given, "teacher":
    "NAME_std", see `unit_std`; "NAME_cosine", see `mean_cosine`;
    "NAME_rank", see `effective_rank`, of all views of the batch's first tracks,
    at most `RANK_VECTORS` vectors: a batch is in random order, and the singular
    values of thousands of vectors would take longer than a training step.
  """
  given = {"embedding": embedding, "projection": projection, "teacher": teacher}
  result = {}
  for name, x in given.items():
    if x is not None:
      x = x.astype(jnp.float32)
      first = x[:, : max(RANK_VECTORS // len(x), 1)]
      result[f"{name}_std"] = unit_std(x)
      result[f"{name}_rank"] = effective_rank(first.reshape(-1, x.shape[-1]))
      result[f"{name}_cosine"] = mean_cosine(x)
  return result


def unit_std(x: jax.Array) -> jax.Array:
  """Returns the mean deviation per feature of vectors scaled to unit length.

  Times sqrt(D): 1 when [V, B, D] vectors point in all directions alike, 0 when
  all coincide (Chen & He, 2021, section 4.1).
  """
  # From the deviations, not as a difference of mean squares, which would leave
  # nothing but rounding of vectors that nearly coincide.
  return _unit(x).std(axis=(0, 1)).mean() * jnp.sqrt(float(x.shape[-1]))


def mean_cosine(x: jax.Array) -> jax.Array:
  """Returns the mean cosine between vectors of different tracks.

  Over all pairs of vectors of [V, B, D] that are no views of one track, from
  -1 / (B - 1) to 1; vectors of length 0 count as 0, and so does a single track.
  """
  tracks = x.shape[1]
  by_track = _unit(x).mean(axis=0)
  # The square of a sum holds the products of all pairs; those of a track with
  # itself are taken away. Of means, not sums: all numbers stay below 1, so the
  # result is good to float32's rounding in any batch.
  everything = jnp.square(by_track.mean(axis=0)).sum()
  itself = jnp.square(by_track).sum(axis=-1).mean() / tracks
  return (everything - itself) * (tracks / max(tracks - 1, 1))


def effective_rank(x: jax.Array) -> jax.Array:
  """Returns exp of the entropy of the normalised singular values of [N, D].

  RankMe (Garrido et al., 2023, equation 1), from 1 to min(N, D).
  """
  # Of x itself: through the eigenvalues of x x^T, everything below 3e-4 of the
  # largest singular value would be rounding, and count as spread.
  singular = jnp.linalg.svd(x, compute_uv=False)
  share = singular / jnp.maximum(singular.sum(), 1e-12) + 1e-7
  return jnp.exp(-(share * jnp.log(share)).sum())


def _unit(x: jax.Array) -> jax.Array:
  """Scales vectors to unit length."""
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
