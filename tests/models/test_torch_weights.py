"""Published state dicts to our variables and back."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_music.models import frontend, torch_weights
from ssl_music.models.heads import Head
from ssl_music.models.resnet import ResNet

WINDOW = "spec.spec.spectrogram.window"
BANK = "spec.spec.mel_scale.fb"


def shapes_of(module, *shape):
  return jax.eval_shape(
    functools.partial(module.init, train=False),
    jax.random.key(0),
    jnp.zeros(shape),
  )


@pytest.fixture(scope="module")
def backbone():
  return shapes_of(ResNet(), 1, 128, 126)


@pytest.fixture(scope="module")
def head():
  return shapes_of(Head((32, 32, 48)), 1, 64)


def assert_same(state, expected):
  assert set(state) == set(expected)
  for name, value in expected.items():
    assert state[name].dtype == value.dtype, name
    assert state[name].flags.c_contiguous, name
    np.testing.assert_array_equal(state[name], value, err_msg=name)


@pytest.mark.parametrize("network", ["backbone", "head"])
def test_published_names_there_and_back(network, request):
  like = request.getfixturevalue(network)
  state = golden.state_dict(network)
  variables = torch_weights.from_torch(state, like)
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.shape, b.shape), variables, like
  )
  assert_same(torch_weights.to_torch(variables), state)


def test_our_variables_there_and_back_at_another_size():
  module = ResNet(width=4, depths=(1, 2, 1), heads=4, output=8)
  variables = golden.variables(shapes_of(module, 1, 20, 30))
  state = torch_weights.to_torch(variables)
  assert "embedding.layer2.1.conv3.weight" in state
  assert "embedding.layer3.0.downsample.1.running_var" in state
  again = torch_weights.from_torch(state, variables)
  jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_layouts(backbone):
  state = golden.state_dict("backbone")
  params = torch_weights.from_torch(state, backbone)["params"]
  convolution = state["embedding.layer1.0.conv2.weight"]
  np.testing.assert_array_equal(
    params["layer1_0"]["conv2"]["kernel"][0, 2, 5, 7], convolution[7, 5, 0, 2]
  )
  pointwise = state["embedding.layer1.0.downsample.0.weight"]
  np.testing.assert_array_equal(
    params["layer1_0"]["downsample_conv"]["kernel"][5, 7], pointwise[7, 5, 0, 0]
  )
  linear = state["embedding.attnpool.c_proj.weight"]
  np.testing.assert_array_equal(
    params["attnpool"]["c_proj"]["kernel"][5, 7], linear[7, 5]
  )


def test_types_are_those_asked_for(head):
  like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), dict(head))
  variables = torch_weights.from_torch(golden.state_dict("head"), like)
  assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(variables))


def test_results_are_copies(head):
  state = golden.state_dict("head")
  variables = torch_weights.from_torch(state, head)
  written = torch_weights.to_torch(variables)
  for leaf in jax.tree.leaves(variables):
    leaf[...] = 0
  assert_same(written, golden.state_dict("head"))
  assert_same(state, golden.state_dict("head"))


def test_counters_may_be_left_out(head):
  state = golden.state_dict("head")
  del state["ops.1.num_batches_tracked"]
  state["ops.4.num_batches_tracked"] = np.int64(12345)
  variables = torch_weights.from_torch(state, head)
  written = torch_weights.to_torch(variables)
  assert_same(written, golden.state_dict("head"))


def test_constants_of_the_front_end_are_checked_and_dropped(backbone):
  state = golden.state_dict("backbone")
  constants = {
    WINDOW: frontend.hann_window().astype(np.float32),
    BANK: frontend.mel_filterbank().astype(np.float32),
  }
  variables = torch_weights.from_torch(state | constants, backbone)
  assert_same(torch_weights.to_torch(variables), state)
  other = frontend.mel_filterbank(f_max=8000.0)
  with pytest.raises(ValueError, match=f"{BANK} is that of another"):
    torch_weights.from_torch(state | {BANK: other}, backbone)


def test_a_head_without_layers_has_no_entries():
  assert torch_weights.to_torch({}) == {}
  assert torch_weights.from_torch({}, {}) == {}


def renamed(state):
  return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
  ("change", "messages"),
  [
    (
      lambda state: state.pop("ops.3.weight"),
      [r"missing ops\.3\.weight, expected shape \(32, 32\)"],
    ),
    (
      lambda state: state.update({"ops.6.bias": np.zeros(48)}),
      [r"unexpected ops\.6\.bias of shape \(48,\)"],
    ),
    (
      lambda state: state.update({"ops.0.weight": np.zeros((64, 32))}),
      [r"ops\.0\.weight has shape \(64, 32\), expected \(32, 64\)"],
    ),
    (
      lambda state: state.update({"ops.1.num_batches_tracked": np.zeros(1)}),
      [r"ops\.1\.num_batches_tracked has shape \(1,\), expected \(\)"],
    ),
    (
      lambda state: state.update({"ops.9.num_batches_tracked": np.zeros(())}),
      [r"unexpected ops\.9\.num_batches_tracked"],
    ),
    (
      lambda state: state.update({WINDOW: frontend.hann_window()}),
      [f"unexpected {WINDOW}"],
    ),
    (
      lambda state: state.update(renamed(state)),
      [r"unexpected module\.ops\.0\.weight"],
    ),
  ],
)
def test_a_state_dict_that_does_not_fit_is_refused(head, change, messages):
  state = golden.state_dict("head")
  change(state)
  for message in messages:
    with pytest.raises(ValueError, match=message):
      torch_weights.from_torch(state, head)


def test_a_backbone_for_another_length_is_refused():
  like = shapes_of(ResNet(), 1, 128, 63)
  message = r"positional_embedding has shape \(13, 512\), expected \(9, 512\)"
  with pytest.raises(ValueError, match=message):
    torch_weights.from_torch(golden.state_dict("backbone"), like)


@pytest.mark.parametrize(
  ("path", "message"),
  [
    (("params", "dense_0", "kernel", "x"), "neither"),
    (("params", "encoder", "stem", "conv1", "kernel"), "neither"),
    (("params", "probe", "kernel"), "neither"),
    (("cache", "dense_0", "kernel"), "cache/dense_0/kernel belongs"),
    (("kernel",), "neither"),
  ],
)
def test_other_variables_are_refused(path, message):
  tree = np.zeros((2, 3), np.float32)
  for key in reversed(path):
    tree = {key: tree}
  with pytest.raises(ValueError, match=message):
    torch_weights.to_torch(tree)


def test_a_backbone_and_a_head_at_once_are_refused(backbone, head):
  both = {"params": {**backbone["params"], **head["params"]}}
  with pytest.raises(ValueError, match="both a backbone and a head"):
    torch_weights.to_torch(both)
