"""How audio lies on disk: records of `CHUNK` samples in ArrayRecord shards.

A track is cut into records of `CHUNK_SECONDS`, in order, its last one shorter.
A record is a `tf.train.Example` as TFDS writes it, with its features "audio"
(int16 as raw little-endian bytes), "id", "path", "chunk" and, in a data set
with tags, "tags"; so the folder is a plain TFDS data set.

Length, encoding and compression were chosen by measurement, with the table in
`benchmarks/README.md`: short segments at random places are read fastest from
uncompressed records about as long as a segment.

Worker processes import this module, so it does without TFDS, which takes longer
to import than all else that they need.
"""

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module

from ssl_music import disk
from ssl_music.data import audio

CHUNK_SECONDS = 4
CHUNK = CHUNK_SECONDS * audio.SAMPLE_RATE
# A group is read as a whole. Compressing int16 saves 5 % and costs most of the
# time of reading.
OPTIONS = "group_size:1,uncompressed"


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


def write_shard(
  path: str | os.PathLike, tags: Sequence[str], examples: Iterable[dict]
) -> Shard:
  """Writes examples one after the other, in flat memory.

  Args:
    path: of the file to be made.
    tags: the vocabulary.
    examples: dicts with what `records.features` names, "audio" being int16
      [samples].

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


def encode(example: Mapping[str, Any], column: Mapping[str, int]) -> bytes:
  """Serializes an example as TFDS does, but always to the same bytes.

  They are what protobuf writes with its features in the order of their names.
  It would copy the audio three times and bring TFDS along; here it is once.

  Args:
    example: with what `records.features` names.
    column: {tag: its index in the vocabulary}.
  """
  pcm = np.ascontiguousarray(example["audio"], "<i2")
  features = [
    _feature("audio", _BYTES, pcm.view(np.uint8)),
    _feature("chunk", _INTEGERS, _varint(example["chunk"])),
    _feature("id", _BYTES, example["id"].encode()),
    _feature("path", _BYTES, example["path"].encode()),
  ]
  if column:
    tags = b"".join(_varint(column[tag]) for tag in example["tags"])
    features.append(_feature("tags", _INTEGERS, tags))
  return b"".join(_field(1, [part for one in features for part in one]))


# Fields of a `tf.train.Feature`: a BytesList, an Int64List (packed).
_BYTES, _INTEGERS = 1, 3


def _feature(name: str, kind: int, value: bytes | np.ndarray) -> list:
  """Returns an entry of the map `Features.feature`, as `_field` does."""
  # Protobuf leaves an empty list of integers out, but not an empty string.
  values = _field(1, [value]) if len(value) or kind == _BYTES else []
  feature = _field(kind, values)
  return _field(1, _field(1, [name.encode()]) + _field(2, feature))


def _field(number: int, parts: list) -> list:
  """Returns a field of protobuf's wire format: key, length, then its parts."""
  length = _varint(sum(map(len, parts)))
  return [bytes([number << 3 | 2]), length, *parts]


def _varint(number: int) -> bytes:
  """Returns a number of 0 or more, 7 bits a byte, the lowest first."""
  out = bytearray()
  while number > 127:
    out.append(number & 127 | 128)
    number >>= 7
  out.append(number)
  return bytes(out)


def _checked(write: Callable, *arguments) -> None:
  """Calls ArrayRecord, which names the system's errors in words alone."""
  try:
    write(*arguments)
  except (RuntimeError, ValueError) as error:
    number = disk.number_in(str(error)) or errno.EIO
    raise OSError(number, os.strerror(number)) from error
