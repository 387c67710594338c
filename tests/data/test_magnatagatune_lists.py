import os
import pickle
import random

import numpy as np
import pytest
from tiny_mtat import (
  CLIPS,
  VOCABULARY,
  by_id,
  write,
  write_lists,
)

from ssl_music.data import magnatagatune
from ssl_music.errors import InputError


@pytest.fixture
def source(tmp_path):
  return write(tmp_path / "mtat")


def test_published_lists_decide_on_clips_and_their_order(source, tmp_path):
  lists = write_lists(source / "MTAT_split")
  plan = magnatagatune.plan(source)
  given = [(t["split"], t["id"]) for t in plan["tracks"]]
  assert given == [
    ("train", "30"),
    ("train", "2"),
    ("validation", "1"),
    ("test", "6"),
    ("test", "5"),
    ("test", "7"),
  ]
  assert plan["tags"] == VOCABULARY
  assert by_id(plan)["5"]["tags"] == ["guitar", "metal", "female voice"]
  assert plan["benchmark"] == "MagnaTagATune, cleaned split (published lists)"
  (note,) = plan["notes"]
  assert "None of the clips is there" in note
  moved = lists.rename(tmp_path / "elsewhere")
  assert "rebuilt" in magnatagatune.plan(source)["benchmark"]
  again = magnatagatune.plan(source, split_files=moved)
  assert again["tracks"] == plan["tracks"]
  rebuilt = magnatagatune.plan(source)
  assert by_id(rebuilt) == by_id(plan)
  assert again["published"] != rebuilt["published"]


def test_vocabulary_is_that_of_the_list_of_tags(source):
  order = ["metal", "unused", "guitar"]
  write_lists(source / "MTAT_split", vocabulary=order, lines=order)
  plan = magnatagatune.plan(source)
  assert plan["tags"] == order
  assert by_id(plan)["5"]["tags"] == ["metal", "guitar"]
  assert by_id(plan)["1"]["tags"] == []
  assert any("most frequent" in note for note in plan["notes"])


def test_lists_alone_are_enough(source):
  lists = write_lists(source / "MTAT_split")
  for path in [*lists.glob("y_*"), lists / "top50_tags.txt"]:
    path.unlink()
  plan = magnatagatune.plan(source)
  assert plan["tags"] == VOCABULARY
  (note,) = [note for note in plan["notes"] if "compare" in note]
  assert all(f"y_{s}_pub.npy" in note for s in ("train", "valid", "test"))


def test_every_label_is_compared_with_the_arrays(source):
  lists = write_lists(source / "MTAT_split")
  plan = magnatagatune.plan(source)
  paths = {clip[0]: clip[1] for clip in CLIPS}
  seen = 0
  for short in ("train", "valid", "test"):
    file = lists / f"y_{short}_pub.npy"
    array = np.load(file)
    part = {"valid": "validation"}.get(short, short)
    tracks = [t for t in plan["tracks"] if t["split"] == part]
    for row, column in np.ndindex(array.shape):
      changed = array.copy()
      changed[row, column] = 1 - changed[row, column]
      np.save(file, changed)
      with pytest.raises(InputError) as caught:
        magnatagatune.plan(source)
      said = str(caught.value)
      assert said.startswith(str(file))
      assert paths[tracks[row]["id"]] in said
      assert repr(VOCABULARY[column]) in said
      seen += 1
    np.save(file, array.astype(np.uint8))
  assert seen == 6 * 5
  magnatagatune.plan(source)


def test_swapped_columns_are_noticed(source):
  swapped = ["guitar", "noVocals", "metal", "femaleVoice", "loud"]
  write_lists(source / "MTAT_split", lines=swapped)
  with pytest.raises(InputError, match=r"column 3 \('female voice'\)"):
    magnatagatune.plan(source)


@pytest.mark.parametrize(
  "array, said",
  [
    (np.full((2, 5), 0.5), "row 0 .*column 0 .*0.5 is neither 0 nor 1"),
    (np.full((2, 5), np.nan), "nan is neither 0 nor 1"),
    (np.full((2, 5), 2, np.int64), "2 is neither 0 nor 1"),
    (np.zeros((3, 5)), r"shape \(3, 5\), not \(2, 5\)"),
    (np.zeros((2, 6)), r"shape \(2, 6\), not \(2, 5\)"),
    (np.zeros(10), r"shape \(10,\), not \(2, 5\)"),
    (np.full((2, 5), "1"), "y_train_pub.npy"),
    (np.full((2, 5), 1, object), "y_train_pub.npy"),
  ],
)
def test_arrays_that_are_no_labels_of_the_list(source, array, said):
  lists = write_lists(source / "MTAT_split")
  np.save(lists / "y_train_pub.npy", array)
  with pytest.raises(InputError, match=said) as caught:
    magnatagatune.plan(source)
  assert str(caught.value).startswith(str(lists / "y_train_pub.npy"))


@pytest.mark.parametrize(
  "names, said",
  [
    (["0/none-0-29.npy"], "entry 0: .*no clip '0/none-0-29'"),
    (["b/abc-song_v.2-01-b-29-58.npy"] * 2, "entry 1 names .* again"),
    (["c/d-e-01-f-0-29.npy"], r"again \(first in train_list_pub.cP, entry 0"),
    (["../0/abc-song_v.2-01-b-0-29.npy"], "entry 0: .*leaves the folder"),
    (["/etc/passwd"], "entry 0: .*leaves the folder"),
    ([""], "entry 0: .*no path"),
    ([3], "entry 0"),
    ("text", "instead of a list"),
  ],
)
def test_lists_that_are_wrong(source, names, said):
  lists = write_lists(source / "MTAT_split")
  (lists / "train_list_pub.cP").write_bytes(pickle.dumps(names, 2))
  with pytest.raises(InputError, match=said) as caught:
    magnatagatune.plan(source)
  assert "train_list_pub.cP" in str(caught.value)


def test_a_hostile_list_runs_nothing(source):
  lists = write_lists(source / "MTAT_split")
  trace = source / "trace"

  class Hostile:
    def __reduce__(self):
      return os.mkdir, (str(trace),)

  code = pickle.dumps([Hostile()], 2)
  pickle.loads(code)  # it works
  trace.rmdir()
  (lists / "valid_list_pub.cP").write_bytes(code)
  with pytest.raises(InputError, match=r"valid_list_pub\.cP.*mkdir"):
    magnatagatune.plan(source)
  assert not trace.exists()


@pytest.mark.parametrize(
  "lines, said",
  [
    (["guitar", "banjo"], "line 2: tag 'banjo' is 0 columns"),
    (["guitar", "", "guitar"], "line 3 names tag 'guitar' again"),
    (["no vocals", "noVocals"], "line 2 names tag 'noVocals' again"),
    ([], "is empty"),
  ],
)
def test_lists_of_tags_that_are_wrong(source, lines, said):
  write_lists(source / "MTAT_split", lines=lines)
  with pytest.raises(InputError, match=f"top50_tags.txt.*{said}"):
    magnatagatune.plan(source)


def test_damaged_files_are_errors_or_the_same_labels(source):
  """A changed byte of one file: what the arrays hold is never altered."""
  lists = write_lists(source / "MTAT_split")
  plan = magnatagatune.plan(source)
  labels = {track["path"]: track["tags"] for track in plan["tracks"]}
  draw = random.Random(0)
  paths = [source / "annotations_final.csv", *sorted(lists.iterdir())]
  refused = 0
  for _ in range(300):
    path = draw.choice(paths)
    whole = path.read_bytes()
    place = draw.randrange(len(whole))
    kept = whole[:place] + draw.randbytes(draw.randrange(3))
    path.write_bytes(kept + whole[place + draw.randrange(3) :])
    try:
      found = magnatagatune.plan(source)
    except InputError as error:
      refused += 1
      assert "\n" not in str(error)
      assert str(source) in str(error)
    else:
      for track in found["tracks"]:
        named = [VOCABULARY.index(t) for t in track["tags"] if t in VOCABULARY]
        if len(named) == len(track["tags"]) and track["path"] in labels:
          assert track["tags"] == labels[track["path"]]
    path.write_bytes(whole)
  assert refused > 150
