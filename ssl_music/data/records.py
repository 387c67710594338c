"""Makes TFDS data sets of `shards`, and reads their records.

TFDS's own builders collect a split in memory and, over 1 GB of it, need
TensorFlow for their temporary files; its sequential writer streams, but into
one process and with a fixed compression. So worker processes write shards, and
`write_metadata` makes a data set of them.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf import message
from tensorflow_datasets.proto import tf_example_pb2

from ssl_music import disk
from ssl_music.data.shards import Shard
from ssl_music.errors import InputError

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"


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


def shard_name(name: str, split: str, index: int) -> str:
  """Returns what TFDS calls a shard of a data set."""
  return f"{name}-{split}.array_record-{index:05}"


def write_metadata(
  folder: Path,
  info: tfds.core.DatasetInfo,
  shards: Mapping[str, Sequence[Shard]],
) -> None:
  """Makes a folder of shards a TFDS data set.

  Args:
    folder: with the shards, called as `shard_name` says.
    info: with its name, version and features.
    shards: {split: its shards, in order, none empty}.

  Raises:
    OSError: a file cannot be written.
  """
  info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[shard.records for shard in every],
      num_bytes=sum(shard.bytes for shard in every),
      filename_template=tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=info.name,
        split=split,
        filetype_suffix="array_record",
        template=_TEMPLATE,
      ),
    )
    for split, every in shards.items()
    if every
  ]
  info.set_splits(tfds.core.SplitDict(splits))
  info.write_to_directory(folder)


class Source(NamedTuple):
  """A shard to read, as ArrayRecord wants it told.

  Attributes:
    filename: of the shard.
    skip: records to pass over.
    take: records to read.
    examples_in_shard: records in all.
  """

  filename: str
  skip: int
  take: int
  examples_in_shard: int


class Reader:
  """Random access to the audio of a split's records.

  Instances are cheap to pickle, as each process opens the shards that it reads,
  and safe to share between threads.
  """

  def __init__(self, shards: Sequence[tuple[Path, int]], advice: str):
    """Opens nothing yet.

    Args:
      shards: (file, its records) in order.
      advice: what to do about a damaged file, for messages.
    """
    self._files = [
      Source(os.fspath(file), 0, count, count) for file, count in shards
    ]
    self._source = ArrayRecordDataSource(self._files)
    self._advice = advice

  def __len__(self) -> int:
    return len(self._source)

  def __call__(self, record: int, track: str, chunk: int) -> np.ndarray:
    """Returns a record's audio, int16 [samples], not writable.

    Args:
      record: its index.
      track: the id of the track that it must be of.
      chunk: which of the track's records it must be.

    Raises:
      InputError: its file is missing, damaged, or in another one's place.
    """
    # One by one: for so few, asking for all at once only starts threads.
    try:
      example = tf_example_pb2.Example.FromString(self._source[record])
      features = example.features.feature
      name = features["id"].bytes_list.value[0].decode()
      place = features["chunk"].int64_list.value[0]
      if (name, place) == (track, chunk):
        return np.frombuffer(features["audio"].bytes_list.value[0], "<i2")
      reason = f"it is {place} of track {name!a}, not {chunk} of {track!a}"
    except (
      message.DecodeError,
      IndexError,
      OSError,
      RuntimeError,
      ValueError,
    ) as error:
      reason = str(error).split("\n")[0]
    raise self.damaged(record, reason)

  def damaged(self, record: int, reason: str) -> InputError:
    """Returns the error that tells what is wrong with a record."""
    ends = np.cumsum([file.examples_in_shard for file in self._files])
    file = self._files[np.searchsorted(ends, record, "right")].filename
    number = disk.number_in(reason)
    advice = disk.advice_on(number, "readable", self._advice)
    return InputError(
      f"cannot read record {record} from {file} ({reason}): {advice}"
    )
