"""What a probe leaves in its workdir: read, grouped, in words."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_music import arrays, seal, typed
from ssl_music.errors import InputError
from ssl_music.metrics import METRICS
from ssl_music.text import printable

# How many of the best and of the worst tags are printed.
_SHOWN = 10
_ADVICE = "probe again in another workdir"
# As people write them.
TITLES = {
  "map_macro": "mAP (macro)",
  "roc_auc_macro": "ROC-AUC (macro)",
  "map_micro": "mAP (micro)",
  "roc_auc_micro": "ROC-AUC (micro)",
}


def read(folder: Path) -> dict[str, Any]:
  """Reads the scores that a probe left in its workdir.

  Raises:
    InputError: there are none, or they are damaged.
  """
  file = folder / "scores.json"
  if not file.exists():
    raise InputError(
      f"no scores in {folder} (it has no scores.json): give the workdir of a"
      " probe that has ended"
    )
  content = seal.read(folder, file.name, _ADVICE)
  scores = typed.parse(content, dict, file, _ADVICE)
  if "missing" not in scores:
    raise InputError(
      f"the scores in {folder} are an older program's, which did not count"
      " missing tracks: probe again in another workdir"
    )
  return scores


def read_probe(folder: Path) -> dict[str, Any]:
  """Reads a probe's scores, checked, with its resamples.

  Returns:
    what `read` does, with "name", "shares" and "sounding" filled in where an
    older probe left none, "folder", and "resamples": {metric: float64 [R]}, or
    None where there is no `resamples.npz`.

  Raises:
    InputError: no scores, not those of a probe, or damaged ones.
  """
  scores = read(folder)
  try:
    scores.setdefault("name", Path(scores["encoder"]).name)
    scores.setdefault("sounding", True)  # before there was a choice
    whole = {
      "share": 1.0,
      "tracks": scores["tracks"].get("train", 0),
      "test": scores["test"],
      "interval": scores["interval"],
    }
    scores["shares"] = sorted(
      scores.get("shares") or [whole], key=lambda one: one["share"]
    )
    numbers = [scores["tracks"]["test"], scores["missing"]["test"]]
    for one in (scores, *scores["shares"]):
      for metric in METRICS:
        low, high = one["interval"][metric]
        numbers += [one["test"][metric], low, high, one.get("share", 1.0)]
        numbers += one.get("by_draw", {}).get(metric, [])
    for one in scores["per_tag"].values():
      numbers += [one["ap"], one["roc_auc"], one["positives"]]
    sound = all(math.isfinite(n) for n in numbers)
    sound &= all(one["share"] > 0 for one in scores["shares"])
    words = ("name", "encoder", "data", "benchmark", "fingerprint")
    sound &= all(isinstance(scores[word], str) for word in words)
    sound &= isinstance(scores["left_out"], list)
    _ = scores["as_published"], scores["seeds"]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"{folder / 'scores.json'} is not a probe's, or is incomplete"
      f" ({type(error).__name__}: {error}): probe again in another workdir"
    ) from error
  if not sound:
    raise InputError(
      f"{folder / 'scores.json'} holds scores that are no finite numbers:"
      " probe again in another workdir"
    )
  return scores | {"folder": folder, "resamples": _read_resamples(folder)}


def _read_resamples(folder: Path) -> dict[str, np.ndarray] | None:
  file = folder / "resamples.npz"
  if not file.exists():
    return None
  content = seal.read(folder, file.name, _ADVICE)
  found = arrays.parse(content, file, _ADVICE)
  drawn = {name: found[name] for name in METRICS if name in found}
  shapes = {array.shape for array in drawn.values()}
  # A draw that has nothing to score is NaN.
  whole = len(drawn) == len(METRICS) and len(shapes) == 1
  whole = whole and len(shapes.pop()) == 1
  if not whole or not all(
    array.dtype == np.float64 and np.isfinite(array).any()
    for array in drawn.values()
  ):
    raise InputError(f"{file} is damaged (its arrays do not fit): {_ADVICE}")
  return drawn


def label(scores: Mapping[str, Any]) -> str:
  """Returns an encoder's name, with what else makes it another's score."""
  ways = ["teacher"] if scores.get("network") == "teacher" else []
  if scores.get("aggregation", "embeddings") != "embeddings":
    ways.append(f"mean of {scores['aggregation']}")
  if scores.get("sounding"):
    ways.append("sounding segments")
  if scores.get("hidden"):
    ways.append("hidden " + "-".join(map(str, scores["hidden"])))
  return scores["name"] + (f" ({', '.join(ways)})" if ways else "")


def names(runs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
  """Names runs by as much of their folders as tells them apart."""
  parts = [Path(run["folder"]).absolute().parts for run in runs]
  depth = 1
  while len({p[-depth:] for p in parts}) < len(parts) and depth < 50:
    depth += 1
  return {"/".join(p[-depth:]): run for p, run in zip(parts, runs, strict=True)}


def panels(
  probes: Iterable[Mapping[str, Any]],
) -> dict[str, dict[str, dict[str, Any]]]:
  """Groups probes by what they are scored on, then by encoder.

  Scores of two fingerprints never meet: such a data set's panels have the
  fingerprint in their titles. Nor do scores of one encoder that differ in some
  other setting than its seed: their labels have their folders.

  Args:
    probes: of `read_probe`, with "probe_recipe", `workdir.recipe` of their
      config, where it is known.

  Returns:
    {panel's title: {encoder's label: group of `group`}}, titles in alphabetical
    order, encoders by falling macro mAP.
  """
  found: dict[tuple[str, str], dict[str, list]] = {}
  for one in probes:
    key = one["data"], one["fingerprint"]
    found.setdefault(key, {}).setdefault(label(one), []).append(one)
  datasets = [data for data, _ in found]
  result = {}
  for (data, fingerprint), members in sorted(found.items()):
    title = data if datasets.count(data) == 1 else f"{data} ({fingerprint})"
    groups = {
      name: group(runs)
      for of_one, together in members.items()
      for name, runs in _apart(of_one, together).items()
    }
    result[title] = dict(
      sorted(groups.items(), key=lambda g: (-g[1]["test"]["map_macro"], g[0]))
    )
  return result


def _apart(
  name: str, runs: Sequence[Mapping[str, Any]]
) -> dict[str, Sequence[Mapping[str, Any]]]:
  """Returns runs that differ in their seeds alone together, others apart."""
  alike: dict[tuple, list] = {}
  for run in runs:
    recipes = run.get("recipe"), run.get("probe_recipe")
    alike.setdefault(recipes, []).append(run)
  groups = []
  for same in alike.values():
    seeds = {run.get("seed") for run in same}
    groups += [same] if len(seeds) == len(same) else [[run] for run in same]
  if len(groups) == 1:
    return {name: runs}
  folder = {id(run): short for short, run in names(runs).items()}
  where = lambda group: ", ".join(folder[id(run)] for run in group)
  return {f"{name} ({where(group)})": group for group in groups}


def group(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Averages probes of one encoder that differ in its pre-training's seed.

  Args:
    runs: one or more of `read_probe`, of one data set.

  Returns:
    {"runs"; "test": {metric: mean}; "interval": {metric: [low, high]}, the
    means of the runs' ends; "deviation": {metric: sample standard deviation
    over runs, or None of one}; "resamples": {metric: [R]}, the runs' mean draw
    by draw, or None where they do not agree; "shares": [{"share", "tracks",
    "test", "interval", "draws": {metric: all runs' draws}}], of the shares that
    all runs have; "per_tag": {tag: {"ap", "roc_auc", "positives"}}, of the tags
    that all have; "test_tracks": (tracks, missing), or None where the runs do
    not agree}.
  """
  first = runs[0]
  tracks = {(r["tracks"]["test"], r["missing"]["test"]) for r in runs}
  drawn = [r["resamples"] for r in runs]
  equal = len(tracks) == 1 and None not in drawn
  equal = equal and len({len(d["map_macro"]) for d in drawn}) == 1
  by_share = [{one["share"]: one for one in run["shares"]} for run in runs]
  common = sorted(set.intersection(*map(set, by_share)))
  tags = [t for t in first["per_tag"] if all(t in r["per_tag"] for r in runs)]
  return {
    "runs": sorted(runs, key=lambda r: (r.get("seed") or 0, str(r["folder"]))),
    **_average(runs),
    "deviation": {
      name: float(np.std([r["test"][name] for r in runs], ddof=1))
      if len(runs) > 1
      else None
      for name in METRICS
    },
    "resamples": {n: np.mean([d[n] for d in drawn], axis=0) for n in METRICS}
    if equal
    else None,
    "shares": [_share([one[share] for one in by_share]) for share in common],
    "per_tag": {
      tag: {
        key: float(np.mean([r["per_tag"][tag][key] for r in runs]))
        for key in ("ap", "roc_auc")
      }
      | {"positives": first["per_tag"][tag]["positives"]}
      for tag in tags
    },
    "test_tracks": tracks.pop() if len(tracks) == 1 else None,
  }


def _average(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  mean = lambda values: np.mean(values, axis=0).tolist()
  return {
    key: {name: mean([one[key][name] for one in scores]) for name in METRICS}
    for key in ("test", "interval")
  }


def _share(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  first = runs[0]
  draws = {
    name: [
      value
      for one in runs
      for value in one.get("by_draw", {}).get(name) or [one["test"][name]]
    ]
    for name in METRICS
  }
  return {
    "share": first["share"],
    "tracks": first.get("tracks", 0),
    **_average(runs),
    "draws": draws,
  }


def tidy(found: Mapping[str, Mapping[str, Mapping]]) -> list[dict[str, Any]]:
  """Returns a row for each data set, encoder, share and metric of `panels`."""
  rows = []
  for groups in found.values():
    for name, one in groups.items():
      first = one["runs"][0]
      fixed = {
        "data": first["data"],
        "benchmark": first["benchmark"],
        "as_published": first["as_published"],
        "fingerprint": first["fingerprint"],
        "encoder": name,
        "pretrainings": len(one["runs"]),
        "probe_seeds": first["seeds"],
        "test_tracks": (one["test_tracks"] or ("differ", ""))[0],
        "missing_test_tracks": (one["test_tracks"] or ("", "differ"))[1],
      }
      for at in one["shares"]:
        for metric in METRICS:
          low, high = at["interval"][metric]
          whole = at["share"] == 1
          rows.append(
            fixed
            | {
              "share": at["share"],
              "training_tracks": at["tracks"],
              "metric": metric,
              "score": at["test"][metric],
              "low": low,
              "high": high,
              "lowest_draw": min(at["draws"][metric]),
              "highest_draw": max(at["draws"][metric]),
              "deviation_over_pretrainings": one["deviation"][metric]
              if whole
              else None,
            }
          )
  return rows


def differences(
  configs: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
  """Finds the settings in which configs differ.

  Args:
    configs: {run: nested dict}.

  Returns:
    {dotted field: {run: value}}, without the runs that lack the field.
  """
  flat = {run: dict(_flatten(config)) for run, config in configs.items()}
  fields = sorted({field for one in flat.values() for field in one})
  result = {}
  for field in fields:
    values = {run: one[field] for run, one in flat.items() if field in one}
    distinct = {json.dumps(value, sort_keys=True) for value in values.values()}
    if len(distinct) > 1 or len(values) < len(flat):
      result[field] = values
  return result


def _flatten(config: Mapping, prefix: str = "") -> Iterable[tuple[str, Any]]:
  for key, value in config.items():
    if isinstance(value, dict) and value:
      yield from _flatten(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def table(scores: Sequence[Mapping[str, Any]]) -> str:
  """Returns a Markdown table, a row a probe, by data set and rising mAP.

  Args:
    scores: of `read_probe`. Of rows that would read the same, the encoder's
      name has the folder of the probe, too.
  """
  rows = [["encoder", "data", "tracks", *METRICS]]
  scores = sorted(scores, key=lambda s: (s["data"], s["test"]["map_macro"]))
  said = [(_encoder(one), data_name(one)) for one in scores]
  twice = [i for i, row in enumerate(said) if said.count(row) > 1]
  folders = names([scores[i] for i in twice])
  for i, folder in zip(twice, folders, strict=True):
    said[i] = f"{said[i][0]} ({folder})", said[i][1]
  for (encoder, data), one in zip(said, scores, strict=True):
    cells = [
      f"{one['test'][name]:.3f} [{one['interval'][name][0]:.3f},"
      f" {one['interval'][name][1]:.3f}]"
      for name in METRICS
    ]
    tracks = f"{one['tracks']['test']}{missing_test(one)}"
    rows.append([printable(encoder), printable(data), tracks, *cells])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  rows.insert(1, ["-" * width for width in widths])
  return "\n".join(
    "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
  )


def _encoder(scores: Mapping[str, Any]) -> str:
  name = scores.get("name", "")  # what learns the tags starts from an encoder
  if name == "supervised":
    return name
  teacher = " (teacher)" if scores.get("network") == "teacher" else ""
  tuned = " (fine-tuned)" if name.startswith("finetune:") else ""
  return f"{scores['encoder']}{teacher}{tuned}"


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


def averaging(scores: Mapping[str, Any]) -> str:
  """Returns what stands for a track, in words."""
  which = "sounding" if scores["sounding"] else "all"
  return f"mean of {scores['aggregation']} over {which} segments"


def by_tag(scores: Mapping[str, Any]) -> str:
  """Returns scores as lines to print, tags by falling average precision.

  Of many tags only the `_SHOWN` best and worst.
  """
  lines = [
    f"{scores['encoder']} on {data_name(scores)}:"
    f" {scores['tracks']['test']} test tracks{missing_test(scores)}"
    f" ({averaging(scores)}), mean of {scores['seeds']} probe seeds [95 %"
    " interval over tracks]"
  ]
  for name, value in scores["test"].items():
    low, high = scores["interval"][name]
    lines.append(f"  {name:15} {value:.3f} [{low:.3f}, {high:.3f}]")
  tags = sorted(scores["per_tag"].items(), key=lambda item: -item[1]["ap"])
  width = max(map(len, scores["per_tag"]))
  lines.append(f"  {'tag':{width}}  {'AP':>5} {'AUC':>5} positives")
  rows = [
    f"  {tag:{width}}  {one['ap']:.3f} {one['roc_auc']:.3f}"
    f" {one['positives']:9d}"
    for tag, one in tags
  ]
  if len(rows) > 2 * _SHOWN:
    others = f"  ({len(rows) - 2 * _SHOWN} other tags are in scores.json)"
    rows = [*rows[:_SHOWN], others, *rows[-_SHOWN:]]
  lines += rows
  if scores["left_out"]:
    some = ", ".join(scores["left_out"][:_SHOWN])
    more = len(scores["left_out"]) - _SHOWN
    lines.append(
      f"  left out, without a positive or a negative in test: {some}"
      + (f" and {more} more" if more > 0 else "")
    )
  return "\n".join(map(printable, lines))
