"""How audio lies on disk: records of `CHUNK` samples in ArrayRecord shards.

A track is cut into records of `CHUNK_SECONDS`, in order, its last one shorter.
A record is a `tf.train.Example` as TFDS writes it, with its features "audio"
(int16 as raw little-endian bytes), "id", "path", "chunk" and, in a data set
with tags, "tags"; so the folder is a plain TFDS data set.

Length, encoding and compression were chosen by measurement, with the table in
`benchmarks/README.md`: short segments at random places are read fastest from
uncompressed records about as long as a segment.

TFDS's own builders collect a split in memory and, over 1 GB of it, need
TensorFlow for their temporary files; its sequential writer streams but rewrites
the metadata with every track and fixes the compression. Hence `Shards`.
"""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from ssl_music.data import audio

CHUNK_SECONDS = 4
CHUNK = CHUNK_SECONDS * audio.SAMPLE_RATE
# A group is read as a whole. Compressing int16 saves 5 % and costs most of the
# time of reading.
OPTIONS = "group_size:1,uncompressed"
# 2.1 GB of int16. All shards stay open while reading: 1,000 files, which
# systems allow a process by default, are then 18,000 hours.
RECORDS_PER_SHARD = 16_384
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


class Shards:
  """Writes records, to any split at any time, with flat memory.

  Nothing reads as a data set before `close`. As a context manager it closes
  when all went well.
  """

  def __init__(
    self,
    folder: Path,
    info: tfds.core.DatasetInfo,
    *,
    records_per_shard: int = RECORDS_PER_SHARD,
  ):
    """Starts a data set without records.

    Args:
      folder: an existing folder, that of `info`.
      info: with name, version and features.
      records_per_shard: the most a file holds.
    """
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    self._folder, self._info = folder, info
    self._most = records_per_shard
    self._lengths: dict[str, list[int]] = {}  # records of a split's shards
    self._bytes: dict[str, int] = {}
    self._writers: dict = {}

  def __enter__(self) -> "Shards":
    return self

  def __exit__(self, error_type, error, trace) -> None:
    if error_type is None:
      self.close()
    else:
      self._writers.clear()  # what went wrong is to be heard of, not these

  def add(self, split: str, examples: Iterable[dict]) -> int:
    """Appends records to a split.

    Args:
      split: its name; a new one is started.
      examples: dicts with what `info.features` names, "audio" being int16
        [samples].

    Returns:
      How many they were.

    Raises:
      OSError: the file cannot be written, as on a full disk.
    """
    lengths = self._lengths.setdefault(split, [])
    count = 0
    for example in examples:
      if split not in self._writers:
        lengths.append(0)
        self._writers[split] = self._open(split, len(lengths) - 1)
      record = self._info.features.serialize_example(example)
      _checked(self._writers[split].write, record)
      lengths[-1] += 1
      count += 1
      self._bytes[split] = self._bytes.get(split, 0) + len(record)
      if lengths[-1] == self._most:
        _checked(self._writers.pop(split).close)
    return count

  def close(self) -> None:
    """Completes the shards and writes TFDS's metadata.

    Raises:
      OSError: a file cannot be written.
    """
    while self._writers:
      _checked(self._writers.popitem()[1].close)
    splits = [
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=self._bytes[split],
        filename_template=self._template(split),
      )
      for split, lengths in self._lengths.items()
      if lengths
    ]
    self._info.set_splits(tfds.core.SplitDict(splits))
    self._info.write_to_directory(self._folder)

  def _open(self, split: str, shard: int):
    path = self._template(split).sharded_filepath(
      shard_index=shard, num_shards=None
    )
    return array_record_module.ArrayRecordWriter(str(path), OPTIONS)

  def _template(self, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
      data_dir=self._folder,
      dataset_name=self._info.name,
      split=split,
      filetype_suffix="array_record",
      template=_TEMPLATE,
    )


class Reader:
  """Random access to the audio of a split's records.

  Instances are cheap to pickle, as each process opens the shards that it reads,
  and safe to share between threads.
  """

  def __init__(self, folder: Path, split: str):
    """Looks a split's shards up.

    Args:
      folder: of a data set with its metadata.
      split: the name of one of its splits.
    """
    info = tfds.builder_from_directory(folder).info
    self._source = ArrayRecordDataSource(info.splits[split].file_instructions)

  def __len__(self) -> int:
    return len(self._source)

  def __call__(self, record: int) -> np.ndarray:
    """Returns a record's audio, int16 [samples], not writable."""
    # One by one: for so few, asking for all at once only starts threads.
    return decode(self._source[record])


def decode(record: bytes) -> np.ndarray:
  """Returns the audio of a serialized record, int16 [samples]."""
  features = tf_example_pb2.Example.FromString(record).features.feature
  return np.frombuffer(features["audio"].bytes_list.value[0], "<i2")


def _checked(write: Callable, *arguments) -> None:
  """Calls ArrayRecord, which names the system's errors in words alone."""
  try:
    write(*arguments)
  except (RuntimeError, ValueError) as error:
    numbers = (n for n in errno.errorcode if os.strerror(n) in str(error))
    number = next(numbers, errno.EIO)
    raise OSError(number, os.strerror(number)) from error
