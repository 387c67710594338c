from pathlib import Path

import pytest

from ssl_music import config as defaults
from ssl_music import config_help

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
OWN = """
from ssl_music import config as defaults


def get_config(preset="laptop"):
  config = defaults.pretraining(preset)
  # Fewer than
  # usual.
  config.batch = 8
  config.views = 3  # one more
  config.mine = 1
  return config
"""


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_field_says_what_it_is(file):
  said = config_help.comments(file.read_text())
  for preset in defaults.PRESETS:
    config = defaults.read(file, preset)
    silent = [
      name
      for name, _ in config_help.fields(config)
      if not said.get(name) and not name.startswith(("pretrain.", "finetune."))
    ]
    assert silent == [], "write a comment beside these fields"


def test_a_comment_is_of_the_function_that_was_called():
  probe = config_help.comments((CONFIGS[0].parent / "probe.py").read_text())
  trained = config_help.comments((CONFIGS[0].parent / "byol.py").read_text())
  assert probe["data.name"] == "a prepared data set with tags"
  assert "pools" in trained["data.name"]
  assert trained["total_epochs"] == "length of the training, in epochs"
  assert trained["augment.crop_time"].startswith("largest share of the frames")
  assert trained["optimizer.b1"] == "of AdamW"
  assert trained["pretext.predictor"] == "sizes of its layers"
  assert "probe.steps" not in trained


def test_help_of_a_config_of_ones_own(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(OWN)
  text = config_help.text(defaults.read(file), OWN)
  lines = text.splitlines()
  at = lambda start: next(line for line in lines if line.startswith(start))
  words = " ".join(text.split())
  assert "=8 tracks, so views × batch segments; Fewer than usual." in words
  assert "=3 segments of a track in a batch; one more" in words
  assert at("  --config.seed=0 ").endswith(" of everything random")
  assert at("  --config.mine=1") == "  --config.mine=1"
  assert max(map(len, lines)) < 80


def test_whole_configs_in_a_config_are_a_line_each():
  file = CONFIGS[0].parent / "benchmark.py"
  text = config_help.text(defaults.read(file), file.read_text())
  assert "as of configs/byol.py" in text
  assert "--config.pretrain.byol.batch" not in text
