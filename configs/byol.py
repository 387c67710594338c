"""BYOL pre-training: a predictor meets a slowly moving teacher.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177).

  python -m ssl_music.main --config=configs/byol.py --workdir=DIR
  python -m ssl_music.main --config=configs/byol.py:paper --workdir=DIR \
    --config.data.name=NAME

"laptop": 400 steps of 48 pairs of 2 s, 3 to 4 minutes on two CPU cores.
"paper": 999 x 512 steps of 128 pairs, for a GPU or TPU; never run to its end
here. The paper's encoder, after 4 million tracks, reached .3640 on
MagnaTagATune and .2026 on MTG-Jamendo's top-50 tags.

Searched on real music (`benchmarks/search.py`: 216 training tracks, 200 steps
of the laptop's network; cross-validated mAP on training and validation tracks,
one run each, an untrained network .392 +- .021 over five seeds):

  momentum 0.98   rate 5e-4 .351, 2e-3 .296, 5e-3 .294
  momentum 0.9    rate 2e-3 .312
  momentum 0.996  rate 2e-4 .357, 5e-4 .367, 2e-3 .330

None is above the untrained network: in 200 steps BYOL narrows its embedding
(effective rank 5 to 25 of 96; contrastive 28) and has not recovered yet. It is
no collapse, and the slower the student and teacher, the less of it.
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "byol"
  config.pretext.momentum = 0.996  # of the teacher, at the first step
  config.pretext.final_momentum = 1.0  # at the last step, by a cosine
  defaults.add_duration(config, "momentum")  # of its rise; 0: the run's
  config.pretext.predictor = (256, 2048)  # sizes of its layers
  if preset == "paper":  # whatever the run's length, as published
    config.momentum_steps = 999 * 512
  if preset == "laptop":
    config.pretext.predictor = (128, 256)
    config.optimizer.learning_rate = 5e-4
  return config
