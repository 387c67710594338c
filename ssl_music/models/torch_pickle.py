"""The pickles inside PyTorch's files: tensors are found, no code is run.

Only the few names by which PyTorch writes tensors, and `OrderedDict`, mean
something here. Whatever else a checkpoint holds, from optimizer states to
objects of classes that are not installed, becomes `INERT`: it takes any
arguments, items and state, keeps nothing of them, and does no harm.
"""

import dataclasses
import math
import sys
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ssl_music.pickle_machine import LITERALS, STEPS, Machine, Refused, run

# Opcodes of one pickle. A tensor takes some 20 of them, so that there is room
# for lists of figures; below 1 GB.
_MAX_STEPS = 4_000_000
_MAX_AXES = 64  # NumPy's

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
  """A function, class or object that is not understood, and need not be."""

  def __repr__(self) -> str:
    return "INERT"


INERT = _Inert()


@dataclasses.dataclass(frozen=True, eq=False)
class _Code:
  """A function or class that is understood, by its name."""

  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
  """A stretch of the file: where it is, and what values it holds."""

  key: str
  dtype: str  # "": bytes of any


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A tensor of a pickle, before its values are read; see `array`.

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
  conjugate: bool = False
  negative: bool = False

  @property
  def nbytes(self) -> int:
    """Bytes of its values, each index counted."""
    return math.prod(self.size) * numpy_dtype(self.dtype).itemsize


def numpy_dtype(name: str) -> np.dtype:
  """Returns a type by its name, those that NumPy lacks from ml_dtypes."""
  return np.dtype(getattr(ml_dtypes, name, name))


class Loaded(NamedTuple):
  """What `load` returns.

  Attributes:
    value: what the pickle holds: dicts, lists, tuples, text, numbers, `Tensor`s
      and `INERT`, possibly within each other many times over or without end.
      Items of a dict under other keys than text, numbers, truth values and None
      are left out.
    end: the byte after the pickle.
    storages: the type of values ("uint8" where it is open) of each storage that
      the pickle refers to, by its key.
  """

  value: Any
  end: int
  storages: dict[str, str]


def load(data: bytes, start: int = 0) -> Loaded:
  """Reads one pickle.

  Args:
    data: holds it.
    start: its first byte.

  Raises:
    Refused: it is damaged, too long, or no pickle that PyTorch writes.
  """
  storages = {}

  def persistent(machine: Machine, _: None) -> None:
    found = _persistent(machine.pop_tuple(1)[0])
    if found is not INERT:
      storages[found.key] = found.dtype or "uint8"
    machine.push(found)

  steps = {**_STEPS, "BINPERSID": persistent}
  return Loaded(*run(data, start, steps, _MAX_STEPS), storages)


def array(tensor: Tensor, storage: bytes, little_endian: bool) -> np.ndarray:
  """Returns the values of a tensor.

  Args:
    tensor: of `load`.
    storage: its storage's bytes.
    little_endian: their order.

  Returns:
    an array of its shape and type, in this machine's byte order. It may be a
    read-only view of `storage`.

  Raises:
    Refused: the tensor reaches beyond its storage.
  """
  dtype = numpy_dtype(tensor.dtype)
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


def _code(name: str) -> Any:
  """What stands for a function or class: "module name"."""
  module, _, short = name.partition(" ")
  if name in _CALLS or name == "torch.storage UntypedStorage":
    return _Code(name)
  if module == "torch" and (short in _STORAGES or short in _DTYPES):
    return _Code(short)
  return INERT


def _persistent(identity: Any) -> Any:
  """What a persistent id stands for."""
  match identity:
    case ("module", *_):  # the old format's name for a network's class
      return INERT
    case ("storage", _Code(kind), str(key), _, int(), *view) if view in (
      [],
      [None],
    ):
      untyped = kind == "torch.storage UntypedStorage"
      if untyped or kind in _STORAGES:
        return _Storage(key, "" if untyped else _STORAGES[kind])
  raise Refused("refers to something else than a storage of tensors")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any):
  """`_rebuild_tensor` and `_rebuild_tensor_v2`."""
  metadata = rest[2] if len(rest) > 2 else None
  if type(storage) is not _Storage or not storage.dtype:
    raise Refused("holds a tensor without a storage")
  return _checked(storage.key, storage.dtype, offset, size, stride, metadata)


def _tensor_v3(
  storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> Tensor:
  """`_rebuild_tensor_v3`: the storage is of bytes, the type stands beside."""
  _, _, dtype, *metadata = rest
  if type(storage) is not _Storage or type(dtype) is not _Code:
    raise Refused("holds a tensor without a storage or a type")
  if dtype.name not in _DTYPES:
    raise Refused("holds a tensor of an unknown type")
  return _checked(
    storage.key, dtype.name, offset, size, stride, *metadata[:1] or [None]
  )


def _checked(
  key: str, dtype: str, offset: Any, size: Any, stride: Any, metadata: Any
) -> Tensor:
  """A tensor whose offset, size and stride are possible ones."""
  for axes in ((offset,), size, stride):
    if type(axes) is not tuple or len(axes) > _MAX_AXES:
      raise Refused("holds a tensor of no possible shape")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in axes):
      raise Refused("holds a tensor of no possible shape")
  if len(size) != len(stride):
    raise Refused("holds a tensor of no possible shape")
  marks = metadata if type(metadata) is dict else {}
  return Tensor(
    *(key, dtype, offset, size, stride),
    conjugate=marks.get("conj") is True,
    negative=marks.get("neg") is True,
  )


def _parameter(tensor: Any, *_: Any) -> Any:
  """`_rebuild_parameter`, with or without a state."""
  return tensor


def _ordered_dict(*arguments: Any) -> dict:
  """`OrderedDict`, empty or (Python 2) of a list of pairs."""
  result = {}
  for pair in arguments[0] if arguments else []:
    if type(pair) not in (list, tuple) or len(pair) != 2:
      raise ValueError("no pairs")
    _set(result, *pair)
  return result


# What a call is carried out by, given its arguments.
_CALLS = {
  "torch._utils _rebuild_tensor": _tensor,
  "torch._utils _rebuild_tensor_v2": _tensor,
  "torch._utils _rebuild_tensor_v3": _tensor_v3,
  "torch._utils _rebuild_parameter": _parameter,
  "torch._utils _rebuild_parameter_with_state": _parameter,
  "collections OrderedDict": _ordered_dict,
}


def _call(machine: Machine, function: Any, arguments: Any) -> None:
  if function is INERT:
    machine.push(INERT)
    return
  if type(function) is not _Code or type(arguments) is not tuple:
    raise ValueError("a call of something that is no code")
  if function.name not in _CALLS:
    machine.push(INERT)  # an empty storage, which no persistent id fills
    return
  for argument in arguments:
    if type(argument) is list:  # of a memo, it costs no bytes
      machine.spend(10 * len(argument))
  try:
    machine.push(_CALLS[function.name](*arguments))
  except TypeError as error:
    raise ValueError("other arguments") from error


def _set(target: dict, key: Any, value: Any) -> None:
  # Only what hashes at once: a tuple may be nested without end.
  if type(key) in (bool, bytes, float, int, str, type(None)):
    target[key] = value


def _set_items(machine: Machine, items: list | tuple) -> None:
  if len(items) % 2:
    raise ValueError("a key without a value")
  if machine.stack[-1] is not INERT:
    target = machine.last(dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
      _set(target, key, value)


def _new_dict(machine: Machine, items: list) -> None:
  machine.push({})
  _set_items(machine, items)


def _append(machine: Machine, items: list | tuple) -> None:
  if machine.stack[-1] is not INERT:
    machine.last(list).extend(items)


def _stack_global(machine: Machine, _: None) -> None:
  module, name = machine.pop_tuple(2)
  if type(module) is not str or type(name) is not str:
    raise ValueError("a name that is no text")
  machine.push(_code(f"{module} {name}"))


def _object(machine: Machine, _: None) -> None:
  """OBJ and INST: a class and its arguments since the last mark."""
  machine.pop_mark()
  machine.push(INERT)


def _new_object(machine: Machine, count: int) -> None:
  """NEWOBJ and NEWOBJ_EX: a class and its arguments."""
  machine.pop_tuple(count)
  machine.push(INERT)


# What each opcode does to the machine, given its argument in the file. BUILD
# takes the state away from above its object: the `_metadata` of a state dict,
# or what only unknown code could use.
_STEPS = {
  **STEPS,
  **dict.fromkeys(LITERALS, lambda machine, value: machine.push(value)),
  "APPEND": lambda machine, _: _append(machine, machine.pop_tuple(1)),
  "APPENDS": lambda machine, _: _append(machine, machine.pop_mark()),
  "DICT": lambda machine, _: _new_dict(machine, machine.pop_mark()),
  "SETITEM": lambda machine, _: _set_items(machine, machine.pop_tuple(2)),
  "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_mark()),
  "EMPTY_SET": lambda machine, _: machine.push(INERT),
  "ADDITEMS": lambda machine, _: machine.pop_mark(),
  "FROZENSET": _object,
  "GLOBAL": lambda machine, name: machine.push(_code(name)),
  "STACK_GLOBAL": _stack_global,
  "INST": _object,
  "OBJ": _object,
  "NEWOBJ": lambda machine, _: _new_object(machine, 2),
  "NEWOBJ_EX": lambda machine, _: _new_object(machine, 3),
  "REDUCE": lambda machine, _: _call(machine, *machine.pop_tuple(2)),
  "BUILD": lambda machine, _: machine.pop_tuple(1),
}
