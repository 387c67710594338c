"""The table of vectors: parts, the last word on a file, merging, reading."""

import errno
import os
import pathlib
import random
import shutil

import fuzz
import numpy as np
import pyarrow.parquet as pq
import pytest

from ssl_music import seal, vector_parts, vectors
from ssl_music.errors import InputError
from ssl_music.vector_parts import Track, Writer

D = 6
KINDS = list(vectors.FORMATS)


def about(**fields):
  said = {"format_version": 1, "dimensions": D, "format": "parquet"}
  said |= {"encoder": {"encoder": "x"}, "identity": "0", "hop": 2, "seconds": 2}
  return said | fields


@pytest.fixture
def folder(tmp_path):
  return new(tmp_path)


def new(folder):
  (folder / "parts").mkdir(parents=True)
  vector_parts.write_about(folder, about())
  return folder


def track(name, rows=4, modified=1):
  sounding = np.arange(rows) % 3 != 1
  return Track(f"/m/{name}", 10, modified, np.arange(rows) * 2.0, 2.0, sounding)


def numbers(one, seed=0):
  rng = np.random.default_rng([seed, *one.path.encode()])
  return rng.standard_normal((len(one.start), D)).astype(np.float32)


def write(folder, tracks, shard="1-of-1", seed=0, failed=()):
  """Writes tracks into parts, their vectors in pieces that fit none."""
  with Writer(folder, shard, D) as writer:
    for one in tracks:
      writer.begin(one)
    for path in failed:
      writer.fail(path, "silent")
    if tracks:
      whole = np.concatenate([numbers(one, seed) for one in tracks])
      for start in range(0, len(whole), 3):
        writer.extend(whole[start : start + 3])


def check(folder, expected):
  """Compares with {track: seed of its vectors}, in order."""
  paths, means, _ = vectors.read_tracks(folder)
  assert paths == [one.path for one, _ in expected]
  for (one, seed), found in zip(expected, means, strict=True):
    mean = numbers(one, seed)[one.sounding].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-7)


def states(folder):
  """The tracks of two runs, and what counts after both."""
  first = [track("a"), track("b", 7), track("ü,\n'")]
  write(folder, first, failed=["/m/c", "/m/d"])
  second = [track("b", 5, modified=2), track("c", 2)]
  write(folder, second, shard="2-of-2", seed=1, failed=["/m/a"])
  expected = [(first[2], 0), (second[0], 1), (second[1], 1)]
  return expected, {"/m/a": "silent", "/m/d": "silent"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_word_counts(folder, kind):
  expected, failed = states(folder)
  check(folder, expected)
  said = vector_parts.merge(folder, about(), kind)
  check(folder, expected)
  assert said["tracks"] == 3 and said["segments"] == 11
  assert vectors.read_about(folder) == said
  (source,) = vectors.find_sources(folder, said)
  assert source.failed == failed
  assert {file.name for file in folder.iterdir()} == {
    "parts",
    "failed.csv",
    "embeddings.json",
    "seal.json",
    *vectors.FORMATS[kind],
  }
  write(folder, [track("d")], seed=2)  # goes on, and changes the format
  other = KINDS[1 - KINDS.index(kind)]
  vector_parts.merge(folder, said, other)
  check(folder, [*expected, (track("d"), 2)])
  assert not any((folder / name).exists() for name in vectors.FORMATS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_was_written(folder, kind):
  one = track("long", 9)
  write(folder, [one, track("b", 1)])
  vector_parts.merge(folder, about(), kind)
  (block,) = vectors.read(folder)
  assert block.path == [one.path] * 9 + ["/m/b"]
  np.testing.assert_array_equal(block.start[:9], one.start)
  np.testing.assert_array_equal(block.sounding[:9], one.sounding)
  np.testing.assert_array_equal(block.vector[:9], numbers(one))
  assert set(block.duration) == {2.0} and set(block.size) == {10}
  if kind == "parquet":  # as somebody else reads it
    table = pq.read_table(folder / "embeddings.parquet").to_pydict()
    np.testing.assert_array_equal(table["vector"][:9], numbers(one))


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_that_is_killed_loses_nothing(tmp_path, monkeypatch, kind):
  class KilledError(BaseException):
    pass

  steps, left = 0, None

  def until(method):
    def act(*arguments, **options):
      nonlocal left
      if left is not None:
        left -= 1
        if left < 0:
          raise KilledError
      return method(*arguments, **options)

    return act

  for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
    monkeypatch.setattr(pathlib.Path, name, until(getattr(pathlib.Path, name)))
  # A killed process does not clear up behind itself.
  clear = shutil.rmtree
  monkeypatch.setattr(
    shutil, "rmtree", lambda *a, **o: None if left == -1 else clear(*a, **o)
  )
  whole = new(tmp_path / "whole")
  write(whole, [track("a"), track("x")])
  said = vector_parts.merge(whole, about(), KINDS[1 - KINDS.index(kind)])
  expected, _ = states(whole)
  expected = [(track("x"), 0), *expected]
  while left is None or left < 0:
    folder = tmp_path / str(steps)
    shutil.copytree(whole, folder)
    left = steps
    try:
      vector_parts.merge(folder, said, kind)
    except KilledError:
      left = None
      check(folder, expected)
      write(folder, [track("new")], shard="1-of-3")
      check(folder, [*expected, (track("new"), 0)])
      vector_parts.merge(folder, vectors.read_about(folder), kind)
      check(folder, [*expected, (track("new"), 0)])
      assert not list((folder / "parts").iterdir())
      left, steps = -1, steps + 1
  assert steps > 8


def test_only_whole_tracks_of_whole_parts_count(folder):
  with pytest.raises(ZeroDivisionError), Writer(folder, "1-of-1", D) as writer:
    for one in (track("a"), track("b")):
      writer.begin(one)
    writer.extend(np.ones((6, D), np.float32))
    raise ZeroDivisionError
  (part,) = vectors.part_files(folder)
  part.with_name("00000001.1-of-1.parquet.partial").write_bytes(b"PAR1")
  assert vectors.read_tracks(folder)[0] == ["/m/a"]
  vector_parts.settle(folder)
  assert list((folder / "parts").iterdir()) == [part]


def test_a_long_track_is_not_held_in_memory(folder, monkeypatch):
  monkeypatch.setattr(vector_parts, "_GROUP_BYTES", 4 * D * 5)
  tracks = [track("a", 2), track("long", 23), track("b", 3), track("c", 3)]
  write(folder, tracks)
  assert len(vectors.part_files(folder)) == 3
  check(folder, [(one, 0) for one in tracks])
  groups = pq.ParquetFile(vectors.part_files(folder)[1]).num_row_groups
  assert groups > 3
  vector_parts.merge(folder, about(), "parquet")
  check(folder, [(one, 0) for one in tracks])
  with pytest.raises(KeyError), Writer(folder, "1-of-1", D) as writer:
    writer.begin(track("longer", 30))
    writer.extend(np.ones((20, D), np.float32))
    raise KeyError
  assert not list((folder / "parts").iterdir())


def test_bad_folders_are_told(folder, tmp_path):
  with pytest.raises(InputError, match="no vectors in"):
    vectors.read_tracks(tmp_path / "absent")
  vector_parts.write_about(folder, about(format_version=2, ssl_music="9.9"))
  with pytest.raises(InputError, match=r"format 2.*use ssl_music 9\.9"):
    vectors.read_tracks(folder)
  (folder / "embeddings.json").write_text("{")
  with pytest.raises(InputError, match=r"embeddings\.json is damaged"):
    vectors.read_tracks(folder)
  (folder / "embeddings.json").unlink()
  (folder / "embeddings.json").mkdir()
  with pytest.raises(InputError, match=r"cannot read .*json \(Is a directory"):
    vectors.read_tracks(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_tables_are_told(folder, kind):
  write(folder, [track("a", 40)])
  part = vectors.part_files(folder)[0]
  whole = part.read_bytes()
  part.write_bytes(whole[:-20])
  with pytest.raises(InputError, match=r"damaged .*remove it and embed again"):
    vectors.read_tracks(folder)
  part.write_bytes(whole)
  vector_parts.merge(folder, about(), kind)
  file = folder / vectors.FORMATS[kind][-1]
  file.write_bytes(file.read_bytes()[:-30])
  with pytest.raises(
    InputError, match=r"damaged .*restore that file, or embed"
  ):
    vectors.read_tracks(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_no_damage_goes_unnoticed(folder, kind, seed):
  """Of any file of a finished folder; the fuzzer's small sister."""
  expected, failed = states(folder)
  vector_parts.merge(folder, about(), kind)
  rng, files = random.Random(seed), sorted(folder.glob("*.*"))
  assert len(files) == 3 + len(vectors.FORMATS[kind])
  for file in files:
    whole = file.read_bytes()
    for content in fuzz.mutations(whole, rng):
      fuzz.put(file, content)
      try:
        check(folder, expected)
        (source,) = vectors.find_sources(folder, vectors.read_about(folder))
        assert source.failed == failed
        assert content is None and file.name == "seal.json"  # as older ones
      except InputError as error:
        assert file.name in str(error) or content is None
    file.write_bytes(whole)
  check(folder, expected)


def test_folders_made_before_there_were_seals_are_read(folder):
  expected, _ = states(folder)
  vector_parts.merge(folder, about(), "npy")
  (folder / "seal.json").unlink()
  check(folder, expected)
  array = folder / "embeddings.npy"
  whole = bytearray(array.read_bytes())
  whole[-4:] = np.float32(np.nan).tobytes()
  array.write_bytes(whole)
  with pytest.raises(InputError, match=r"embeddings\.npy is damaged or no"):
    vectors.read_tracks(folder)


def test_what_the_system_refuses_is_no_damage(folder, monkeypatch):
  states(folder)
  vector_parts.merge(folder, about(), "parquet")

  def refuse(*_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

  monkeypatch.setattr(seal, "stream", refuse)
  monkeypatch.setattr(vectors, "read_about", lambda _: about())
  monkeypatch.setattr(vectors, "_read_failed", lambda *_: {})
  with pytest.raises(
    InputError, match=r"cannot read .*parquet \(Permission .*make it readable"
  ):
    vectors.read_tracks(folder)
