"""Reads the tables that come with data sets, and says where one is wrong.

Every complaint names the file and, where there is one, the line and column:
`where` words it.
"""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ssl_music import disk
from ssl_music.errors import InputError


class Table(NamedTuple):
  """A table as text.

  Attributes:
    path: the file.
    columns: the names in its header.
    rows: (line, fields) of each row; as many fields as columns, or more where
      the table was read as ragged.
  """

  path: Path
  columns: list[str]
  rows: list[tuple[int, list[str]]]

  def column(self, name: str) -> int:
    """Returns the index of a column.

    Raises:
      InputError: there is none of this name.
    """
    if name not in self.columns:
      raise InputError(_no_column(self.path, [name], self.columns))
    return self.columns.index(name)

  def values(self, name: str) -> list[str]:
    """Returns the fields of a column, one a row.

    Raises:
      InputError: there is none of this name.
    """
    index = self.column(name)
    return [fields[index] for _, fields in self.rows]


def read(
  path: str | os.PathLike,
  *,
  needed: Sequence[str] = (),
  delimiter: str = ",",
  encoding: str = "utf-8-sig",
  quoted: bool = True,
  ragged: bool = False,
) -> Table:
  """Reads a table with a header. Empty lines are passed over.

  Args:
    path: the file.
    needed: columns that it must have.
    delimiter: between fields.
    encoding: of the text; "utf-8-sig" passes over a byte order mark.
    quoted: whether fields may be in double quotes.
    ragged: whether rows may have more fields than the header.

  Raises:
    InputError: the file is missing or no such table; with line and column.
  """
  path = Path(path)
  text = _text(path, encoding)
  quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
  reader = csv.reader(
    io.StringIO(text),  # unlike str.splitlines, it ends lines at \n alone
    delimiter=delimiter,
    quoting=quoting,
    strict=True,
  )
  rows, start = [], 1
  try:
    for fields in reader:  # a row of several lines counts as its first
      if fields:
        rows.append((start, fields))
      start = reader.line_num + 1
  except csv.Error as error:
    raise InputError(
      f"{where(path, start)}: {error}: correct the row's quotes"
    ) from error
  if not rows:
    raise InputError(f"{path} is empty: give the whole table")
  _, columns = rows.pop(0)
  absent = [name for name in needed if name not in columns]
  if absent:
    raise InputError(_no_column(path, absent, columns))
  twice = sorted({name for name in columns if columns.count(name) > 1})
  if twice:
    raise InputError(
      f"{where(path, 1)}: column {twice[0]!r} is there twice: remove one"
    )
  for line, fields in rows:
    if len(fields) < len(columns) or (
      len(fields) > len(columns) and not ragged
    ):
      raise InputError(
        f"{where(path, line)} has {len(fields)} fields, not the {len(columns)}"
        " of the header: correct the row (quote a field that holds the"
        " delimiter)"
      )
  return Table(path, columns, rows)


def read_lines(path: str | os.PathLike) -> list[tuple[int, str]]:
  """Reads a list of one item a line: (line, item), stripped, none empty.

  Raises:
    InputError: the file is missing or no UTF-8 text.
  """
  lines = _text(Path(path), "utf-8-sig").split("\n")
  stripped = [(number, line.strip()) for number, line in enumerate(lines, 1)]
  return [(number, line) for number, line in stripped if line]


def tag_lists(cells: Sequence[str]) -> list[list[str]]:
  """Returns the tags in each cell of a column, sorted, each once, in NFC.

  They are separated by "|"; in a column without any, by commas or semicolons.

  Args:
    cells: the whole column.
  """
  mark = "[|]" if any("|" in cell for cell in cells) else "[,;]"
  return [
    sorted(
      {unicodedata.normalize("NFC", t.strip()) for t in re.split(mark, cell)}
      - {""}
    )
    for cell in cells
  ]


def where(
  path: str | os.PathLike, line: int, column: str | int | None = None
) -> str:
  """Returns "FILE, line 3, column 'path'", the way complaints begin."""
  place = "" if column is None else f", column {column!r}"
  return f"{path}, line {line}{place}"


def inside(text: str, place: str) -> str:
  """Returns a table's path, normalised; it must stay inside the folder.

  Args:
    text: as in the table, with / between folders.
    place: of `where`.

  Raises:
    InputError: the path is empty, absolute, leaves the folder, or has control
        characters, such as a line's end.
  """
  path = os.path.normpath(text.strip())  # "." if it is empty
  if path == "." or min(path) < " ":  # as of a stray quote
    raise InputError(f"{place}: {text!r} is no path of a file: correct it")
  if path.startswith("/") or path.split("/", 1)[0] == os.pardir:
    raise InputError(
      f"{place}: path {text!r} leaves the folder: give paths relative to it and"
      " inside it"
    )
  return path


def _text(path: Path, encoding: str) -> str:
  """Returns a file's text, lines ending as Python's do."""
  with disk.readable(path, "give the folder or file that holds it"):
    data = path.read_bytes()
  try:
    text = data.decode(encoding)
  except UnicodeDecodeError as error:
    before = data[: error.start + len(data) - len(error.object)]  # with BOM
    ends = before.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    line = ends.count(b"\n") + 1
    raise InputError(
      f"{where(path, line)} is not UTF-8 text (byte {len(before)} of the file):"
      " save it as UTF-8"
    ) from error
  text = text.replace("\r\n", "\n").replace("\r", "\n")
  if "\0" in text:
    line = text.count("\n", 0, text.index("\0")) + 1
    raise InputError(
      f"{where(path, line)} holds a NUL character, as UTF-16 or a damaged file"
      " does: save it as UTF-8"
    )
  return text


def _no_column(path: Path, absent: Sequence[str], columns: list[str]) -> str:
  names = " and no column ".join(map(repr, absent))
  has = ", ".join(map(repr, columns))
  has = has if len(has) <= 200 else f"{has[:200]}…"
  hint = ", or separate the columns as it should be" if len(columns) < 2 else ""
  return f"{where(path, 1)} has no column {names} (it has {has}): add it{hint}"
