"""VICReg pre-training: invariance, variance, covariance of two views.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177).

  python -m ssl_music.main --config=configs/vicreg.py --workdir=DIR
  python -m ssl_music.main --config=configs/vicreg.py:paper --workdir=DIR \
    --config.data.name=NAME

"laptop": 400 steps of 48 pairs of 2 s, 3 to 4 minutes on two CPU cores.
"paper": 999 x 512 steps of 128 pairs, for a GPU or TPU; never run to its end
here. The paper's encoder, after 4 million tracks, reached .3598 on
MagnaTagATune and .2157 on MTG-Jamendo's top-50 tags.

Searched on real music (`benchmarks/search.py`: 216 training tracks, 200 steps
of the laptop's network; cross-validated mAP on training and validation tracks,
one run each, an untrained network .392 +- .021 over five seeds):

  rate 5e-4 .415, 2e-3 .391, 5e-3 .359
  covariance 10: .444 at 2e-3, with a projection of a higher rank (65,
  not 14)
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "vicreg"
  config.pretext.invariance = 1.0  # weight
  config.pretext.variance = 1.0  # weight
  # A mean off the diagonal, where the original has a sum over features.
  config.pretext.covariance = 1.0 if preset == "paper" else 10.0  # weight
  config.pretext.gamma = 1.0  # least standard deviation of each feature
  return config
