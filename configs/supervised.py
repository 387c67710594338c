"""Supervised training of the same backbone, from the labels.

What pre-training without labels is to be compared with: the same network, data,
batch, steps and augmentation, but the loss is the binary cross entropy of the
tags. Its backbone is then probed like any other. (`configs/finetune.py` with an
untrained encoder scores the network's own head instead.)

  python -m ssl_music.main --config=configs/supervised.py --workdir=DIR \
    --config.data.name=NAME
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.pretext.name = "supervised"
  config.pretext.head = ()  # hidden layers; a last one of the tags is added
  config.views = 2  # so that a step sees as many segments as of other tasks
  config.data.splits = ("train",)
  config.data.tags = ""  # prefixes of the tags to learn, "a,b"; "": all
  return config
