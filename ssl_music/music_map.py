"""A map of tracks: those that sound alike lie together, and can be heard.

Vectors are projected to two dimensions by t-SNE of their 50 largest principal
components. Of more than `_PROJECTED` tracks, only an even sample goes through
it, and each other track is placed among its nearest of those; of more than
`_DRAWN`, only an even sample is drawn. t-SNE keeps neighbours; distances
between groups mean little.
"""

import base64
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import soundfile
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from ssl_music import disk, drawing, neighbours, progress, template
from ssl_music.data import audio, files, tables, workers
from ssl_music.errors import InputError
from ssl_music.text import printable

_PROJECTED = 5000
_DRAWN = 50_000
_SMALL = 1000
_AMID = 5  # projected tracks that say where another one lies
_COMPONENTS = 50
_PERPLEXITY = 30.0  # about so many neighbours t-SNE looks at
# A page with clips holds 67 kB of text for each.
_MOST_CLIPS = 1000
_CLIP_SECONDS = 10
# Constant bit rate: 40 kbit/s at 16 kHz mono.
_MP3 = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.8}


def write(
  page: Path,
  paths: Sequence[str],
  means: np.ndarray,
  *,
  top: int = 10,
  embedded: bool = False,
  manifest: str | os.PathLike | None = None,
) -> int:
  """Writes the map, one HTML page that needs nothing from elsewhere.

  Args:
    page: its file; replaced as a whole.
    paths: of the tracks, absolute.
    means: float32 [tracks, D].
    top: neighbours of each track.
    embedded: whether the page holds a clip of each track, as mp3, which every
      browser plays; else it links to the files, relative to where it lies.
    manifest: CSV with `path` and `tags` (see `tables.tag_lists`), and perhaps
      `artist` and `title`. A row is of the tracks whose path ends with its
      path.

  Returns:
    how many tracks are drawn.

  Raises:
    InputError: the manifest is wrong, there are too many tracks to embed, or
      the page cannot be written.
  """
  if embedded and len(paths) > _MOST_CLIPS:
    raise InputError(
      f"clips of {len(paths)} tracks would make a page too large for a browser"
      f" (at most {_MOST_CLIPS}): give --audio=link"
    )
  about = (
    read_manifest(manifest, paths) if manifest else [("", [])] * len(paths)
  )
  chosen = evenly(len(paths), _DRAWN)
  paths, about = ([one[row] for row in chosen] for one in (paths, about))
  titles, tags = zip(*about, strict=True)
  means = means if len(chosen) == len(means) else means[chosen]
  space = neighbours.fit(means)
  own = np.arange(len(means))
  rows, cosines = neighbours.others(
    *neighbours.nearest(means, means, space, top + 1), own
  )
  page = page.absolute()
  data = {
    "tracks": names(paths),
    "titles": titles,
    "points": project(means, space).round(4).tolist(),
    "neighbours": rows.tolist(),
    "cosines": cosines.astype(np.float64).round(3).tolist(),
    "tags": tags,
    "colourings": colourings(paths, tags),
    "audio": _clips(paths) if embedded else links(paths, page.parent),
    "clipped": embedded,
    "palette": drawing.PALETTE,
  }
  with disk.explained("write", page, option="--map"):
    disk.write(page, template.page("map.html", data=data))
  return len(paths)


def evenly(count: int, most: int) -> np.ndarray:
  """Returns at most so many of the numbers below `count`, evenly spaced."""
  if count <= most:
    return np.arange(count)
  return np.linspace(0, count - 1, most).round().astype(int)


def project(vectors: np.ndarray, space: neighbours.Space) -> np.ndarray:
  """Lays vectors out in two dimensions; the same ones always in the same way.

  Args:
    vectors: float32 [N, D].
    space: of `neighbours.fit(vectors)`.

  Returns:
    float64 [N, 2], from 0 to 1, of both axes alike.
  """
  chosen = evenly(len(vectors), _PROJECTED)
  sample = vectors[chosen]
  points = _t_sne(neighbours.directions(sample, space))
  if len(chosen) < len(vectors):
    rows, _ = neighbours.nearest(vectors, sample, space, _AMID)
    # The median: a mean of some that lie far apart would lie nowhere.
    amid = np.median(points[rows], axis=1)
    amid[chosen] = points
    points = amid
  points = points - points.min(axis=0)
  extent = points.max()
  return points / extent if extent else points + 0.5


def _t_sne(directions: np.ndarray) -> np.ndarray:
  count, dimensions = directions.shape
  if count < 4:  # too few for it
    return np.stack([np.arange(count), np.zeros(count)], axis=1)
  if not directions.any():  # all vectors are alike
    return np.zeros((count, 2))
  components = min(count, dimensions, _COMPONENTS)
  perplexity = min(_PERPLEXITY, (count - 1) / 3)
  # Threads that wait for each other at every step of a small map take minutes
  # where others use the machine, too.
  with threadpool_limits(1 if count < _SMALL else None):
    reduced = PCA(components, random_state=0).fit_transform(directions)
    made = TSNE(perplexity=perplexity, random_state=0, n_jobs=-1)
    points = made.fit_transform(reduced.astype(np.float32))
  return points.astype(np.float64)


def names(paths: Sequence[str]) -> list[str]:
  """Returns paths without the folder that is common to all."""
  folder = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120 (str in, str out)
  return [os.path.relpath(path, folder) for path in paths]


def colourings(
  paths: Sequence[str], tags: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
  """Returns the ways in which the points can be coloured.

  Args:
    paths: of the tracks.
    tags: of each; those of a category are CATEGORY---TAG.

  Returns:
    {"name", "groups": names, the largest first, "of": the places of each
    track's groups, ascending}: by folder, and by the tags of each category.
  """
  folders = [[os.path.dirname(name) or "."] for name in names(paths)]  # noqa: PTH120 (str in, str out)
  found = [_colouring("folder", folders)]
  split = [[_category(tag) for tag in one] for one in tags]
  for category in sorted({name for one in split for name, _ in one}):
    mine = [[tag for name, tag in one if name == category] for one in split]
    found.append(_colouring(category, mine))
  return found


def _category(tag: str) -> tuple[str, str]:
  before, mark, after = tag.partition("---")
  return (before, after) if mark else ("tag", tag)


def _colouring(name: str, values: Sequence[Sequence[str]]) -> dict[str, Any]:
  counts = Counter(value for one in values for value in set(one))
  groups = sorted(counts, key=lambda value: (-counts[value], value))
  place = {value: index for index, value in enumerate(groups)}
  of = [sorted({place[value] for value in one}) for one in values]
  return {"name": name, "groups": groups, "of": of}


def read_manifest(
  manifest: str | os.PathLike, paths: Sequence[str]
) -> list[tuple[str, list[str]]]:
  """Returns the title, with the artist, and the tags of tracks; see `write`.

  Raises:
    InputError: the file is no such CSV, or names none of the tracks.
  """
  table = tables.read(manifest, needed=("path", "tags"))
  given = [os.path.normpath(path.strip()) for path in table.values("path")]
  artists, titles = (
    table.values(name) if name in table.columns else [""] * len(given)
    for name in ("artist", "title")
  )
  titles = map(_title, given, artists, titles)
  tags = tables.tag_lists(table.values("tags"))
  rows = dict(zip(given, zip(titles, tags, strict=True), strict=True))
  find = files.finder(rows)
  found = [_row_of(one, find) for one in paths]
  if not any(found):
    raise InputError(
      f"{manifest} names no track of the map: its paths must be the ends of"
      f" theirs, such as {printable(paths[0])}"
    )
  if others := [name for name in rows if name not in {*found}]:
    print(
      f"note: {len(others)} of {len(rows)} manifest rows name no track of"
      f" the map, such as {printable(others[0])}",
      file=sys.stderr,
    )
  return [rows[name] if name else ("", []) for name in found]


def _title(path: str, artist: str, title: str) -> str:
  """Returns "ARTIST – TITLE", or what is known of it; "" where nothing is."""
  artist, title = artist.strip(), title.strip()
  file = os.path.basename(path)  # noqa: PTH119 (str in, str out)
  return f"{artist} – {title or file}" if artist else title


def _row_of(path: str, find: Callable[[str], str | None]) -> str | None:
  """Returns the row of the longest ending of a path."""
  ending = path
  while (name := find(ending)) is None:
    _, mark, ending = ending.lstrip("/").partition("/")
    if not mark:
      return None
  return name


def links(paths: Sequence[str], folder: Path) -> list[str]:
  """Returns the address of each file as seen from a folder."""
  # Without a colon, which quote escapes, nothing is another kind of address.
  return [quote(os.path.relpath(path, folder)) for path in paths]


def _clips(paths: Sequence[str]) -> list[str]:
  """Returns a clip of each file as an address; "" where there is none."""
  processes = min(workers.cores(), len(paths)) if len(paths) > 9 else 0
  with workers.pool(processes) as run:
    clips = progress.bar(
      run(clip, paths), total=len(paths), unit="file", desc="clips"
    )
    return [
      f"data:audio/mpeg;base64,{base64.b64encode(made).decode()}"
      if isinstance(made, bytes) and made
      else ""
      for _, made in clips
    ]


def clip(path: str) -> bytes:
  """Returns the middle of a file as mp3; nothing where it cannot be read."""
  try:
    pcm = audio.to_pcm(audio.decode(path))
  except audio.AudioError:
    return b""
  length = _CLIP_SECONDS * audio.SAMPLE_RATE
  first = max(len(pcm) - length, 0) // 2
  with io.BytesIO() as file:
    soundfile.write(
      file, pcm[first : first + length], audio.SAMPLE_RATE, **_MP3
    )
    return file.getvalue()
