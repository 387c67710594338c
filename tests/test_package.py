import subprocess
import sys

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


def test_compiled_sums_are_right():
  subprocess.run([sys.executable, "-c", SCRIPT], check=True)
