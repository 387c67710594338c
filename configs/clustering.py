"""Clustering pre-training (DINO): a teacher's soft clusters are the targets.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177).

  python -m ssl_music.main --config=configs/clustering.py --workdir=DIR
  python -m ssl_music.main --config=configs/clustering.py:paper --workdir=DIR \
    --config.data.name=NAME

"laptop": 400 steps of 48 pairs of 2 s, 3 to 4 minutes on two CPU cores.
"paper": 999 x 512 steps of 128 pairs, for a GPU or TPU; never run to its end
here. The paper's encoder, after 4 million tracks, reached .3989 on
MagnaTagATune and .2376 on MTG-Jamendo's top-50 tags.

Searched on real music (`benchmarks/search.py`: 216 training tracks, 200 steps
of the laptop's network; cross-validated mAP on training and validation tracks,
one run each, an untrained network .392 +- .021 over five seeds):

  published form     rate 5e-4 .348, 2e-3 .356, 5e-3 .217 (collapsed: targets
                     that hardly depend on the input)
  momentum 0.9       rate 2e-3 .300
  mean_entropy 1     rate 2e-3 .256; with cosine prototypes .381
  cosine prototypes  rate 2e-3 .371
  Sinkhorn           rate 5e-4 .345, 2e-3 .319
  Sinkhorn, cosine   rate 5e-4 .407, 2e-3 .386

(momentum 0.98 but for the second row.) "laptop" has what was best, Sinkhorn-
Knopp targets and DINO's own last layer; "paper" the published form.
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "clustering"
  config.pretext.head = (1024, 1024, 256, 4096)  # last: prototypes
  config.pretext.cosine_prototypes = False  # True: as in DINO itself
  config.pretext.targets = "centring"  # "centring" or "sinkhorn"
  config.pretext.sinkhorn_iterations = 3  # of "sinkhorn"
  config.pretext.centre_momentum = 0.9  # of "centring"
  config.pretext.mean_entropy = 0.0  # weight of an entropy term
  config.pretext.temperature = 0.1  # of the student
  config.pretext.teacher_temperature = 0.02  # at the first step
  config.pretext.final_teacher_temperature = 0.04  # after its warm-up
  config.pretext.momentum = 0.996  # of the teacher, at the first step
  config.pretext.final_momentum = 1.0  # at the last step, by a cosine
  defaults.add_duration(config, "momentum")  # of its rise; 0: the run's
  defaults.add_duration(config, "temperature_warmup")  # of the teacher's
  config.temperature_warmup_steps = 10 * 512
  if preset == "paper":  # whatever the run's length, as published
    config.momentum_steps = 999 * 512
  if preset == "laptop":
    config.pretext.head = (512, 512, 256, 1024)
    config.pretext.cosine_prototypes = True
    config.pretext.targets = "sinkhorn"
    config.pretext.momentum = 0.98
    config.temperature_warmup_steps = 50
    config.optimizer.learning_rate = 5e-4
  return config
