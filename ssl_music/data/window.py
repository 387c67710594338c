"""A file that is looked at by its bytes, and a part of it as its own file."""

import bisect
import contextlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

BLOCK = 1 << 20  # bytes that are read at once


class Part(NamedTuple):
  """A stretch of a file that a decoder reads as one file.

  Attributes:
    ranges: (start, stop) in bytes, in order.
    head: bytes that go before them.
    plain: whether the file itself may be read instead, which is faster.
    frames: that the ranges hold, if no header tells.
    share: of the bytes or frames that the header promises, what is there; None
      if the end is missing and nothing says how much.
  """

  ranges: tuple[tuple[int, int], ...]
  head: bytes = b""
  plain: bool = True
  frames: int | None = None
  share: float | None = 1.0


class File:
  """A file that is looked at here and there."""

  def __init__(self, file: BinaryIO):
    self._file, self._start, self._block = file, 0, b""
    self.size = file.seek(0, io.SEEK_END)

  def at(self, start: int, count: int) -> bytes:
    """Returns so many bytes from a place on, or as many as there are."""
    here = start - self._start
    there = here + min(count, self.size - start)
    if here < 0 or there > len(self._block):
      self._file.seek(start)
      self._start, here = start, 0
      self._block = self._file.read(max(count, BLOCK))
    return self._block[here : here + count]

  def find(self, sign: bytes, start: int) -> int:
    """Returns where these bytes are next, or the file's size."""
    while start < self.size:
      self.at(start, len(sign))
      found = self._block.find(sign, start - self._start)
      if found >= 0:
        return self._start + found
      start = max(self._start + len(self._block) - len(sign), start) + 1
    return self.size


class Window(io.RawIOBase):
  """A part as a file of its own, to be read.

  Attributes:
    error: what the system said when reading failed: the decoders, which call
      this, take no exceptions.
  """

  def __init__(self, file: BinaryIO, part: Part):
    self._pieces = [(file, *bounds) for bounds in part.ranges]
    if part.head:
      self._pieces.insert(0, (io.BytesIO(part.head), 0, len(part.head)))
    lengths = (stop - start for _, start, stop in self._pieces)
    self._starts = [0, *itertools.accumulate(lengths)]
    # Of an MP3 of no size, libsndfile counts the frames; otherwise it guesses.
    self._size = self._starts[-1] if part.frames is None else 0
    self._at = 0
    self.error: OSError | None = None

  def seekable(self) -> bool:  # noqa: D102
    return True

  def readable(self) -> bool:  # noqa: D102
    return True

  def tell(self) -> int:  # noqa: D102
    return self._at

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102
    base = (0, self._at, self._size)[whence]
    self._at = max(base + offset, 0)
    return self._at

  def readinto(self, buffer: Any) -> int:  # noqa: D102
    view = memoryview(buffer).cast("B")
    done = 0
    try:
      while done < len(view) and self._at < self._starts[-1]:
        index = bisect.bisect_right(self._starts, self._at) - 1
        file, start, _ = self._pieces[index]
        left = self._starts[index + 1] - self._at
        file.seek(start + self._at - self._starts[index])
        count = file.readinto(view[done : done + left])
        if not count:
          break
        done += count
        self._at += count
    except OSError as error:
      self.error = error
    return done


@contextlib.contextmanager
def opened(path: Path, part: Part) -> Iterator[Window]:
  """Opens a part of a file.

  Raises:
    OSError: it cannot be read; at the end, if reading has failed meanwhile.
  """
  with path.open("rb") as whole:
    seen = Window(whole, part)
    try:
      yield seen
    finally:
      if seen.error:
        raise seen.error


def skip_tags(file: File, at: int) -> int:
  """Returns where ID3 and APE tags that begin here end."""
  while True:
    head = file.at(at, 16)
    if head[:3] == b"ID3" and len(head) > 9 and max(head[6:10]) < 0x80:
      size = (head[6] << 21) + (head[7] << 14) + (head[8] << 7) + head[9]
      at += 10 + size + (10 if head[5] & 0x10 else 0)  # with a footer
    elif head[:8] == b"APETAGEX" and len(head) == 16:
      at += 32 + int.from_bytes(head[12:16], "little")
    elif head[:3] == b"TAG" and at + 128 <= file.size:
      at += 128
    else:
      return at
