"""Augmentation of log-mel spectrograms on the device, inside the train step.

Every operation takes one random key per item and draws from that key alone.
What happens to an item therefore depends neither on the size of the batch, nor
on the item's place in it, nor on how many devices share it; only `mix` looks
at other items, and only within a fixed group of `MIX_GROUP` neighbours.

Spectrograms are in decibels of power, `[..., mel, frame]` float32, with one
key for each, `[...]`. Strengths are Python numbers, known when the program is
traced: what is 0 is off, and `augment` leaves it out of the program.

Keys must be of JAX's default kind (`threefry2x32`): the `rbg` kinds, mapped
over a batch, draw for all items from the first key.
"""

import functools
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MIX_GROUP = 8  # items that may be mixed with each other
POWER_FLOOR = 1e-10  # the front end's own floor, −100 dB

# In full precision: −100 dB in bfloat16 or TF32 would be off by up to 0.4 dB.
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

# All off. The widths and the number of knots give an operation its shape; they
# matter once its strength (or count) is above 0.
DEFAULTS: dict[str, float] = {
  "gain": 0.0,  # largest change of loudness, dB
  "equaliser": 0.0,  # standard deviation of the curve at a knot, dB
  "equaliser_knots": 6,  # the fewer, the smoother
  "mix": 0.0,  # largest share of the other item's power, at most one half
  "noise": 0.0,  # largest noise-to-signal power ratio, at most 1
  "crop_time": 0.0,  # largest share of the frames that is cut off, below 1
  "crop_frequency": 0.0,  # largest share of the bands that is cut off, below 1
  "time_masks": 0,  # stretches of frames that are silenced
  "time_mask_width": 16,  # frames, at most
  "frequency_masks": 0,  # ranges of bands that are silenced
  "frequency_mask_width": 16,  # bands, at most
}


def _per_item(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Maps `function(key, x, *, …)` of one item over all axes of its keys."""

  @functools.wraps(function)
  def batched(keys: jax.Array, x: jax.Array, **strengths: Any) -> jax.Array:
    mapped = functools.partial(function, **strengths)
    for _ in range(keys.ndim):
      mapped = jax.vmap(mapped)
    return mapped(keys, x)

  return batched


def _power(decibels: jax.Array) -> jax.Array:
  return jnp.power(10.0, decibels / 10)


def _decibels(power: jax.Array) -> jax.Array:
  return 10 * jnp.log10(jnp.maximum(power, POWER_FLOOR))


def _whole_number(uniform: jax.Array, count: jax.Array | int) -> jax.Array:
  """Turns numbers uniform in [0, 1) into integers uniform in [0, count)."""
  # `randint` takes three rounds of random bits, and as long to compile.
  return jnp.floor(uniform * count).astype(jnp.int32)


@_per_item
def random_gain(key: jax.Array, x: jax.Array, *, db: float) -> jax.Array:
  """Makes each item louder or softer as a whole.

  Args:
    key: [...] keys.
    x: [..., mel, frame] dB.
    db: largest change in dB, ≥ 0; the change is uniform in [−db, db].

  Returns:
    [..., mel, frame] dB.
  """
  return x + jax.random.uniform(key, (), x.dtype, -db, db)


def _interpolation(positions: jax.Array, size: int) -> jax.Array:
  """[K] positions on a grid 0 … size − 1 -> [K, size] tent weights."""
  distance = jnp.abs(positions[:, None] - jnp.arange(size))
  return jnp.maximum(0, 1 - distance)


def _crop_matrix(draws: jax.Array, size: int, strength: float) -> jax.Array:
  """Zooms into a window of an axis: [2] uniform numbers -> [size, size]."""
  # In grid intervals, so that both ends of the window fall on the output's.
  length = 1 - strength * draws[0]
  start = (1 - length) * (size - 1) * draws[1]
  positions = start + length * jnp.arange(size)
  # Rounding must not carry the last position off the grid.
  return _interpolation(jnp.minimum(positions, size - 1), size)


@_per_item
def random_resized_crop(
  key: jax.Array, x: jax.Array, *, time: float, frequency: float
) -> jax.Array:
  """Cuts a random window out of each item and stretches it to full size.

  A change of tempo, pitch and timbre: the random resized crop of BYOL-A
  (Niizumi et al., 2021), but the window stays inside the spectrogram and the
  interpolation is bilinear. It only stretches, so it needs no low-pass; each
  axis is one product with a matrix of tent weights, without a gather.

  Args:
    key: [...] keys.
    x: [..., mel, frame] dB; interpolated as it is, in dB.
    time: largest share of the frames that is cut off, in [0, 1); the length of
      the window is uniform in [1 − time, 1] of the whole, its place uniform.
    frequency: the same for bands.

  Returns:
    [..., mel, frame] dB; an axis of strength 0 is left as it is, bit for bit.
  """
  draws = jax.random.uniform(key, (2, 2), x.dtype)
  if frequency:
    x = _product(_crop_matrix(draws[1], x.shape[0], frequency), x)
  if time:
    x = _product(x, _crop_matrix(draws[0], x.shape[1], time).T)
  return x


def mix(keys: jax.Array, x: jax.Array, *, ratio: float) -> jax.Array:
  """Mixes another item of the batch into each, as powers.

  After the mixup of BYOL-A (Niizumi et al., 2021): the other item is a
  background to be heard past. Each item draws its own partner, uniformly among
  the seven others of its group of `MIX_GROUP` consecutive items of the same
  view. The host shuffles the batch, so a group is as random as the batch; and
  as it never crosses devices, any number of devices gives the same result
  without communication. Levels are mixed as they are.

  Args:
    keys: [V, B] keys.
    x: [V, B, mel, frame] dB: V views of B items.
    ratio: largest share λ of the partner's power, in [0, 0.5]; λ is uniform in
      [0, ratio] and the output is (1 − λ) · item + λ · partner.

  Returns:
    [V, B, mel, frame] dB, not below 10·log10(POWER_FLOOR).

  Raises:
    ValueError: if B, the items on one device, is no multiple of `MIX_GROUP`.
  """
  if not ratio:
    return x
  views, items = x.shape[:2]
  if items % MIX_GROUP:
    raise ValueError(
      f"mix needs a multiple of {MIX_GROUP} items on every device, not {items}"
    )

  draw = lambda key: jax.random.uniform(key, (2,), x.dtype)
  draws = jax.vmap(jax.vmap(draw))(keys)
  offset = 1 + _whole_number(draws[..., 0], MIX_GROUP - 1)
  share = ratio * draws[..., 1]
  place = jnp.arange(items)
  partner = place // MIX_GROUP * MIX_GROUP + (place + offset) % MIX_GROUP
  power = _power(x)
  # A gather of whole items is a copy: exact, where a product with a one-hot
  # matrix would depend on the accelerator's precision.
  other = power[jnp.arange(views)[:, None], partner]
  share = share[..., None, None]
  return _decibels((1 - share) * power + share * other)


@_per_item
def additive_noise(key: jax.Array, x: jax.Array, *, level: float) -> jax.Array:
  """Adds stationary noise to each item, as powers.

  Each cell's noise power is exponentially distributed, as is a periodogram's
  of Gaussian noise, with one mean for all bands and frames: `level` times the
  item's mean power at most. (It is even over mel bands; white noise would rise
  with their width.) Music holds most of its power in few low bands, so levels
  of 0.001 to 0.01 already cover its quiet cells.

  Args:
    key: [...] keys.
    x: [..., mel, frame] dB.
    level: largest noise-to-signal power ratio, in [0, 1]; 0 is off, 0.01 a
      signal-to-noise ratio of 20 dB. The ratio is drawn log-uniformly from
      [level / 100, level].

  Returns:
    [..., mel, frame] dB, not below 10·log10(POWER_FLOOR).
  """
  if not level:
    return x
  level_key, noise_key = jax.random.split(key)
  decades = jax.random.uniform(level_key, (), x.dtype, -2.0, 0.0)
  power = _power(x)
  mean = level * 10.0**decades * jnp.mean(power)
  noise = jax.random.exponential(noise_key, x.shape, x.dtype)
  return _decibels(power + mean * noise)


def _knot_weights(bands: int, knots: int) -> np.ndarray:
  """[bands, knots] raised-cosine weights of equally spaced knots."""
  position = np.linspace(0, knots - 1, bands)
  distance = np.abs(position[:, None] - np.arange(knots))
  return (1 + np.cos(np.pi * np.minimum(distance, 1))) / 2


@_per_item
def random_equaliser(
  key: jax.Array, x: jax.Array, *, db: float, knots: int
) -> jax.Array:
  """Adds one smooth random curve over the bands to all frames of each item.

  It stands for what recordings differ in besides the music (microphones,
  rooms, mastering, codecs), by which two segments of one recording could be
  told to belong together without listening to the music.

  Args:
    key: [...] keys.
    x: [..., mel, frame] dB.
    db: standard deviation in dB, ≥ 0, of the Gaussian value at a knot. (Between
      two knots, joined by a half cosine, it falls to 0.71 of that.)
    knots: how many knots, ≥ 2, from the first band to the last; fewer make a
      smoother curve.

  Returns:
    [..., mel, frame] dB.
  """
  values = db * jax.random.normal(key, (knots,), x.dtype)
  weights = jnp.asarray(_knot_weights(x.shape[0], knots), x.dtype)
  # Not a sum of products: jaxlib 0.10.2 gets it wrong for many items on the
  # CPU, silently (jax-ml/jax issue 39103).
  return x + _product(weights, values)[:, None]


def _masked(key: jax.Array, size: int, count: int, width: int) -> jax.Array:
  """[size] bool: which places of an axis `count` random masks cover."""
  draws = jax.random.uniform(key, (2, count))
  widths = _whole_number(draws[0], width + 1)
  starts = _whole_number(draws[1], size - widths + 1)
  place = jnp.arange(size)[:, None]
  return jnp.any((place >= starts) & (place < starts + widths), axis=1)


@_per_item
def time_masks(
  key: jax.Array, x: jax.Array, *, count: int, width: int
) -> jax.Array:
  """Silences random stretches of frames (SpecAugment, Park et al., 2019).

  Masked cells get the item's smallest value. SpecAugment fills in the mean of
  its normalised input; here that would sound like a tone or a click, and 0 dB
  be louder than most music. The minimum is what silence looks like, and a
  value the network meets anyway, in the bands above the Nyquist frequency.

  Args:
    key: [...] keys.
    x: [..., mel, frame] dB.
    count: how many masks, ≥ 0; they may overlap.
    width: largest width in frames, from 0 to all frames; a mask's width is
      uniform in 0 … width, both included, its place uniform.

  Returns:
    [..., mel, frame] dB.
  """
  covered = _masked(key, x.shape[1], count, width)
  return jnp.where(covered[None, :], jnp.min(x), x)


@_per_item
def frequency_masks(
  key: jax.Array, x: jax.Array, *, count: int, width: int
) -> jax.Array:
  """Silences random ranges of bands (SpecAugment, Park et al., 2019).

  Args:
    key: [...] keys.
    x: [..., mel, frame] dB.
    count: how many masks, ≥ 0; they may overlap.
    width: largest width in bands; drawn, and filled, as in `time_masks`.

  Returns:
    [..., mel, frame] dB.
  """
  covered = _masked(key, x.shape[0], count, width)
  return jnp.where(covered[:, None], jnp.min(x), x)


def resolve(
  config: Mapping[str, Any], bands: int, frames: int
) -> dict[str, Any]:
  """Checks an augmentation config and fills in `DEFAULTS`.

  Args:
    config: any of the fields of `DEFAULTS`; a ConfigDict will do.
    bands: mel bands of the spectrograms, the most that a mask may cover.
    frames: the same for frames.

  Returns:
    All fields of `DEFAULTS`.

  Raises:
    ValueError: for a field that does not exist or a value out of range; the
      message names the field and its range.
  """
  if unknown := sorted(set(config) - set(DEFAULTS)):
    raise ValueError(f"augmentation: {unknown} not in {list(DEFAULTS)}")
  strengths = {**DEFAULTS, **config}
  decibels = "finite and at least 0 dB", lambda v: 0 <= v < math.inf
  cut = "in [0, 1)", lambda v: 0 <= v < 1

  def whole(low, high=math.inf, unit=""):
    span = f"an integer in [{low}, {high}]{unit}"
    return span, lambda v: isinstance(v, Integral) and low <= v <= high

  # Where there are no masks, their width need not fit.
  frames = frames if strengths["time_masks"] else math.inf
  bands = bands if strengths["frequency_masks"] else math.inf
  rules = {
    "gain": decibels,
    "equaliser": decibels,
    "equaliser_knots": whole(2),
    "mix": ("in [0, 0.5]", lambda v: 0 <= v <= 0.5),
    "noise": ("in [0, 1]", lambda v: 0 <= v <= 1),
    "crop_time": cut,
    "crop_frequency": cut,
    "time_masks": whole(0),
    "time_mask_width": whole(0, frames, " frames"),
    "frequency_masks": whole(0),
    "frequency_mask_width": whole(0, bands, " bands"),
  }
  for field, (span, holds) in rules.items():
    value = strengths[field]
    if not (isinstance(value, Real) and holds(value)):
      raise ValueError(f"augmentation: {field} must be {span}, not {value!r}")
  return strengths


def augment(
  key: jax.Array, x: jax.Array, index: jax.Array, config: Mapping[str, Any]
) -> jax.Array:
  """Applies all operations that `config` switches on.

  In the order of a sound's way to the ear: what is played (crop), what sounds
  besides (mix, noise), the channel that colours the sum (equaliser, gain), and
  only then the masks, so that nothing fills them again.

  Args:
    key: one key, different at every step (`fold_in(key, step)`).
    x: [V, B, mel, frame] dB: V views of the B items on this device.
    index: [V, B] int32, each item's number in the global batch, all different;
      an item's draws follow from `key` and its number.
    config: strengths, see `DEFAULTS`; fields left out are off.

  Returns:
    [V, B, mel, frame] dB; `x` itself if everything is off.

  Raises:
    ValueError: for a field that does not exist or is out of range, for an
      `index` of another shape, or, with `mix`, if B is no multiple of
      `MIX_GROUP`.
  """
  s = resolve(config, *x.shape[2:])
  if index.shape != x.shape[:2]:
    raise ValueError(f"index must be {x.shape[:2]}, not {index.shape}")

  crop = {"time": s["crop_time"], "frequency": s["crop_frequency"]}
  curve = {"db": s["equaliser"], "knots": s["equaliser_knots"]}
  times = {"count": s["time_masks"], "width": s["time_mask_width"]}
  bands = {"count": s["frequency_masks"], "width": s["frequency_mask_width"]}
  operations = (  # and whether they are on; their places are part of the draws
    (random_resized_crop, crop, any(crop.values())),
    (mix, {"ratio": s["mix"]}, s["mix"]),
    (additive_noise, {"level": s["noise"]}, s["noise"]),
    (random_equaliser, curve, s["equaliser"]),
    (random_gain, {"db": s["gain"]}, s["gain"]),
    (time_masks, times, all(times.values())),
    (frequency_masks, bands, all(bands.values())),
  )
  if not any(on for _, _, on in operations):
    return x
  # All keys at once: to compile a derivation takes longer than to run it.
  fold = jnp.vectorize(jax.random.fold_in)
  places = jnp.arange(len(operations))[:, None, None]
  keys = fold(fold(key, index), places)
  for place, (function, strengths, on) in enumerate(operations):
    if on:
      x = function(keys[place], x, **strengths)
  return x
