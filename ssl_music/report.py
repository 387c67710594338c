"""Compares probes: `python -m ssl_music.report WORKDIR...`."""

import argparse
from pathlib import Path

from ssl_music import results
from ssl_music.errors import report


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
  print(results.table([results.read(folder) for folder in folders]))
  return 0


if __name__ == "__main__":
  report(main)
