import os
import pathlib
import pickle
import random

import numpy as np
import pytest
import soundfile
from tiny_mtat import (
  CLIPS,
  SPLITS,
  VOCABULARY,
  annotations,
  by_id,
  table,
  write,
  write_lists,
)

from ssl_music.data import magnatagatune, plans
from ssl_music.errors import InputError


def put(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


@pytest.fixture
def source(tmp_path):
  return write(tmp_path / "mtat")


def test_rebuilt_split_is_by_folder_and_has_tagged_clips_only(source):
  plan = magnatagatune.plan(source)
  assert plan["tags"] == VOCABULARY
  tagged = [clip for clip in CLIPS if clip[3]]
  assert [track["id"] for track in plan["tracks"]] == [c[0] for c in tagged]
  for track, (_, path, artist, tags) in zip(
    plan["tracks"], tagged, strict=True
  ):
    assert track["split"] == SPLITS[path[0]]
    assert track["tags"] == [tag for tag in VOCABULARY if tag in tags]
    assert track["artist"] == artist
    assert track["path"] == path
    assert track["file"] is None
  assert plan["benchmark"] == "MagnaTagATune, cleaned split (rebuilt)"
  assert any(
    "5 tags, not 50" in n and "1 are of no" in n for n in plan["notes"]
  )
  assert plan["known_bad"] == {}
  assert not plans.describe(plan)["as_published"]


def test_12_1_3_has_all_annotated_clips(source):
  plan = magnatagatune.plan(source, split="12:1:3")
  assert [track["id"] for track in plan["tracks"]] == [c[0] for c in CLIPS]
  assert by_id(plan)["31"]["tags"] == []
  assert any(note.startswith("1 of the split's") for note in plan["notes"])
  assert plan["benchmark"] == "MagnaTagATune, 12:1:3 split"
  assert plan["name"] != magnatagatune.plan(source)["name"]


def test_vocabulary_is_the_50_most_frequent_with_ties_as_in_the_header(
  tmp_path,
):
  draw = random.Random(0)
  tags = [f"tag {n}" for n in draw.sample(range(100), 70)]
  clips = []
  for n in range(40):
    share = draw.random()
    has = [tag for tag in tags if draw.random() < share / 2]
    clips.append((str(n), f"{n % 10}/clip-{n}.mp3", "", has))
  counts = {tag: sum(tag in clip[3] for clip in clips) for tag in tags}
  expected = sorted(tags, key=counts.get, reverse=True)[:50]  # it is stable
  assert counts[expected[-1]] in map(counts.get, set(tags) - set(expected))
  plan = magnatagatune.plan(write(tmp_path / "mtat", clips, tags))
  assert plan["tags"] == expected


@pytest.mark.parametrize("folder", ["mp3/", ""])
def test_clips_are_found_in_either_place_and_any_format(source, folder):
  names = [CLIPS[0][1], CLIPS[1][1].replace(".mp3", ".flac")]
  put(source, *(folder + name for name in names))
  put(source, "sample.mp3", "mp3/0/of-nobody-0-29.mp3")
  plan = magnatagatune.plan(source)
  found = {t["id"]: t["path"] for t in plan["tracks"] if t["file"]}
  assert found == {"7": folder + names[0], "2": folder + names[1]}
  for track in plan["tracks"]:
    if track["file"]:
      assert track["file"] == str(source / track["path"])
  bare = magnatagatune.plan(write(source.parent / "bare"))
  assert any("None of the clips" in note for note in bare["notes"])
  bare["notes"] = plan["notes"]
  assert plans.describe(bare) == plans.describe(plan)  # the hash, too


def test_load_decodes_a_clip_and_pickles(source):
  path = source / "mp3" / CLIPS[0][1]
  path.parent.mkdir(parents=True)
  noise = np.random.default_rng(0).normal(0, 0.1, 32_000)
  soundfile.write(path, noise, 16_000, format="MP3")
  plan = magnatagatune.plan(source, max_seconds=1.5)
  load = pickle.loads(pickle.dumps(plan["load"]))
  audio = np.concatenate(list(load(by_id(plan)["7"])))
  assert audio.dtype == np.float32
  assert len(audio) == 24_000
  assert np.std(audio) == pytest.approx(0.1, rel=0.1)


def change(row, column, value):
  def apply(rows):
    rows[row][rows[0].index(column)] = value

  return apply


@pytest.mark.parametrize(
  "mutate, said",
  [
    (change(0, "clip_id", "id"), "line 1 has no column 'clip_id'"),
    (change(0, "mp3_path", "path"), "line 1 has no column 'mp3_path'"),
    (change(0, "guitar", "metal"), "line 1: column 'metal' is there twice"),
    (change(0, "guitar", " "), "line 1, column ' ' is no name"),
    (change(0, "guitar", "a|b"), r"line 1, column 'a\|b' is no name"),
    (change(3, "guitar", "2"), "line 4, column 'guitar': '2' is neither"),
    (change(3, "guitar", ""), "line 4, column 'guitar': '' is neither"),
    (change(3, "loud", "01"), "line 4, column 'loud': '01' is neither"),
    (change(3, "clip_id", ""), "line 4, column 'clip_id': '' is no id"),
    (change(3, "clip_id", "7"), r"line 4, .*clip 7 again \(first in line 2"),
    (change(3, "mp3_path", "0/../../x.mp3"), "line 4, .*leaves the folder"),
    (change(3, "mp3_path", "/b/x.mp3"), "line 4, .*leaves the folder"),
    (change(3, "mp3_path", ""), "line 4, column 'mp3_path': '' is no path"),
    (change(3, "mp3_path", "x.mp3"), "line 4, .*folders 0 to f"),
    (change(3, "mp3_path", "g/x.mp3"), "line 4, .*folders 0 to f"),
    (change(3, "mp3_path", "b/c/x.mp3"), "line 4, .*folders 0 to f"),
    (change(3, "mp3_path", CLIPS[0][1][:-4] + ".ogg"), "line 4, .* again"),
    (lambda rows: rows[2].pop(), "line 3 has 7 fields, not the 8"),
    (lambda rows: rows[2].append("0"), "line 3 has 9 fields, not the 8"),
    (lambda rows: rows.__delitem__(slice(1, None)), "6 tags and 0 clips"),
    (lambda rows: rows.clear(), "is empty"),
  ],
)
def test_annotations_that_are_wrong(source, mutate, said):
  rows = annotations()
  mutate(rows)
  path = source / "annotations_final.csv"
  path.write_bytes(table(rows))
  with pytest.raises(InputError, match=said) as caught:
    magnatagatune.plan(source)
  assert str(caught.value).startswith(str(path))


def test_no_tags_at_all(source):
  path = source / "annotations_final.csv"
  path.write_bytes(table(annotations(tags=[])))
  with pytest.raises(InputError, match="0 tags and 7 clips"):
    magnatagatune.plan(source)
  path.write_bytes(table(annotations(tags=["unused"])))
  with pytest.raises(InputError, match=f"{path}: no clip has a tag"):
    magnatagatune.plan(source)


def test_columns_are_taken_by_name(source):
  expected = magnatagatune.plan(source)
  rows = [[*row[1:5], row[7], *row[5:7], row[0]] for row in annotations()]
  (source / "annotations_final.csv").write_bytes(table(rows))
  assert magnatagatune.plan(source)["tracks"] == expected["tracks"]


def test_artists(source):
  info = source / "clip_info_final.csv"
  rows = [["clip_id", "artist"], ["7", "Zoé"], ["2", " "]]
  info.write_bytes(table(rows, "latin-1"))
  plan = magnatagatune.plan(source)
  assert by_id(plan)["7"]["artist"] == "Zoé"
  assert {t["artist"] for t in plan["tracks"] if t["id"] != "7"} == {""}
  assert any("no artist of 6 of the" in note for note in plan["notes"])
  info.write_bytes(table([*rows, ["7", "Zoé"]], "latin-1"))
  with pytest.raises(InputError, match=r"line 4, column 'clip_id' .*'7' again"):
    magnatagatune.plan(source)
  info.write_bytes(table([["clip_id", "singer"]]))
  with pytest.raises(InputError, match="line 1 has no column 'artist'"):
    magnatagatune.plan(source)
  info.unlink()
  plan = magnatagatune.plan(source)
  assert {track["artist"] for track in plan["tracks"]} == {""}
  assert any("artists are unknown" in note for note in plan["notes"])


def test_options_and_folders_that_are_wrong(source, tmp_path):
  with pytest.raises(InputError, match=r"no folder .*absent"):
    magnatagatune.plan(tmp_path / "absent")
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match=r"empty .*no annotations_final\.csv"):
    magnatagatune.plan(tmp_path / "empty")
  with pytest.raises(InputError, match="--split=split-0 is unknown"):
    magnatagatune.plan(source, split="split-0")
  with pytest.raises(
    InputError, match=r"empty has no train_list_pub.cP and no"
  ):
    magnatagatune.plan(source, split_files=tmp_path / "empty")
  with pytest.raises(InputError, match="is of the cleaned split"):
    magnatagatune.plan(source, split="12:1:3", split_files=tmp_path)
  lists = write_lists(source / "MTAT_split")
  (lists / "test_list_pub.cP").unlink()
  with pytest.raises(InputError, match=r"has no test_list_pub.cP: give"):
    magnatagatune.plan(source)
  magnatagatune.plan(source, split="12:1:3")  # has no use for them


def test_broken_clips_are_left_out_and_named(tmp_path):
  broken = [
    (str(50 + n), f"{stem}.mp3", "", ["guitar"])
    for n, stem in enumerate(magnatagatune.BROKEN)
  ]
  # An id alone says nothing: tables of other clips may use it, too.
  other = ("35644", "0/other-0-29.mp3", "", ["guitar"])
  source = write(tmp_path / "mtat", [*CLIPS, *broken, other])
  for split, clips in ("cleaned", 7), ("12:1:3", 8):
    plan = magnatagatune.plan(source, split=split)
    assert plan["known_bad"].keys() == {"50", "51", "52"}
    assert not plan["known_bad"].keys() & by_id(plan).keys()
    assert len(plan["tracks"]) == clips
    assert "35644" in by_id(plan)


def test_clips_that_the_published_lists_lack_are_named(tmp_path):
  album = "0/american_bach_soloists-j_s__bach__cantatas_volume_v-"
  unlisted = [
    (name, f"{album}{name}.mp3", "", ["guitar"])
    for name in ("29", "11268", "11269")
  ]
  source = write(tmp_path / "mtat", [*CLIPS, *unlisted])
  notes = " ".join(magnatagatune.plan(source)["notes"])
  assert "clips 29, 11268, 11269 (0/american_bach_soloists-" in notes
  notes = " ".join(magnatagatune.plan(source, split="12:1:3")["notes"])
  assert "american_bach" not in notes
  write(source, [*CLIPS, *unlisted[:2]])
  assert "american_bach" not in " ".join(magnatagatune.plan(source)["notes"])


REAL = pathlib.Path(os.environ.get("SSL_MUSIC_TABLES", ""), "mtat")
needs_tables = pytest.mark.skipif(
  "SSL_MUSIC_TABLES" not in os.environ or not REAL.is_dir(),
  reason=(
    "set SSL_MUSIC_TABLES to a folder that holds mtat/ with MagnaTagATune's"
    " annotations_final.csv, clip_info_final.csv and MTAT_split/"
  ),
)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
  """Plans from the real tables."""
  bare = tmp_path_factory.mktemp("bare")
  for name in ("annotations_final.csv", "clip_info_final.csv"):
    (bare / name).symlink_to(REAL.absolute() / name)
  return {
    "lists": magnatagatune.plan(REAL),
    "rebuilt": magnatagatune.plan(bare),
    "12:1:3": magnatagatune.plan(REAL, split="12:1:3"),
  }


@needs_tables
def test_real_counts_and_fingerprints(real):
  counts = {
    "lists": {"train": 15_244, "validation": 1_529, "test": 4_332},
    "rebuilt": {"train": 15_247, "validation": 1_529, "test": 4_332},
    "12:1:3": {"train": 18_706, "validation": 1_825, "test": 5_329},
  }
  for kind, plan in real.items():
    assert plans.count(plan["tracks"]) == counts[kind]
    assert plans.describe(plan)["as_published"]
    assert plan["known_bad"].keys() == {"35644", "55753", "57881"}
    assert not plan["known_bad"].keys() & by_id(plan).keys()
    assert all(track["artist"] for track in plan["tracks"])
  assert sum(counts["rebuilt"].values()) == 21_108
  assert sum(counts["12:1:3"].values()) == 25_860
  hashes = {plan["published"]["fingerprint"] for plan in real.values()}
  assert len(hashes) == len(real)


@needs_tables
def test_real_lists_lack_three_of_the_rebuilt_clips(real):
  lists, rebuilt = by_id(real["lists"]), by_id(real["rebuilt"])
  assert lists.keys() < rebuilt.keys()
  assert lists.items() <= rebuilt.items()
  unlisted = [rebuilt[name] for name in rebuilt.keys() - lists.keys()]
  assert sorted(track["id"] for track in unlisted) == ["11268", "11269", "29"]
  for track in unlisted:
    assert track["path"].startswith("0/american_bach_soloists-")
  assert "american_bach_soloists" in " ".join(real["rebuilt"]["notes"])


@needs_tables
def test_real_tags_are_in_the_published_order(real):
  published = (REAL / "MTAT_split" / "top50_tags.txt").read_text().split()
  for plan in real.values():
    joined = [tag.replace(" ", "").lower() for tag in plan["tags"]]
    assert joined == [tag.lower() for tag in published]
  assert plan["tags"].index("female voice") == 47
  assert plan["tags"].index("metal") == 48


@needs_tables
def test_real_arrays_are_reproduced_column_by_column(real):
  tags = real["lists"]["tags"]
  for short, part in (
    ("train", "train"),
    ("valid", "validation"),
    ("test", "test"),
  ):
    tracks = [t for t in real["lists"]["tracks"] if t["split"] == part]
    array = np.load(REAL / "MTAT_split" / f"y_{short}_pub.npy")
    assert array.shape == (len(tracks), 50)
    for column, tag in enumerate(tags):
      mine = [tag in track["tags"] for track in tracks]
      np.testing.assert_array_equal(array[:, column], mine, err_msg=tag)
