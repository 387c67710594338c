import subprocess
import sys

import pytest

# jax is imported and used before ssl_music in the other tests' process.
SCRIPT = """
import ssl_music
import jax, numpy as np
rng = np.random.default_rng(0)
weights = rng.standard_normal((16, 4)).astype(np.float32)
values = rng.standard_normal((512, 4)).astype(np.float32)
images = np.zeros((512, 16, 5), np.float32)
add = lambda v, x: x + (weights * v).sum(axis=1)[:, None]
found = np.asarray(jax.jit(jax.vmap(add))(values, images))
assert np.abs(found[:, :, 0] - values @ weights.T).max() < 1e-4
"""
LATE = """
import jax
jax.devices()
for attempt in range(2):
  try:
    import ssl_music
  except ImportError as error:
    assert "import ssl_music before jax" in str(error)
  else:
    import jaxlib
    assert not jaxlib.__version__.startswith("0.10."), "imported too late"
"""


@pytest.mark.parametrize("script", [SCRIPT, LATE])
def test_compiled_sums_are_right_or_refused(script, monkeypatch):
  monkeypatch.delenv("XLA_FLAGS")  # which this process has set in time
  subprocess.run([sys.executable, "-c", script], check=True)
