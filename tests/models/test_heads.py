"""The projection head against golden vectors, and what it promises."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from ssl_music.models import torch_weights
from ssl_music.models.heads import Head


def shapes_of(head, x):
  return jax.eval_shape(
    functools.partial(head.init, train=False), jax.random.key(0), x
  )


@pytest.fixture(scope="module")
def published():
  """The golden head and its weights."""
  head = Head((32, 32, 48))
  like = shapes_of(head, golden.head_in())
  return head, torch_weights.from_torch(golden.state_dict("head"), like)


def test_output_agrees_with_the_published_head(published):
  head, variables = published
  x, vectors = golden.head_in(), golden.models()
  projection, updates = head.apply(
    variables, x, train=True, mutable="batch_stats"
  )
  assert golden.relative_error(projection, vectors["head_train"]) < 1e-5
  # The published code was evaluated after this training pass, not before.
  projection = head.apply(variables | updates, x, train=False)
  assert golden.relative_error(projection, vectors["head_eval"]) < 1e-5


def test_published_sizes():
  shapes = shapes_of(Head((1024, 1024, 2048)), jnp.zeros((2, 512)))
  kernels = {
    name: layer["kernel"].shape
    for name, layer in shapes["params"].items()
    if name.startswith("dense")
  }
  assert kernels == {
    "dense_0": (512, 1024),
    "dense_1": (1024, 1024),
    "dense_2": (1024, 2048),
  }
  assert set(shapes["batch_stats"]) == {"bn_0", "bn_1"}


def test_one_layer_is_linear():
  head = Head((3,))
  x = golden.head_in()
  projection, variables = head.init_with_output(
    jax.random.key(0), x, train=True
  )
  assert set(variables) == {"params"}
  kernel = variables["params"]["dense_0"]["kernel"]
  assert np.abs(kernel).max() <= 64**-0.5  # PyTorch's initial weights
  np.testing.assert_allclose(projection, x @ np.asarray(kernel), atol=1e-5)


def test_no_layer_is_the_identity():
  x = golden.head_in()
  projection, variables = Head(()).init_with_output(
    jax.random.key(0), x, train=True
  )
  assert not variables
  np.testing.assert_array_equal(projection, x)


def test_bfloat16_is_close_and_answers_in_float32(published):
  head, variables = published
  exact = head.apply(variables, golden.head_in(), train=False)
  rough = Head(head.sizes, dtype=jnp.bfloat16).apply(
    variables, golden.head_in(), train=False
  )
  assert rough.dtype == jnp.float32
  assert 0 < golden.relative_error(rough, exact) < 0.02


def test_synchronised_over_8_devices_is_one_device_with_the_full_batch(
  published,
):
  head, variables = published
  x = golden.rand("batch", (16, 64))
  expected = head.apply(variables, x, train=True, mutable="batch_stats")

  def forward(x):
    return Head(head.sizes, axis_name="batch").apply(
      variables, x, train=True, mutable="batch_stats"
    )

  split, whole = PartitionSpec("batch"), PartitionSpec()
  mapped = jax.shard_map(
    forward,
    mesh=Mesh(np.array(jax.devices()[:8]), ("batch",)),
    in_specs=split,
    out_specs=(split, whole),
    check_vma=False,
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, jax.jit(mapped)(x), expected)


def test_a_single_item_cannot_train_a_hidden_layer(published):
  head, variables = published
  with pytest.raises(ValueError, match="more than one value"):
    head.apply(
      variables, golden.head_in()[:1], train=True, mutable="batch_stats"
    )


def cosine_reference(variables, x):
  """A hidden layer by the running statistics, a bottleneck, cosines."""
  params, stats = jax.tree.map(
    lambda a: np.asarray(a, np.float64),
    (variables["params"], variables["batch_stats"]),
  )
  norm, running = params["bn_0"], stats["bn_0"]
  x = x @ params["dense_0"]["kernel"] - running["mean"]
  x = x / np.sqrt(running["var"] + 1e-5) * norm["scale"] + norm["bias"]
  x = np.maximum(x, 0) @ params["dense_1"]["kernel"]
  kernel = params["dense_2"]["kernel"]
  return np.array(
    [
      [row @ v / np.linalg.norm(row) / np.linalg.norm(v) for v in kernel.T]
      for row in x
    ]
  )


def test_cosine_equals_the_slow_reference(published):
  head, variables = published
  cosine = Head(head.sizes, cosine=True)
  x = golden.head_in()
  made = shapes_of(cosine, x)
  assert set(made["params"]) == {"dense_0", "bn_0", "dense_1", "dense_2"}
  for name, layer in made["params"].items():
    assert jax.tree.map(jnp.shape, layer) == jax.tree.map(
      jnp.shape, variables["params"][name]
    )
  projection = cosine.apply(variables, x, train=False)
  expected = cosine_reference(variables, x)
  assert golden.relative_error(projection, expected) < 1e-5
  rough = Head(head.sizes, dtype=jnp.bfloat16, cosine=True).apply(
    variables, x, train=False
  )
  assert rough.dtype == jnp.float32
  assert 0 < golden.relative_error(rough, expected) < 0.02


def test_cosine_ignores_the_scale_of_input_and_kernel():
  head, x = Head((16,), cosine=True), golden.head_in()
  kernel = golden.rand("kernel", (64, 16))
  rng = np.random.default_rng(0)
  rows, columns = rng.uniform(0.01, 100, (8, 1)), rng.uniform(0.01, 100, 16)
  apply = lambda kernel, x: head.apply(
    {"params": {"dense_0": {"kernel": jnp.asarray(kernel)}}}, x, train=False
  )
  expected = apply(kernel, x)
  assert np.abs(expected).max() <= 1
  for scaled in (
    apply(kernel, x * rows),
    apply(kernel * columns, x),
    -apply(-kernel, x),
  ):
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
  own = apply(np.repeat(x[:1].T, 16, axis=1), x[:1] * 7)
  np.testing.assert_allclose(own, 1, rtol=1e-6)


@pytest.mark.parametrize("zero", ["input", "kernel", "both"])
def test_cosine_of_zeros_is_zero_with_a_finite_gradient(zero):
  head = Head((16,), cosine=True)
  x = golden.head_in() * (zero == "kernel")
  kernel = golden.rand("kernel", (64, 16)) * (zero == "input")

  def total(kernel, x):
    variables = {"params": {"dense_0": {"kernel": kernel}}}
    projection = head.apply(variables, x, train=False)
    return projection.sum(), projection

  grads, projection = jax.grad(total, argnums=(0, 1), has_aux=True)(kernel, x)
  np.testing.assert_array_equal(projection, 0)
  assert all(np.isfinite(grad).all() for grad in grads)
