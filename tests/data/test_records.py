import errno
import os
import pickle
import resource
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from ssl_music.data import records, shards
from ssl_music.errors import InputError

TAGS = ["loud", "quiet"]
# The shards' names, and their first and last examples.
TRAIN = ("a", 0, 4), ("b", 4, 4), ("c", 4, 8), ("d", 8, 11)


def make_info(folder):
  identity = tfds.core.dataset_info.DatasetIdentity(
    name="some",
    version=tfds.core.Version("1.0.0"),
    data_dir=str(folder),
    module_name=__name__,
  )
  return tfds.core.DatasetInfo(
    builder=identity, features=records.features(TAGS)
  )


def example(index):
  """A record of its own length and content."""
  rng = np.random.default_rng(index)
  pcm = rng.integers(-(2**15), 2**15, 50 + 7 * index).astype(np.int16)
  name = f"tráck {index}"
  tags = TAGS[: index % 3]
  return {"audio": pcm, "id": name, "path": name, "chunk": index, "tags": tags}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Records 0 to 10 in "train" and 11 to 13 in "test"."""
  folder = tmp_path_factory.mktemp("some")
  write = lambda name, *numbers: shards.write_shard(
    folder / name, TAGS, map(example, range(*numbers))
  )
  written = {
    "train": [write(*one) for one in TRAIN],
    "validation": [write("e", 0, 0)],
    "test": [write("f", 11, 14)],
  }
  assert [shard.records for shard in written["train"]] == [4, 0, 4, 3]
  for split, shards_written in written.items():
    filled = [shard for shard in shards_written if shard.records]
    written[split] = filled
    for index, shard in enumerate(filled):
      name = records.shard_name("some", split, index)
      Path(shard.path).rename(folder / name)
  (folder / "b").unlink()
  (folder / "e").unlink()
  records.write_metadata(folder, make_info(folder), written)
  return folder


def reader(folder, split):
  """Reads a split, whose records each are a track of their own."""
  info = tfds.builder_from_directory(folder).info.splits[split]
  files = zip(info.filepaths, info.shard_lengths, strict=True)
  return records.Reader([*files], "restore it")


def get(read, index, number=None):
  """Returns a record's audio; its number is the index in "train"."""
  number = index if number is None else number
  return read(index, f"tráck {number}", number)


def test_reads_what_was_written_in_any_order(folder):
  for split, first, count in (("train", 0, 11), ("test", 11, 3)):
    read = reader(folder, split)
    assert len(read) == count
    for index in np.random.default_rng(0).permutation(count):
      audio = get(read, index, first + index)
      assert audio.dtype == np.int16
      np.testing.assert_array_equal(audio, example(first + index)["audio"])


def test_shards_are_bounded_and_named_by_tfds(folder):
  info = tfds.builder_from_directory(folder).info
  assert info.splits["train"].shard_lengths == [4, 4, 3]
  assert info.splits["test"].shard_lengths == [3]
  named = [path for split in info.splits.values() for path in split.filepaths]
  assert sorted(map(str, named)) == sorted(
    map(str, folder.glob("*.array_record*"))
  )


def test_tfds_reads_every_feature(folder):
  source = tfds.builder_from_directory(folder).as_data_source("train")
  assert len(source) == 11
  for index, found in enumerate(source):
    expected = example(index)
    np.testing.assert_array_equal(found["audio"], expected["audio"])
    assert found["id"].decode() == found["path"].decode() == expected["id"]
    assert found["chunk"] == index
    assert [TAGS[tag] for tag in found["tags"]] == expected["tags"]


def test_a_reader_goes_to_another_process_without_its_files(folder):
  read = reader(folder, "train")
  get(read, 10)
  sent = pickle.dumps(read)
  assert len(sent) < 2000 + 3 * len(str(folder))
  np.testing.assert_array_equal(get(pickle.loads(sent), 10), get(read, 10))


def test_examples_are_let_go_as_they_are_written(tmp_path):
  alive = []

  def made():
    for index in range(20):
      one = example(index)
      alive.append(weakref.ref(one["audio"]))
      yield one
      del one
      assert sum(audio() is not None for audio in alive) <= 1

  shards.write_shard(tmp_path / "a", TAGS, made())


def test_the_bytes_are_tfds_s_but_for_their_order():
  kind = records.features(TAGS)
  column = {tag: index for index, tag in enumerate(TAGS)}
  for index in range(5):
    one = example(index)
    theirs = tf_example_pb2.Example.FromString(kind.serialize_example(one))
    ours = shards.encode(one, column)
    assert tf_example_pb2.Example.FromString(ours) == theirs
  untagged = shards.encode(example(2), {})
  assert (
    "tags" not in tf_example_pb2.Example.FromString(untagged).features.feature
  )


@pytest.mark.parametrize("chunk", [0, 127, 128, 40_000])
@pytest.mark.parametrize("tags", [[], ["b"], ["a", "c"] * 100])
@pytest.mark.parametrize("name", ["", "tráck", "n" * 300])
@pytest.mark.parametrize("samples", [0, 1, 64_000])
def test_the_bytes_are_protobuf_s(samples, name, tags, chunk):
  pcm = np.arange(samples).astype(np.int16)
  column = {"a": 0, "b": 130, "c": 2}
  message = tf_example_pb2.Example()
  feature = message.features.feature
  feature["audio"].bytes_list.value.append(pcm.astype("<i2").tobytes())
  for key in ("id", "path"):
    feature[key].bytes_list.value.append(name.encode())
  feature["chunk"].int64_list.value.append(chunk)
  feature["tags"].int64_list.value.extend(column[tag] for tag in tags)
  one = {"audio": pcm, "id": name, "path": name, "chunk": chunk, "tags": tags}
  expected = message.SerializeToString(deterministic=True)
  assert shards.encode(one, column) == expected


def test_writing_shards_does_not_import_tfds():
  script = (
    "import sys, ssl_music.data.parts;"
    "sys.exit('tensorflow_datasets' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", script], check=True)


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
  try:
    with pytest.raises(OSError, match="File too large") as caught:
      shards.write_shard(tmp_path / "a", TAGS, [example(9000)] * 3)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert caught.value.errno == errno.EFBIG


def test_a_damaged_shard_is_named(folder, tmp_path):
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  (file,) = tmp_path.glob("*train.array_record-00001")  # of records 4 to 7
  whole = file.read_bytes()
  flipped = bytes(byte ^ 1 for byte in whole)
  for content in (flipped, whole[: len(whole) // 2], b"", None):
    file.unlink()
    if content is not None:
      file.write_bytes(content)
    read = reader(tmp_path, "train")
    get(read, 3)
    with pytest.raises(InputError, match=rf"record 4 from {file} .*restore"):
      get(read, 4)
    file.write_bytes(whole)


def test_a_record_of_another_track_or_place_is_none(folder):
  read = reader(folder, "train")
  said = r"record 5 .*-00001 \(it is 5 of track 'tr\\xe1ck 5', not 5 of"
  with pytest.raises(InputError, match=said):
    read(5, "tráck 6", 5)
  with pytest.raises(InputError, match="record 5"):
    read(5, "tráck 5", 6)


def test_too_few_open_files_are_not_blamed_on_the_shard(folder):
  read = reader(folder, "train")
  before = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
  try:
    with pytest.raises(InputError, match=r"record 5 .*`ulimit -n`$"):
      get(read, 5)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
  ("number", "advice"),
  [
    (errno.EMFILE, "allow more open files"),
    (errno.EACCES, "make it readable"),
    (errno.EIO, "check its disk"),
    (errno.ENOENT, "restore it"),
  ],
)
def test_what_the_system_refuses_is_no_damage(folder, number, advice):
  read = reader(folder, "train")

  class Failing:
    def __getitem__(self, index):
      raise RuntimeError(f"INTERNAL: pread: {os.strerror(number)}; {index}")

  read._source = Failing()
  with pytest.raises(InputError, match=rf"record 4 from .*\): {advice}"):
    get(read, 4)
