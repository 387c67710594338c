import os

import million_song_files as made
import numpy as np
import pytest
from million_song_files import IDS, LABELS, TAGS, msd_id

from ssl_music.data import million_song
from ssl_music.errors import InputError


@pytest.fixture
def source(tmp_path):
  return made.write_source(tmp_path / "music")


def test_msd100_cannot_be_had(source):
  with pytest.raises(InputError, match=r"never published .* --split=lastfm"):
    million_song.plan(source, split="msd100")


def test_options_that_do_not_fit(source):
  made.write_choi(source)
  with pytest.raises(InputError, match="unknown split 'lastfn'"):
    million_song.plan(source, split="lastfn")
  with pytest.raises(InputError, match="--tags=t is for a CSV"):
    million_song.plan(source, tags="t")
  with pytest.raises(InputError, match="--split_files=f is for"):
    million_song.plan(source, split="mine.csv", split_files="f")
  with pytest.raises(InputError, match=r"cannot read mine\.csv"):
    million_song.plan(source, split="mine.csv")
  with pytest.raises(InputError, match="no folder"):
    million_song.plan(source / "nowhere")


def test_the_published_train_list_is_told_by_its_length(source, monkeypatch):
  made.write_filtered(source, monkeypatch, filtered_list_train=IDS[:7])
  with pytest.raises(InputError, match=r"train\.cP lists 7 tracks, not 8 "):
    million_song.plan(source)


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (["TRAADIN128F931D67,a.wav"], r"line 2, column 'msd_id': 'TRAADIN"),
    (["traadin128f931d672,a.wav"], r"line 2, column 'msd_id': 'traadin"),
    (["TRAADIN128F931D6720,a.wav"], r"line 2, column 'msd_id': 'TRAADIN"),
    (
      [f"{IDS[0]},a.wav", "", f"{IDS[0]},b.wav"],
      rf"line 4, column 'msd_id' names {IDS[0]} again",
    ),
    (
      [f"{IDS[0]},a/b.wav", f"{IDS[1]},a/./b.wav"],
      r"line 3, column 'path' names 'a/b.wav' again \(line 2\)",
    ),
    ([f"{IDS[0]},../b.wav"], r"line 2, column 'path': .* leaves the folder"),
    ([f"{IDS[0]},/b.wav"], r"line 2, column 'path': .* leaves the folder"),
    ([f"{IDS[0]},"], r"line 2, column 'path': '' is no path"),
    ([f"{IDS[0]},b.npy"], r"line 2, column 'path': 'b.npy' is no audio"),
    ([f"{IDS[0]}"], r"line 2 has 1 fields"),
  ],
)
def test_wrong_paths(source, rows, message):
  made.write_choi(source)
  made.write_paths(source, rows)
  with pytest.raises(InputError, match=rf"paths\.csv, {message}"):
    million_song.plan(source)


def test_no_paths(source, tmp_path):
  made.write_choi(source)
  (source / "paths.csv").rename(tmp_path / "other.csv")
  with pytest.raises(InputError, match=r"no table .*paths\.csv"):
    million_song.plan(source)
  plan = million_song.plan(source, paths=tmp_path / "other.csv")
  assert sum(track["file"] is not None for track in plan["tracks"]) == 4
  made.write_paths(source, [], "id,path")
  with pytest.raises(InputError, match=r"paths\.csv, line 1 .* 'msd_id'"):
    million_song.plan(source)


@pytest.mark.parametrize(
  ("rows", "tags", "message"),
  [
    ([f"{IDS[0]},train,a"], ["b"], r"2\.csv, line 2, column 'tags': tag 'a'"),
    (["TR1,train,a"], None, r"2\.csv, line 2, column 'msd_id': 'TR1'"),
    ([f"{IDS[0]},dev,a"], None, r"2\.csv, line 2, column 'split': .*'dev'"),
    ([f"{IDS[0]},,a"], None, r"2\.csv, line 2, column 'split': .*''"),
    (
      [f"{IDS[0]},unlabelled,a"],
      None,
      r"2\.csv, line 2, column 'tags': an unlabelled track has tags",
    ),
    (
      [f"{IDS[0]},train,a\x07"],
      None,
      r"2\.csv, line 2, column 'tags': tag .* not printable",
    ),
    (
      [f"{IDS[0]},train,a", f"{IDS[0]},test,a"],
      None,
      rf"2\.csv, line 3, column 'msd_id' names {IDS[0]} again, .* in train",
    ),
    (
      [f"{IDS[0]},train,a"],
      ["a", "b", "a"],
      r"tags\.txt, line 3 names tag 'a'",
    ),
    ([f"{IDS[0]},train,a"], ["a", "b|c"], r"tags\.txt, line 2: tag 'b\|c'"),
    ([f"{IDS[0]},train,a"], [], r"tags\.txt has 0 tags"),
  ],
)
def test_wrong_own_split(source, rows, tags, message):
  options = made.write_own(source, rows, tags)
  with pytest.raises(InputError, match=message):
    million_song.plan(source, **options)


def test_own_split_without_a_column(source):
  (source / "mine.csv").write_text("msd_id,split\n")
  with pytest.raises(InputError, match=r"mine\.csv, line 1 .*'tags'"):
    million_song.plan(source, split=source / "mine.csv")


def replaced(array, row, column, value):
  array = array.astype(float)
  array[row, column] = value
  return array


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    (LABELS[8:, :49], r"test_y\.npy holds bool of shape \[4, 49\], not .*50\]"),
    (LABELS[8:11], r"test_y\.npy holds bool of shape \[3, 50\], not .*\[4, 50"),
    (LABELS[8], r"test_y\.npy holds bool of shape \[50\]"),
    (np.full((4, 50), "0"), r"test_y\.npy holds <U1 of shape"),
    (
      replaced(LABELS[8:], 2, 7, 2),
      rf"test_y\.npy, item 3, column '{TAGS[7]}': 2.0 is neither",
    ),
    (
      replaced(LABELS[8:], 0, 1, np.nan),
      rf"test_y\.npy, item 1, column '{TAGS[1]}': nan is neither",
    ),
    (
      replaced(LABELS[8:], 1, 0, -1),
      rf"test_y\.npy, item 2, column '{TAGS[0]}': -1.0 is neither",
    ),
  ],
)
def test_wrong_labels(source, labels, message):
  folder = made.write_choi(source)
  np.save(folder / "test_y.npy", labels)
  with pytest.raises(InputError, match=message):
    million_song.plan(source)


@pytest.mark.parametrize(
  ("name", "lines", "message"),
  [
    ("valid_x_msd_id", [IDS[5], "", IDS[6], "x"], r"line 4: 'x' is no track"),
    ("valid_x_msd_id", [IDS[5], IDS[6], IDS[5]], r"line 3 names .* validation"),
    ("valid_x_msd_id", [IDS[5], IDS[6], IDS[0]], r"line 3 names .* in train"),
    ("50tagList", TAGS[:49], r" has 49 tags, not 50"),
    ("50tagList", [*TAGS[:49], TAGS[3]], f"line 50 names tag '{TAGS[3]}'"),
    ("50tagList", TAGS[::-1], f"line 1: tag '{TAGS[49]}', where"),
  ],
)
def test_wrong_lists(source, name, lines, message):
  folder = made.write_choi(source)
  (folder / f"{name}.txt").write_text("\n".join(lines))
  with pytest.raises(InputError, match=rf"{name}\.txt,? ?{message}"):
    million_song.plan(source)


def test_wrong_cals(source):
  folder = made.write_cals(source)
  np.save(folder / "student_ids.npy", np.array([msd_id(40), IDS[9]]))
  with pytest.raises(InputError, match=r"student_ids\.npy, item 2 .* in test"):
    million_song.plan(source, split="cals")
  for wrong in (np.arange(5), np.array([["a"]]), np.array("a")):
    np.save(folder / "valid_ids.npy", wrong)
    with pytest.raises(InputError, match=r"valid_ids\.npy is no list of text"):
      million_song.plan(source, split="cals")


def test_wrong_filtered_lists(source, monkeypatch):
  def message(**changes):
    made.write_filtered(source, monkeypatch, **changes)
    with pytest.raises(InputError) as error:
      million_song.plan(source)
    return str(error.value)

  vectors = {msd: LABELS[n] for n, msd in enumerate(IDS)}
  wrong = replaced(LABELS, 9, 4, 3)[9]
  said = message(msd_id_to_tag_vector=vectors | {IDS[9]: wrong})
  assert f"vector.cP, entry {IDS[9]!r}, column {TAGS[4]!r}: 3.0 is" in said
  for value in (LABELS[9][:49], None, "0" * 50, [[1], [1, 2]], ["1"] * 50):
    said = message(msd_id_to_tag_vector=vectors | {IDS[9]: value})
    assert f"vector.cP, entry {IDS[9]!r} is no vector of 50 numbers" in said
  del vectors[IDS[9]]
  said = message(msd_id_to_tag_vector=vectors)
  assert f"test.cP, item 2: track {IDS[9]!r} is not in" in said
  assert "holds no dict" in message(msd_id_to_tag_vector=IDS)
  said = message(filtered_list_test=[*IDS[8:], IDS[3]])
  assert f"test.cP, item 5 names {IDS[3]} again, which is in train" in said


def test_a_pickles_code_is_not_run(source, monkeypatch, tmp_path):
  class Hostile:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / "done"),)

  made.write_filtered(source, monkeypatch, filtered_list_test=[Hostile()])
  with pytest.raises(InputError, match=r"filtered_list_test\.cP"):
    million_song.plan(source)
  assert not (tmp_path / "done").exists()
