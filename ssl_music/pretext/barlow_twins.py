"""Barlow Twins (Zbontar et al., 2021, equations 1 and 2), as published."""

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ssl_music.pretext import correlation
from ssl_music.pretext.record import LEARNING_RATE, NOT_NEGATIVE, Pretext


def loss(
  features: Mapping[str, jax.Array],
  config: Mapping,
  axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Makes the cross-correlation of two views' features the identity.

  As in the published code, the two terms are means over the diagonal and over
  the rest, where the original sums. With more than two views, the mean over
  all pairs of views.

  Args:
    features: with this device's "projection", [V, B, D], V >= 2, D >= 2.
    config: "off_diagonal" (lambda >= 0, the weight of the second term).
    axis_name: the mapped axis over which the batch is spread, or None.

  Returns:
    The loss of the global batch, and its terms {"on_diagonal",
    "off_diagonal"}, unweighted.
  """
  z = features["projection"]
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  z = correlation.standardise(z, axis_name)
  first, second = zip(*itertools.combinations(range(len(z)), 2), strict=True)
  matrix = correlation.product(
    z[jnp.array(first)], z[jnp.array(second)], axis_name
  )
  diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)
  on = jnp.square(1 - diagonal).mean()
  off = correlation.mean_off_diagonal(matrix).mean()
  metrics = {"on_diagonal": on, "off_diagonal": off}
  return on + config["off_diagonal"] * off, metrics


TASK = Pretext(
  loss,
  colour="#E69F00",
  marker="D",
  fields={"off_diagonal": NOT_NEGATIVE},
  advice=f"{LEARNING_RATE} or raise --config.pretext.off_diagonal",
)
