"""The tensors in a file that `torch.save` wrote, without PyTorch.

Two formats are read. Since PyTorch 1.6 it is an uncompressed zip: the pickle
`NAME/data.pkl`, a file `NAME/data/KEY` for each storage, and `NAME/byteorder`.
The one before is a sequence of pickles (a magic number, a version, the byte
order, the object, the keys of the storages) and then the storages.

Only the few names by which PyTorch writes tensors mean something here. Whatever
else a checkpoint holds, from optimizer states to objects of classes that are
not installed, becomes `_Inert`.
"""

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ssl_music import unpickler
from ssl_music.errors import InputError
from ssl_music.unpickler import Refused

_ADVICE = "download it again, or save it again with torch.save"
_ZIP = b"PK\x03\x04"
_LEGACY = 0x1950A86A20F9469CFC6C  # the magic number of the old format
_LEGACY_START = _LEGACY.to_bytes(10, "little") + b"."
_LEGACY_VERSION = 1001
# Bytes of a zip's directory and of a pickle, all of which is kept in memory.
_MAX_DIRECTORY = 64 * 2**20
_MAX_PICKLE = 256 * 2**20
# Opcodes of one pickle. A tensor takes some 20 of them, so that there is room
# for lists of figures; below 1 GB.
_MAX_STEPS = 4_000_000
_MAX_AXES = 64  # NumPy's
# Tensors may share their values, but not be larger than the file many times.
_MAX_GROWTH = 8
# Where the published checkpoints, and most others, keep the weights.
_PLACES = ("model", "state_dict")
_STORAGES = {
  "BoolStorage": "bool",
  "ByteStorage": "uint8",
  "CharStorage": "int8",
  "ShortStorage": "int16",
  "IntStorage": "int32",
  "LongStorage": "int64",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "FloatStorage": "float32",
  "DoubleStorage": "float64",
  "ComplexFloatStorage": "complex64",
  "ComplexDoubleStorage": "complex128",
  # Of quantised tensors, which are passed over.
  "QInt8Storage": "int8",
  "QInt32Storage": "int32",
  "QUInt8Storage": "uint8",
  "QUInt4x2Storage": "uint8",
  "QUInt2x4Storage": "uint8",
}
# Types without a storage class of their own.
_DTYPES = (
  *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz"),
  *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)


class _Inert:
  """Stands for all that is not understood: takes anything, keeps nothing."""

  __slots__ = ()

  def __new__(cls, *_: Any, **__: Any) -> "_Inert":
    return super().__new__(cls)

  def __call__(self, *_: Any, **__: Any) -> "_Inert":
    return self

  def __setitem__(self, key: Any, value: Any) -> None:
    pass

  @classmethod  # so that no state changes the class, either
  def __setstate__(cls, state: Any) -> None:
    pass

  def append(self, _: Any) -> None:
    """Drops an item."""

  add = extend = append


class _Type(_Inert):
  """The class of a storage, or the type of a tensor's values."""

  __slots__ = ("dtype",)

  def __init__(self, dtype: str):
    self.dtype = dtype  # "": of bytes of any


class _Dict(dict):
  """What a dict holds under text: nothing else names a tensor."""

  __slots__ = ()

  def __init__(self, pairs: list | tuple = ()):
    super().__init__()
    for key, value in pairs:  # of Python 2's OrderedDict
      self[key] = value

  def __setitem__(self, key: Any, value: Any) -> None:
    if type(key) is str:
      super().__setitem__(key, value)

  def __setstate__(self, state: Any) -> None:
    """Drops the `_metadata` of a state dict."""


class _Storage(NamedTuple):
  """A stretch of the file: where it is, and what values it holds."""

  key: str
  dtype: str  # "": bytes of any


class _Tensor(NamedTuple):
  """A tensor of a pickle, before its values are read.

  Attributes:
    key: of the storage that holds the values.
    dtype: of the values, as NumPy and ml_dtypes name it.
    offset: first value in the storage.
    size: length of each axis.
    stride: values from one index to the next, of each axis.
    conjugate: whether the values still have to be conjugated.
    negative: whether the values still have to be negated.
  """

  key: str
  dtype: str
  offset: int
  size: tuple[int, ...]
  stride: tuple[int, ...]
  conjugate: bool
  negative: bool


def _rebuild(
  storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> _Tensor:
  """`_rebuild_tensor` and `_rebuild_tensor_v2`."""
  if type(storage) is not _Storage or not storage.dtype:
    raise Refused("holds a tensor without a storage")
  return _tensor(storage.key, storage.dtype, offset, size, stride, rest[2:])


def _rebuild_v3(
  storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> _Tensor:
  """`_rebuild_tensor_v3`: the storage is of bytes, the type stands beside."""
  dtype = rest[2]
  if type(storage) is not _Storage or type(dtype) is not _Type:
    raise Refused("holds a tensor without a storage or a type")
  if dtype.dtype not in _DTYPES:
    raise Refused("holds a tensor of an unknown type")
  return _tensor(storage.key, dtype.dtype, offset, size, stride, rest[3:])


def _tensor(
  key: str, dtype: str, offset: Any, size: Any, stride: Any, rest: tuple
) -> _Tensor:
  """Returns a tensor if its offset, size and stride are possible."""
  for axes in ((offset,), size, stride):
    if type(axes) is not tuple or len(axes) > _MAX_AXES:
      raise Refused("holds a tensor of no possible shape")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in axes):
      raise Refused("holds a tensor of no possible shape")
  if len(size) != len(stride):
    raise Refused("holds a tensor of no possible shape")
  marks = rest[0] if rest and type(rest[0]) is _Dict else {}
  conjugate, negative = marks.get("conj") is True, marks.get("neg") is True
  return _Tensor(key, dtype, offset, size, stride, conjugate, negative)


_TYPES = {
  "torch.storage.UntypedStorage": _Type(""),
  **{f"torch.{name}": _Type(dtype) for name, dtype in _STORAGES.items()},
  **{f"torch.{name}": _Type(name) for name in _DTYPES},
}
_CALLS = {
  "builtins.dict": _Dict,
  "collections.OrderedDict": _Dict,
  "torch._utils._rebuild_tensor": _rebuild,
  "torch._utils._rebuild_tensor_v2": _rebuild,
  "torch._utils._rebuild_tensor_v3": _rebuild_v3,
  "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
  "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}


def _unpickle(
  data: bytes, start: int, dtypes: dict[str, str]
) -> tuple[Any, int]:
  """Returns what a pickle holds, and the byte after its end.

  The type of values of each storage that it refers to ("uint8" where it is
  open) goes into `dtypes`, by the storage's key.
  """

  def refer(identity: Any) -> Any:
    match identity:
      case ("module", *_):  # the old format's name for a network's class
        return _Inert
      case ("storage", _Type(dtype=dtype), str(key), _, int(), *view):
        if view in ([], [None]):
          dtypes[key] = dtype or "uint8"
          return _Storage(key, dtype)
    raise Refused("refers to something else than a storage of tensors")

  return unpickler.read(
    data,
    start,
    calls=_CALLS,
    other=lambda name: _TYPES.get(name, _Inert),
    refer=refer,
    most=_MAX_STEPS,
  )


def _numpy_dtype(name: str) -> np.dtype:
  """Returns a type by its name, those that NumPy lacks from ml_dtypes."""
  return np.dtype(getattr(ml_dtypes, name, name))


def _nbytes(tensor: _Tensor) -> int:
  """Returns the bytes of a tensor's values, each index counted."""
  return math.prod(tensor.size) * _numpy_dtype(tensor.dtype).itemsize


def _array(
  tensor: _Tensor, storage: bytes | memoryview, little_endian: bool
) -> np.ndarray:
  """Returns a tensor's values in this machine's byte order.

  They may be a read-only view of the storage.
  """
  dtype = _numpy_dtype(tensor.dtype)
  reach = tensor.offset + sum(
    (n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True)
  )
  if 0 not in tensor.size and reach >= len(storage) // dtype.itemsize:
    raise Refused(
      f"holds a tensor of {reach + 1} values in a storage of"
      f" {len(storage) // dtype.itemsize}"
    )
  try:
    if 0 in tensor.size:
      return np.zeros(tensor.size, dtype)
    values = np.ndarray(
      tensor.size,
      np.uint8 if dtype.kind == "b" else dtype,
      storage,
      tensor.offset * dtype.itemsize,
      # The step of an axis of length 1 means nothing, and may be anything.
      [
        step * dtype.itemsize if n > 1 else 0
        for n, step in zip(tensor.size, tensor.stride, strict=True)
      ],
    )
  except (OverflowError, ValueError) as error:
    raise Refused("holds a tensor of no possible shape") from error
  if dtype.kind == "b":
    if tensor.negative:
      raise Refused("holds a negative tensor of truth values")
    values = np.asarray(values != 0)  # whatever is not 0 is true
  if little_endian != (sys.byteorder == "little"):
    part = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    parts = values.reshape(-1).view(f"u{part}").byteswap()
    values = parts.view(dtype).reshape(tensor.size)
  if tensor.conjugate:
    values = values.conj()
  return np.asarray(-values if tensor.negative else values)


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
  checkpoint, _ = _unpickle(content(root + "data.pkl", _MAX_PICKLE), 0, {})
  tensors = _tensors(checkpoint)
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
  values, dtypes, end = [], {}, 0
  for _ in range(5):
    value, end = _unpickle(data, end, dtypes)
    values.append(value)
  magic, version, _, checkpoint, keys = values
  if (magic, version) != (_LEGACY, _LEGACY_VERSION):
    raise Refused("is of an unknown version of PyTorch's old format")
  if type(keys) is not list or not all(type(key) is str for key in keys):
    raise Refused("does not list its storages")
  tensors, storages = _tensors(checkpoint), {}
  for key in keys:
    if key not in dtypes:
      raise Refused("lists a storage that it does not use")
    # A count of values and the values, always little endian.
    count = int.from_bytes(data[end : end + 8], "little")
    start = end + 8
    end = start + count * _numpy_dtype(dtypes[key]).itemsize
    if end > len(data):
      raise Refused(f"breaks off at byte {len(data)}")
    storages[key] = memoryview(data)[start:end]
  if any(tensor.key not in storages for tensor in tensors.values()):
    raise Refused("lacks the storage of a tensor")
  return _arrays(
    tensors, storages, little_endian=True, most=_MAX_GROWTH * len(data)
  )


def _tensors(checkpoint: Any) -> dict[str, _Tensor]:
  """Returns the tensors of a checkpoint's state dict by name."""
  if type(checkpoint) is not _Dict:
    raise Refused("holds no state dict", ", the result of model.state_dict()")
  for state in (*map(checkpoint.get, _PLACES), checkpoint):
    if type(state) is _Dict:
      # Escaped, as names go to somebody's terminal when they do not fit.
      tensors = {
        name.encode("unicode_escape").decode(): value
        for name, value in state.items()
        if type(value) is _Tensor
      }
      if tensors:
        return tensors
  places = " or ".join(f"{place!r}" for place in _PLACES)
  raise Refused(f"holds no tensors by name, neither at its top nor in {places}")


def _arrays(
  tensors: Mapping[str, _Tensor],
  storages: Mapping[str, bytes | memoryview],
  *,
  little_endian: bool,
  most: int,
) -> dict[str, np.ndarray]:
  if sum(_nbytes(tensor) for tensor in tensors.values()) > most:
    raise Refused("holds tensors that are far larger than the file")
  return {
    name: _array(tensor, storages[tensor.key], little_endian)
    for name, tensor in tensors.items()
  }
