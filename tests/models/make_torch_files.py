"""Writes torch_zip.pt and torch_legacy.pt with PyTorch itself (2.13.0).

They are kept so that the tests need no PyTorch. To write them anew, from the
top of the repository, with PyTorch installed:

  PYTHONPATH=tests python tests/models/make_torch_files.py
"""

import argparse
import collections
import enum
import pathlib

import golden
import ml_dtypes
import numpy as np

HERE = pathlib.Path(__file__).parent
# Name: the type of a 4 x 6 array, and how it is looked at.
VIEWS = {
  "whole": ("float32", lambda x: x),
  "transposed": ("float32", lambda x: x.T),
  "strided": ("float32", lambda x: x[1:, ::2]),
  "row": ("float32", lambda x: x[2]),
  "value": ("float32", lambda x: x[3, 4]),
  "empty": ("float32", lambda x: x[:0]),
  "half": ("float16", lambda x: x),
  "brain": ("bfloat16", lambda x: x[:, 1:]),
  "double": ("float64", lambda x: x),
  "complex": ("complex64", lambda x: x),
  "truth": ("bool", lambda x: x),
  "bytes": ("uint8", lambda x: x),
  "shorts": ("int16", lambda x: x.T),
  "longs": ("int64", lambda x: x),
}
# Types that came after the legacy format.
NEW_VIEWS = {
  "eight": ("float8_e4m3fn", lambda x: x.T),
  "unsigned": ("uint16", lambda x: x),
}


def values(dtype):
  """The 4 x 6 array of a type: whole numbers, which all types can hold."""
  whole = np.round(3 * np.abs(golden.rand("torch file", (4, 6))))
  return whole.astype(getattr(ml_dtypes, dtype, dtype))


class Colour(enum.Enum):
  RED = 1


class Settings(dict):
  """As a config's class would be: one that a reader does not have."""

  def __init__(self, **fields):
    super().__init__(fields)
    self.fields = fields


def main():
  import torch

  def tensors(views):
    whole = torch.from_numpy(values("float32"))
    kinds = {"float32": whole}  # one storage for all views of a type
    for dtype, _ in views.values():
      kinds.setdefault(dtype, whole.to(getattr(torch, dtype)))
    return {name: view(kinds[dtype]) for name, (dtype, view) in views.items()}

  layer = torch.nn.Linear(3, 2)
  optimizer = torch.optim.AdamW(layer.parameters())
  layer(torch.ones(1, 3)).sum().backward()
  optimizer.step()
  others = {
    "optimizer": optimizer.state_dict(),
    "layer": layer,
    "settings": Settings(lr=0.1, steps=[1, 2]),
    "args": argparse.Namespace(colour=Colour.RED, path=pathlib.Path("a")),
    "numpy": [np.float32(1.5), np.arange(3), np.random.default_rng(0)],
    "by pair": {(1, 2): 3, Colour.RED: 4},
    "sets": [{1, 2}, frozenset("a"), 2**100, torch.float32, torch.Size([2])],
  }
  for file, views in (
    ("torch_zip.pt", VIEWS | NEW_VIEWS),
    ("torch_legacy.pt", VIEWS),
  ):
    state = collections.OrderedDict(tensors(views))
    state["parameter"] = torch.nn.Parameter(state["whole"])
    torch.save(
      {**others, "model": state},
      HERE / file,
      _use_new_zipfile_serialization=file == "torch_zip.pt",
    )


if __name__ == "__main__":
  main()
