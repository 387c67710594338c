"""LeJEPA pre-training: views agree, and projections become Gaussian.

"LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics"
(Balestriero & LeCun, 2025, arXiv:2511.08544). None of the paper's five tasks;
beside them for comparison.

  python -m ssl_music.main --config=configs/lejepa.py --workdir=DIR
  python -m ssl_music.main --config=configs/lejepa.py:paper --workdir=DIR \
    --config.data.name=NAME

"laptop": 400 steps of 48 pairs of 2 s, for a CPU. "paper": 999 x 512 steps of
128 pairs, for a GPU or TPU. Rate and weights were not searched for either.

The authors recommend a weight of 0.05 and 1024 directions (their algorithm 1
takes 256), a rate of 5e-4, for a ResNet a weight decay of 5e-4, and 2 long and
8 short views (`--config.short_views=8`).
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "lejepa"
  config.pretext.weight = 0.05  # lambda, of SIGReg; 1 - lambda of invariance
  config.pretext.directions = 1024  # drawn anew at each step
  if preset == "laptop":
    config.pretext.directions = 256
  return config
