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
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #d0d0d0; --soft: #f3f3f3; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #222; }
  body { background: #121212; color: #e6e6e6; }
  a { color: #8ab4f8; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 80rem;
  margin: 0 auto; padding: 0 1rem 4rem; overflow-wrap: break-word; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap;
  gap: .3rem 1.2rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
figure { margin: 1.5rem 0; }
figure .wide { background: #fff; border: 1px solid var(--line);
  border-radius: 6px; padding: .5rem; }
figure img { display: block; max-width: 100%; height: auto; margin: auto; }
figcaption, .caption { font-size: .9rem; }
.caption { margin: 1.5rem 0 -.7rem; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  text-align: left; white-space: nowrap; }
td.number { text-align: right; }
thead th { background: var(--soft); vertical-align: bottom; }
tbody th { font-weight: 600; position: sticky; left: 0;
  background: Canvas; }
@media (prefers-color-scheme: dark) { tbody th { background: #121212; } }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid; }
th button::after { content: " \\2195"; opacity: .4; }
th[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
summary { cursor: pointer; padding: .3rem 0; }
@media (max-width: 700px) {
  figure img { max-width: none; margin: 0; }
  th, td { padding: .25rem .4rem; }
  tbody th { max-width: 9.5rem; white-space: normal; }
}
"""
# A column's first click sorts numbers from the highest, words from A.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => row.cells[i].dataset.value ??
    row.cells[i].textContent;
  heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {
    const rows = [...table.tBodies[0].rows];
    const number = rows.some(row => "value" in row.cells[i].dataset);
    const was = head.getAttribute("aria-sort");
    const up = was ? was == "descending" : !number;
    const compare = number ? (a, b) => a - b : (a, b) => a.localeCompare(b);
    const known = row => !number || "value" in row.cells[i].dataset;
    rows.sort((a, b) => known(b) - known(a) || !known(a) ? known(b) - known(a)
      : (up ? 1 : -1) * compare(value(a, i), value(b, i)));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }));
}
"""


def page(
  title: str,
  sections: Sequence[Mapping[str, Any]],
  pictures: Mapping[str, bytes],
) -> str:
  """Returns an HTML page that needs nothing besides itself.

  Args:
    title: its heading.
    sections: as the module describes them.
    pictures: {figure's name: SVG}.
  """
  names = [_anchor(index, one) for index, one in enumerate(sections)]
  contents = "".join(
    f'<li><a href="#{name}">{html.escape(one["title"])}</a></li>'
    for name, one in zip(names, sections, strict=True)
  )
  body = "\n".join(
    f'<section id="{name}">\n<h2>{html.escape(one["title"])}</h2>\n'
    + "\n".join(_block(block, pictures) for block in one["blocks"])
    + "\n</section>"
    for name, one in zip(names, sections, strict=True)
  )
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
    f"<body>\n<h1>{html.escape(title)}</h1>\n"
    f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n'
    f"<main>\n{body}\n</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
  )


def markdown(title: str, sections: Sequence[Mapping[str, Any]]) -> str:
  """Returns the same as Markdown, with the figures' PNG files beside it."""
  lines = [f"# {_plain(title)}"]
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


def _block(block: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
  if "text" in block:
    return f"<p>{html.escape(block['text'])}</p>"
  if "items" in block:
    items = "".join(f"<li>{html.escape(item)}</li>" for item in block["items"])
    return f"<ul>{items}</ul>"
  if "figure" in block:
    # An image, not inline: the names inside one SVG would meet another's.
    data = base64.b64encode(pictures[block["figure"]]).decode()
    return (
      f'<figure><div class="wide"><img alt="{html.escape(block["alt"])}"'
      f' src="data:image/svg+xml;base64,{data}"></div>'
      f"<figcaption>{html.escape(block['caption'])}</figcaption></figure>"
    )
  caption = html.escape(block["caption"])
  folded = block.get("folded", False)
  head, *rows = block["table"]
  cells = "".join(
    f'<th scope="col"><button type="button">{html.escape(_text(cell))}'
    "</button></th>"
    for cell in head
  )
  body = "\n".join(f"<tr>{''.join(_cells(row))}</tr>" for row in rows)
  table = (
    f'<div class="wide"><table aria-label="{caption}"><thead><tr>{cells}</tr>'
    f"</thead>\n<tbody>{body}</tbody></table></div>"
  )
  if folded:
    return f"<details><summary>{caption}</summary>{table}</details>"
  # Not the table's own caption, which would be scrolled away with it.
  return f'<p class="caption">{caption}</p>{table}'


def _cells(row: Sequence[Any]) -> list[str]:
  first, *others = row
  cells = [f'<th scope="row">{html.escape(_text(first))}</th>']
  for cell in others:
    value = cell[0] if isinstance(cell, tuple) else cell
    number = isinstance(value, int | float) and not isinstance(value, bool)
    marks = f' class="number" data-value="{value!r}"' if number else ""
    cells.append(f"<td{marks}>{html.escape(_text(cell))}</td>")
  return cells


def _text(cell: Any) -> str:
  if isinstance(cell, tuple):
    return cell[1]
  if cell is None:
    return ""
  return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _plain(text: str) -> str:
  """Keeps names from being read as Markdown, and a line from breaking."""
  return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", " ".join(text.split()))


def _anchor(index: int, section: Mapping[str, Any]) -> str:
  return f"{index + 1}-{re.sub(r'[^a-z]+', '-', section['title'].lower())}"
