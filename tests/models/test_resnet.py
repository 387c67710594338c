"""The backbone against golden vectors, and what it promises."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ssl_music.models import frontend, torch_weights
from ssl_music.models.resnet import (
  AttentionPool,
  ResNet,
  average_pool,
  feature_map_size,
  torch_uniform,
)

TINY = {"width": 4, "depths": (1, 2), "heads": 4, "output": 24}


def normal(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def spectrograms(*shape):
  """Something like log-mel spectrograms, in decibels."""
  return -30 + 15 * normal(*shape)


def shapes_of(network, inputs):
  return jax.eval_shape(
    functools.partial(network.init, train=False), jax.random.key(0), inputs
  )


def published_variables(network, inputs):
  """The golden weights as variables, in the types of `network`."""
  like = shapes_of(network, inputs)
  return torch_weights.from_torch(golden.state_dict("backbone"), like)


def close(a, b, tolerance=1e-5):
  assert golden.relative_error(a, b) < tolerance


@pytest.fixture(scope="module")
def train_pass():
  """One training pass of the published network, forward and backward.

  In float64, as batch normalisation makes the gradients ill-conditioned here.
  """
  logmel = golden.models()["logmel"].astype(np.float64)
  cotangent = golden.cotangent().astype(np.float64)
  with jax.enable_x64():
    network = ResNet(dtype=jnp.float64, param_dtype=jnp.float64)
    variables = published_variables(network, logmel)

    def loss(params):
      embedding, updates = network.apply(
        variables | {"params": params},
        logmel,
        train=True,
        mutable="batch_stats",
      )
      return jnp.sum(embedding * cotangent), (embedding, updates)

    gradient, (embedding, updates) = jax.jit(jax.grad(loss, has_aux=True))(
      variables["params"]
    )
    updated = {"params": gradient, **updates}
    return np.asarray(embedding), torch_weights.to_torch(updated)


def test_embedding_agrees_with_the_published_network():
  network = ResNet()
  wave = golden.wave()
  variables = published_variables(network, np.zeros((1, 128, 126), np.float32))

  @jax.jit
  def embed(wave):
    return network.apply(variables, frontend.log_mel(wave), train=False)

  embedding = embed(wave)
  assert embedding.dtype == jnp.float32
  close(embedding, golden.models()["embedding_eval"])


def test_training_pass_agrees_with_the_published_network(train_pass):
  embedding, _ = train_pass
  assert embedding.dtype == np.float64
  close(embedding, golden.models()["embedding_train"])


@pytest.mark.parametrize("moment", ["mean", "var"])
def test_running_statistics_agree_with_the_published_network(
  train_pass, moment
):
  _, state = train_pass
  close(
    state[f"embedding.bn1.running_{moment}"],
    golden.models()[f"bn1_running_{moment}_after"],
  )


@pytest.mark.parametrize(
  "name",
  [
    "embedding.conv1.weight",
    "embedding.layer3.0.conv2.weight",
    "embedding.attnpool.positional_embedding",
    "embedding.attnpool.c_proj.bias",
  ],
)
def test_gradients_agree_with_the_published_network(train_pass, name):
  _, state = train_pass
  close(state[name], golden.models()[f"grad/{name}"])


def test_published_size():
  shapes = shapes_of(ResNet(), jnp.zeros((2, 128, 126)))
  leaves = jax.tree.leaves(shapes["params"])
  assert sum(leaf.size for leaf in leaves) == 2_800_392
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


@pytest.fixture(scope="module")
def tiny():
  """A tiny network, its variables for 31 bands and 21 frames, and its input."""
  network, inputs = ResNet(**TINY), spectrograms(16, 31, 21)
  return network, golden.variables(shapes_of(network, inputs)), inputs


def test_initial_weights_are_those_of_pytorch():
  pool = AttentionPool(output=32, heads=4)
  features = normal(1, 4, 5, 64)
  params = jax.jit(pool.init)(jax.random.key(0), features)["params"]
  bound = 64**-0.5
  for name, layer in params.items():
    if name == "positional_embedding":
      np.testing.assert_allclose(np.std(layer), bound, rtol=0.1)
      continue
    assert 0.95 * bound < np.abs(layer["kernel"]).max() <= bound
    spread = np.std(layer["kernel"])
    np.testing.assert_allclose(spread, bound / np.sqrt(3), rtol=0.05)
    assert 0.5 * bound < np.abs(layer["bias"]).max() <= bound
  # A convolution's inputs are those of its whole window.
  kernel = torch_uniform(jax.random.key(0), (3, 3, 16, 8))
  assert 0.95 / 12 < np.abs(kernel).max() <= 1 / 12


def test_variables_are_named_by_what_they_are(tiny):
  _, variables, _ = tiny
  blocks = {"layer1_0", "layer2_0", "layer2_1"}
  assert set(variables) == {"params", "batch_stats"}
  assert set(variables["params"]) == {"stem", "attnpool"} | blocks
  assert set(variables["batch_stats"]) == {"stem"} | blocks
  inner = {f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3)}
  assert set(variables["params"]["stem"]) == inner
  assert set(variables["params"]["layer2_1"]) == inner
  shortcut = {"downsample_conv", "downsample_bn"}
  assert set(variables["params"]["layer2_0"]) == inner | shortcut


def test_bfloat16_is_close_and_keeps_its_state_in_float32(tiny):
  network, variables, inputs = tiny
  rough_network = ResNet(**TINY, dtype=jnp.bfloat16)

  def embed(network):
    return jax.jit(functools.partial(network.apply, train=False))(
      variables, inputs
    )

  exact, rough = embed(network), embed(rough_network)
  assert rough.dtype == jnp.float32
  product = np.sum(exact * rough, axis=1)
  norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rough, axis=1)
  assert 0.99 < np.min(product / norms) < 1 - 1e-6
  train = functools.partial(
    rough_network.apply, train=True, mutable="batch_stats"
  )
  created = shapes_of(rough_network, inputs)
  _, updates = jax.eval_shape(train, created, inputs)
  for leaf in jax.tree.leaves((created, updates)):
    assert leaf.dtype == jnp.float32


def test_synchronised_over_8_devices_is_one_device_with_the_full_batch():
  with jax.enable_x64():
    types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    build = functools.partial(ResNet, **TINY | {"depths": (1,)}, **types)
    inputs = spectrograms(16, 9, 8).astype(np.float64)
    cotangents = normal(16, 24, seed=1).astype(np.float64)
    variables = golden.variables(shapes_of(build(), inputs))

    def step(inputs, cotangents, *, axis_name=None):
      def loss(params):
        embedding, updates = build(axis_name=axis_name).apply(
          variables | {"params": params},
          inputs,
          train=True,
          mutable="batch_stats",
        )
        mean = jnp.mean(embedding * cotangents)
        return mean, (embedding, updates["batch_stats"])

      gradient, (embedding, stats) = jax.grad(loss, has_aux=True)(
        variables["params"]
      )
      if axis_name:
        gradient = jax.lax.pmean(gradient, axis_name)
      return embedding, stats, gradient

    split, whole = PartitionSpec("batch"), PartitionSpec()
    mapped = jax.shard_map(
      functools.partial(step, axis_name="batch"),
      mesh=Mesh(np.array(jax.devices()[:8]), ("batch",)),
      in_specs=split,
      out_specs=(split, whole, whole),
      check_vma=False,
    )
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-10),
      jax.jit(mapped)(inputs, cotangents),
      jax.jit(step)(inputs, cotangents),
    )


@pytest.mark.parametrize(
  ("settings", "bands", "frames", "positions"),
  [
    ({}, 128, 126, 12),
    ({}, 128, 63, 8),
    ({}, 128, 66, 8),
    ({}, 31, 31, 1),
    ({"width": 8, "output": 512}, 96, 251, 3 * 7),
    ({"depths": (2, 1)}, 30, 21, 3 * 2),
  ],
)
def test_size_follows_the_input(settings, bands, frames, positions):
  network = ResNet(**settings)
  inputs = jnp.zeros((2, bands, frames))
  embedding, variables = jax.eval_shape(
    functools.partial(network.init_with_output, train=False),
    jax.random.key(0),
    inputs,
  )
  assert embedding.shape == (2, network.output)
  channels = network.width * 4 * 2 ** (len(network.depths) - 1)
  table = variables["params"]["attnpool"]["positional_embedding"]
  assert table.shape == (positions + 1, channels)
  stages = len(network.depths)
  assert positions == feature_map_size(bands, stages) * feature_map_size(
    frames, stages
  )


@pytest.mark.parametrize(
  ("settings", "shape", "message"),
  [
    ({}, (2, 128, 30), "at least 31 bands and 31 frames, got 128 bands and 30"),
    ({}, (2, 30, 126), "at least 31 bands"),
    (TINY, (2, 6, 40), "at least 7 bands and 7 frames"),
    ({}, (2, 1, 128, 126), r"\[N, mel, frame\], got \(2, 1, 128, 126\)"),
    ({"width": 5}, (2, 128, 126), "even, got 5"),
    ({"heads": 7}, (2, 128, 126), "7 heads do not divide 512"),
  ],
)
def test_bad_input_is_refused(settings, shape, message):
  with pytest.raises(ValueError, match=message):
    shapes_of(ResNet(**settings), jnp.zeros(shape))


def test_weights_for_another_length_are_refused(tiny):
  network, variables, _ = tiny
  with pytest.raises(ValueError, match=r"feature map of 8 x 7.*\(9, 32\)"):
    jax.eval_shape(
      functools.partial(network.apply, train=False),
      variables,
      jnp.zeros((2, 63, 60)),
    )


def test_average_pool_drops_what_fills_no_square():
  image = normal(2, 5, 7, 3)
  expected = np.zeros((2, 2, 3, 3))
  for row in range(2):
    for column in range(3):
      square = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
      expected[:, row, column] = square.mean((1, 2))
  np.testing.assert_allclose(average_pool(image, 2), expected, atol=1e-6)
  assert average_pool(image, 1) is image
