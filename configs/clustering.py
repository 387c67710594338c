"""Clustering pre-training (DINO): a teacher's soft clusters are the targets.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177).

  python -m ssl_music.main --config=configs/clustering.py --workdir=DIR
  python -m ssl_music.main --config=configs/clustering.py:paper --workdir=DIR
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "clustering"
  config.pretext.head = (1024, 1024, 256, 4096)
  config.pretext.cosine_prototypes = False
  config.pretext.targets = "centring"
  config.pretext.sinkhorn_iterations = 3
  config.pretext.centre_momentum = 0.9
  config.pretext.mean_entropy = 0.0
  config.pretext.temperature = 0.1
  config.pretext.teacher_temperature = 0.02
  config.pretext.final_teacher_temperature = 0.04
  config.pretext.momentum = 0.996
  config.pretext.final_momentum = 1.0
  defaults.add_duration(config, "temperature_warmup")
  if preset == "laptop":
    config.pretext.head = (512, 512, 256, 1024)
    config.pretext.momentum = 0.98
    config.temperature_warmup_steps = 50
  else:
    config.temperature_warmup_steps = 10 * 512
  return config
