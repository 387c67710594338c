"""Contrastive pre-training: NT-Xent on two segments of a track.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177).

  python -m ssl_music.main --config=configs/contrastive.py --workdir=DIR
  python -m ssl_music.main --config=configs/contrastive.py:paper --workdir=DIR
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "contrastive"
  config.pretext.temperature = 0.1
  config.pretext.head = (1024, 1024, 2048)
  if preset == "laptop":
    config.pretext.temperature = 0.2
    config.pretext.head = (512, 512, 256)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_weight_decay = 0.04
    config.augment.gain = 6.0
    config.augment.equaliser = 3.0
  return config
