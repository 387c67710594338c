"""Files of safetensors (through its library): arrays by name, and a config.

A file of ours carries the config of its network in the file's metadata, so that
it needs nothing beside it: {"ssl_music": '{"format": 1, "config": {...}}'}.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from ssl_music.errors import InputError

FORMAT = 1
_KEY = "ssl_music"
_DTYPES = {
  "BOOL": np.bool_,
  "I8": np.int8,
  "U8": np.uint8,
  "I16": np.int16,
  "U16": np.uint16,
  "I32": np.int32,
  "U32": np.uint32,
  "I64": np.int64,
  "U64": np.uint64,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F32": np.float32,
  "F64": np.float64,
}


def is_safetensors(head: bytes) -> bool:
  """Tells by its first bytes (9 or more) whether a file is of safetensors."""
  return head[8:9] == b"{"


def read(
  path: str | Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
  """Reads a file of safetensors.

  Args:
    path: the file.

  Returns:
    its arrays by name (bfloat16 is ml_dtypes'), and the config in its metadata,
    None where there is none.

  Raises:
    InputError: the file cannot be read, is cut off or damaged, holds values of
      a type that is not read, or was written by a newer version.
  """
  path = Path(path)
  try:
    content = path.read_bytes()
    with safetensors.safe_open(path, framework="np") as file:
      metadata = file.metadata() or {}
    entries = safetensors.deserialize(content)
  except OSError as error:
    raise InputError(
      f"cannot read {path} ({error.strerror or error}): give a .safetensors"
      " file"
    ) from error
  except safetensors.SafetensorError as error:
    raise InputError(
      f"{path} is no whole .safetensors file ({error}): download it, or export"
      " the encoder, again"
    ) from error
  arrays = {}
  for name, entry in entries:
    name = name.encode("unicode_escape").decode()  # it may go to a terminal
    if entry["dtype"] not in _DTYPES:
      raise InputError(
        f"{path} holds {name[:80]} as {entry['dtype']}, which is not read:"
        " convert it to float32"
      )
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    little = np.frombuffer(entry["data"], dtype.newbyteorder("<"))
    arrays[name] = little.astype(dtype, copy=False).reshape(entry["shape"])
  return arrays, _config(path, metadata)


def write(
  path: str | Path,
  arrays: Mapping[str, np.ndarray],
  config: Mapping[str, Any] | None,
) -> None:
  """Writes a file of safetensors, complete or not at all.

  Args:
    path: the file; one that is there is replaced.
    arrays: by name.
    config: of the network, for JSON; None writes none.

  Raises:
    OSError: the disk is full, or the file cannot be written.
  """
  path = Path(path)
  metadata = None
  if config is not None:
    metadata = {_KEY: json.dumps({"format": FORMAT, "config": config})}
  # The library reads each array's memory from end to end.
  arrays = {name: np.asarray(a, order="C") for name, a in arrays.items()}
  part = path.with_name(f"{path.name}.part")
  try:
    with part.open("wb") as file:
      file.write(safetensors.numpy.save(arrays, metadata))
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def _config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
  if _KEY not in metadata:
    return None
  try:
    described = json.loads(metadata[_KEY])
    number, config = described["format"], described["config"]
    if type(number) is not int or type(config) is not dict:
      raise TypeError("of another type")
  except (ValueError, TypeError, KeyError, RecursionError) as error:
    raise InputError(
      f"{path} has a damaged description of its network: export it again"
    ) from error
  if number > FORMAT:
    raise InputError(
      f"{path} is of format {number} and this version of ssl_music reads up to"
      f" {FORMAT}: install a newer one"
    )
  return config
