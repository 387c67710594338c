"""Supervised training on tags, the upper bound to compare pretexts with."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from ssl_music.pretext.record import Pretext


def loss(
  features: Mapping[str, jax.Array],
  config: Mapping,
  axis_name: str | None = None,
  *,
  labels: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Binary cross entropy, mean over views, items and tags.

  Args:
    features: with logits of this device's items, "projection", [V, B, K].
    config: unused, for the losses' common signature.
    axis_name: unused too: items do not see each other here.
    labels: whether an item has a tag, whatever the view, [1, B, K], boolean or
      0 and 1.

  Returns:
    The loss of this device's items in nats (its mean over devices is that of
    the global batch), and no metrics, {}.
  """
  del config, axis_name
  z = features["projection"]
  z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
  labels = labels.astype(z.dtype)
  return optax.sigmoid_binary_cross_entropy(z, labels).mean(), {}


# Rare tags ask for logits that are all alike: no sign of a collapse.
TASK = Pretext(loss, colour="#56B4E9", marker="P", labels=True, signs=())
