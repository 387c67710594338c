"""The tensors in a file that `torch.save` wrote, without PyTorch.

Two formats are read. Since PyTorch 1.6 it is an uncompressed zip: the pickle
`NAME/data.pkl`, a file `NAME/data/KEY` for each storage, and `NAME/byteorder`.
The one before is a sequence of pickles (a magic number, a version, the byte
order, the object, the keys of the storages) and then the storages.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ssl_music.errors import InputError
from ssl_music.models import torch_pickle
from ssl_music.pickle_machine import Refused

_ADVICE = "download it again, or save it again with torch.save"
_ZIP = b"PK\x03\x04"
_LEGACY = 0x1950A86A20F9469CFC6C  # the magic number of the old format
_LEGACY_START = _LEGACY.to_bytes(10, "little") + b"."
_LEGACY_VERSION = 1001
# Bytes of a zip's directory and of a pickle, all of which is kept in memory.
_MAX_DIRECTORY = 64 * 2**20
_MAX_PICKLE = 256 * 2**20
# Tensors may share their values, but not be larger than the file many times.
_MAX_GROWTH = 8
# Where the published checkpoints, and most others, keep the weights.
_PLACES = ("model", "state_dict")


def is_torch(head: bytes) -> bool:
  """Tells by its first bytes (32 or more) whether PyTorch wrote a file."""
  return head.startswith(_ZIP) or _LEGACY_START in head[:32]


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Reads the state dict of a file that `torch.save` wrote.

  No code of the file's pickle is run, and nothing it names is imported; what
  is no tensor is passed over.

  Args:
    path: a checkpoint {"model": state dict, ...} or {"state_dict": ...}, or a
      bare state dict.

  Returns:
    its tensors by name, of their own shapes and types (those that NumPy lacks
    are ml_dtypes'). Arrays may be read-only and share memory.

  Raises:
    InputError: the file cannot be read, is no such file, is cut off or
      damaged (or has no checksums: `set_crc32_options(False)` of PyTorch), or
      holds no tensors by name.
  """
  path = Path(path)
  try:
    if path.exists() and not path.is_file():  # a pipe would have us wait
      raise InputError(f"{path} is no file: give the file itself")
    with path.open("rb") as file:
      head = file.read(32)
    if head.startswith(_ZIP):
      return _read_zip(path)
    if is_torch(head):
      return _read_legacy(path.read_bytes())
  except Refused as refusal:
    raise InputError(
      f"{path} {refusal.what}{refusal.why}: {_ADVICE}"
    ) from refusal
  except OSError as error:
    raise InputError(
      f"cannot read {path} ({error.strerror or error}): give a checkpoint file"
    ) from error
  raise InputError(
    f"{path} is no file that torch.save wrote: give a .pt checkpoint"
  )


class _Limited(io.FileIO):
  """A file that reads no more at once than its limit."""

  limit = _MAX_DIRECTORY

  def read(self, size: int | None = -1) -> bytes:
    if size is not None and size > self.limit:
      raise Refused("has a directory far larger than PyTorch writes")
    return super().read(size)


def _read_zip(path: Path) -> dict[str, np.ndarray]:
  length = path.stat().st_size
  with _Limited(path) as file:
    try:
      with zipfile.ZipFile(file) as archive:
        file.limit = length
        return _read_archive(archive, length)
    except (
      *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
      *(NotImplementedError, RuntimeError, ValueError, OverflowError),
    ) as error:
      said = ascii(str(error))[1:80].rstrip("'")
      raise Refused(f"is a zip that is cut off or damaged ({said})") from error


def _read_archive(
  archive: zipfile.ZipFile, length: int
) -> dict[str, np.ndarray]:
  entries = {entry.filename: entry for entry in archive.infolist()}

  def content(name: str, most: int = length) -> bytes:
    if name not in entries:
      raise Refused(f"lacks its part {name[:80]!a}")
    entry = entries[name]
    if entry.compress_type != zipfile.ZIP_STORED:
      raise Refused("is compressed, which PyTorch never does")
    if not entry.file_size == entry.compress_size <= most:
      raise Refused(f"has a part {name[:80]!a} of an impossible size")
    return archive.read(entry)

  pickles = [name for name in entries if name.endswith("/data.pkl")]
  roots = [name[: -len("data.pkl")] for name in pickles if name.count("/") == 1]
  if len(roots) != 1:
    raise Refused("is a zip, but none that torch.save wrote")
  root = roots[0]
  order = b"little"
  if root + "byteorder" in entries:
    order = content(root + "byteorder", 16).strip()
  if order not in (b"little", b"big"):
    raise Refused("has an unknown byte order")
  loaded = torch_pickle.load(content(root + "data.pkl", _MAX_PICKLE))
  tensors = _tensors(loaded.value)
  storages = {
    tensor.key: f"{root}data/{tensor.key}" for tensor in tensors.values()
  }
  parts = [entries[name] for name in storages.values() if name in entries]
  # Entries of a zip may overlap, and each be as long as the file.
  if sum(part.file_size for part in parts) > length:
    raise Refused("has parts that overlap")
  return _arrays(
    tensors,
    {key: content(name) for key, name in storages.items()},
    little_endian=order == b"little",
    most=_MAX_GROWTH * length,
  )


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
  magic = torch_pickle.load(data)
  version = torch_pickle.load(data, magic.end)
  if (magic.value, version.value) != (_LEGACY, _LEGACY_VERSION):
    raise Refused("is of an unknown version of PyTorch's old format")
  machine = torch_pickle.load(data, version.end)
  loaded = torch_pickle.load(data, machine.end)
  keys = torch_pickle.load(data, loaded.end)
  if type(keys.value) is not list:
    raise Refused("does not list its storages")
  tensors = _tensors(loaded.value)
  storages, position = {}, keys.end
  for key in keys.value:
    if type(key) is not str or key not in loaded.storages:
      raise Refused("lists a storage that it does not use")
    # A count of values and the values, always little endian.
    count = int.from_bytes(data[position : position + 8], "little")
    start = position + 8
    position = (
      start + count * torch_pickle.numpy_dtype(loaded.storages[key]).itemsize
    )
    if position > len(data):
      raise Refused(f"breaks off at byte {len(data)}")
    storages[key] = memoryview(data)[start:position]
  if any(tensor.key not in storages for tensor in tensors.values()):
    raise Refused("lacks the storage of a tensor")
  return _arrays(
    tensors,
    storages,
    little_endian=True,
    most=_MAX_GROWTH * len(data),
  )


def _tensors(checkpoint: Any) -> dict[str, torch_pickle.Tensor]:
  """Returns the tensors of a checkpoint's state dict by name."""
  if type(checkpoint) is not dict:
    raise Refused("holds no state dict", ", the result of model.state_dict()")
  for state in (*map(checkpoint.get, _PLACES), checkpoint):
    if type(state) is dict:
      # Escaped, as names go to somebody's terminal when they do not fit.
      tensors = {
        name.encode("unicode_escape").decode(): value
        for name, value in state.items()
        if type(name) is str and type(value) is torch_pickle.Tensor
      }
      if tensors:
        return tensors
  places = " or ".join(f"{place!r}" for place in _PLACES)
  raise Refused(f"holds no tensors by name, neither at its top nor in {places}")


def _arrays(
  tensors: Mapping[str, torch_pickle.Tensor],
  storages: Mapping[str, bytes | memoryview],
  *,
  little_endian: bool,
  most: int,
) -> dict[str, np.ndarray]:
  if sum(tensor.nbytes for tensor in tensors.values()) > most:
    raise Refused("holds tensors that are far larger than the file")
  return {
    name: torch_pickle.array(tensor, storages[tensor.key], little_endian)
    for name, tensor in tensors.items()
  }
