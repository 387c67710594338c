"""MMCR pre-training: maximum manifold capacity of tracks.

"Learning Efficient Coding of Natural Images with Maximum Manifold Capacity
Representations" (Yerxa et al., 2023, arXiv:2303.03307). None of the paper's
five tasks; beside them for comparison.

  python -m ssl_music.main --config=configs/mmcr.py --workdir=DIR
  python -m ssl_music.main --config=configs/mmcr.py:paper --workdir=DIR \
    --config.data.name=NAME

"laptop": 400 steps of 48 pairs of 2 s, for a CPU. "paper": 999 x 512 steps of
128 pairs, for a GPU or TPU. Rate and weights were not searched for either.

The authors take more views (8 on ImageNet, 40 on CIFAR) and no weight
for compression.
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "mmcr"
  config.pretext.compression = 0.0  # lambda: weight of the term of own views
  return config
