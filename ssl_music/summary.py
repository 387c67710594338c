"""What a report says: its tables, figures and caveats, as `page` takes them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ssl_music import appendix, bootstrap, drawing, figures, published, results
from ssl_music.results import METRICS, TITLES

Panels = Mapping[str, Mapping[str, Mapping[str, Any]]]
# See `bootstrap.interval`.
_BIAS = (
  "For average precision (mAP), the dots lie above the score, since a resample"
  " repeats positives, and the score lies above what more test tracks would"
  " give, the more so the fewer the positives. The interval is corrected for"
  " both, so with few tracks it lies below the dots, and the score near its"
  " upper end."
)


def compare_all(panels: Panels) -> dict[str, dict[str, list[dict[str, Any]]]]:
  """Compares each pair of encoders on the same resamples.

  Args:
    panels: of `results.panels`.

  Returns:
    {panel's title: {metric: [{"first", "second", "difference", "interval",
    "probability"}, …]}}, for every ordered pair that was scored on the same
    test tracks.
  """
  return {
    title: {
      metric: [
        {"first": a, "second": b}
        | bootstrap.compare(
          one["resamples"][metric], other["resamples"][metric]
        )
        for a, one in groups.items()
        for b, other in groups.items()
        if a != b and _comparable(one, other)
      ]
      for metric in METRICS
    }
    for title, groups in panels.items()
  }


def _comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  drawn = [one["resamples"], other["resamples"]]
  if None in drawn or one["test_tracks"] is None:
    return False
  sizes = {len(d["map_macro"]) for d in drawn}
  if len(sizes) > 1 or one["test_tracks"] != other["test_tracks"]:
    return False
  # A draw that has nothing to score is NaN, and passed over.
  both = [drawn[0][metric] - drawn[1][metric] for metric in METRICS]
  return all(np.isfinite(differences).any() for differences in both)


def matrix(names: Sequence[str], pairs: Sequence[Mapping]) -> np.ndarray:
  """Returns the probabilities of pairs as [N, N], NaN where there is none."""
  place = {name: index for index, name in enumerate(names)}
  values = np.full((len(names), len(names)), np.nan)
  for pair in pairs:
    values[place[pair["first"]], place[pair["second"]]] = pair["probability"]
  return values


def figures_of(
  panels: Panels,
  trainings: Sequence[Mapping[str, Any]],
  compared: Mapping[str, Mapping[str, Sequence]],
  across: int = 3,
) -> Iterator[tuple[str, Figure]]:
  """Yields (file's name, figure) of all there is something to draw of.

  Args:
    panels: of `results.panels`.
    trainings: of `report.find`.
    compared: of `compare_all`.
    across: panels side by side, at most; 1 is for narrow screens.
  """
  labels = [name for groups in panels.values() for name in groups]
  style = drawing.styles(labels + [one["label"] for one in trainings])
  if panels:
    yield "scores", figures.scores(panels, style, across)
    if figure := figures.shares(panels, style, across):
      yield "shares", figure
  matrices = {
    title: {
      metric: (list(groups), matrix(list(groups), compared[title][metric]))
      for metric in figures.MACRO
    }
    for title, groups in panels.items()
    if compared[title]["map_macro"]
  }
  if matrices:
    yield "comparison", figures.comparison(matrices, across)
  for name, title in tag_figures(panels).items():
    yield name, figures.tags(title, panels[title])
  if trainings:
    yield "curves", figures.curves(trainings, style, across)
    yield "collapse", figures.collapse_signs(trainings, style, across)


def tag_figures(panels: Panels) -> dict[str, str]:
  """Returns {name of a tag figure's files: panel's title}."""
  names: dict[str, str] = {}
  for title, groups in panels.items():
    if not any(one["per_tag"] for one in groups.values()):
      continue
    safe = re.sub(r"[^A-Za-z0-9.-]+", "_", title).strip("_.")[:60] or "data"
    name = f"tags_{safe}"
    names[name if name not in names else f"{name}_{len(names)}"] = title
  return names


def sections(
  panels: Panels,
  trainings: Sequence[Mapping[str, Any]],
  skipped: Sequence[str],
  compared: Mapping[str, Mapping[str, Sequence[Mapping]]],
  drawn: Mapping[str, Any],
) -> list[dict[str, Any]]:
  """Returns a report's sections, as `page` describes them.

  Args:
    panels: of `results.panels`.
    trainings: of `report.find`.
    skipped: lines about runs that could not be read.
    compared: of `compare_all`.
    drawn: the names of the figures that there are.
  """
  probes = [
    run
    for groups in panels.values()
    for one in groups.values()
    for run in one["runs"]
  ]
  found = [
    ("Results", _results(panels)),
    ("Fewer labels", _shares(panels)),
    ("Comparison", _comparison(panels, compared)),
    ("Beside the published scores", _published(panels)),
    ("Tags", _tags(panels)),
    ("Pre-training", _trainings(trainings)),
    ("Settings", appendix.settings(probes, trainings)),
    (
      "Runs",
      [
        {
          "table": appendix.runs(panels, trainings),
          "caption": "Where the runs are",
          "folded": True,
        }
      ],
    ),
    ("Caveats", [{"items": appendix.caveats(panels) + list(skipped)}]),
  ]
  return [
    {
      "title": title,
      "blocks": [b for b in blocks if b.get("figure") in {None, *drawn}],
    }
    for title, blocks in found
    if blocks and blocks != [{"items": []}]
  ]


def _figure(name: str, alt: str, caption: str) -> dict[str, str]:
  return {"figure": name, "alt": alt, "caption": caption}


def _results(panels: Panels) -> list[dict[str, Any]]:
  if not panels:
    return []
  best = "; ".join(
    f"on {title}, {next(iter(groups))} is highest in macro mAP"
    f" ({next(iter(groups.values()))['test']['map_macro']:.3f})"
    for title, groups in panels.items()
  )
  blocks: list[dict[str, Any]] = [
    {
      "text": f"All labels: {best}. Whether that is more than chance, see the"
      " intervals and the comparison."
    },
    _figure(
      "scores",
      f"Test scores by encoder and data set: {best}.",
      "Scores on all labels. Large mark: the score; bar: its 95 %"
      " interval; dots: bootstrap resamples of the test tracks; ticks above:"
      " single pre-trainings, where there are several. " + _BIAS,
    ),
  ]
  for groups in panels.values():
    head = ["encoder", "runs", "test tracks"]
    rows: list[list[Any]] = [[*head, *(TITLES[m] for m in METRICS)]]
    for name, one in groups.items():
      tracks = one["test_tracks"]
      missing = f" ({tracks[1]} missing)" if tracks and tracks[1] else ""
      rows.append(
        [
          name,
          len(one["runs"]),
          (tracks[0], f"{tracks[0]}{missing}") if tracks else "differ",
          *(_score(one, metric) for metric in METRICS),
        ]
      )
    first = next(iter(groups.values()))["runs"][0]
    caption = f"{results.data_name(first)}: mean over probe seeds"
    if any(len(one["runs"]) > 1 for one in groups.values()):
      caption += (
        " and pre-trainings, ± standard deviation over these [95 % interval"
        " over test tracks, the mean of the pre-trainings']"
      )
    else:
      caption += " [95 % interval over test tracks]"
    blocks.append({"table": rows, "caption": f"{caption}."})
  return blocks


def _score(one: Mapping[str, Any], metric: str) -> tuple[float, str]:
  value, deviation = one["test"][metric], one["deviation"][metric]
  low, high = one["interval"][metric]
  spread = "" if deviation is None else f" ± {deviation:.3f}"
  return value, f"{value:.3f}{spread} [{low:.3f}, {high:.3f}]"


def _shares(panels: Panels) -> list[dict[str, Any]]:
  blocks: list[dict[str, Any]] = [
    _figure(
      "shares",
      "Test scores by the share of training tracks whose labels were used.",
      "Mean score by the share of the training tracks (logarithmic axis). Band:"
      " from the lowest to the highest draw of training tracks, not an interval"
      " over test tracks.",
    )
  ]
  for title, groups in panels.items():
    ticks = sorted({s["share"] for g in groups.values() for s in g["shares"]})
    if len(ticks) < 2:
      continue
    for metric in figures.MACRO:
      rows: list[list[Any]] = [["encoder", *(_percent(s) for s in ticks)]]
      for name, one in groups.items():
        at = {share["share"]: share for share in one["shares"]}
        rows.append([name, *(_draws(at.get(s), metric) for s in ticks)])
      blocks.append(
        {
          "table": rows,
          "caption": f"{title}: {TITLES[metric]} by share of the training"
          " tracks, mean (lowest–highest draw)",
          "folded": True,
        }
      )
  return blocks if len(blocks) > 1 else []


def _draws(at: Mapping[str, Any] | None, metric: str) -> Any:
  if at is None:
    return None
  value, draws = at["test"][metric], at["draws"][metric]
  if len(draws) == 1:
    return value
  return value, f"{value:.3f} ({min(draws):.3f}–{max(draws):.3f})"


def _percent(share: float) -> str:
  return f"{100 * share:g} %"


def _comparison(
  panels: Panels, compared: Mapping[str, Mapping[str, Sequence[Mapping]]]
) -> list[dict[str, Any]]:
  if not any(len(groups) > 1 for groups in panels.values()):
    return []
  blocks: list[dict[str, Any]] = [
    {
      "text": "Probability that the row's encoder is better than the column's:"
      " the share of bootstrap resamples of the test tracks, the same for both,"
      " in which it scores higher. Near 0.5 the test tracks cannot tell; the"
      " draw of the test tracks counts, that of a pre-training's seed does"
      " not. Empty: not scored on the same test tracks, or no resamples kept."
    },
    _figure(
      "comparison",
      "Matrices of the probability that one encoder is better than another.",
      "Rows against columns; violet: the row is better, orange: the column.",
    ),
  ]
  for title, groups in panels.items():
    names = list(groups)
    for metric in METRICS if len(names) > 1 else ():
      rows: list[list[Any]] = [["better than", *names]]
      differences = {
        (pair["first"], pair["second"]): pair
        for pair in compared[title][metric]
      }
      for name in names:
        pairs = [differences.get((name, other)) for other in names]
        rows.append([name, *(_pair(pair) for pair in pairs)])
      blocks.append(
        {
          "table": rows,
          "caption": f"{title}: {TITLES[metric]}, probability (difference and"
          " its 95 % interval)",
          "folded": True,
        }
      )
  return blocks


def _pair(pair: Mapping[str, Any] | None) -> Any:
  if pair is None:
    return None
  low, high = pair["interval"]
  return pair["probability"], (
    f"{pair['probability']:.2f} ({pair['difference']:+.3f}"
    f" [{low:+.3f}, {high:+.3f}])"
  )


def _published(panels: Panels) -> list[dict[str, Any]]:
  blocks: list[dict[str, Any]] = []
  for title, theirs in published.beside_all(panels).items():
    groups = panels[title]
    rows: list[list[Any]] = [["encoder"]]
    for word in ("mAP", "ROC-AUC"):
      rows[0] += [f"{word} here", f"{word} published"]
    for name in [*groups, *(n for n in theirs if n not in groups)]:
      cells: list[Any] = [name]
      for metric in figures.MACRO:
        ours = groups[name]["test"][metric] if name in groups else None
        cells += [ours, theirs.get(name, {}).get(metric)]
      rows.append(cells)
    blocks.append({"table": rows, "caption": f"{title}: all labels (Fig. 1)"})
    if not any(one["shares"] for one in theirs.values()):
      continue
    rows = [["encoder", *map(_percent, published.SHARES)]]
    for name, one in theirs.items():
      at = {}
      if name in groups:
        at = {
          s["share"]: s["test"]["map_macro"] for s in groups[name]["shares"]
        }
      rows.append(
        [f"{name}, published", *(one["shares"][s] for s in published.SHARES)]
      )
      rows.append([f"{name}, here", *(at.get(s) for s in published.SHARES)])
    blocks.append(
      {
        "table": rows,
        "caption": f"{title}: macro mAP by share of the labels (Fig. 2, whose"
        " 100 % differ from Fig. 1's)",
      }
    )
  if blocks:
    text = (
      f"Published: {published.SOURCE}; its encoders were {published.SCALE},"
      " another scale than here, so that a difference says little of the code."
    )
    return [{"text": text}, *blocks]
  return blocks


def _tags(panels: Panels) -> list[dict[str, Any]]:
  blocks: list[dict[str, Any]] = []
  for name, title in tag_figures(panels).items():
    caption = f"{title}: average precision by tag, all labels"
    blocks += [
      _figure(
        name,
        f"Heat map of average precision by tag and encoder on {title}.",
        f"{caption}; the most frequent tags on top. A rare tag's chance level"
        " is lower, so compare along a row.",
      ),
      {
        "table": appendix.tag_table(panels[title]),
        "caption": caption,
        "folded": True,
      },
    ]
  return blocks


def _trainings(
  trainings: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  if not trainings:
    return []
  return [
    _figure(
      "curves",
      "Loss by task, learning rate and online validation mAP over the steps.",
      "Losses of two tasks cannot be compared. The online probe looks at"
      " validation tracks alone.",
    ),
    _figure(
      "collapse",
      "Spread, effective rank and cosine of representations over the steps.",
      "Spread, effective rank and mean cosine of embeddings and projections,"
      " and what the clustering teacher's targets are like. Dotted: the limit"
      " beyond which a run counts as collapsed (of clustering by the targets,"
      " of supervised training never, of other tasks by the projections).",
    ),
    {
      "table": appendix.ends(trainings),
      "caption": "How the trainings ended, last value of each",
    },
  ]
