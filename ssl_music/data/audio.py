"""Audio files to 16 kHz mono: decoding, down-mixing, resampling.

Worker processes import this module, so it imports nothing heavy.
"""

import contextlib
import itertools
import math
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ssl_music import disk
from ssl_music.data import containers, kinds, window

SAMPLE_RATE = 16_000
EXTENSIONS = (
  ".wav",
  ".flac",
  ".ogg",
  ".oga",
  ".opus",
  ".mp3",
  ".aiff",
  ".aif",
  ".au",
)
# What PyAV decodes, where it is installed.
AV_EXTENSIONS = (
  ".m4a",
  ".m4b",
  ".aac",
  ".mp4",
  ".m4v",
  ".mov",
  ".mka",
  ".mkv",
  ".webm",
  ".wma",
  ".wmv",
  ".ape",
  ".wv",
  ".tta",
  ".mpc",
)
# A peak under -80 dB of full scale is dither or nothing.
SILENCE = 1e-4
# Of the louder channel: a mean under that is what coding leaves of nothing.
_CANCELLED = 1e-2
_CANCELS = "its channels cancel out"
# Encoders pad and decoders trim a few frames of mp3 (1,152 samples each).
TRUNCATION_TOLERANCE = 0.1
# A few megabytes of a hostile file may hold years of digital silence.
_LONGEST_HOURS = 48
_BLOCK = 1 << 19  # samples, of all channels together
_SCALED = 1 << 15  # samples: what the processor's cache holds goes faster
HELD = 65 * SAMPLE_RATE  # samples of a track that are held in memory
# What libsndfile says of a flac without a length; it cannot read all of it.
_NO_LENGTH = 2**62
RATES = 4_000, 768_000  # Hz; anything else is an error or damage


class AudioError(Exception):
  """This file cannot be used; the message is the reason in a few words."""


def stream(
  path: str | os.PathLike,
  sample_rate: int = SAMPLE_RATE,
  max_seconds: float | None = None,
) -> Iterator[np.ndarray]:
  """Decodes a file block by block, averages its channels and resamples it.

  The numbers do not depend on the size of the blocks (those of mp3 by some
  1e-7). libsndfile decodes what it can, and PyAV the files of `AV_EXTENSIONS`.

  Args:
    path: an audio file, or a video, of which the first audio stream is taken.
    sample_rate: of the output, in Hz.
    max_seconds: read no more than this from the start; None reads all.

  Yields:
    float32 [samples], as loud as the file; some megabytes at most.

  Raises:
    AudioError: the file is unreadable, empty, no audio, undecodable, longer
      than `_LONGEST_HOURS`, or needs PyAV, which is not installed. At the end:
      it is silent, its channels cancel out, or it is truncated (holds fewer
      samples than its structure promises). Whether all samples are finite,
      `normalise` and `decode` see.
  """
  path = Path(path)
  resampler, before, seconds, unsound = None, None, 0.0, ""
  rest = np.zeros(0, np.float32)
  for rate, samples in _blocks(path, max_seconds):
    if not RATES[0] <= rate <= RATES[1]:
      raise AudioError(f"has an odd sample rate ({rate} Hz)")
    seconds += len(samples) / rate
    if seconds > _LONGEST_HOURS * 3600:
      raise AudioError(f"longer than {_LONGEST_HOURS} hours")
    block = average(samples)
    if unsound is not None and len(block):  # up to the first sound
      why = why_unsound(samples, block)
      if why is None or unsound != _CANCELS:  # which a silent end does not undo
        unsound = why
    if rate != before:  # the first block, or joined files
      if resampler is not None:
        yield resampler.resample_chunk(rest, last=True)
      resampler, before = None, rate
      if rate != sample_rate:
        resampler = soxr.ResampleStream(
          rate, sample_rate, 1, dtype="float32", quality="HQ"
        )
    yield block if resampler is None else resampler.resample_chunk(block)
  if resampler is not None:
    yield resampler.resample_chunk(rest, last=True)
  if unsound:
    raise AudioError(unsound)


def decode(
  path: str | os.PathLike,
  sample_rate: int = SAMPLE_RATE,
  max_seconds: float | None = None,
) -> np.ndarray:
  """Returns a whole file, float32 [samples]: `stream`'s blocks put together.

  Raises:
    AudioError: as `stream`, or a sample is not finite.
  """
  blocks = []
  for block in stream(path, sample_rate, max_seconds):
    _peak(block)
    blocks.append(block)
  return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def to_pcm(waveform: np.ndarray) -> np.ndarray:
  """Normalises to a peak of 1 and rounds to int16, as published.

  Args:
    waveform: float [samples].

  Returns:
    int16 [samples] with a largest absolute value of 32,767.

  Raises:
    AudioError: there is no sample, one is not finite, or the peak is under -80
      dB of full scale.
  """
  return _to_pcm([waveform], _peak(waveform))


def normalise(
  blocks: Iterable[np.ndarray],
  folder: str | os.PathLike,
  name: str | os.PathLike | None = None,
) -> np.ndarray:
  """Returns `to_pcm` of a track in blocks, in bounded memory.

  The peak is known at the end only. The blocks of a track of `HELD` samples at
  most wait in memory; those of a longer one in a file, and so does its result.

  Args:
    blocks: float32 [samples] each, such as `stream`'s.
    folder: for files without a name, which go when nothing uses them any more.
    name: a file for a long track's result, which stays; None is one without.

  Returns:
    int16 [samples]; of a long track, a memory map, little-endian.

  Raises:
    AudioError: as `to_pcm`, or the blocks raise it.
    OSError: writing failed, as on a full disk.
  """
  held, samples, peak = [], 0, 0.0
  blocks = iter(blocks)
  for block in blocks:
    peak = max(peak, _peak(block))
    held.append(block)
    samples += len(block)
    if samples > HELD:
      return _mapped_pcm(itertools.chain(held, blocks), folder, name)
  return _to_pcm(held, peak)


def _to_pcm(blocks: Sequence[np.ndarray], peak: float) -> np.ndarray:
  pcm = np.empty(sum(map(len, blocks)), np.int16)
  if not len(pcm):
    raise AudioError("holds no samples")
  _check_peak(peak)
  start = 0
  for block in blocks:
    _scale(block, peak, pcm[start : start + len(block)])
    start += len(block)
  return pcm


def _mapped_pcm(
  blocks: Iterable[np.ndarray],
  folder: str | os.PathLike,
  name: str | os.PathLike | None,
) -> np.ndarray:
  with (
    tempfile.TemporaryFile(dir=folder) as waiting,
    tempfile.TemporaryFile(dir=folder)
    if name is None
    else Path(name).open("w+b") as out,
  ):
    peak = 0.0
    for block in blocks:
      peak = max(peak, _peak(block))
      waiting.write(np.ascontiguousarray(block, np.float32).data)
    _check_peak(peak)
    waiting.seek(0)
    while part := waiting.read(4 * _SCALED):
      wave = np.frombuffer(part, np.float32)
      out.write(_scale(wave, peak, np.empty(len(wave), "<i2")).data)
    out.flush()
    return np.memmap(out, "<i2", "r")


def average(samples: np.ndarray) -> np.ndarray:
  """Averages channels.

  Args:
    samples: float32 [frames, channels].

  Returns:
    float32 [frames]; a view of `samples` where there is but one channel.
  """
  # Column by column: `mean` over an axis this short takes 25 times as long.
  total = samples[:, 0]
  if samples.shape[1] == 1:
    return total
  with np.errstate(over="ignore", invalid="ignore"):  # `_peak` checks
    total = total + samples[:, 1]
    for channel in range(2, samples.shape[1]):
      total += samples[:, channel]
    total /= samples.shape[1]
  return total


def why_unsound(samples: np.ndarray, mono: np.ndarray) -> str | None:
  """Returns why there is nothing to hear, or None if there is.

  What does not change is silent, however far from zero it is.

  Args:
    samples: float32 [frames, channels], one frame or more.
    mono: its `average`.

  Raises:
    AudioError: a sample is not finite.
  """
  _peak(mono)
  heard = _spread(mono)
  loudest = max(map(_spread, samples.T))
  if heard >= max(SILENCE, _CANCELLED * loudest):
    return None
  return _CANCELS if loudest >= SILENCE else "silent"


def _spread(waveform: np.ndarray) -> float:
  return (float(waveform.max()) - float(waveform.min())) / 2


def _peak(waveform: np.ndarray) -> float:
  if not len(waveform):
    return 0.0
  peak = float(max(waveform.max(), -waveform.min()))
  if not math.isfinite(peak):  # a largest number is none where a sample is not
    raise AudioError("has samples that are not finite numbers")
  return peak


def _check_peak(peak: float) -> None:
  if peak < SILENCE:
    raise AudioError("silent")


def _scale(waveform: np.ndarray, peak: float, pcm: np.ndarray) -> np.ndarray:
  for start in range(0, len(waveform), _SCALED):
    part = slice(start, start + _SCALED)
    scaled = waveform[part] * (32_767 / peak)
    pcm[part] = np.rint(scaled, out=scaled)
  return pcm


def _blocks(
  path: Path, max_seconds: float | None
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (rate in Hz; float32 [frames, channels], to be used at once)."""
  try:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
      raise AudioError("is not a regular file")  # opening a pipe would wait
    if about.st_size == 0:
      raise AudioError("the file is empty")
    parts, kind = containers.parts(path)
    if kind is None:
      known = path.suffix.lower() in AV_EXTENSIONS
      kind = kinds.Kind("this", kinds.PYAV if known else kinds.SNDFILE)
    if kind.reader == kinds.OTHER:
      raise AudioError(f"is {kind.name}, not audio")
    by_av = kind.reader == kinds.PYAV
    read = _av_audio(path, kind).read if by_av else _read
    left = math.inf if max_seconds is None else max_seconds
    for part in parts:  # which may have rates of their own
      for rate, block in read(path, part, left):
        left -= len(block) / rate
        yield rate, block
      if left < 1 / RATES[1]:
        break
  except OSError as error:
    if error.errno in disk.LACKING:  # the file may be as it should
      raise
    raise AudioError(f"unreadable ({error.strerror})") from error


def _av_audio(path: Path, kind: kinds.Kind):
  try:
    # Here, since PyAV is optional and takes 0.2 s to import.
    from ssl_music.data import av_audio
  except ImportError as error:
    name = path.suffix.lower()
    if name not in AV_EXTENSIONS:
      name = f"is {kind.name}, which"
    raise AudioError(
      f"{name} needs PyAV: pip install 'ssl_music[av]'"
    ) from error
  return av_audio


def _read(
  path: Path, part: window.Part, max_seconds: float
) -> Iterator[tuple[int, np.ndarray]]:
  """Decodes a part by libsndfile; yields as `_blocks` does."""
  with _opened(path, part) as file:
    yield from _read_file(file, part, max_seconds)


@contextlib.contextmanager
def _opened(path: Path, part: window.Part) -> Iterator[soundfile.SoundFile]:
  if part.plain:
    with _sound_file(os.fsencode(path)) as file:
      if part.frames is None or file.frames >= part.frames:
        yield file
        return
  with window.opened(path, part) as seen, _sound_file(seen) as file:
    yield file


def _sound_file(source: bytes | window.Window) -> soundfile.SoundFile:
  try:
    return soundfile.SoundFile(source)
  except soundfile.LibsndfileError as error:
    detail = error.error_string.rstrip(".")
    if "not a regular file" in detail:  # said of any mp3 without a frame
      detail = "no audio found in it"
    raise AudioError(f"undecodable ({detail})") from error


def _read_file(
  file: soundfile.SoundFile, part: window.Part, max_seconds: float
) -> Iterator[tuple[int, np.ndarray]]:
  if file.frames >= _NO_LENGTH:
    raise AudioError("its header gives no length (encode it again)")
  rate, read = file.samplerate, 0
  # One block of memory, which the system need not fetch again, serves all of a
  # file whose channels are averaged, which copies.
  size = max(_BLOCK // file.channels, 1)
  many = file.channels > 1
  memory = np.empty((size, file.channels), np.float32) if many else None
  limit = max_seconds * rate
  while read + 1 <= limit:
    frames = int(min(size, limit - read))
    try:
      block = file.read(frames, "float32", always_2d=True, out=memory)
    except soundfile.LibsndfileError as error:  # what a cut flac ends with
      raise AudioError(
        f"truncated or damaged (decoding failed between {read} and"
        f" {read + frames} of its {file.frames} frames)"
      ) from error
    read += len(block)
    if len(block):
      yield rate, block
    if len(block) < frames:  # the end; asking again would seek, which costs
      wanted = file.frames if part.frames is None else part.frames
      guessed = file.format == "MP3" and not part.head and part.frames is None
      check_whole(part, read / rate, None if guessed else wanted / rate)
      return


def check_whole(
  part: window.Part, seconds: float, wanted: float | None
) -> None:
  """Raises AudioError where a part has less than it should.

  Args:
    part: that was read to its end.
    seconds: that were read.
    wanted: seconds that the decoder promised, or None.
  """
  if part.share is None:
    raise AudioError(
      f"truncated or damaged (after {seconds:.1f} s, the Ogg stream does not"
      " end as it should)"
    )
  wanted = max(wanted or 0.0, seconds / part.share)
  if seconds < wanted - TRUNCATION_TOLERANCE:
    raise AudioError(
      f"truncated ({seconds:.1f} s of the {wanted:.1f} s that its header"
      " promises)"
    )
