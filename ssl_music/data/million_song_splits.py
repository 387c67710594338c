"""Reads the splits of the Million Song Dataset; see `million_song`."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssl_music.data import pickles, plans, tables
from ssl_music.data.million_song_tags import LASTFM_TAGS
from ssl_music.errors import InputError
from ssl_music.text import utf8

LASTFM = {"train": 201_680, "validation": 11_774, "test": 28_435}
CHOI = {"train": 201_680, "validation": 12_634, "test": 28_540}
CALS = {"train": 163_504, "validation": 34_730, "test": 34_913}
TAGS = 50  # of each of these

_ID = re.compile("TR[A-Z]{5}[0-9A-F]{11}")
_EXAMPLE = "TRAADIN128F931D672"
_FILE_NAMES = {"train": "train", "validation": "valid", "test": "test"}
_OWN_SPLITS = {name: name for name in plans.SPLITS} | {"valid": "validation"}
_FILTERED = (
  "filtered_list_train.cP",
  "filtered_list_test.cP",
  "msd_id_to_tag_vector.cP",
)


class Split(NamedTuple):
  """A split as its files give it.

  Attributes:
    name: of the data set.
    title: for people; of a published split, the benchmark's name.
    tags: the vocabulary.
    tracks: {id: (split, tags)}, in the files' order.
    published: {split: count}, of the parts that are there; None if unknown.
    notes: sentences.
  """

  name: str
  title: str
  tags: list[str]
  tracks: dict[str, tuple[str, list[str]]]
  published: dict[str, int] | None
  notes: list[str]


def read_lastfm(root: Path) -> Split:
  """Reads the Last.fm split, in the newer form if all of it is there.

  Args:
    root: the folder of the split's files.

  Raises:
    InputError: they are not there, or wrong.
  """
  there = [name for name in _FILTERED if (root / name).is_file()]
  if len(there) == len(_FILTERED):
    return _read_filtered(root)
  parts, notes = _parts(root, "{}_x_msd_id.txt", "{}_y.npy")
  if not parts:
    absent = ", ".join(name for name in _FILTERED if name not in there)
    raise InputError(
      f"{root} holds no Last.fm split (neither {absent}, nor"
      " train_x_msd_id.txt with train_y.npy, nor these for valid or test): give"
      " its folder with --split_files"
    )
  if there:
    notes.append(
      f"{', '.join(there)} alone cannot be used, so the split is the one before"
      " short tracks were left out"
    )
  tags = _lastfm_tags(root / "50tagList.txt")
  found: dict = {}
  for part, (list_path, labels_path) in parts.items():
    lines = tables.read_lines(list_path)
    ids = [line for _, line in lines]
    names = _names(labels_path, pickles.load_array(labels_path), tags, len(ids))
    _add(
      found,
      zip(ids, [part] * len(ids), names, strict=True),
      lambda i, path=list_path, lines=lines: tables.where(path, lines[i][0]),
    )
  return Split(
    name="million_song_lastfm_choi",
    title="Million Song, Last.fm top 50 (Choi 2016)",
    tags=tags,
    tracks=found,
    published={part: CHOI[part] for part in parts},
    notes=notes,
  )


def _read_filtered(root: Path) -> Split:
  """Reads the lists of tracks of at least 29.1 s."""
  train_path, test_path, labels_path = (root / name for name in _FILTERED)
  tags = _lastfm_tags(root / "50tagList.txt")
  lists = [pickles.read_strings(path) for path in (train_path, test_path)]
  expected = LASTFM["train"] + LASTFM["validation"]
  if len(lists[0]) != expected:  # the split is a position in this list
    raise InputError(
      f"{train_path} lists {len(lists[0]):,} tracks, not {expected:,} (train,"
      " then validation): give the published file"
    )
  vectors = pickles.read(labels_path)
  if not isinstance(vectors, dict):
    raise InputError(
      f"{labels_path} holds no dict of vectors by id: give the published file"
    )
  vectors = {_text(key): vector for key, vector in vectors.items()}
  found: dict = {}
  for path, ids in zip((train_path, test_path), lists, strict=True):
    place = lambda i, path=path: f"{path}, item {i + 1}"
    rows = [
      _vector(labels_path, vectors, msd_id, len(tags), place(i))
      for i, msd_id in enumerate(ids)
    ]
    labels = np.stack(rows) if rows else np.zeros((0, len(tags)), bool)
    names = _names(labels_path, labels, tags, len(ids), ids)
    parts = ["test"] * len(ids)
    if path == train_path:
      parts = ["train"] * LASTFM["train"]
      parts += ["validation"] * LASTFM["validation"]
    _add(found, zip(ids, parts, names, strict=True), place)
  return Split(
    name="million_song_lastfm",
    title="Million Song, Last.fm top 50 (tracks of 29.1 s)",
    tags=tags,
    tracks=found,
    published=LASTFM,
    notes=[],
  )


def read_cals(root: Path) -> Split:
  """Reads the CALS split.

  Args:
    root: the folder of the split's files.

  Raises:
    InputError: they are not there, or wrong.
  """
  parts, notes = _parts(root, "{}_ids.npy", "{}_binaries.npy")
  if not parts:
    raise InputError(
      f"{root} holds no CALS split (neither train_ids.npy with"
      " train_binaries.npy, nor these for valid or test): give its folder with"
      " --split_files"
    )
  path = root / "cals_tags.npy"
  words = enumerate(_strings(path), 1)
  tags = _vocabulary(path, [(f"{path}, item {i}", w) for i, w in words], TAGS)
  lists = {part: (*pair, _strings(pair[0])) for part, pair in parts.items()}
  student = root / "student_ids.npy"
  if student.is_file():
    lists["unlabelled"] = (student, None, _strings(student))
  found: dict = {}
  for part, (list_path, labels_path, ids) in lists.items():
    if labels_path is None:
      names = [[] for _ in ids]
    else:
      labels = pickles.load_array(labels_path)
      names = _names(labels_path, labels, tags, len(ids))
    _add(
      found,
      zip(ids, [part] * len(ids), names, strict=True),
      lambda i, path=list_path: f"{path}, item {i + 1}",
    )
  return Split(
    name="million_song_cals",
    title="Million Song, CALS",
    tags=tags,
    tracks=found,
    published={part: CALS[part] for part in parts},
    notes=notes,
  )


def read_own(path: Path, tags_path: Path | None) -> Split:
  """Reads somebody's own split.

  Args:
    path: CSV with the columns `msd_id`, `split` and `tags`.
    tags_path: the vocabulary, a tag a line; None is that of the CSV.

  Raises:
    InputError: with line and column.
  """
  table = tables.read(path, needed=("msd_id", "split", "tags"))
  ids, parts = map(table.column, ("msd_id", "split"))
  tags = [] if tags_path is None else _lines_vocabulary(tags_path)
  known = set(tags)
  rows = []
  listed = tables.tag_lists(table.values("tags"))
  for (line, row), names in zip(table.rows, map(set, listed), strict=True):
    part = _OWN_SPLITS.get(row[parts].strip().lower())
    if part is None:
      raise InputError(
        f"{tables.where(path, line, 'split')}: unknown split"
        f" {row[parts]!r}: use one of {', '.join(plans.SPLITS)}"
      )
    place = tables.where(path, line, "tags")
    for tag in sorted(names - known):
      if tags_path is not None:
        raise InputError(
          f"{place}: tag {tag!r} is not in {tags_path}: add it there or remove"
          " it here"
        )
      _check_tag(place, tag)
      known.add(tag)
    if names and part == "unlabelled":
      raise InputError(
        f"{place}: an unlabelled track has tags: give it another split"
      )
    rows.append((row[ids].strip(), part, names))
  tags = tags or sorted(known)
  order = {tag: index for index, tag in enumerate(tags)}
  found: dict = {}
  _add(
    found,
    (
      (msd_id, part, [tags[i] for i in sorted(map(order.get, names))])
      for msd_id, part, names in rows
    ),
    lambda i: tables.where(path, table.rows[i][0], "msd_id"),
  )
  stem = re.sub("[^a-z0-9]+", "_", path.stem.lower()).strip("_") or "own"
  return Split(
    name=f"million_song_{stem}",
    title=f"Million Song, split of {utf8(path.name)}",
    tags=tags,
    tracks=found,
    published=None,
    notes=[],
  )


def _parts(root: Path, ids: str, labels: str) -> tuple[dict, list[str]]:
  """Returns {split: (ids' file, labels' file)} where both are, and notes."""
  parts, notes = {}, []
  for part, name in _FILE_NAMES.items():
    pair = tuple(root / form.format(name) for form in (ids, labels))
    absent = [path.name for path in pair if not path.is_file()]
    if absent:
      notes.append(
        f"{' and '.join(absent)} not there: the split has no {part} tracks"
      )
    else:
      parts[part] = pair
  return parts, notes


def _add(
  found: dict[str, tuple[str, list[str]]],
  rows: Iterable[tuple[str, str, list[str]]],
  place: Callable[[int], str],
) -> None:
  """Adds rows of (id, split, tags); `place` words where the i-th stands."""
  for i, (msd_id, part, names) in enumerate(rows):
    check_id(msd_id, lambda i=i: place(i))
    if msd_id in found:
      raise InputError(
        f"{place(i)} names {msd_id} again, which is in {found[msd_id][0]}"
        " already: keep each track once"
      )
    found[msd_id] = (part, names)


def check_id(msd_id: str, place: Callable[[], str]) -> None:
  """Raises an `InputError` where `msd_id` is none; `place` words the place."""
  if not _ID.fullmatch(msd_id):
    raise InputError(
      f"{place()}: {msd_id!r} is no track of the Million Song Dataset, such as"
      f" {_EXAMPLE}: correct it"
    )


def _check_tag(place: str, tag: str) -> None:
  if not tag or not tag.isprintable() or "|" in tag:
    raise InputError(
      f"{place}: tag {tag!r} is empty, not printable or holds a |: correct it"
    )


def _lastfm_tags(path: Path) -> list[str]:
  """Returns the split's tags; a list that is there must say the same."""
  if path.is_file():
    listed = zip(
      tables.read_lines(path), _lines_vocabulary(path, TAGS), strict=True
    )
    for ((line, _), tag), known in zip(listed, LASTFM_TAGS, strict=True):
      if tag != known:
        raise InputError(
          f"{tables.where(path, line)}: tag {tag!r}, where the published list"
          f" has {known!r}: give that, in its order"
        )
  return list(LASTFM_TAGS)


def _lines_vocabulary(path: Path, count: int | None = None) -> list[str]:
  lines = tables.read_lines(path)
  named = [(tables.where(path, line), tag) for line, tag in lines]
  return _vocabulary(path, named, count)


def _vocabulary(
  path: Path, named: Sequence[tuple[str, str]], count: int | None = None
) -> list[str]:
  """Returns the tags of (place, tag), in order, each once."""
  tags: dict[str, str] = {}
  for place, tag in named:
    _check_tag(place, tag)
    tag = unicodedata.normalize("NFC", tag)
    if tag in tags:
      raise InputError(f"{place} names tag {tag!r} again: keep it once")
    tags[tag] = place
  if len(tags) != (count or len(tags)) or not tags:
    raise InputError(
      f"{path} has {len(tags)} tags, not {count or 'any'}: give the whole list"
    )
  return list(tags)


def _strings(path: Path) -> list[str]:
  array = pickles.load_array(path)
  values = [_text(value) for value in array.tolist()] if array.ndim == 1 else []
  if array.ndim != 1 or not all(isinstance(value, str) for value in values):
    raise InputError(
      f"{path} is no list of text (shape {list(array.shape)}, {array.dtype}):"
      " give the published file"
    )
  return values


def _text(value: Any) -> Any:
  """Returns Python 2's text as Python 3's, anything else as it is."""
  return value.decode("latin-1") if isinstance(value, bytes) else value


def _vector(
  path: Path, vectors: dict, msd_id: str, count: int, place: str
) -> np.ndarray:
  """Returns a track's labels, [count]; the published ones are [count, 1]."""
  if msd_id not in vectors:
    raise InputError(
      f"{place}: track {msd_id!r} is not in {path}: give files of one download"
    )
  try:
    vector = np.ravel(vectors[msd_id])
  except ValueError:  # a ragged list
    vector = np.zeros(0)
  if vector.size != count or vector.dtype.kind not in "biuf":
    raise InputError(
      f"{path}, entry {msd_id!r} is no vector of {count} numbers: give the"
      " published file"
    )
  return vector


def _names(
  path: Path,
  labels: np.ndarray,
  tags: Sequence[str],
  tracks: int,
  ids: Sequence[str] | None = None,
) -> list[list[str]]:
  """Returns the tags of each row of labels.

  Args:
    path: where the labels are from.
    labels: [tracks, T], 0 or 1.
    tags: [T].
    tracks: their number.
    ids: what complaints call rows, instead of their number.
  """
  if labels.shape != (tracks, len(tags)) or labels.dtype.kind not in "biuf":
    raise InputError(
      f"{path} holds {labels.dtype} of shape {list(labels.shape)}, not 0 and 1"
      f" of shape {[tracks, len(tags)]} for its list's {tracks} tracks and"
      f" {len(tags)} tags: give files of one download"
    )
  wrong = np.argwhere((labels != 0) & (labels != 1))
  if len(wrong):
    row, column = wrong[0].tolist()
    item = f"item {row + 1}" if ids is None else f"entry {ids[row]!r}"
    raise InputError(
      f"{path}, {item}, column {tags[column]!r}: {labels[row, column]} is"
      " neither 0 nor 1: give the published file"
    )
  names: list[list[str]] = [[] for _ in range(tracks)]
  rows, columns = np.nonzero(labels)  # by row, then by column
  for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
    names[row].append(tags[column])
  return names
