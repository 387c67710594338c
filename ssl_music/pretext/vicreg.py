"""VICReg (Bardes et al., 2022, equations 1 to 6), as published."""

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ssl_music.pretext import correlation
from ssl_music.pretext.record import (
  LEARNING_RATE,
  NOT_NEGATIVE,
  POSITIVE,
  Pretext,
)

_EPSILON = 1e-5  # under the square root, whose gradient is infinite at 0


def loss(
  features: Mapping[str, jax.Array],
  config: Mapping,
  axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Pulls views together, keeps features spread and uncorrelated.

  The published code differs from the original in the third term: it takes the
  correlation matrix instead of the covariance, and the mean off its diagonal
  instead of the sum. With more than two views, the invariance is the mean over
  all pairs of views.

  Args:
    features: with this device's "projection", [V, B, D], V >= 2, D >= 2.
    config: the weights "invariance", "variance" and "covariance" (>= 0), and
      "gamma" (> 0), the standard deviation that features shall have.
    axis_name: the mapped axis over which the batch is spread, or None.

  Returns:
    The loss (its mean over devices is that of the global batch), and its terms
    {"invariance", "variance", "covariance"}, unweighted.
  """
  z = features["projection"]
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  pairs = itertools.combinations(range(len(z)), 2)
  distances = [jnp.square(z[i] - z[j]).mean() for i, j in pairs]
  invariance = jnp.stack(distances).mean()

  size = correlation.batch_size(z, axis_name)
  centred = z - correlation.mean_over_batch(z, axis_name)
  biased = correlation.mean_over_batch(jnp.square(centred), axis_name)
  deviation = jnp.sqrt(biased * (size / (size - 1)) + _EPSILON)
  variance = jax.nn.relu(config["gamma"] - deviation).mean()

  unit = correlation.standardise(z, axis_name)
  matrix = correlation.product(unit, unit, axis_name)
  covariance = correlation.mean_off_diagonal(matrix).mean()

  terms = {
    "invariance": invariance,
    "variance": variance,
    "covariance": covariance,
  }
  return sum(config[name] * term for name, term in terms.items()), terms


TASK = Pretext(
  loss,
  colour="#CC79A7",
  marker="v",
  fields={
    "invariance": NOT_NEGATIVE,
    "variance": NOT_NEGATIVE,
    "covariance": NOT_NEGATIVE,
    "gamma": POSITIVE,
  },
  advice=f"{LEARNING_RATE} or raise --config.pretext.variance and"
  " --config.pretext.covariance",
)
