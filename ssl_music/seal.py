"""Tells whether the files of a finished folder are as they were written.

`seal.json`, written last, holds each file's length and checksums:

  {"files": {name: {"bytes": n, "crc32": [one for each MiB]}}, "crc32": of that}

Small files are verified when they are read, large ones block by block as they
are. Of a file that checks itself, as ArrayRecord's shards do, the seal holds
the length and "head", the checksum of its first 4 KiB, which tells it from
another one of the same length. CRC-32 finds accidents, not forgeries. Files
that the seal does not name are not checked. A folder made before there were
seals has none and is read all the same; a newer one may say `"sealed": true` in
one of its JSON files, so that a seal that got lost is missed.
"""

import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssl_music import disk, typed
from ssl_music.errors import InputError

NAME = "seal.json"
BLOCK = 1 << 20  # bytes
HEAD = 1 << 12
_ENTRY = {"bytes": int, "crc32?": [int], "head?": int}
_KIND = {"files": {str: _ENTRY}, "crc32": int}


def close(
  folder: Path, names: Iterable[str], heads: Iterable[str] = ()
) -> None:
  """Seals a finished folder; what was sealed there before is forgotten.

  Args:
    folder: of the files.
    names: of its files, relative to it.
    heads: of files that check themselves.

  Raises:
    OSError: one cannot be read, or the seal cannot be written.
  """
  files = {name: measure(folder / name) for name in names}
  files |= {name: measure(folder / name, head=True) for name in heads}
  _store(folder, files, new=files)


def put(folder: Path, name: str, content: str | bytes, advice: str) -> None:
  """Writes a file of a folder that grows, and seals it.

  A kill in between leaves a file that is not sealed, never one that is refused.

  Args:
    folder: of the files; one without a seal gets one.
    name: of the file, which may be there.
    content: of the file.
    advice: as of `Sealed`.

  Raises:
    InputError: the seal is damaged.
    OSError: the file or the seal cannot be written.
  """
  files = _load(folder, f"restore that file, or {advice}") or {}
  if files.pop(name, None):
    _store(folder, files, new=())
  disk.write(folder / name, content)
  files[name] = measure(folder / name)
  _store(folder, files, new=[name])


def read(folder: Path, name: str, advice: str) -> bytes:
  """Returns the content of one file, verified; the others may be missing.

  Args:
    folder: of the files, sealed or not.
    name: of the file.
    advice: as of `Sealed`.

  Raises:
    InputError: the file or the seal is damaged, or cannot be read.
  """
  entry = entries(folder).get(name)
  return _read(folder / name, entry, f"restore that file, or {advice}")


def measure(file: Path, *, head: bool = False) -> dict[str, Any]:
  """Returns what the seal holds of a file, in the memory of a block."""
  with file.open("rb") as opened:
    size = os.fstat(opened.fileno()).st_size
    if head:
      return {"bytes": size, "head": zlib.crc32(opened.read(HEAD))}
    blocks = iter(lambda: opened.read(BLOCK), b"")
    return {"bytes": size, "crc32": [zlib.crc32(block) for block in blocks]}


class Sealed:
  """A folder whose files are verified as they are read, as far as sealed.

  Attributes:
    folder: of the files.
    files: {name: of `measure`}; {} in a folder made before there were seals.
  """

  def __init__(self, folder: Path, advice: str, marker: str | None = None):
    """Reads the seal, and sees that each of its files has its length.

    Args:
      folder: of the files.
      advice: how to get the folder back, such as "prepare it again"; messages
        say "restore that file, or {advice}".
      marker: name of a JSON file whose `"sealed": true` says that there is one.

    Raises:
      InputError: a file is missing or damaged.
    """
    self.folder, self._advice = folder, f"restore that file, or {advice}"
    files = _load(folder, self._advice)
    if files is None and marker and _is_marked(folder / marker):
      raise InputError(f"{folder / NAME} is missing: {self._advice}")
    self.files = files or {}
    for name, entry in self.files.items():
      file = folder / name
      with disk.readable(file, self._advice), file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size != entry["bytes"]:
          raise _other_length(file, size, entry, self._advice)
        if "head" in entry and zlib.crc32(opened.read(HEAD)) != entry["head"]:
          raise _damaged(
            file, "it is not the one that was sealed", self._advice
          )

  def read(self, name: str) -> bytes:
    """Returns a file's content, verified.

    Raises:
      InputError: it is missing or damaged.
    """
    return _read(self.folder / name, self.files.get(name), self._advice)

  def json(self, name: str, kind: Any) -> Any:
    """Returns what a JSON file holds, verified and of a kind of `typed.parse`.

    Raises:
      InputError: it is missing, damaged or of another kind.
    """
    return typed.parse(self.read(name), kind, self.folder / name, self._advice)

  def damaged(self, name: str, how: str) -> InputError:
    """Returns the error that tells what is wrong with a file."""
    return _damaged(self.folder / name, how, self._advice)

  def map(self, name: str, dtype: npt.DTypeLike = np.uint8) -> "Verified":
    """Maps a file, of which each block is verified when it is first read.

    Raises:
      InputError: it is missing.
    """
    file = self.folder / name
    with disk.readable(file, self._advice):
      # A view of a memmap is slow to make, of an array quick.
      empty = not file.stat().st_size  # nothing to map
      content = b"" if empty else np.memmap(file, mode="r").view(np.ndarray)
    entry = self.files.get(name)
    return Verified(file, content, entry, self._advice, dtype)


class Verified:
  """A file's numbers, of which each block is verified when it is first read."""

  def __init__(
    self,
    file: Path,
    content: bytes | np.ndarray,
    entry: Mapping[str, Any] | None,
    advice: str,
    dtype: npt.DTypeLike = np.uint8,
  ):
    """Verifies nothing yet; without an entry nothing ever."""
    self._file, self._entry, self._advice = file, entry, advice
    self._bytes = memoryview(content)
    size = np.dtype(dtype).itemsize
    count = len(self._bytes) // size
    self._values = np.frombuffer(content, dtype, count)
    self._whole = np.zeros(-(-len(self._bytes) // BLOCK), bool)
    self._whole[:] = entry is None

  def __len__(self) -> int:
    return len(self._values)

  def __getitem__(self, where: slice) -> np.ndarray:
    """Returns some of the numbers.

    Raises:
      InputError: a block that holds some is damaged.
    """
    found = self._values[where]
    start, stop, _ = where.indices(len(self))
    size = found.itemsize
    blocks = slice(start * size // BLOCK, -(-stop * size // BLOCK))
    if not self._whole[blocks].all():
      self.check(blocks)
    return found

  def check(self, blocks: slice = slice(None)) -> None:
    """Verifies blocks.

    Raises:
      InputError: one is damaged.
    """
    for index in np.flatnonzero(~self._whole[blocks]) + (blocks.start or 0):
      start = int(index) * BLOCK
      block = self._bytes[start : start + BLOCK]
      _check_block(self._file, block, int(index), self._entry, self._advice)
      self._whole[index] = True


def entries(folder: Path) -> dict[str, dict[str, Any]]:
  """Returns what a folder's seal holds of its files; {} where it has no seal.

  Raises:
    InputError: the seal is damaged.
  """
  advice = "restore it, or delete it, and nothing there is verified any more"
  return _load(folder, advice) or {}


def stream(
  file: Path, entry: Mapping[str, Any] | None, advice: str
) -> io.BufferedReader:
  """Opens a file of any size, whose blocks are verified as they are read.

  Args:
    file: to read.
    entry: of `entries`; without one nothing is verified.
    advice: as of `Sealed`.

  Raises:
    OSError: it cannot be opened.
    InputError: it has another length; while it is read, a block is damaged.
  """
  advice = f"restore that file, or {advice}"
  size = file.stat().st_size
  if entry is not None and size != entry["bytes"]:
    raise _other_length(file, size, entry, advice)
  return io.BufferedReader(_Blocks(file, entry, advice), BLOCK)


class _Blocks(io.RawIOBase):
  """A file of which whole blocks are read, and verified."""

  def __init__(self, file: Path, entry: Mapping[str, Any] | None, advice: str):
    self._file, self._entry, self._advice = file, entry, advice
    self._opened = file.open("rb")
    self._size = os.fstat(self._opened.fileno()).st_size
    self._at, self._index, self._block = 0, -1, b""

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._at

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}
    self._at = start[whence] + offset
    return self._at

  def readinto(self, buffer: Any) -> int:
    index, first = divmod(self._at, BLOCK)
    if index != self._index:
      self._opened.seek(index * BLOCK)
      block = self._opened.read(BLOCK)
      if self._entry is not None and block:
        _check_block(self._file, block, index, self._entry, self._advice)
      self._index, self._block = index, block
    piece = self._block[first : first + len(buffer)]
    buffer[: len(piece)] = piece
    self._at += len(piece)
    return len(piece)

  def close(self) -> None:
    self._opened.close()
    super().close()


def _read(file: Path, entry: Mapping[str, Any] | None, advice: str) -> bytes:
  with disk.readable(file, advice):
    content = file.read_bytes()
  if entry is not None and len(content) != entry["bytes"]:
    raise _other_length(file, len(content), entry, advice)
  Verified(file, content, entry, advice).check()
  return content


def _check_block(
  file: Path,
  block: bytes | memoryview,
  index: int,
  entry: Mapping[str, Any],
  advice: str,
) -> None:
  if [zlib.crc32(block)] != entry["crc32"][index : index + 1]:
    said = f"a wrong checksum at byte {index * BLOCK}"
    raise _damaged(file, said, advice)


def _store(folder: Path, files: Mapping[str, Any], new: Iterable[str]) -> None:
  for name in new:  # on the disk before the seal that tells of them
    disk.sync(folder / name)
  content = {"files": files, "crc32": _checksum(files)}
  disk.write(folder / NAME, json.dumps(content) + "\n")


def _load(folder: Path, advice: str) -> dict[str, dict[str, Any]] | None:
  """Returns the entries of a folder's seal; None if it has no seal."""
  file = folder / NAME
  if not file.exists():
    return None
  found = typed.read(file, _KIND, advice)
  if _checksum(found["files"]) != found["crc32"]:
    raise _damaged(file, "its checksum is wrong", advice)
  return found["files"]


def _checksum(files: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(files, sort_keys=True).encode())


def _is_marked(file: Path) -> bool:
  try:
    return json.loads(file.read_bytes()).get("sealed") is True
  except (OSError, ValueError, AttributeError, RecursionError):
    return False  # whoever reads that file says what is wrong with it


def _other_length(
  file: Path, size: int, entry: Mapping[str, Any], advice: str
) -> InputError:
  return _damaged(file, f"{size} bytes instead of {entry['bytes']}", advice)


def _damaged(file: Path, how: str, advice: str) -> InputError:
  return InputError(f"{file} is damaged ({how}): {advice}")
