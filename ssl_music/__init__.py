"""Self-supervised pre-training and probing of music encoders in JAX."""

import os
import sys

from ssl_music import early

early.begin()

import importlib.metadata  # noqa: E402

# jaxlib 0.10 (the newest for Python 3.11) computes some compiled sums of
# products wrong on the CPU when its YNN library fuses them (jax issue 39103).
# None of its fusions are wanted: without them a training step takes 8 % less
# time, too. XLA reads its flags once, when jax first asks for devices.
_NO_FAULTY_FUSION = "--xla_cpu_experimental_ynn_fusion_type="


def _sums_are_wrong() -> bool:
  """Says whether jax has started, and computes a sum of products wrong."""
  if "jax" not in sys.modules:
    return False
  import jax
  import numpy as np

  devices = jax.config.jax_num_cpu_devices
  try:  # jax refuses this once it has started
    jax.config.update("jax_num_cpu_devices", devices + 1)
  except RuntimeError:
    values = np.arange(2048, dtype=np.float32).reshape(512, 4)
    weights, zeros = values[:16], np.zeros((512, 16, 5), np.float32)
    add = lambda v, x: x + (weights * v).sum(axis=1)[:, None]
    found = np.asarray(jax.jit(jax.vmap(add))(values, zeros))
    return bool((found[:, :, 0] != values @ weights.T).any())
  jax.config.update("jax_num_cpu_devices", devices)
  return False


if importlib.metadata.version("jaxlib").startswith("0.10."):
  _flags = os.environ.get("XLA_FLAGS", "")
  if "ynn_fusion_type" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} {_NO_FAULTY_FUSION}".strip()
  if _sums_are_wrong():
    raise ImportError(
      "jax has started without a flag that this release of jaxlib needs to"
      " compute right sums on the CPU: import ssl_music before jax computes"
      f" anything, or set XLA_FLAGS={_NO_FAULTY_FUSION} before Python starts"
    )


def load(path, checkpoint="latest", network="student", **options):
  """Loads a trained encoder; see `ssl_music.pretrained.load`."""
  # Here, since worker processes that decode need none of it.
  from ssl_music import pretrained

  return pretrained.load(path, checkpoint, network, **options)
