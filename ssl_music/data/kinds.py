"""What a file is, by its first bytes: a name may lie."""

import codecs
from typing import NamedTuple

SNDFILE, PYAV, OTHER = "soundfile", "PyAV", "no audio"


class Kind(NamedTuple):
  """What a file is.

  Attributes:
    name: with its article, to be put into a sentence.
    reader: SNDFILE, PYAV, or OTHER for what holds no audio.
  """

  name: str
  reader: str


# (offset, bytes, kind); the first that fits counts.
_SIGNS = (
  (8, b"WEBP", Kind("a WebP image", OTHER)),
  (8, b"AVI ", Kind("an AVI video", OTHER)),
  (0, b"RIFF", Kind("a WAV file", SNDFILE)),
  (0, b"RIFX", Kind("a WAV file", SNDFILE)),
  (0, b"RF64", Kind("a WAV file", SNDFILE)),
  (0, b"riff", Kind("a W64 file", SNDFILE)),
  (0, b"FORM", Kind("an AIFF file", SNDFILE)),
  (0, b".snd", Kind("an AU file", SNDFILE)),
  (0, b"dns.", Kind("an AU file", SNDFILE)),
  (0, b"caff", Kind("a CAF file", SNDFILE)),
  (0, b"fLaC", Kind("a FLAC file", SNDFILE)),
  # Of a page's first bytes, which name the codec; libsndfile knows two.
  (28, b"\x7fFLAC", Kind("an Ogg FLAC file", PYAV)),
  (28, b"Speex", Kind("an Ogg Speex file", PYAV)),
  (0, b"OggS", Kind("an Ogg file", SNDFILE)),
  *(
    (4, b"ftyp" + brand, Kind("a HEIF image", OTHER))
    for brand in (b"heic", b"heix", b"mif1", b"avif")
  ),
  *(
    (4, box, Kind("an MP4 file", PYAV))
    for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
  ),
  (0, b"\x1aE\xdf\xa3", Kind("a Matroska file", PYAV)),
  (0, b"0&\xb2u\x8ef\xcf\x11", Kind("a Windows Media file", PYAV)),
  (0, b"MAC ", Kind("a Monkey's Audio file", PYAV)),
  (0, b"wvpk", Kind("a WavPack file", PYAV)),
  (0, b"TTA1", Kind("a TTA file", PYAV)),
  (0, b"MPCK", Kind("a Musepack file", PYAV)),
  (0, b"MP+", Kind("a Musepack file", PYAV)),
  (0, b"\x89PNG", Kind("a PNG image", OTHER)),
  (0, b"\xff\xd8\xff", Kind("a JPEG image", OTHER)),
  (0, b"GIF8", Kind("a GIF image", OTHER)),
  (0, b"II*\0", Kind("a TIFF image", OTHER)),
  (0, b"MM\0*", Kind("a TIFF image", OTHER)),
  (0, b"PK\3\4", Kind("a ZIP archive", OTHER)),
  (0, b"Rar!", Kind("a RAR archive", OTHER)),
  (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", OTHER)),
  (0, b"\x1f\x8b\x08", Kind("a gzip archive", OTHER)),
  (0, b"\xfd7zXZ\0", Kind("an xz archive", OTHER)),
  (0, b"\x28\xb5\x2f\xfd", Kind("a Zstandard archive", OTHER)),
  (0, b"BZh", Kind("a bzip2 archive", OTHER)),
  (257, b"ustar", Kind("a tar archive", OTHER)),
  (0, b"%PDF", Kind("a PDF", OTHER)),
  (0, b"MThd", Kind("a MIDI file, which holds notes", OTHER)),
  (0, b"\x7fELF", Kind("a program", OTHER)),
  (0, b"SQLite format 3", Kind("an SQLite database", OTHER)),
  (0, b"\x93NUMPY", Kind("a NumPy array", OTHER)),
  (0, b"bplist", Kind("a property list", OTHER)),
)
# The same of text, in small letters and without the blanks in front.
_TEXTS = (
  (b"<!doctype html", "an HTML page"),
  (b"<html", "an HTML page"),
  (b"<?xml", "an XML file"),
  (b"#extm3u", "a playlist"),
  (b"[playlist]", "a playlist"),
  (b"version https://git-lfs", "a Git LFS pointer to the file"),
)
HEAD = 512  # bytes, of which `identify` wants to know


def identify(head: bytes) -> Kind | None:
  """Returns what a file is, or None where its first bytes do not tell.

  Args:
    head: its first `HEAD` bytes, without ID3 tags.
  """
  for offset, sign, kind in _SIGNS:
    if head.startswith(sign, offset):
      return kind
  if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE0 == 0xE0:
    layer = head[1] & 6  # 0 is AAC's, which uses the same sign
    return Kind("an MP3 file", SNDFILE) if layer else Kind("an AAC file", PYAV)
  text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
  for start, name in _TEXTS:
    if text.startswith(start):
      return Kind(name, OTHER)
  return Kind("a text file", OTHER) if _is_text(head) else None


def _is_text(head: bytes) -> bool:
  try:
    text = codecs.getincrementaldecoder("utf-8")().decode(head)  # may be cut
  except UnicodeDecodeError:
    return False
  return all(letter.isprintable() or letter in "\t\r\n\f" for letter in text)
