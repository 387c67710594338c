"""Names of files and tags, as a terminal or a spreadsheet can take them."""

import re

# Control characters (which make a terminal do something), what turns the
# direction of text, separators of lines, and what UTF-8 cannot hold.
_UNPRINTABLE = re.compile(
  "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# A spreadsheet takes what begins so for a formula.
_FORMULA = re.compile("'*[=+@\t\r-]")


def utf8(name: str) -> str:
  """Returns a name that UTF-8 can hold; other bytes become escapes."""
  return name.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
  """Returns a text that a terminal only shows; the rest becomes escapes."""
  return _UNPRINTABLE.sub(lambda found: ascii(found.group())[1:-1], text)


def cell(text: str) -> str:
  """Returns a table's cell, which no spreadsheet takes for a formula.

  It is the text, with ' before it where it looks like a formula.
  """
  return f"'{text}" if _FORMULA.match(text) else text


def raw_cell(text: str) -> str:
  """Returns the text of which `cell` has made this."""
  return text[1:] if text[:1] == "'" and _FORMULA.match(text) else text
