"""The figures of a report, drawn from `results.panels` and runs' logs.

Every function returns a `matplotlib.figure.Figure` that no other knows of;
pyplot, which keeps figures and settings for the whole process, is not used.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_music.drawing import cells, grid, legend, pairs, short, wrap
from ssl_music.pretext import PRETEXTS
from ssl_music.results import TITLES

MACRO = ("map_macro", "roc_auc_macro")
_DOTS = 100  # of the resamples, drawn in figure 1
_MOST_TAGS = 60  # in a heat map; the table has all
_COLLAPSE = (
  "embedding_std",
  "embedding_rank",
  "embedding_cosine",
  "projection_std",
  "projection_rank",
  "projection_cosine",
  "teacher_std",
  "teacher_rank",
  "teacher_cosine",
  "teacher_entropy",
  "teacher_mean_entropy",
  "teacher_kl",
)


def scores(
  panels: Mapping[str, Mapping[str, Mapping]],
  style: Mapping[str, Mapping[str, Any]],
  across: int = 3,
) -> Figure:
  """Draws the paper's figure 1: scores on all labels, with their resamples.

  Dots are bootstrap resamples of the test tracks, the large mark is the score,
  the bar its 95 % interval, small crosses are single pre-trainings of several.

  Args:
    panels: of `results.panels`; a column each, mAP above ROC-AUC.
    style: of `styles`.
    across: panels side by side, at most; 1 is for narrow screens.
  """
  most = max(map(len, panels.values()))
  figure, axes = pairs(len(panels), 4.6, 0.9 + 0.36 * most, across)
  jitter = np.random.default_rng(0).uniform(-0.3, 0.3, _DOTS)
  for column, (title, groups) in enumerate(panels.items()):
    for row, metric in enumerate(MACRO):
      axis: Axes = axes[row, column]
      order = sorted(groups, key=lambda n, m=metric: groups[n]["test"][m])
      for place, name in enumerate(order):
        one, look = groups[name], style[name]
        if one["resamples"] is not None:
          dots = one["resamples"][metric][:_DOTS]
          axis.scatter(
            dots,
            place + jitter[: len(dots)],
            s=7,
            color=look["color"],
            alpha=0.3,
            linewidths=0,
            rasterized=True,
          )
        axis.plot(one["interval"][metric], [place] * 2, color="black", lw=1.4)
        if len(one["runs"]) > 1:
          values = [run["test"][metric] for run in one["runs"]]
          axis.plot(
            values, [place + 0.33] * len(values), "|", color="black", ms=6
          )
        axis.plot(
          one["test"][metric],
          place,
          look["marker"],
          color=look["color"],
          markeredgecolor="black",
          markersize=7.5,
        )
      axis.set_yticks(range(len(order)), [short(name) for name in order])
      axis.set_ylim(-0.6, len(order) - 0.4)
      axis.grid(axis="x", color="0.5", alpha=0.25)
      axis.set_axisbelow(True)
      axis.set_xlabel(TITLES[metric])
      if row == 0:
        axis.set_title(wrap(title), fontweight="bold")
  return figure


def shares(
  panels: Mapping[str, Mapping[str, Mapping]],
  style: Mapping[str, Mapping[str, Any]],
  across: int = 3,
) -> Figure | None:
  """Draws the paper's figure 2: scores by the share of the labels.

  A line is the mean, its band reaches from the lowest draw of training tracks
  to the highest (of all pre-trainings, where there are several).

  Args:
    panels: as of `scores`.
    style: of `styles`.
    across: as of `scores`.

  Returns:
    None where no encoder was probed with less than all labels.
  """
  panels = {
    title: groups
    for title, groups in panels.items()
    if any(len(one["shares"]) > 1 for one in groups.values())
  }
  if not panels:
    return None
  figure, axes = pairs(len(panels), 4.2, 3.0, across)
  for column, (title, groups) in enumerate(panels.items()):
    ticks = sorted({s["share"] for g in groups.values() for s in g["shares"]})
    for row, metric in enumerate(MACRO):
      axis: Axes = axes[row, column]
      for name, one in groups.items():
        x = [at["share"] for at in one["shares"]]
        draws = [at["draws"][metric] for at in one["shares"]]
        axis.fill_between(
          x,
          [min(values) for values in draws],
          [max(values) for values in draws],
          color=style[name]["color"],
          alpha=0.15,
          linewidth=0,
        )
        axis.plot(
          x,
          [at["test"][metric] for at in one["shares"]],
          **style[name],
          markersize=5,
          label=short(name),
        )
      axis.set_xscale("log")
      axis.set_xticks(ticks, [f"{100 * share:g}" for share in ticks])
      axis.minorticks_off()
      axis.grid(color="0.5", alpha=0.25)
      axis.set_xlabel("training tracks with labels, %")
      axis.set_ylabel(TITLES[metric])
      if row == 0:
        axis.set_title(wrap(title), fontweight="bold")
  legend(figure, axes)
  return figure


def curves(
  runs: Sequence[Mapping[str, Any]],
  style: Mapping[str, Mapping[str, Any]],
  across: int = 3,
) -> Figure:
  """Draws training curves: loss by task, learning rate, online validation.

  Args:
    runs: {"label", "entries": of metrics.jsonl}; those of one label share a
      panel of losses, since losses of two tasks cannot be compared.
    style: of `styles`.
    across: as of `scores`.
  """
  labels = sorted({run["label"] for run in runs})
  drawn = [
    (f"loss, {name}", "loss", [r for r in runs if r["label"] == name])
    for name in labels
  ]
  drawn += [
    (title, field, runs)
    for title, field in (
      ("learning rate", "learning_rate"),
      ("validation mAP (online)", "validation_map"),
    )
  ]
  drawn = [one for one in drawn if any(_has(r, one[1]) for r in one[2])]
  return _lines(drawn, style, across)


def collapse_signs(
  runs: Sequence[Mapping[str, Any]],
  style: Mapping[str, Mapping[str, Any]],
  across: int = 3,
) -> Figure:
  """Draws what tells a collapse: spread, effective rank, cosine, entropies.

  A dotted line is the limit beyond which `collapse` sees a sign of it.

  Args:
    runs: as of `curves`.
    style: of `styles`.
    across: as of `scores`.
  """
  limits = {s.metric: s.limit for t in PRETEXTS.values() for s in t.signs}
  drawn = [
    (field.replace("_", " "), field, runs)
    for field in _COLLAPSE
    if any(_has(run, field) for run in runs)
  ]
  return _lines(drawn, style, across, limits)


def tags(title: str, groups: Mapping[str, Mapping]) -> Figure:
  """Draws average precision by tag (rows, by falling positives) and encoder.

  Args:
    title: of the panel.
    groups: of one panel.
  """
  names = list(groups)
  positives = {
    tag: one["positives"]
    for group in reversed(groups.values())
    for tag, one in group["per_tag"].items()
  }
  order = sorted(positives, key=lambda tag: (-positives[tag], tag))
  shown = order[:_MOST_TAGS]
  values = np.array(
    [
      [groups[n]["per_tag"].get(tag, {}).get("ap", math.nan) for n in names]
      for tag in shown
    ]
  )
  figure = Figure(
    figsize=(2.2 + 0.4 * len(names), 1.4 + 0.22 * len(shown)),
    layout="constrained",
  )
  axis = figure.subplots()
  axis.set_yticks(
    range(len(shown)), [f"{short(t)} ({positives[t]})" for t in shown]
  )
  cells(axis, values, names, "cividis", 0.0, np.nanmax(values))
  more = (
    f", {len(shown)} most frequent of {len(order)}" if shown != order else ""
  )
  axis.set_title(
    wrap(f"{title}: average precision by tag (test positives){more}")
  )
  return figure


def comparison(
  matrices: Mapping[str, Mapping[str, tuple[list[str], np.ndarray]]],
  across: int = 3,
) -> Figure:
  """Draws the probability that the row's encoder is better than the column's.

  Args:
    matrices: {panel's title: {metric: (labels, [N, N] in [0, 1], NaN where
      nothing can be said)}}.
    across: as of `scores`.
  """
  most = max(len(m["map_macro"][0]) for m in matrices.values())
  side = 1.6 + 0.42 * most
  figure, axes = pairs(len(matrices), side + 0.8, side, across)
  for column, (title, by_metric) in enumerate(matrices.items()):
    for row, metric in enumerate(MACRO):
      axis = axes[row, column]
      names, values = by_metric[metric]
      axis.set_yticks(range(len(names)), [short(name) for name in names])
      # Beyond [0, 1], to leave out the darkest ends.
      cells(axis, values, names, "PuOr", -0.2, 1.2)
      axis.set_title(wrap(f"{title}: {TITLES[metric]}"))
  return figure


def _lines(
  drawn: Sequence[tuple[str, str, Sequence[Mapping]]],
  style: Mapping[str, Mapping[str, Any]],
  across: int,
  limits: Mapping[str, float] | None = None,
) -> Figure:
  """Draws a panel for each (title, field, runs)."""
  columns = min(across, max(len(drawn), 1))
  rows = max(math.ceil(len(drawn) / columns), 1)
  figure, axes = grid(rows, columns, 3.9, 2.6)
  for axis in axes.flat[len(drawn) :]:
    axis.set_visible(False)
  for axis, (title, field, runs) in zip(axes.flat, drawn, strict=False):
    for run in runs:
      points = [(e["step"], e[field]) for e in run["entries"] if field in e]
      look = style[run["label"]]
      axis.plot(
        *zip(*points, strict=True) if points else ((), ()),
        color=look["color"],
        linestyle=look["linestyle"],
        marker=look["marker"],
        markevery=max(len(points) // 6, 1),
        markersize=4,
        linewidth=1.3,
        label=short(run["label"]),
      )
    if field in (limits or {}):
      axis.axhline(limits[field], color="black", linestyle=":", linewidth=1)
    axis.set_title(wrap(title))
    axis.set_xlabel("step")
    axis.locator_params(axis="x", nbins=5)
    axis.grid(color="0.5", alpha=0.25)
  legend(figure, axes)
  return figure


def _has(run: Mapping[str, Any], field: str) -> bool:
  return any(field in entry for entry in run["entries"])
