"""Barlow Twins pre-training: two views' cross-correlation made the identity.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177).

  python -m ssl_music.main --config=configs/barlow_twins.py --workdir=DIR
  python -m ssl_music.main --config=configs/barlow_twins.py:paper \
    --workdir=DIR --config.data.name=NAME

"laptop": 400 steps of 48 pairs of 2 s, 3 to 4 minutes on two CPU cores.
"paper": 999 x 512 steps of 128 pairs, for a GPU or TPU; never run to its end
here. The paper's encoder, after 4 million tracks, reached .3660 on
MagnaTagATune and .2354 on MTG-Jamendo's top-50 tags.

Searched on real music (`benchmarks/search.py`: 216 training tracks, 200 steps
of the laptop's network; cross-validated mAP on training and validation tracks,
one run each, an untrained network .392 +- .021 over five seeds):

  rate 5e-4 .377, 2e-3 .405, 5e-3 .384
  off_diagonal 5 (at 2e-3) .415, with a projection of a higher rank (38, not 24)
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "barlow_twins"
  # Means, not sums: the original's 0.005 of the sum is about 10 of the paper's
  # head, and 1.3 of the laptop's.
  config.pretext.off_diagonal = 1.0 if preset == "paper" else 5.0  # weight
  return config
