import pytest

from ssl_music import config as defaults
from ssl_music.errors import InputError


@pytest.fixture
def config():
  config = defaults.pretraining()
  config.total_steps = 0
  return config


@pytest.mark.parametrize(
  ("unit", "value", "steps"),
  [
    ("steps", 7, 7),
    ("epochs", 3, 30),
    ("examples", 64, 4),
    ("examples", 65, 5),
    ("examples", 1, 1),
  ],
)
def test_durations_in_any_unit(config, unit, value, steps):
  config[f"total_{unit}"] = value
  found = defaults.duration(config, "total", batch=16, steps_per_epoch=10)
  assert found == steps


def test_no_duration_and_two_of_them(config):
  get = lambda: defaults.duration(config, "total", batch=1, steps_per_epoch=1)
  assert get() == 0
  config.total_steps, config.total_epochs = 1, 2
  with pytest.raises(InputError, match=r"unset .* --config.total_steps=0"):
    get()
  config.total_steps, config.total_epochs = -1, 0
  with pytest.raises(InputError, match="negative"):
    get()


def test_paper_preset_is_the_published_recipe():
  config = defaults.pretraining("paper")
  assert config.total_steps == 999 * 512
  assert config.warmup_steps == 10 * 512
  assert config.batch == 128
  assert config.views == 2
  assert config.data.seconds == config.data.gap == 4.0
  assert config.model.to_dict() == {
    "width": 16,
    "depths": (3, 4, 6, 3),
    "heads": 8,
    "output": 1024,
    "dtype": "float32",
  }
  settings = config.optimizer
  assert (settings.b1, settings.b2) == (0.9, 0.98)
  assert (settings.weight_decay, settings.final_weight_decay) == (0.04, 0.4)


@pytest.mark.parametrize("make", [defaults.pretraining, defaults.probing])
def test_unknown_presets_are_explained(make):
  with pytest.raises(InputError, match="no preset 'huge': choose one of"):
    make("huge")


def test_difference_names_nested_fields():
  old = {"a": 1, "b": {"c": 2, "d": 3}, "e": 5}
  new = {"a": 1, "b": {"c": 2, "d": 4}, "f": 5}
  assert defaults.difference(old, new) == [
    "b.d: 3 -> 4",
    "e only in the old one",
    "f only in the new one",
  ]


@pytest.mark.parametrize(
  ("name", "text", "said"),
  [
    ("contrastve.py", None, "did you mean {0}/contrastive.py?"),
    ("contrastive", None, "did you mean {0}/contrastive.py?"),
    ("other.py", None, "no config file {0}/other.py: give one of configs/"),
    ("", None, "(it is a folder)"),
    ("a.py", "x = 1", "has no function get_config that returns a ConfigDict"),
    ("a.py", "def get_config(preset=''):\n  pass", "returns a ConfigDict"),
    ("a.py", "import absent", "a.py, line 1 raises ModuleNotFoundError: No"),
    ("a.py", "def get_config():\n  return 1 / 0", "line 2 raises ZeroDivision"),
    ("README.md", "No Python.", "README.md is no Python file"),
    (
      "a.py:huge",
      "def get_config():\n  pass",
      "raises TypeError: get_config()",
    ),
  ],
)
def test_configs_that_make_none_are_explained(tmp_path, name, text, said):
  (tmp_path / "contrastive.py").write_text("")
  name, _, preset = name.partition(":")
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises(InputError) as raised:
    defaults.read(tmp_path / name, preset)
  assert said.format(tmp_path) in str(raised.value)
  assert "\n" not in str(raised.value)
