"""Compares probes: `python -m ssl_music.report WORKDIR...`."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_music.errors import InputError, report

METRICS = ("map_macro", "roc_auc_macro", "map_micro", "roc_auc_micro")


def main(arguments: list[str] | None = None) -> int:
  """Prints a Markdown table of the scores in some workdirs.

  Raises:
    InputError: a workdir has no scores.
  """
  parser = argparse.ArgumentParser(
    prog="python -m ssl_music.report",
    description="Print a table of probes' test scores.",
  )
  parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", type=Path)
  folders = parser.parse_args(arguments).workdirs
  print(table([read_scores(folder) for folder in folders]))
  return 0


def read_scores(folder: Path) -> dict[str, Any]:
  """Reads the scores that a probe left in its workdir.

  Raises:
    InputError: there are none.
  """
  try:
    return json.loads((folder / "scores.json").read_text())
  except (OSError, ValueError) as error:
    raise InputError(
      f"no scores in {folder} (its scores.json is missing or damaged): give the"
      " workdir of a probe that has ended"
    ) from error


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
    data = f"{one['data']} ({one['fingerprint']})"
    encoder = one["encoder"]
    encoder += " (teacher)" if one.get("network") == "teacher" else ""
    rows.append([encoder, data, str(one["tracks"]["test"]), *cells])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  rows.insert(1, ["-" * width for width in widths])
  return "\n".join(
    "| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows
  )


if __name__ == "__main__":
  report(main)
