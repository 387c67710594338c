"""The rest of a report: tags, settings, caveats, and all of it as data."""

import datetime
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_music import results

Panels = Mapping[str, Mapping[str, Mapping[str, Any]]]
# Test tracks, below which a caveat says what was simulated; see
# `bootstrap.interval`.
_FEW = 300
# What differs between probes anyway, or does not change their numbers.
_EXPECTED = ("encoder", "data.name", "data.data_dir", "cache_dir", "sweep")


def about(
  probes: Sequence[Mapping[str, Any]], trainings: Sequence[Mapping[str, Any]]
) -> str:
  """Returns when, by what and of what a report was made, as a sentence."""
  now = datetime.datetime.now(datetime.UTC)
  of = [
    f"{len(runs)} {what}{'s' * (len(runs) > 1)}"
    for what, runs in (("probe", probes), ("training", trainings))
    if runs
  ]
  return (
    f"Made on {now:%Y-%m-%d at %H:%M} UTC by ssl_music"
    f" {importlib.metadata.version('ssl_music')}, of {' and '.join(of)}; their"
    " folders are under Runs."
  )


def runs(
  panels: Panels, trainings: Sequence[Mapping[str, Any]]
) -> list[list[Any]]:
  """Returns a table of where all runs are, the header first."""
  rows: list[list[Any]] = [["folder", "what", "encoder", "data"]]
  for groups in panels.values():
    for name, one in groups.items():
      for run in one["runs"]:
        rows.append([str(run["folder"]), "probe", name, results.data_name(run)])
  for one in trainings:
    data = one["config"].get("data", {}).get("name")
    rows.append([str(one["folder"]), "training", one["label"], data])
  return rows


def tag_rows(panels: Panels) -> list[dict[str, Any]]:
  """Returns a row for each data set, encoder and tag."""
  return [
    {
      "data": one["runs"][0]["data"],
      "fingerprint": one["runs"][0]["fingerprint"],
      "encoder": name,
      "tag": tag,
      "positives": values["positives"],
      "ap": values["ap"],
      "roc_auc": values["roc_auc"],
    }
    for groups in panels.values()
    for name, one in groups.items()
    for tag, values in one["per_tag"].items()
  ]


def tag_table(groups: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
  """Returns AP by tag (falling positives) and encoder, the header first."""
  positives = {
    tag: values["positives"]
    for one in groups.values()
    for tag, values in one["per_tag"].items()
  }
  rows: list[list[Any]] = [["tag", "test positives", *groups]]
  for tag in sorted(positives, key=lambda t: (-positives[t], t)):
    values = [one["per_tag"].get(tag, {}).get("ap") for one in groups.values()]
    rows.append([tag, positives[tag], *values])
  return rows


def ends(trainings: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
  """Returns a table of how the pre-trainings ended, the header first."""
  fields = {
    "loss": "loss",
    "validation_map": "validation mAP",
    "validation_roc_auc": "validation ROC-AUC",
    "embedding_rank": "rank of embeddings",
    "projection_std": "spread of projections",
    "segments_per_second": "segments/s",
  }
  rows: list[list[Any]] = [["run", "task", "seed", "steps", *fields.values()]]
  rows[0].append("collapsed")
  for name, one in results.names(trainings).items():
    last: dict[str, float] = {}
    for entry in one["entries"]:  # the online probe's fields come now and then
      last |= finite(entry)
    rows.append(
      [name, one["label"], one["config"].get("seed"), int(last["step"])]
      + [last.get(field) for field in fields]
      + ["yes" if last.get("collapsed") else "no"]
    )
  return rows


def settings(
  probes: Sequence[Mapping[str, Any]], trainings: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Returns tables of the settings in which the runs differ."""
  blocks: list[dict[str, Any]] = []
  for what, runs in (("pre-trainings", trainings), ("probes", probes)):
    known = {
      name: run["config"]
      for name, run in results.names(runs).items()
      if run["config"]
    }
    if len(known) < 2:
      continue
    different = {
      field: values
      for field, values in results.differences(known).items()
      if what == "pre-trainings" or not field.startswith(_EXPECTED)
    }
    if not different:
      blocks.append(
        {"text": f"All {len(known)} {what} have the same settings."}
      )
      continue
    rows: list[list[Any]] = [["setting", *known]]
    for field, values in different.items():
      shown = [str(values[name]) if name in values else None for name in known]
      rows.append([field, *shown])
    blocks.append(
      {
        "table": rows,
        "caption": f"Settings in which the {len(known)} {what} differ"
        " (empty: has no such setting); each run's config.json has all",
        "folded": True,
      }
    )
  return blocks


def caveats(panels: Panels) -> list[str]:
  """Returns what has to be known to read the scores, one sentence each."""
  found = []
  for title, groups in panels.items():
    runs = [run for one in groups.values() for run in one["runs"]]
    first = runs[0]
    tracks = sorted({run["tracks"]["test"] for run in runs})
    few = ""
    if tracks[0] < _FEW:
      few = (
        " (few: in simulations intervals of mAP then held the truth in 78 to"
        " 93 % of cases, not in 95)"
      )
    found.append(
      f"{title}: {' or '.join(map(str, tracks))} test tracks{few},"
      f" {len(first['per_tag'])} tags, fingerprint {first['fingerprint']}."
    )
    if len(tracks) > 1:
      found.append(
        f"{title}: not all encoders were scored on the same number of test"
        " tracks; those that differ are not compared."
      )
    missing = sorted({run["missing"]["test"] for run in runs} - {0})
    if missing:
      found.append(
        f"{title}: {' or '.join(map(str, missing))} test tracks are missing, so"
        " that the scores are not the benchmark's."
      )
    if first["benchmark"] and first["as_published"] is None:
      found.append(
        f"{title}: whether the tables are {first['benchmark']}'s published ones"
        " was not verified."
      )
    elif first["benchmark"] and not first["as_published"]:
      found.append(
        f"{title}: the tables are not {first['benchmark']}'s published ones."
      )
    left_out = sorted({str(tag) for run in runs for tag in run["left_out"]})
    if left_out:
      found.append(
        f"{title}: left out of the averages, without a positive or a negative"
        f" among the test tracks: {', '.join(left_out)}."
      )
    bare = [n for n, one in groups.items() if one["resamples"] is None]
    if bare:
      found.append(
        f"{title}: no resamples that can be compared of {', '.join(bare)};"
        " where an older program scored them, their intervals of mAP are not"
        " corrected."
      )
    single = [
      n for n, g in groups.items() if n != "mel" and len(g["runs"]) == 1
    ]
    if single:
      found.append(
        f"{title}: one seed only of {', '.join(single)}, so that their scores"
        " say nothing of how much pre-training varies."
      )
  return found


def plain(panels: Panels) -> dict[str, dict[str, dict[str, Any]]]:
  """Returns panels as what JSON can hold."""
  keys = ("test", "interval", "deviation", "shares", "per_tag")
  of_run = ("encoder", "seed", "step", "network", "test", "interval", "by_seed")
  of_all = ("data", "benchmark", "as_published", "fingerprint", "left_out")
  return {
    title: {
      name: {key: one["runs"][0][key] for key in of_all}
      | {key: one[key] for key in keys}
      | {
        "runs": [
          {"folder": str(run["folder"])}
          | {k: run[k] for k in of_run if k in run}
          | {"tracks": run["tracks"], "missing": run["missing"]}
          for run in one["runs"]
        ]
      }
      for name, one in groups.items()
    }
    for title, groups in panels.items()
  }


def finite(entry: Mapping[str, float]) -> dict[str, float]:
  """Leaves out an entry's values that are no finite numbers."""
  return {k: v for k, v in entry.items() if math.isfinite(v)}
