"""LeJEPA (Balestriero & LeCun, 2025, algorithms 1 and 2)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ssl_music.pretext.correlation import batch_size, mean_over_batch
from ssl_music.pretext.record import LEARNING_RATE, POSITIVE, SHARE, Pretext


def loss(
  features: Mapping[str, jax.Array],
  config: Mapping,
  axis_name: str | None = None,
  *,
  key: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Pulls views of a track together and the batch towards a normal law.

  (1 - weight) times the squared distance of a track's views from their mean
  (equation 7, but the mean over features, as in algorithm 2), plus weight times
  the mean of SIGReg over views and directions. Short views count in a track's
  mean like the others, as the paper has it for a ResNet.

  Args:
    features: with this device's "projection", [V, B, D], V >= 2.
    config: "weight" (the paper's lambda, 0 to 1) and "directions" (how many are
      drawn at each step).
    axis_name: the mapped axis over which the batch is spread, or None.
    key: the same on all devices.

  Returns:
    The loss (its mean over devices is that of the global batch), and its terms
    {"invariance", "sigreg"}, unweighted.
  """
  z = features["projection"]
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  shape = z.shape[-1], config["directions"]
  directions = jax.random.normal(key, shape, z.dtype)
  directions /= jnp.linalg.norm(directions, axis=0)
  invariance = jnp.square(z - z.mean(0)).mean()
  regular = sigreg(z, directions, axis_name).mean()
  weight = config["weight"]
  terms = {"invariance": invariance, "sigreg": regular}
  return (1 - weight) * invariance + weight * regular, terms


def sigreg(
  z: jax.Array, directions: jax.Array, axis_name: str | None
) -> jax.Array:
  """Measures how far projections are from a standard normal law.

  The statistic of Epps & Pulley (1983) along each direction: the batch size
  times the squared distance of the empirical characteristic function from the
  normal law's, exp(-t^2 / 2), weighted by the latter and integrated over t from
  -5 to 5 by trapezoids on 17 points (algorithm 1). The distance is the same at
  t and -t, so 9 points are enough.

  Args:
    z: [V, B, D].
    directions: of length 1, [D, directions].
    axis_name: as of `loss`.

  Returns:
    [V, directions], 0 or more; about 1.06 for a normal batch of any size.
  """
  t = jnp.linspace(0, 5, 9, dtype=z.dtype)
  normal = jnp.exp(-jnp.square(t) / 2)
  along = jnp.dot(z, directions, precision=jax.lax.Precision.HIGHEST)
  angle = along[..., None, :] * t[:, None]  # [V, B, points, directions]
  flat = angle.reshape(*z.shape[:2], -1)
  mean = lambda x: mean_over_batch(x, axis_name).reshape(len(z), len(t), -1)
  real, imaginary = mean(jnp.cos(flat)), mean(jnp.sin(flat))
  distance = jnp.square(real - normal[:, None]) + jnp.square(imaginary)
  half = jnp.trapezoid(distance * normal[:, None], t, axis=1)
  return 2 * half * batch_size(z, axis_name)


TASK = Pretext(
  loss,
  colour="#7F3C00",
  marker="p",
  fields={"weight": SHARE, "directions": POSITIVE},
  draws=True,
  advice=f"{LEARNING_RATE} or raise --config.pretext.weight",
)
