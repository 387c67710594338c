"""Makes data sets: `python -m ssl_music.prepare folder --source=DIR`.

What is slow to import is imported in `main`: worker processes import this
module too, and need none of it.
"""

import argparse
import os
import re
import signal
import sys
from collections import Counter

from ssl_music.errors import InputError, report


def main(arguments: list[str] | None = None) -> int:
  """Prepares the data set that the command line names.

  Raises:
    InputError: what is wrong with the input, in one sentence.
  """
  options = _parser().parse_args(arguments)
  if not re.fullmatch(r"[a-z][a-z0-9_]*", options.name or options.kind):
    raise InputError(
      f"--name={options.name} is no data set's name: use lower-case letters,"
      " digits and _, a letter first"
    )
  # TFDS warns about what it finds in the environment; none of it concerns us.
  from absl import logging

  logging.set_verbosity(logging.ERROR)
  # As an exception, so that what is unfinished is removed.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  from ssl_music.data import demo, folder, tracks, writer

  if options.kind == "demo":
    plan = demo.plan()
  else:
    plan = folder.plan(
      options.source,
      manifest=options.manifest,
      max_seconds=options.max_seconds or None,
      seed=options.seed,
    )
  summary = writer.write(
    options.name or options.kind,
    **plan,
    data_dir=options.data_dir or tracks.default_data_dir(),
    min_seconds=options.min_seconds,
    processes=options.processes,
    overwrite=options.overwrite,
  )
  _print_summary(summary)
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m ssl_music.prepare",
    description="Turn audio into a data set of int16 PCM, 16 kHz mono.",
  )
  kinds = parser.add_subparsers(dest="kind", required=True)
  common = argparse.ArgumentParser(add_help=False)
  common.add_argument(
    "--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets"
  )
  common.add_argument(
    "--processes",
    type=_natural,
    default=len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count(),
    help="worker processes that decode; default: one a core",
  )
  common.add_argument(
    "--overwrite", action="store_true", help="replace a data set of this name"
  )
  demo = kinds.add_parser(
    "demo", parents=[common], help="the built-in synthetic music"
  )
  demo.set_defaults(name=None, min_seconds=4.0)
  own = kinds.add_parser(
    "folder", parents=[common], help="your own audio files"
  )
  own.add_argument("--source", required=True, help="folder, searched through")
  own.add_argument(
    "--manifest", help="CSV with columns path, tags, [artist], [split]"
  )
  own.add_argument("--name", help="of the data set; default: folder")
  own.add_argument(
    "--max_seconds",
    type=float,
    default=600,
    help="kept of each track, from its start; 0: all (default: %(default)s)",
  )
  own.add_argument(
    "--min_seconds",
    type=float,
    default=4,
    help="shorter tracks are skipped (default: %(default)s)",
  )
  own.add_argument(
    "--seed",
    type=int,
    default=0,
    help="of the split by artist, where the manifest has none",
  )
  return parser


def _natural(text: str) -> int:
  value = int(text)
  if value < 0:
    raise argparse.ArgumentTypeError(f"{value} is negative")
  return value


def _print_summary(summary: dict) -> None:
  prepared, skipped = summary["prepared"], summary["skipped"]
  total = sum(prepared.values())
  splits = ", ".join(f"{count} {split}" for split, count in prepared.items())
  print(
    f"{summary['name']}: {total} tracks prepared ({splits}),"
    f" {summary['seconds'] / 3600:.2f} hours, {len(skipped)} files skipped"
  )
  for path, reason in skipped[:20]:
    print(f"  skipped {path}: {reason}")
  if len(skipped) > 20:
    kinds = Counter(reason.split(" (")[0] for _, reason in skipped[20:])
    rest = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"  and {len(skipped) - 20} more: {rest}")
  print(f"data set: {summary['folder']}")
  print(f"skipped files: {summary['folder'] / 'skipped.csv'}")


if __name__ == "__main__":
  report(main)
