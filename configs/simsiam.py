"""SimSiam pre-training: a predictor meets the projections of other views.

"Exploring Simple Siamese Representation Learning" (Chen & He, 2021,
arXiv:2011.10566). None of the paper's five tasks; beside them for comparison.

  python -m ssl_music.main --config=configs/simsiam.py --workdir=DIR
  python -m ssl_music.main --config=configs/simsiam.py:paper --workdir=DIR \
    --config.data.name=NAME

"laptop": 400 steps of 48 pairs of 2 s, for a CPU. "paper": 999 x 512 steps of
128 pairs, for a GPU or TPU. Rate and weights were not searched for either.

The predictor's hidden layer is a quarter of its output, as published. The
authors end the projection head in batch norm, which the head here does not, and
train with SGD.
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "simsiam"
  config.pretext.predictor = (512, 2048)  # sizes of its layers
  if preset == "laptop":
    config.pretext.predictor = (64, 256)
    config.optimizer.learning_rate = 5e-4  # as BYOL's, its kin
  return config
