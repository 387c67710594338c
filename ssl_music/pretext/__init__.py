"""The pretext tasks, one file each.

To add one, write a file with a `loss` of the signature below and a line here.
"""

from collections.abc import Callable

from ssl_music.pretext import barlow_twins, contrastive, vicreg

# name -> loss(z, config, axis_name) -> (loss, metrics), where z [V, B, D] holds
# this device's projections; with an axis name the batch is spread over its
# devices, and the mean of their losses is the loss of the global batch.
PRETEXTS: dict[str, Callable] = {
  "contrastive": contrastive.loss,
  "barlow_twins": barlow_twins.loss,
  "vicreg": vicreg.loss,
}
