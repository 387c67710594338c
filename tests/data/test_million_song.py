import os
import pickle
from pathlib import Path

import million_song_files as made
import numpy as np
import pytest
from million_song_files import IDS, LABELS, TAGS, msd_id

from ssl_music.data import million_song, million_song_splits, plans
from ssl_music.errors import InputError


@pytest.fixture
def source(tmp_path):
  return made.write_source(tmp_path / "music")


def check_published(plan, tracks=IDS):
  """Compares a plan with the labels that its files were made from."""
  labelled = [t for t in plan["tracks"] if t["split"] != "unlabelled"]
  assert [track["id"] for track in labelled] == list(tracks)
  assert plan["tags"] == TAGS
  for track in labelled:
    n = IDS.index(track["id"])
    assert track["id"] in made.BY_PART[track["split"]]
    assert track["tags"] == [
      tag for tag, label in zip(TAGS, LABELS[n], strict=True) if label
    ]


def check_audio(plan, source):
  """Which of the tracks have files, and which, as the fixture wrote them."""
  by_id = {track["id"]: track for track in plan["tracks"]}
  assert {n for n in by_id if by_id[n]["file"]} == {
    msd_id(n) for n in (0, 5, 11, 40)
  }
  assert by_id[IDS[5]]["file"] == str(source / "a/ünï 5.wav")
  assert by_id[IDS[5]]["path"] == "a/ünï 5.wav"
  assert by_id[IDS[5]]["artist"] == "artist 5"
  assert by_id[IDS[1]]["path"] == "b/gone.mp3"  # named, but not there
  assert by_id[IDS[2]]["path"] == IDS[2]  # not named
  assert by_id[IDS[2]]["artist"] == ""
  other = by_id[msd_id(40)]
  assert (other["split"], other["tags"]) == ("unlabelled", [])


@pytest.mark.parametrize("protocol", [0, 1, 2])
@pytest.mark.parametrize(
  "vector",
  [
    lambda row: row[:, None],  # as published
    lambda row: row.astype("float64"),
    lambda row: row.astype(int).tolist(),
  ],
  ids=["bool column", "float", "list"],
)
def test_filtered_lists(source, monkeypatch, protocol, vector):
  made.write_filtered(source, monkeypatch, protocol, vector)
  plan = million_song.plan(source)
  check_published(plan)
  check_audio(plan, source)
  assert plan["name"] == "million_song_lastfm"
  assert "29.1 s" in plan["benchmark"]
  assert plan["published"] == {"tracks": made.SIZES, "fingerprint": None}
  # The counts are, and no more is known.
  assert plans.describe(plan)["as_published"] is None


def test_the_list_of_tags_may_be_absent(source):
  folder = made.write_choi(source)
  (folder / "50tagList.txt").unlink()
  check_published(million_song.plan(source))


def test_filtered_lists_of_bytes(source, monkeypatch):
  """Some copies hold ids as bytes (of a dict, its keys)."""
  folder = made.write_filtered(source, monkeypatch)
  vectors = {msd.encode(): LABELS[n] for n, msd in enumerate(IDS)}
  path = folder / "msd_id_to_tag_vector.cP"
  path.write_bytes(pickle.dumps(vectors, protocol=3))
  check_published(million_song.plan(source))


def test_published_counts():
  counts = million_song_splits
  assert list(counts.LASTFM.values()) == [201_680, 11_774, 28_435]
  assert list(counts.CALS.values()) == [163_504, 34_730, 34_913]
  assert list(counts.CHOI.values()) == [201_680, 12_634, 28_540]


def test_choi_lists(source):
  made.write_choi(source)
  plan = million_song.plan(source)
  check_published(plan)
  check_audio(plan, source)
  assert plan["name"] == "million_song_lastfm_choi"
  assert plan["benchmark"].endswith("(Choi 2016)")
  assert plan["published"]["tracks"] == million_song_splits.CHOI
  assert plan["notes"] == [
    "1 of the split's labelled tracks have none of the tags",
    "8 of the split's tracks are not in paths.csv",
    "1 of the files in paths.csv are absent",
    "1 tracks of paths.csv are in no part of the split: unlabelled, for"
    " pre-training",
  ]


def test_choi_lists_without_the_training_labels(source):
  folder = made.write_choi(source)
  (folder / "train_y.npy").unlink()
  plan = million_song.plan(source)
  check_published(plan, IDS[5:])
  by_id = {track["id"]: track for track in plan["tracks"]}
  assert by_id[IDS[0]]["split"] == "unlabelled"  # it has audio all the same
  assert list(plan["published"]["tracks"]) == ["validation", "test"]
  assert plan["notes"][0].startswith("train_y.npy not there")


def test_filtered_lists_come_first_and_alone_are_noted(source, monkeypatch):
  folder = made.write_choi(source)
  made.write_filtered(source, monkeypatch)
  assert million_song.plan(source)["name"] == "million_song_lastfm"
  (folder / "msd_id_to_tag_vector.cP").unlink()
  plan = million_song.plan(source)
  assert plan["name"] == "million_song_lastfm_choi"
  assert any("filtered_list_train.cP" in note for note in plan["notes"])


@pytest.mark.parametrize("dtype", [None, object, "S24"])
@pytest.mark.parametrize("number", ["int64", "float32", "bool"])
def test_cals(source, dtype, number):
  made.write_cals(source, dtype, number)
  plan = million_song.plan(source, split="cals")
  check_published(plan)
  check_audio(plan, source)
  unlabelled = [t["id"] for t in plan["tracks"] if t["split"] == "unlabelled"]
  assert unlabelled == [msd_id(40)]  # of 41 there is no audio
  assert plan["published"]["tracks"] == million_song_splits.CALS


def test_split_files_elsewhere(source, tmp_path):
  made.write_choi(source).rename(tmp_path / "lists")
  with pytest.raises(InputError, match=r"holds no Last.fm split .*split_files"):
    million_song.plan(source)
  plan = million_song.plan(source, split_files=tmp_path / "lists")
  check_published(plan)
  for path in (tmp_path / "lists").iterdir():
    path.rename(source / path.name)
  check_published(million_song.plan(source))
  with pytest.raises(InputError, match=r"no folder .*nowhere"):
    million_song.plan(source, split_files=tmp_path / "nowhere")
  with pytest.raises(InputError, match="holds no CALS split"):
    million_song.plan(source, split="cals")


def test_own_split_without_a_list_is_alphabetical(source):
  rows = [
    f"{IDS[0]},train,rock| Ölig ||jazz|rock",
    f"{IDS[1]},valid,Z",
    f"{IDS[5]},Test,",
    f"{IDS[6]},unlabelled,",
  ]
  plan = million_song.plan(source, **made.write_own(source, rows))
  assert plan["name"] == "million_song_mine_2"
  assert plan["tags"] == ["Z", "jazz", "rock", "Ölig"]
  assert [(t["split"], t["tags"]) for t in plan["tracks"]] == [
    ("train", ["jazz", "rock", "Ölig"]),
    ("validation", ["Z"]),
    ("test", []),
    ("unlabelled", []),  # those in paths.csv alone
    ("unlabelled", []),
  ]
  assert (plan["benchmark"], plan["published"]) == ("", None)


def test_own_split_with_a_list_has_its_order(source):
  rows = [f"{IDS[0]},train,a|c|b", f"{IDS[1]},test,b"]
  plan = million_song.plan(source, **made.write_own(source, rows, "cbda"))
  assert plan["tags"] == ["c", "b", "d", "a"]
  assert plan["tracks"][0]["tags"] == ["c", "b", "a"]


def test_loads_as_much_as_asked(source):
  made.write_choi(source)
  plan = million_song.plan(source, max_seconds=0.5)
  load = pickle.loads(pickle.dumps(plan["load"]))
  assert sum(map(len, load(plan["tracks"][0]))) == 8000


TABLES = os.environ.get("SSL_MUSIC_TABLES")


@pytest.mark.skipif(
  not TABLES,
  reason="set SSL_MUSIC_TABLES to a folder that holds msd/ (the lists of"
  " keunwoochoi/MSD_split_for_tagging)",
)
def test_the_published_lists(tmp_path):
  msd = Path(TABLES) / "msd"
  made.write_paths(tmp_path, [])
  plan = million_song.plan(tmp_path, split_files=msd)
  tags = (msd / "50tagList.txt").read_text().splitlines()
  assert plan["tags"] == tags
  assert tags[:3] == ["rock", "pop", "alternative"]
  assert len(tags) == 50
  for part, count in (("validation", 12_634), ("test", 28_540)):
    tracks = [track for track in plan["tracks"] if track["split"] == part]
    ids = (msd / f"{made.PARTS[part]}_x_msd_id.txt").read_text().split()
    labels = np.load(msd / f"{made.PARTS[part]}_y.npy")
    assert [track["id"] for track in tracks] == ids
    assert len(tracks) == count
    for column, tag in enumerate(tags):
      found = np.array([tag in track["tags"] for track in tracks])
      np.testing.assert_array_equal(found, labels[:, column], err_msg=tag)
  if not (msd / "train_y.npy").exists():
    assert plans.describe(plan)["as_published"] is None
    assert "train_y.npy" in plan["notes"][0]
