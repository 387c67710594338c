"""SimSiam (Chen & He, 2021, equations 1 to 4)."""

from collections.abc import Mapping

import jax

from ssl_music.pretext import byol
from ssl_music.pretext.record import LEARNING_RATE, SIZES, Pretext


def loss(
  features: Mapping[str, jax.Array],
  config: Mapping,
  axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Brings predictions close to the projections of other views.

  Minus the mean cosine over the batch and over all ordered pairs of different
  views. The projections that serve as targets get no gradient (stop-gradient):
  with one they would collapse.

  Args:
    features: with "prediction" and "projection" of this device's items,
      [V, B, D] each, V >= 2.
    config: unused, for the losses' common signature.
    axis_name: unused too: items do not see each other here.

  Returns:
    The loss of this device's items, in [-1, 1] (its mean over devices is that
    of the global batch), and no metrics, {}.
  """
  del config, axis_name
  target = jax.lax.stop_gradient(byol.unit(features["projection"]))
  return -byol.mean_product(target, byol.unit(features["prediction"])), {}


TASK = Pretext(
  loss,
  colour="#882255",
  marker="<",
  fields={"predictor": SIZES},
  advice=f"{LEARNING_RATE}, or keep the predictor",
)
