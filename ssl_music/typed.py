"""Reads JSON that comes from elsewhere, and trusts none of it."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_music import disk
from ssl_music.errors import InputError


def read(
  file: str | os.PathLike, kind: Any, advice: str = "restore that file"
) -> Any:
  """Reads a JSON file, see `parse`.

  Raises:
    InputError: it cannot be read, or `parse` refuses it.
  """
  with disk.readable(file, advice):
    content = Path(file).read_bytes()
  return parse(content, kind, file, advice)


def parse(
  content: str | bytes,
  kind: Any,
  where: str | os.PathLike,
  advice: str = "restore that file",
) -> Any:
  """Returns what a JSON text holds, if it is of the kind that is asked for.

  Args:
    content: the text.
    kind: `str`, `int` (of 64 bits), `bool`, `None`, `float` (finite; takes
      integers too), `list` or `dict` of anything, `object` for anything;
      `[kind]` for a list of them; `{"name": kind, "other?": kind}` for an
      object with these fields, of which those with "?" may be missing and
      others are passed on; `{str: kind}` for an object with any names; a tuple
      of kinds for one of them.
    where: the file, for messages.
    advice: what to do about a wrong one, for messages.

  Raises:
    InputError: it is no JSON, or not of that kind; names file and field.
  """
  try:
    value = json.loads(
      content,
      parse_int=_int64,
      parse_float=_finite,
      parse_constant=_finite,
      object_pairs_hook=_no_duplicates,
    )
  except (ValueError, RecursionError) as error:
    raise InputError(f"{where} is damaged ({error}): {advice}") from error
  return check(value, kind, where, advice)


def check(
  value: Any,
  kind: Any,
  where: str | os.PathLike,
  advice: str = "restore that file",
) -> Any:
  """Returns a value, if it is of the kind that is asked for, see `parse`.

  Raises:
    InputError: it is not; names file and field.
  """
  try:
    _check(value, kind, "")
  except ValueError as error:
    raise InputError(f"{where} is damaged ({error}): {advice}") from error
  return value


def _int64(text: str) -> int:
  if not -(1 << 63) <= (number := int(text)) < 1 << 63:
    raise ValueError(f"{text:.40} is beyond 64 bits")
  return number


def _finite(text: str) -> float:
  if not math.isfinite(number := float(text)):
    raise ValueError(f"{text} is no finite number")
  return number


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  if len(found := dict(pairs)) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"field {twice!a} is there twice")
  return found


def _check(value: Any, kind: Any, field: str) -> None:
  """Raises ValueError where a value is not of a kind of `parse`."""
  if isinstance(kind, tuple):
    if not any(_is(value, one) for one in kind):
      raise ValueError(f"{_named(field)} is {value!a:.60}")
    kind = next(one for one in kind if _is(value, one))
  elif not _is(value, kind):
    wanted = type(kind) if isinstance(kind, list | dict) else kind
    wanted = getattr(wanted, "__name__", wanted)
    raise ValueError(f"{_named(field)} is {value!a:.60}, no {wanted}")
  if isinstance(kind, list):
    for index, item in enumerate(value):
      _check(item, kind[0], f"{field}[{index}]")
  elif isinstance(kind, Mapping) and str in kind:
    for name, item in value.items():
      _check(item, kind[str], f"{field}.{name}")
  elif isinstance(kind, Mapping):
    for name, inner in kind.items():
      bare = name.removesuffix("?")
      if bare in value:
        _check(value[bare], inner, f"{field}.{bare}")
      elif bare == name:
        raise ValueError(f"{_named(f'{field}.{name}')} is missing")


def _is(value: Any, kind: Any) -> bool:
  """Says whether a value is of a kind, but for what is inside it."""
  if kind is object or kind is None:
    return kind is object or value is None
  kind = type(kind) if isinstance(kind, list | dict) else kind
  if kind is float:
    kind = int | float
  return isinstance(value, kind) and (
    kind is bool or not isinstance(value, bool)
  )


def _named(field: str) -> str:
  return f"field {field.lstrip('.')}" if field else "it"
