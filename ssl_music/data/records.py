"""Makes TFDS data sets of `shards`, and reads their records.

TFDS's own builders collect a split in memory and, over 1 GB of it, need
TensorFlow for their temporary files; its sequential writer streams, but into
one process and with a fixed compression. So worker processes write shards, and
`complete` makes a data set of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

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
    self._files = info.splits[split].file_instructions
    self._source = ArrayRecordDataSource(self._files)

  def __len__(self) -> int:
    return len(self._source)

  def __call__(self, record: int) -> np.ndarray:
    """Returns a record's audio, int16 [samples], not writable.

    Raises:
      InputError: its file is damaged or missing.
    """
    # One by one: for so few, asking for all at once only starts threads.
    try:
      return decode(self._source[record])
    except (IndexError, OSError, RuntimeError, ValueError) as error:
      reason = str(error).split("\n")[0]
      raise InputError(
        f"cannot read record {record} from {self._file(record)} ({reason}):"
        " restore that file, or prepare the data set again"
      ) from error

  def _file(self, record: int) -> str:
    """Returns the shard that holds a record."""
    ends = np.cumsum([file.examples_in_shard for file in self._files])
    return str(self._files[np.searchsorted(ends, record, "right")].filename)


def decode(record: bytes) -> np.ndarray:
  """Returns the audio of a serialized record, int16 [samples]."""
  features = tf_example_pb2.Example.FromString(record).features.feature
  return np.frombuffer(features["audio"].bytes_list.value[0], "<i2")
