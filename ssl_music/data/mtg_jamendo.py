"""MTG-Jamendo: music under Creative Commons licences, tagged by uploaders.

Source: the repository MTG/mtg-jamendo-dataset on GitHub, which holds the tables
and the script that downloads the audio; the data set's page is
https://mtg.github.io/mtg-jamendo-dataset/.

Licence: of the tables CC BY-NC-SA 4.0; of the audio each track's own Creative
Commons licence (the repository's audio_licenses.txt).

Size: 55,701 whole tracks of at least 30 s ("raw_30s" is that, not excerpts):
508 GB of mp3 at 320 kbit/s ("audio"), or 156 GB of mono mp3 ("audio-low"); the
tracks with moods alone 152 GB or 46 GB.

Citation: Bogdanov, Won, Tovstogan, Porter and Serra, "The MTG-Jamendo Dataset
for Automatic Music Tagging", Machine Learning for Music Discovery Workshop,
ICML 2019.

Layout: the repository with the audio beside its `data`, or `data` alone and the
audio elsewhere. Without a folder of its own given, audio is searched for in
`AUDIO_DIRS`; files keep the publisher's names but for the extension.

    SOURCE/
      data/
        splits/split-{0..4}/autotagging{_top50tags,_genre,_instrument,
          _moodtheme,}-{train,validation,test}.tsv
        tags/{top50,moodtheme_split}.txt
      audio/{00..99}/ID.mp3, or audio-low/{00..99}/ID.low.mp3

The tables are separated by tabs, unquoted and ragged, some with CRLF and some
with LF: TRACK_ID, ARTIST_ID, ALBUM_ID, PATH, DURATION (seconds) and TAGS, from
which on every field is a tag, `category---name`. No artist is in
two parts of a split.

Tracks of split 0 (splits 1 to 4 deal out the artists in other ways):

    | subset     | tags |  train | validation |   test |
    | top50      |   50 | 32,136 |     10,888 | 11,356 |
    | genre      |   87 | 32,572 |     11,043 | 11,479 |
    | instrument |   40 | 14,395 |      5,466 |  5,115 |
    | moodtheme  |   56 |  9,949 |      3,802 |  4,231 |
    | all        |  183 | 32,859 |     11,101 | 11,565 |
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ssl_music.data import files, folder, plans, tables
from ssl_music.errors import InputError
from ssl_music.text import utf8

SPLITS = range(5)
# Where the audio is looked for; where most of it is counts. The download script
# puts the folders 00 to 99 right into the one that it is given.
AUDIO_DIRS = (
  "audio",
  "audio-low",
  "raw_30s/audio",
  "raw_30s/audio-low",
  "raw_30s",
  "autotagging_moodtheme/audio",
  "autotagging_moodtheme/audio-low",
  "autotagging_moodtheme",
  ".",
)
_CATEGORIES = "genre", "instrument", "mood/theme"
# Of each subset: the beginning of its tables' names, its tags' categories and
# their number in every split.
SUBSETS = {
  "top50": ("autotagging_top50tags", _CATEGORIES, 50),
  "genre": ("autotagging_genre", ("genre",), 87),
  "instrument": ("autotagging_instrument", ("instrument",), 40),
  "moodtheme": ("autotagging_moodtheme", ("mood/theme",), 56),
  "all": ("autotagging", _CATEGORIES, 183),
}
# MTG's lists of a subset's tags (moodtheme.txt has three that no split has).
TAG_LISTS = {"top50": "top50.txt", "moodtheme": "moodtheme_split.txt"}
# Of split 0: the tracks in each part, `plans.fingerprint`, `plans.label_hash`.
PUBLISHED = {
  "top50": ((32_136, 10_888, 11_356), "0dd489904017", "a602fe331726"),
  "genre": ((32_572, 11_043, 11_479), "6fa82a896ce1", "764cb828a8c1"),
  "instrument": ((14_395, 5_466, 5_115), "953f18e3b8fa", "3d09408d419c"),
  "moodtheme": ((9_949, 3_802, 4_231), "9651cbd0d27d", "ed554fed80d7"),
  "all": ((32_859, 11_101, 11_565), "b2406f1b140e", "f7a65012e7d0"),
}
_CITATION = """\
@inproceedings{bogdanov2019mtg,
  author = {Bogdanov, Dmitry and Won, Minz and Tovstogan, Philip and
            Porter, Alastair and Serra, Xavier},
  title = {The {MTG-Jamendo} Dataset for Automatic Music Tagging},
  booktitle = {Machine Learning for Music Discovery Workshop, International
               Conference on Machine Learning (ICML)},
  year = {2019},
  address = {Long Beach, CA, United States},
  url = {http://hdl.handle.net/10230/42015}
}"""
_LICENCE = (
  "The tables are under CC BY-NC-SA 4.0, each track's audio under its own"
  " Creative Commons licence (audio_licenses.txt of the repository)."
)


def plan(
  source: str | os.PathLike,
  *,
  subset: str = "top50",
  split: int = 0,
  audio_dir: str | os.PathLike | None = None,
  max_seconds: float | None = 600.0,
) -> dict:
  """Plans a subset of MTG-Jamendo; nothing is decoded yet.

  Tags are in alphabetical order of `category---name`, as in MTG's own lists.
  Where the list of the subset is there, it is the vocabulary.

  Args:
    source: the repository's folder, or its `data`; see the module's layout.
    subset: one of `SUBSETS`.
    split: 0 to 4.
    audio_dir: the folder that holds the audio's folders 00 to 99, or holds one
      of `AUDIO_DIRS` that does; None is `source`.
    max_seconds: how much of each track is kept, from its start; None is all.

  Returns:
    a plan, see `plans`, with a track for each row of the tables.

  Raises:
    InputError: a folder or table is missing, or a table is wrong; with file,
      line and column.
  """
  source = Path(source)
  if subset not in SUBSETS:
    raise InputError(
      f"unknown subset {subset!r}: use one of {', '.join(SUBSETS)}"
    )
  if split not in SPLITS:
    raise InputError(f"unknown split {split!r}: use one of 0, 1, 2, 3, 4")
  _, categories, expected = SUBSETS[subset]
  data = _data_folder(source)
  paths = _table_paths(data, subset, split)
  listed = _read_list(data, subset)
  tracks = _read_tables(paths, categories, listed)
  used = sorted({tag for track in tracks for tag in track["tags"]})
  tags = listed or used
  notes = []
  if len(tags) != expected:
    notes.append(
      f"the tables have {len(tags)} tags, where MTG's subset {subset} has"
      f" {expected}"
    )
  if unused := sorted(set(tags) - set(used)):
    notes.append(
      f"{len(unused)} of the {len(tags)} tags of {TAG_LISTS[subset]} are on"
      f" no track: {', '.join(unused)}"
    )
  if split != 0:
    notes.append(f"no counts of split {split} are on record here")
  notes.append(_find_files(tracks, source, audio_dir))
  count = plans.count(tracks)
  suffix = f"_split{split}" if split else ""
  counts, fingerprint, labels = PUBLISHED[subset]
  published = {
    "tracks": dict(zip(plans.SCORED, counts, strict=True)),
    "fingerprint": fingerprint,
    "labels": labels,
  }
  return plans.make(
    f"mtg_jamendo_{subset}{suffix}",
    tracks,
    folder.Load(max_seconds),
    tags=tags,
    description=(
      f"MTG-Jamendo, subset {subset}, split {split}: {len(tags)} tags;"
      f" {count['train']:,} tracks for training, {count['validation']:,} for"
      f" validation, {count['test']:,} for testing."
    ),
    citation=_CITATION,
    licence=_LICENCE,
    benchmark=f"MTG-Jamendo {subset}, split {split}",
    published=None if split else published,
    notes=notes,
  )


def _data_folder(source: Path) -> Path:
  """Returns the folder that holds `splits`: `source` or its `data`."""
  if not source.is_dir():
    raise InputError(f"no folder {source}: give one with --source")
  for data in (source / "data", source):
    if (data / "splits").is_dir():
      return data
  raise InputError(
    f"neither data/splits nor splits is a folder in {source}: give the folder"
    " of the repository mtg-jamendo-dataset with --source"
  )


def _table_paths(data: Path, subset: str, split: int) -> dict[str, Path]:
  """Returns {part: its table}, all of which are there."""
  home = data / "splits" / f"split-{split}"

  def paths(of: str) -> dict[str, Path]:
    table = SUBSETS[of][0]
    return {part: home / f"{table}-{part}.tsv" for part in plans.SCORED}

  if not home.is_dir():
    there = sorted(
      path.name for path in home.parent.glob("split-*") if path.is_dir()
    )
    raise InputError(
      f"no folder {home} (there: {', '.join(there) or 'none'}): choose another"
      " split, or add the repository's folder"
    )
  wanted = paths(subset)
  absent = [path.name for path in wanted.values() if not path.is_file()]
  if absent:
    there = [
      of for of in SUBSETS if all(path.is_file() for path in paths(of).values())
    ]
    raise InputError(
      f"no {' and no '.join(absent)} in {home} (subsets that are there:"
      f" {', '.join(there) or 'none'}): choose another subset, or add the"
      " repository's tables"
    )
  return wanted


def _read_list(data: Path, subset: str) -> list[str] | None:
  """Returns MTG's list of a subset's tags, or None where there is none."""
  path = data / "tags" / TAG_LISTS.get(subset, "")
  if not path.is_file():
    return None
  tags: list[str] = []
  for line, text in tables.read_lines(path):
    place = tables.where(path, line)
    _check_tag(text, place, SUBSETS[subset][1])
    if tags and text <= tags[-1]:
      raise InputError(
        f"{place}: {text!r} after {tags[-1]!r} is not alphabetical: restore the"
        " repository's list"
      )
    tags.append(text)
  if not tags:
    raise InputError(f"{path} is empty: restore the repository's list")
  return tags


def _read_tables(
  paths: dict[str, Path],
  categories: Sequence[str],
  listed: Sequence[str] | None,
) -> list[dict]:
  """Reads the parts' tables into tracks, none of which has its file yet.

  Args:
    paths: {part: table}.
    categories: that tags may be of.
    listed: all that tags may be, if known.

  Returns:
    the tracks in the tables' order; "path" is the table's.
  """
  found, seen = [], {}
  known = set(listed) if listed else None
  for part, path in paths.items():
    table = tables.read(
      path,
      needed=("TRACK_ID", "ARTIST_ID", "PATH", "DURATION", "TAGS"),
      delimiter="\t",
      quoted=False,
      ragged=True,
    )
    if table.columns[-1] != "TAGS":
      raise InputError(
        f"{tables.where(path, 1, 'TAGS')} is not the last column: move it"
        " there, since every field from it on is a tag"
      )
    if not table.rows:
      raise InputError(f"{path} has no rows: give the whole table")
    for line, fields in table.rows:
      track = _read_row(table, line, fields, categories, known)
      track["split"] = part
      # Files are named by the id, so that none can be there twice either.
      if track["id"] in seen:
        raise InputError(
          f"{tables.where(path, line, 'TRACK_ID')} names {track['id']}, as does"
          f" {tables.where(*seen[track['id']])}: keep one of the rows"
        )
      seen[track["id"]] = path, line
      found.append(track)
  return found


def _read_row(
  table: tables.Table,
  line: int,
  fields: list[str],
  categories: Sequence[str],
  known: set[str] | None,
) -> dict:
  """Reads a row into a track without a split."""

  def place(column: str | int) -> str:
    return tables.where(table.path, line, column)

  row = dict(zip(table.columns, fields, strict=False))
  name, seconds = row["TRACK_ID"], row["DURATION"]
  if not re.fullmatch(r"track_[0-9]{7}", name):
    raise InputError(
      f"{place('TRACK_ID')}: {name[:60]!r} is no track_ with seven digits:"
      " correct the row"
    )
  decimal = re.fullmatch(r"[0-9]+(\.[0-9]+)?", seconds)
  if not decimal or not 0 < float(seconds) < math.inf:
    raise InputError(
      f"{place('DURATION')}: {seconds[:60]!r} is no number of seconds:"
      " correct the row"
    )
  path = tables.inside(row["PATH"], place("PATH"))
  # Else a slip in either would give a track another's audio.
  if Path(path).stem != (name.removeprefix("track_").lstrip("0") or "0"):
    raise InputError(
      f"{place('PATH')}: {path[:60]!r} is not the file of {name}, which is"
      " named by its number: correct the row"
    )
  tags = []
  first = len(table.columns)
  for number, tag in enumerate(fields[first - 1 :], first):
    column = "TAGS" if number == first else number  # others have no header
    _check_tag(tag, place(column), categories)
    if known is not None and tag not in known:
      raise InputError(
        f"{place(column)}: {tag!r} is not in the repository's list of the"
        " subset's tags: correct the row or the list"
      )
    if tag in tags:
      raise InputError(
        f"{place(column)}: {tag!r} is there twice: correct the row"
      )
    tags.append(tag)
  return {
    "id": name,
    "path": path,
    "file": None,
    "split": "",
    "tags": sorted(tags),
    "artist": row["ARTIST_ID"],
  }


def _check_tag(text: str, place: str, categories: Sequence[str]) -> None:
  category, _, name = text.partition("---")
  if category not in categories or not re.fullmatch("[a-z0-9]+", name):
    wanted = " or ".join(f"{category}---NAME" for category in categories)
    raise InputError(
      f"{place}: {text[:60]!r} is no tag of this subset, {wanted} with NAME in"
      " small letters and digits: correct it"
    )


def _find_files(
  tracks: list[dict], source: Path, audio_dir: str | os.PathLike | None
) -> str:
  """Sets "file" and "path" of the tracks whose audio is there.

  Returns:
    a note of where it is.
  """
  root = source if audio_dir is None else Path(audio_dir)
  if not root.is_dir():
    raise InputError(f"no folder {root}: give one with --audio_dir")
  stems = [os.path.splitext(track["path"])[0] for track in tracks]  # noqa: PTH122
  best, place = [], ""
  for name in AUDIO_DIRS:  # that with most of it, and of equals the first
    home = root / name
    if not home.is_dir():
      continue
    found = files.by_stem(files.find_audio(home), endings=("", ".low"))
    present = [
      (track, home / found[stem])
      for track, stem in zip(tracks, stems, strict=True)
      if stem in found
    ]
    if len(present) > len(best):
      best, place = present, "its folder" if name == "." else name
  for track, file in best:
    inside = file.is_relative_to(source)
    track["file"] = str(file)
    track["path"] = utf8(str(file.relative_to(source if inside else root)))
  if best:
    return f"{len(best):,} of {len(tracks):,} tracks have audio, in {place}"
  return (
    f"none of the {len(tracks):,} tracks has audio in {root} (looked for"
    f" {tracks[0]['path']} and so on, in {', '.join(AUDIO_DIRS)}): give its"
    " folder with --audio_dir"
  )
