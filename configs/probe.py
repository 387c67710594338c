"""Probes a frozen encoder: one linear layer on the embeddings of segments.

  python -m ssl_music.main --config=configs/probe.py --workdir=DIR \
    --config.encoder=WORKDIR --config.data.name=NAME

WORKDIR is that of a pre-training. The encoders "random" (an untrained network)
and "mel" (means and deviations of the log-mel spectrogram) are the floors to
compare with; the presets "laptop" and "paper" size them.
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  return defaults.probing(preset)
