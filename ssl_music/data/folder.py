"""Somebody's own folder of audio, with or without a manifest."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ssl_music.data import audio, files, plans, tables
from ssl_music.data.plans import SPLITS
from ssl_music.errors import InputError
from ssl_music.text import utf8

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
_SPLIT_NAMES = {
  "": "",
  "train": "train",
  "training": "train",
  "validation": "validation",
  "valid": "validation",
  "val": "validation",
  "dev": "validation",
  "test": "test",
  "unlabelled": "unlabelled",
  "unlabeled": "unlabelled",
}


def plan(
  source: str | os.PathLike,
  *,
  manifest: str | os.PathLike | None = None,
  max_seconds: float | None = 600.0,
  seed: int = 0,
) -> dict:
  """Plans the data set of a folder; nothing is decoded yet.

  Without a manifest every file is "unlabelled", for pre-training. With one,
  its rows that have tags are train, validation or test; files that it does
  not name, and rows without tags, are "unlabelled".

  Args:
    source: the folder, searched recursively.
    manifest: CSV (UTF-8) with a header: `path` (relative to `source`), `tags`
      (see `tables.tag_lists`), and, where known, `artist` and `split`.
    max_seconds: how much of each track is kept, from its start; None is all.
    seed: of the split, where the manifest has none: 70/10/20 % of the tracks,
      no artist in two splits (no artist given: by track).

  Returns:
    a plan, see `plans`.

  Raises:
    InputError: the folder or its audio is missing, or the manifest is wrong.
  """
  source = Path(source)
  paths = files.find_audio(source)
  if not paths:
    raise InputError(
      f"no audio under {source} (looked for"
      f" {', '.join(audio.EXTENSIONS)}): give another --source"
    )
  labelled = {}
  if manifest:
    labelled = read_manifest(Path(manifest), source, paths)
    _make_splits(labelled, seed)
    named = {os.path.realpath(source / path) for path in labelled}
    paths = [p for p in paths if os.path.realpath(source / p) not in named]
  tracks = []
  for path in sorted(set(paths) | set(labelled)):
    row = labelled.get(path, {"split": "unlabelled", "tags": [], "artist": ""})
    tracks.append(
      {
        "id": utf8(path),
        "path": utf8(path),
        "file": str(source / path),
        **row,
      }
    )
  return plans.make(
    "folder",
    tracks,
    Load(max_seconds),
    tags=sorted({tag for track in tracks for tag in track["tags"]}),
    description=f"A folder of {len(tracks)} audio files.",
    notes=_notes(track["tags"] for track in tracks),
  )


class Load:
  """Decodes a track's file; as an object it pickles to worker processes."""

  def __init__(self, max_seconds: float | None):
    self._max_seconds = max_seconds

  def __call__(self, track: dict) -> Iterator[np.ndarray]:
    """Yields float32 blocks at 16 kHz of one of a plan's tracks."""
    return audio.stream(track["file"], max_seconds=self._max_seconds)


def read_manifest(
  manifest: Path, source: Path, there: Iterable[str]
) -> dict[str, dict]:
  """Reads a manifest.

  Args:
    manifest: see `plan`.
    source: the folder that its paths are relative to.
    there: the audio in it, of `files.find_audio`.

  Returns:
    {path: {"tags", "artist", "split"}}; rows without tags are left out, since
    no tag is no label.

  Raises:
    InputError: with line and column, when the file is missing or no such CSV,
      or a path is absent, twice there, or leaves the folder.
  """
  table = tables.read(manifest, needed=("path", "tags"))
  column = {name: table.columns.index(name) for name in table.columns}
  found: dict[str, dict] = {}
  missing, named = [], set()
  find = files.finder(there)
  tags = tables.tag_lists(table.values("tags"))
  for (line, fields), own in zip(table.rows, tags, strict=True):
    row = {
      name: fields[column[name]] if name in column else ""
      for name in ("path", "tags", "artist", "split")
    }
    place = tables.where(manifest, line, "path")
    path = tables.inside(row["path"], place)
    path = find(path) or path
    real = os.path.realpath(source / path)  # links give a file several names
    if real in named:
      raise InputError(f"{place} names {path} again: keep one row a file")
    named.add(real)
    if not os.path.isfile(source / path):  # noqa: PTH113 (never raises)
      missing.append(f"{path} (line {line})")
    found[path] = _row(row, own, manifest, line)
  if missing:
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise InputError(
      f"{manifest}: of {len(found)} rows, {len(missing)} name no file in"
      f" {source}: {', '.join(missing[:3])}{more}: add the files or remove the"
      " rows"
    )
  return {path: row for path, row in found.items() if row["tags"]}


def split_by_group(groups: Sequence[str], seed: int) -> list[str]:
  """Splits so that no group is in two splits, as near `SHARES` as they allow.

  Args:
    groups: one entry an item, such as its artist.
    seed: of the order in which groups are dealt out.

  Returns:
    the split of each item. Where there are three groups or more, none is
    empty.
  """
  names, sizes = np.unique(np.array(groups, object), return_counts=True)
  wanted = {name: share * len(groups) for name, share in SHARES.items()}
  empty = set(SHARES)
  split = {}
  order = np.random.default_rng(seed).permutation(len(names))
  for left, group in zip(range(len(order), 0, -1), order, strict=True):
    open_to = empty if left <= len(empty) else SHARES
    chosen = max(sorted(open_to), key=wanted.get)
    wanted[chosen] -= sizes[group]
    empty.discard(chosen)
    split[names[group]] = chosen
  return [split[group] for group in groups]


def _row(
  row: dict[str, str], tags: list[str], manifest: Path, line: int
) -> dict:
  bad = [tag for tag in tags if not tag.isprintable()]
  if bad:
    raise InputError(
      f"{tables.where(manifest, line, 'tags')}: tag {bad[0]!r} is not"
      " printable: correct it"
    )
  split = row["split"].strip().lower()
  place = tables.where(manifest, line, "split")
  if split not in _SPLIT_NAMES:
    raise InputError(
      f"{place}: unknown split {split!r}: use one of {', '.join(SPLITS)}"
    )
  if not tags and _SPLIT_NAMES[split] not in ("", "unlabelled"):
    raise InputError(
      f"{place}: a {split} track without tags: give it some, or the split"
      " unlabelled"
    )
  artist = unicodedata.normalize("NFC", row["artist"].strip())
  return {"tags": tags, "artist": artist, "split": _SPLIT_NAMES[split]}


def _notes(tags: Iterable[Sequence[str]]) -> list[str]:
  """Returns sentences on tags that may be meant otherwise."""
  counts = Counter(tag for one in tags for tag in one)
  notes, alike = [], defaultdict(list)
  for tag in sorted(counts):
    alike[tag.casefold()].append(f"{tag!r} ({counts[tag]} tracks)")
  notes += [
    f"tags {' and '.join(same)} differ in nothing but case: give them one name"
    " if they are one"
    for same in alike.values()
    if len(same) > 1
  ]
  listed = [tag for tag in counts if "," in tag or ";" in tag]
  if listed:
    notes.append(
      f"{len(listed)} tags hold a comma or semicolon, such as {listed[0]!r}:"
      " write | between two tags"
    )
  return notes


def _make_splits(labelled: dict[str, dict], seed: int) -> None:
  """Fills in the split where the manifest gives none at all."""
  without = [path for path, row in labelled.items() if not row["split"]]
  if 0 < len(without) < len(labelled):
    raise InputError(
      f"the manifest gives a split for some rows and none for"
      f" {len(without)}, such as {without[0]}: give it for all or for none"
    )
  paths = sorted(without)
  groups = [labelled[path]["artist"] or f"/{path}" for path in paths]
  for path, split in zip(paths, split_by_group(groups, seed), strict=True):
    labelled[path]["split"] = split
