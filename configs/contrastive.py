"""Contrastive pre-training: NT-Xent on two segments of a track.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177).

  python -m ssl_music.main --config=configs/contrastive.py --workdir=DIR
  python -m ssl_music.main --config=configs/contrastive.py:paper --workdir=DIR \
    --config.data.name=NAME

"laptop": 400 steps of 48 pairs of 2 s, 3 to 4 minutes on two CPU cores; with
the demo music, test mAP (macro) then is about .8 (README.md).
"paper": 999 x 512 steps of 128 pairs, for a GPU or TPU; never run to its end
here. The paper's encoder, after 4 million tracks, reached .4303 on
MagnaTagATune and .2435 on MTG-Jamendo's top-50 tags.

Searched on real music (`benchmarks/search.py`: 216 training tracks, 200 steps
of the laptop's network; cross-validated mAP on training and validation tracks,
one run each, an untrained network .392 +- .021 over five seeds):

  rate 5e-4 .417, 2e-3 .424, 5e-3 .401
  temperature 0.1 .419, 0.2 .424 (at 2e-3)

Augmentation, each operation alone (strengths as in `ssl_music/augment.py`):

  none            .433
  gain            .421 (6 dB)   .412 (12 dB)
  equaliser       .420 (3 dB)   .407 (8 dB)
  mix             .424 (0.1)    .411 (0.3)
  noise           .449 (0.03)   .437 (0.3)
  crop_time       .428 (0.1)    .432 (0.3)
  crop_frequency  .419 (0.1)    .381 (0.3)
  time masks      .408 (1 x 8)  .402 (2 x 16)
  frequency masks .411 (1 x 8)  .396 (2 x 16)

and together: gain 6 and equaliser 3 .424, 12 and 6 .410; all but noise, mildly,
.384, and all strongly .407. Hardly any of it pays in so short a run. Gain
6 and equaliser 3 are kept for all tasks: within the noise of none, and what
stops longer runs from telling pairs by their loudness and equalisation.
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "contrastive"
  config.pretext.temperature = 0.1 if preset == "paper" else 0.2  # of cosines
  return config
