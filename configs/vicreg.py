"""VICReg pre-training: invariance, variance, covariance of two views.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177).

  python -m ssl_music.main --config=configs/vicreg.py --workdir=DIR
  python -m ssl_music.main --config=configs/vicreg.py:paper --workdir=DIR

"laptop": as of contrastive.py, not searched for this task.
"paper": 999 x 512 steps of 128 pairs, for a GPU or TPU; never run to its end
here. The paper's encoder, after 4 million tracks, reached .3598 on
MagnaTagATune and .2157 on MTG-Jamendo's top-50 tags.
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "vicreg"
  config.pretext.invariance = 1.0
  config.pretext.variance = 1.0
  config.pretext.covariance = 1.0
  config.pretext.gamma = 1.0
  return config
