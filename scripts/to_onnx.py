"""Adds encoder.onnx to an exported encoder, and checks it in ONNX Runtime.

jax2onnx asks for another release of orbax-checkpoint than this project, so it
has an environment of its own:

  python -m venv .onnx
  .onnx/bin/pip install jax2onnx onnxruntime absl-py ml-collections safetensors
  PYTHONPATH=. .onnx/bin/python scripts/to_onnx.py ENCODER

ENCODER is a folder of `python -m ssl_music.export`. As its StableHLO program,
encoder.onnx maps float32 [b, samples], b any number, to float32 [b, D], and
must come within what its verify.json allows.
"""

import json
import math
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from jax2onnx import to_onnx

from ssl_music import encoder, verify_export
from ssl_music.models import torch_checkpoint

FILE = "encoder.onnx"


def fourier_transform(x: jax.Array) -> types.SimpleNamespace:
  """`jnp.fft.rfft` as products with two small matrices (Cooley & Tukey, 1965).

  ONNX's DFT, in a graph whose batch may be of any size, is refused by the
  shape inference of ONNX Runtime 1.32. One product with a whole matrix would
  put 4 MB of constants into the file.

  Args:
    x: float32 [..., n].

  Returns:
    an object of "real" and "imag", [..., n // 2 + 1] each.
  """
  n = x.shape[-1]
  rows = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
  columns = n // rows

  def waves(size: int, one: int, other: int) -> tuple[jax.Array, jax.Array]:
    turns = np.arange(one)[:, None] * np.arange(other) % size / size
    angle = 2 * np.pi * turns
    parts = np.cos(angle), -np.sin(angle)
    return tuple(jnp.asarray(part, x.dtype) for part in parts)

  # Sample columns * a + b, frequency k + rows * l: first over a, then over b.
  samples = jnp.swapaxes(x.reshape(*x.shape[:-1], rows, columns), -1, -2)
  cos, sin = waves(rows, rows, rows)
  real, imag = samples @ cos, samples @ sin  # [..., b, k]
  cos, sin = waves(n, columns, rows)
  real, imag = real * cos - imag * sin, real * sin + imag * cos
  real, imag = jnp.swapaxes(real, -1, -2), jnp.swapaxes(imag, -1, -2)
  cos, sin = waves(columns, columns, columns)
  real, imag = real @ cos - imag @ sin, real @ sin + imag @ cos  # [..., k, l]

  def in_order(part: jax.Array) -> jax.Array:
    return jnp.swapaxes(part, -1, -2).reshape(x.shape)[..., : n // 2 + 1]

  return types.SimpleNamespace(real=in_order(real), imag=in_order(imag))


def main(folder: Path) -> int:
  """Writes and checks; returns the exit code."""
  if not (folder / "verify.json").is_file():
    print(f"{folder} is no folder of ssl_music.export", file=sys.stderr)
    return 1
  read = torch_checkpoint.load(folder / "encoder.safetensors")
  wanted = json.loads((folder / "verify.json").read_text("utf-8"))
  samples = wanted["input"]["shape"][1]
  jnp.fft.rfft = fourier_transform
  model = to_onnx(lambda x: encoder.embed(*read, x), [("b", samples)])
  draft = folder / f"{FILE}.partial"
  onnx.save(model, draft)
  session = onnxruntime.InferenceSession(draft)
  x = verify_export.waveform(samples)
  name = session.get_inputs()[0].name
  run = lambda x: session.run(None, {name: x})[0]
  with np.load(folder / "verify.npz") as expected:
    embedding = expected["embedding"]
  gap = max(
    verify_export.difference(run(x), embedding),
    verify_export.difference(run(x[:1]), embedding[:1]),
  )
  allowed = wanted["allowed"]["encoder.stablehlo"]
  if not gap <= allowed:
    draft.unlink()
    print(
      f"{FILE} embeds with a difference of {gap:.1e}, where {allowed:.1e} is"
      " allowed, and was removed: this Fourier transform rounds otherwise than"
      " JAX's, which matters where a network hears quiet bands beside a tone;"
      " use encoder.stablehlo",
      file=sys.stderr,
    )
    return 1
  draft.replace(folder / FILE)
  size = (folder / FILE).stat().st_size / 1e6
  print(f"{folder / FILE}: {size:.2f} MB, checked, difference {gap:.1e}")
  return 0


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("usage: python scripts/to_onnx.py ENCODER")
  sys.exit(main(Path(sys.argv[1])))
