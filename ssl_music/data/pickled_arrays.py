"""How NumPy and Python pickle arrays, scalars and bytes: known, never called.

A pickle of an array names functions of NumPy and their arguments. Here those
names and arguments are only compared with what NumPy writes (1.x and 2.x, for
Python 2 and 3), and the array is made of the bytes that the file holds. The
rest of a pickle is read in `pickles`.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from ssl_music.pickle_machine import Refused

NO_CODE = ", and a pickle's code is never run"
_MAX_AXES = 32
_MAX_DEPTH = 100  # lists within lists
_DTYPES = re.compile(r"b1|[iu][1248]|f[248]|[US][1-9][0-9]{0,6}")
_OBJECTS = ("O", "O4", "O8")  # the digit: of 32-bit and 64-bit machines

_ROLES = {
  "__builtin__ bytes": "bytes",
  "builtins bytes": "bytes",
  "_codecs encode": "encode",
  "numpy dtype": "dtype",
  "numpy ndarray": "ndarray",
  "numpy.core.multiarray _reconstruct": "reconstruct",
  "numpy._core.multiarray _reconstruct": "reconstruct",
  "numpy.core.multiarray scalar": "scalar",
  "numpy._core.multiarray scalar": "scalar",
  "numpy.core.numeric _frombuffer": "frombuffer",
  "numpy._core.numeric _frombuffer": "frombuffer",
}


# What stands for the code that a pickle names and for what that would make.
# These are unhashable, so that none becomes a key.


@dataclasses.dataclass
class Code:
  """A function or class."""

  role: str  # a value of _ROLES


@dataclasses.dataclass
class Dtype:
  """An array's type; `dtype` comes with its BUILD."""

  name: str
  dtype: np.dtype | None = None


@dataclasses.dataclass
class Array:
  """An array; with its BUILD come `array`, or `objects` and `shape`."""

  array: np.ndarray | None = None
  objects: list | None = None
  shape: tuple[int, ...] = ()


def code(name: str) -> Code:
  """Returns what stands for a function or class.

  Args:
    name: its module and name, a space between them.

  Raises:
    Refused: it is none of those that arrays, scalars and bytes need.
  """
  if name not in _ROLES:
    raise no_code(name)
  return Code(_ROLES[name])


def no_code(name: str) -> Refused:
  """Returns the error of a pickle that asks for a function or class."""
  # Escaped and short, because it goes to somebody's terminal.
  shown = ascii(name[:80])[1:-1].replace(" ", ".")[:80]
  return Refused(f"asks for the code {shown}", NO_CODE)


def call(function: Any, arguments: Any) -> Any:
  """Returns what a REDUCE makes, if it is one that NumPy or Python write.

  Args:
    function: of the pickle; must be a `Code`.
    arguments: of the pickle; must be a tuple.

  Raises:
    Refused: it is another call, or the array is of another type.
    ValueError: the values are nonsense.
  """
  if type(function) is not Code or type(arguments) is not tuple:
    raise ValueError("a call of something that is no code")
  match (function.role, *arguments):
    case ("bytes",):
      return b""
    case ("encode", str() as text, "latin1"):  # bytes, in protocols 0 to 2
      return text.encode("latin-1")
    case ("dtype", str() as name, 0, 1):
      if name not in _OBJECTS and not _DTYPES.fullmatch(name):
        raise _other_dtype(name)
      return Dtype(name)
    case ("reconstruct", Code("ndarray"), (0,), "b" | b"b"):
      return Array()
    case ("scalar", Dtype(_, np.dtype() as dtype), raw):
      return _array(dtype, (), "C", raw).item()
    # Protocol 5:
    case ("frombuffer", raw, Dtype(_, np.dtype() as dtype), shape, order):
      if order in ("C", "F"):
        return Array(_array(dtype, shape, order, raw))
  raise Refused(f"uses {function.role} as NumPy does not", NO_CODE)


def build(target: Any, state: Any) -> None:
  """Carries out a BUILD, if it is one that NumPy writes.

  Args:
    target: of the pickle; a `Dtype` or an `Array`, not built before.
    state: of the pickle: what NumPy calls `__setstate__` with.

  Raises:
    Refused: it is another, or the array's values do not fit its shape.
    ValueError: the values are nonsense.
  """
  match target, state:
    case Dtype(name, None), (3, order, None, None, None, size, _, _):
      if order not in ("<", ">", "|"):
        raise ValueError("no byte order")
      dtype = np.dtype(object if name in _OBJECTS else order + name)
      if dtype.str[0] != order or size not in (-1, dtype.itemsize):
        raise ValueError("a type of another size or byte order")
      target.dtype = dtype
    case (
      Array(None, None),
      (1, shape, Dtype(_, np.dtype() as dtype), 0 | 1 as f, raw),
    ):
      if not dtype.hasobject:
        target.array = _array(dtype, shape, "F" if f else "C", raw)
      elif type(raw) is list:
        target.objects, target.shape = raw, shape
      else:
        raise ValueError("an array of objects without a list of them")
    case _:
      raise Refused("sets up an object as NumPy does not", NO_CODE)


def weight(arguments: Any) -> int:
  """Returns how many bytes a call or BUILD with these copies, at most."""
  if type(arguments) is not tuple:
    return 0
  return sum(len(one) for one in arguments if type(one) in (str, bytes))


def size(shape: Any) -> int:
  """Returns the number of values in an array; `Refused` if that cannot be."""
  possible = type(shape) is tuple and len(shape) <= _MAX_AXES
  if not possible or any(type(n) is not int or n < 0 for n in shape):
    raise Refused("holds an array of no possible shape")
  return math.prod(shape)


def check_dtype(dtype: np.dtype) -> None:
  """Raises `Refused` unless of bool, int, float or fixed-width text."""
  if not _DTYPES.fullmatch(dtype.str[1:]):
    raise _other_dtype(dtype.str)


def checked(array: np.ndarray) -> np.ndarray:
  """Returns an array in the machine's byte order.

  Raises:
    Refused: a value is none of its type: NumPy would fail when it is used.
  """
  array = array.astype(array.dtype.newbyteorder("="), copy=False)
  flat = np.ascontiguousarray(array).reshape(-1)
  if array.dtype.kind == "b" and np.any(flat.view(np.uint8) > 1):
    raise Refused("holds truth values that are neither 0 nor 1")
  if array.dtype.kind == "U":
    codes = flat.view(np.uint32)
    if np.any((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))):
      raise Refused("holds text that is not Unicode")
  return array


def plain(root: Any, limit: int) -> Any:
  """Copies a value, with arrays in place of what stands for them.

  Args:
    root: any value but arrays, in lists, tuples, dicts and `Array`s.
    limit: how many values it may hold.

  Raises:
    Refused: it holds more, or code, or itself, or is nested too deep.
  """
  count, inside = 0, set()

  def copy_of(value: Any) -> Any:
    nonlocal count
    count += 1
    if count > limit:
      raise Refused("repeats its lists without measure")
    kind = type(value)
    if kind is Array and value.array is not None:
      return value.array
    if kind in (Code, Dtype) or (kind is Array and value.objects is None):
      raise Refused("holds code instead of data", NO_CODE)
    if kind not in (list, tuple, dict, Array):
      return value
    if id(value) in inside:
      raise Refused("holds a list or dict that holds itself")
    if len(inside) == _MAX_DEPTH:
      raise Refused(f"holds lists nested more than {_MAX_DEPTH} deep")
    inside.add(id(value))
    if kind is dict:
      copy = {key: copy_of(entry) for key, entry in value.items()}
    elif kind is Array:
      copy = _object_array(
        [copy_of(entry) for entry in value.objects], value.shape
      )
    else:
      copy = kind([copy_of(entry) for entry in value])
    inside.discard(id(value))
    return copy

  return copy_of(root)


def _other_dtype(name: str) -> Refused:
  return Refused(
    f"holds an array of type {name[:80]!a}",
    ", and only truth values, numbers, text and objects are read",
  )


def _array(dtype: np.dtype, shape: Any, order: str, raw: Any) -> np.ndarray:
  """Returns an array, not of objects, given the bytes of its values."""
  check_dtype(dtype)
  if type(raw) is str:  # Python 2's bytes
    raw = raw.encode("latin-1")
  if type(raw) is not bytes:
    raise ValueError("values that are no bytes")
  if size(shape) * dtype.itemsize != len(raw):
    raise Refused(
      f"holds {len(raw)} bytes of values for an array of {size(shape)} of"
      f" {dtype.itemsize} bytes each"
    )
  buffer = bytearray(raw)  # its own, which may be written to
  return checked(np.ndarray(shape, dtype, buffer, order=order))


def _object_array(values: list, shape: tuple[int, ...]) -> np.ndarray:
  """Returns an array of objects of a shape; `Refused` if they do not fit."""
  if size(shape) != len(values):
    raise Refused(f"holds {len(values)} values for an array of {size(shape)}")
  array = np.empty(len(values), object)
  for index, value in enumerate(values):  # lists stay lists
    array[index] = value
  return array.reshape(shape)  # whatever the layout, they come in this order
