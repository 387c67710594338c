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

# Each operation on [N, mel, frame], with strengths that show.
OPERATIONS = {
  "random_gain": {"db": 6.0},
  "random_equaliser": {"db": 3.0, "knots": 4},
  "additive_noise": {"level": 0.5},
  "random_resized_crop": {"time": 0.5, "frequency": 0.3},
  "time_masks": {"count": 2, "width": 8},
  "frequency_masks": {"count": 2, "width": 8},
}
OFF = {
  "random_gain": [{"db": 0.0}],
  "random_equaliser": [{"db": 0.0, "knots": 4}],
  "additive_noise": [{"level": 0.0}],
  "random_resized_crop": [{"time": 0.0, "frequency": 0.0}],
  "time_masks": [{"count": 0, "width": 8}, {"count": 2, "width": 0}],
  "frequency_masks": [{"count": 0, "width": 8}, {"count": 2, "width": 0}],
  "mix": [{"ratio": 0.0}],
}
ALL_ON = {
  "gain": 6.0,
  "equaliser": 2.0,
  "equaliser_knots": 5,
  "mix": 0.4,
  "noise": 0.1,
  "crop_time": 0.4,
  "crop_frequency": 0.2,
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


def run(name, keys, x, **strengths):
  function = functools.partial(getattr(augment, name), **strengths)
  return np.asarray(jax.jit(function)(keys, x))


def index_of(views, items):
  return np.arange(views * items, dtype=np.int32).reshape(views, items)


def longest_run(covered):
  """Starts and lengths of the True stretch of each row; one at most."""
  edges = np.diff(np.pad(covered.astype(int), ((0, 0), (1, 1))), axis=1)
  assert ((edges == 1).sum(axis=1) <= 1).all()
  return (edges == 1).argmax(axis=1), covered.sum(axis=1)


# Every operation.


@pytest.mark.parametrize(
  ("name", "strengths"), [(n, s) for n, all_ in OFF.items() for s in all_]
)
def test_zero_strength_changes_no_bit(name, strengths):
  shape = (2, 8) if name == "mix" else (8,)
  x = spectrograms(*shape)
  np.testing.assert_array_equal(run(name, keys_for(*shape), x, **strengths), x)


@pytest.mark.parametrize("name", OPERATIONS)
def test_item_depends_on_its_own_key_and_values_only(name):
  x, keys = spectrograms(9), keys_for(9)
  whole = run(name, keys, x, **OPERATIONS[name])
  order = np.random.default_rng(2).permutation(9)[:4]
  part = run(name, keys[order], x[order], **OPERATIONS[name])
  alone = run(name, keys[5:6], x[5:6], **OPERATIONS[name])
  np.testing.assert_allclose(part, whole[order], rtol=0, atol=1e-4)
  np.testing.assert_allclose(alone, whole[5:6], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_item_draws_for_itself(name):
  x = np.repeat(spectrograms(1), 40, axis=0)
  y = run(name, keys_for(40), x, **OPERATIONS[name])
  assert y.shape == x.shape
  assert y.dtype == np.float32
  # Masks have few outcomes, and may coincide; the others may not.
  assert len(np.unique(y, axis=0)) >= (30 if "masks" in name else 40)


# One by one.


def test_gain_is_one_uniform_number_per_item():
  x = spectrograms(2000)
  change = run("random_gain", keys_for(2000), x, db=6.0) - x
  np.testing.assert_allclose(change, change[:, :1, :1] + 0 * x, atol=1e-4)
  gains = change[:, 0, 0]
  assert np.abs(gains).max() <= 6.0001
  np.testing.assert_allclose(
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
  starts, widths = longest_run(changed.any(axis=3 - axis))
  shares = np.bincount(widths, minlength=width + 1) / items
  np.testing.assert_allclose(shares, np.full(width + 1, 1 / 6), atol=0.025)
  for w in range(1, width + 1):
    places = np.bincount(starts[widths == w], minlength=size)
    assert (places[: size - w + 1] > 0).all()
    assert not places[size - w + 1 :].any()


def test_masks_may_cover_everything_and_add_up():
  x = spectrograms(300)
  full = run("time_masks", keys_for(300), x, count=1, width=FRAMES)
  assert any(len(np.unique(item)) == 1 for item in full)
  covered = [
    np.mean(run("time_masks", keys_for(300), x, count=n, width=4) != x)
    for n in (1, 3)
  ]
  assert covered[1] > 2 * covered[0]


def test_crop_keeps_a_ramp_and_its_window():
  items = 1000
  ramp = np.broadcast_to(np.arange(FRAMES), (items, BANDS, FRAMES))
  ramp = ramp.astype(np.float32)
  y = run("random_resized_crop", keys_for(items), ramp, time=0.5, frequency=0)
  np.testing.assert_allclose(np.diff(y, n=2, axis=2), 0, atol=1e-4)
  first, last = y[:, 0, 0], y[:, 0, -1]
  assert first.min() >= 0
  assert last.max() <= FRAMES - 1 + 1e-4
  length = (last - first) / (FRAMES - 1)
  np.testing.assert_allclose(
    np.quantile(length, [0, 0.5, 1]), [0.5, 0.75, 1], atol=0.03
  )
  place = first / np.maximum(FRAMES - 1 - (last - first), 1e-6)
  np.testing.assert_allclose(
    np.quantile(place[length < 0.9], [0, 0.5, 1]), [0, 0.5, 1], atol=0.06
  )


def test_crop_equals_interpolation_along_both_axes():
  strengths = {"time": 0.6, "frequency": 0.4}
  keys, x = keys_for(5), spectrograms(5)
  # The window does not depend on the values, so ramps reveal it.
  bands, frames = np.meshgrid(
    np.arange(BANDS), np.arange(FRAMES), indexing="ij"
  )
  crop = functools.partial(run, "random_resized_crop", keys, **strengths)
  at_band = crop(np.stack([bands] * 5).astype(np.float32))[:, :, 0]
  at_frame = crop(np.stack([frames] * 5).astype(np.float32))[:, 0, :]
  y = crop(x)
  for n in range(5):
    wide = [np.interp(at_frame[n], np.arange(FRAMES), row) for row in x[n]]
    wide = np.array(wide)
    expected = [
      np.interp(at_band[n], np.arange(BANDS), column) for column in wide.T
    ]
    np.testing.assert_allclose(y[n], np.array(expected).T, atol=2e-3)


def test_equaliser_is_a_smooth_curve_over_bands():
  knots, step = 4, 5  # 16 bands: a knot on every fifth
  x = spectrograms(3000)
  change = run("random_equaliser", keys_for(3000), x, db=2.0, knots=knots) - x
  np.testing.assert_allclose(change, change[:, :, :1] + 0 * x, atol=1e-4)
  curve = change[:, :, 0]
  values = curve[:, ::step]
  np.testing.assert_allclose(values.std(axis=0), 2, rtol=0.06)
  np.testing.assert_allclose(values.mean(axis=0), 0, atol=0.15)
  correlation = np.corrcoef(values.T) - np.eye(knots)
  assert np.abs(correlation).max() < 0.08
  for band in range(BANDS):
    knot, rest = divmod(band, step)
    after = (1 - np.cos(np.pi * rest / step)) / 2
    right = values[:, min(knot + 1, knots - 1)]
    expected = (1 - after) * values[:, knot] + after * right
    np.testing.assert_allclose(curve[:, band], expected, atol=1e-4)


def test_noise_has_exponential_power_at_a_log_uniform_level():
  x = np.zeros((800, 32, 32), np.float32)  # power 1 everywhere
  y = run("additive_noise", keys_for(800), x, level=0.5)
  noise = 10 ** (y.astype(np.float64) / 10) - 1
  ratio = noise.mean(axis=(1, 2))
  np.testing.assert_allclose(
    np.quantile(np.log10(ratio / 0.5), [0, 0.25, 0.5, 0.75, 1]),
    [-2, -1.5, -1, -0.5, 0],
    atol=0.12,
  )
  relative = noise / ratio[:, None, None]
  quantiles = [0.1, 0.5, 0.9]
  np.testing.assert_allclose(
    np.quantile(relative, quantiles),
    -np.log1p(np.negative(quantiles)),
    atol=0.02,
  )


def test_noise_follows_the_items_mean_power():
  x = spectrograms(6)
  added = [
    10 ** (run("additive_noise", keys_for(6), x + gain, level=1.0) / 10)
    - 10 ** ((x + gain) / 10)
    for gain in (0, 20)
  ]
  ratio = added[1].mean(axis=(1, 2)) / added[0].mean(axis=(1, 2))
  np.testing.assert_allclose(ratio, 100, rtol=0.01)


def mixing_shares(keys, ratio):
  """[V, B, B] power of each item that each mixture holds."""
  views, items = keys.shape
  decibels = np.where(np.eye(items), 0.0, -100.0).astype(np.float32)
  x = np.broadcast_to(decibels, (views, items, items))[..., None]
  return 10 ** (
    run("mix", keys, x, ratio=ratio).astype(np.float64)[..., 0] / 10
  )


def test_mix_draws_another_item_of_the_group():
  items = 512
  shares = mixing_shares(keys_for(2, items), ratio=0.4)
  own = np.diagonal(shares, axis1=1, axis2=2)
  other = shares * (1 - np.eye(items))
  partner, share = other.argmax(axis=2), other.max(axis=2)
  np.testing.assert_allclose(own + share, 1, atol=1e-5)
  np.testing.assert_allclose(
    np.quantile(share, [0, 0.5, 1]), [0, 0.2, 0.4], atol=0.02
  )
  assert np.sort(other, axis=2)[..., :-1].max() < 1e-9
  place = np.arange(items)
  heard = share > 1e-6
  assert heard.mean() > 0.99
  assert (partner // 8 == place // 8)[heard].all()
  assert (partner != place)[heard].all()
  offsets = np.bincount(((partner - place) % 8)[heard], minlength=8)
  np.testing.assert_allclose(offsets[1:] / heard.sum(), 1 / 7, atol=0.04)
  assert (partner[0] != partner[1]).any()


def test_mix_adds_powers_within_a_view():
  keys, x = keys_for(3, 16), spectrograms(3, 16)
  y = run("mix", keys, x, ratio=0.5)
  shares = mixing_shares(keys, ratio=0.5)
  power = 10 ** (x.astype(np.float64) / 10)
  expected = np.einsum("vbc,vcmf->vbmf", shares, power)
  np.testing.assert_allclose(y, 10 * np.log10(expected), atol=1e-3)


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
  # The crop is the only matrix product, noise and mixing the only logarithms.
  assert "dot_general" in program(crop_time=0.1)
  assert "dot_general" not in program(gain=1, equaliser=1, mix=0.1, noise=0.1)
  assert " log " in program(mix=0.1)
  assert " log " not in program(gain=1, crop_time=0.1, time_masks=1)


def test_operations_draw_alike_whatever_else_is_on():
  key, x, index = jax.random.key(3), spectrograms(2, 8), index_of(2, 8)
  gain = augment.augment(key, x, index, {"gain": 6.0})
  masks = {"frequency_masks": 1, "frequency_mask_width": 8}
  both = np.asarray(augment.augment(key, x, index, {"gain": 6.0, **masks}))
  kept = both != both.min(axis=(2, 3), keepdims=True)
  assert 0.3 < kept.mean() < 0.99
  np.testing.assert_array_equal(both[kept], np.asarray(gain)[kept])


def test_masks_come_last():
  x = spectrograms(1, 64)
  masks = {"time_masks": 1, "time_mask_width": 8}
  y = augment.augment(
    jax.random.key(0), x, index_of(1, 64), {"noise": 1.0, "gain": 3.0, **masks}
  )
  flat = np.ptp(np.asarray(y), axis=2) == 0
  assert flat.any(axis=2).mean() > 0.7


def test_devices_do_not_matter_and_it_compiles_once():
  assert jax.device_count() >= 8
  x, index = spectrograms(2, 64), index_of(2, 64)
  function = functools.partial(augment.augment, config=ALL_ON)
  views = P(None, "batch")
  mesh = Mesh(np.array(jax.devices()[:8]), ("batch",))
  mapped = jax.jit(
    jax.shard_map(
      function,
      mesh=mesh,
      in_specs=(P(), views, views),
      out_specs=views,
      check_vma=False,
    )
  )
  single = jax.jit(function)
  for step in range(2):
    key = jax.random.fold_in(jax.random.key(0), step)
    one = np.asarray(single(key, x, index))
    np.testing.assert_allclose(mapped(key, x, index), one, rtol=0, atol=1e-3)
    assert len(np.unique(one.reshape(128, -1), axis=0)) == 128
  assert single._cache_size() == 1
  other = np.asarray(single(jax.random.key(9), x, index))
  assert np.abs(other - one).mean() > 1
  # Another place in the batch, with the same number: the same draws.
  swapped = np.asarray(single(key, np.roll(x, 8, 1), np.roll(index, 8, 1)))
  np.testing.assert_allclose(swapped, np.roll(one, 8, 1), rtol=0, atol=1e-3)


def test_extreme_input_stays_finite():
  x = spectrograms(1, 8)
  x[0, 0] = -100  # silence
  x[0, 1] = 100
  x[0, 2] = -300  # under the floor
  x[0, 3, 0, 0] = 120  # a click
  strongest = {
    **ALL_ON,
    "mix": 0.5,
    "noise": 1.0,
    "crop_time": 0.99,
    "crop_frequency": 0.99,
    "gain": 60.0,
  }
  function = jax.jit(functools.partial(augment.augment, config=strongest))
  for seed in range(20):
    y = function(jax.random.key(seed), x, index_of(1, 8))
    assert np.isfinite(y).all()
    assert np.abs(y).max() < 300


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("gain", -1),
    ("gain", float("inf")),
    ("equaliser", float("nan")),
    ("equaliser_knots", 1),
    ("equaliser_knots", 2.5),
    ("mix", 0.51),
    ("noise", 1.5),
    ("noise", "loud"),
    ("crop_time", 1),
    ("crop_frequency", -0.1),
    ("time_masks", -1),
    ("frequency_masks", 0.5),
    ("time_mask_width", FRAMES + 1),
    ("frequency_mask_width", BANDS + 1),
  ],
)
def test_strengths_out_of_range_are_named(field, value):
  config = {**ALL_ON, field: value}
  with pytest.raises(ValueError, match=f"augmentation: {field} must be"):
    augment.augment(
      jax.random.key(0), spectrograms(1, 8), index_of(1, 8), config
    )


def test_misspelt_fields_and_shapes_are_errors():
  x = spectrograms(1, 8)
  with pytest.raises(ValueError, match="equalizer"):
    augment.augment(jax.random.key(0), x, index_of(1, 8), {"equalizer": 2.0})
  with pytest.raises(ValueError, match="index must be"):
    augment.augment(jax.random.key(0), x, index_of(1, 4), {"gain": 2.0})


def test_width_need_not_fit_where_there_are_no_masks():
  small = augment.resolve({"time_mask_width": 99}, bands=8, frames=6)
  assert small == {**augment.DEFAULTS, "time_mask_width": 99}
