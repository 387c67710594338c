import os
import pickle
from pathlib import Path

import pytest

from ssl_music.data import mtg_jamendo, plans
from ssl_music.errors import InputError

HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
ROWS = {
  "train": [
    (241, 5, ["genre---rock"]),
    (1242, 5, ["genre---pop", "genre---a"]),
  ],
  "validation": [(7, 6, ["genre---rock"])],
  "test": [(1376256, 7, ["genre---rock", "genre---a"])],
}
TABLES = os.environ.get("SSL_MUSIC_TABLES")
real = pytest.mark.skipif(
  not TABLES,
  reason="set SSL_MUSIC_TABLES to a folder with the publisher's mtg-jamendo/",
)


def line(number, artist, tags, **changes):
  """A row as the publisher writes it, but for some fields."""
  fields = {
    "id": f"track_{number:07}",
    "artist": f"artist_{artist:06}",
    "album": "album_000001",
    "path": f"{number % 100:02}/{number}.mp3",
    "seconds": "30.5",
    **changes,
  }
  return "\t".join([*fields.values(), *tags])


def write_tables(source, rows, *, table="autotagging_genre", end="\n", split=0):
  """Writes the parts' tables; rows are those of `ROWS`, or text."""
  home = source / "data" / "splits" / f"split-{split}"
  home.mkdir(parents=True, exist_ok=True)
  for part, part_rows in rows.items():
    lines = [r if isinstance(r, str) else line(*r) for r in part_rows]
    text = "".join(one + end for one in [HEADER, *lines])
    (home / f"{table}-{part}.tsv").write_bytes(text.encode())
  return home


def write_list(source, name, lines):
  path = source / "data" / "tags" / name
  path.parent.mkdir(exist_ok=True)
  path.write_text("".join(f"{one}\n" for one in lines))
  return path


def touch(*paths):
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def message(*args, **kwargs):
  with pytest.raises(InputError) as caught:
    mtg_jamendo.plan(*args, **kwargs)
  return str(caught.value)


def present(plan):
  return {t["id"]: t["path"] for t in plan["tracks"] if t["file"] is not None}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_reads_ragged_tables_with_either_line_end(tmp_path, end):
  write_tables(tmp_path, ROWS, end=end)
  plan = mtg_jamendo.plan(tmp_path, subset="genre")
  assert [(t["id"], t["split"], t["tags"]) for t in plan["tracks"]] == [
    ("track_0000241", "train", ["genre---rock"]),
    ("track_0001242", "train", ["genre---a", "genre---pop"]),
    ("track_0000007", "validation", ["genre---rock"]),
    ("track_1376256", "test", ["genre---a", "genre---rock"]),
  ]
  assert plan["tags"] == ["genre---a", "genre---pop", "genre---rock"]
  first = plan["tracks"][0]
  assert first["artist"] == "artist_000005"
  assert (first["path"], first["file"]) == ("41/241.mp3", None)
  assert plan["name"] == "mtg_jamendo_genre"
  pickle.loads(pickle.dumps(plan["load"]))
  notes = " ".join(plan["notes"])
  assert "3 tags, where MTG's subset genre has 87" in notes
  assert "none of the 4 tracks has audio" in notes


def test_parts_may_end_lines_each_in_its_own_way(tmp_path):
  write_tables(tmp_path, {"train": ROWS["train"]})
  write_tables(tmp_path, {"validation": ROWS["validation"]}, end="\r\n")
  write_tables(tmp_path, {"test": ROWS["test"]}, end="\r\n")
  mixed = mtg_jamendo.plan(tmp_path, subset="genre")
  write_tables(tmp_path, ROWS)
  assert mixed["tracks"] == mtg_jamendo.plan(tmp_path, subset="genre")["tracks"]


def test_the_data_folder_itself_may_be_given(tmp_path):
  write_tables(tmp_path, ROWS)
  touch(tmp_path / "audio/41/241.mp3")
  inner = mtg_jamendo.plan(
    tmp_path / "data", subset="genre", audio_dir=tmp_path
  )
  outer = mtg_jamendo.plan(tmp_path, subset="genre")
  assert inner["tracks"] == outer["tracks"]  # paths from the folder of audio


def test_another_split_has_another_name_and_nothing_to_compare_with(tmp_path):
  write_tables(tmp_path, ROWS, split=3)
  plan = mtg_jamendo.plan(tmp_path, subset="genre", split=3)
  assert plan["name"] == "mtg_jamendo_genre_split3"
  assert plan["published"] is None
  assert "no counts of split 3 are on record here" in plan["notes"]
  text = message(tmp_path, subset="genre")
  assert "split-0" in text and "there: split-3" in text


def test_finds_the_files_that_are_there(tmp_path):
  write_tables(tmp_path, ROWS)
  audio = tmp_path / "audio"
  touch(audio / "41/241.mp3", audio / "42/1242.opus", audio / "43/1243.mp3")
  touch(audio / "07/7.low.mp3", audio / "07/7.txt", audio / "00/1376256.mp3")
  plan = mtg_jamendo.plan(tmp_path, subset="genre")
  assert present(plan) == {
    "track_0000241": "audio/41/241.mp3",
    "track_0001242": "audio/42/1242.opus",
    "track_0000007": "audio/07/7.low.mp3",
  }
  for track in plan["tracks"][:3]:
    assert track["file"] == str(tmp_path / track["path"])
  assert plan["tracks"][3]["path"] == "56/1376256.mp3"  # in another folder
  assert "3 of 4 tracks have audio, in audio" in plan["notes"]


@pytest.mark.parametrize("folder", mtg_jamendo.AUDIO_DIRS)
def test_audio_may_be_where_the_publisher_puts_it(tmp_path, folder):
  write_tables(tmp_path, ROWS)
  touch(tmp_path / "audio/12/3456.mp3")  # of no track
  touch(tmp_path / folder / "41/241.low.mp3")
  plan = mtg_jamendo.plan(tmp_path, subset="genre")
  expected = os.path.normpath(f"{folder}/41/241.low.mp3")
  assert present(plan) == {"track_0000241": expected}


def test_the_folder_with_most_audio_is_taken_and_the_full_one_first(tmp_path):
  write_tables(tmp_path, ROWS)
  low = tmp_path / "audio-low"
  touch(low / "41/241.low.mp3", low / "42/1242.low.mp3")
  touch(tmp_path / "audio/41/241.mp3")
  both = {"audio-low/41/241.low.mp3", "audio-low/42/1242.low.mp3"}
  plan = mtg_jamendo.plan(tmp_path, subset="genre")
  assert set(present(plan).values()) == both
  touch(tmp_path / "audio/42/1242.mp3")
  plan = mtg_jamendo.plan(tmp_path, subset="genre")
  assert set(present(plan).values()) == {
    "audio/41/241.mp3",
    "audio/42/1242.mp3",
  }
  plan = mtg_jamendo.plan(tmp_path, subset="genre", audio_dir=low)
  assert set(present(plan).values()) == both


def test_audio_may_lie_elsewhere(tmp_path):
  source, audio = tmp_path / "repository", tmp_path / "disk"
  write_tables(source, ROWS)
  touch(audio / "41/241.flac")
  plan = mtg_jamendo.plan(source, subset="genre", audio_dir=audio)
  assert present(plan) == {"track_0000241": "41/241.flac"}
  assert plan["tracks"][0]["file"] == str(audio / "41/241.flac")
  text = message(source, subset="genre", audio_dir=tmp_path / "nowhere")
  assert "nowhere" in text and "--audio_dir" in text


@pytest.mark.parametrize(
  ("row", "column", "said"),
  [
    (line(8, 1, ["genre"]), "'TAGS'", "'genre'"),
    (line(8, 1, [""]), "'TAGS'", "''"),
    (line(8, 1, ["genre---a", "mood/theme---b"]), "7", "'mood/theme---b'"),
    (line(8, 1, ["genre---a", "genre---b", "c"]), "8", "'c'"),
    (line(8, 1, ["genre---a", ""]), "7", "''"),
    (line(8, 1, ["genre---a "]), "'TAGS'", "'genre---a '"),
    (line(8, 1, ["genre---a|b"]), "'TAGS'", "'genre---a|b'"),
    (line(8, 1, ["genre---a", "genre---a"]), "7", "is there twice"),
    (line(8, 1, ["genre---a"], seconds="long"), "'DURATION'", "'long'"),
    (line(8, 1, ["genre---a"], seconds="nan"), "'DURATION'", "'nan'"),
    (line(8, 1, ["genre---a"], seconds="-1.0"), "'DURATION'", "'-1.0'"),
    (line(8, 1, ["genre---a"], seconds="0.0"), "'DURATION'", "'0.0'"),
    (line(8, 1, ["genre---a"], seconds="9" * 400), "'DURATION'", "'999"),
    (line(8, 1, ["genre---a"], id="8"), "'TRACK_ID'", "'8'"),
    (line(8, 1, ["genre---a"], id="track_8"), "'TRACK_ID'", "'track_8'"),
    (line(8, 1, ["genre---a"], id="track_000000x"), "'TRACK_ID'", "000x"),
    (line(8, 1, ["genre---a"], path="../8.mp3"), "'PATH'", "leaves"),
    (line(8, 1, ["genre---a"], path="/08/8.mp3"), "'PATH'", "leaves"),
    (line(8, 1, ["genre---a"], path=""), "'PATH'", "no path"),
    (line(8, 1, ["genre---a"], path="41/241.mp3"), "'PATH'", "track_0000008"),
    (line(1242, 1, ["genre---a"]), "'TRACK_ID'", "genre-train.tsv, line 3"),
    (line(7, 1, ["genre---a"]), "'TRACK_ID'", "-validation.tsv, line 2"),
    (line(1376256, 1, ["genre---a"]), "'TRACK_ID'", "-test.tsv, line 2"),
  ],
)
def test_says_which_field_is_wrong(tmp_path, row, column, said):
  home = write_tables(tmp_path, ROWS | {"test": [*ROWS["test"], row]})
  text = message(tmp_path, subset="genre")
  place = f"{home / 'autotagging_genre-test.tsv'}, line 3, column {column}"
  assert text.startswith(place)
  assert said in text[len(place) :]
  assert "\n" not in text


def test_says_which_row_or_header_is_wrong(tmp_path):
  home = write_tables(tmp_path, ROWS)
  table = home / "autotagging_genre-validation.tsv"
  whole = table.read_text()
  for text, said in [
    (f"{HEADER}\ntrack_0000007\tartist_000006\n", "line 2 has 2 fields"),
    (whole.replace("DURATION", "LENGTH"), "line 1 has no column 'DURATION'"),
    (whole.replace("TAGS", "TAGS\tMORE"), "line 2 has 6 fields"),
    (
      whole.replace("TAGS", "TAGS\tMORE").replace("---rock", "---rock\tx"),
      "line 1, column 'TAGS' is not the last column",
    ),
    (f"{HEADER}\n", "has no rows"),
    ("", "is empty"),
  ]:
    table.write_text(text)
    found = message(tmp_path, subset="genre")
    assert found.startswith(str(table)) and said in found
  table.write_bytes(whole.encode().replace(b"artist", b"\xffrtist"))
  assert "line 2" in message(tmp_path, subset="genre")


@pytest.mark.parametrize("subset", mtg_jamendo.SUBSETS)
def test_a_subset_has_tags_of_its_categories_alone(tmp_path, subset):
  table, categories, _ = mtg_jamendo.SUBSETS[subset]
  for category in ("genre", "instrument", "mood/theme", "decade"):
    rows = {
      part: [(number, 1, [f"{category}---x"])]
      for number, part in enumerate(plans.SCORED)
    }
    write_tables(tmp_path, rows, table=table)
    if category in categories:
      plan = mtg_jamendo.plan(tmp_path, subset=subset)
      assert plan["tags"] == [f"{category}---x"]
    else:
      assert "column 'TAGS'" in message(tmp_path, subset=subset)


def test_the_repositorys_list_is_the_vocabulary(tmp_path):
  home = write_tables(tmp_path, ROWS, table="autotagging_top50tags")
  tags = ["genre---a", "genre---b", "genre---pop", "genre---rock"]
  path = write_list(tmp_path, "top50.txt", tags)
  plan = mtg_jamendo.plan(tmp_path)
  assert plan["tags"] == tags
  assert (
    "1 of the 4 tags of top50.txt are on no track: genre---b" in plan["notes"]
  )
  write_list(tmp_path, "top50.txt", tags[1:])
  place = f"{home / 'autotagging_top50tags-train.tsv'}, line 3, column 7"
  text = message(tmp_path)
  assert text.startswith(place) and "'genre---a'" in text
  for lines, said in [
    ([tags[1], tags[0], *tags[2:]], "line 2: 'genre---a'"),
    ([*tags, tags[-1]], "line 5: 'genre---rock'"),
    ([*tags, "rock"], "line 5: 'rock'"),
    ([], "is empty"),
  ]:
    write_list(tmp_path, "top50.txt", lines)
    text = message(tmp_path)
    assert text.startswith(str(path)) and said in text


def test_the_longer_list_of_moods_is_not_taken(tmp_path):
  rows = {
    part: [(number, 1, ["mood/theme---x"])]
    for number, part in enumerate(plans.SCORED)
  }
  write_tables(tmp_path, rows, table="autotagging_moodtheme")
  write_list(tmp_path, "moodtheme.txt", ["mood/theme---x", "mood/theme---y"])
  plan = mtg_jamendo.plan(tmp_path, subset="moodtheme")
  assert plan["tags"] == ["mood/theme---x"]


def test_says_what_is_missing_and_what_is_there(tmp_path):
  assert "--source" in message(tmp_path / "nowhere")
  text = message(tmp_path)
  assert "data/splits" in text and str(tmp_path) in text
  home = write_tables(tmp_path, ROWS)
  write_tables(tmp_path, ROWS, table="autotagging")
  (home / "autotagging_instrument-train.tsv").touch()  # a part of three
  text = message(tmp_path)
  assert "autotagging_top50tags-train.tsv" in text and str(home) in text
  assert "there: genre, all)" in text
  text = message(tmp_path, subset="instrument")
  assert "no autotagging_instrument-validation.tsv" in text
  assert "instrument-train" not in text
  assert "top50, genre" in message(tmp_path, subset="tempo")
  assert "0, 1, 2, 3, 4" in message(tmp_path, subset="genre", split=5)


@real
@pytest.mark.parametrize(
  ("subset", "tags", "train", "validation", "test"),
  [
    ("top50", 50, 32_136, 10_888, 11_356),
    ("genre", 87, 32_572, 11_043, 11_479),
    ("instrument", 40, 14_395, 5_466, 5_115),
    ("moodtheme", 56, 9_949, 3_802, 4_231),
    ("all", 183, 32_859, 11_101, 11_565),
  ],
)
def test_the_published_tables(subset, tags, train, validation, test):
  source = Path(TABLES) / "mtg-jamendo"
  plan = mtg_jamendo.plan(source, subset=subset)
  counts = {"train": train, "validation": validation, "test": test}
  assert plans.count(plan["tracks"]) == counts
  assert len(plan["tags"]) == tags
  assert plan["tags"] == sorted(plan["tags"])
  artists = {split: set() for split in counts}
  for track in plan["tracks"]:
    artists[track["split"]].add(track["artist"])
  assert len(set.union(*artists.values())) == sum(map(len, artists.values()))
  assert plans.describe(plan)["as_published"]
  assert len(plan["notes"]) == 1  # where audio is, and nothing odd
  # The tables alone, without the list, give the same vocabulary.
  used = {tag for track in plan["tracks"] for tag in track["tags"]}
  assert sorted(used) == plan["tags"]
  lists = {"top50": "top50.txt", "moodtheme": "moodtheme_split.txt"}
  if subset in lists:
    listed = (source / "data/tags" / lists[subset]).read_text().split()
    assert plan["tags"] == listed


@real
def test_the_subsets_hold_the_tags_of_the_whole():
  source = Path(TABLES) / "mtg-jamendo"
  whole = mtg_jamendo.plan(source, subset="all")
  for subset in ("top50", "genre", "instrument", "moodtheme"):
    plan = mtg_jamendo.plan(source, subset=subset)
    kept = {t["id"]: (t["split"], t["tags"]) for t in plan["tracks"]}
    columns = set(plan["tags"])
    expected = {
      t["id"]: (t["split"], [tag for tag in t["tags"] if tag in columns])
      for t in whole["tracks"]
    }
    assert kept == {name: row for name, row in expected.items() if row[1]}
