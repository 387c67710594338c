import pytest

from ssl_music import typed
from ssl_music.errors import InputError

KIND = {
  "seconds": float,
  "tags": [str],
  "model": {"width": int, "name?": (str, None)},
  "any?": {str: [float]},
}
GOOD = '{"seconds": 4, "tags": ["ä"], "model": {"width": 1, "name": null}}'


def test_what_is_asked_for_is_returned_with_the_rest():
  assert typed.parse(GOOD, KIND, "f") == {
    "seconds": 4,
    "tags": ["ä"],
    "model": {"width": 1, "name": None},
  }
  more = '{"a": [1, 2.5], "b": []}'
  assert typed.parse(more, {str: [float]}, "f") == {"a": [1, 2.5], "b": []}
  assert typed.parse(b'{"x": [{"y": 1}]}', object, "f") == {"x": [{"y": 1}]}


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("", "Expecting value"),
    ("[]", r"it is \[\], no dict"),
    (b"\xff\xfe{", "codec can't decode"),
    (GOOD[:-1], "Expecting"),
    (GOOD.replace("4", "NaN"), "NaN is no finite number"),
    (GOOD.replace("4", "1e999"), "1e999 is no finite number"),
    (GOOD.replace("4", "true"), "field seconds is True, no float"),
    (GOOD.replace("4", '"4"'), "field seconds is '4', no float"),
    (GOOD.replace("1", "1.5"), "field model.width is 1.5, no int"),
    (GOOD.replace("1", "true"), "field model.width is True, no int"),
    (GOOD.replace("null", "3"), "field model.name is 3"),
    (GOOD.replace('["ä"]', '"ä"'), r"field tags is '\\xe4', no list"),
    (GOOD.replace('["ä"]', '["ä", 1]'), r"field tags\[1\] is 1, no str"),
    (GOOD.replace("tags", "seconds"), "field 'seconds' is there twice"),
    (GOOD.replace("tags", "tag"), "field tags is missing"),
    ("[" * 100_000, "recursion"),
    ('{"a": ' * 100_000, "recursion"),
    ("1" * 5_000, "digits"),
    (GOOD.replace("4", "4" * 400), "444 is beyond 64 bits"),
  ],
)
def test_what_is_not_is_refused_with_file_and_field(text, said):
  with pytest.raises(InputError, match=rf"x\.json is damaged \(.*{said}.*: go"):
    typed.parse(text, KIND, "x.json", "go")


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match=r"cannot read .*a\.json \(No such"):
    typed.read(tmp_path / "a.json", dict)
  (tmp_path / "a.json").write_text("{}")
  assert typed.read(tmp_path / "a.json", dict) == {}
