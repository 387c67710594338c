"""Makes data sets: `python -m ssl_music.prepare folder --source=DIR`.

`python -m ssl_music.prepare check folder --source=DIR` examines the same
source first. What is slow to import is imported where it is used: worker
processes import this module too, and need none of it.
"""

import argparse
import csv
import importlib
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssl_music import command_line, disk, interrupts
from ssl_music.data.workers import cores
from ssl_music.errors import InputError, report
from ssl_music.text import cells, printable

# Each kind is a module of `ssl_music.data`; here what its `plan` takes besides
# the source and --max_seconds.
KINDS = {
  "folder": ("manifest", "seed"),
  "magnatagatune": ("split", "split_files"),
  "mtg_jamendo": ("subset", "split", "audio_dir"),
  "million_song": ("split", "split_files", "paths", "tags"),
  "gtzan": (),
}
LOCAL = "local"  # the --runner that is none of Beam's


def main(arguments: list[str] | None = None) -> int:
  """Prepares or checks the data set that the command line names.

  Returns:
    the exit code: 1 where a check found something missing or unusable.

  Raises:
    InputError: what is wrong with the input, in one sentence.
  """
  arguments = sys.argv[1:] if arguments is None else arguments
  options = _parser().parse_args(arguments)
  if options.name and not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", options.name):
    raise InputError(
      f"--name={options.name} is no data set's name: use lower-case letters,"
      " digits and _, a letter first, 100 at most"
    )
  # TFDS warns about what it finds in the environment; none of it concerns us.
  from absl import logging

  logging.set_verbosity(logging.ERROR)
  from ssl_music.data import demo

  if options.kind == "demo":
    plan = demo.plan()
  else:
    plan = _plan(options) | {"max_seconds": options.max_seconds or None}
  if options.command == "check":
    return _check(options, plan, arguments)
  return _prepare(options, plan)


def _plan(options: argparse.Namespace) -> dict:
  """Reads the source's tables."""
  module = importlib.import_module(f"ssl_music.data.{options.kind}")
  own = {name: getattr(options, name) for name in KINDS[options.kind]}
  return module.plan(
    options.source, max_seconds=options.max_seconds or None, **own
  )


def _prepare(options: argparse.Namespace, plan: dict) -> int:
  from ssl_music.data import engine, tracks, writer

  if options.runner == LOCAL and options.runner_options:
    raise InputError(
      "--runner_options are for a runner of Apache Beam's: give --runner, too"
    )
  with interrupts.unwinding():
    summary = writer.write(
      options.name or plan["name"],
      plan,
      data_dir=options.data_dir or tracks.default_data_dir(),
      min_seconds=options.min_seconds,
      processes=options.processes,
      run=None
      if options.runner == LOCAL
      else engine.runner(options.runner, options.runner_options),
      overwrite=options.overwrite,
    )
  _print_summary(summary, plan)
  return 0


def _check(
  options: argparse.Namespace, plan: dict, arguments: list[str]
) -> int:
  from ssl_music.data import check, tracks, writer

  if options.report:
    _write_report(options.report, writer.SKIPPED, [])  # hours too early to fail
  found = check.examine(
    plan,
    options.source,
    sample=None if options.all else options.sample,
    min_seconds=options.min_seconds,
    processes=options.processes,
  )
  print(check.table(plan, found))
  lost = check.lost(found)
  if options.report:
    _write_report(options.report, writer.SKIPPED, lost)
    print(f"all that is absent or unusable: {options.report}")
  command = shlex.join(
    ["python", "-m", "ssl_music.prepare", *_without_check(arguments)]
  )
  print(
    check.advice(
      found,
      command=command,
      data_dir=Path(options.data_dir or tracks.default_data_dir()),
      processes=max(options.processes, 1),
    )
  )
  return 1 if lost else 0


def _without_check(arguments: Sequence[str]) -> list[str]:
  """Returns the arguments that prepare what these check."""
  left, said = list(arguments[1:]), []  # the first is "check"
  while left:
    one = left.pop(0)
    if one in ("--sample", "--report"):
      left.pop(0)
    elif one != "--all" and not one.startswith(("--sample=", "--report=")):
      said.append(one)
  return said


def _write_report(path: str, columns: Sequence[str], rows: list[dict]) -> None:
  with (
    disk.explained("write", path, option="--report"),
    Path(path).open("w", newline="", encoding="utf-8") as file,
  ):
    table = csv.DictWriter(file, columns)
    table.writeheader()
    table.writerows(map(cells, rows))


def _parser() -> command_line.Parser:
  parser = command_line.Parser(
    prog="python -m ssl_music.prepare",
    description="Turn audio into a data set of int16 PCM, 16 kHz mono.",
  )
  commands = parser.add_subparsers(dest="kind", required=True)
  demo = commands.add_parser(
    "demo", parents=[_common(), _running()], help="the built-in synthetic music"
  )
  demo.set_defaults(command="prepare", name=None, min_seconds=4.0)
  _add_kinds(commands, "prepare", [_common(), _sourced(), _running()])
  check = commands.add_parser(
    "check", help="examine a source: what is there, what is missing or broken"
  )
  kinds = check.add_subparsers(dest="kind", required=True)
  _add_kinds(kinds, "check", [_common(), _sourced(), _checking()])
  return parser


def _common() -> command_line.Parser:
  common = command_line.Parser(add_help=False)
  common.add_argument(
    "--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets"
  )
  common.add_argument(
    "--processes",
    type=command_line.natural,
    default=cores(),
    help="worker processes that decode; default: one a core",
  )
  common.add_argument(
    "--overwrite", action="store_true", help="replace a data set of this name"
  )
  return common


def _sourced() -> command_line.Parser:
  sourced = command_line.Parser(add_help=False)
  sourced.add_argument("--source", required=True, help="folder")
  sourced.add_argument("--name", help="of the data set; default: by its kind")
  sourced.add_argument(
    "--max_seconds",
    type=command_line.seconds,
    default=600,
    help="kept of each track, from its start; 0: all (default: %(default)s)",
  )
  sourced.add_argument(
    "--min_seconds",
    type=command_line.seconds,
    default=4,
    help="shorter tracks are skipped (default: %(default)s)",
  )
  return sourced


def _running() -> command_line.Parser:
  running = command_line.Parser(add_help=False)
  running.add_argument(
    "--runner",
    default=LOCAL,
    help="local: processes here; or a runner of Apache Beam's: DirectRunner,"
    " DataflowRunner, FlinkRunner, SparkRunner, … (default: %(default)s)",
  )
  running.add_argument(
    "--runner_options",
    type=shlex.split,
    default=[],
    help='flags for that runner, as in --runner_options="--parallelism=64"',
  )
  return running


def _checking() -> command_line.Parser:
  checking = command_line.Parser(add_help=False)
  checking.add_argument(
    "--sample",
    type=command_line.natural,
    default=200,
    help="tracks to decode (default: %(default)s)",
  )
  checking.add_argument("--all", action="store_true", help="decode all tracks")
  checking.add_argument(
    "--report", help="CSV to write with every absent or unusable track"
  )
  return checking


def _add_kinds(commands, command: str, parents: list) -> None:
  """Adds a parser for each of `KINDS`."""

  def add(kind: str, help: str) -> command_line.Parser:
    parser = commands.add_parser(kind, parents=parents, help=help)
    parser.set_defaults(command=command, kind=kind)
    return parser

  folder = add("folder", "your own audio files")
  folder.add_argument(
    "--manifest", help="CSV with columns path, tags, [artist], [split]"
  )
  folder.add_argument(
    "--seed",
    type=command_line.natural,
    default=0,
    help="of the split by artist, where the manifest has none",
  )
  mtat = add("magnatagatune", "MagnaTagATune, 50 tags")
  mtat.add_argument(
    "--split",
    choices=("cleaned", "12:1:3"),
    default="cleaned",
    help="which clips (default: %(default)s)",
  )
  mtat.add_argument(
    "--split_files", help="folder of *_list_pub.cP; default: SOURCE/MTAT_split"
  )
  jamendo = add("mtg_jamendo", "MTG-Jamendo, any of its five subsets")
  jamendo.add_argument(
    "--subset",
    choices=("top50", "genre", "instrument", "moodtheme", "all"),
    default="top50",
    help="which tags and tracks (default: %(default)s)",
  )
  jamendo.add_argument(
    "--split", type=int, choices=range(5), default=0, help="0 to 4"
  )
  jamendo.add_argument("--audio_dir", help="default: looked for in SOURCE")
  songs = add("million_song", "the Million Song Dataset, with your own audio")
  songs.add_argument(
    "--split",
    default="lastfm",
    help="lastfm, cals, or a CSV msd_id,split,tags (default: %(default)s)",
  )
  songs.add_argument(
    "--split_files", help="folder of the split; default: SOURCE/lastfm or /cals"
  )
  songs.add_argument(
    "--paths", help="CSV msd_id,path; default: SOURCE/paths.csv"
  )
  songs.add_argument(
    "--tags", help="vocabulary of a split of your own, a tag a line"
  )
  add("gtzan", "GTZAN, ten genres, fault-filtered split")


def _print_summary(summary: dict, plan: dict) -> None:
  from ssl_music.data.parts import ABSENT

  prepared = summary["prepared"]
  absent = [one for one in summary["skipped"] if one["reason"] == ABSENT]
  skipped = [one for one in summary["skipped"] if one["reason"] != ABSENT]
  splits = ", ".join(f"{count} {split}" for split, count in prepared.items())
  print(
    f"{summary['name']}: {sum(prepared.values())} tracks prepared ({splits}),"
    f" {summary['seconds'] / 3600:.2f} hours, {len(skipped)} files skipped,"
    f" {len(absent)} absent"
  )
  _print_list("skipped", [f"{s['path']}: {s['reason']}" for s in skipped])
  _print_list("absent", [one["path"] for one in absent])
  if len(skipped) > 20:
    kinds = Counter(one["reason"].split(" (")[0] for one in skipped)
    print(
      f"  skipped in all: {', '.join(f'{n} {k}' for k, n in kinds.items())}"
    )
  for note in plan["notes"]:
    print(f"note: {printable(note)}")
  print(f"data set: {summary['folder']}")
  print(f"skipped and absent: {summary['folder'] / 'skipped.csv'}")


def _print_list(what: str, items: list[str]) -> None:
  for item in items[:20]:
    print(f"  {what} {printable(item)}")
  if len(items) > 20:
    print(f"  and {len(items) - 20} more {what}")


if __name__ == "__main__":
  report(main)
