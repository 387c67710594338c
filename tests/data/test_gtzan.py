import pickle

import numpy as np
import pytest
import soundfile

from ssl_music.data import gtzan, plans
from ssl_music.errors import InputError

LAYOUTS = ("", "genres", "genres_original", "Data/genres_original")


def put(root, *names):
  """Makes files, decodable as far as they are wav."""
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".wav":
      soundfile.write(path, np.linspace(0.498, 0.502, 2205), 22_050)
    else:
      path.write_bytes(b"x")


def by_id(plan):
  return {track["id"]: track for track in plan["tracks"]}


def test_split_has_the_published_counts_and_no_excerpt_twice():
  sizes = {"train": 443, "validation": 197, "test": 290}
  written = [
    (genre, number)
    for genres in gtzan._RANGES.values()
    for genre, ranges in genres.items()
    for number in gtzan._expand(ranges)
  ]
  assert len(written) == len(set(written)) == sum(sizes.values()) == 930
  assert {genre for genre, _ in written} == set(gtzan.GENRES)
  assert {number for _, number in written} == set(range(gtzan.EACH))
  split = gtzan.split()
  assert gtzan.PUBLISHED["tracks"] == sizes
  for name, size in sizes.items():
    assert list(split.values()).count(name) == size
  hashed = plans.fingerprint(
    ((name, track) for track, name in split.items()), gtzan.GENRES
  )
  assert gtzan.PUBLISHED["fingerprint"] == hashed


def test_split_puts_excerpts_where_the_published_lists_have_them():
  expected = {  # the ends of ranges in each list
    "blues.00029": "train",
    "disco.00005": "train",
    "jazz.00054": "train",
    "rock.00099": "train",
    "blues.00000": "validation",
    "rock.00085": "validation",
    "blues.00012": "test",
    "rock.00090": "test",
  }
  split = gtzan.split()
  assert {track: split[track] for track in expected} == expected
  left_out = ("classical.00042", "hiphop.00039", "jazz.00033", "pop.00015")
  assert not split.keys() & set(left_out)
  ids = list(split)
  assert (ids[0], ids[-1]) == ("blues.00029", "rock.00090")


def test_split_has_the_published_counts_of_each_genre():
  counts = {
    "train": (46, 48, 45, 42, 47, 43, 44, 41, 43, 44),
    "validation": (23, 20, 23, 22, 18, 17, 20, 13, 17, 24),
    "test": (31, 31, 30, 29, 27, 27, 27, 30, 26, 32),
  }
  ids = [(split, track[:-6]) for track, split in gtzan.split().items()]
  for split, expected in counts.items():
    assert [ids.count((split, g)) for g in gtzan.GENRES] == list(expected)


def test_ranges():
  assert gtzan._expand("0 3-5 28-29") == [0, 3, 4, 5, 28, 29]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tracks(tmp_path, layout):
  root = tmp_path / layout
  put(root, "blues/blues.00029.wav", "rock/rock.00090.FLAC")
  plan = gtzan.plan(tmp_path)
  assert len(plan["tracks"]) == 930
  assert [t["id"] for t in plan["tracks"]] == list(gtzan.split())
  tracks = by_id(plan)
  blues = tracks["blues.00029"]
  assert blues["file"] == str(root / "blues/blues.00029.wav")
  assert (tmp_path / blues["path"]) == root / "blues/blues.00029.wav"
  assert (blues["split"], blues["tags"]) == ("train", ["blues"])
  assert blues["artist"] == ""
  assert tracks["rock.00090"]["file"].endswith("rock.00090.FLAC")
  absent = [t for t in plan["tracks"] if t["file"] is None]
  assert len(absent) == 928
  first = tracks["blues.00030"]
  assert tmp_path / first["path"] == root / "blues/blues.00030.au"
  assert plan["notes"] == []


def test_a_plan_is_whole(tmp_path):
  put(tmp_path, "genres/blues/blues.00029.wav")
  plan = gtzan.plan(tmp_path, max_seconds=0.05)
  assert plan["tags"] == sorted(plan["tags"]) == gtzan.GENRES
  assert plan["name"] == "gtzan"
  assert plan["known_bad"].keys() <= by_id(plan).keys()
  assert plan["published"] == gtzan.PUBLISHED
  for track in plan["tracks"]:
    assert track["tags"] == [track["id"].split(".")[0]]
  load = pickle.loads(pickle.dumps(plan["load"]))
  pcm = np.concatenate(list(load(by_id(plan)["blues.00029"])))
  assert pcm.dtype == np.float32
  assert len(pcm) == 800  # 0.05 s at 16 kHz
  assert pcm[200:600] == pytest.approx(0.5, abs=0.01)


def test_left_out_excerpts_other_files_and_copies_are_told_not_taken(tmp_path):
  put(
    tmp_path / "genres",
    "blues/blues.00029.wav",
    "blues/blues.00029.mp3",  # the same, another format
    "classical/classical.00042.wav",  # of the 70
    "pop/pop.00015.wav",  # of the 70
    "blues/blues.00100.wav",  # there are 100
    "blues/blues.29.wav",
    "blues/blues.0٠029.wav",  # a digit, but not of ASCII
    "blues/rock.00000.wav",  # its genre is not the folder's
    "blues/more/blues.00030.wav",
    "polka/polka.00000.wav",
    "blues/cover.jpg",  # no audio at all: of no concern
  )
  plan = gtzan.plan(tmp_path)
  assert len(plan["tracks"]) == 930
  found = [t["id"] for t in plan["tracks"] if t["file"]]
  assert found == ["blues.00029"]
  assert by_id(plan)["blues.00029"]["file"].endswith(".wav")
  assert "classical.00042" not in by_id(plan)
  left_out, strange, copies = plan["notes"]
  assert left_out.endswith("distortions, 2 are here and not taken.")
  assert "not taken: 6, such as " in strange
  assert copies.endswith(": 1.")


def test_the_folder_with_most_genres_is_taken(tmp_path):
  put(tmp_path, "rock/my own.wav")
  put(tmp_path / "genres", "rock/rock.00000.wav", "pop/pop.00000.wav")
  tracks = by_id(gtzan.plan(tmp_path))
  assert tracks["rock.00000"]["file"] == str(
    tmp_path / "genres/rock/rock.00000.wav"
  )


def test_a_plan_without_any_audio_is_a_plan(tmp_path):
  (tmp_path / "genres" / "blues").mkdir(parents=True)
  plan = gtzan.plan(tmp_path)
  assert all(track["file"] is None for track in plan["tracks"])


def test_wrong_folder(tmp_path):
  with pytest.raises(InputError, match=r"no folder .*nowhere"):
    gtzan.plan(tmp_path / "nowhere")
  put(tmp_path, "music/a.wav", "blues")  # a file of a genre's name
  with pytest.raises(InputError, match="no folder of a genre") as error:
    gtzan.plan(tmp_path)
  for layout in LAYOUTS:
    assert str(tmp_path / layout) in str(error.value)
