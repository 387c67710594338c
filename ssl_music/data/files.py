"""Finds the audio files under a folder."""

import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ssl_music.data import audio
from ssl_music.errors import InputError
from ssl_music.text import printable


def find_audio(source: str | os.PathLike) -> list[str]:
  """Returns the audio files under a folder, relative to it, sorted.

  Links are followed, each folder once. A folder that cannot be read is passed
  over, with a warning on stderr. Names that begin with "._" are no audio, but
  what a Mac leaves beside it.

  Raises:
    InputError: there is no such folder.
  """
  source = Path(source)
  if not source.is_dir():
    raise InputError(f"no folder {source}: give one with --source")
  known = audio.EXTENSIONS + audio.AV_EXTENSIONS
  found, seen = [], set()
  for folder, inner, files in os.walk(source, True, _warn, True):
    real = os.path.realpath(folder)
    if real in seen:  # a link that leads back
      inner.clear()
      continue
    seen.add(real)
    inner.sort()  # of several links to a folder, the first by name counts
    for file in files:
      extension = os.path.splitext(file)[1].lower()  # noqa: PTH122 ("" of ".mp3")
      if extension in known and not file.startswith("._"):
        found.append(os.path.relpath(os.path.join(folder, file), source))  # noqa: PTH118
  return sorted(found)


def _warn(error: OSError) -> None:
  print(
    f"warning: passed over folder {printable(error.filename)}"
    f" ({error.strerror})",
    file=sys.stderr,
  )


def finder(names: Iterable[str]) -> Callable[[str], str | None]:
  """Returns a function that finds a table's name among those on disk.

  An accent may be a letter's own (Unicode's NFC) or a sign behind it (NFD, as
  Macs write it). A name that is there is found as it is; of another, the one
  that differs in nothing else. None is what is not there, or not clear.

  Args:
    names: on disk.
  """
  alike = defaultdict(list)
  for name in names:
    alike[unicodedata.normalize("NFC", name)].append(name)

  def find(name: str) -> str | None:
    same = alike.get(unicodedata.normalize("NFC", name), [])
    if name in same:
      return name
    return same[0] if len(same) == 1 else None

  return find


def by_stem(
  paths: Sequence[str], endings: Sequence[str] = ("",)
) -> dict[str, str]:
  """Returns {path without ending and extension: path}.

  Publishers name a track's file NN/ID.mp3 in their tables, and people hold it
  as NN/ID.low.mp3 or NN/ID.opus.

  Args:
    paths: relative, with extensions.
    endings: before the extension, that are no part of a track's name, best
      first: of several files of a track the one with the first ending is
      taken, and of those the one whose extension comes first in
      `audio.EXTENSIONS`.
  """
  found: dict[str, tuple[tuple, str]] = {}
  extensions = audio.EXTENSIONS + audio.AV_EXTENSIONS
  for path in paths:
    bare, extension = os.path.splitext(path)  # noqa: PTH122 (str in, str out)
    ending = max(filter(bare.endswith, endings), key=len, default="")
    stem = bare.removesuffix(ending)
    order = (
      endings.index(ending) if ending in endings else len(endings),
      extensions.index(extension.lower()),
      path,
    )
    if stem not in found or order < found[stem][0]:
      found[stem] = (order, path)
  return {stem: path for stem, (_, path) in found.items()}
