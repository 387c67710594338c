import collections
import unicodedata

import numpy as np
import pytest
import soundfile

from ssl_music.data import files, folder
from ssl_music.errors import InputError


@pytest.fixture
def source(tmp_path):
  root = tmp_path / "music"
  rng = np.random.default_rng(0)
  for name in ("a.wav", "Sub Folder/bé.FLAC", "sub/c.Ogg", "d.aif"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"aif": "AIFF"}.get(name[-3:].lower())
    soundfile.write(path, rng.uniform(-1, 1, 8000), 8000, format=kind)
  (root / "e.M4A").write_bytes(b"x")
  (root / "cover.jpg").write_bytes(b"x")
  (root / "._a.wav").write_bytes(b"a Mac's resource fork")
  return root


def manifest(source, text, encoding="utf-8"):
  path = source.parent / "manifest.csv"
  path.write_text(text, encoding=encoding)
  return path


def by_path(plan):
  return {track["path"]: track for track in plan["tracks"]}


def test_finds_audio_of_any_name(source):
  expected = ["Sub Folder/bé.FLAC", "a.wav", "d.aif", "e.M4A", "sub/c.Ogg"]
  assert files.find_audio(source) == expected


def test_links_that_lead_back_are_followed_once(source):
  (source / "sub" / "loop").symlink_to(source)
  (source / "again").symlink_to(source / "sub")
  assert len(files.find_audio(source)) == 5


def test_without_a_manifest_all_is_unlabelled(source):
  plan = folder.plan(source)
  assert {track["split"] for track in plan["tracks"]} == {"unlabelled"}
  assert plan["tags"] == []
  blocks = list(plan["load"](by_path(plan)["a.wav"]))
  assert sum(map(len, blocks)) == 16_000


def test_manifest_gives_tags_and_split(source):
  text = (
    "path,tags,split\n"
    'a.wav,"b|a| a ||",train\n'
    "sub/c.Ogg,c,val\n"
    "Sub Folder/bé.FLAC,,unlabelled\n"
  )
  for encoding in ("utf-8", "utf-8-sig"):
    plan = folder.plan(source, manifest=manifest(source, text, encoding))
    tracks = by_path(plan)
    assert plan["tags"] == ["a", "b", "c"]
    assert tracks["a.wav"]["tags"] == ["a", "b"]
    assert tracks["a.wav"]["split"] == "train"
    assert tracks["sub/c.Ogg"]["split"] == "validation"
    # No tag is no label; nor are files that the manifest does not name.
    assert tracks["Sub Folder/bé.FLAC"]["split"] == "unlabelled"
    assert tracks["d.aif"]["split"] == "unlabelled"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("path,tags\nx.wav,t\n", r"of 1 rows, 1 name no file.*: x.wav \(line 2\)"),
    (
      "path,tags\nd.aif,t\n1.wav,t\n2.wav,t\n3.wav,t\n4.wav,t\n5.wav,t\n",
      r"of 6 rows, 5 name no file in .*: 1.wav .*, 3.wav \(line 5\) and 2 more",
    ),
    ("path,tags\n../x.wav,t\n", "line 2, column .path.: .* leaves the folder"),
    ("path,tags\nsub/../../x.wav,t\n", "leaves the folder"),
    ("path,tags\n/etc/passwd,t\n", "leaves the folder"),
    (
      "path,tags\na.wav,t\n./a.wav,t\n",
      r"line 3, column 'path' names a\.wav again",
    ),
    ("file,tags\na.wav,t\n", "no column 'path'"),
    ("path\ta.wav\n", "no column 'path' and no column 'tags'"),
    ("", "is empty"),
    ("path,tags\na.wav\n", "line 2 has 1 fields, not the 2"),
    ("path,tags\na.wav,t,u\n", "line 2 has 3 fields, not the 2"),
    ('path,tags\n"a.wav,t\n', "line 2: .* correct the row's quotes"),
    ("path,tags\na.wav,t\x00u\n", "line 2 holds a NUL"),
    ("path,tags,split\na.wav,t,exam\n", "unknown split 'exam'"),
    ("path,tags,split\na.wav,t,train\nd.aif,t,\n", "for all or for none"),
    ("path,tags,split\na.wav,,test\n", "a test track without tags"),
    (f"path,tags\n{'x' * 300}.wav,t\n", r"xxx.wav \(line 2\)"),
    ("path,tags\n,t\n", "line 2.*is no path"),
  ],
)
def test_wrong_manifests_are_explained(source, text, message):
  with pytest.raises(InputError, match=message):
    folder.plan(source, manifest=manifest(source, text))


def test_commas_separate_tags_where_nothing_else_does(source):
  """Else they belong to a tag: "Folk, World" is one, of Discogs."""
  for cell, tags, noted in (
    ('"rock, pop"', ["pop", "rock"], False),
    ("rock; pop;rock", ["pop", "rock"], False),
    ("rock", ["rock"], False),
    ('"rock, pop|"', ["rock, pop"], True),
    ('"Folk, World|rock"', ["Folk, World", "rock"], True),
  ):
    plan = folder.plan(
      source, manifest=manifest(source, f"path,tags\na.wav,{cell}\nd.aif,x\n")
    )
    assert by_path(plan)["a.wav"]["tags"] == tags
    assert any("hold a comma" in note for note in plan["notes"]) == noted
  text = 'path,tags\na.wav,"Folk, World"\nd.aif,rock|pop\n'
  plan = folder.plan(source, manifest=manifest(source, text))
  assert plan["tags"] == ["Folk, World", "pop", "rock"]


def test_tags_that_differ_in_case_are_asked_about(source):
  text = "path,tags\na.wav,Rock|pop\nd.aif,rock\nsub/c.Ogg,Rock\n"
  (note,) = folder.plan(source, manifest=manifest(source, text))["notes"]
  said = "tags 'Rock' (2 tracks) and 'rock' (1 tracks) differ in nothing but"
  assert note.startswith(said)


def test_an_accent_may_be_written_in_two_ways(source):
  """As Macs write it in file names (NFD), and others in tables (NFC)."""
  one, two = (unicodedata.normalize(f, "Café/Ünï.wav") for f in ("NFC", "NFD"))
  (source / two).parent.mkdir()
  (source / two).write_bytes(b"x")
  rows = f"{one},Ébène,Björk\na.wav,E\u0301be\u0300ne,Bjo\u0308rk\n"
  text = f"path,tags,artist\n{rows}"
  plan = folder.plan(source, manifest=manifest(source, text))
  tracks = by_path(plan)
  assert one not in tracks
  assert tracks[two]["file"] == str(source / two)
  assert plan["tags"] == ["Ébène"]
  assert tracks[two]["artist"] == tracks["a.wav"]["artist"] == "Björk"
  assert tracks[two]["split"] == tracks["a.wav"]["split"]  # no artist in two
  (source / one).parent.mkdir()
  (source / one).write_bytes(b"x")  # now it is another file
  text = f"path,tags\n{one},a\n{two},b\n"
  tracks = by_path(folder.plan(source, manifest=manifest(source, text)))
  assert tracks[one]["tags"] == ["a"]
  assert tracks[two]["tags"] == ["b"]


def test_wrong_encoding_is_explained(source):
  path = manifest(source, "path,tags\nbé.wav,t\n", "latin-1")
  with pytest.raises(InputError, match="not UTF-8"):
    folder.plan(source, manifest=path)


def test_missing_sources_are_explained(source, tmp_path):
  with pytest.raises(InputError, match="no folder"):
    folder.plan(tmp_path / "absent")
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="no audio under"):
    folder.plan(tmp_path / "empty")
  with pytest.raises(InputError, match="cannot read"):
    folder.plan(source, manifest=tmp_path / "absent.csv")


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_groups_together_near_the_shares(seed):
  rng = np.random.default_rng(seed)
  groups = [f"artist {g}" for g in rng.integers(60, size=400)]
  split = folder.split_by_group(groups, seed)
  where = collections.defaultdict(set)
  for group, name in zip(groups, split, strict=True):
    where[group].add(name)
  assert all(len(names) == 1 for names in where.values())
  share = {name: split.count(name) / 400 for name in folder.SHARES}
  for name, wanted in folder.SHARES.items():
    assert share[name] == pytest.approx(wanted, abs=0.04)
  assert split == folder.split_by_group(groups, seed)
  assert split != folder.split_by_group(groups, seed + 1)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_few_groups_leave_no_split_empty(count):
  groups = [str(g) for g in range(count) for _ in range(10)]
  assert set(folder.split_by_group(groups, 0)) == set(folder.SHARES)


def test_a_file_of_several_names_is_one_track(source):
  (source / "again").symlink_to(source / "sub")
  text = "path,tags,split\nsub/c.Ogg,t,train\nagain/c.Ogg,t,test\n"
  with pytest.raises(InputError, match=r"line 3, .* names again/c\.Ogg again"):
    folder.plan(source, manifest=manifest(source, text))
  text = "path,tags,split\nagain/c.Ogg,t,test\n"
  plan = folder.plan(source, manifest=manifest(source, text))
  assert by_path(plan)["again/c.Ogg"]["split"] == "test"
  assert "sub/c.Ogg" not in by_path(plan)  # nor is it trained on
