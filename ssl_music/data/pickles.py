"""Lists, dicts, text, numbers and arrays out of pickles, without unpickling.

Benchmarks of music tagging publish splits and labels as pickles, most of them
written by Python 2. Unpickling runs whatever functions the file names; here
nothing does. The stack machine of `pickle_machine` carries out the opcodes that
hold data. Of the functions that a pickle may name, the steps added here know
the few by which NumPy and Python write arrays, NumPy scalars and bytes. They
compare their names and build the value themselves; any other name is an error.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ssl_music.data import pickled_arrays as arrays
from ssl_music.errors import InputError
from ssl_music.pickle_machine import LITERALS, STEPS, Machine, Refused, run

_ADVICE = "get the file from its publisher again"
# Of one pickle: twice what the largest published one takes, below 2 GB.
_MAX_STEPS = 12_000_000


def read(path: Path) -> Any:
  """Reads a pickle of plain data (protocols 0 to 5); runs none of its code.

  Python 2's strings are read as Latin-1. A list that the pickle holds twice
  is given twice, as two lists.

  Args:
    path: the file.

  Returns:
    what it holds: None, bool, int (of 64 bits), float, str, bytes, list,
    tuple, dict (whose keys are text, numbers or None), or np.ndarray of bool,
    int, float, fixed-width text or objects of these kinds, in the machine's
    byte order. NumPy's scalars become Python's.

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
    fixed-width text, or objects as `read` has them.

  Raises:
    InputError: the file cannot be read, is no .npy file, is longer or shorter
      than its header says, or holds something else.
  """
  stream = io.BytesIO(_bytes(path))
  length = len(stream.getbuffer())
  try:
    shape, dtype = _header(stream)
  except Exception as error:  # NumPy does not say what nonsense raises
    raise InputError(f"{path} is no whole .npy file: {_ADVICE}") from error
  start = stream.tell()
  try:
    if dtype.hasobject:
      array = _interpret(stream.getvalue(), start, path)
      found = getattr(array, "shape", None), getattr(array, "dtype", None)
      if found != (shape, dtype):
        raise Refused("holds another array than its header says")
      return array
    arrays.check_dtype(dtype)
    # Before NumPy reads: it would first allocate whatever the header says.
    if arrays.size(shape) * dtype.itemsize != length - start:
      raise Refused(
        f"holds {length - start} bytes of values where its header says"
        f" {arrays.size(shape) * dtype.itemsize}"
      )
    stream.seek(0)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      array = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays.checked(array)
  except Refused as refusal:
    raise InputError(
      f"{path} {refusal.what}{refusal.why}: {_ADVICE}"
    ) from refusal
  except (ArithmeticError, ValueError) as error:
    raise InputError(f"{path} holds a damaged array: {_ADVICE}") from error


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], np.dtype]:
  """Returns shape and dtype; leaves the stream at the values."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Python 2's numbers, such as 5L
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
      shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
      shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
      raise ValueError(f"version {version}")
  return shape, dtype


def _bytes(path: Path) -> bytes:
  path = Path(path)
  try:
    # A pipe would have us wait, a folder is no file.
    if path.exists() and not path.is_file():
      raise InputError(f"{path} is no file: give the file itself")
    return path.read_bytes()
  except OSError as error:
    raise InputError(
      f"cannot read {path} ({error.strerror}): give the folder or file that"
      " holds it"
    ) from error


def _kind(value: Any) -> str:
  if isinstance(value, np.ndarray):
    return f"an array of shape {value.shape}"
  return f"a value of type {type(value).__name__}"


def _interpret(data: bytes, start: int, path: Path) -> Any:
  """Returns the value of the pickle that starts at a byte of a file."""
  try:
    value, end = run(data, start, _STEPS, _MAX_STEPS)
    if data[end:].strip():
      raise Refused(f"goes on after the end of its pickle at byte {end}")
    # Lists that hold each other many times over are endless to go through.
    return arrays.plain(value, min(10 * len(data) + 1000, _MAX_STEPS))
  except Refused as refusal:
    message = f"{path} {refusal.what}{refusal.why}: {_ADVICE}"
    raise InputError(message) from refusal


def _literal(machine: Machine, value: Any) -> None:
  if type(value) is int and not -(2**63) <= value < 2**64:
    raise Refused("holds a number of more than 64 bits")
  if type(value) is str:
    value.encode()  # half a surrogate pair is no text
  machine.push(bytes(value) if type(value) is bytearray else value)


def _append(machine: Machine, items: list) -> None:
  machine.last(list).extend(items)


def _set_items(machine: Machine, items: list | tuple) -> None:
  target = machine.last(dict)
  if len(items) % 2:
    raise ValueError("a key without a value")
  for key, value in zip(items[::2], items[1::2], strict=True):
    # Only what hashes at once: a tuple may be nested without end.
    if type(key) not in (bool, bytes, float, int, str, type(None)):
      raise Refused("holds a key that is neither text nor a number")
    if key in target:
      raise Refused("holds a key twice")
    target[key] = value


def _new_dict(machine: Machine, items: list) -> None:
  machine.push({})
  _set_items(machine, items)


def _global(machine: Machine, name: str) -> None:
  machine.push(arrays.code(name))


def _stack_global(machine: Machine, _: None) -> None:
  module, name = machine.pop_tuple(2)
  if type(module) is not str or type(name) is not str:
    raise ValueError("a name that is no text")
  _global(machine, f"{module} {name}")


def _inst(_: Machine, name: str) -> None:
  raise arrays.no_code(name)


def _reduce(machine: Machine, _: None) -> None:
  function, arguments = machine.pop_tuple(2)
  machine.spend(arrays.weight(arguments))
  machine.push(arrays.call(function, arguments))


def _build(machine: Machine, _: None) -> None:
  target, state = machine.pop_tuple(2)
  machine.spend(arrays.weight(state))
  arrays.build(target, state)
  machine.push(target)


# What each opcode does to the machine, given its argument in the file.
_STEPS = {
  **STEPS,
  **dict.fromkeys(LITERALS, _literal),
  "APPEND": lambda machine, _: _append(machine, [machine.stack.pop()]),
  "APPENDS": lambda machine, _: _append(machine, machine.pop_mark()),
  "DICT": lambda machine, _: _new_dict(machine, machine.pop_mark()),
  "SETITEM": lambda machine, _: _set_items(machine, machine.pop_tuple(2)),
  "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_mark()),
  "GLOBAL": _global,
  "INST": _inst,
  "STACK_GLOBAL": _stack_global,
  "REDUCE": _reduce,
  "BUILD": _build,
}
