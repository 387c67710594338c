import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ssl_music import augment

BANDS, FRAMES = 16, 12
close = functools.partial(np.testing.assert_allclose, rtol=0)

# The machine code of a few random numbers takes longer to optimise than all
# tests to run without: the program and its library calls stay the same.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

# Each operation on [N, mel, frame], with strengths that show.
OPERATIONS = {
  "random_gain": {"db": 6.0},
  "random_equaliser": {"db": 3.0, "knots": 4},
  "additive_noise": {"level": 0.5},
  "random_resized_crop": {"time": 0.5, "frequency": 0.3},
  "time_masks": {"count": 2, "width": 8},
  "frequency_masks": {"count": 2, "width": 8},
}
OFF = [
  ("random_gain", {"db": 0.0}),
  ("random_equaliser", {"db": 0.0, "knots": 4}),
  ("additive_noise", {"level": 0.0}),
  ("random_resized_crop", {"time": 0.0, "frequency": 0.0}),
  ("time_masks", {"count": 0, "width": 8}),
  ("time_masks", {"count": 2, "width": 0}),
  ("frequency_masks", {"count": 0, "width": 8}),
  ("frequency_masks", {"count": 2, "width": 0}),
  ("mix", {"ratio": 0.0}),
]
ALL_ON = {
  "gain": 20.0,
  "equaliser": 2.0,
  "equaliser_knots": 5,
  "mix": 0.5,
  "noise": 1.0,
  "crop_time": 0.9,
  "crop_frequency": 0.5,
  "time_masks": 2,
  "time_mask_width": 4,
  "frequency_masks": 1,
  "frequency_mask_width": 5,
}


def spectrograms(*shape, seed=0):
  generator = np.random.default_rng(seed)
  return generator.uniform(-60, 20, (*shape, BANDS, FRAMES)).astype(np.float32)


def keys_for(*shape, seed=1):
  return jax.random.split(jax.random.key(seed), shape)


@functools.cache
def jitted(name, strengths):
  return jit(functools.partial(getattr(augment, name), **dict(strengths)))


def run(name, keys, x, **strengths):
  return np.asarray(jitted(name, tuple(strengths.items()))(keys, x))


@functools.cache
def everything():
  return jit(functools.partial(augment.augment, config=ALL_ON))


def index_of(views, items):
  return np.arange(views * items, dtype=np.int32).reshape(views, items)


def stretch(covered):
  """Starts and lengths of the True stretch of each row; one at most."""
  edges = np.diff(np.pad(covered.astype(int), ((0, 0), (1, 1))), axis=1)
  assert ((edges == 1).sum(axis=1) <= 1).all()
  return (edges == 1).argmax(axis=1), covered.sum(axis=1)


# Every operation.


@pytest.mark.parametrize(("name", "strengths"), OFF)
def test_zero_strength_changes_no_bit(name, strengths):
  shape = (2, 8) if name == "mix" else (8,)
  x = spectrograms(*shape)
  np.testing.assert_array_equal(run(name, keys_for(*shape), x, **strengths), x)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_item_has_draws_of_its_own_and_depends_on_nothing_else(name):
  op = functools.partial(run, name, **OPERATIONS[name])
  x, keys = spectrograms(40), keys_for(40)
  whole = op(keys, x)
  assert whole.shape == x.shape
  assert whole.dtype == np.float32
  order = np.random.default_rng(2).permutation(40)
  close(op(keys[order], x[order]), whole[order], atol=1e-3)
  close(op(keys[5:6], x[5:6]), whole[5:6], atol=1e-3)
  equal = op(keys, np.broadcast_to(x[0], x.shape))
  # Masks have few outcomes, and may coincide; the others may not.
  assert len(np.unique(equal, axis=0)) >= (30 if "masks" in name else 40)


# One by one.


def test_gain_is_one_uniform_number_per_item():
  x = spectrograms(2000)
  change = run("random_gain", keys_for(2000), x, db=6.0) - x
  close(change, change[:, :1, :1] + 0 * x, atol=1e-4)
  gains = change[:, 0, 0]
  assert np.abs(gains).max() <= 6.0001
  close(
    np.quantile(gains, [0, 0.25, 0.5, 0.75, 1]), [-6, -3, 0, 3, 6], atol=0.4
  )


@pytest.mark.parametrize(("name", "axis"), [("frequency", 1), ("time", 2)])
def test_mask_widths_and_places_are_uniform(name, axis):
  size, width, items = (BANDS, FRAMES)[axis - 1], 5, 6000
  x = np.repeat(spectrograms(1), items, axis=0)
  y = run(f"{name}_masks", keys_for(items), x, count=1, width=width)
  changed = y != x
  assert (y[changed] == x.min()).all()
  # The cell that holds the minimum does not change: look along both axes.
  starts, widths = stretch(changed.any(axis=3 - axis))
  shares = np.bincount(widths, minlength=width + 1) / items
  close(shares, np.full(width + 1, 1 / 6), atol=0.025)
  for w in range(1, width + 1):
    places = np.bincount(starts[widths == w], minlength=size)
    assert (places[: size - w + 1] > 0).all()
    assert not places[size - w + 1 :].any()


def test_masks_may_cover_everything_and_add_up():
  x, keys = spectrograms(300), keys_for(300)
  full = run("time_masks", keys, x, count=1, width=FRAMES)
  assert any(len(np.unique(item)) == 1 for item in full)
  one = np.mean(run("time_masks", keys, x, count=1, width=4) != x)
  three = np.mean(run("time_masks", keys, x, count=3, width=4) != x)
  assert three > 2 * one


def test_crop_keeps_a_ramp_and_its_window():
  items = 1000
  ramp = np.broadcast_to(np.arange(FRAMES), (items, BANDS, FRAMES))
  ramp = ramp.astype(np.float32)
  y = run("random_resized_crop", keys_for(items), ramp, time=0.5, frequency=0)
  close(np.diff(y, n=2, axis=2), 0, atol=1e-4)
  first, last = y[:, 0, 0], y[:, 0, -1]
  assert first.min() >= 0
  assert last.max() <= FRAMES - 1 + 1e-4
  length = (last - first) / (FRAMES - 1)
  close(np.quantile(length, [0, 0.5, 1]), [0.5, 0.75, 1], atol=0.03)
  place = first / np.maximum(FRAMES - 1 - (last - first), 1e-6)
  close(np.quantile(place[length < 0.9], [0, 0.5, 1]), [0, 0.5, 1], atol=0.06)


def test_crop_equals_interpolation_along_both_axes():
  strengths = {"time": 0.6, "frequency": 0.4}
  keys, x = keys_for(5), spectrograms(5)
  # The window does not depend on the values, so ramps reveal it.
  bands, frames = np.indices(x.shape)[1:].astype(np.float32)
  crop = functools.partial(run, "random_resized_crop", keys, **strengths)
  at_band, at_frame, y = crop(bands)[:, :, 0], crop(frames)[:, 0], crop(x)
  for n in range(5):
    wide = [np.interp(at_frame[n], np.arange(FRAMES), row) for row in x[n]]
    columns = np.transpose(wide)
    both = [np.interp(at_band[n], np.arange(BANDS), c) for c in columns]
    close(y[n], np.transpose(both), atol=2e-3)


def test_equaliser_is_a_smooth_curve_over_bands():
  knots, step = 4, 5  # 16 bands: a knot on every fifth
  x = spectrograms(3000)
  change = run("random_equaliser", keys_for(3000), x, db=2.0, knots=knots) - x
  close(change, change[:, :, :1] + 0 * x, atol=1e-4)
  curve = change[:, :, 0]
  values = curve[:, ::step]
  close(values.std(axis=0), 2, rtol=0.06)
  close(values.mean(axis=0), 0, atol=0.15)
  correlation = np.corrcoef(values.T) - np.eye(knots)
  assert np.abs(correlation).max() < 0.08
  for band in range(BANDS):
    knot, rest = divmod(band, step)
    after = (1 - np.cos(np.pi * rest / step)) / 2
    right = values[:, min(knot + 1, knots - 1)]
    expected = (1 - after) * values[:, knot] + after * right
    close(curve[:, band], expected, atol=1e-4)


def test_noise_has_exponential_power_at_a_log_uniform_level():
  x = np.zeros((800, 32, 32), np.float32)  # power 1 everywhere
  y = run("additive_noise", keys_for(800), x, level=0.5)
  noise = 10 ** (y.astype(np.float64) / 10) - 1
  ratio = noise.mean(axis=(1, 2))
  close(
    np.quantile(np.log10(ratio / 0.5), [0, 0.25, 0.5, 0.75, 1]),
    [-2, -1.5, -1, -0.5, 0],
    atol=0.12,
  )
  relative = noise / ratio[:, None, None]
  quantiles = np.array([0.1, 0.5, 0.9])
  close(np.quantile(relative, quantiles), -np.log1p(-quantiles), atol=0.02)


def test_noise_follows_the_items_mean_power():
  x = spectrograms(6)
  added = [
    10 ** (run("additive_noise", keys_for(6), x + gain, level=1.0) / 10)
    - 10 ** ((x + gain) / 10)
    for gain in (0, 20)
  ]
  ratio = added[1].mean(axis=(1, 2)) / added[0].mean(axis=(1, 2))
  close(ratio, 100, rtol=0.01)


def mixing_shares(keys, ratio):
  """[V, B, B] power of each item that each mixture holds."""
  views, items = keys.shape
  decibels = np.where(np.eye(items), 0.0, -100.0).astype(np.float32)
  x = np.broadcast_to(decibels, (views, items, items))[..., None]
  y = run("mix", keys, x, ratio=ratio)[..., 0]
  return 10 ** (y.astype(np.float64) / 10)


def test_mix_draws_another_item_of_the_group():
  items = 512
  shares = mixing_shares(keys_for(2, items), ratio=0.4)
  own = np.diagonal(shares, axis1=1, axis2=2)
  other = shares * (1 - np.eye(items))
  partner, share = other.argmax(axis=2), other.max(axis=2)
  close(own + share, 1, atol=1e-5)
  close(np.quantile(share, [0, 0.5, 1]), [0, 0.2, 0.4], atol=0.02)
  assert np.sort(other, axis=2)[..., :-1].max() < 1e-9
  place = np.arange(items)
  heard = share > 1e-6
  assert heard.mean() > 0.99
  assert (partner // 8 == place // 8)[heard].all()
  assert (partner != place)[heard].all()
  offsets = np.bincount(((partner - place) % 8)[heard], minlength=8)
  close(offsets[1:] / heard.sum(), 1 / 7, atol=0.04)
  assert (partner[0] != partner[1]).any()


def test_mix_adds_powers_within_a_view():
  keys, x = keys_for(3, 16), spectrograms(3, 16)
  y = run("mix", keys, x, ratio=0.5)
  shares = mixing_shares(keys, ratio=0.5)
  shares[shares < 1e-9] = 0  # the floor, not a share
  power = 10 ** (x.astype(np.float64) / 10)
  expected = np.einsum("vbc,vcmf->vbmf", shares, power)
  close(y, 10 * np.log10(expected), atol=1e-3)


def test_mix_needs_whole_groups():
  with pytest.raises(ValueError, match="multiple of 8 items"):
    augment.mix(keys_for(2, 12), spectrograms(2, 12), ratio=0.1)


# All together.


def test_all_off_returns_the_same_array():
  x = jnp.asarray(spectrograms(2, 3))
  for config in ({}, augment.DEFAULTS):
    y = augment.augment(jax.random.key(0), x, index_of(2, 3), config)
    assert y is x


def test_what_is_off_is_not_in_the_program():
  def program(**config):
    config = ml_collections.ConfigDict({**augment.DEFAULTS, **config})
    function = functools.partial(augment.augment, config=config)
    x, index = spectrograms(1, 8), index_of(1, 8)
    return str(jax.make_jaxpr(function)(jax.random.key(0), x, index))

  assert "random" not in program()
  # Crop and equaliser alone multiply matrices, mix and noise take logarithms.
  for field, value, marks in (
    ("crop_time", 0.1, ["dot_general"]),
    ("crop_frequency", 0.1, ["dot_general"]),
    ("equaliser", 1, ["dot_general"]),
    ("mix", 0.1, [" log "]),
    ("noise", 0.1, [" log "]),
    ("gain", 1, []),
    ("time_masks", 1, []),
  ):
    text = program(time_mask_width=4, **{field: value})
    assert "random_bits" in text
    assert [m for m in ("dot_general", " log ") if m in text] == marks


def test_draws_do_not_depend_on_what_else_is_on_and_masks_come_last():
  def run_with(**config):
    function = jit(functools.partial(augment.augment, config=config))
    return np.asarray(function(jax.random.key(3), x, index_of(2, 8)))

  x = spectrograms(2, 8)
  without = run_with(noise=0.5, gain=6.0)
  masked = run_with(
    noise=0.5, gain=6.0, frequency_masks=1, frequency_mask_width=8
  )
  silent = np.ptp(masked, axis=3, keepdims=True) == 0
  assert 0.05 < silent.mean() < 0.6
  floor = without.min(axis=(2, 3), keepdims=True)
  np.testing.assert_array_equal(masked, np.where(silent, floor, without))


def test_devices_do_not_matter_and_it_compiles_once():
  assert jax.device_count() >= 8
  x, index = spectrograms(2, 64), index_of(2, 64)
  views = P(None, "batch")
  mapped = jit(
    jax.shard_map(
      functools.partial(augment.augment, config=ALL_ON),
      mesh=Mesh(np.array(jax.devices()[:8]), ("batch",)),
      in_specs=(P(), views, views),
      out_specs=views,
      check_vma=False,
    )
  )
  for step in range(2):
    key = jax.random.fold_in(jax.random.key(0), step)
    one = np.asarray(everything()(key, x, index))
    close(mapped(key, x, index), one, atol=2e-3)
  other = np.asarray(everything()(jax.random.key(9), x, index))
  assert np.abs(other - one).mean() > 1
  # Equal items, different numbers: different draws.
  equal = everything()(key, np.broadcast_to(x[0, 0], x.shape), index)
  assert len(np.unique(np.reshape(equal, (128, -1)), axis=0)) == 128
  # Another place in the batch, with the same number: the same draws.
  moved = everything()(key, np.roll(x, 8, axis=1), np.roll(index, 8, axis=1))
  moved = np.roll(np.asarray(moved), -8, axis=1)
  close(moved, one, atol=2e-3)
  assert everything()._cache_size() == 1


def test_extreme_input_stays_finite():
  x = spectrograms(2, 64)
  x[:, :16] = -100  # silence, mixed with silence
  x[0, 16] = 100
  x[0, 17] = -300  # under the floor
  x[0, 18, 0, 0] = 120  # a click
  for seed in range(20):
    y = np.asarray(everything()(jax.random.key(seed), x, index_of(2, 64)))
    assert np.isfinite(y).all()
    assert y.min() > -140
    assert y.max() < 170


BAD = {
  "gain": (-1, float("inf")),
  "equaliser": (float("nan"), "loud"),
  "equaliser_knots": (1, 2.5),
  "mix": (0.51,),
  "noise": (1.5,),
  "crop_time": (1,),
  "crop_frequency": (-0.1,),
  "time_masks": (-1,),
  "frequency_masks": (0.5,),
  "time_mask_width": (FRAMES + 1,),
  "frequency_mask_width": (BANDS + 1,),
}


@pytest.mark.parametrize("field", BAD)
def test_strengths_out_of_range_are_named(field):
  for value in BAD[field]:
    with pytest.raises(ValueError, match=f"augmentation: {field} must be"):
      augment.resolve({**ALL_ON, field: value}, BANDS, FRAMES)


def test_misspelt_fields_and_shapes_are_errors():
  x = spectrograms(1, 8)
  for index, config, message in (
    (index_of(1, 8), {"equalizer": 2.0}, "equalizer"),
    (index_of(1, 8), {"gain": -2.0}, "gain must be"),
    (index_of(1, 4), {"gain": 2.0}, "index must be"),
  ):
    with pytest.raises(ValueError, match=message):
      augment.augment(jax.random.key(0), x, index, config)


def test_width_need_not_fit_where_there_are_no_masks():
  small = augment.resolve({"time_mask_width": 99}, bands=8, frames=6)
  assert small == {**augment.DEFAULTS, "time_mask_width": 99}
