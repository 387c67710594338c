"""How spread out the representations are, over the global batch."""

import jax
import jax.numpy as jnp


@jax.jit
def describe(embedding: jax.Array) -> dict[str, jax.Array]:
  """Measures the spread of a batch of embeddings.

  Args:
    embedding: [V, B, D]; it may be spread over devices.

  Returns:
    {"embedding_std", "embedding_rank"}: the standard deviation per feature of
    the embeddings scaled to unit length, times sqrt(D) (1 when they point in
    all directions alike, 0 when all coincide; Chen & He, 2021, section 4.1);
    and their effective rank (RankMe, Garrido et al., 2023, equation 1), from 1
    to min(V * B, D).
  """
  x = embedding.reshape(-1, embedding.shape[-1]).astype(jnp.float32)
  unit = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  std = unit.std(axis=0).mean() * jnp.sqrt(x.shape[-1])
  return {"embedding_std": std, "embedding_rank": effective_rank(x)}


def effective_rank(x: jax.Array) -> jax.Array:
  """Returns exp of the entropy of the normalised singular values of [N, D]."""
  singular = jnp.linalg.svd(x, compute_uv=False)
  share = singular / jnp.maximum(singular.sum(), 1e-12) + 1e-7
  return jnp.exp(-(share * jnp.log(share)).sum())
