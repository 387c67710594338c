"""Audio files to 16 kHz mono: decoding, down-mixing, resampling.

Worker processes import this module, so it imports nothing heavy.
"""

import os
import re
from pathlib import Path

import numpy as np
import soundfile
import soxr

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
)
# Audio that people's folders hold and libsndfile does not decode: listed as
# skipped rather than overlooked.
UNDECODABLE_EXTENSIONS = (
  ".m4a",
  ".aac",
  ".mp4",
  ".wma",
  ".ape",
  ".mpc",
  ".wv",
  ".webm",
  ".mka",
)
# A peak under -80 dB of full scale is dither or nothing.
SILENCE = 1e-4
# Encoders pad and decoders trim a few frames of mp3 (1,152 samples each).
TRUNCATION_TOLERANCE = 0.1
_BLOCK_SECONDS = 30
# What a program writes into a wav header when it cannot seek back to it.
_UNKNOWN_LENGTH = 0x7FFF_0000
# What libsndfile says of a flac without a length; it cannot read all of it.
_NO_LENGTH = 2**62
_RATES = 4_000, 768_000  # Hz; anything else is a damaged header


class AudioError(Exception):
  """This file cannot be used; the message is the reason in a few words."""


def decode(
  path: str | os.PathLike,
  sample_rate: int = SAMPLE_RATE,
  max_seconds: float | None = None,
) -> np.ndarray:
  """Decodes a file, averages its channels and resamples it.

  The file is read in blocks, so that memory grows with the output only.

  Args:
    path: an audio file that libsndfile reads.
    sample_rate: of the output, in Hz.
    max_seconds: read no more than this from the start; None reads all.

  Returns:
    float32 [samples], as loud as the file.

  Raises:
    AudioError: the file is empty, undecodable, truncated (holds fewer samples
      than its header promises) or has samples that are no numbers.
  """
  path = Path(path)
  if path.suffix.lower() in UNDECODABLE_EXTENSIONS:
    raise AudioError(
      f"{path.suffix.lower()} is not decodable here (convert it to flac or ogg)"
    )
  try:
    if path.stat().st_size == 0:
      raise AudioError("the file is empty")
    with soundfile.SoundFile(os.fsencode(path)) as file:
      if not _RATES[0] <= file.samplerate <= _RATES[1]:
        raise AudioError(f"has an odd sample rate ({file.samplerate} Hz)")
      if file.frames >= _NO_LENGTH:
        raise AudioError("its header gives no length (encode it again)")
      waveform, read = _read(file, sample_rate, max_seconds)
      wanted = _promised(file, path)
      rate = file.samplerate
  except OSError as error:
    raise AudioError(f"unreadable ({error.strerror})") from error
  except soundfile.LibsndfileError as error:
    detail = error.error_string.rstrip(".")
    if "not a regular file" in detail:  # said of any mp3 without a frame
      detail = "no audio found in it"
    raise AudioError(f"undecodable ({detail})") from error
  if wanted is not None:
    if max_seconds is not None:
      wanted = min(wanted, int(max_seconds * rate))
    if read < wanted - TRUNCATION_TOLERANCE * rate:
      raise AudioError(
        f"truncated ({read / rate:.1f} s of the {wanted / rate:.1f} s that its"
        " header promises)"
      )
  if not np.isfinite(waveform).all():
    raise AudioError("has samples that are not finite numbers")
  return waveform


def to_pcm(waveform: np.ndarray) -> np.ndarray:
  """Normalises to a peak of 1 and rounds to int16, as published.

  Args:
    waveform: float [samples].

  Returns:
    int16 [samples] with a largest absolute value of 32,767.

  Raises:
    AudioError: there is no sample, or the peak is under -80 dB of full scale.
  """
  if not waveform.size:
    raise AudioError("holds no samples")
  peak = float(np.abs(waveform).max())
  if peak < SILENCE:
    raise AudioError("silent")
  return np.round(waveform * (32_767 / peak)).astype(np.int16)


def _read(
  file: soundfile.SoundFile, sample_rate: int, max_seconds: float | None
) -> tuple[np.ndarray, int]:
  """Returns the resampled mono waveform and how many frames were read."""
  limit = -1 if max_seconds is None else int(max_seconds * file.samplerate)
  resampler = None
  if file.samplerate != sample_rate:
    resampler = soxr.ResampleStream(
      file.samplerate, sample_rate, 1, dtype="float32", quality="HQ"
    )
  parts, read = [], 0
  while limit < 0 or read < limit:
    frames = file.samplerate * _BLOCK_SECONDS
    if limit >= 0:
      frames = min(frames, limit - read)
    try:
      block = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:  # what a cut flac ends with
      raise AudioError(
        f"truncated or damaged (decoding failed between {read} and"
        f" {read + frames} of its {file.frames} frames)"
      ) from error
    if not len(block):
      break
    read += len(block)
    mono = block.mean(axis=1)
    parts.append(mono if resampler is None else resampler.resample_chunk(mono))
  if resampler is not None:
    parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
  waveform = np.concatenate(parts) if parts else np.zeros(0, np.float32)
  return waveform, read


def _promised(file: soundfile.SoundFile, path: Path) -> int | None:
  """Returns the frames that the header promises; None if it promises none.

  libsndfile corrects the length of a cut wav or aiff to what is there and
  notes the declared size in its log; of an mp3 without a Xing, Info or VBRI
  header it only guesses the length from the bit rate of the first frame.
  """
  if file.format in ("WAV", "WAVEX", "AIFF", "RF64", "W64"):
    cut = re.search(
      r"(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", file.extra_info
    )
    if cut is None:
      return file.frames
    declared, present = int(cut[1]), int(cut[2])
    if declared >= _UNKNOWN_LENGTH or present <= 0:
      return None
    return round(file.frames * declared / present)
  if file.format == "MP3" and not _mp3_has_length(path):
    return None
  return file.frames


def _mp3_has_length(path: Path) -> bool:
  with path.open("rb") as file:
    head = file.read(10)
    if head[:3] == b"ID3" and len(head) == 10:  # size: 4 bytes of 7 bits
      size = (head[6] << 21) + (head[7] << 14) + (head[8] << 7) + head[9]
      file.seek(10 + size)
    else:
      file.seek(0)
    frame = file.read(256)
  return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
