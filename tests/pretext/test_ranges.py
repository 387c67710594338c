"""Every field of a pretext task has a range, which its refusal names."""

import importlib

import pytest

from ssl_music import pretext
from ssl_music.errors import InputError
from ssl_music.pretext import PRETEXTS, record

OUTSIDE = {
  record.POSITIVE: 0,
  record.NOT_NEGATIVE: -3,
  record.SHARE: 1.5,
  record.SIZES: (0, 256),
}  # of other ranges, "none of them"
FIELDS = [
  (task, field, allowed)
  for task, made in PRETEXTS.items()
  for field, allowed in {"head": record.SIZES, **made.fields}.items()
]


def settings(task, preset="laptop"):
  config = importlib.import_module(f"configs.{task}").get_config(preset)
  return config.pretext.to_dict()


@pytest.mark.parametrize("preset", ["laptop", "paper"])
@pytest.mark.parametrize("task", PRETEXTS)
def test_presets_lie_in_the_ranges_of_all_their_fields(task, preset):
  given = settings(task, preset)
  pretext.check(given)
  assert given.keys() == {"name", "head", *PRETEXTS[task].fields}


@pytest.mark.parametrize(("task", "field", "allowed"), FIELDS)
def test_a_value_out_of_range_is_refused_with_the_range(task, field, allowed):
  value = OUTSIDE.get(allowed, "none of them")
  with pytest.raises(InputError) as error:
    pretext.check(settings(task) | {field: value})
  assert str(error.value) == (
    f"--config.pretext.{field}={value} is out of range: give {allowed.span}"
  )


@pytest.mark.parametrize(
  ("allowed", "inside"),
  [
    (record.POSITIVE, [1e-9, 1, 7.5]),
    (record.NOT_NEGATIVE, [0, 0.5, 3]),
    (record.SHARE, [0, 0.5, 1]),
    (record.SIZES, [(), (1,), (64, 256)]),
    (record.one_of("a", "b"), ["a", "b"]),
  ],
)
def test_ends_of_the_ranges(allowed, inside):
  assert all(allowed.holds(value) for value in inside)
  assert not allowed.holds(OUTSIDE.get(allowed, "none of them"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_in_no_range(value):
  for allowed in (record.POSITIVE, record.NOT_NEGATIVE, record.SHARE):
    assert not allowed.holds(value)
