"""Lists, dicts, text, numbers and arrays out of pickles, without unpickling.

Benchmarks of music tagging publish splits and labels as pickles, most of them
written by Python 2. Unpickling runs whatever functions the file names; here
nothing does. `pickletools.genops` of the standard library splits the file into
opcodes, and the small stack machine below carries out those that hold data. Of
the functions that a pickle may name it knows the few by which NumPy and Python
write arrays, NumPy scalars and bytes. It compares their names and builds the
value itself; any other name is an error.
"""

import io
import pickletools
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ssl_music.data import pickled_arrays as arrays
from ssl_music.errors import InputError

_ADVICE = "get the file from its publisher again"
# Of one pickle: twice what the largest published one takes, below 2 GB.
_MAX_STEPS = 12_000_000

# What `repr` makes of a Python 2 string: without its quotes.
_REPR = re.compile(rb"""(?:[^\\]++|\\[\\'"nrt]|\\x[0-9a-fA-F]{2})*+""")


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
        raise arrays.Refused("holds another array than its header says")
      return array
    arrays.check_dtype(dtype)
    # Before NumPy reads: it would first allocate whatever the header says.
    if arrays.size(shape) * dtype.itemsize != length - start:
      raise arrays.Refused(
        f"holds {length - start} bytes of values where its header says"
        f" {arrays.size(shape) * dtype.itemsize}"
      )
    stream.seek(0)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      array = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays.checked(array)
  except arrays.Refused as refusal:
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


class _Source(io.BytesIO):
  """The pickle, as genops reads it; keeps aside the line of a STRING.

  Depending on Python's version, genops takes the escapes in it for ASCII: what
  Python 2 wrote of an array would be an error.
  """

  def __init__(self, data: bytes):
    super().__init__(data)
    self.data, self.string = data, b""

  def readline(self, size: int | None = -1) -> bytes:
    start = self.tell()
    line = super().readline(size)
    opcode = self.data[start - 1 : start]
    if opcode == b"S" and line.endswith(b"\n"):
      self.string, line = line, b"''\n"
    elif opcode != b"V":  # names have no escapes, though genops would undo some
      line = line.replace(b"\\", b"\\\\")
    return line


class _Machine:
  """The stack and the memo of a pickle.

  As in `pickle`, MARK puts the stack aside and starts an empty one.
  """

  def __init__(self, source: _Source):
    self.source = source
    self.stack: list = []
    self.marked: list[list] = []
    self.memo: dict[int, Any] = {}
    self.left = 10 * len(source.getbuffer()) + 1_000_000  # bytes

  def spend(self, made: int) -> None:
    """Counts bytes that were made from others, which a memo holds cheaply."""
    self.left -= made
    if self.left < 0:
      raise arrays.Refused("makes far more bytes than it has")

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def mark(self) -> None:
    self.marked.append(self.stack)
    self.stack = []

  def pop_mark(self) -> list:
    items, self.stack = self.stack, self.marked.pop()
    return items

  def pop_tuple(self, size: int) -> tuple:
    if len(self.stack) < size:
      raise IndexError("not enough on the stack")
    items = tuple(self.stack[-size:])
    del self.stack[-size:]
    return items

  def last(self, kind: type) -> Any:
    """Returns what is on top of the stack, which must be of a type."""
    if type(self.stack[-1]) is not kind:
      raise ValueError(f"no {kind}")
    return self.stack[-1]


def _interpret(data: bytes, start: int, path: Path) -> Any:
  """Returns the value of the pickle that starts at a byte of a file."""
  source, position = _Source(data), start
  source.seek(start)
  machine = _Machine(source)
  try:
    for count, operation in enumerate(pickletools.genops(source)):
      opcode, argument, position = operation
      if count >= _MAX_STEPS:
        raise arrays.Refused(f"needs more than {_MAX_STEPS} steps")
      if opcode.name not in _STEPS:
        raise arrays.Refused(
          f"asks for {opcode.name}", ", which plain data never does"
        )
      _STEPS[opcode.name](machine, argument)
    position = source.tell()
    if data[position:].strip():
      raise arrays.Refused("goes on after the end of its pickle")
    position = None
    if len(machine.stack) != 1 or machine.marked:
      raise arrays.Refused("ends halfway through its data")
    # Lists that hold each other many times over are endless to go through.
    limit = min(10 * len(data) + 1000, _MAX_STEPS)
    return arrays.plain(machine.stack.pop(), limit)
  except arrays.Refused as refusal:
    place = "" if position is None else f" at byte {position}"
    message = f"{path} {refusal.what}{place}{refusal.why}: {_ADVICE}"
    raise InputError(message) from refusal
  except (ArithmeticError, AssertionError, LookupError, ValueError) as error:
    # Nonsense to genops, an empty stack, an unset memo, text that is no text.
    reached = source.tell()
    cut = reached >= len(data)
    wrong = "breaks off" if cut else "is no pickle, or damaged,"
    raise InputError(f"{path} {wrong} at byte {reached}: {_ADVICE}") from error


def _literal(machine: _Machine, value: Any) -> None:
  if type(value) is int and not -(2**63) <= value < 2**64:
    raise arrays.Refused("holds a number of more than 64 bits")
  if type(value) is str:
    value.encode()  # half a surrogate pair is no text
  machine.push(bytes(value) if type(value) is bytearray else value)


def _string(machine: _Machine, _: None) -> None:
  """A Python 2 string as its `repr`: quotes, escapes, a newline."""
  line = machine.source.string[:-1]
  text = line[1:-1]
  if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
    raise ValueError("no quotes")
  if not _REPR.fullmatch(text):
    raise ValueError("another escape than repr makes")
  machine.push(text.decode("unicode_escape"))


def _pop(machine: _Machine, _: None) -> None:
  if machine.stack:
    machine.stack.pop()
  else:
    machine.pop_mark()


def _append(machine: _Machine, items: list) -> None:
  machine.last(list).extend(items)


def _set_items(machine: _Machine, items: list | tuple) -> None:
  target = machine.last(dict)
  if len(items) % 2:
    raise ValueError("a key without a value")
  for key, value in zip(items[::2], items[1::2], strict=True):
    # Only what hashes at once: a tuple may be nested without end.
    if type(key) not in (bool, bytes, float, int, str, type(None)):
      raise arrays.Refused("holds a key that is neither text nor a number")
    if key in target:
      raise arrays.Refused("holds a key twice")
    target[key] = value


def _new_dict(machine: _Machine, items: list) -> None:
  machine.push({})
  _set_items(machine, items)


def _protocol(_: _Machine, version: int) -> None:
  if version > 5:
    raise arrays.Refused(f"is of the unknown pickle protocol {version}")


def _put(machine: _Machine, index: int) -> None:
  if index < 0:
    raise ValueError("a negative place in the memo")
  machine.memo[index] = machine.stack[-1]


def _global(machine: _Machine, name: str) -> None:
  machine.push(arrays.code(name))


def _stack_global(machine: _Machine, _: None) -> None:
  module, name = machine.pop_tuple(2)
  if type(module) is not str or type(name) is not str:
    raise ValueError("a name that is no text")
  _global(machine, f"{module} {name}")


def _inst(_: _Machine, name: str) -> None:
  raise arrays.no_code(name)


def _reduce(machine: _Machine, _: None) -> None:
  function, arguments = machine.pop_tuple(2)
  machine.spend(arrays.weight(arguments))
  machine.push(arrays.call(function, arguments))


def _build(machine: _Machine, _: None) -> None:
  target, state = machine.pop_tuple(2)
  machine.spend(arrays.weight(state))
  arrays.build(target, state)
  machine.push(target)


_LITERALS = (
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
  *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
# What each opcode does to the machine, given its argument in the file.
_STEPS = {
  **dict.fromkeys(_LITERALS, _literal),
  "STRING": _string,
  "NONE": lambda machine, _: machine.push(None),
  "NEWTRUE": lambda machine, _: machine.push(True),
  "NEWFALSE": lambda machine, _: machine.push(False),
  "MARK": lambda machine, _: machine.mark(),
  "POP": _pop,
  "POP_MARK": lambda machine, _: machine.pop_mark(),
  "DUP": lambda machine, _: machine.push(machine.stack[-1]),
  "EMPTY_LIST": lambda machine, _: machine.push([]),
  "LIST": lambda machine, _: machine.push(machine.pop_mark()),
  "APPEND": lambda machine, _: _append(machine, [machine.stack.pop()]),
  "APPENDS": lambda machine, _: _append(machine, machine.pop_mark()),
  "EMPTY_DICT": lambda machine, _: machine.push({}),
  "DICT": lambda machine, _: _new_dict(machine, machine.pop_mark()),
  "SETITEM": lambda machine, _: _set_items(machine, machine.pop_tuple(2)),
  "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_mark()),
  "EMPTY_TUPLE": lambda machine, _: machine.push(()),
  "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
  "TUPLE1": lambda machine, _: machine.push(machine.pop_tuple(1)),
  "TUPLE2": lambda machine, _: machine.push(machine.pop_tuple(2)),
  "TUPLE3": lambda machine, _: machine.push(machine.pop_tuple(3)),
  **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
  "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
  **dict.fromkeys(
    ("GET", "BINGET", "LONG_BINGET"),
    lambda machine, index: machine.push(machine.memo[index]),
  ),
  "GLOBAL": _global,
  "INST": _inst,
  "STACK_GLOBAL": _stack_global,
  "REDUCE": _reduce,
  "BUILD": _build,
  "PROTO": _protocol,
  "FRAME": lambda machine, _: None,
  "STOP": lambda machine, _: None,
}
