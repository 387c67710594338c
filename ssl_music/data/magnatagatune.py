r"""MagnaTagATune: clips of music, tagged by the players of a game.

Source: City University London's Music Informatics Research Group, page
https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset (tables, and
mp3.zip.001 to .003: join them, then unpack); the published lists of the cleaned
split from the folder MTAT_split of jongpillee/music_dataset_split on GitHub.

Licence: CC BY-NC-SA 3.0, tables and audio.

Size: 25,863 clips of 29 s, mono mp3 of 16 kHz and 32 kbit/s, 3.0 GB; 188 tags.

Citation: Law, West, Mandel, Bay and Downie, "Evaluation of Algorithms Using
Games: The Case of Music Tagging", ISMIR 2009.

Layout; clips may lie in SOURCE/0 … SOURCE/f just as well, and have been
converted to other formats:

    SOURCE/
      annotations_final.csv         clip_id, the tags (0 or 1), mp3_path
      clip_info_final.csv           clip_id, artist, … (may be absent)
      mp3/{0..9,a..f}/NAME-START-END.mp3
      MTAT_split/                   (may be absent or elsewhere)
        {train,valid,test}_list_pub.cP    pickled lists of 0/NAME-START-END.npy
        y_{train,valid,test}_pub.npy      [clips, 50] 0 or 1 (may be absent)
        top50_tags.txt                    (may be absent)

Both tables are separated by tabs, quoted, with CRLF, the second in Latin-1. The
vocabulary is the 50 most frequent tags, ties in the header's order.

Clips of each split. "cleaned" has those with one of the 50 tags at least; the
published lists lack three that the rule takes in. "12:1:3" has all. Folders 0
to b train, c validates, d to f test, and three clips, which hold no music in
the publisher's archive, are left out:

    | split                    |  train | validation |  test |
    | cleaned, published lists | 15,244 |      1,529 | 4,332 |
    | cleaned, rebuilt         | 15,247 |      1,529 | 4,332 |
    | 12:1:3                   | 18,706 |      1,825 | 5,329 |
"""

import os
from pathlib import Path

import numpy as np

from ssl_music.data import files, folder, plans
from ssl_music.data import magnatagatune_tables as tables
from ssl_music.errors import InputError
from ssl_music.text import utf8

ANNOTATIONS = "annotations_final.csv"
CLIP_INFO = "clip_info_final.csv"
SPLIT_FILES = "MTAT_split"
BROKEN = (
  "6/norine_braun-now_and_zen-08-gently-117-146",
  "8/jacob_heringman-josquin_des_prez_lute_settings-19-"
  "gintzler__pater_noster-204-233",
  "9/american_baroque-dances_and_suites_of_rameau_and_couperin-25-"
  "le_petit_rien_xiveme_ordre_couperin-88-117",
)
# What the published tables give: which split it is, the tracks of train,
# validation and test, `plans.fingerprint` and `plans.label_hash`.
PUBLISHED = {
  "lists": (
    "cleaned split (published lists)",
    (15_244, 1_529, 4_332),
    "89207feb45ae",
    "693dd42bc137",
  ),
  "rebuilt": (
    "cleaned split (rebuilt)",
    (15_247, 1_529, 4_332),
    "2d63952cacd7",
    "3f4feace4ff7",
  ),
  "12:1:3": (
    "12:1:3 split",
    (18_706, 1_825, 5_329),
    "6d980c6c7f7c",
    "b59109acf426",
  ),
}
# Clips of training that the published lists lack, although they have tags.
_UNLISTED = ("29", "11268", "11269")
_UNLISTED_BEGIN = "0/american_bach_soloists-j_s__bach__cantatas_volume_v-"
_CITATION = """\
@inproceedings{law2009evaluation,
  author = {Law, Edith and West, Kris and Mandel, Michael and Bay, Mert and
            Downie, J. Stephen},
  title = {Evaluation of Algorithms Using Games: The Case of Music Tagging},
  booktitle = {Proceedings of the 10th International Society for Music
               Information Retrieval Conference (ISMIR)},
  pages = {387--392},
  year = {2009},
  address = {Kobe, Japan}
}"""


def plan(
  source: str | os.PathLike,
  *,
  split: str = "cleaned",
  split_files: str | os.PathLike | None = None,
  max_seconds: float | None = 600.0,
) -> dict:
  """Plans the data set; nothing is decoded yet.

  Args:
    source: the folder, laid out as above.
    split: "cleaned" or "12:1:3".
    split_files: the folder of the cleaned split's published lists; None is
      SOURCE/MTAT_split if it exists, and else the split is rebuilt from the
      annotations.
    max_seconds: how much of each clip is kept, from its start; None is all.

  Returns:
    a plan, as `plans` describes it.

  Raises:
    InputError: a table is missing or wrong, with file, line and column; or the
      published label arrays are not what the annotations give.
  """
  source = Path(source)
  lists = _find_lists(source, split, split_files)
  audio = files.by_stem(files.find_audio(source))
  find = files.finder(audio)
  if not (source / ANNOTATIONS).is_file():
    raise InputError(
      f"{source} does not hold MagnaTagATune: no {ANNOTATIONS} in it (looked"
      f" for that, {CLIP_INFO} and the clips' folders mp3/0 to mp3/f or 0 to"
      " f): give the folder that does with --source"
    )
  clips = tables.read_annotations(source / ANNOTATIONS)
  artists, notes = tables.read_artists(source / CLIP_INFO, clips.ids)
  kind = "lists" if lists else "rebuilt" if split == "cleaned" else split
  chosen = tables.read_lists(lists, clips) if lists else rebuild(clips, split)
  vocabulary = [clips.tags[column] for column in chosen.columns]
  labels = clips.labels[:, chosen.columns]
  stems = list(clips.rows)
  rows = []
  for part, index in chosen.clips:
    stem = stems[index]
    path = audio.get(find(f"mp3/{stem}") or find(stem))
    rows.append(
      {
        "id": clips.ids[index],
        "path": utf8(path or clips.paths[index]),
        "file": str(source / path) if path else None,
        "split": part,
        "tags": [vocabulary[tag] for tag in np.flatnonzero(labels[index])],
        "artist": artists.get(clips.ids[index], ""),
      }
    )
  name, counts, fingerprint, labelled = PUBLISHED[kind]
  if not any(row["file"] for row in rows):
    notes.append(
      "None of the clips is there: they were looked for in the source's folders"
      " mp3/0 to mp3/f and 0 to f."
    )
  untagged = sum(not row["tags"] for row in rows)
  if untagged:
    notes.append(f"{untagged} of the split's clips have none of the tags.")
  here = ", ".join(f"{n:,} {part}" for part, n in plans.count(rows).items())
  return plans.make(
    "magnatagatune" if split == "cleaned" else "magnatagatune_12_1_3",
    rows,
    folder.Load(max_seconds),
    tags=vocabulary,
    description=(
      f"MagnaTagATune, {name}: clips of 29 s with {len(vocabulary)} tags from"
      f" a game ({here}; {len(clips.ids):,} are annotated)."
    ),
    citation=_CITATION,
    licence=(
      "Creative Commons Attribution-NonCommercial-ShareAlike 3.0, tables and"
      " audio."
    ),
    benchmark=f"MagnaTagATune, {name}",
    published={
      "tracks": dict(zip(plans.SCORED, counts, strict=True)),
      "fingerprint": fingerprint,
      "labels": labelled,
    },
    known_bad={
      clips.ids[clips.rows[stem]]: "empty or corrupt in the published archive"
      for stem in BROKEN
      if stem in clips.rows
    },
    notes=[*notes, *chosen.notes],
  )


def rebuild(clips: tables.Clips, split: str) -> tables.Chosen:
  """Makes a split from the annotations, by folders.

  Args:
    clips: the annotated ones.
    split: "cleaned", without the clips that have none of the top tags, or
      "12:1:3".
  """
  columns = tables.top_tags(clips)
  tagged = clips.labels[:, columns].any(axis=1)
  chosen = [
    (tables.FOLDERS[stem[0]], index)
    for stem, index in clips.rows.items()
    if stem not in BROKEN and (split == "12:1:3" or tagged[index])
  ]
  notes = tables.note_on_few(clips, columns)
  unlisted = [
    index
    for _, index in chosen
    if clips.ids[index] in _UNLISTED
    and clips.paths[index].startswith(_UNLISTED_BEGIN)
  ]
  if split == "cleaned" and len(unlisted) == len(_UNLISTED):
    notes.append(
      f"The split is rebuilt from the annotations; clips {', '.join(_UNLISTED)}"
      f" ({_UNLISTED_BEGIN}…) of its training tracks are not in the published"
      " lists: give their folder with --split_files to have exactly those."
    )
  return tables.Chosen(chosen, columns, notes)


def _find_lists(
  source: Path, split: str, split_files: str | os.PathLike | None
) -> Path | None:
  """Returns the folder of the published lists; None where none is wanted."""
  if split not in ("cleaned", "12:1:3"):
    raise InputError(f"--split={split} is unknown: use cleaned or 12:1:3")
  if split == "12:1:3":
    if split_files is not None:
      raise InputError(
        f"--split_files={split_files} is of the cleaned split: leave it out,"
        " or --split=12:1:3"
      )
    return None
  lists = source / SPLIT_FILES if split_files is None else Path(split_files)
  if split_files is None and not lists.is_dir():
    return None
  names = [f"{short}_list_pub.cP" for short in tables.LISTS.values()]
  absent = [name for name in names if not (lists / name).is_file()]
  if absent:
    raise InputError(
      f"{lists} has no {' and no '.join(absent)}: give the folder that holds"
      " the published lists with --split_files"
    )
  return lists
