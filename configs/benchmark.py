"""The paper's study: every task, every data set, every share of the labels.

"An Experimental Comparison of Multi-view Self-supervised Methods for Music
Tagging" (ICASSP 2024, arXiv:2404.09177), figures 1 and 2.

  python -m ssl_music.main --config=configs/benchmark.py --workdir=DIR \
    --config.datasets=mine,magnatagatune
  python -m ssl_music.main --config=configs/benchmark.py:paper --workdir=DIR \
    --config.datasets=magnatagatune,mtg_jamendo_top50

Pre-trains each of `config.encoders` on the training and unlabelled tracks of
all data sets together (or of `config.pool`), probes it and the floors "random"
and "mel" on each data set with 1, 5, 10, 20 and 100 % of the training tracks,
and reports. "supervised" among the encoders is a network that learns each data
set's tags from the start, "finetune-byol" one that does so from BYOL's weights,
both scored by their own heads with all labels (`configs/finetune.py`).

Any field of a pre-training or of the probes can be overridden, as in
`--config.pretrain.byol.total_steps=200` and `--config.probe.probe.seeds=5`. The
same command goes on where it was stopped or killed.

"laptop": 3 to 4 minutes a task on two CPU cores, and the probes. "paper": each
task 999 x 512 steps of 128 pairs, for a GPU or TPU; never run to its end here.
"""

from pathlib import Path

from ml_collections import ConfigDict

from ssl_music import config as defaults
from ssl_music.pretext import PRETEXTS

TASKS = [name for name, task in PRETEXTS.items() if not task.labels]


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.benchmark(preset)
  here = Path(__file__).parent
  config.pretrain = ConfigDict(
    {name: defaults.read(here / f"{name}.py", preset) for name in TASKS}
  )
  config.finetune = defaults.read(here / "finetune.py", preset)
  return config
