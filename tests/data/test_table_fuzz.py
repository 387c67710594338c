"""Damaged tables end in an InputError, or in a plan that they really describe.

Small valid tables are damaged at random. What a plan made of them then says of
each track (split, tags, file) is compared with an independent, slow reading of
the same damaged table. SSL_MUSIC_FUZZ=10000 runs more of it.
"""

import csv
import os
import posixpath
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import damage
import numpy as np
import pytest

from ssl_music.data import (
  audio,
  folder,
  gtzan,
  magnatagatune,
  million_song,
  mtg_jamendo,
  tables,
)
from ssl_music.data.million_song_tags import LASTFM_TAGS
from ssl_music.errors import InputError

COUNT = int(os.environ.get("SSL_MUSIC_FUZZ", "200"))
SPLITS = ("train", "validation", "test")


# The kinds -------------------------------------------------------------------


class Kind(NamedTuple):
  """A kind of data set in small.

  Attributes:
    files: {path: content}, audio and tables.
    damaged: the tables among them.
    plan: of the folder.
    says: what tables say, {path: content}: {(id, split, tags, path or None)};
      a split of "?" is dealt out at random.
  """

  files: dict[str, bytes]
  damaged: tuple[str, ...]
  plan: Callable[[Path], dict]
  says: Callable[[dict[str, bytes]], set[tuple]]


def folder_kind() -> Kind:
  present = ["a.wav", "b/c.flac", "b/é, d.mp3", "b/e.ogg", "f.wav", "g.wav"]
  manifest = (
    "path,tags,artist,split\n"
    "a.wav,rock|guitar,Ann,train\n"
    "b/c.flac,jazz,Bob,val\r\n"
    '"b/é, d.mp3","rock| ""loud""","Cy, Inc.",test\n'
    "./b/e.ogg,,Dee,unlabelled\n"
    'f.wav,"jazz\n|rock",Eve,train\n'
  )
  aliases = {"val": "validation", "valid": "validation", "dev": "validation"}
  aliases |= {"training": "train", "unlabeled": "unlabelled"}

  def says(damaged):
    rows = {}
    table = list(damage.dicts(damaged["m.csv"]))
    tags = damage.words([row["tags"] for row in table])
    for row, own in zip(table, tags, strict=True):
      path = posixpath.normpath(row["path"].strip())
      if path in rows:
        raise damage.WrongError("twice")
      split = row.get("split", "").strip().lower()
      rows[path] = aliases.get(split, split) or "?", own
    found = {}
    for path in rows.keys() | set(present):
      split, tags = rows.get(path, ("", set()))
      found[path] = (split, tags) if tags else ("unlabelled", frozenset())
    return {(path, *entry, path) for path, entry in found.items()}

  files = dict.fromkeys(present, b"x") | {"m.csv": manifest.encode()}
  plan = lambda root: folder.plan(root, manifest=root / "m.csv")
  return Kind(files, ("m.csv",), plan, says)


def jamendo_kind() -> Kind:
  header = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
  texts = {
    "train": (
      "track_0000214\tartist_14\talbum_31\t14/214.mp3\t124.6\t"
      "genre---punkrock\tgenre---rock\n"
      "track_0000382\tartist_15\talbum_32\t82/382.mp3\t180\tgenre---jazz\r\n"
    ),
    "validation": (
      "track_1000215\tartist_7\talbum_33\t15/1000215.mp3\t95.5\tgenre---pop\n"
    ),
    "test": (
      "track_0000216\tartist_6\talbum_3\t16/216.mp3\t95.5\tgenre---rock\t"
      "genre---jazz\n"
      "track_0000017\tartist_5\talbum_4\t17/17.mp3\t300.0\tgenre---pop\n"
    ),
  }
  paths = {
    part: f"data/splits/split-0/autotagging_genre-{part}.tsv" for part in SPLITS
  }
  present = {
    "14/214.mp3": "audio/14/214.low.mp3",
    "82/382.mp3": "audio/82/382.mp3",
    "16/216.mp3": "audio/16/216.opus",
    "17/216.mp3": "audio/17/216.mp3",  # where damage may lead
  }

  def says(damaged):
    found = set()
    for part, path in paths.items():
      for row in damage.dicts(damaged[path], "\t", quoted=False, rest="TAGS"):
        name = row["TRACK_ID"]
        number = str(int(name.removeprefix("track_")))
        inner = posixpath.normpath(row["PATH"].strip())
        stem, _ = posixpath.splitext(inner)
        if posixpath.basename(stem) != number:
          raise damage.WrongError("another's audio")
        file = present.get(f"{stem}.mp3")
        found.add((name, part, frozenset(row["TAGS"]), file))
    return found

  files = dict.fromkeys(present.values(), b"x") | {
    paths[part]: (header + texts[part]).encode() for part in SPLITS
  }
  plan = lambda root: mtg_jamendo.plan(root, subset="genre")
  return Kind(files, tuple(paths.values()), plan, says)


def magnatagatune_kind() -> Kind:
  header = ["clip_id", "rock", "female voice", "jazz", "quiet", "mp3_path"]
  rows = [
    ["2", "1", "0", "0", "1", "0/ann-song-01-a-0-29.mp3"],
    ["6", "0", "1", "0", "0", "b/bob-song-02-b-29-58.mp3"],
    ["10", "0", "1", "1", "0", "c/cy-song-03-c-0-29.mp3"],
    ["11", "0", "0", "0", "0", "d/dee-song-04-d-0-29.mp3"],
    ["12", "1", "1", "0", "0", "f/eve-song-05-e-0-29.mp3"],
  ]
  folders = dict.fromkeys("0123456789ab", "train") | {"c": "validation"}
  folders |= dict.fromkeys("def", "test")
  line = lambda fields: "\t".join(f'"{field}"' for field in fields) + "\r\n"
  info = line(["clip_id", "title", "artist", "mp3_path"])
  info += "".join(line([r[0], "A Söng", f"Ann {r[0]}", r[-1]]) for r in rows)
  present = [f"mp3/{row[-1]}" for row in rows[:4]]

  def says(damaged):
    damage.dicts(damaged["clip_info_final.csv"], "\t", encoding="latin-1")
    found = set()
    for row in damage.dicts(damaged["annotations_final.csv"], "\t"):
      path = posixpath.normpath(row.pop("mp3_path").strip())
      name = row.pop("clip_id").strip()
      if not {"0", "1"}.issuperset(row.values()):
        raise damage.WrongError("label")
      tags = frozenset(tag for tag, value in row.items() if value == "1")
      file = f"mp3/{posixpath.splitext(path)[0]}.mp3"
      if tags:  # the cleaned split is of those that have some
        part = folders[path.split("/")[0]]
        found.add((name, part, tags, file if file in present else None))
    return found

  files = dict.fromkeys(present, b"x") | {
    "annotations_final.csv": "".join(map(line, [header, *rows])).encode(),
    "clip_info_final.csv": info.encode("latin-1"),
  }
  damaged = ("annotations_final.csv", "clip_info_final.csv")
  return Kind(files, damaged, magnatagatune.plan, says)


IDS = [f"TRAAAA{letter}128F0000A0{letter}" for letter in "ABCDEF"]
MSD_PATHS = "msd_id,path\n" + "".join(
  f"{name},{index}/{name}.mp3\r\n" for index, name in enumerate(IDS[:5])
)
MSD_AUDIO = [f"{index}/{name}.mp3" for index, name in enumerate(IDS[:4])]


def msd_files(data: bytes) -> dict[str, str | None]:
  """Returns {id: file} of a paths.csv; None where it is absent."""
  found: dict[str, str | None] = {}
  for row in damage.dicts(data):
    name = row["msd_id"].strip()
    path = posixpath.normpath(row["path"].strip())
    if name in found or not row["path"].strip():
      raise damage.WrongError("twice, or no path")
    found[name] = path if path in MSD_AUDIO else None
  return found


def with_files(rows: list[tuple], given: dict) -> set[tuple]:
  """Returns what lists and paths.csv say together."""
  if len({name for name, *_ in rows}) < len(rows):
    raise damage.WrongError("twice")
  listed = {(*row, given.get(row[0])) for row in rows}
  others = given.keys() - {name for name, *_ in rows}
  every = listed | {(n, "unlabelled", frozenset(), given[n]) for n in others}
  return {row for row in every if row[1] != "unlabelled" or row[3]}


def own_split_kind() -> Kind:
  text = (
    "msd_id,tags,split\n"
    f'{IDS[0]},rock|guitar,train\n{IDS[1]},"female ""x""|pop",valid\r\n'
    f"{IDS[2]},jazz,test\n{IDS[5]},,unlabelled\n{IDS[4]},pop,train\n"
  )

  def says(damaged):
    rows = []
    table = list(damage.dicts(damaged["own.csv"]))
    tags = damage.words([row["tags"] for row in table])
    for row, own in zip(table, tags, strict=True):
      split = row["split"].strip().lower()
      split = "validation" if split == "valid" else split
      rows.append((row["msd_id"].strip(), split, own))
    return with_files(rows, msd_files(damaged["paths.csv"]))

  files = dict.fromkeys(MSD_AUDIO, b"x")
  files |= {"own.csv": text.encode(), "paths.csv": MSD_PATHS.encode()}
  plan = lambda root: million_song.plan(root, split=str(root / "own.csv"))
  return Kind(files, ("own.csv", "paths.csv"), plan, says)


def msd_lists_kind() -> Kind:
  tags = LASTFM_TAGS
  labels = np.random.default_rng(0).random((6, 50)) < 0.2
  files = dict.fromkeys(MSD_AUDIO, b"x") | {"paths.csv": MSD_PATHS.encode()}
  files["lastfm/50tagList.txt"] = "\n".join(tags).encode()
  names = {"train": "train", "validation": "valid", "test": "test"}
  for index, part in enumerate(names.values()):
    rows = slice(2 * index, 2 * index + 2)
    files[f"lastfm/{part}_x_msd_id.txt"] = "\r\n".join(IDS[rows]).encode()
    files[f"lastfm/{part}_y.npy"] = damage.npy(labels[rows].astype(np.float64))
  damaged = ["paths.csv", *(name for name in files if "lastfm" in name)]

  def says(damaged):
    vocabulary = damage.lines_of(damaged["lastfm/50tagList.txt"])
    if vocabulary != list(tags):
      raise damage.WrongError("another vocabulary")
    rows = []
    for split, part in names.items():
      listed = damage.lines_of(damaged[f"lastfm/{part}_x_msd_id.txt"])
      values = damage.floats(damaged[f"lastfm/{part}_y.npy"])
      for name, row in zip(listed, values, strict=True):
        pairs = zip(vocabulary, row, strict=True)
        rows.append((name, split, frozenset(tag for tag, on in pairs if on)))
    return with_files(rows, msd_files(damaged["paths.csv"]))

  return Kind(files, tuple(damaged), million_song.plan, says)


KINDS = {
  "folder": folder_kind,
  "magnatagatune": magnatagatune_kind,
  "mtg_jamendo": jamendo_kind,
  "million_song_own": own_split_kind,
  "million_song_lists": msd_lists_kind,
}


# The tests -------------------------------------------------------------------


def put(root: Path, files: dict[str, bytes]) -> None:
  for name, data in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def told(plan: dict, root: Path) -> set[tuple]:
  """Returns what a plan says, after a look at its form."""
  found = set()
  for track in plan["tracks"]:
    tags, file = track["tags"], track["file"]
    order = [tag for tag in plan["tags"] if tag in set(tags)]
    assert tags == order, "tags twice, unknown or out of order"
    inside = file and os.path.relpath(file, root)
    found.add((track["id"], track["split"], frozenset(tags), inside))
  ids = [track["id"] for track in plan["tracks"]]
  assert len(set(ids)) == len(ids)
  return found


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_table_is_an_error_or_what_it_says(tmp_path, name):
  kind = KINDS[name]()
  put(tmp_path, kind.files)
  whole = {path: kind.files[path] for path in kind.damaged}
  assert told(kind.plan(tmp_path), tmp_path) == kind.says(whole)
  rng = random.Random(name)
  outcomes = {"plan": 0, "error": 0}
  for number in range(COUNT):
    path = rng.choice(kind.damaged)
    data = damage.somewhere(whole[path], rng)
    (tmp_path / path).write_bytes(data)
    message = f"{name} {number}: {path} is {data!r}"
    try:
      plan = kind.plan(tmp_path)
    except InputError as error:
      outcomes["error"] += 1
      assert "\n" not in str(error), message
    else:
      outcomes["plan"] += 1
      said = kind.says(whole | {path: data})
      dealt = {row[0] for row in said if row[1] == "?"}
      found = told(plan, tmp_path)
      assert {r[1] for r in found if r[0] in dealt} <= set(SPLITS), message
      found = {(r[0], "?", *r[2:]) if r[0] in dealt else r for r in found}
      assert found == said, message
    (tmp_path / path).write_bytes(whole[path])
  print(f"{name}: {outcomes}")
  assert min(outcomes.values()) > COUNT / 50


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_a_damaged_table_is_read_as_it_is(
  tmp_path, delimiter, quoted, encoding
):
  rng = random.Random(f"{delimiter}{quoted}{encoding}")
  rows = [
    ["path", "tags", "x y"],
    ["a/é.mp3", "rock|pop", ""],
    ["b", "a  b" if not quoted else f'"{delimiter}\n', "3"],
    ["c", "'", "\x85x"],
  ]
  path = tmp_path / "table"
  with path.open("w", newline="", encoding="latin-1") as file:
    out = csv.writer(
      file,
      delimiter=delimiter,
      quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    out.writerows(rows)
  whole = path.read_bytes()
  if encoding != "latin-1":
    whole = whole.decode("latin-1").encode()
  outcomes = {"read": 0, "error": 0}
  for number in range(COUNT):
    data = damage.somewhere(whole, rng)
    path.write_bytes(data)
    message = f"{number}: {data!r}"
    try:
      table = tables.read(
        path, delimiter=delimiter, quoted=quoted, encoding=encoding
      )
      found = [table.columns, *(fields for _, fields in table.rows)]
    except InputError:
      found = None
    try:
      text = damage.characters(data, encoding.removesuffix("-sig"))
      expected = damage.rows_of(text, delimiter, quoted)
      damage.dicts(data, delimiter, quoted, encoding.removesuffix("-sig"))
    except damage.WrongError:
      expected = None
    assert found == expected, message
    outcomes["error" if found is None else "read"] += 1
  print(outcomes)
  assert min(outcomes.values()) > COUNT / 50


def test_gtzan_takes_a_file_for_the_excerpt_that_its_name_says(tmp_path):
  rng = random.Random("gtzan")
  names = [f"blues/blues.{n:05d}.wav" for n in (0, 12, 29, 30, 42, 99)]
  names += ["rock/rock.00000.au.mp3", "pop/pop.00015.flac", "pop/pop.00016.ogg"]
  listing = "\n".join(names).encode()
  taken = 0
  for number in range(max(COUNT // 15, 1)):
    root = tmp_path / str(number) / "genres"
    (root / "rock").mkdir(parents=True)
    there = set()
    for name in damage.somewhere(listing, rng).decode("latin-1").split("\n"):
      path = root / name.replace("\0", "").replace("..", "").lstrip("/")
      if path.suffix and not path.exists():
        try:
          put(root, {str(path.relative_to(root)): b"x"})
        except OSError:  # a file where a folder is needed
          continue
        there.add(posixpath.relpath(path, root))
    expected: dict = dict.fromkeys(gtzan.split())
    for name in there:
      stem, extension = posixpath.splitext(name)
      genre, _, track = stem.partition("/")
      if (
        extension.lower() in audio.EXTENSIONS + audio.AV_EXTENSIONS
        and track in expected
        and track.startswith(f"{genre}.")
      ):
        expected[track] = name
    plan = gtzan.plan(tmp_path / str(number))
    for track in plan["tracks"]:
      file = track["file"] and os.path.relpath(track["file"], root)
      assert file == expected[track["id"]], there
      assert track["tags"] == [track["id"].split(".")[0]]
      taken += file is not None
  assert taken > COUNT // 15
