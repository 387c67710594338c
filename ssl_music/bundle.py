"""The artefacts of an export, and the checks that they are the encoder."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from ssl_music import encoder, tagger, verify_export
from ssl_music.data import audio
from ssl_music.errors import InputError
from ssl_music.models import torch_checkpoint, torch_weights
from ssl_music.weights import EXPORTED, FORMAT, Weights

PROGRAM = "encoder.stablehlo"
PUBLISHED = "encoder_published.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")

# Of an embedding the largest relative difference, ‖a − b‖ / ‖b‖, of a tag's
# probability the largest absolute one.
ALLOWED = 1e-4
_MEASURE = (
  "of embeddings the largest relative difference, ‖a − b‖ / ‖b‖, of a segment;"
  " of head.npz the largest absolute one of a probability"
)
_FIRST = 8  # numbers of an embedding that verify.json shows
_PACKAGES = ("ssl_music", "jax", "jaxlib", "flax", "numpy", "safetensors")


def write(folder: Path, found: Weights) -> dict[str, Any]:
  """Writes an encoder's artefacts into a folder and checks each.

  Left are the program, two files of weights, the head if there is one,
  `verify.npz`, `verify.json`, and the script that checks all of it.

  Args:
    folder: exists.
    found: the encoder.

  Returns:
    what `verify.json` holds, with the differences as "found" by file.

  Raises:
    InputError: an artefact does not compute what the encoder does.
    OSError: it cannot be written.
  """
  settings, variables, described, head = found
  segments = verify_export.pcm(samples_of(settings))
  live = _live(settings)
  embedding = live(variables, segments)
  if not np.isfinite(embedding).all():
    raise InputError(
      f"the encoder {described['encoder']} embeds some sound as something that"
      " is no finite number: give a checkpoint from before it diverged, or that"
      " computes in float32"
    )
  allowed = _allowed(settings, variables, segments, embedding)
  differences = {}
  for name, write_file in (
    (EXPORTED, torch_checkpoint.write_ours),
    (PUBLISHED, torch_checkpoint.write_published),
  ):
    write_file(folder / name, variables, settings)
    read = _read_back(folder / name, settings, variables)
    gap = verify_export.difference(live(read, segments), embedding)
    if not gap <= allowed:
      raise _is_another(f"{name} embeds with a difference of {gap:.1e}")
    differences[name] = gap
  (folder / PROGRAM).write_bytes(program(settings, variables))
  expected, limits = {"embedding": embedding}, {PROGRAM: allowed}
  if head is not None:
    tagged = tagger.load(head)
    (folder / tagger.FILE).write_bytes(tagger.dump(tagged))
    expected["probabilities"] = tagger.apply(tagged, embedding)
    limits[tagger.FILE] = ALLOWED
  np.savez(folder / "verify.npz", **expected)
  script = Path(verify_export.__file__)
  (folder / "verify.py").write_bytes(script.read_bytes())
  about = _about(settings, variables, expected) | {"allowed": limits}
  write_json(folder / "verify.json", about)
  about["found"] = differences | _run_script(folder)
  write_json(folder / "verify.json", about)
  return about


def program(settings: Mapping, variables: Mapping[str, Any]) -> bytes:
  """Returns an encoder as StableHLO for CPU, CUDA and TPU, of `jax.export`.

  It maps waveforms, float32 [b, samples] from -1 to 1, b any number, to
  float32 [b, D]. The weights are constants in it. Products of float32 are
  computed in full precision, which a GPU or a TPU does not do unasked.

  Args:
    settings: of `weights.Weights`.
    variables: of the same.
  """
  shape = (*export.symbolic_shape("b"), samples_of(settings))
  embed = jax.jit(lambda x: encoder.embed(settings, variables, x))
  with jax.default_matmul_precision("highest"):
    traced = export.export(embed, platforms=PLATFORMS)(
      jax.ShapeDtypeStruct(shape, jnp.float32)
    )
  return bytes(traced.serialize(vjp_order=0))


def samples_of(settings: Mapping) -> int:
  """Returns the length of a segment in samples."""
  return round(settings["data"]["seconds"] * audio.SAMPLE_RATE)


def versions() -> dict[str, str]:
  """Returns the versions of what exports."""
  found = {one: importlib.metadata.version(one) for one in _PACKAGES}
  return found | {"python": platform.python_version()}


def write_json(file: Path, content: Mapping[str, Any]) -> None:
  """Writes a file that people read, too."""
  text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
  file.write_text(text + "\n", "utf-8")


def _live(settings: Mapping) -> Callable[[Mapping, np.ndarray], np.ndarray]:
  """The encoder as it is used here, of variables and int16 segments."""
  embed = jax.jit(lambda variables, x: encoder.embed(settings, variables, x))

  def run(variables: Mapping[str, Any], segments: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
      return np.asarray(embed(variables, segments))

  return run


def _allowed(
  settings: Mapping,
  variables: Mapping[str, Any],
  segments: np.ndarray,
  embedding: np.ndarray,
) -> float:
  """How far a program's embeddings may be from the encoder's.

  A network that computes in bfloat16 or float16 rounds after every layer, and
  another order of a sum rounds to something else. Where its embeddings are off
  by so much from those in float32, two such programs differ by twice of that
  at most.
  """
  if settings["model"]["dtype"] == "float32":
    return ALLOWED
  exact = {**settings, "model": {**settings["model"], "dtype": "float32"}}
  found = _live(exact)(variables, segments)
  return max(ALLOWED, 2 * verify_export.difference(embedding, found))


def _read_back(
  file: Path, settings: Mapping, variables: Mapping[str, Any]
) -> dict[str, Any]:
  """Reads a file's weights, which must be the same to the last bit."""
  came, read = torch_checkpoint.load(file)
  plain = lambda one: json.loads(json.dumps(one))
  if plain(came) != plain(settings):
    raise _is_another(f"{file.name} came back with another config")
  names = jax.tree.structure(read), jax.tree.structure(variables)
  same = names[0] == names[1] and jax.tree.all(
    jax.tree.map(np.array_equal, read, variables)
  )
  if not same:
    raise _is_another(f"{file.name} came back with other weights")
  return read


def _about(
  settings: Mapping,
  variables: Mapping[str, Any],
  expected: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """What `verify.json` tells, but for what is allowed and what was found."""
  waveform = verify_export.waveform(samples_of(settings))
  embedding = expected["embedding"]
  front_end = torch_weights.front_end(settings["frontend"])
  leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  tensors = {
    EXPORTED: {name(path): leaf for path, leaf in leaves},
    PUBLISHED: torch_weights.to_torch(variables)
    | {key: value.astype(np.float32) for key, value in front_end.items()},
  }
  return {
    "format": FORMAT,
    "how": "python verify.py (needs numpy, jax and flatbuffers)",
    "input": {
      "rule": verify_export.RULE.split("\n"),
      "shape": list(waveform.shape),
      "type": "float32, little-endian",
      "sha256": hashlib.sha256(waveform.tobytes()).hexdigest(),
    },
    "output": {
      "file": "verify.npz",
      "shape": list(embedding.shape),
      "sha256": hashlib.sha256(embedding.tobytes()).hexdigest(),
      "first": embedding[:, :_FIRST].tolist(),
      "norms": np.linalg.norm(embedding, axis=1).tolist(),
    },
    "tensors": {
      file: {
        "number": len(arrays),
        "sha256": verify_export.digest(arrays),
      }
      for file, arrays in tensors.items()
    },
    "measure": _MEASURE,
    "versions": versions(),
  }


def _run_script(folder: Path) -> dict[str, float]:
  """Checks a folder as its receiver does, in a process with jax alone.

  On the CPU, as this process may hold the accelerator or its memory; without
  the flags that this package has set for XLA, which the receiver lacks.
  """
  settings = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  done = subprocess.run(
    [sys.executable, "-I", str(folder / "verify.py")],
    env=settings | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    encoding="utf-8",
  )
  try:
    report = json.loads(done.stdout)
  except ValueError as error:
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise _is_another(f"its check failed: {said[:300]}") from error
  if done.returncode or report["present"]:
    wrong = {
      name: value
      for name, value in report.items()
      if value == "differs"
      or (name in report["allowed"] and not value <= report["allowed"][name])
    }
    raise _is_another(f"in a process with jax alone: {wrong or report}")
  return {name: report[name] for name in report["allowed"]}


def _is_another(why: str) -> InputError:
  return InputError(
    f"the export is not the encoder ({why}), so nothing was kept: export with"
    " the versions of constraints.txt, and report it if that does not help"
  )
