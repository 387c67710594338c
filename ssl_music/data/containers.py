"""Where audio lies in a file, and whether all of it is there.

libsndfile believes headers, and of joined files it reads the first alone. Here
a file's structure (its pages, chunks, frames and size) tells what to give it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from ssl_music.data import kinds, mpeg, window
from ssl_music.data.window import File, Part

# What a program writes into a header when it cannot seek back to it.
_UNKNOWN = 0x7FFF_0000
_MOST_CHUNKS = 10_000  # a wav holds a dozen; a damaged one could hold millions
_SAMPLES = (b"data", b"SSND")
_BIG = (b"FORM", b"RIFX")  # bytes are in the order of writing
_TAIL = 4_096  # bytes that may lie behind a wav without a meaning


def parts(path: Path) -> tuple[list[Part], kinds.Kind | None]:
  """Returns the parts of a file, in order, and what it is.

  Args:
    path: a file that is not empty.

  Raises:
    OSError: it cannot be read.
  """
  with path.open("rb") as opened:
    file = File(opened)
    start = window.skip_tags(file, 0)
    kind = kinds.identify(file.at(start, kinds.HEAD))
    name = kind.name if kind else ""
    if kind is None and path.suffix.lower() == ".mp3":  # junk may be in front
      found = [p._replace(plain=False) for p in mpeg.split(file, start)]
      return found or [Part(((0, file.size),))], kind
    if name == "an MP3 file":
      return list(mpeg.split(file, start)) or [Part(((0, file.size),))], kind
    find_starts, find_part = _CONTAINERS.get(name, (None, None))
    starts = list(find_starts(file, start)) if find_starts else []
    starts[:1] = [0]  # a tag in front does no harm
    stops = [*starts[1:], file.size]
    found = []
    for one, stop in zip(starts, stops, strict=True):
      part = Part(((one, stop),))
      if find_part:
        part = find_part(file, one or start, stop) or part
      found.append(part._replace(plain=len(starts) == 1 and not part.head))
    return found, kind


def _starts_with(sign: bytes) -> Callable[[File, int], Iterator[int]]:
  """Returns what finds joined files by a sign that nothing else has."""

  def starts(file: File, at: int) -> Iterator[int]:
    yield at
    while (at := file.find(sign, at + 1)) < file.size:
      yield at

  return starts


# Ogg -------------------------------------------------------------------------


def _pages(
  file: File, at: int, stop: int
) -> Iterator[tuple[int, int, int, bytes]]:
  """Yields (start, end, flags, number of its stream) of every page."""
  strays = 0
  while (at := file.find(b"OggS", at)) < stop and strays < _MOST_CHUNKS:
    head = file.at(at, 27 + 255)
    if len(head) < 27:
      return
    end = at + 27 + head[26] + sum(head[27 : 27 + head[26]])
    yield at, end, head[5], head[14:18]
    stray = file.at(end, 4) != b"OggS"  # or the last one
    strays += stray
    at = at + 4 if stray else end


def _ogg_starts(file: File, at: int) -> Iterator[int]:
  """Yields where the streams of a chain begin: one or more together."""
  before = 0
  for start, _, flags, _ in _pages(file, at, file.size):
    if flags & 2 and not before & 2:
      yield start
    before = flags


def _ogg_part(file: File, at: int, stop: int) -> Part:
  """Returns a part; the last page of a whole stream is marked as such."""
  open_, strays = set(), False
  for _, end, flags, stream in _pages(file, at, stop):
    if flags & 2:
      open_.add(stream)
    strays |= stream not in open_
    if flags & 4 and end <= stop:
      open_.discard(stream)
  return Part(((at, stop),), share=None if open_ or strays else 1.0)


# WAV and AIFF ----------------------------------------------------------------


def _chunks(file: File, at: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
  """Yields (name, start, size) of what is in a file; joined ones go on."""
  sign = file.at(at, 4)
  order = "big" if sign in _BIG else "little"
  at += 12
  large = None
  for _ in range(_MOST_CHUNKS):
    name, size = file.at(at, 4), int.from_bytes(file.at(at + 4, 4), order)
    if at + 8 > stop:
      return
    if name == b"ds64":  # has the size of the data where 32 bits cannot
      large = int.from_bytes(file.at(at + 16, 8), "little")
    if name == b"data" and size == 0xFFFF_FFFF and large:
      size = large
    yield name, at + 8, size
    at += 12 if name == sign else 8 + size
    if size % 2 and name != sign and file.at(at, 4) != sign:
      at += 1


def _riff_starts(file: File, at: int) -> Iterator[int]:
  yield at
  sign = file.at(at, 4)
  for name, start, _ in _chunks(file, at, file.size):
    if name == sign:
      yield start - 8


def _riff_part(file: File, at: int, stop: int) -> Part | None:
  found = [one for one in _chunks(file, at, stop) if one[0] in _SAMPLES]
  if not found:
    return None
  _, start, size = found[0]
  held = stop - start
  if held < size:
    unknown = _UNKNOWN <= size < 1 << 32
    return Part(((at, stop),), share=1.0 if unknown else max(held / size, 1e-9))
  behind = file.at(start + size + size % 2, 4)
  if held - size > _TAIL and not behind.isalnum():
    order = "big" if file.at(at, 4) in _BIG else "little"
    number = min(held, 0xFFFF_FFFE).to_bytes(4, order)
    return Part(((start, stop),), file.at(at, start - 4 - at) + number)
  return None


# AU --------------------------------------------------------------------------


_AU_HEAD = 24  # bytes, at least


def _au_head(file: File, at: int) -> tuple[int, int]:
  """Returns (where the samples start, how many bytes there should be)."""
  order = "big" if file.at(at, 4) == b".snd" else "little"
  start, size = file.at(at + 4, 4), file.at(at + 8, 4)
  return at + int.from_bytes(start, order), int.from_bytes(size, order)


def _au_starts(file: File, at: int) -> Iterator[int]:
  sign = file.at(at, 4)
  while file.at(at, 4) == sign:
    yield at
    at = max(sum(_au_head(file, at)), at + _AU_HEAD)


def _au_part(file: File, at: int, stop: int) -> Part | None:
  start, size = _au_head(file, at)
  held = max(stop - start, 0)
  if held < size < _UNKNOWN:
    return Part(((at, stop),), share=max(held / size, 1e-9))
  if size in (held, 0xFFFF_FFFF):
    return None
  return Part(((at + 12, stop),), file.at(at, 8) + b"\xff" * 4)


# FLAC ------------------------------------------------------------------------

_MOST_SAMPLES = (1 << 36) - 1
_LAST_FRAME = 1 << 20  # bytes, in which one must begin


def _flac_part(file: File, at: int, stop: int) -> Part | None:
  """Returns a part if its header counts fewer samples than its last frame."""
  info = file.at(at + 8, 34)
  if len(info) < 34:
    return None
  counted = int.from_bytes(info[13:18], "big") & _MOST_SAMPLES
  samples = _flac_samples(file, at + 42, stop, info)
  if samples is None or not counted < samples <= _MOST_SAMPLES:
    return None  # of a cut one, decoding tells
  mixed = info[13] & 0xF0 | samples >> 32
  number = bytes((mixed,)) + (samples & 0xFFFF_FFFF).to_bytes(4, "big")
  return Part(((at + 26, stop),), file.at(at, 21) + number)


def _flac_samples(file: File, at: int, stop: int, info: bytes) -> int | None:
  """Returns where the last frame ends, in samples; None if there is none."""
  first = max(at, stop - _LAST_FRAME)
  block = file.at(first, stop - first)
  here = len(block)
  while (here := block.rfind(b"\xff", 0, here)) >= 0:
    samples = _flac_frame(block[here : here + 16], info)
    if samples is not None:
      return samples
  return None


def _flac_frame(head: bytes, info: bytes) -> int | None:
  """Returns where a frame ends, in samples; None if this is no frame's head.

  Args:
    head: 16 bytes, which a frame's head has at most.
    info: the file's first block.
  """
  code = head[2] >> 4 if len(head) == 16 else 0  # of the frame's size
  if not code or head[1] & 0xFE != 0xF8 or head[3] & 1:
    return None
  extra = 7 - (head[4] ^ 0xFF).bit_length() if head[4] >= 0xC0 else 0
  if head[4] & 0xC0 == 0x80 or any(x & 0xC0 != 0x80 for x in head[5:][:extra]):
    return None
  number = head[4] & (0x7F if not extra else 0x3F >> extra)
  for byte in head[5 : 5 + extra]:  # as UTF-8 has its letters
    number = number << 6 | byte & 0x3F
  here = 5 + extra
  longer = {6: 1, 7: 2}.get(code, 0)
  size = int.from_bytes(head[here : here + longer], "big") + 1
  if not longer:
    size = 192 if code == 1 else 576 << code - 2 if code < 6 else 1 << code
  here += longer + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
  if here > 15 or _crc8(head[:here]) != head[here]:
    return None
  varies = head[1] & 1  # then the number is that of a sample
  return (
    number + size if varies else number * int.from_bytes(info[:2], "big") + size
  )


def _crc8(data: bytes) -> int:
  crc = 0
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = (crc << 1 ^ 7 if crc & 0x80 else crc << 1) & 0xFF
  return crc


# MP4 -------------------------------------------------------------------------


def _mp4_starts(file: File, at: int) -> Iterator[int]:
  """Yields where files begin: with a box of their type."""
  yield at
  first = at
  for _ in range(_MOST_CHUNKS):
    head = file.at(at, 16)
    if head[4:8] == b"ftyp" and at != first:
      yield at
    size = int.from_bytes(head[:4], "big")
    if size == 1:
      size = int.from_bytes(head[8:16], "big")
    at += size
    if size < 8 or at >= file.size:  # 0 is a box that ends with the file
      return


_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_CONTAINERS = {
  "a WAV file": (_riff_starts, _riff_part),
  "an AIFF file": (_riff_starts, _riff_part),
  "an AU file": (_au_starts, _au_part),
  # With the head of the first block, of 34 bytes.
  "a FLAC file": (_starts_with(b"fLaC\0\0\0\x22"), _flac_part),
  "an Ogg file": (_ogg_starts, _ogg_part),
  "an Ogg FLAC file": (_ogg_starts, _ogg_part),
  "an Ogg Speex file": (_ogg_starts, _ogg_part),
  "an MP4 file": (_mp4_starts, None),
  "a TTA file": (_starts_with(b"TTA1\1\0"), None),
  "a Windows Media file": (_starts_with(_ASF), None),
}
