"""A trained encoder to be used: files or arrays in, vectors and tags out.

`ssl_music.load(PATH)` returns one. What it computes of a segment is what a
probe saw of it: audio is made 16 kHz and mono and normalised by the peak of the
whole track.
"""

import numbers
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from ssl_music import disk, features, home, parallel, tagger, weights
from ssl_music import encoder as networks
from ssl_music.data import audio, cuts
from ssl_music.errors import InputError

# Segments a device computes at once: the last batch of a track is filled up
# with silence, so that there is one program for all.
_BATCH = 8


class Encoder:
  """A frozen network; made by `load`.

  Attributes:
    settings: {"frontend", "model", "data"} of its config.
    variables: {"params", "batch_stats"}, NumPy arrays.
    described: where it comes from, for JSON.
    identity: a hash of weights, settings and code: two encoders with the same
      one embed alike.
    seconds: length of a segment.
    dimensions: D, of an embedding.
    tags: T names of the tags that `tag` tells; () without a head.
  """

  def __init__(self, found: weights.Weights, batch: int = _BATCH):
    """Makes an encoder of weights.

    Args:
      found: of `weights.read`.
      batch: segments that each device computes at once.

    Raises:
      InputError: the tag head cannot be read or belongs to another encoder.
    """
    self.settings, self.variables = found.settings, found.variables
    self.described = found.described
    self.identity = features.identify(self.settings, self.variables)
    self.seconds = self.settings["data"]["seconds"]
    self.dimensions = self.settings["model"]["output"]
    self.head = None if found.head is None else tagger.load(found.head)
    self.tags = () if self.head is None else tuple(self.head["tags"])
    self._mesh = parallel.make_mesh()
    self.batch = batch * self._mesh.size
    self._embed = features.mapped(
      features.Encoder(
        lambda waveform: networks.embed(
          self.settings, self.variables, waveform
        ),
        self.seconds,
        self.described,
        self.identity,
      ),
      self._mesh,
    )

  def start(self, waveform: np.ndarray) -> Any:
    """Starts to embed a batch, and returns before it is done.

    Args:
      waveform: int16 [n, samples], n at most `batch`; nobody may write to it
        before the result is there.

    Returns:
      the array to be; `np.asarray(it)[:n]` waits for it, float32 [n, D].
    """
    full = waveform
    if len(waveform) < self.batch:
      full = np.zeros((self.batch, waveform.shape[1]), np.int16)
      full[: len(waveform)] = waveform
    return self._embed(parallel.shard(full, self._mesh, 0))

  def embed_segments(self, waveform: np.ndarray) -> np.ndarray:
    """Embeds segments, int16 [N, samples], to float32 [N, D]."""
    found = [np.zeros((0, self.dimensions), np.float32)]
    for first in range(0, len(waveform), self.batch):
      part = waveform[first : first + self.batch]
      found.append(np.asarray(self.start(part))[: len(part)])
    return np.concatenate(found)

  def embed(
    self,
    source: str | os.PathLike | np.ndarray | Sequence,
    sample_rate: float | None = None,
    *,
    hop: float | None = None,
    mean: bool = False,
  ) -> np.ndarray:
    """Embeds a track.

    Args:
      source: an audio file of any format, rate and length, or its samples,
        float or integer [samples], [samples, channels] or [channels, samples]
        (the shorter one is the channels), as an array or lists.
      sample_rate: of samples, in Hz.
      hop: seconds from a segment's start to the next one's, a multiple of
        0.1 s; None is a segment's length.
      mean: average the sounding segments, as `vectors.read_tracks` does.

    Returns:
      float32 [segments, D], or [D] with `mean`. A rest at the end that is
      shorter than a segment is left out.

    Raises:
      InputError: the source is unreadable, silent or shorter than a segment.
    """
    cut = self.cut(source, sample_rate, hop=hop)
    vectors = self.embed_cut(cut)
    return track_mean(vectors, cut.sounding) if mean else vectors

  def tag(
    self,
    source: str | os.PathLike | np.ndarray | Sequence,
    sample_rate: float | None = None,
  ) -> dict[str, float]:
    """Tags a track.

    Args:
      source: as of `embed`.
      sample_rate: of an array, in Hz.

    Returns:
      the probability of every tag, the highest first.

    Raises:
      InputError: as of `embed`, or this encoder has no head.
    """
    cut = self.cut(source, sample_rate)
    return self.tag_vectors(self.embed_cut(cut), cut.sounding)

  def tag_vectors(
    self, vectors: np.ndarray, sounding: np.ndarray
  ) -> dict[str, float]:
    """Returns the probability of every tag of a track, the highest first.

    Args:
      vectors: float [N, D], of all its segments.
      sounding: bool [N], which of them are sounding; only these count where
        they did for the scores of the head.

    Raises:
      InputError: this encoder has no head.
    """
    if self.head is None:
      raise InputError(
        f"the encoder {self.described['encoder']} has no head to tag with: give"
        " the workdir of a probe or of a fine-tuning"
      )
    if self.head["sounding"]:
      vectors = vectors[sounding]
    values = tagger.apply(self.head, vectors)
    order = np.argsort(-values, kind="stable")
    return {self.tags[column]: float(values[column]) for column in order}

  def cut(
    self,
    source: str | os.PathLike | np.ndarray | Sequence,
    sample_rate: float | None = None,
    *,
    hop: float | None = None,
  ) -> cuts.Cut:
    """Reads a track and cuts it into segments; see `embed`."""
    given = not isinstance(source, (str, os.PathLike))
    name = "the array" if given else home.expanded(os.fspath(source))
    try:
      if given:
        pcm = audio.to_pcm(_mono(source, sample_rate))
      else:
        with disk.temporary() as folder:
          pcm = audio.normalise(audio.stream(name), folder)
      length = cuts.blocks(self.seconds)
      step = length if hop is None else cuts.blocks(hop)
      return cuts.cut(pcm, length, step)
    except audio.AudioError as error:
      raise InputError(
        f"cannot embed {name} ({error}): give another file"
      ) from error

  def embed_cut(self, cut: cuts.Cut) -> np.ndarray:
    """Embeds the segments of a track in flat memory, float32 [N, D]."""
    samples = np.arange(round(self.seconds * audio.SAMPLE_RATE))
    found = [
      self.embed_segments(cut.pcm[starts[:, None] + samples])
      for starts in np.split(
        cut.starts, range(self.batch, len(cut.starts), self.batch)
      )
    ]
    return np.concatenate(found)


def load(
  path: str | os.PathLike,
  checkpoint: str | int = "latest",
  network: str = "student",
  *,
  batch: int = _BATCH,
) -> Encoder:
  """Loads an encoder.

  Args:
    path: see `weights.read`.
    checkpoint: of a pre-training, "latest", "best" or a step.
    network: "student" or "teacher", where there are two.
    batch: segments that each device computes at once.

  Raises:
    InputError: there is no such encoder, or it cannot be read.
  """
  return Encoder(weights.read(Path(path), checkpoint, network), batch)


def track_mean(vectors: np.ndarray, sounding: np.ndarray) -> np.ndarray:
  """Returns the mean of the sounding segments, float32 [D].

  Args:
    vectors: float [N, D].
    sounding: bool [N], one or more of them true.
  """
  return vectors[sounding].mean(axis=0, dtype=np.float64).astype(np.float32)


def _mono(source: Any, sample_rate: float | None) -> np.ndarray:
  """Returns samples as 16 kHz mono, float32 [samples]."""
  try:
    waveform = np.asarray(source)
  except (TypeError, ValueError) as error:
    raise InputError(
      f"this {type(source).__name__} is no track: give samples, all channels of"
      " one length, or the path of a file"
    ) from error
  if waveform.ndim not in (1, 2) or not waveform.size:
    raise InputError(
      f"an array of shape {waveform.shape} is no track: give [samples],"
      " [samples, channels] or [channels, samples]"
    )
  low, high = audio.RATES
  if sample_rate is None:
    raise InputError("an array needs its sample rate: give sample_rate=… in Hz")
  if not isinstance(sample_rate, numbers.Real) or not (
    low <= sample_rate <= high
  ):
    raise InputError(
      f"{sample_rate!r} is no sample rate: give one from {low} to {high} Hz"
    )
  waveform = _as_float(waveform)
  if waveform.ndim == 2 and len(waveform) < waveform.shape[1]:
    waveform = waveform.T  # a track has more samples than channels
  waveform = waveform.reshape(len(waveform), -1)
  mono = audio.average(waveform)
  if unsound := audio.why_unsound(waveform, mono):
    raise audio.AudioError(unsound)
  if sample_rate == audio.SAMPLE_RATE:
    return mono
  return soxr.resample(mono, sample_rate, audio.SAMPLE_RATE, quality="HQ")


def _as_float(waveform: np.ndarray) -> np.ndarray:
  """Returns samples as float32, so that the limit of silence holds."""
  kind = waveform.dtype
  if kind.kind == "f":
    with np.errstate(over="ignore"):  # infinite is found later
      return waveform.astype(np.float32)
  if kind == np.uint8:  # as in 8-bit WAV files
    return waveform.astype(np.float32) / 128 - 1
  if kind.kind != "i":
    raise InputError(
      f"an array of {kind} is no track: give floats, signed integers or uint8"
    )
  full = -float(np.iinfo(kind).min)
  if kind.itemsize == 8:  # what NumPy makes of a list of smaller ones
    peak = float(np.abs(waveform.astype(np.float64)).max())
    full = next(bits for bits in (2.0**15, 2.0**31, full) if peak <= bits)
  return (waveform / full).astype(np.float32)
