"""Checks the encoder in this folder: `python verify.py`.

It needs numpy, jax and flatbuffers, and nothing of ssl_music, which exported
this folder and has put this file into it. On input that is made by rule it
computes embeddings, and compares them with those of the network that was
exported; it reads the weights, and compares their digests; with a tag head,
it compares probabilities. It prints what it found, and exits with 1 where
something differs by more than verify.json allows.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

RULE = """Eight segments of integers, n the sample's place, N their number, all
divisions rounded down, % never negative; then clipped to -32767..32767, divided
by 32767, as float32. mix(n) is, modulo 2^32: x = n; x = x xor x/2^16;
x = x * 0x85ebca6b; x = x xor x/2^13; x = x * 0xc2b2ae35; x = x xor x/2^16.
noise(n) = mix(n)/2^16 - 32768. wave(p) = 2 |p % 65536 - 32768| - 32768.
0 noise: noise(n)/8. 1 chord: wave(1802 n)/4 + wave(2252 n)/4 + wave(2700 n)/4,
then 0 from n = 3 N/4.
2 notes, k = n/4000: wave((900 + 211 (k k % 13)) n) (4000 - n % 4000)/8000.
3 sweep that fades: wave(n n/8) (N - n)/N. 4 loud, clipped: wave(300 n) +
3 noise(n). 5 faint: mix(n) % 3 - 1. 6 silence: 0. 7 click: 32767 at n = N/2."""


def pcm(samples: int) -> np.ndarray:
  """Returns the segments of `RULE` before the division, int16 [8, samples]."""
  n = np.arange(samples, dtype=np.int64)
  mixed = n.astype(np.uint32)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
    mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
  mixed = mixed.astype(np.int64)
  noise = mixed // 2**16 - 32768
  wave = lambda p: 2 * abs(p % 65536 - 32768) - 32768
  chord = wave(1802 * n) // 4 + wave(2252 * n) // 4 + wave(2700 * n) // 4
  k = n // 4000
  segments = [
    noise // 8,
    chord * (n < 3 * samples // 4),
    wave((900 + 211 * (k * k % 13)) * n) * (4000 - n % 4000) // 8000,
    wave(n * n // 8) * (samples - n) // samples,
    wave(300 * n) + 3 * noise,
    mixed % 3 - 1,
    0 * n,
    32767 * (n == samples // 2),
  ]
  return np.clip(segments, -32767, 32767).astype(np.int16)


def waveform(samples: int) -> np.ndarray:
  """Returns the segments of `RULE`, float32 [8, samples], from -1 to 1."""
  return pcm(samples).astype(np.float32) / np.float32(32767)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
  """Reads a .safetensors file: a length, a JSON table, and the numbers."""
  content = path.read_bytes()
  start = 8 + int.from_bytes(content[:8], "little")
  table = json.loads(content[8:start])
  table.pop("__metadata__", None)
  types = {"F32": "<f4", "I64": "<i8"}
  return {
    name: np.frombuffer(
      content[start + one["data_offsets"][0] : start + one["data_offsets"][1]],
      types[one["dtype"]],
    ).reshape(one["shape"])
    for name, one in table.items()
  }


def digest(arrays: Mapping[str, np.ndarray]) -> str:
  """Returns the SHA-256 of arrays by name, in the order of their names."""
  found = hashlib.sha256()
  for name in sorted(arrays):
    value = np.asarray(arrays[name], order="C")
    found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
    found.update(value.tobytes())
  return found.hexdigest()


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
  """Returns the largest ‖found − wanted‖ / ‖wanted‖ of a row, of [N, D]."""
  found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
  size = np.linalg.norm(wanted, axis=1)
  return float((np.linalg.norm(found - wanted, axis=1) / size).max())


def tag(head: Mapping[str, np.ndarray], vectors: np.ndarray) -> dict:
  """Returns the probability of every tag of a track.

  Args:
    head: of head.npz, as `numpy.load` gives it.
    vectors: [N, D], embeddings of the track's segments, one or more.
  """
  x = np.asarray(vectors, np.float64)
  how = str(head["aggregation"])
  x = x.mean(axis=0, keepdims=True) if how == "embeddings" else x
  x = (x - head["mean"]) * head["inverse"]
  last = sum(name.startswith("kernel_") for name in head) - 1
  for layer in range(last + 1):
    x = x @ head[f"kernel_{layer}"] + head[f"bias_{layer}"][:, None]
    x = np.maximum(x, 0) if layer < last else x
  x = x if how == "probabilities" else x.mean(axis=1, keepdims=True)
  values = (1 / (1 + np.exp(-np.clip(x, -500, 500)))).mean(axis=(0, 1))
  return dict(zip(head["tags"].tolist(), values.tolist(), strict=True))


def main() -> int:
  """Prints what the check finds, for JSON; returns the exit code."""
  folder = Path(__file__).parent
  wanted = json.loads((folder / "verify.json").read_text("utf-8"))
  allowed = wanted["allowed"]
  x = waveform(wanted["input"]["shape"][1])
  same = hashlib.sha256(x.tobytes()).hexdigest() == wanted["input"]["sha256"]
  report: dict[str, Any] = {"input": "same" if same else "differs"}
  for file, one in wanted["tensors"].items():
    is_same = digest(read_tensors(folder / file)) == one["sha256"]
    report[file] = "same" if is_same else "differs"

  import jax
  from jax import export

  program = (folder / "encoder.stablehlo").read_bytes()
  embed = export.deserialize(program).call
  with np.load(folder / "verify.npz") as expected:
    # A batch, and a segment alone: the batch's size is free.
    found = np.asarray(embed(x)), np.asarray(embed(x[:1]))
    worst = max(difference(y, expected["embedding"][: len(y)]) for y in found)
    report["encoder.stablehlo"] = worst
    if "probabilities" in expected:
      with np.load(folder / "head.npz") as head:
        values = list(tag(dict(head), expected["embedding"]).values())
      gap = np.abs(np.array(values) - expected["probabilities"])
      report["head.npz"] = float(gap.max())
  passed = "differs" not in report.values()
  passed &= all(report[file] <= most for file, most in allowed.items())
  report |= {"allowed": allowed, "passed": passed}
  report |= {"jax": jax.__version__, "platform": jax.default_backend()}
  # Nothing of these took part.
  report["present"] = sorted({"flax", "ssl_music"} & set(sys.modules))
  print(json.dumps(report, indent=2))
  return 0 if report["passed"] else 1


if __name__ == "__main__":
  sys.exit(main())
