"""What a probe leaves in `scores.json`, in words."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_music.errors import InputError

METRICS = ("map_macro", "roc_auc_macro", "map_micro", "roc_auc_micro")


def read(folder: Path) -> dict[str, Any]:
  """Reads the scores that a probe left in its workdir.

  Raises:
    InputError: there are none.
  """
  try:
    scores = json.loads((folder / "scores.json").read_text())
  except (OSError, ValueError) as error:
    raise InputError(
      f"no scores in {folder} (its scores.json is missing or damaged): give the"
      " workdir of a probe that has ended"
    ) from error
  if "missing" not in scores:
    raise InputError(
      f"the scores in {folder} are an older program's, which did not count"
      " missing tracks: probe again in another workdir"
    )
  return scores


def table(scores: Sequence[Mapping[str, Any]]) -> str:
  """Returns a Markdown table, a row a probe, by data set and rising mAP.

  Args:
    scores: what `probe.probe` returns.
  """
  rows = [["encoder", "data", "tracks", *METRICS]]
  for one in sorted(scores, key=lambda s: (s["data"], s["test"]["map_macro"])):
    cells = [
      f"{one['test'][name]:.3f} [{one['interval'][name][0]:.3f},"
      f" {one['interval'][name][1]:.3f}]"
      for name in METRICS
    ]
    tracks = f"{one['tracks']['test']}{missing_test(one)}"
    encoder = one["encoder"]
    encoder += " (teacher)" if one.get("network") == "teacher" else ""
    rows.append([encoder, data_name(one), tracks, *cells])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  rows.insert(1, ["-" * width for width in widths])
  return "\n".join(
    "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
  )


def data_name(scores: Mapping[str, Any]) -> str:
  """Returns what a score is of: data set, benchmark, fingerprint."""
  benchmark = scores["benchmark"]
  if benchmark and not scores["as_published"]:
    known = scores["as_published"] is False
    benchmark += ", other tables than published" if known else ", not verified"
  of = f"{benchmark}, " if benchmark else ""
  return f"{scores['data']} ({of}{scores['fingerprint']})"


def missing_test(scores: Mapping[str, Any]) -> str:
  """Returns " (3 missing)", or "" where every test track was scored."""
  missing = scores["missing"]["test"]
  return f" ({missing} missing)" if missing else ""


def by_tag(scores: Mapping[str, Any]) -> str:
  """Returns scores as lines to print, tags by falling average precision."""
  lines = [
    f"{scores['encoder']} on {data_name(scores)}:"
    f" {scores['tracks']['test']} test tracks{missing_test(scores)}, mean of"
    f" {scores['seeds']} probe seeds [95 % interval over tracks]"
  ]
  for name, value in scores["test"].items():
    low, high = scores["interval"][name]
    lines.append(f"  {name:15} {value:.3f} [{low:.3f}, {high:.3f}]")
  width = max(map(len, scores["per_tag"]))
  lines.append(f"  {'tag':{width}}  {'AP':>5} {'AUC':>5} positives")
  for tag, one in sorted(
    scores["per_tag"].items(), key=lambda item: -item[1]["ap"]
  ):
    lines.append(
      f"  {tag:{width}}  {one['ap']:.3f} {one['roc_auc']:.3f}"
      f" {one['positives']:9d}"
    )
  if scores["left_out"]:
    lines.append(
      "  left out, without a positive or a negative in test:"
      f" {', '.join(scores['left_out'])}"
    )
  return "\n".join(lines)
