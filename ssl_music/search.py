"""What sounds alike: `python -m ssl_music.search FILE --embeddings=DIR`.

The nearest tracks to a file within a folder that `python -m ssl_music.embed`
has written, and a map of all of them.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_music import command_line
from ssl_music.errors import InputError, report
from ssl_music.text import printable, utf8


def main(arguments: list[str] | None = None) -> int:
  """Finds the neighbours of files, or draws the map, or both.

  Returns:
    the exit code: 1 where a file could not be embedded; the neighbours of the
    others are shown nevertheless.

  Raises:
    InputError: what is wrong with the input, in one sentence.
  """
  options = _parser().parse_args(arguments)
  from ssl_music import vectors

  if not options.files and options.map is None:
    raise InputError(
      "nothing to search for: give files, or --map=FILE.html for a map of all"
    )
  if options.map is None and (options.manifest or options.audio == "embed"):
    raise InputError(
      "--manifest and --audio=embed are for the map: give --map=FILE.html, too"
    )
  paths, means, about = vectors.read_tracks(options.embeddings)
  if not paths:
    raise InputError(
      f"{options.embeddings} holds no vector of any track: embed some with"
      " python -m ssl_music.embed"
    )
  failed = {}
  if options.files:
    encoder = load_encoder(about, options.embeddings, options.encoder)
    queries, failed = embed(encoder, options.files, about["hop"])
    found = search(queries, paths, means, options.top)
    for file, near in found.items():
      print(_FORMATS[options.format](utf8(file), near))
  for file, reason in failed.items():
    print(printable(f"failed {file}: {reason}"), file=sys.stderr)
  if options.map is not None:
    # Here, since scikit-learn is slow to import.
    from ssl_music import music_map

    drawn = music_map.write(
      Path(options.map),
      paths,
      means,
      top=options.top,
      embedded=options.audio == "embed",
      manifest=options.manifest,
    )
    # Not on stdout, which is for programs to read.
    print(
      f"map of {drawn} of {len(paths)} tracks: {options.map}", file=sys.stderr
    )
  return 1 if failed else 0


def load_encoder(
  about: Mapping[str, Any], folder: str | os.PathLike, path: str | None = None
):
  """Loads the encoder that a folder's vectors are of.

  Args:
    about: of `vectors.read_tracks`.
    folder: that it is of.
    path: where the encoder is; None is where the folder says.

  Returns:
    a `pretrained.Encoder`.

  Raises:
    InputError: there is none, or it is another one.
  """
  from ssl_music import parallel, pretrained

  parallel.start()
  said = about["encoder"]
  where = path or said["encoder"]
  if path is None and not Path(where).exists():
    raise InputError(
      f"the vectors in {folder} are of the encoder {where}, which is not there:"
      " start from the folder in which they were made, or give --encoder=PATH"
    )
  encoder = pretrained.load(
    where, said.get("step", "latest"), said.get("network", "student")
  )
  if encoder.identity != about["identity"]:
    raise InputError(
      f"the encoder {where} is not the one that made the vectors in {folder}"
      f" ({said['encoder']}; weights, settings or code differ): give that one,"
      " or embed anew into another folder"
    )
  return encoder


def embed(
  encoder: Any, files: Sequence[str | os.PathLike], hop: float
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the mean vector of files.

  Args:
    encoder: of `load_encoder`.
    files: audio of any format and length.
    hop: in seconds, as of the vectors to compare with.

  Returns:
    {file: float32 [D]}, and {file: why it has none}.
  """
  found, failed = {}, {}
  for file in map(str, files):
    try:
      found[file] = encoder.embed(file, hop=hop, mean=True)
    except InputError as error:
      failed[file] = str(error)
  return found, failed


def search(
  queries: Mapping[str, np.ndarray],
  paths: Sequence[str],
  means: np.ndarray,
  top: int,
) -> dict[str, list[tuple[str, float]]]:
  """Finds the tracks that are nearest to files.

  A file is no neighbour of its own: what is left out is what the file system
  says is the same file, by whatever name. A copy is another file.

  Args:
    queries: {file: float32 [D]}.
    paths: of the tracks.
    means: float32 [tracks, D].
    top: how many to find.

  Returns:
    {file: [(path, cosine)]}, the nearest first.
  """
  from ssl_music import neighbours

  if not queries:
    return {}
  # A file that is among the tracks is nearest to itself: one more will do.
  rows, cosines = neighbours.nearest(
    np.stack(list(queries.values())), means, neighbours.fit(means), top + 1
  )
  found = {}
  for file, near, values in zip(queries, rows, cosines, strict=True):
    pairs = [
      (paths[row], float(v)) for row, v in zip(near, values, strict=True)
    ]
    found[file] = [pair for pair in pairs if not _same(file, pair[0])][:top]
  return found


def _same(file: str, other: str) -> bool:
  if utf8(os.path.abspath(file)) == other:  # noqa: PTH100 (no links read)
    return True
  try:
    return os.path.samefile(file, other)  # noqa: PTH121 (str in, bool out)
  except (OSError, ValueError):  # a track that is gone
    return False


def _table(file: str, near: Sequence[tuple[str, float]]) -> str:
  rows = [
    f"  {rank:>3}  {cosine:6.3f}  {path}"
    for rank, (path, cosine) in enumerate(near, 1)
  ]
  return "\n".join(map(printable, [file, *rows]))


def _line(file: str, near: Sequence[tuple[str, float]]) -> str:
  named = [{"path": path, "cosine": cosine} for path, cosine in near]
  about = {"path": file, "neighbours": named}
  return printable(json.dumps(about, ensure_ascii=False))


_FORMATS = {"table": _table, "json": _line}


def _parser() -> command_line.Parser:
  parser = command_line.Parser(
    prog="python -m ssl_music.search",
    description="Find the nearest tracks to a file within an embedded folder,"
    " or draw a map of the folder to look at and listen to.",
    epilog="Exit code: 0, or 1 if some files could not be embedded, or 2 if"
    " nothing could be done.",
  )
  parser.add_argument("files", nargs="*", metavar="FILE", help="music")
  parser.add_argument(
    "--embeddings",
    required=True,
    metavar="DIR",
    help="a folder that python -m ssl_music.embed has written",
  )
  parser.add_argument(
    "--encoder",
    metavar="PATH",
    help="the encoder that made them; default: where it was then",
  )
  parser.add_argument(
    "--top",
    type=command_line.positive,
    default=10,
    metavar="N",
    help="neighbours of a file (default: %(default)s)",
  )
  parser.add_argument(
    "--format",
    choices=tuple(_FORMATS),
    default="table",
    help="a table, or a line of JSON a file (default: %(default)s)",
  )
  parser.add_argument(
    "--map",
    metavar="FILE.html",
    help="a page that shows all tracks, near where they sound alike",
  )
  parser.add_argument(
    "--audio",
    choices=("link", "embed"),
    default="link",
    help="of the map: play the files where they are, or put 10 s of each into"
    " the page (default: %(default)s)",
  )
  parser.add_argument(
    "--manifest",
    metavar="FILE.csv",
    help="of the map: a CSV with the columns path and tags, as prepare takes"
    " it; the map can then be coloured by tags",
  )
  return parser


if __name__ == "__main__":
  report(main)
