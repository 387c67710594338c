"""Damages tables at random, and reads them without the library, slowly."""

import io
import itertools
import random
import unicodedata

import numpy as np


def somewhere(data: bytes, rng: random.Random) -> bytes:
  """Returns a table that is damaged in one to three places."""
  for _ in range(rng.choice((1, 1, 2, 3))):
    data = rng.choice(DAMAGES)(data, rng)
  return data


def flip(data, rng):
  if not data:
    return data
  at = rng.randrange(len(data))
  return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def insert(data, rng):
  at = rng.randint(0, len(data))
  return data[:at] + rng.choice(TOKENS) + data[at:]


def replace_token(data, rng):
  """Puts one of the table's own delimiters and such in another's place."""
  places = [at for at, byte in enumerate(data) if bytes([byte]) in TOKENS]
  if not places:
    return data
  at = rng.choice(places)
  return data[:at] + rng.choice(TOKENS) + data[at + 1 :]


def cut(data, rng):
  start = rng.randint(0, len(data))
  return data[:start] + data[start + rng.randint(1, 9) :]


def truncate(data, rng):
  return data[: rng.randint(0, len(data))]


def move_lines(data, rng):
  """Cuts, doubles or swaps lines, or breaks one with another's end."""
  lines = data.split(b"\n")
  one, two = rng.randrange(len(lines)), rng.randrange(len(lines))
  what = rng.randrange(4)
  if what == 0:
    del lines[one]
  elif what == 1:
    lines.insert(two, lines[one])
  elif what == 2:
    lines[one], lines[two] = lines[two], lines[one]
  else:
    lines[one] += lines[two]
  return b"\n".join(lines)


def move_fields(data, rng):
  """Puts a field in another's place, in the same row or not."""
  delimiter = b"\t" if b"\t" in data else b","
  rows = [line.split(delimiter) for line in data.split(b"\n")]
  one, two = rng.choice(rows), rng.choice(rows)
  column = rng.randrange(len(one))
  if column >= len(two) or rng.random() < 0.5:
    one[column] = rng.choice(two)
  else:  # of the same column
    one[column] = two[column]
  return b"\n".join(delimiter.join(row) for row in rows)


def recode(data, rng):
  text = data.decode("latin-1")
  return rng.choice(
    [
      text.encode("utf-16"),
      text.encode("utf-16-le"),
      text.encode(),  # again, so that é becomes Ã©
      b"\xef\xbb\xbf" + data,
      data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
      data.replace(b"\n", b"\r"),
    ]
  )


DAMAGES = (
  flip,
  insert,
  replace_token,
  cut,
  truncate,
  move_lines,
  move_fields,
  recode,
)
TOKENS = (
  *(bytes([byte]) for byte in b",\t\n\r|\";/ .0'\\\0"),
  *(b'""', b"../", b"/x", b"\n\n", b"\r\n", b"\xff", b"\xc2\x85"),
  *("é\u2028".encode(), b"---", b"=1+1", b"train", b"test", b"1", b"-1"),
)


# An independent reading ------------------------------------------------------


class WrongError(Exception):
  """By the slow reader the table is none: there may be no plan of it."""


def characters(data: bytes, encoding="utf-8") -> str:
  """Returns a file's text with \\n for every line's end."""
  try:
    text = data.decode(encoding)
  except UnicodeDecodeError as error:
    raise WrongError("encoding") from error
  if encoding == "utf-8" and text[:1] == "\ufeff":
    text = text[1:]
  if "\0" in text:
    raise WrongError("NUL")
  return "\n".join(text.replace("\r\n", "\n").split("\r"))


def rows_of(text: str, delimiter: str, quoted: bool) -> list[list[str]]:
  """Reads one character after the other; empty lines are no rows."""
  rows, row, field, state = [], [], "", "start"
  for character in itertools.chain(text, [""] if text else []):
    end = character in ("\n", "") and state != "quoted"
    if state == "quoted":
      if not character:
        raise WrongError("open quote")
      state, field = (
        ("closing", field) if character == '"' else (state, field + character)
      )
    elif state == "closing" and character == '"':
      state, field = "quoted", field + '"'
    elif end or character == delimiter:
      if not (end and state == "start" and not row):
        row.append(field)
      field, state = "", "start"
      if end and row:
        rows.append(row)
        row = []
    elif state == "closing":
      raise WrongError("text after a quote")
    elif state == "start" and quoted and character == '"':
      state = "quoted"
    else:
      state, field = "text", field + character
  return rows


def dicts(data, delimiter=",", quoted=True, encoding="utf-8", rest=None):
  """Returns {column: field} of each row; `rest` takes the fields from it on."""
  rows = rows_of(characters(data, encoding), delimiter, quoted)
  if not rows or len(set(rows[0])) < len(rows[0]):
    raise WrongError("header")
  found = []
  for row in rows[1:]:
    if len(row) != len(rows[0]) and not (rest and len(row) > len(rows[0])):
      raise WrongError("number of fields")
    found.append(dict(zip(rows[0], row, strict=not rest)))
    if rest:
      found[-1][rest] = row[rows[0].index(rest) :]
  return found


def words(cells: list[str]) -> list[frozenset[str]]:
  """Returns the tags of a column's cells."""
  if not any("|" in cell for cell in cells):
    cells = [cell.replace(",", "|").replace(";", "|") for cell in cells]
  return [
    frozenset(
      unicodedata.normalize("NFC", word.strip()) for word in cell.split("|")
    )
    - {""}
    for cell in cells
  ]


def npy(array: np.ndarray) -> bytes:
  """Returns an array's file, version 1.0."""
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def floats(data: bytes) -> np.ndarray:
  return np.load(io.BytesIO(data), allow_pickle=False)


def lines_of(data: bytes) -> list[str]:
  lines = [line.strip() for line in characters(data).split("\n")]
  return [line for line in lines if line]
