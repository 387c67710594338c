"""A trained tag head, kept as plain arrays beside the scores it has got.

A head is a dict:
  "tags": T names.
  "aggregation": what is averaged over a track's segments, one of
    `AGGREGATIONS`.
  "sounding": whether only the sounding segments count, as in every head that an
    earlier version of this package left.
  "mean", "inverse": float32 [D], by which embeddings are standardised: the
    training segments' mean, and one over their deviation.
  "layers": {"kernel": float32 [seeds, D, H], "bias": float32 [seeds, H]} each,
    with ReLU between them; the last one has T outputs. A head trained with
    several seeds is as many heads, whose probabilities are averaged.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from ssl_music import arrays, seal
from ssl_music.errors import InputError

AGGREGATIONS = ("embeddings", "logits", "probabilities")
FILE = "head.npz"
_ADVICE = "make it again in a new workdir"


def save(folder: str | Path, head: Mapping[str, Any]) -> None:
  """Leaves a head in a folder, as `head.npz`, sealed.

  Args:
    folder: exists.
    head: see above.

  Raises:
    OSError: it cannot be written.
  """
  seal.put(Path(folder), FILE, dump(head), _ADVICE)


def dump(head: Mapping[str, Any]) -> bytes:
  """Returns a head as the content of `head.npz`."""
  kept = {name: head[name] for name in ("mean", "inverse")}
  kept["tags"] = np.array(head["tags"], dtype=str)
  kept["aggregation"] = np.array(head["aggregation"])
  kept["sounding"] = np.array(head["sounding"])
  for index, layer in enumerate(head["layers"]):
    kept |= {f"{name}_{index}": array for name, array in layer.items()}
  return arrays.dump(kept)


def load(folder: str | Path) -> dict[str, Any]:
  """Reads the head that a folder holds.

  Args:
    folder: the workdir of a probe or of a fine-tuning, or an export.

  Raises:
    InputError: there is none, or it is damaged.
  """
  folder = Path(folder)
  file = folder / FILE
  if not file.exists():
    raise InputError(
      f"no tag head in {folder} (it has no {FILE}): give the workdir of a"
      " finished probe or fine-tuning"
    )
  found = arrays.parse(seal.read(folder, FILE, _ADVICE), file, _ADVICE)
  try:
    layers = range(sum(name.startswith("kernel_") for name in found))
    head = {
      "tags": found["tags"].tolist(),
      "aggregation": found["aggregation"].item(),
      "sounding": bool(found.get("sounding", True)),
      "mean": found["mean"],
      "inverse": found["inverse"],
      "layers": [
        {name: found[f"{name}_{index}"] for name in ("kernel", "bias")}
        for index in layers
      ],
    }
    _check(head)
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(f"{file} is damaged ({error}): {_ADVICE}") from error
  return head


def _check(head: Mapping[str, Any]) -> None:
  """Raises ValueError where a head is not what this module's docstring says."""
  if head["aggregation"] not in AGGREGATIONS:
    raise ValueError(f"no aggregation {head['aggregation']!a:.40}")
  if (
    not all(isinstance(tag, str) for tag in head["tags"]) or not head["layers"]
  ):
    raise ValueError("it has no tags or no layers")
  (width,) = head["mean"].shape
  seeds, *_ = head["layers"][0]["kernel"].shape
  wanted = [(width,), (width,)]
  for layer in head["layers"]:
    wanted += [(seeds, width, width := layer["bias"].shape[-1]), (seeds, width)]
  numbers = [head["mean"], head["inverse"]]
  numbers += [x for layer in head["layers"] for x in layer.values()]
  if [x.shape for x in numbers] != wanted or width != len(head["tags"]):
    raise ValueError("its arrays do not fit together")
  if not all(x.dtype.kind == "f" and np.isfinite(x).all() for x in numbers):
    raise ValueError("it holds what is no finite number")


def logits(head: Mapping[str, Any], vectors: np.ndarray) -> np.ndarray:
  """Returns a track's logits by each seed's head, float32 [seeds, T].

  Args:
    head: of `load`.
    vectors: [N, D] finite embeddings of the track's segments, one or more; the
      sounding ones alone where the head says so.

  Raises:
    InputError: the head is for embeddings of another size.
  """
  vectors = np.asarray(vectors, np.float64)
  size = len(head["mean"])
  if vectors.shape[1:] != (size,) or not len(vectors):
    raise InputError(
      f"the tag head is for embeddings [segments, {size}], not"
      f" {list(vectors.shape)}: give those of the encoder it was trained on"
    )
  how = head["aggregation"]
  if how == "embeddings":
    vectors = vectors.mean(axis=0, keepdims=True)
  x = (vectors - head["mean"]) * head["inverse"]
  *hidden, last = head["layers"]
  for layer in hidden:
    x = np.maximum(x @ layer["kernel"] + layer["bias"][:, None], 0)
  y = x @ last["kernel"] + last["bias"][:, None]  # [seeds, N or 1, T]
  if how == "probabilities":
    # Of both outcomes, since 1 - p would round to 0.
    present, absent = (
      np.log(np.maximum(expit(sign * y).mean(axis=1), 1e-300))
      for sign in (1, -1)
    )
    mean = present - absent
  else:
    mean = y.mean(axis=1)
  return mean.astype(np.float32)


def apply(head: Mapping[str, Any], vectors: np.ndarray) -> np.ndarray:
  """Returns a track's probability of every tag, float32 [T].

  Args:
    head: of `load`.
    vectors: as of `logits`.

  Raises:
    InputError: as `logits`.
  """
  return expit(logits(head, vectors)).mean(axis=0)
