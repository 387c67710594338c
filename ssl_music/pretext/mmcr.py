"""MMCR, maximum manifold capacity representations (Yerxa et al., 2023)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ssl_music.pretext import byol
from ssl_music.pretext.record import NOT_NEGATIVE, Pretext


def loss(
  features: Mapping[str, jax.Array],
  config: Mapping,
  axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Spreads tracks' mean views apart, and so pulls views of a track together.

  Minus the nuclear norm of the matrix of centroids, each the mean over a
  track's views of projections scaled to length 1, plus "compression" times the
  mean over tracks of the nuclear norm of a track's own views. The authors' code
  sets that weight to 0: a long centroid already means that views agree. For
  ImageNet it also averages in a momentum encoder's projections; this task does
  not.

  Args:
    features: with this device's "projection", [V, B, D], V >= 2.
    config: "compression" (the paper's lambda, 0 or more).
    axis_name: the mapped axis over which the batch is spread, or None.

  Returns:
    The loss (its mean over devices is that of the global batch), at least
    -sqrt(B min(B, D)) for its B tracks, and {"centroid_length": the mean length
    of this device's centroids, in [0, 1]}.
  """
  z = byol.unit(features["projection"])
  centroids = z.mean(0)
  lengths = jnp.sqrt(jnp.square(centroids).sum(-1))
  every = centroids
  if axis_name is not None:
    every = jax.lax.all_gather(centroids, axis_name, tiled=True)
  total = -nuclear_norm(every)
  if config["compression"]:
    of_tracks = nuclear_norm(z.swapaxes(0, 1))
    total = total + config["compression"] * of_tracks.mean()
  return total, {"centroid_length": lengths.mean()}


def nuclear_norm(x: jax.Array) -> jax.Array:
  """Returns the sum of the singular values of matrices [..., N, D], [...]."""
  return jnp.linalg.svd(x, compute_uv=False).sum(-1)


TASK = Pretext(
  loss, colour="#332288", marker=">", fields={"compression": NOT_NEGATIVE}
)
