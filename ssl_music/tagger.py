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

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from ssl_music.errors import InputError

AGGREGATIONS = ("embeddings", "logits", "probabilities")
FILE = "head.npz"


def save(folder: str | Path, head: Mapping[str, Any]) -> None:
  """Leaves a head in a folder, as `head.npz`, whole or not at all.

  Args:
    folder: exists.
    head: see above.
  """
  arrays = {name: head[name] for name in ("mean", "inverse")}
  arrays["tags"] = np.array(head["tags"], dtype=str)
  arrays["aggregation"] = np.array(head["aggregation"])
  arrays["sounding"] = np.array(head["sounding"])
  for index, layer in enumerate(head["layers"]):
    arrays |= {f"{name}_{index}": array for name, array in layer.items()}
  partial = Path(folder) / "head.partial.npz"
  np.savez(partial, **arrays)
  partial.rename(partial.with_name(FILE))


def load(folder: str | Path) -> dict[str, Any]:
  """Reads the head that a folder holds.

  Args:
    folder: the workdir of a probe or of a fine-tuning, or an export.

  Raises:
    InputError: there is none, or it is damaged.
  """
  file = Path(folder) / FILE
  try:
    with np.load(file) as found:
      arrays = dict(found)
    layers = sum(name.startswith("kernel_") for name in arrays)
    return {
      "tags": arrays["tags"].tolist(),
      "aggregation": arrays["aggregation"].item(),
      "sounding": bool(arrays.get("sounding", True)),
      "mean": arrays["mean"],
      "inverse": arrays["inverse"],
      "layers": [
        {name: arrays[f"{name}_{index}"] for name in ("kernel", "bias")}
        for index in range(layers)
      ],
    }
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise InputError(
      f"no tag head in {folder} (its {FILE} is missing or damaged): give the"
      " workdir of a finished probe or fine-tuning, or run it again"
    ) from error


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
