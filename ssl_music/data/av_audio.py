"""Audio that libsndfile does not decode: m4a and other containers, by PyAV.

Only `audio.stream` imports this module, and only for such a file: PyAV is
optional. It keeps libav's messages to itself unless it is told otherwise.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from ssl_music.data import audio, window

# libav looks at the content, not at the name, and knows formats that lead it to
# other files and to the network, such as playlists: only these are let in.
_OPTIONS = {
  "format_whitelist": "mov,matroska,asf,aac,ape,wv,tta,mpc,mpc8,ogg",
  "protocol_whitelist": "file",
}
# For others libav may have guessed the length from the bit rate.
_LENGTH_OF_STREAM = ("mov,mp4,m4a,3gp,3g2,mj2", "ape", "wv", "tta", "mpc8")
_LENGTH_OF_FILE = ("matroska,webm",)
_BLOCK = 1 << 16  # frames
_MICROSECOND = 1e-6


def read(
  path: Path, part: window.Part, max_seconds: float
) -> Iterator[tuple[int, np.ndarray]]:
  """Decodes the first audio stream of a part of a file.

  Args:
    path: a container or stream that libav reads.
    part: of it.
    max_seconds: read no more than this from the start.

  Yields:
    (rate in Hz, always the same; float32 [frames, channels]).

  Raises:
    AudioError: the file is undecodable, damaged, truncated (ends before the
      time that its header promises) or has no audio stream.
    OSError: it cannot be read.
  """
  # With the protocol: a colon in the name would be taken for one.
  plain = contextlib.nullcontext(f"file:{path}")
  with plain if part.plain else window.opened(path, part) as source:
    yield from _read(source, part, max_seconds)


def _read(
  source: str | window.Window, part: window.Part, max_seconds: float
) -> Iterator[tuple[int, np.ndarray]]:
  try:
    container = av.open(source, options=_OPTIONS, metadata_errors="replace")
  except av.FFmpegError as error:
    raise audio.AudioError(f"undecodable ({error.strerror})") from error
  with container:
    if not container.streams.audio:
      raise audio.AudioError("has no audio stream")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
      raise audio.AudioError("undecodable (its codec is unknown or encrypted)")
    try:
      yield from _decode(container, stream, part, max_seconds)
    except (ArithmeticError, RuntimeError, ValueError) as error:
      raise audio.AudioError(f"undecodable ({error})") from error


def _decode(
  container: av.container.InputContainer,
  stream: av.AudioStream,
  part: window.Part,
  max_seconds: float,
) -> Iterator[tuple[int, np.ndarray]]:
  promised, of_file = _promised(container, stream)
  rate, seen, end = None, 0, 0.0
  parts, held = [], 0
  try:
    for packet in container.demux(*([] if of_file else [stream])):
      if packet.pts is not None:
        last = (packet.pts + (packet.duration or 0)) * packet.time_base
        end = max(end, float(last))
      if packet.stream_index != stream.index:
        continue
      for frame in packet.decode():
        rate = rate or frame.sample_rate
        if frame.sample_rate != rate:
          raise audio.AudioError("damaged (its sample rate changes)")
        samples = _samples(frame)
        left = max_seconds * rate - seen
        parts.append(samples if len(samples) <= left else samples[: int(left)])
        seen += len(parts[-1])
        held += len(parts[-1])
        if held >= _BLOCK:
          yield rate, np.concatenate(parts)
          parts, held = [], 0
      if rate and max_seconds * rate - seen < 1:
        break  # what comes behind does not matter
    else:
      audio.check_whole(part, end, promised)
  except av.FFmpegError as error:
    raise audio.AudioError(
      f"truncated or damaged (decoding failed after {seen / (rate or 1):.1f} s:"
      f" {error.strerror})"
    ) from error
  if parts:
    yield rate, np.concatenate(parts)


def _promised(
  container: av.container.InputContainer, stream: av.AudioStream
) -> tuple[float | None, bool]:
  """Returns when the last packet should end, in seconds, and of what stream.

  Returns:
    (None if nothing reliable is promised; whether the longest of all streams
    is meant, so that every packet has to be looked at).
  """
  name = container.format.name
  if name in _LENGTH_OF_STREAM and stream.duration:
    ticks = (stream.start_time or 0) + stream.duration
    return float(ticks * stream.time_base), False
  if name in _LENGTH_OF_FILE and container.duration:
    return container.duration * _MICROSECOND, True
  return None, False


def _samples(frame: av.AudioFrame) -> np.ndarray:
  samples = frame.to_ndarray()  # [channels, frames] or [1, frames * channels]
  if frame.format.is_planar:
    samples = samples.T
  else:
    samples = samples.reshape(-1, frame.layout.nb_channels)
  if samples.dtype == np.uint8:
    samples = samples.astype(np.float32) / 128 - 1
  elif samples.dtype.kind == "i":
    full_scale = -float(np.iinfo(samples.dtype).min)
    samples = samples.astype(np.float32) / full_scale
  return samples.astype(np.float32, copy=False)
