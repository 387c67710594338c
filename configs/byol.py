"""BYOL pre-training: a predictor meets a slowly moving teacher.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177).

  python -m ssl_music.main --config=configs/byol.py --workdir=DIR
  python -m ssl_music.main --config=configs/byol.py:paper --workdir=DIR
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "byol"
  config.pretext.momentum = 0.996
  config.pretext.final_momentum = 1.0
  config.pretext.predictor = (256, 2048)
  if preset == "laptop":
    config.pretext.momentum = 0.98
    config.pretext.predictor = (128, 256)
  return config
