"""Contrastive pre-training: NT-Xent on two segments of a track.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177).

  python -m ssl_music.main --config=configs/contrastive.py --workdir=DIR
  python -m ssl_music.main --config=configs/contrastive.py:paper --workdir=DIR

"laptop": 4 minutes on two CPU cores with the demo music, whose test mAP
(macro) then is .82 (README.md).
"paper": 999 x 512 steps of 128 pairs, for a GPU or TPU; never run to its end
here. The paper's encoder, after 4 million tracks, reached .4303 on
MagnaTagATune and .2435 on MTG-Jamendo's top-50 tags.
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "contrastive"
  # Published: 0.1. The laptop's 0.2 was chosen together with its network and
  # weight decay, not on its own.
  config.pretext.temperature = 0.1 if preset == "paper" else 0.2
  return config
