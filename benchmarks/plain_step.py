"""The contrastive step as a plain script in Flax and Optax would have it.

The same front end, network, head, loss and optimiser as in preset "paper" of
`configs/contrastive.py`, but each part is the libraries' own: `nn.Conv`,
`nn.BatchNorm`, `nn.avg_pool`, `jnp.fft.rfft`, `optax.adamw`, on one device.
`targets.py` compares with it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_music.models.frontend import hann_window, mel_filterbank

SAMPLES = 64_000


def log_mel(waveform: jax.Array) -> jax.Array:
  """Returns decibels, [N, mel, frame, 1], of int16 [N, samples]."""
  padded = jnp.pad(waveform / 32767, ((0, 0), (512, 512)), mode="reflect")
  index = 512 * jnp.arange(126)[:, None] + jnp.arange(1024)
  window = hann_window() / jnp.linalg.norm(hann_window())
  spectrum = jnp.fft.rfft(padded[:, index] * window)
  power = jnp.square(jnp.abs(spectrum))
  mel = jnp.matmul(power, mel_filterbank(), precision="highest")
  decibels = 10 * jnp.log10(jnp.maximum(mel, 1e-10))
  floor = decibels.max((1, 2), keepdims=True) - 100
  return jnp.maximum(decibels, floor).swapaxes(1, 2)[..., None]


class Network(nn.Module):
  """The published backbone and head."""

  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Projects spectrograms [N, mel, frame, 1] to [N, 2048]."""
    conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
    norm = lambda x: nn.BatchNorm(
      use_running_average=False, momentum=0.9, dtype=self.dtype
    )(x)
    pool = lambda x: nn.avg_pool(x, (2, 2), (2, 2))
    for channels, stride in ((8, 2), (8, 1), (16, 1)):
      x = nn.relu(norm(conv(channels, (3, 3), stride, padding=1)(x)))
    x = pool(x)
    for stage, depth in enumerate((3, 4, 6, 3)):
      for block in range(depth):
        planes, y, strided = 16 * 2**stage, x, stage > 0 and block == 0
        if block == 0:
          y = norm(conv(4 * planes, (1, 1))(pool(y) if strided else y))
        x = nn.relu(norm(conv(planes, (1, 1))(x)))
        x = nn.relu(norm(conv(planes, (3, 3), padding=1)(x)))
        x = norm(conv(4 * planes, (1, 1))(pool(x) if strided else x))
        x = nn.relu(x + y)
    x = x.reshape(len(x), -1, x.shape[-1])
    x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
    positions = nn.initializers.normal(0.04)
    x = x + self.param("positions", positions, x.shape[1:])
    attention = nn.MultiHeadDotProductAttention(
      num_heads=8, out_features=1024, dtype=self.dtype
    )
    x = attention(x[:, :1].astype(self.dtype), x.astype(self.dtype))[:, 0]
    dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
    for size in (1024, 1024):
      x = nn.relu(norm(dense(size)(x)))
    return dense(2048)(x).astype(jnp.float32)


def nt_xent(z: jax.Array) -> jax.Array:
  """Returns the loss of projections [2 N, P], the views one after the other."""
  z /= jnp.linalg.norm(z, axis=1, keepdims=True)
  logits = z @ z.T / 0.1 - 1e9 * jnp.eye(len(z))
  labels = jnp.roll(jnp.arange(len(z)), len(z) // 2)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return losses.mean()


def lower(mesh: Mesh, batch: int, dtype: str) -> jax.stages.Lowered:
  """Lowers the step of so many pairs for the first device of a mesh."""
  one = Mesh(mesh.devices[:1], mesh.axis_names)
  network = Network(dtype)
  rate = optax.warmup_cosine_decay_schedule(0, 5e-4, 5120, 511488)
  optimizer = optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=0.04)

  def init():
    variables = network.init(jax.random.key(0), jnp.zeros((2, 128, 126, 1)))
    return variables, optimizer.init(variables["params"])

  def step(variables, state, waveform):
    mel = log_mel(waveform.reshape(-1, SAMPLES))

    def loss(params):
      seen = {**variables, "params": params}
      z, changed = network.apply(seen, mel, mutable=["batch_stats"])
      return nt_xent(z), changed

    (value, changed), grads = jax.value_and_grad(loss, has_aux=True)(
      variables["params"]
    )
    updates, state = optimizer.update(grads, state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, **changed}, state, value

  place = NamedSharding(one, PartitionSpec())
  put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  given = jax.tree.map(put, jax.eval_shape(init))
  views = put(jax.ShapeDtypeStruct((2, batch, SAMPLES), jnp.int16))
  return jax.jit(step, donate_argnums=(0, 1)).lower(*given, views)
