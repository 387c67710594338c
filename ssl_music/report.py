"""Compares probes: `python -m ssl_music.report WORKDIR... [--out=DIR]`."""

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_music import (
  appendix,
  command_line,
  disk,
  drawing,
  lock,
  page,
  published,
  results,
  summary,
  workdir,
)
from ssl_music.errors import InputError, report
from ssl_music.text import cells, printable

PAGE = "index.html"  # by which a report's folder is known, too
_JOBS = ("pretrain", "probe", "finetune")


def main(arguments: list[str] | None = None) -> int:
  """Prints a Markdown table of the scores below some folders, or writes all.

  Raises:
    InputError: no scores there, or the report cannot be written.
  """
  parser = command_line.Parser(
    prog="python -m ssl_music.report",
    description="Print a table of probes' test scores, and write a report of"
    " them and their pre-trainings: index.html, results.md, results.csv,"
    " results.json, tags.csv, and the figures as PNG and SVG.",
  )
  parser.add_argument(
    "folders",
    nargs="+",
    metavar="WORKDIR",
    type=Path,
    help="a run's workdir, or a folder with such at any depth",
  )
  parser.add_argument(
    "--out",
    type=Path,
    help="folder of the report, replaced as a whole (default: WORKDIR/report,"
    " where one folder is given that holds more than a probe; else none is"
    " written)",
  )
  options = parser.parse_args(arguments)
  probes, trainings, skipped = find(options.folders)
  for line in skipped:
    print(printable(line), file=sys.stderr)
  out = options.out
  if out is None and len(options.folders) == 1:
    more = trainings or len(probes) > 1
    out = options.folders[0] / "report" if more else None
  if not probes and not trainings:
    raise InputError(_nothing(options.folders))
  if not probes and out is None:
    raise InputError(
      "these folders hold pre-trainings alone, whose curves go into a report:"
      " give --out=DIR"
    )
  if probes:
    print(results.table(probes))
  if out is not None:
    _write(probes, trainings, skipped, out)
    print(f"report: {out / PAGE}")
  return 0


def write(folders: Sequence[str | os.PathLike], out: str | os.PathLike) -> None:
  """Writes a report of all that some folders hold.

  Args:
    folders: workdirs, or folders with such at any depth.
    out: the report's folder; an older report there is replaced as a whole.

  Raises:
    InputError: there is no probe and no pre-training, or `out` cannot be
      written or holds something else.
  """
  probes, trainings, skipped = find(list(map(Path, folders)))
  if not probes and not trainings:
    raise InputError(_nothing(folders))
  _write(probes, trainings, skipped, Path(out))


def find(
  folders: Sequence[Path],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
  """Finds the runs in some folders, at any depth.

  Args:
    folders: where to look.

  Returns:
    probes, as `results.read_probe` gives them, with "config" ({} where it is
    missing) and "probe_recipe" (see `results.panels`); trainings {"folder",
    "label", "config", "entries": of its metrics.jsonl}; and a line for each run
    that was skipped, with the reason.

  Raises:
    InputError: a folder is none.
  """
  probes, trainings, skipped, seen = [], [], [], set()
  for top in folders:
    if not top.is_dir():
      raise InputError(
        f"no folder {top}: give the workdir of a run, or a parent"
      )
    for path, below, files in os.walk(top):
      below[:] = sorted(name for name in below if not name.startswith("."))
      folder = Path(path)
      if folder.resolve() in seen:
        continue
      seen.add(folder.resolve())
      try:
        config = workdir.read_config(folder) if "config.json" in files else {}
        probe, training = None, None
        if "scores.json" in files:
          probe = results.read_probe(folder)
          recipe = workdir.recipe(config) if config else None
          probes.append(probe | {"config": config, "probe_recipe": recipe})
        if {"config.json", "metrics.jsonl"} <= set(files):
          training = _training(folder, config, probe)
          trainings.append(training)
      except InputError as error:
        skipped.append(f"skipped {folder}: {error}")
        continue
      # A sweep has a config, too, and its runs below.
      if config.get("job") in _JOBS and not (probe or training):
        skipped.append(f"skipped {folder}: it has not ended, no scores yet")
  return probes, trainings, skipped


def _training(
  folder: Path, config: Mapping[str, Any], probe: Mapping[str, Any] | None
) -> dict[str, Any]:
  """Returns a training, whose label is that of its scores, if it has some."""
  label = (
    results.label(probe) if probe else config.get("pretext", {}).get("name")
  )
  if label is None:
    raise InputError("its config.json is not a pre-training's")
  entries = workdir.read_metrics(folder)
  if not entries:
    raise InputError("its metrics.jsonl has no entries yet")
  return {
    "folder": folder,
    "label": label,
    "config": config,
    "entries": entries,
  }


def _nothing(folders: Sequence[str | os.PathLike]) -> str:
  return (
    f"no scores in {', '.join(map(str, folders))} (no scores.json that can be"
    " read at any depth): give the workdir of a probe that has ended, or a"
    " folder of such"
  )


def _write(
  probes: Sequence[Mapping[str, Any]],
  trainings: Sequence[Mapping[str, Any]],
  skipped: Sequence[str],
  out: Path,
) -> None:
  """Writes a report beside its place, then puts it there."""
  out = out.resolve()  # "." has no name to write beside
  foreign = out.exists() and not (out.is_dir() and (out / PAGE).exists())
  if foreign and not (out.is_dir() and not any(out.iterdir())):
    raise InputError(
      f"{out} holds something else than a report: give another --out"
    )
  beside = out.with_name(f".{out.name}.partial")
  with (
    disk.explained("write the report", out, option="--out"),
    lock.hold(beside, "writing a report to", "give another --out"),
  ):
    try:
      partial, old = beside / "new", beside / "old"
      for stale in (partial, old):  # a killed process's
        shutil.rmtree(stale, ignore_errors=True)
      partial.mkdir()
      _fill(partial, probes, trainings, skipped)
      if out.exists():
        out.rename(old)
      partial.rename(out)
    finally:
      shutil.rmtree(beside, ignore_errors=True)


def _fill(
  folder: Path,
  probes: Sequence[Mapping[str, Any]],
  trainings: Sequence[Mapping[str, Any]],
  skipped: Sequence[str],
) -> None:
  panels = results.panels(probes)
  compared = summary.compare_all(panels)
  wide, narrow = _draw(folder, panels, trainings, compared)
  sections = summary.sections(panels, trainings, skipped, compared, wide)
  title = "Music tagging with frozen encoders" if panels else "Pre-training"
  about = appendix.about(probes, trainings)
  files = {
    "results.csv": _csv(results.tidy(panels)),
    "tags.csv": _csv(appendix.tag_rows(panels)),
    "results.json": _json(panels, compared, trainings, skipped),
    "results.md": page.markdown(title, about, sections),
  }
  for name, text in files.items():
    _put(folder / name, text)
  names = [name for name, text in files.items() if text]
  text = page.page(title, about, sections, (wide, narrow), names)
  _put(folder / PAGE, text)


def _draw(
  folder: Path, *found: Any
) -> tuple[dict[str, bytes], dict[str, bytes]]:
  """Writes all figures; returns them as SVG, and those for narrow screens.

  Args:
    folder: of the report.
    *found: as of `summary.figures_of`.
  """
  wide, narrow = {}, {}
  with drawing.settings():
    thin = dict(summary.figures_of(*found, across=1))
    for name, figure in summary.figures_of(*found):
      wide[name] = drawing.svg(figure)
      (folder / f"{name}.svg").write_bytes(wide[name])
      (folder / f"{name}.png").write_bytes(drawing.png(figure))
      if figure.axes[0].get_gridspec().ncols > 1:
        narrow[name] = drawing.svg(thin[name])
  return wide, narrow


def _json(
  panels: summary.Panels,
  compared: Mapping[str, Any],
  trainings: Sequence[Mapping[str, Any]],
  skipped: Sequence[str],
) -> str:
  found = {
    "scores": appendix.plain(panels),
    "comparison": compared,
    "published": published.beside_all(panels),
    "trainings": [
      {
        "folder": str(one["folder"]),
        "label": one["label"],
        "last": appendix.finite(one["entries"][-1]),
      }
      for one in trainings
    ],
    "skipped": skipped,
  }
  text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
  return text + "\n"


def _put(file: Path, text: str) -> None:
  # A path that is no text in this encoding shows question marks.
  file.write_text(text, encoding="utf-8", errors="replace")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
  if not rows:
    return ""
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(map(cells, rows))
  return buffer.getvalue()


if __name__ == "__main__":
  report(main)
