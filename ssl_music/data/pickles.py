"""Lists, dicts, text, numbers and arrays out of the pickles that are published.

Benchmarks of music tagging publish splits and labels as pickles, most of them
written by Python 2. Of the functions that a pickle names, those by which NumPy
(1 and 2) and Python write arrays, NumPy's scalars and bytes have stand-ins
here; any other name is an error, see `unpickler`.
"""

import contextlib
import io
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssl_music import arrays, disk, unpickler
from ssl_music.errors import InputError
from ssl_music.unpickler import Call, Refused

_ADVICE = "get the file from its publisher again"
# Of one pickle: twice what the largest published one takes, below 2 GB.
_MAX_STEPS = 12_000_000
_MAX_DEPTH = 20  # lists within lists
_NO_CODE = ", and a pickle's code is never run"
_DTYPES = re.compile(r"b1|[iu][1248]|f[248]|[US][1-9][0-9]{0,6}")
_OBJECTS = ("O", "O4", "O8")  # the digit: of 32-bit and 64-bit machines


def read(path: Path) -> Any:
  """Reads a pickle of plain data (protocols 0 to 5); runs none of its code.

  Python 2's strings are read as Latin-1.

  Args:
    path: the file.

  Returns:
    what it holds: None, bool, int, float, str, bytes, list, tuple, dict (whose
    keys are text or bytes), or np.ndarray of bool, int, float, fixed-width text
    or objects of these kinds, in the machine's byte order; it may be read-only.
    NumPy's scalars become Python's.

  Raises:
    InputError: the file cannot be read, is damaged, asks for code, or holds
      something else.
  """
  return _interpret(_bytes(path), 0, path)


def read_strings(path: Path) -> list[str]:
  """Reads a pickled list, or one-dimensional array, of strings.

  Args:
    path: the file, see `read`.

  Returns:
    the strings, in the file's order; those of a bytes array as Latin-1.

  Raises:
    InputError: as `read` has it, or the pickle holds something else.
  """
  value = read(path)
  if isinstance(value, np.ndarray) and value.ndim == 1:
    if value.dtype.kind == "S":
      value = np.char.decode(value, "latin-1")
    value = value.tolist()
  if type(value) is not list:
    raise InputError(
      f"{path} holds {_kind(value)} instead of a list of strings: give the file"
      " that lists them"
    )
  for index, entry in enumerate(value):
    if type(entry) is not str:
      raise InputError(
        f"{path} holds {_kind(entry)} as entry {index} of what should be a list"
        " of strings: give the file that lists them"
      )
  return value


def load_array(path: Path) -> np.ndarray:
  """Reads a .npy file; one of objects is a pickle, none of whose code runs.

  Args:
    path: the file (format versions 1.0 and 2.0).

  Returns:
    its array, any shape, in the machine's byte order: bool, int, float,
    fixed-width text, or objects as `read` has them; it may be read-only.

  Raises:
    InputError: the file cannot be read, is no .npy file, is longer or shorter
      than its header says, or holds something else.
  """
  data = _bytes(path)
  stream = io.BytesIO(data)
  try:
    shape, order, dtype = arrays.read_header(stream)
  except Exception as error:  # NumPy does not say what nonsense raises
    raise InputError(f"{path} is no whole .npy file: {_ADVICE}") from error
  start = stream.tell()
  if not dtype.hasobject:
    with _told(path):
      return _array(dtype, shape, order, memoryview(data)[start:])
  array = _interpret(data, start, path)
  found = getattr(array, "shape", None), getattr(array, "dtype", None)
  if found != (shape, dtype):
    raise InputError(
      f"{path} holds another array than its header says: {_ADVICE}"
    )
  return array


def _bytes(path: Path) -> bytes:
  path = Path(path)
  with disk.readable(path, "give the folder or file that holds it"):
    # A pipe would have us wait, a folder is no file.
    if path.exists() and not path.is_file():
      raise InputError(f"{path} is no file: give the file itself")
    return path.read_bytes()


def _kind(value: Any) -> str:
  if isinstance(value, np.ndarray):
    return f"an array of shape {value.shape}"
  return f"a value of type {type(value).__name__}"


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
  """Makes an `InputError` of what a file is refused for."""
  try:
    yield
  except Refused as refusal:
    raise InputError(
      f"{path} {refusal.what}{refusal.why}: {_ADVICE}"
    ) from refusal


def _interpret(data: bytes, start: int, path: Path) -> Any:
  """Returns the value of the pickle that starts at a byte of a file."""
  with _told(path):
    value, end = unpickler.read(
      data, start, calls=_CALLS, other=_no_code, refer=_no_id, most=_MAX_STEPS
    )
    if data[end:].strip():
      raise Refused(f"goes on after the end of its pickle at byte {end}")
    # Lists that hold each other many times over are endless to go through.
    return _Plain(min(10 * len(data) + 1000, _MAX_STEPS)).copy(value)


def _no_code(name: str) -> None:
  # Escaped and short, because it goes to somebody's terminal.
  raise Refused(f"asks for the code {ascii(name[:80])[1:-1][:80]}", _NO_CODE)


def _no_id(_: Any) -> None:
  raise Refused("refers to what is not in the file")


class _Dict(dict):
  """A dict whose keys hash at once: a tuple may be nested without end."""

  __slots__ = ()

  def __setitem__(self, key: Any, value: Any) -> None:
    if type(key) not in (bytes, str):
      raise Refused("holds a key that is no text")
    if key in self:
      raise Refused("holds a key twice")
    super().__setitem__(key, value)

  def __setstate__(self, _: Any) -> None:
    raise ValueError("state of a dict")


class _Dtype:
  """Stands for an array's type; its byte order comes with the state."""

  __slots__ = ("dtype", "name")

  def __init__(self, name: str, align: int, copy: int):
    if (align, copy) != (0, 1) or type(name) is not str:
      raise ValueError("a type that NumPy writes otherwise")
    if name not in _OBJECTS and not _DTYPES.fullmatch(name):
      raise _other_dtype(name)
    self.name, self.dtype = name, None

  def __setstate__(self, state: tuple) -> None:
    version, order, *_, size, _, _ = state
    if self.dtype or version != 3 or order not in ("<", ">", "|"):
      raise ValueError("a type that NumPy writes otherwise")
    name = "O" if self.name in _OBJECTS else self.name
    dtype = np.dtype(order + name)
    if dtype.str[0] != order or size not in (-1, dtype.itemsize):
      raise ValueError("a type of another size or byte order")
    self.dtype = dtype


class _Array:
  """Stands for an array, whose shape and values come with the state."""

  __slots__ = ("parts",)

  def __init__(self, *parts: Any):
    self.parts = parts  # the arguments of `_array`, or none yet

  def __setstate__(self, state: tuple) -> None:
    version, shape, dtype, fortran, values = state
    if self.parts or version != 1 or type(dtype) is not _Dtype:
      raise ValueError("an array that NumPy writes otherwise")
    self.parts = dtype.dtype, shape, "F" if fortran else "C", values


def _reconstruct(kind: Any, shape: tuple, code: Any) -> _Array:
  if not isinstance(kind, Call):
    raise ValueError("an array of another class")
  return _Array()


def _frombuffer(values: Any, dtype: _Dtype, shape: tuple, order: str) -> _Array:
  return _Array(dtype.dtype, shape, order, values)


def _scalar(dtype: _Dtype, value: Any) -> Any:
  return _array(dtype.dtype, (), "C", value).item()


def _encode(text: str, encoding: str) -> bytes:
  if encoding != "latin1":
    raise ValueError("no bytes as Python writes them")
  return text.encode("latin-1")


def _ndarray(*_: Any) -> None:
  raise ValueError("a call of ndarray")


# What takes the place of the functions and classes that a pickle may name.
_OF_NUMPY = {
  "multiarray._reconstruct": _reconstruct,
  "multiarray.scalar": _scalar,
  "numeric._frombuffer": _frombuffer,
}
_CALLS: dict[str, Callable] = {
  "builtins.dict": _Dict,
  "builtins.bytes": lambda: b"",
  "__builtin__.bytes": lambda: b"",
  "_codecs.encode": _encode,  # bytes, in protocols 0 to 2
  "numpy.dtype": _Dtype,
  "numpy.ndarray": _ndarray,
  **{f"numpy.core.{name}": call for name, call in _OF_NUMPY.items()},
  **{f"numpy._core.{name}": call for name, call in _OF_NUMPY.items()},
}


def _array(dtype: Any, shape: Any, order: Any, values: Any) -> np.ndarray:
  """Returns an array, not of objects, given the bytes of its values."""
  if not isinstance(dtype, np.dtype) or order not in ("C", "F"):
    raise Refused("holds an array that NumPy writes otherwise")
  if not _DTYPES.fullmatch(dtype.str[1:]):
    raise _other_dtype(dtype.str)
  if type(values) is str:  # Python 2's bytes
    values = values.encode("latin-1")
  if type(values) not in (bytes, bytearray, memoryview):
    raise Refused("holds an array without its values")
  # Before NumPy allocates whatever the shape says.
  if _size(shape) * dtype.itemsize != len(values):
    raise Refused(
      f"holds {len(values)} bytes of values for an array of"
      f" {_size(shape) * dtype.itemsize}"
    )
  array = np.ndarray(shape, dtype, values, order=order)
  array = array.astype(dtype.newbyteorder("="), copy=False)
  flat = np.ascontiguousarray(array).reshape(-1)
  if dtype.kind == "b" and np.any(flat.view(np.uint8) > 1):
    raise Refused("holds truth values that are neither 0 nor 1")
  if dtype.kind == "U":
    codes = flat.view(np.uint32)
    if np.any((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))):
      raise Refused("holds text that is not Unicode")
  return array


def _size(shape: Any) -> int:
  """Returns the number of values in an array of a shape."""
  possible = type(shape) is tuple and len(shape) <= 32
  if not possible or any(type(n) is not int or n < 0 for n in shape):
    raise Refused("holds an array of no possible shape")
  return math.prod(shape)


def _other_dtype(name: str) -> Refused:
  return Refused(
    f"holds an array of type {name[:80]!a}",
    ", and only truth values, numbers, text and objects are read",
  )


class _Plain:
  """Copies values, with arrays in place of what stands for them."""

  def __init__(self, most: int):
    self._left = most

  def copy(self, value: Any, depth: int = 0) -> Any:
    """Returns the copy.

    Raises:
      Refused: there are too many values, or too deep ones, or code.
    """
    self._left -= 1
    if self._left < 0 or depth > _MAX_DEPTH:
      raise Refused("holds lists within lists without measure")
    if type(value) in (list, tuple):
      return type(value)([self.copy(one, depth + 1) for one in value])
    if type(value) is _Dict:
      return {key: self.copy(one, depth + 1) for key, one in value.items()}
    if type(value) is _Array:
      return self._array(value, depth)
    if type(value) is str:
      _check_text(value)
    elif type(value) not in (bool, bytes, float, int, type(None)):
      raise Refused("holds code instead of data", _NO_CODE)
    return value

  def _array(self, value: _Array, depth: int) -> np.ndarray:
    if not value.parts:
      raise Refused("holds code instead of data", _NO_CODE)
    dtype, shape, _, values = value.parts
    if dtype != np.dtype(object) or type(values) is not list:
      return _array(*value.parts)
    if _size(shape) != len(values):
      raise Refused(
        f"holds {len(values)} values for an array of {_size(shape)}"
      )
    array = np.empty(len(values), object)
    for index, one in enumerate(values):  # lists stay lists
      array[index] = self.copy(one, depth + 1)
    return array.reshape(shape)  # whatever the layout, they come in this order


def _check_text(text: str) -> None:
  try:
    text.encode()
  except UnicodeEncodeError as error:  # half a surrogate pair
    raise Refused("holds text that is not Unicode") from error
