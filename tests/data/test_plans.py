import pytest
import tiny

from ssl_music.data import plans
from ssl_music.errors import InputError


def test_a_plan_has_no_other_fields():
  assert plans.make("a", [], None, tags=["t"])["tags"] == ["t"]
  with pytest.raises(ValueError, match="no license"):
    plans.make("a", [], None, license="MIT")
  with pytest.raises(InputError, match=r"tag 'x\|y' of a holds \|"):
    plans.make("a", [], None, tags=["t", "x|y"])


def test_fingerprint_tells_splits_and_tag_order():
  every = [(track["split"], track["id"]) for track in tiny.tracks()]
  moved = [("train" if s == "validation" else s, id_) for s, id_ in every]
  assert plans.fingerprint(every, tiny.TAGS) == plans.fingerprint(
    every[::-1], tiny.TAGS
  )
  different = {
    plans.fingerprint(every, tiny.TAGS),
    plans.fingerprint(every, tiny.TAGS[::-1]),
    plans.fingerprint(every[1:], tiny.TAGS),
    plans.fingerprint(moved, tiny.TAGS),
  }
  assert len(different) == 4


def test_whether_tables_are_as_published():
  plan = tiny.plan(benchmark="Tiny")
  described = plans.describe(plan)
  assert described["as_published"] is None
  assert described["tracks"] == {"train": 24, "validation": 8, "test": 8}
  published = {"tracks": described["tracks"], "fingerprint": None}
  as_published = lambda **fields: plans.describe(plan | fields)["as_published"]
  # Counts alone can but speak against it.
  assert as_published(published=published) is None
  fewer = as_published(published=published, tracks=plan["tracks"][1:])
  assert fewer is False
  published["fingerprint"] = described["fingerprint"]
  published["labels"] = described["labels"]
  assert as_published(published=published) is True
  other_order = as_published(published=published, tags=tiny.TAGS[::-1])
  assert other_order is False
  changed = [plan["tracks"][0] | {"tags": []}, *plan["tracks"][1:]]
  assert as_published(published=published, tracks=changed) is False


def test_unlabelled_tracks_are_no_part_of_the_benchmark():
  more = [*tiny.tracks(), tiny.tracks()[0] | {"id": "x", "split": "unlabelled"}]
  one, other = plans.describe(tiny.plan()), plans.describe(tiny.plan(more))
  assert one["fingerprint"] == other["fingerprint"]
  assert one["tracks"] == other["tracks"]
