"""A pickle's stack and memo, carried out step by step without running code.

`pickletools.genops` of the standard library splits a pickle into opcodes; the
machine here carries out those that hold plain data (`STEPS`). What the others,
which name functions and classes, shall mean, its callers say: `data.pickles`
for published lists, `models.torch_pickle` for PyTorch's checkpoints. Nothing a
pickle names is ever imported or called.
"""

import io
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any

# What `repr` makes of a Python 2 string: without its quotes.
_REPR = re.compile(rb"""(?:[^\\]++|\\[\\'"nrt]|\\x[0-9a-fA-F]{2})*+""")


class Refused(Exception):
  """What a file does that is not allowed and, after the place, why not."""

  def __init__(self, what: str, why: str = ""):
    self.what, self.why = what, why


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


class Machine:
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
      raise Refused("makes far more bytes than it has")

  def push(self, value: Any) -> None:
    """Puts a value on top of the stack."""
    self.stack.append(value)

  def mark(self) -> None:
    """Puts the stack aside and starts an empty one."""
    self.marked.append(self.stack)
    self.stack = []

  def pop_mark(self) -> list:
    """Returns what lies above the last mark; the stack below comes back."""
    items, self.stack = self.stack, self.marked.pop()
    return items

  def pop_tuple(self, size: int) -> tuple:
    """Takes the upmost values off the stack, the lowest of them first."""
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


# What an opcode does to the machine, given its argument in the file.
Step = Callable[[Machine, Any], None]


def run(
  data: bytes, start: int, steps: Mapping[str, Step], most: int
) -> tuple[Any, int]:
  """Carries out a pickle.

  Args:
    data: holds it.
    start: its first byte.
    steps: what each opcode does, by `pickletools`' name; others are refused.
    most: opcodes it may have.

  Returns:
    its value, and the byte after its end.

  Raises:
    Refused: it is damaged, or does what no step allows; `what` has the place.
  """
  source, position = _Source(data), start
  source.seek(start)
  machine = Machine(source)
  try:
    for count, operation in enumerate(pickletools.genops(source)):
      opcode, argument, position = operation
      if count >= most:
        raise Refused(f"needs more than {most} steps")
      if opcode.name not in steps:
        raise Refused(
          f"asks for {opcode.name}", ", which plain data never does"
        )
      steps[opcode.name](machine, argument)
    position = source.tell()
    if len(machine.stack) != 1 or machine.marked:
      raise Refused("ends halfway through its data")
    return machine.stack.pop(), position
  except Refused as refusal:
    refusal.what += f" at byte {position}"
    raise
  except (ArithmeticError, AssertionError, LookupError, ValueError) as error:
    # Nonsense to genops, an empty stack, an unset memo, text that is no text.
    reached = source.tell()
    cut = reached >= len(data)
    wrong = "breaks off" if cut else "is no pickle, or damaged,"
    raise Refused(f"{wrong} at byte {reached}") from error


def _string(machine: Machine, _: None) -> None:
  """A Python 2 string as its `repr`: quotes, escapes, a newline."""
  line = machine.source.string[:-1]
  text = line[1:-1]
  if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
    raise ValueError("no quotes")
  if not _REPR.fullmatch(text):
    raise ValueError("another escape than repr makes")
  machine.push(text.decode("unicode_escape"))


def _pop(machine: Machine, _: None) -> None:
  if machine.stack:
    machine.stack.pop()
  else:
    machine.pop_mark()


def _protocol(_: Machine, version: int) -> None:
  if version > 5:
    raise Refused(f"is of the unknown pickle protocol {version}")


def _put(machine: Machine, index: int) -> None:
  if index < 0:
    raise ValueError("a negative place in the memo")
  machine.memo[index] = machine.stack[-1]


# Opcodes whose argument is the value.
LITERALS = (
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"),
  *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
# The opcodes that mean the same to every reader.
STEPS: dict[str, Step] = {
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
  "EMPTY_DICT": lambda machine, _: machine.push({}),
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
  "PROTO": _protocol,
  "FRAME": lambda machine, _: None,
  "STOP": lambda machine, _: None,
}
