"""A report's sections as one HTML page and as Markdown.

A section is {"title", "blocks"}, a block one of
- {"text": sentences},
- {"items": [sentences]},
- {"table": rows, the first of them the header, "caption"; "folded": whether
  the page shows it only when asked},
- {"figure": name of its files, "alt", "caption"}.
A cell is text, a number, None (empty), or (number to sort by, text).
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_music import template
from ssl_music.text import printable

Pictures = Mapping[str, bytes]


def page(
  title: str,
  about: str,
  sections: Sequence[Mapping[str, Any]],
  pictures: tuple[Pictures, Pictures],
  files: Sequence[str],
) -> str:
  """Returns an HTML page that needs nothing besides itself.

  Args:
    title: its heading.
    about: a sentence below it.
    sections: as the module describes them.
    pictures: {figure's name: SVG}, and those of them that differ on a narrow
      screen.
    files: names of files beside the page that have the same as data.
  """
  wide, narrow = (
    {name: _address(picture) for name, picture in some.items()}
    for some in pictures
  )
  return template.page(
    "report.html",
    title=title,
    about=about,
    sections=sections,
    wide=wide,
    narrow=narrow,
    files=files,
    text=_text,
    number=_number,
  )


def _address(picture: bytes) -> str:
  return f"data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"


def markdown(
  title: str, about: str, sections: Sequence[Mapping[str, Any]]
) -> str:
  """Returns the same as Markdown, with the figures' PNG files beside it."""
  lines = [f"# {_plain(title)}", _plain(about)]
  for one in sections:
    lines.append(f"## {_plain(one['title'])}")
    for block in one["blocks"]:
      if "text" in block:
        lines.append(_plain(block["text"]))
      elif "items" in block:
        lines.append("\n".join(f"- {_plain(item)}" for item in block["items"]))
      elif "figure" in block:
        lines.append(f"![{_plain(block['alt'])}]({block['figure']}.png)")
        lines.append(_plain(block["caption"]))
      else:
        head, *rows = [
          [_plain(_text(cell)) for cell in row] for row in block["table"]
        ]
        rows = [head, ["---"] * len(head), *rows]
        lines.append(_plain(block["caption"]))
        lines.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
  return "\n\n".join(lines) + "\n"


def _number(cell: Any) -> int | float | None:
  """Returns the number by which a cell is sorted, if it has one."""
  value = cell[0] if isinstance(cell, tuple) else cell
  known = isinstance(value, int | float) and not isinstance(value, bool)
  return value if known else None


def _text(cell: Any) -> str:
  if isinstance(cell, tuple):
    return cell[1]
  if cell is None:
    return ""
  return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _plain(text: str) -> str:
  """Keeps names from being read as Markdown, and a line from breaking."""
  return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", printable(" ".join(text.split())))
