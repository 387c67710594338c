"""Vectors for your own music: `python -m ssl_music.embed MUSIC --encoder=PATH`.

Whatever a folder holds already is passed over, so that the same command adds
what is new. `vectors` describes what is written, and reads it. What is slow to
import is imported where it is used: worker processes import this module too,
and need none of it.
"""

import argparse
import re
from pathlib import Path

from ssl_music import command_line, interrupts
from ssl_music.data.workers import cores
from ssl_music.errors import report
from ssl_music.text import printable


def main(arguments: list[str] | None = None) -> int:
  """Embeds the files and folders that the command line names.

  Returns:
    the exit code: 1 where a file could not be embedded, as `cp` and `tar` have
    it; the others are embedded nevertheless.

  Raises:
    InputError: what is wrong with the input, in one sentence.
  """
  options = _parser().parse_args(arguments)
  from ssl_music import embed_files, parallel, pretrained

  parallel.start()
  paths = embed_files.find(options.sources)
  encoder = pretrained.load(
    options.encoder, options.checkpoint, options.network, batch=options.batch
  )
  with interrupts.unwinding():
    done = embed_files.embed_files(
      encoder,
      paths,
      Path(options.out),
      hop=options.hop,
      kind=options.format,
      processes=options.processes,
      shard=options.shard,
    )
  _print_summary(done, Path(options.out), options.shard)
  return 1 if done.failed else 0


def _print_summary(done, folder: Path, shard: tuple[int, int] | None) -> None:
  from ssl_music import vectors

  print(
    f"{done.tracks} files embedded ({done.seconds / 3600:.2f} hours,"
    f" {done.segments} segments), {done.present} were there already,"
    f" {len(done.failed)} failed"
  )
  failed = sorted(done.failed.items())
  for path, reason in failed[:20]:
    print(printable(f"  failed {path}: {reason}"))
  if len(failed) > 20:
    print(f"  and {len(failed) - 20} more failed")
  if not done.merged:
    print(
      f"this was shard {shard[0]} of {shard[1]}: when all are done, the same"
      f" command without --shard merges them into one table in {folder}"
    )
    return
  about = done.about
  for name in vectors.FORMATS[about["format"]]:
    print(f"{folder / name}", end=" ")
  print(f"has {about['segments']} segments of {about['tracks']} files")
  if failed:
    print(f"failed: {folder / vectors.FAILED}")


def _parser() -> command_line.Parser:
  parser = command_line.Parser(
    prog="python -m ssl_music.embed",
    description="Embed music: a vector for every segment of every file.",
    epilog="Exit code: 0 if all files are embedded, 1 if some could not be, 2"
    " if nothing could be done. Interrupted, the same command goes on.",
  )
  parser.add_argument(
    "sources", nargs="+", metavar="FILE_OR_FOLDER", help="music"
  )
  parser.add_argument(
    "--encoder",
    required=True,
    help="workdir of a pre-training, probe or fine-tuning, an export, or a .pt"
    " or .safetensors file",
  )
  parser.add_argument(
    "--out", required=True, help="folder for the vectors, or with some"
  )
  parser.add_argument(
    "--checkpoint",
    default="latest",
    help="of a pre-training: latest, best or a step (default: %(default)s)",
  )
  parser.add_argument(
    "--network",
    choices=("student", "teacher"),
    default="student",
    help="where there are two (default: %(default)s)",
  )
  parser.add_argument(
    "--hop",
    type=command_line.seconds,
    metavar="SECONDS",
    help="from a segment's start to the next one's, a multiple of 0.1; default:"
    " a segment's length",
  )
  parser.add_argument(
    "--format",
    choices=("parquet", "npy"),
    default="parquet",
    help="a Parquet table, or .npy and .csv (default: %(default)s)",
  )
  parser.add_argument(
    "--batch",
    type=command_line.positive,
    default=32,
    help="segments that each device computes at once (default: %(default)s)",
  )
  parser.add_argument(
    "--processes",
    type=command_line.natural,
    default=cores(),
    help="worker processes that decode; default: one a core",
  )
  parser.add_argument(
    "--shard",
    type=_shard,
    metavar="I/N",
    help="the I-th of N parts of the files alone, 1/N to N/N, beside other"
    " processes or machines; a run without it merges",
  )
  return parser


def _shard(text: str) -> tuple[int, int]:
  found = re.fullmatch("([0-9]+)/([0-9]+)", text)
  if not found or not 1 <= int(found[1]) <= int(found[2]):
    raise argparse.ArgumentTypeError(f"{text!r} is none of 1/N, 2/N .. N/N")
  return int(found[1]), int(found[2])


if __name__ == "__main__":
  report(main)
