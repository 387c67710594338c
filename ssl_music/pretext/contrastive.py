"""Contrastive pretext task: NT-Xent (Chen et al., 2020, equation 1)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ssl_music.pretext.record import LEARNING_RATE, POSITIVE, Pretext


def loss(
  features: Mapping[str, jax.Array],
  config: Mapping,
  axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Normalised-temperature cross entropy over the global batch.

  With more than two views, every ordered pair of views of a track is a
  positive pair and the loss is the mean over all of them. As published, the
  denominator holds every other item, other positives included.

  Args:
    features: with this device's "projection", [V, B, D], V >= 2.
    config: "temperature" (tau > 0).
    axis_name: the mapped axis over which the batch is spread, or None.

  Returns:
    The loss of this device's rows (its mean over devices is that of the global
    batch), and {"accuracy": share of rows whose nearest other item is a view
    of the same track}.
  """
  return nt_xent(features["projection"], config["temperature"], axis_name)


def nt_xent(
  z: jax.Array, temperature: float, axis_name: str | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """NT-Xent; see `loss`."""
  views, items, _ = z.shape
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  # Squared, since a norm has no gradient at 0.
  square = jnp.square(z).sum(-1, keepdims=True)
  z = z * jax.lax.rsqrt(jnp.maximum(square, 1e-16))
  first, others = 0, z
  if axis_name is not None:
    first = jax.lax.axis_index(axis_name) * items
    others = jax.lax.all_gather(z, axis_name, axis=1, tiled=True)
  total = others.shape[1]
  # Rows of this device against columns of all: [V, b, V, B].
  similarity = jnp.einsum(
    "ubd,vcd->ubvc", z, others, precision=jax.lax.Precision.HIGHEST
  )
  logits = similarity / temperature
  same_track = (first + jnp.arange(items))[:, None] == jnp.arange(total)
  same_view = jnp.eye(views, dtype=bool)
  itself = same_view[:, None, :, None] & same_track[None, :, None, :]
  positive = ~same_view[:, None, :, None] & same_track[None, :, None, :]
  logits = jnp.where(itself, -jnp.inf, logits)
  normaliser = jax.nn.logsumexp(logits, axis=(2, 3))
  matched = jnp.where(positive, logits, 0).sum((2, 3)) / (views - 1)
  flat = logits.reshape(views, items, -1)
  nearest = flat.argmax(-1)[..., None]
  hit = jnp.take_along_axis(positive.reshape(flat.shape), nearest, -1)
  return (normaliser - matched).mean(), {"accuracy": hit.mean()}


TASK = Pretext(
  loss,
  colour="#0072B2",
  marker="o",
  fields={"temperature": POSITIVE},
  advice=f"{LEARNING_RATE} or lengthen the warm-up",
)
