"""The help of a config: its fields, their values, and what they mean.

What a field means is said in one place, the comment beside or above the line
that gives it its value, in `ssl_music/config.py`, `augment.py` or a file of
`configs/`. The comments are read from there.
"""

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from ssl_music import augment
from ssl_music import config as defaults

_WIDTH = 79
_COLUMN = 40  # where the comments begin


def text(config: ConfigDict, source: str) -> str:
  """Returns the lines of each field: its value, and its comment.

  Args:
    config: what `get_config` returned.
    source: the text of its Python file.
  """
  known = comments(source)
  found = dict(fields(config))
  # Whole configs within, as a study's of each task.
  inner = {name.removesuffix("job") for name in found if name.endswith(".job")}
  lines = []
  for name, value in found.items():
    of = next((one for one in inner if name.startswith(one)), None)
    if of and name != f"{of}job":
      continue
    if of:
      start = f"  --config.{of}…"
      said = f"as of configs/{of.split('.')[-2]}.py"
    else:
      start = f"  --config.{name}={value!r}"
      said = known.get(name, "")
    # Beside the value where it is short, else below it.
    start, above = (start, "") if len(start) < _COLUMN else ("", f"{start}\n")
    words = textwrap.fill(
      said,
      _WIDTH,
      initial_indent=start.ljust(_COLUMN),
      subsequent_indent=" " * _COLUMN,
    )
    lines.append((above + (words or start)).rstrip())
  return "\n".join(lines)


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields (dotted name, value) of each field that holds no others."""
  for key, value in config.items():
    if isinstance(value, ConfigDict) and value:
      yield from fields(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def comments(source: str) -> dict[str, str]:
  """Returns {dotted field: comment} of the function `get_config`.

  Comments on a field that gets its value in several places are joined.

  Args:
    source: the module's text. Functions of `ssl_music.config` that it calls, as
      in `config = defaults.pretraining(preset)`, are read too.
  """
  modules = inspect.getsource(augment), inspect.getsource(defaults), source
  known = {k: v for module in modules for k, v in _definitions(module).items()}
  result: dict[str, str] = {}

  def note(path: str, comment: str) -> None:
    """Adds a comment to those on a field that was given a value before."""
    both = filter(None, (result.get(path), comment))
    result[path] = "; ".join(both)

  def assign(path: str, value: ast.expr, said: "_Comments") -> None:
    """Notes the comments on what is assigned to a field."""
    if isinstance(value, ast.Dict):
      for key, one in zip(value.keys, value.values, strict=True):
        if isinstance(key, ast.Constant):
          inner = f"{path}.{key.value}".lstrip(".")
          note(inner, said(one))
          assign(inner, one, said)
      return
    called = value.func if isinstance(value, ast.Call) else value
    name = ast.unparse(called).rpartition(".")[2]
    if name == "ConfigDict":
      for argument in value.args:
        assign(path, argument, said)
    elif name in known:
      collect(name, path)

  def collect(name: str, path: str) -> None:
    """Notes the comments in a function, or on a dict."""
    top, said = known[name]
    if not isinstance(top, ast.FunctionDef):
      assign(path, top.value, said)
      return
    for node in ast.walk(top):
      if isinstance(node, ast.Assign):
        target, _, field = ast.unparse(node.targets[0]).partition(".")
        if target == "config":
          inner = f"{path}.{field}".strip(".")
          note(inner, said(node))
          assign(inner, node.value, said)
      elif isinstance(node, ast.Return) and node.value:
        assign(path, node.value, said)
      elif isinstance(node, ast.Expr) and "add_duration" in ast.unparse(node):
        duration = f"{path}.{ast.unparse(node.value.args[1])[1:-1]}"
        for unit in defaults.UNITS:
          field = f"{duration}_{unit}".lstrip(".")
          note(field, f"{said(node)}, in {unit}")

  if "get_config" in known:
    collect("get_config", "")
  return result


_Comments = Callable[[ast.stmt | ast.expr], str]


def _definitions(source: str) -> dict[str, tuple[ast.stmt, _Comments]]:
  """Returns a module's functions and constants, and how to read its comments.

  Returns:
    {name: (definition, a function that gives the comment of a node: the one at
    its line's end, else the lines of comments above it)}.
  """
  lines = ["", *source.splitlines()]
  beside = {
    token.start[0]: token.string.lstrip("# ")
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }

  def said(node: ast.stmt | ast.expr) -> str:
    if node.end_lineno in beside:
      return beside[node.end_lineno]
    first = node.lineno
    while lines[first - 1].lstrip().startswith("#"):
      first -= 1
    return " ".join(beside[line] for line in range(first, node.lineno))

  found = {}
  for node in ast.parse(source).body:
    if isinstance(node, ast.FunctionDef):
      found[node.name] = node, said
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      target = node.targets[0] if isinstance(node, ast.Assign) else node.target
      found[ast.unparse(target)] = node, said
  return found
