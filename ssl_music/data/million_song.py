"""The Million Song Dataset: tags and splits of the field, audio of your own.

- Source: http://millionsongdataset.com (ids and features, no audio). Tags:
  http://millionsongdataset.com/lastfm. Splits: the repositories
  jongpillee/music_dataset_split (folder MSD_split),
  keunwoochoi/MSD_split_for_tagging and
  minzwon/semi-supervised-music-tagging-transformer (folder data/splits).
- Licence: Last.fm's tags are for research, not for commerce; none is stated for
  the splits. Audio is nowhere published: bring what you may use.
- Size: the 241,889 tracks of the Last.fm split at 30 s each are 2,016 hours,
  232 GB once prepared.
- Citation: T. Bertin-Mahieux, D. P. W. Ellis, B. Whitman and P. Lamere, "The
  Million Song Dataset", ISMIR 2011; and that of the split, below.

Splits, of different tracks and tags, so that scores do not compare:

- `lastfm`: 50 of Last.fm's tags, tracks of at least 29.1 s (J. Lee et al.,
  SMC 2017): train 201,680, validation 11,774, test 28,435. They share artists.
- `lastfm`, where only the lists that this split was made from are there (K.
  Choi et al., ISMIR 2016): 201,680, 12,634, 28,540. The download may lack
  train_y.npy: what is there can be used, such as the test tracks.
- `cals` (M. Won et al., ISMIR 2021): 50 cleaned tags, no artist in two splits:
  163,504, 34,730, 34,913; and 516,415 without tags for pre-training.
- a CSV file of your own, with the columns `msd_id`, `split` and `tags`
  (separated by "|").

The paper's MSD100 is none of them: which tracks and tags it holds was not
published. Its scores cannot be reproduced.

Layout, where the split's files may also lie in SOURCE itself:

    SOURCE/paths.csv                      msd_id,path and, if known, artist
    SOURCE/A/D/I/TRAADIN128F931D672.mp3   (any names: paths.csv has them)
    SOURCE/lastfm/50tagList.txt
    SOURCE/lastfm/filtered_list_{train,test}.cP
    SOURCE/lastfm/msd_id_to_tag_vector.cP
    or SOURCE/lastfm/{train,valid,test}_x_msd_id.txt
       SOURCE/lastfm/{train,valid,test}_y.npy
    SOURCE/cals/{train,valid,test}_{ids,binaries}.npy
    SOURCE/cals/cals_tags.npy
    SOURCE/cals/student_ids.npy           (optional: tracks without tags)
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from ssl_music.data import audio, files, folder, plans, tables
from ssl_music.data import million_song_splits as splits
from ssl_music.errors import InputError
from ssl_music.text import utf8

_CITATION = """@inproceedings{bertinmahieux2011million,
  author = {Bertin-Mahieux, Thierry and Ellis, Daniel P. W. and Whitman, Brian
    and Lamere, Paul},
  title = {The Million Song Dataset},
  booktitle = {ISMIR},
  year = {2011},
}
"""
_CITATIONS = {  # of the splits, by the name of the data set
  "million_song_lastfm": """@inproceedings{lee2017sample,
  author = {Lee, Jongpil and Park, Jiyoung and Kim, Keunhyoung Luke and Nam,
    Juhan},
  title = {Sample-level Deep Convolutional Neural Networks for Music
    Auto-tagging Using Raw Waveforms},
  booktitle = {Sound and Music Computing Conference},
  year = {2017},
}
""",
  "million_song_lastfm_choi": """@inproceedings{choi2016automatic,
  author = {Choi, Keunwoo and Fazekas, George and Sandler, Mark},
  title = {Automatic Tagging Using Deep Convolutional Neural Networks},
  booktitle = {ISMIR},
  year = {2016},
}
""",
  "million_song_cals": """@inproceedings{won2021semisupervised,
  author = {Won, Minz and Choi, Keunwoo and Serra, Xavier},
  title = {Semi-supervised Music Tagging Transformer},
  booktitle = {ISMIR},
  year = {2021},
}
""",
}


def plan(
  source: str | os.PathLike,
  *,
  split: str | os.PathLike = "lastfm",
  split_files: str | os.PathLike | None = None,
  paths: str | os.PathLike | None = None,
  tags: str | os.PathLike | None = None,
  max_seconds: float | None = 600.0,
) -> dict:
  """Plans the data set; nothing is decoded yet.

  Args:
    source: the folder of audio, laid out as above.
    split: "lastfm", "cals", or a CSV file with the columns `msd_id`, `split`
      (train, validation, test or unlabelled) and `tags` (separated by "|").
    split_files: the folder of the split's files, where it is neither
      `source`/lastfm (or /cals) nor `source`.
    paths: CSV with the columns `msd_id` and `path` (relative to `source`) and,
      where known, `artist`; None is `source`/paths.csv.
    tags: for a CSV as split: the vocabulary in the order of the label columns,
      a tag a line; None is the CSV's tags in alphabetical order.
    max_seconds: how much of each track is kept, from its start; None is all.

  Returns:
    a plan, see `plans`. Every track of the split that has labels is in it, also
    without audio; and, as "unlabelled", what there is besides.

  Raises:
    InputError: a folder or file is missing, or a table is wrong.
  """
  source = Path(source)
  there = set(files.find_audio(source))
  read = _read_split(source, split, split_files, tags)
  table = source / "paths.csv" if paths is None else Path(paths)
  given = _read_paths(table, there)
  others = [msd_id for msd_id in given if msd_id not in read.tracks]
  members = read.tracks | {msd_id: ("unlabelled", []) for msd_id in others}
  tracks = []
  for msd_id, (part, names) in members.items():
    path, artist = given.get(msd_id, (msd_id, ""))
    if part == "unlabelled" and path not in there:
      continue  # nobody misses audio that was never to be scored
    tracks.append(
      {
        "id": msd_id,
        "path": utf8(path),
        "file": str(source / path) if path in there else None,
        "split": part,
        "tags": names,
        "artist": artist,
      }
    )
  counts = plans.count(tracks)
  counted = ", ".join(f"{count:,} {part}" for part, count in counts.items())
  published = None
  if read.published:  # the lists are not part of this project
    published = {"tracks": read.published, "fingerprint": None}
  return plans.make(
    read.name,
    tracks,
    folder.Load(max_seconds),
    tags=read.tags,
    description=f"{read.title}: {len(read.tags)} tags; {counted}.",
    citation=_CITATION + _CITATIONS.get(read.name, ""),
    licence=(
      "Last.fm's tags are for research, not for commerce; the audio is the"
      " user's own."
    ),
    benchmark=read.title if read.published else "",
    published=published,
    notes=read.notes + _notes(table, read.tracks, given, there),
  )


def _read_split(
  source: Path,
  split: str | os.PathLike,
  split_files: str | os.PathLike | None,
  tags: str | os.PathLike | None,
) -> splits.Split:
  split = os.fspath(split)
  if split.lower() == "msd100":
    raise InputError(
      "the split msd100 cannot be made, since it was never published which"
      " tracks and tags it holds: use --split=lastfm, --split=cals or a CSV"
      " file of your own"
    )
  if split not in ("lastfm", "cals"):
    if not split.lower().endswith(".csv") and not Path(split).is_file():
      raise InputError(
        f"unknown split {split!r}: give lastfm, cals, or a CSV file with the"
        " columns msd_id, split and tags"
      )
    if split_files is not None:
      raise InputError(
        f"--split_files={os.fspath(split_files)} is for the splits lastfm and"
        f" cals, and {split} is one file: leave it out"
      )
    return splits.read_own(Path(split), None if tags is None else Path(tags))
  if tags is not None:
    raise InputError(
      f"--tags={os.fspath(tags)} is for a CSV file as split, and {split} has"
      " tags of its own: leave it out"
    )
  root = source if split_files is None else Path(split_files)
  if split_files is None and (source / split).is_dir():
    root = source / split
  if not root.is_dir():
    raise InputError(f"no folder {root}: give another with --split_files")
  return (
    splits.read_lastfm(root) if split == "lastfm" else splits.read_cals(root)
  )


def _read_paths(
  path: Path, there: Collection[str]
) -> dict[str, tuple[str, str]]:
  """Reads the table of audio files: {id: (path, artist)}."""
  if not path.is_file():
    raise InputError(
      f"no table {path} of audio files: write a CSV with the columns msd_id and"
      " path, or name it with --paths"
    )
  table = tables.read(path, needed=("msd_id", "path"))
  ids, column = map(table.column, ("msd_id", "path"))
  artists = table.column("artist") if "artist" in table.columns else None
  known = audio.EXTENSIONS + audio.AV_EXTENSIONS
  found: dict[str, tuple[str, str]] = {}
  taken: dict[str, int] = {}
  find = files.finder(there)
  for line, row in table.rows:
    msd_id = row[ids].strip()
    splits.check_id(
      msd_id, lambda line=line: tables.where(path, line, "msd_id")
    )
    if msd_id in found:
      raise InputError(
        f"{tables.where(path, line, 'msd_id')} names {msd_id} again: keep one"
        " row a track"
      )
    place = tables.where(path, line, "path")
    file = tables.inside(row[column], place)
    file = find(file) or file
    if file in taken:
      raise InputError(
        f"{place} names {file!r} again (line {taken[file]}): give each track a"
        " file of its own"
      )
    if file not in there and not file.lower().endswith(known):
      raise InputError(
        f"{place}: {file!r} is no audio file by its name: name audio, such as"
        f" {', '.join(audio.EXTENSIONS)}"
      )
    if "\\" in file and file not in there:
      raise InputError(f"{place}: {file!r} has backslashes: write / instead")
    taken[file] = line
    artist = "" if artists is None else row[artists].strip()
    found[msd_id] = (file, artist)
  return found


def _notes(
  table: Path,
  tracks: Mapping[str, tuple[str, list[str]]],
  given: Mapping[str, tuple[str, str]],
  there: Collection[str],
) -> list[str]:
  """Says how the split's tracks, their tags and the files fit."""
  labelled = [entry for entry in tracks.values() if entry[0] in plans.SCORED]
  bare = sum(not names for _, names in labelled)
  unnamed = len(tracks.keys() - given.keys())
  others = len(given.keys() - tracks.keys())
  absent = sum(path not in there for path, _ in given.values())
  counted = {
    "of the split's labelled tracks have none of the tags": bare,
    f"of the split's tracks are not in {table.name}": unnamed,
    f"of the files in {table.name} are absent": absent,
    f"tracks of {table.name} are in no part of the split: unlabelled, for"
    " pre-training": others,
  }
  return [f"{count:,} {what}" for what, count in counted.items() if count]
