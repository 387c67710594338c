"""How a report's figures look: encoders' colours, grids, legends, files."""

import contextlib
import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssl_music.pretext import PRETEXTS
from ssl_music.text import printable

# Okabe and Ito's colours, which people with any colour vision tell apart;
# yellow is too pale for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
_COLOURS = {name: task.colour for name, task in PRETEXTS.items()}
_COLOURS |= {"mel": "#666666", "random": "#A0A0A0"}
_MARKERS = {name: task.marker for name, task in PRETEXTS.items()}
_MARKERS |= {"mel": "X", "random": "*"}
_FREE_COLOURS = ("#000000", "#8C6D1F", "#56B4E9", "#D55E00", "#0072B2")
_FREE_MARKERS = ("p", "h", "<", ">", "d")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
# Black in an SVG is the text's colour, which is light where the page is dark.
_SCHEME = (
  "<style>:root { color: #000; fill: currentColor; }"
  " @media (prefers-color-scheme: dark) { :root { color: #e6e6e6; } }</style>"
)
_INK = "#111111"  # on a coloured cell, where it stays as it is
_SETTINGS = {
  "figure.facecolor": "none",
  "axes.facecolor": "none",
  "font.family": "DejaVu Sans",  # comes with matplotlib
  "font.size": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.titlesize": 11,
  "text.parse_math": False,  # names may hold dollars
  "svg.hashsalt": "ssl_music",  # the same input gives the same file
}


def styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
  """Gives each encoder a colour, a marker and a line.

  A task has the same colour in every report, and so have its fine-tuning and
  its teacher, which differ in marker and line; other names take what is left.

  Args:
    labels: of `results.label`.

  Returns:
    {label: {"color", "marker", "linestyle"}}, labels in alphabetical order.
  """
  bases: dict[str, int] = {}
  result = {}
  for name in sorted(set(labels)):
    base = name.partition(":")[2] if name.startswith("finetune:") else name
    base = base.partition(" (")[0]
    variant = bases.setdefault(base, 0)
    bases[base] += 1
    others = [b for b in bases if b not in _COLOURS]
    place = others.index(base) if base in others else 0
    known = base in _COLOURS
    turn = place // len(_FREE_COLOURS)
    result[name] = {
      "color": _COLOURS[base]
      if known
      else _FREE_COLOURS[place % len(_FREE_COLOURS)],
      "marker": _MARKERS[base]
      if known and not variant
      else _FREE_MARKERS[(place + variant) % len(_FREE_MARKERS)],
      "linestyle": _LINES[
        min(variant + turn + (base in ("mel", "random")), len(_LINES) - 1)
      ],
    }
  return result


@contextlib.contextmanager
def settings() -> Iterator[None]:
  """Draws as this module does inside, whatever the user's own settings."""
  with matplotlib.rc_context(), warnings.catch_warnings():
    # A name in a script that the font lacks shows boxes; the tables have it.
    warnings.filterwarnings("ignore", message="Glyph .* missing")
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_SETTINGS)
    yield


def png(figure: Figure) -> bytes:
  """Returns a figure as PNG, on white; inside `settings`."""
  return _file(figure, "png", {"Software": None}, "white")


def svg(figure: Figure) -> bytes:
  """Returns a figure as SVG, for light and dark pages; inside `settings`."""
  text = _file(figure, "svg", {"Date": None}, "none").decode()
  head, mark, rest = text.partition("<defs>")
  rest = rest.replace("#000000", "currentColor")
  return f"{head}{_SCHEME}{mark}{rest}".encode()


def _file(
  figure: Figure, kind: str, metadata: dict[str, None], paper: str
) -> bytes:
  FigureCanvasAgg(figure)
  buffer = io.BytesIO()
  # "tight" makes the picture larger where a title sticks out.
  figure.savefig(
    buffer,
    format=kind,
    dpi=150,
    bbox_inches="tight",
    metadata=metadata,
    facecolor=paper,
  )
  return buffer.getvalue()


def cells(
  axis: Axes,
  values: np.ndarray,
  columns: Sequence[str],
  colours: str,
  low: float,
  high: float,
) -> Any:
  """Fills a matrix with colours and numbers; cells without one are grey."""
  axis.set_facecolor("0.85")
  image = axis.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
  axis.set_xticks(
    range(len(columns)),
    [short(name) for name in columns],
    rotation=40,
    ha="right",
    rotation_mode="anchor",
  )
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
  for (row, column), value in np.ndenumerate(values):
    if math.isfinite(value):
      red, green, blue, _ = image.cmap(image.norm(value))
      dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
      text = f"{value:.2f}".replace("0.", ".", 1)
      axis.text(
        column,
        row,
        text,
        ha="center",
        va="center",
        fontsize=8,
        color="white" if dark else _INK,
      )
  return image


def grid(
  rows: int, columns: int, width: float, height: float
) -> tuple[Figure, np.ndarray]:
  """Makes a figure of panels of that size, in inches, room for labels apart."""
  figure = Figure(
    figsize=(columns * width, rows * height + 0.6), layout="constrained"
  )
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
  return figure, figure.subplots(rows, columns, squeeze=False)


def pairs(
  count: int, width: float, height: float, most: int = 3
) -> tuple[Figure, np.ndarray]:
  """Makes two panels, one above the other, for each of some data sets.

  Args:
    count: of data sets.
    width: of a panel, in inches.
    height: of a panel, in inches.
    most: data sets side by side; more would be too small to read.

  Returns:
    the figure, and axes [2, count].
  """
  across = 2 if count == 4 and most > 2 else min(count, most)
  blocks = -(-count // across)
  figure, axes = grid(2 * blocks, across, width, height)
  both = [axes[row::2].ravel() for row in (0, 1)]
  for axis in (*both[0][count:], *both[1][count:]):
    axis.set_visible(False)
  return figure, np.stack(both)[:, :count]


def legend(figure: Figure, axes: np.ndarray) -> None:
  """Puts one legend of everything drawn below all panels."""
  found = {}
  for axis in axes.flat:
    for line, name in zip(*axis.get_legend_handles_labels(), strict=True):
      found.setdefault(name, line)
  if found:
    names = sorted(found)
    across = max(int(figure.get_figwidth() / 2.2), 1)
    figure.legend(
      [found[name] for name in names],
      names,
      loc="outside lower center",
      ncols=min(across, len(names)),
      frameon=False,
    )


def short(name: str, most: int = 26) -> str:
  """Returns a name without control characters; cuts its middle if long."""
  name = printable(name)
  if len(name) <= most:
    return name
  return f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def wrap(text: str) -> str:
  """Breaks a title into lines."""
  return "\n".join(textwrap.wrap(printable(text), 34, break_on_hyphens=False))
