import itertools
import os

import pytest

from ssl_music.data import audio, files
from ssl_music.errors import InputError


def put(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def test_audio_of_every_known_extension_in_any_case(tmp_path):
  known = audio.EXTENSIONS + audio.AV_EXTENSIONS
  names = [f"f{index}{ext}" for index, ext in enumerate(known)]
  names += [f"sub/F{index}{ext.upper()}" for index, ext in enumerate(known)]
  others = [
    "cover.jpg",
    "tags.csv",
    "wav",
    "x.wav.part",
    ".wav",
    "sub/._f0.wav",
  ]
  put(tmp_path, *names, *others)
  (tmp_path / "folder.wav").mkdir()
  assert files.find_audio(tmp_path) == sorted(names)


def test_links_are_followed_each_folder_once(tmp_path):
  put(tmp_path, "music/z/a.wav", "outside/b.wav")
  (tmp_path / "music" / "z" / "loop").symlink_to(tmp_path / "music")
  (tmp_path / "music" / "more").symlink_to(tmp_path / "outside")
  (tmp_path / "music" / "again").symlink_to(tmp_path / "outside")
  (tmp_path / "music" / "c.wav").symlink_to(tmp_path / "outside" / "b.wav")
  # Of two links the first by name, whatever order the disk has them in.
  expected = ["again/b.wav", "c.wav", "z/a.wav"]
  assert files.find_audio(tmp_path / "music") == expected
  assert files.find_audio(tmp_path / "music" / "more") == ["b.wav"]


def test_no_folder(tmp_path):
  put(tmp_path, "a.wav")
  assert files.find_audio(tmp_path) == ["a.wav"]
  for path in (tmp_path / "nowhere", tmp_path / "a.wav"):
    with pytest.raises(InputError, match=r"no folder .*--source"):
      files.find_audio(path)


def test_every_file_found_can_be_told_by_its_stem(tmp_path):
  put(tmp_path, "a.mp3", ".mp3", "..mp3", ".a.mp3", "b/c.d.OGG", "b.x/c.ogg")
  paths = files.find_audio(tmp_path)
  stems = files.by_stem(paths)
  assert stems == {
    "a": "a.mp3",
    ".a": ".a.mp3",
    "b/c.d": "b/c.d.OGG",
    "b.x/c": "b.x/c.ogg",
  } | ({".": "..mp3"} if "..mp3" in paths else {})


def test_of_a_tracks_files_the_best_is_taken_in_any_order():
  # Best first, as the endings say, then as the list of extensions has them.
  best_first = [
    "01/7.low.flac",
    "01/7.low.mp3",
    "01/7.low.m4a",
    "01/7.wav",
    "01/7.MP3",
    "01/7.mp3",
  ]
  endings = (".low", "")
  for first, second in itertools.combinations(best_first, 2):
    for paths in ([first, second], [second, first]):
      assert files.by_stem(paths, endings) == {"01/7": first}


def test_the_order_of_endings_counts():
  paths = ["7.mp3", "7.low.mp3"]
  assert files.by_stem(paths, ("", ".low")) == {"7": "7.mp3"}
  assert files.by_stem(paths, (".low", "")) == {"7": "7.low.mp3"}
  assert files.by_stem(paths) == {"7": "7.mp3", "7.low": "7.low.mp3"}
  # An ending alone allows for files without it, after those with it.
  assert files.by_stem(paths, (".low",)) == {"7": "7.low.mp3"}
  assert files.by_stem(paths[:1], (".low",)) == {"7": "7.mp3"}


def test_of_endings_that_fit_the_longest_is_cut():
  endings = ("", ".low", ".very.low")
  assert files.by_stem(["7.very.low.mp3"], endings) == {"7": "7.very.low.mp3"}


def test_names_that_are_no_text_are_found(tmp_path):
  name = os.fsdecode(b"caf\xe9.wav")
  try:
    put(tmp_path, name)
  except OSError:
    pytest.skip("this disk takes UTF-8 names only")
  assert files.find_audio(tmp_path) == [name]  # can be opened


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch, capsys):
  (tmp_path / "open").mkdir()
  (tmp_path / "open" / "a.wav").write_bytes(b"")
  (tmp_path / "shut").mkdir()
  scan = os.scandir

  def refuse(path):
    if str(path).endswith("shut"):
      raise PermissionError(13, "Permission denied", str(path))
    return scan(path)

  monkeypatch.setattr(os, "scandir", refuse)
  assert files.find_audio(tmp_path) == ["open/a.wav"]
  said = capsys.readouterr().err
  assert "shut (Permission denied)" in said


def test_a_name_is_found_however_its_accents_are_written():
  nfc, nfd, mixed = "Café/é.mp3", "Cafe\u0301/e\u0301.mp3", "Café/e\u0301.mp3"
  find = files.finder([nfd, "b.mp3", os.fsdecode(b"\xff.mp3")])
  assert find(nfc) == find(nfd) == find(mixed) == nfd
  assert find("b.mp3") == "b.mp3"
  assert find("c.mp3") is None
  assert find(os.fsdecode(b"\xff.mp3"))
  both = files.finder([nfc, nfd])
  assert (both(nfc), both(nfd), both(mixed)) == (nfc, nfd, None)
