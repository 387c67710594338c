"""Fills the HTML pages of `templates/`; what is filled in is escaped."""

import functools
from typing import Any

from ssl_music.text import printable


def page(name: str, **values: Any) -> str:
  """Returns a page that needs nothing besides itself.

  Args:
    name: its file in `templates/`.
    **values: what is filled in.
  """
  return _environment().get_template(name).render(values)


@functools.cache
def _environment() -> Any:
  import jinja2  # here, since every training imports this module

  pages = jinja2.Environment(
    loader=jinja2.PackageLoader("ssl_music", "templates"),
    autoescape=True,
    # A name that is no text in UTF-8, or controls a terminal, shows escapes.
    finalize=lambda value: printable(value) if type(value) is str else value,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  pages.policies["json.dumps_kwargs"] = {
    "ensure_ascii": False,
    "separators": (",", ":"),
  }
  return pages
