"""Embeddings of a data set's segments by a frozen encoder."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from ssl_music import encoder, parallel, progress, randomness, weights
from ssl_music.data import audio, pipeline, segments
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError, explained

# The untrained network takes its batch statistics from so many batches of so
# many training segments: with the initial ones, its activations explode with
# depth.
_CALIBRATION_BATCHES, _CALIBRATION_BATCH = 32, 64

# What an embedding is computed by: with other code, an encoder is another one.
_CODE = [
  Path(__file__),
  Path(encoder.__file__),
  *sorted((Path(encoder.__file__).parent / "models").glob("*.py")),
]


class Encoder(NamedTuple):
  """A frozen encoder.

  Attributes:
    embed: maps waveforms, int16 [N, samples], to float32 [N, D].
    seconds: length of the segments that it is for.
    described: what a score says of it, for JSON.
    identity: see `identify`; of two encoders with the same one, both embed a
      segment alike.
  """

  embed: Callable[[jax.Array], jax.Array]
  seconds: float
  described: dict[str, Any]
  identity: str


def load_encoder(config: ConfigDict, calibration: Tracks) -> Encoder:
  """Returns the encoder that a probe's config names.

  Args:
    config: with "encoder": "random", "mel" or a path of `weights.read`, which
      also takes its "checkpoint" and "network".
    calibration: training tracks, for the batch statistics of "random".

  Raises:
    InputError: there is no such encoder, or it cannot be read.
  """
  settings = config.to_dict()
  seconds = config.data.seconds
  if config.encoder == "mel":
    embed = lambda waveform: mel_statistics(settings, waveform)
    with explained():
      samples = round(seconds * audio.SAMPLE_RATE)
      jax.eval_shape(embed, jax.ShapeDtypeStruct((1, samples), jnp.int16))
    return Encoder(embed, seconds, {"encoder": "mel"}, identify(settings))
  if config.encoder == "random":
    with explained():
      variables = _random_variables(settings, calibration)
    described = {"encoder": "random", "seed": config.seed}
  else:
    found = weights.read(config.encoder, config.checkpoint, config.network)
    settings, variables, described = found[:3]
    seconds = settings["data"]["seconds"]
  embed = lambda waveform: encoder.embed(settings, variables, waveform)
  return Encoder(embed, seconds, described, identify(settings, variables))


def identify(
  config: Mapping, variables: Mapping[str, Any] | None = None
) -> str:
  """Returns a hash of all that an encoder's embeddings follow from.

  Args:
    config: with "frontend" and, of a network, "model"; nothing else of it
      counts.
    variables: of the network, leaves of any kind of array; None where there is
      none, as for mel statistics.

  Returns:
    a SHA-256 in hexadecimal, of these and of the code that computes.
  """
  digest = hashlib.sha256()
  for file in _CODE:
    digest.update(file.read_bytes())
  parts = ("frontend",) if variables is None else ("frontend", "model")
  settings = {part: dict(config[part]) for part in parts}
  digest.update(json.dumps(settings, sort_keys=True).encode())
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  for path, leaf in leaves:
    values = np.ascontiguousarray(leaf)
    about = (jax.tree_util.keystr(path), str(values.dtype), values.shape)
    digest.update(json.dumps(about).encode())
    digest.update(values.tobytes())
  return digest.hexdigest()


def mel_statistics(config: Mapping, waveform: jax.Array) -> jax.Array:
  """Returns mean and deviation over frames of each mel band, [N, 2 mels]."""
  mel = encoder.spectrogram(config, waveform)
  return jnp.concatenate([mel.mean(-1), mel.std(-1)], axis=-1)


def embed_segments(
  frozen: Encoder,
  parts: Iterable[tuple[Tracks, np.ndarray]],
  *,
  batch: int,
  mesh: Mesh,
) -> Iterator[np.ndarray]:
  """Embeds segments of tracks.

  Args:
    frozen: the encoder.
    parts: tracks, and which segments of them (of `choose_segments`).
    batch: segments a batch, a multiple of the devices.
    mesh: of devices.

  Yields:
    float32 [segments, D] for each of `parts`.
  """
  embed = mapped(frozen, mesh)
  for tracks, where in parts:
    yield np.concatenate(
      list(
        embed_batches(
          embed, tracks, where, seconds=frozen.seconds, batch=batch, mesh=mesh
        )
      )
    )


def mapped(frozen: Encoder, mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """Returns an encoder's `embed`, divided over the devices and compiled."""
  divided = PartitionSpec(parallel.AXIS)
  return parallel.map_step(frozen.embed, mesh, (divided,), divided)


def embed_batches(
  embed: Callable[[jax.Array], jax.Array],
  tracks: Tracks,
  where: np.ndarray,
  *,
  seconds: float,
  batch: int,
  mesh: Mesh,
) -> Iterator[np.ndarray]:
  """Embeds segments of tracks, batch by batch.

  While a batch is handed out, the devices have the next one already.

  Args:
    embed: of `mapped`.
    tracks: to read from.
    where: int64 [segments, 2], of `choose_segments`.
    seconds: length of a segment.
    batch: segments a batch, a multiple of the devices.
    mesh: of devices.

  Yields:
    float32 [batch, D] in the order of `where`; the last may be smaller.
  """
  batches = pipeline.segment_batches(
    tracks, where, seconds=seconds, batch=batch
  )
  pending = None
  for part in progress.bar(
    pipeline.iterate(batches, workers=0),
    total=len(batches),
    desc="embed",
    unit="batch",
  ):
    full = np.zeros((batch, part.shape[1]), part.dtype)
    full[: len(part)] = part
    started = embed(parallel.shard(full, mesh, 0)), len(part)
    if pending is not None:
      yield np.asarray(pending[0])[: pending[1]]
    pending = started
  if pending is not None:
    yield np.asarray(pending[0])[: pending[1]]


def choose_tags(
  name: str, tags: Sequence[str], prefixes: str, *, option: str
) -> list[int]:
  """Chooses tags of a data set by how they begin.

  Args:
    name: of the data set.
    tags: its vocabulary.
    prefixes: one or more, "a,b"; "" takes all tags.
    option: the field of the config that gives the prefixes.

  Returns:
    the columns of the tags.

  Raises:
    InputError: there is none, or none that begins with one of the prefixes.
  """
  given = (prefix.strip() for prefix in prefixes.split(","))
  beginnings = tuple(prefix for prefix in given if prefix) or ("",)
  columns = [i for i, tag in enumerate(tags) if tag.startswith(beginnings)]
  if not tags:
    raise InputError(
      f"data set {name} has no tags: name a single one that was prepared with a"
      " manifest that has some (several joined by + count as having none)"
    )
  for beginning in beginnings:
    if not any(tag.startswith(beginning) for tag in tags):
      raise InputError(
        f"data set {name} has no tags that begin with {beginning}: choose"
        f" others with --config.{option}"
      )
  return columns


def choose_segments(
  tracks: Tracks,
  seconds: float,
  most: int | None,
  among: Iterable[int] | None = None,
  *,
  sounding: bool = True,
) -> np.ndarray:
  """Chooses the segments that stand for each track.

  Args:
    tracks: to choose from; one shorter than a segment gets none.
    seconds: length of a segment.
    most: segments of a track at most, evenly spaced; None takes all.
    among: the tracks to choose from, in this order; None means all.
    sounding: choose among the sounding segments only, as the published code
      does for training tracks alone.

  Returns:
    int64 [segments, 2]: track and start (in blocks).

  Raises:
    InputError: every track is shorter than a segment.
  """
  length = pipeline.blocks(seconds)
  rows = []
  for track in range(len(tracks)) if among is None else among:
    energy, rms = tracks.energy(track), tracks.rms[track]
    starts = segments.grid(energy, rms, length, sounding=sounding)
    if most is not None and len(starts) > most:
      starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
    rows += [(track, start) for start in starts]
  if not rows:
    raise InputError(
      f"no track in {' or '.join(sorted(set(tracks.splits)))} of {tracks.name}"
      f" is as long as the encoder's segments of {seconds:g} s: prepare longer"
      " tracks"
    )
  return np.array(rows, np.int64).reshape(-1, 2)


def _random_variables(config: Mapping, tracks: Tracks) -> dict[str, Any]:
  """An untrained backbone whose batch statistics fit the data."""
  network = encoder.backbone(config)
  samples = round(config["data"]["seconds"] * audio.SAMPLE_RATE)
  key = jax.random.key(config["seed"])
  silence = encoder.spectrogram(config, jnp.zeros((2, samples)))
  # As of `step.init_state`: it would take longer to optimise than to run.
  init = jax.jit(
    lambda: network.init(key, silence, train=True),
    compiler_options={"xla_backend_optimization_level": 0},
  )
  variables = init()

  @jax.jit
  def update(variables, waveform):
    _, new = network.apply(
      variables,
      encoder.spectrogram(config, waveform),
      train=True,
      mutable=["batch_stats"],
    )
    return variables | new

  where = choose_segments(tracks, config["data"]["seconds"], most=None)
  rng = randomness.generator(config["seed"], "calibration")
  order = rng.permutation(len(where))
  batches = pipeline.segment_batches(
    tracks,
    where[order],
    seconds=config["data"]["seconds"],
    batch=_CALIBRATION_BATCH,
  )
  # Whole batches, since a smaller one would compile anew; as often as it takes
  # to forget the initial statistics (0.9^32 = 3 %).
  whole = max(len(where) // _CALIBRATION_BATCH, 1)
  chosen = batches[:whole].repeat()[:_CALIBRATION_BATCHES]
  for waveform in pipeline.iterate(chosen, workers=0):
    variables = update(variables, waveform)
  return variables
