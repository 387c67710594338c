"""How audio lies on disk: records of `CHUNK` samples in ArrayRecord shards.

A track is cut into records of `CHUNK_SECONDS`, in order, its last one shorter.
A record is a `tf.train.Example` as TFDS writes it, with its features "audio"
(int16 as raw little-endian bytes), "id", "path", "chunk" and, in a data set
with tags, "tags"; so the folder is a plain TFDS data set.

Length, encoding and compression were chosen by measurement, with the table in
`benchmarks/README.md`: short segments at random places are read fastest from
uncompressed records about as long as a segment.

TFDS's own builders collect a split in memory and, over 1 GB of it, need
TensorFlow for their temporary files; its sequential writer streams, but into
one process and with a fixed compression. So worker processes write shards here,
and `complete` makes a data set of them.
"""

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


class Shard(NamedTuple):
  """A file of records.

  Attributes:
    path: the file.
    records: how many it holds.
    bytes: of them.
  """

  path: str
  records: int
  bytes: int


def features(tags: Sequence[str]) -> tfds.features.FeaturesDict:
  """Returns what a record holds.

  Args:
    tags: the vocabulary; without any, records hold none.
  """
  found = {
    "audio": tfds.features.Tensor(
      shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
    ),
    "id": tfds.features.Text(),
    "path": tfds.features.Text(),
    "chunk": np.int32,
  }
  if tags:
    labels = tfds.features.ClassLabel(names=list(tags))
    found["tags"] = tfds.features.Sequence(labels)
  return tfds.features.FeaturesDict(found)


def write_shard(
  path: str | os.PathLike, tags: Sequence[str], examples: Iterable[dict]
) -> Shard:
  """Writes examples one after the other, in flat memory.

  Args:
    path: of the file to be made.
    tags: the vocabulary.
    examples: dicts with what `features` names, "audio" being int16 [samples].

  Raises:
    OSError: the file cannot be written, as on a full disk.
  """
  count = size = 0
  column = {tag: index for index, tag in enumerate(tags)}
  writer = array_record_module.ArrayRecordWriter(os.fspath(path), OPTIONS)
  for example in examples:
    record = encode(example, column)
    _checked(writer.write, record)
    count += 1
    size += len(record)
  _checked(writer.close)
  return Shard(os.fspath(path), count, size)


def complete(
  folder: Path,
  info: tfds.core.DatasetInfo,
  shards: Mapping[str, Sequence[Shard]],
) -> None:
  """Makes a TFDS data set of shards: moves them and writes the metadata.

  Args:
    folder: of the data set.
    info: with its name, version and features.
    shards: {split: its shards, in order}; empty ones are left out.

  Raises:
    OSError: a file cannot be moved or written.
  """
  info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
  splits = []
  for split, every in shards.items():
    filled = [shard for shard in every if shard.records]
    template = tfds.core.ShardedFileTemplate(
      data_dir=folder,
      dataset_name=info.name,
      split=split,
      filetype_suffix="array_record",
      template=_TEMPLATE,
    )
    for index, shard in enumerate(filled):
      path = template.sharded_filepath(shard_index=index, num_shards=None)
      Path(shard.path).rename(path)
    splits.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard.records for shard in filled],
        num_bytes=sum(shard.bytes for shard in filled),
        filename_template=template,
      )
    )
  info.set_splits(
    tfds.core.SplitDict([split for split in splits if split.shard_lengths])
  )
  info.write_to_directory(folder)


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


def encode(example: Mapping[str, Any], column: Mapping[str, int]) -> bytes:
  """Serializes an example as TFDS does, but always to the same bytes.

  Args:
    example: with what `features` names.
    column: {tag: its index in the vocabulary}.
  """
  message = tf_example_pb2.Example()
  feature = message.features.feature
  pcm = np.ascontiguousarray(example["audio"], "<i2")
  feature["audio"].bytes_list.value.append(pcm.tobytes())
  for name in ("id", "path"):
    feature[name].bytes_list.value.append(example[name].encode())
  feature["chunk"].int64_list.value.append(example["chunk"])
  if column:
    tags = [column[tag] for tag in example["tags"]]
    feature["tags"].int64_list.value.extend(tags)
  return message.SerializeToString(deterministic=True)


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
