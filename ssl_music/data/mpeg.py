"""The frames of an MP3 or MP2: where they are, and how many.

MPEG-1, 2 and 2.5 audio (ISO/IEC 11172-3 and 13818-3). The first frame of an MP3
may hold no sound but the number of the others ("Xing" or "Info", "VBRI"). That
number may be wrong, and without it libsndfile guesses a length.
"""

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ssl_music.data.window import File, Part, skip_tags


class _Stream(NamedTuple):
  """What does not change from frame to frame."""

  version: int  # 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5
  layer: int  # 1 to 3
  rate: int  # Hz
  mono: bool = False

  @property
  def samples(self) -> int:
    """Returns the samples of a frame."""
    if self.layer == 1:
      return 384
    return 576 if self.layer == 3 and self.version != 3 else 1152


class _Info(NamedTuple):
  """A first frame that tells of the others.

  Attributes:
    head: the frame.
    at: where the head has the number of frames, or None.
    frames: that number.
    bytes: of all frames, or None.
  """

  head: bytes
  at: int | None
  frames: int | None
  bytes: int | None


def _make_frames() -> dict[bytes, tuple[int, _Stream]]:
  """Returns {a header's first three bytes: (bytes of the frame, stream)}."""
  low = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
  kilobits = {
    (3, 1): range(32, 449, 32),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): low,
    (2, 3): low,
  }
  rates = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000)}
  rates[0] = tuple(rate // 2 for rate in rates[2])
  table = {}
  for version, layer, at_rate in itertools.product(
    (3, 2, 0), (1, 2, 3), range(3)
  ):
    stream = _Stream(version, layer, rates[version][at_rate])
    slot = 4 if layer == 1 else 1  # bytes that padding adds
    for index, kilobit in enumerate(kilobits[version or 2, layer], 1):
      slots = stream.samples // 8 * 1000 * kilobit // stream.rate // slot
      for checked, padding, private in itertools.product(range(2), repeat=3):
        second = 0xE0 | version << 3 | 4 - layer << 1 | checked
        third = index << 4 | at_rate << 2 | padding << 1 | private
        table[bytes((0xFF, second, third))] = (slots + padding) * slot, stream
  return table


_FRAMES = _make_frames()
_INFO_SIGNS = (b"Xing", b"Info", b"VBRI")
_LOST = 1 << 16  # bytes that are looked through for a next frame
_WALKED = (
  1 << 16
)  # bytes of frames at once: many, but little where junk follows


def split(file: File, at: int) -> Iterator[Part]:
  """Splits joined streams, leaves out tags, and counts frames."""
  found: list[tuple[_Stream, _Info | None, list, int]] = []
  while True:
    clear = skip_tags(file, at)
    frame = _next_frame(file, clear)
    if frame is None:
      break
    at, stream = frame
    info = _info(file, at, stream)
    if info or not found or found[-1][0] != stream:
      found.append((stream, info, [], 0))
      clear = at = at + len(info.head) if info else at
    at, count = _walk(file, at, stream)
    _, info, ranges, before = found[-1]
    found[-1] = stream, info, ranges, before + count
    if ranges and ranges[-1][1] == clear:
      clear = ranges.pop()[0]
    if clear < at:
      ranges.append((clear, at))
  found = [one for one in found if one[-1]]
  for stream, info, ranges, count in found:
    plain = len(found) == len(ranges) == 1
    yield _part(stream, info, ranges, count, plain)


def _part(
  stream: _Stream,
  info: _Info | None,
  ranges: list[tuple[int, int]],
  count: int,
  plain: bool,
) -> Part:
  """Returns a part with a head that tells how many frames there are."""
  ranges = tuple(ranges)
  if info is None or info.frames is None:
    return Part(ranges, plain=plain, frames=count * stream.samples)
  length = len(info.head) + sum(stop - start for start, stop in ranges)
  cut = count < info.frames and not (info.bytes and info.bytes <= length)
  if info.at is None:
    share = count / info.frames if cut else 1.0
    return Part(ranges, plain=plain, frames=count * stream.samples, share=share)
  head = bytearray(info.head)
  head[4 : info.at - 8] = bytes(info.at - 12)  # else it passes for a sound
  if not cut:  # of a cut one, the decoder tells what is missing
    struct.pack_into(">I", head, info.at, count)
    if info.bytes is not None:
      struct.pack_into(">I", head, info.at + 4, min(length, 0xFFFF_FFFF))
  return Part(ranges, bytes(head), plain and head == info.head)


def _side(stream: _Stream) -> int:
  """Returns where a frame's samples begin, and a first frame's numbers."""
  if stream.version == 3:
    return 4 + (17 if stream.mono else 32)
  return 4 + (9 if stream.mono else 17)


def _info(file: File, at: int, stream: _Stream) -> _Info | None:
  """Returns a frame that tells of the others, or None if it has sound."""
  if stream.layer != 3:
    return None
  size, _ = _FRAMES[file.at(at, 3)]
  head = file.at(at, size)
  if head[36:40] == b"VBRI" and len(head) >= 54:
    length, frames = struct.unpack_from(">II", head, 46)
    return _Info(head, None, frames, length)
  for side in (_side(stream), _side(stream) + 2):  # behind a checksum
    if head[side : side + 4] in (b"Xing", b"Info") and len(head) >= side + 16:
      flags, frames, length = struct.unpack_from(">III", head, side + 4)
      if not flags & 1:
        return _Info(head, None, None, None)
      return _Info(head, side + 8, frames, length if flags & 2 else None)
  return None


def _stream(file: File, at: int) -> tuple[int, _Stream | None]:
  """Returns (bytes of the frame at a place, its stream or None)."""
  head = file.at(at, 4)
  size, stream = _FRAMES.get(head[:3], (0, None))
  if stream is None or len(head) < 4 or at + size > file.size:
    return 0, None
  return size, stream._replace(mono=head[3] >= 0xC0)


def _next_frame(file: File, at: int) -> tuple[int, _Stream] | None:
  """Returns (start, stream) of the next frame that has another behind it."""
  last = at + _LOST
  while at < min(last, file.size):
    size, stream = _stream(file, at)
    behind = at + size
    if stream and (
      behind == file.size
      or _stream(file, behind)[1] == stream
      or skip_tags(file, behind) > behind
    ):
      return at, stream
    at = file.find(b"\xff", at + 1)
  return None


def _walk(file: File, at: int, stream: _Stream) -> tuple[int, int]:
  """Returns (stop, number) of the frames of a stream from a place on."""
  count, mono = 0, stream.mono
  stream = _FRAMES[file.at(at, 3)][1] if file.at(at, 3) in _FRAMES else None
  while True:
    block = file.at(at, _WALKED)
    informed = any(sign in block for sign in _INFO_SIGNS)
    here, last = 0, min(len(block), file.size - at) - 4
    while here <= last:
      size, same = _FRAMES.get(block[here : here + 3], (0, None))
      if same is not stream or (block[here + 3] >= 0xC0) is not mono:
        return at + here, count
      if here + size > len(block) or (
        informed and _info(file, at + here, stream._replace(mono=mono))
      ):
        break
      here += size
      count += 1
    if here == 0 or at + here >= file.size:
      return at + here, count
    at += here
