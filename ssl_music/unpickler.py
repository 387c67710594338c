"""Reads pickles without looking up or calling anything that they name.

`pickle.Unpickler` does the work, and its `find_class` hands out stand-ins for
the names that the caller knows. The C code behind it trusts a pickle in three
things: it allocates the sizes and the memo places that a pickle declares,
hashes whatever it is given as a key, and takes registered extensions without
asking. So `_vetted` walks the opcodes first: it refuses sizes beyond the file,
and makes every dict and set a call of `builtins.dict` and `builtins.set`, for
which the caller has classes that choose their keys.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
# Bytes of the length that comes before an argument.
_WIDTHS = {
  pickletools.TAKEN_FROM_ARGUMENT1: 1,
  pickletools.TAKEN_FROM_ARGUMENT4: 4,
  pickletools.TAKEN_FROM_ARGUMENT4U: 4,
  pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_NEW_DICT = b"cbuiltins\ndict\n)R"
_REPLACED = {
  "EMPTY_DICT": _NEW_DICT,
  "EMPTY_SET": b"cbuiltins\nset\n)R",
  "FRAME": b"",  # its length would no longer fit
}
_FORBIDDEN = ("EXT1", "EXT2", "EXT4", "FROZENSET")
# What reading nonsense raises, in the standard library and in stand-ins.
_DAMAGE = (
  *(pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError),
  *(ImportError, LookupError, TypeError, ValueError),
)


class Refused(Exception):
  """What a file does that is not allowed and, after the place, why not."""

  def __init__(self, what: str, why: str = ""):
    self.what, self.why = what, why


class Call:
  """Stands for a function or class that a pickle may call.

  The lengths of the arguments are counted, since a pickle can repeat a long
  one, from its memo, in two bytes.
  """

  __slots__ = ("_function", "_spend")

  def __init__(self, function: Callable, spend: Callable[[int], None]):
    self._function, self._spend = function, spend

  def __call__(self, *arguments: Any) -> Any:
    """Calls the function."""
    sized = (one for one in arguments if type(one) in (bytes, list, str))
    self._spend(sum(map(len, sized)))
    return self._function(*arguments)

  def __setstate__(self, state: Any) -> None:
    """Refuses a BUILD, which would set attributes."""
    raise ValueError("state of a function")


def read(
  data: bytes,
  start: int,
  *,
  calls: Mapping[str, Callable],
  other: Callable[[str], Any],
  refer: Callable[[Any], Any],
  most: int,
) -> tuple[Any, int]:
  """Reads one pickle.

  Args:
    data: holds it.
    start: its first byte.
    calls: what takes the place of the functions and classes that it may call,
      by "module.name"; of these, "builtins.dict" makes its dicts.
    other: what takes the place of another name.
    refer: what takes the place of a persistent id.
    most: opcodes it may have.

  Returns:
    its value, and the byte after its end.

  Raises:
    Refused: it is damaged or too long, or a stand-in refuses what it does.
  """
  vetted, end = _vetted(data, start, most)
  left = 10 * len(data) + 1_000_000

  def spend(count: int) -> None:
    nonlocal left
    left -= count
    if left < 0:
      raise Refused("makes far more bytes than it has")

  class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
      name = f"{module}.{name}"
      return Call(calls[name], spend) if name in calls else other(name)

    def persistent_load(self, identity: Any) -> Any:
      return refer(identity)

  try:
    # Python 2's strings are bytes, which Latin-1 keeps one by one.
    return Unpickler(io.BytesIO(vetted), encoding="latin-1").load(), end
  except _DAMAGE as error:
    raise Refused("is no pickle of plain data, or damaged") from error


def _vetted(data: bytes, start: int, most: int) -> tuple[bytes, int]:
  """Returns a pickle that is safe to unpickle, and the byte after its end."""
  pieces, kept, position, before = [], start, start, ""
  for count in range(most):
    if position >= len(data):
      raise Refused(f"breaks off at byte {len(data)}")
    opcode = _OPCODES.get(data[position])
    if opcode is None:
      raise Refused(f"is no pickle, or damaged, at byte {position}")
    end, name = _end(data, position, opcode), opcode.name
    if name in _FORBIDDEN:
      raise Refused(f"asks for {name} at byte {position}")
    if name in ("PUT", "LONG_BINPUT"):
      _check_place(data[position + 1 : end], name, count)
    if name in _REPLACED:
      pieces += [data[kept:position], _REPLACED[name]]
      kept = end
    elif name == "DICT":  # of protocol 0, which fills it afterwards
      if before != "MARK":
        raise Refused(f"makes a dict of a list at byte {position}")
      pieces += [data[kept : position - 1], _NEW_DICT]
      kept = end
    if name == "STOP":
      return b"".join([*pieces, data[kept:end]]), end
    position, before = end, name
  raise Refused(f"needs more than {most} steps")


def _end(data: bytes, position: int, opcode: pickletools.OpcodeInfo) -> int:
  """Returns the byte after an opcode and its argument."""
  start = position + 1
  size = opcode.arg.n if opcode.arg else 0
  if size == pickletools.UP_TO_NEWLINE:
    lines = 2 if opcode.name in ("GLOBAL", "INST") else 1
    for _ in range(lines):
      start = data.find(b"\n", start) + 1
      if not start:
        raise Refused(f"breaks off at byte {len(data)}")
    return start
  if size in _WIDTHS:
    start += _WIDTHS[size]
    size = int.from_bytes(data[position + 1 : start], "little")
  if start + size > len(data):
    raise Refused(f"breaks off at byte {len(data)}")
  return start + size


def _check_place(argument: bytes, name: str, count: int) -> None:
  """Refuses a place of the memo beyond what the pickle can have filled."""
  try:
    place = (
      int(argument) if name == "PUT" else int.from_bytes(argument, "little")
    )
  except ValueError as error:
    raise Refused("is no pickle, or damaged") from error
  if not 0 <= place <= count + 1:
    raise Refused("puts a value at an impossible place")
