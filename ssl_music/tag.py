"""Tags of your own music: `python -m ssl_music.tag MUSIC --encoder=PROBE`.

What is slow to import is imported where it is used: worker processes import
this module too, and need none of it.
"""

import contextlib
import csv
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ssl_music import command_line
from ssl_music.errors import InputError, report
from ssl_music.text import cell, printable, utf8

Tags = dict[str, float]


def main(arguments: list[str] | None = None) -> int:
  """Tags the files and folders that the command line names.

  Returns:
    the exit code: 1 where a file could not be tagged; the others are tagged
    nevertheless.

  Raises:
    InputError: what is wrong with the input, in one sentence.
  """
  options = _parser().parse_args(arguments)
  from ssl_music import embed_files, parallel, pretrained

  parallel.start()
  paths = embed_files.find(options.sources)
  encoder = pretrained.load(options.encoder)
  if encoder.head is None:
    raise InputError(
      f"the encoder {options.encoder} has no head to tag with: give the workdir"
      " of a probe of it, or of a fine-tuning"
    )
  failed = {}
  with _opened(options.out) as file:
    write = FORMATS[options.format](file)
    for path, tags in tag_files(encoder, paths):
      name = utf8(path)
      if isinstance(tags, str):
        failed[name] = tags
      else:
        write(name, dict(list(tags.items())[: options.top]))
  # Not on stdout, which is for programs to read.
  print(
    f"{len(paths) - len(failed)} files tagged, {len(failed)} failed",
    file=sys.stderr,
  )
  for name, reason in failed.items():
    print(printable(f"  failed {name}: {reason}"), file=sys.stderr)
  return 1 if failed else 0


def tag_files(
  encoder: Any, paths: Iterable[str]
) -> Iterator[tuple[str, Tags | str]]:
  """Tags files, while the next ones are being decoded.

  Args:
    encoder: of `pretrained.load`, with a head.
    paths: of files.

  Yields:
    (path, the probability of every tag, the highest first; or why the file
    cannot be tagged, in a few words).

  Raises:
    InputError: there is no room for the temporary files of long tracks, or
      worker processes cannot be started.
  """
  from ssl_music import disk, progress
  from ssl_music.data import cuts, workers

  paths = list(paths)
  length = cuts.blocks(encoder.seconds)
  # Of a single file a worker would take longer to start than to decode.
  processes = min(workers.cores(), len(paths)) if len(paths) > 1 else 0
  with (
    disk.temporary() as within,
    tempfile.TemporaryDirectory(dir=within) as folder,
    workers.pool(processes) as run,
    progress.bar(total=len(paths), unit="file", desc="tag") as bar,
  ):
    decode = cuts.Decode(length, length, Path(folder), "pcm")
    for (_, path), cut in run(decode, enumerate(paths)):
      bar.update()
      if isinstance(cut, str):
        yield path, cut
        continue
      if isinstance(cut.pcm, Path):  # a long track waits in a file
        file = cut.pcm
        cut = cut._replace(pcm=np.memmap(file, "<i2", "r"))
        file.unlink()
      yield path, encoder.tag_vectors(encoder.embed_cut(cut), cut.sounding)


def write_table(file: TextIO) -> Callable[[str, Tags], None]:
  """Returns a function that writes a file's tags for people to read."""

  def write(path: str, tags: Tags) -> None:
    rows = [f"  {value:.3f}  {tag}" for tag, value in tags.items()]
    file.writelines(f"{printable(line)}\n" for line in [path, *rows])

  return write


def write_lines(file: TextIO) -> Callable[[str, Tags], None]:
  """Returns a function that writes a line of JSON a file."""

  def write(path: str, tags: Tags) -> None:
    about = {"path": path, "tags": tags}
    file.write(printable(json.dumps(about, ensure_ascii=False)) + "\n")

  return write


def write_csv(file: TextIO) -> Callable[[str, Tags], None]:
  """Returns a function that writes a row a tag: path, tag, probability."""
  rows = csv.writer(file, lineterminator="\n")
  rows.writerow(("path", "tag", "probability"))

  def write(path: str, tags: Tags) -> None:
    for tag, value in tags.items():
      rows.writerow((cell(path), cell(tag), f"{value:.6f}"))

  return write


FORMATS = {"table": write_table, "json": write_lines, "csv": write_csv}


@contextlib.contextmanager
def _opened(out: str | None) -> Iterator[TextIO]:
  """Yields stdout, or a file that has its name when it is finished."""
  if out is None:
    yield sys.stdout
    return
  from ssl_music import disk

  partial = Path(f"{out}.partial")
  with disk.explained("write", out, option="--out"):
    with partial.open("w", encoding="utf-8", newline="") as file:
      yield file
    partial.rename(out)


def _parser() -> command_line.Parser:
  parser = command_line.Parser(
    prog="python -m ssl_music.tag",
    description="Tag music with a probe's head, or a fine-tuned network.",
    epilog="Exit code: 0 if all files are tagged, 1 if some could not be, 2 if"
    " nothing could be done.",
  )
  parser.add_argument(
    "sources", nargs="+", metavar="FILE_OR_FOLDER", help="music"
  )
  parser.add_argument(
    "--encoder",
    required=True,
    metavar="PATH",
    help="workdir of a probe or of a fine-tuning, or an export with a head",
  )
  parser.add_argument(
    "--format",
    choices=tuple(FORMATS),
    default="table",
    help="a table, a line of JSON a file, or CSV (default: %(default)s)",
  )
  parser.add_argument(
    "--top",
    type=command_line.positive,
    default=10,
    metavar="N",
    help="tags of a file, the likeliest first (default: %(default)s)",
  )
  parser.add_argument("--out", metavar="FILE", help="default: stdout")
  return parser


if __name__ == "__main__":
  report(main)
