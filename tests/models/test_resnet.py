"""The backbone against golden vectors, and what it promises."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
from jax.sharding import Mesh, PartitionSpec

from ssl_music.models import frontend, torch_checkpoint, torch_weights
from ssl_music.models.resnet import (
  AttentionPool,
  ResNet,
  average_pool,
  feature_map_size,
  resize_columns,
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


def test_embedding_agrees_with_the_published_network(tmp_path):
  """The weights come as published: in a checkpoint of torch.save."""
  state = golden.state_dict("backbone")
  other = {name: np.zeros_like(value) for name, value in state.items()}
  checkpoint = {"model": torch_files.layouts(state, other)["byol"]}
  (tmp_path / "byol.pt").write_bytes(torch_files.zipped(checkpoint))
  _, variables = torch_checkpoint.load(tmp_path / "byol.pt")
  network, wave = ResNet(), golden.wave()

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


@pytest.mark.parametrize(
  ("resize_positions", "bands", "frames", "rows", "columns"),
  [(False, 63, 60, 8, 7), (False, 31, 60, 4, 7), (True, 47, 60, 6, 7)],
)
def test_weights_for_another_size_are_refused(
  tiny, resize_positions, bands, frames, rows, columns
):
  _, variables, _ = tiny
  network = ResNet(**TINY, resize_positions=resize_positions)
  message = rf"feature map of {rows} x {columns}.*\(9, 32\)"
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      functools.partial(network.apply, train=False),
      variables,
      jnp.zeros((2, bands, frames)),
    )


def interpolation(rows, old, new):
  """The matrix that resizes positional embeddings [1 + rows * old, C]."""
  middles = (np.arange(new) + 0.5) / new
  matrix = np.zeros((1 + rows * new, 1 + rows * old))
  matrix[0, 0] = 1
  for row in range(rows):
    for column in range(old):
      bump = np.interp(
        middles, (np.arange(old) + 0.5) / old, np.eye(old)[column]
      )
      block = slice(1 + row * new, 1 + (row + 1) * new)
      matrix[block, 1 + row * old + column] = bump
  return matrix


@pytest.mark.parametrize(("old", "new"), [(5, 2), (5, 3), (4, 1), (3, 8)])
def test_columns_are_resized_by_linear_interpolation(old, new):
  positions = normal(1 + 4 * old, 6)
  np.testing.assert_allclose(
    jax.jit(resize_columns, static_argnums=(1, 2))(positions, 4, new),
    interpolation(4, old, new) @ positions,
    rtol=1e-5,
    atol=1e-6,
  )


def test_resized_positions_are_used_and_learn():
  """A pool for 5 columns on 2 is one whose weights were interpolated to 2."""
  pool = AttentionPool(output=8, heads=2, resize_positions=True)
  features, cotangents = normal(3, 4, 2, 16), normal(3, 8, seed=1)
  params = golden.variables(
    jax.eval_shape(pool.init, jax.random.key(0), normal(3, 4, 5, 16))
  )["params"]
  matrix = interpolation(4, 5, 2)
  table = (matrix @ params["positional_embedding"]).astype(np.float32)

  @functools.partial(jax.jit, static_argnums=0)
  def answer_and_gradient(pool, params):
    def loss(params):
      answer = pool.apply({"params": params}, features)
      return jnp.sum(answer * cotangents), answer

    gradient, answer = jax.grad(loss, has_aux=True)(params)
    return answer, gradient

  answer, gradient = answer_and_gradient(pool, params)
  expected, expected_gradient = answer_and_gradient(
    AttentionPool(output=8, heads=2),
    params | {"positional_embedding": table},
  )
  close(answer, expected)
  slope = gradient["positional_embedding"]
  close(slope, matrix.T @ expected_gradient["positional_embedding"])
  by_column = np.abs(slope[1:].reshape(4, 5, 16)).max((0, 2))
  assert (by_column > 0).tolist() == [True, True, False, True, True]


def test_the_network_takes_shorter_segments_with_the_same_weights(tiny):
  _, variables, inputs = tiny
  short = inputs[..., :12]  # leaves one column instead of two
  attnpool = dict(variables["params"]["attnpool"])
  table = interpolation(4, 2, 1) @ attnpool["positional_embedding"]
  attnpool["positional_embedding"] = table.astype(np.float32)
  shortened = variables | {
    "params": variables["params"] | {"attnpool": attnpool}
  }

  @functools.partial(jax.jit, static_argnums=0)
  def embed(network, variables):
    return network.apply(variables, short, train=False)

  close(
    embed(ResNet(**TINY, resize_positions=True), variables),
    embed(ResNet(**TINY), shortened),
  )


def test_positions_of_the_same_length_are_not_touched():
  features = normal(2, 4, 3, 16)

  @functools.partial(jax.jit, static_argnums=0)
  def initial(pool):
    answer, variables = pool.init_with_output(jax.random.key(0), features)
    return answer, pool.apply(variables, features), variables

  one, other = (
    initial(AttentionPool(8, 2, resize_positions=r)) for r in (False, True)
  )
  jax.tree.map(np.testing.assert_array_equal, one, other)
  assert other[2]["params"]["positional_embedding"].shape == (13, 16)


def test_average_pool_drops_what_fills_no_square():
  image = normal(2, 5, 7, 3)
  expected = np.zeros((2, 2, 3, 3))
  for row in range(2):
    for column in range(3):
      square = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
      expected[:, row, column] = square.mean((1, 2))
  np.testing.assert_allclose(average_pool(image, 2), expected, atol=1e-6)
  assert average_pool(image, 1) is image
