"""A network that compiles in a moment, in place of the ResNet."""

import contextlib
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from ssl_music import checkpoint, encoder, parallel, step
from ssl_music.models.norm import BatchNorm


class Backbone(nn.Module):
  """Stands in for the ResNet, which would take most of the tests' time."""

  output: int
  axis_name: str | None
  dtype: str

  @nn.compact
  def __call__(self, mel, *, train):
    x = jnp.concatenate([mel.mean(-1), mel.std(-1)], axis=-1)
    # Biases would add the same to all items, which the next norm takes away.
    dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
    norm = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name="bn")
    x = norm(dense(2 * self.output)(x), train=train)
    return dense(self.output)(nn.relu(x))


@contextlib.contextmanager
def backbone():
  """Every network that is made inside has this backbone."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      encoder,
      "backbone",
      lambda config, axis=None, **_: Backbone(
        config["model"]["output"], axis, config["model"]["dtype"]
      ),
    )
    yield


@contextlib.contextmanager
def one_device():
  """All runs inside have one device, quicker to compile for than eight."""
  mesh = parallel.make_mesh(jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(parallel, "make_mesh", lambda: mesh)
    yield


def pretrained(data_dir, folder):
  """Makes a folder the workdir of a pre-training that has not learnt.

  Returns:
    the backbone in its checkpoint, of step 7: {"params", "batch_stats"}.
  """
  settings = tiny.pretraining(data_dir, seed=5).to_dict()
  (folder / "config.json").write_text(json.dumps(settings))
  trained = state(data_dir)
  with checkpoint.open_run(folder) as saved:
    checkpoint.save(saved, 7, trained, {"loss": 1.0})
  return {kind: trained[kind]["backbone"] for kind in step.KINDS}


def state(data_dir):
  """Returns the state that `pretrained` saves, NumPy arrays."""
  settings = tiny.pretraining(data_dir, seed=5).to_dict()
  found = jax.device_get(step.init_state(settings, optax.identity()))
  # Unlike any initial one, also where the initial one is constant; and alive:
  # of a network whose last ReLUs are all at 0, every embedding is the same.
  rng = np.random.default_rng(5)
  stir = lambda x: x + np.float32(0.1) * rng.standard_normal(x.shape, "f")
  found["params"] = jax.tree.map(stir, found["params"])
  found["batch_stats"] = jax.tree.map(lambda x: 1.5 * x, found["batch_stats"])
  return found
