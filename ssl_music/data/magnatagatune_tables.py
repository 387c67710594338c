"""Reads MagnaTagATune's tables; `magnatagatune` says what they are."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssl_music.data import pickles, tables
from ssl_music.errors import InputError

TOP = 50
FOLDERS = (
  dict.fromkeys("0123456789ab", "train")
  | {"c": "validation"}
  | dict.fromkeys("def", "test")
)
LISTS = {"train": "train", "validation": "valid", "test": "test"}


class Clips(NamedTuple):
  """The annotated clips.

  Attributes:
    path: of the table.
    ids: of each clip.
    paths: of each, as in the table, normalised.
    rows: {path without extension: index of the clip}.
    tags: the table's, in the header's order.
    labels: bool [clips, tags].
  """

  path: Path
  ids: list[str]
  paths: list[str]
  rows: dict[str, int]
  tags: list[str]
  labels: np.ndarray


class Chosen(NamedTuple):
  """What makes up a split.

  Attributes:
    clips: (split, index of the clip) in the order of the tables.
    columns: the vocabulary, as columns of `Clips.labels`.
    notes: sentences on what was noticed.
  """

  clips: list[tuple[str, int]]
  columns: list[int]
  notes: list[str]


def read_annotations(path: Path) -> Clips:
  """Reads annotations_final.csv.

  Raises:
    InputError: it is no such table, with line and column.
  """
  table = tables.read(path, needed=("clip_id", "mp3_path"), delimiter="\t")
  at_id, at_path = table.column("clip_id"), table.column("mp3_path")
  first, last = sorted((at_id, at_path))

  def tags_of(fields: list[str]) -> list[str]:
    return fields[:first] + fields[first + 1 : last] + fields[last + 1 :]

  tags = tags_of(table.columns)
  for tag in tags:
    if not tag.strip() or not tag.isprintable() or "|" in tag:
      raise InputError(
        f"{tables.where(path, 1, tag)} is no name of a tag: give it one that"
        " is printable, without |"
      )
  if not tags or not table.rows:
    raise InputError(
      f"{tables.where(path, 1)}: the table has {len(tags)} tags and"
      f" {len(table.rows)} clips: give the whole table"
    )
  lines: dict[str, int] = {}
  paths: list[str] = []
  rows: dict[str, int] = {}
  values = bytearray()
  for line, fields in table.rows:
    name = fields[at_id].strip()
    place = tables.where(path, line, "clip_id")
    if not name or not name.isprintable():
      raise InputError(f"{place}: {name!r} is no id: correct it")
    if name in lines:
      raise InputError(
        f"{place} names clip {name} again (first in line {lines[name]}): keep"
        " one row a clip"
      )
    lines[name] = line
    place = tables.where(path, line, "mp3_path")
    clip = tables.inside(fields[at_path], place)
    stem = _stem(clip)
    if clip.count("/") != 1 or clip[: clip.index("/")] not in FOLDERS:
      raise InputError(
        f"{place}: {clip!r} is not in one of the folders 0 to f, which decide"
        " its split: correct it"
      )
    if stem in rows:
      raise InputError(f"{place} names {clip} again: keep one row a clip")
    rows[stem] = len(paths)
    paths.append(clip)
    cells = tags_of(fields)
    if not {"0", "1"}.issuperset(cells):
      tag, cell = next(
        pair
        for pair in zip(tags, cells, strict=True)
        if pair[1] not in ("0", "1")
      )
      raise InputError(
        f"{tables.where(path, line, tag)}: {cell!r} is neither 0 nor 1:"
        " correct it"
      )
    values += "".join(cells).encode()
  labels = np.frombuffer(values, np.uint8).reshape(-1, len(tags)) == ord("1")
  return Clips(path, list(lines), paths, rows, tags, labels)


def read_artists(
  path: Path, ids: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
  """Reads clip_info_final.csv.

  Args:
    path: of it; where it is absent, no artist is known.
    ids: of the annotated clips.

  Returns:
    {id: artist}, and sentences on what was noticed.

  Raises:
    InputError: it is no such table, with line and column.
  """
  if not path.exists():
    return {}, [f"There is no {path}: artists are unknown."]
  table = tables.read(
    path, needed=("clip_id", "artist"), delimiter="\t", encoding="latin-1"
  )
  at_id, at_artist = table.column("clip_id"), table.column("artist")
  artists: dict[str, str] = {}
  for line, fields in table.rows:
    name = fields[at_id].strip()
    if name in artists:
      raise InputError(
        f"{tables.where(path, line, 'clip_id')} names clip {name!r} again: keep"
        " one row a clip"
      )
    artists[name] = fields[at_artist].strip()
  unknown = sum(not artists.get(name) for name in ids)
  notes = [f"{path} has no artist of {unknown} of the annotated clips."]
  return artists, notes if unknown else []


def top_tags(clips: Clips) -> list[int]:
  """Returns the columns of the most frequent tags, `TOP` at most.

  They are in the order of frequency over all clips, ties in the header's. A
  tag that no clip has is none of them.

  Raises:
    InputError: no clip has any tag.
  """
  counts = clips.labels.sum(axis=0)
  order = np.argsort(-counts, kind="stable")[:TOP]
  columns = [int(column) for column in order if counts[column]]
  if not columns:
    raise InputError(f"{clips.path}: no clip has a tag: give the whole table")
  return columns


def note_on_few(clips: Clips, columns: Sequence[int]) -> list[str]:
  """Returns a sentence where `top_tags` found fewer than `TOP`."""
  if len(columns) == TOP:
    return []
  unused = len(clips.tags) - len(columns)
  return [
    f"The vocabulary has {len(columns)} tags, not {TOP}: of the annotations'"
    f" {len(clips.tags)} tags, {unused} are of no clip and left out."
  ]


def read_lists(lists: Path, clips: Clips) -> Chosen:
  """Reads the published lists, and compares their labels if they are there.

  Args:
    lists: the folder.
    clips: the annotated ones.

  Raises:
    InputError: a list names an unknown clip, or one twice; the tags are not
      the annotations', or a label is not.
  """
  chosen: list[tuple[str, int]] = []
  first: dict[int, str] = {}
  parts: dict[str, list[int]] = {}
  for part, short in LISTS.items():
    path = lists / f"{short}_list_pub.cP"
    parts[part] = []
    for entry, text in enumerate(pickles.read_strings(path)):
      place = f"{path}, entry {entry}"
      stem = _stem(tables.inside(text, place))
      if stem not in clips.rows:
        raise InputError(
          f"{place}: {clips.path} has no clip {stem!r}: give the lists and the"
          " annotations of the same clips"
        )
      index = clips.rows[stem]
      if index in first:
        raise InputError(
          f"{place} names {stem} again (first in {first[index]}): a clip is in"
          " one split, once"
        )
      first[index] = f"{path.name}, entry {entry}"
      parts[part].append(index)
    chosen += [(part, index) for index in parts[part]]
  notes = []
  if (lists / "top50_tags.txt").exists():
    columns = read_tags(lists / "top50_tags.txt", clips)
    if columns != top_tags(clips):
      notes.append(
        f"The tags of {lists / 'top50_tags.txt'} are not the {TOP} most"
        " frequent ones in their order."
      )
  else:
    columns = top_tags(clips)
    notes += note_on_few(clips, columns)
  unchecked = []
  for part, short in LISTS.items():
    path = lists / f"y_{short}_pub.npy"
    if path.exists():
      _compare(path, clips, parts[part], columns)
    else:
      unchecked.append(path.name)
  if unchecked:
    notes.append(
      f"{lists} has no {' and no '.join(unchecked)} to compare the"
      " annotations with."
    )
  return Chosen(chosen, columns, notes)


def read_tags(path: Path, clips: Clips) -> list[int]:
  """Reads top50_tags.txt, with tags as in the annotations or in camel case.

  Returns:
    their columns of `clips.labels`.

  Raises:
    InputError: a tag is not of the annotations, or is there twice.
  """
  names = list(clips.tags)
  in_camel_case = [_camel_case(tag) for tag in names]
  columns: list[int] = []
  for line, tag in tables.read_lines(path):
    place = tables.where(path, line)
    spelled = names if tag in names else in_camel_case
    if spelled.count(tag) != 1:
      raise InputError(
        f"{place}: tag {tag!r} is {spelled.count(tag)} columns of"
        f" {clips.path}: give the list of tags that belongs to it"
      )
    if spelled.index(tag) in columns:
      raise InputError(f"{place} names tag {tag!r} again: remove one")
    columns.append(spelled.index(tag))
  if not columns:
    raise InputError(f"{path} is empty: give the whole list, or remove it")
  return columns


def _compare(
  path: Path, clips: Clips, rows: list[int], columns: list[int]
) -> None:
  """Refuses an array of labels that the annotations do not reproduce."""
  array = pickles.load_array(path)
  expected = clips.labels[np.ix_(rows, columns)]
  if array.shape != expected.shape:
    raise InputError(
      f"{path} is of shape {array.shape}, not {expected.shape} as its list has"
      " clips and the vocabulary tags: give the three that belong together"
    )
  if array.dtype.kind not in "biuf":
    raise InputError(
      f"{path} holds {array.dtype} instead of numbers: give the whole array"
    )
  neither = (array != 0) & (array != 1)
  wrong = neither if neither.any() else array != expected
  if not wrong.any():
    return
  row, column = np.argwhere(wrong)[0]
  place = (
    f"{path}, row {row} ({clips.paths[rows[row]]}), column {column}"
    f" ({clips.tags[columns[column]]!r})"
  )
  if neither.any():
    raise InputError(
      f"{place}: {array[row, column]} is neither 0 nor 1: give the whole array"
    )
  raise InputError(
    f"{place}: {int(array[row, column])} where {clips.path} has"
    f" {expected[row, column]:d}, as {wrong.sum()} labels differ: give the"
    " arrays, lists and list of tags that belong to the annotations"
  )


def _stem(path: str) -> str:
  return os.path.splitext(path)[0]  # noqa: PTH122 (str in, str out)


def _camel_case(tag: str) -> str:
  first, *others = tag.split()
  return first + "".join(word.capitalize() for word in others)
