"""Backbones in the published checkpoints and in files of safetensors."""

import functools
import itertools
import json
import os

import golden
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_files

from ssl_music.errors import InputError
from ssl_music.models import (
  backbone_settings,
  safetensors_file,
  torch_checkpoint,
  torch_weights,
)

# As small as the published names allow: 128 bands, 2 s.
SMALL = {"width": 4, "depths": [1, 2, 1, 1], "output": 24}
POSITIONS = "embedding.attnpool.positional_embedding"


@functools.cache
def settings(seconds=3.0, **model):
  found = backbone_settings.published()
  found["model"] |= SMALL | model
  found["data"]["seconds"] = seconds
  return found


@functools.cache
def small(seconds=3.0):
  """Variables of a small backbone, of which shapes tell what there is."""
  shapes = backbone_settings.shapes(settings(seconds))
  return golden.variables(dict(shapes))


def small_state():
  constants = torch_weights.front_end()
  return torch_weights.to_torch(small()) | {
    name: value.astype(np.float32) for name, value in constants.items()
  }


def doubled(tree):
  return jax.tree.map(lambda leaf: (2 * leaf).astype(leaf.dtype), tree)


def written(tmp_path, data, name="file.pt"):
  path = tmp_path / name
  path.write_bytes(data)
  return path


def same(variables, expected):
  jax.tree.map(np.testing.assert_array_equal, variables, dict(expected))
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("write", [torch_files.zipped, torch_files.legacy])
@pytest.mark.parametrize(
  "task",
  ["contrastive", "barlow_twins", "feature_stats", "byol", "clustering"],
)
def test_published_layouts(tmp_path, task, write):
  teacher = doubled(small())
  states = torch_files.layouts(
    small_state(), torch_weights.to_torch(teacher) | torch_weights.front_end()
  )
  trap = tmp_path / "trap"
  checkpoint = {
    **torch_files.junk(f"touch {trap}"),
    "model": torch_files.ordered(states[task]),
    "after": torch_files.junk(f"touch {trap}"),
  }
  path = written(tmp_path, write(checkpoint))
  found, variables = torch_checkpoint.load(path)
  assert found == settings()
  same(variables, small())
  if task in ("byol", "clustering"):
    same(torch_checkpoint.load(path, "teacher")[1], teacher)
  else:
    with pytest.raises(InputError, match=r"no teacher but only a student"):
      torch_checkpoint.load(path, "teacher")
  assert not trap.exists()


def test_the_trap_is_one(tmp_path):
  """What the test above does not run, Python's own reader does."""
  import pickle

  trap = tmp_path / "trap"
  harm = torch_files.junk(f"touch {trap}")["harm"]
  pickle.loads(torch_files.pickled(harm, {}))
  assert trap.exists()


@pytest.mark.parametrize("place", ["model", "state_dict", None])
@pytest.mark.parametrize(
  "prefix", ["", "backbone.", "module.", "student.", "module.student.backbone."]
)
def test_other_places(tmp_path, place, prefix):
  state = {prefix + name: value for name, value in small_state().items()}
  checkpoint = state if place is None else {place: state}
  path = written(tmp_path, torch_files.zipped(checkpoint))
  same(torch_checkpoint.load(path)[1], small())


def test_a_state_dict_of_the_published_size_tells_its_settings():
  found = backbone_settings.guess(golden.state_dict("backbone"))
  assert found == backbone_settings.published()
  assert found["model"]["heads"] == 8
  assert found["data"]["seconds"] == 4.0


@pytest.mark.parametrize(
  ("seconds", "longest"), [(1.0, 1.9), (2.0, 3.0), (3.2, 4.0), (8.0, 8.1)]
)
def test_a_segment_is_taken_to_be_as_long_as_its_positions_allow(
  seconds, longest
):
  state = torch_weights.to_torch(small(seconds))
  assert backbone_settings.guess(state)["data"]["seconds"] == longest
  rows = state[POSITIONS].shape
  again = backbone_settings.shapes(settings(longest))
  assert again["params"]["attnpool"]["positional_embedding"].shape == rows
  with pytest.raises(AssertionError):  # a tenth more would be another size
    longer = backbone_settings.shapes(settings(round(longest + 0.1, 1)))
    positions = longer["params"]["attnpool"]["positional_embedding"]
    assert positions.shape == rows


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_other_types_become_float32(tmp_path, dtype):
  kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
  state = {
    name: value.astype(kind) if value.dtype == np.float32 else value
    for name, value in small_state().items()
  }
  expected = jax.tree.map(
    lambda leaf: leaf.astype(kind).astype(np.float32), small()
  )
  path = written(tmp_path, torch_files.zipped({"model": state}))
  same(torch_checkpoint.load(path)[1], expected)


def changed(change):
  state = small_state()
  change(state)
  return state


def set_to(name, value):
  return lambda state: state.update({name: value})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda state: state.pop("embedding.layer1.0.bn1.weight"),
      r"missing embedding\.layer1\.0\.bn1\.weight, expected shape \(4,\)",
    ),
    (lambda state: state.pop(POSITIONS), f"lacks {POSITIONS}"),
    (
      set_to("embedding.layer2.0.bn4.weight", np.zeros(3, np.float32)),
      r"unexpected embedding\.layer2\.0\.bn4\.weight of shape \(3,\)",
    ),
    (
      set_to("embedding.bn2.bias", np.zeros((2, 1), np.float32)),
      r"embedding\.bn2\.bias has shape \(2, 1\), expected \(2,\)",
    ),
    (
      set_to("embedding.bn2.bias", np.zeros(2, np.int64)),
      r"embedding\.bn2\.bias holds int64",
    ),
    (
      set_to("embedding.bn2.bias", np.array([0, np.nan], np.float32)),
      r"not finite in params/stem/bn2/bias: ",
    ),
    (
      set_to("embedding.bn2.bias", np.array([0, 1e300])),
      r"not finite in params/stem/bn2/bias: ",
    ),
    (
      set_to("spec.spec.mel_scale.fb", np.zeros((513, 128), np.float32)),
      r"mel_scale\.fb is that of another front end",
    ),
    (
      set_to("spec.spec.mel_scale.fb", np.zeros((513, 64), np.float32)),
      r"mel_scale\.fb has shape \(513, 64\), expected \(513, 128\)",
    ),
    (
      set_to(POSITIONS, np.zeros((10, 128), np.float32)),
      r"10 rows, which the published front end never leads to",
    ),
    (
      lambda state: [
        state.pop(name) for name in list(state) if ".layer2." in name
      ],
      r"layers are not those of a backbone",
    ),
    (
      set_to("embedding.layer1.999.bn1.weight", np.zeros(4, np.float32)),
      r"no possible network \(depths=\[1000, 2, 1, 1\]\)",
    ),
    (
      lambda state: [state.pop(name) for name in list(state)[2:40]],
      r"missing .*; missing .*; missing .* and \d+ more: give a whole",
    ),
  ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
  data = torch_files.zipped({"model": changed(change)})
  path = written(tmp_path, data)
  with pytest.raises(InputError, match=message) as caught:
    torch_checkpoint.load(path)
  assert str(path) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_prefixes_are_named_when_none_fits(tmp_path):
  state = {"encoder.layers.0.weight": golden.rand("w", (2, 2))}
  path = written(tmp_path, torch_files.zipped({"model": state}))
  with pytest.raises(InputError, match=r"begin with encoder\.layers: give"):
    torch_checkpoint.load(path)
  state = {f"momentum.{name}": value for name, value in small_state().items()}
  path = written(tmp_path, torch_files.zipped({"model": state}))
  with pytest.raises(InputError, match=r"begin with momentum\.: give"):
    torch_checkpoint.load(path)


def test_two_students_are_refused(tmp_path):
  state = small_state()
  both = {
    f"{a}.{n}": v for a in ("module", "backbone") for n, v in state.items()
  }
  with pytest.raises(InputError, match=r"those under module\., backbone\.: "):
    torch_checkpoint.find_backbone(both)


def test_find_backbone_says_which_networks_there_are():
  state = torch_files.layouts(
    {"embedding.conv1.weight": 1}, {"embedding.conv1.weight": 2}
  )
  find = torch_checkpoint.find_backbone
  name = "embedding.conv1.weight"
  assert find(state["contrastive"]) == ({name: 1}, ("student",))
  assert find(state["byol"]) == ({name: 1}, ("student", "teacher"))
  assert find(state["byol"], "teacher")[0] == {name: 2}


@pytest.mark.parametrize("kind", ["ours", "published"])
def test_safetensors_there_and_back(tmp_path, kind):
  path = tmp_path / "encoder.safetensors"
  config = {**settings(2.4, heads=4), "job": "pretrain", "seed": 3}
  config["frontend"] = {**config["frontend"], "n_mels": 64, "f_max": 8000.0}
  variables = golden.variables(dict(backbone_settings.shapes(config)))
  if kind == "ours":
    torch_checkpoint.write_ours(path, variables, config)
  else:
    torch_checkpoint.write_published(path, variables, config)
  found, again = torch_checkpoint.load(path)
  assert found == {key: config[key] for key in ("model", "frontend", "data")}
  same(again, variables)
  assert os.listdir(tmp_path) == [path.name]  # noqa: PTH208


def test_published_names_without_a_config(tmp_path):
  path = tmp_path / "weights.safetensors"
  torch_checkpoint.write_published(path, small())
  state = safetensors.numpy.load_file(path)
  expected = small_state()
  assert state.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(state[name], value, strict=True)
  found, variables = torch_checkpoint.load(path)
  assert found == settings()
  same(variables, small())


def test_bfloat16_of_safetensors(tmp_path):
  values = golden.rand("values", (3, 5)).astype(ml_dtypes.bfloat16)
  path = tmp_path / "file.safetensors"
  safetensors_file.write(path, {"a": values.T, "b": values[0, 0]}, None)
  found, _ = torch_checkpoint._read(path)
  np.testing.assert_array_equal(found["a"], values.T, strict=True)
  np.testing.assert_array_equal(
    found["b"], np.asarray(values[0, 0]), strict=True
  )


def described(tmp_path, text):
  path = tmp_path / "file.safetensors"
  arrays = {"params/stem/conv1/kernel": np.zeros((3, 3, 1, 2), np.float32)}
  metadata = None if text is None else {"ssl_music": text}
  safetensors.numpy.save_file(arrays, path, metadata)
  return path


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, "has no config: export the encoder again"),
    ("nonsense", "damaged description"),
    ("[]", "damaged description"),
    ('{"format": "1", "config": {}}', "damaged description"),
    ('{"format": 1, "config": 3}', "damaged description"),
    ("[" * 100_000, "damaged description"),
    ('{"format": 2, "config": {}}', "format 2 and this version .* up to 1"),
    ('{"format": 1, "config": {}}', r"no possible network \('model'\)"),
  ],
)
def test_descriptions_that_do_not_serve(tmp_path, text, message):
  with pytest.raises(InputError, match=message):
    torch_checkpoint.load(described(tmp_path, text))


@pytest.mark.parametrize(
  ("part", "field", "value"),
  [
    ("model", "width", 10**9),
    ("model", "width", 5),
    ("model", "width", "16"),
    ("model", "depths", [10**9]),
    ("model", "depths", [1] * 300),
    ("model", "depths", [[1]]),
    ("model", "heads", 3),
    ("model", "heads", 0),
    ("model", "dtype", "int8"),
    ("frontend", "n_mels", 10**9),
    ("frontend", "n_mels", 8),
    ("frontend", "hop", 0),
    ("data", "seconds", 1e300),
    ("data", "seconds", float("nan")),
  ],
)
def test_configs_of_no_possible_network(tmp_path, part, field, value):
  config = json.loads(json.dumps(settings()))
  config[part][field] = value
  text = json.dumps({"format": 1, "config": config})
  with pytest.raises(InputError, match="no possible network"):
    torch_checkpoint.load(described(tmp_path, text))


def test_an_export_lacking_tensors(tmp_path):
  text = json.dumps({"format": 1, "config": settings()})
  path = described(tmp_path, text)
  message = r"missing .*, expected shape .* and \d+ more: give a whole"
  with pytest.raises(InputError, match=message):
    torch_checkpoint.load(path)
  with pytest.raises(InputError, match="no teacher in an export"):
    torch_checkpoint.load(path, "teacher")


def test_files_of_another_kind(tmp_path):
  for data in (b"", b"RIFF" + bytes(100), b"PK\x03\x04", b"\x80\x02."):
    with pytest.raises(InputError):
      torch_checkpoint.load(written(tmp_path, data))
  for path in (tmp_path, tmp_path / "absent.pt"):
    with pytest.raises(InputError, match="is no file: give a"):
      torch_checkpoint.load(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_cut_files(tmp_path, kind):
  state = {"embedding.conv1.weight": golden.rand("w", (4, 1, 3, 3))}
  if kind == "safetensors":
    safetensors_file.write(tmp_path / "whole", state, {})
    data = (tmp_path / "whole").read_bytes()
  else:
    write = {"zip": torch_files.zipped, "legacy": torch_files.legacy}[kind]
    data = write({"model": state, **torch_files.junk("true")})
  for end in itertools.chain(range(0, len(data), 41), [len(data) - 1]):
    with pytest.raises(InputError):
      torch_checkpoint._read(written(tmp_path, data[:end]))
