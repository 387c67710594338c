"""LeJEPA pre-training: views agree, and projections become Gaussian.

"LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics"
(Balestriero & LeCun, 2025, arXiv:2511.08544). None of the paper's five tasks;
beside them for comparison.

  python -m ssl_music.main --config=configs/lejepa.py --workdir=DIR
  python -m ssl_music.main --config=configs/lejepa.py:paper --workdir=DIR \
    --config.data.name=NAME

"laptop": 400 steps of 48 pairs of 2 s, 3 to 4 minutes on two CPU cores.
"paper": 999 x 512 steps of 128 pairs, for a GPU or TPU. Neither was searched.
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "lejepa"
  config.pretext.weight = 0.05  # of SIGReg; the rest is the views' distance
  config.pretext.directions = 256  # drawn anew at each step
  return config
