"""Self-supervised pre-training and probing of music encoders in JAX."""

import importlib.metadata
import os

# jaxlib 0.10 (the newest for Python 3.11) computes some compiled sums of
# products wrong on the CPU when its YNN library fuses them (jax issue 39103;
# tests/test_package.py has an example). None of its fusions are wanted: without
# them a training step takes 8 % less time, too. XLA reads its flags when the
# first computation runs, so it is enough that this package is imported before.
_NO_FAULTY_FUSION = "--xla_cpu_experimental_ynn_fusion_type="
if importlib.metadata.version("jaxlib").startswith("0.10."):
  _flags = os.environ.get("XLA_FLAGS", "")
  if "ynn_fusion_type" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} {_NO_FAULTY_FUSION}".strip()


def load(path, checkpoint="latest", network="student", **options):
  """Loads a trained encoder; see `ssl_music.pretrained.load`."""
  # Here, since worker processes that decode need none of it.
  from ssl_music import pretrained

  return pretrained.load(path, checkpoint, network, **options)
