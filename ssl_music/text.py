"""Names of files and tags, as a terminal or a spreadsheet can take them."""

import re
from collections.abc import Mapping
from typing import Any

# Control characters, by which a terminal acts, separators of lines, what turns
# the direction of text, and what UTF-8 cannot hold.
_UNPRINTABLE = re.compile(
  "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# A spreadsheet takes what begins so for a formula.
_FORMULA = re.compile("'*[=+@\t\r-](?s:.)")


def utf8(name: str) -> str:
  """Returns a name that UTF-8 can hold; other bytes become escapes."""
  return name.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
  r"""Returns a text that a terminal only shows; the rest becomes escapes.

  They are JSON's, such as \u001b: JSON in one line stays what it is.
  """
  return _UNPRINTABLE.sub(lambda one: f"\\u{ord(one.group()):04x}", text)


def cell(text: str) -> str:
  """Returns a cell for a table that people open in a spreadsheet.

  It is the text, with ' before it where it looks like a formula.
  """
  return f"'{text}" if _FORMULA.match(text) else text


def cells(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a row for such a table; what is no text, as numbers, stays."""
  return {
    name: cell(value) if isinstance(value, str) else value
    for name, value in row.items()
  }


def raw_cell(text: str) -> str:
  """Returns the text of which `cell` has made this."""
  return text[1:] if text[:1] == "'" and _FORMULA.match(text) else text
