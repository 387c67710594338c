import json

import fake_runs
import numpy as np
import pytest

from ssl_music import results
from ssl_music.errors import InputError

METRIC = dict.fromkeys(results.METRICS, 0.5)
SCORES = {
  "encoder": "mel",
  "data": "tiny",
  "benchmark": "",
  "as_published": None,
  "fingerprint": "0123456789ab",
  "tracks": {"test": 8},
  "missing": {"test": 0},
  "test": METRIC,
  "interval": {name: [0.4, 0.6] for name in METRIC},
}


def test_table_has_a_row_a_probe_by_rising_score():
  better = SCORES | {"test": dict.fromkeys(METRIC, 0.7), "encoder": "best"}
  lines = results.table([better, SCORES]).splitlines()
  assert len({len(line) for line in lines}) == 1
  assert [line.split("|")[1].strip() for line in lines[2:]] == ["mel", "best"]
  assert "tiny (0123456789ab)" in lines[2]
  assert "0.700 [0.400, 0.600]" in lines[3]


def test_table_tells_what_learns_the_tags_from_frozen_encoders():
  names = ("byol", "finetune:byol", "supervised")
  encoders = ("/byol", "/byol", "random")
  scores = [
    SCORES | {"name": name, "encoder": encoder}
    for name, encoder in zip(names, encoders, strict=True)
  ]
  lines = results.table(scores).splitlines()[2:]
  shown = [line.split("|")[1].strip() for line in lines]
  assert shown == ["/byol", "/byol (fine-tuned)", "supervised"]


def test_table_tells_rows_of_the_same_name_apart():
  folders = ("runs/a/probe", "runs/b/probe", "runs/c")
  encoders = ("runs/x", "runs/x", "mel")
  scores = [
    SCORES | {"encoder": encoder, "folder": folder}
    for encoder, folder in zip(encoders, folders, strict=True)
  ]
  lines = results.table(scores).splitlines()[2:]
  shown = [line.split("|")[1].strip() for line in lines]
  assert shown == ["runs/x (a/probe)", "runs/x (b/probe)", "mel"]


@pytest.mark.parametrize(
  ("as_published", "name"),
  [
    (None, "tiny (Tiny, split 3, not verified, 0123456789ab)"),
    (True, "tiny (Tiny, split 3, 0123456789ab)"),
    (
      False,
      "tiny (Tiny, split 3, other tables than published, 0123456789ab)",
    ),
  ],
)
def test_a_benchmark_of_other_tables_is_named_so(as_published, name):
  scores = {"benchmark": "Tiny, split 3", "as_published": as_published}
  assert results.data_name(SCORES | scores) == name


def test_unreadable_scores_are_explained(tmp_path):
  with pytest.raises(InputError, match="no scores in"):
    results.read(tmp_path)
  file = tmp_path / "scores.json"
  file.write_text(json.dumps(SCORES)[:-5])
  with pytest.raises(InputError, match=r"scores\.json is damaged .*: probe"):
    results.read(tmp_path)
  old = {key: value for key, value in SCORES.items() if key != "missing"}
  file.write_text(json.dumps(old))
  with pytest.raises(InputError, match="an older program's"):
    results.read(tmp_path)
  file.write_text(json.dumps(SCORES))
  assert results.read(tmp_path) == SCORES


@pytest.mark.parametrize(
  "wrong",
  [
    {"test": METRIC | {"map_macro": float("nan")}},
    {"interval": {}},
    {"tracks": 5},
    {"shares": [{"share": 0.0, "test": METRIC}]},
    {"per_tag": {"calm": {"ap": None}}},
    {"encoder": None},
  ],
)
def test_scores_that_are_not_whole_are_explained(tmp_path, wrong):
  scores = fake_runs.probe(tmp_path / "run", "mel")
  assert results.read_probe(tmp_path / "run")["test"] == scores["test"]
  file = tmp_path / "run" / "scores.json"
  file.write_text(json.dumps(scores | wrong))
  with pytest.raises(InputError, match=r"scores\.json .*: probe again"):
    results.read_probe(tmp_path / "run")


def test_scores_of_sounding_segments_stand_apart(tmp_path):
  """So do those of the time when a probe had no other way."""
  fake_runs.probe(tmp_path / "all", "mel")
  old = fake_runs.probe(tmp_path / "old", "mel")
  del old["sounding"]
  (tmp_path / "old" / "scores.json").write_text(json.dumps(old))
  read = [results.read_probe(tmp_path / name) for name in ("all", "old")]
  (groups,) = results.panels(read).values()
  assert set(groups) == {"mel", "mel (sounding segments)"}


def test_damaged_resamples_are_refused(tmp_path):
  fake_runs.probe(tmp_path / "run", "mel")
  file = tmp_path / "run" / "resamples.npz"
  assert results.read_probe(tmp_path / "run")["resamples"] is not None
  whole = file.read_bytes()
  drawn = {name: np.zeros(5) for name in results.METRICS}
  for spoil in (
    lambda: file.write_bytes(whole[:-40]),
    lambda: np.savez(file, **drawn | {"map_micro": np.zeros(4)}),
    lambda: np.savez(file, **drawn | {"map_micro": np.full(5, np.nan)}),
    lambda: np.savez(file, map_macro=np.zeros(5)),
  ):
    spoil()
    with pytest.raises(InputError, match=r"resamples\.npz is damaged \("):
      results.read_probe(tmp_path / "run")
  file.unlink()  # as an older probe has none
  assert results.read_probe(tmp_path / "run")["resamples"] is None


def test_seeds_of_an_encoder_are_one_group_with_their_spread(tmp_path):
  scores = [
    fake_runs.probe(tmp_path / str(seed), "byol", seed=seed) for seed in (0, 1)
  ]
  other = fake_runs.probe(tmp_path / "2", "byol", network="teacher")
  assert other["test"] == scores[0]["test"]
  fake_runs.probe(tmp_path / "3", "byol", fingerprint="another")
  read = [results.read_probe(tmp_path / str(index)) for index in range(4)]
  panels = results.panels(read)
  assert list(panels) == ["own (000000000003)", "own (another)"]
  groups = panels["own (000000000003)"]
  assert set(groups) == {"byol", "byol (teacher)"}
  values = [one["test"]["map_macro"] for one in scores]
  one = groups["byol"]
  assert one["test"]["map_macro"] == pytest.approx(np.mean(values))
  expected = abs(values[0] - values[1]) / np.sqrt(2)
  assert one["deviation"]["map_macro"] == pytest.approx(expected)
  assert groups["byol (teacher)"]["deviation"]["map_macro"] is None
  draws = [r["resamples"]["map_macro"] for r in read[:2]]
  np.testing.assert_allclose(one["resamples"]["map_macro"], sum(draws) / 2)


def test_other_settings_of_an_encoder_are_not_taken_for_seeds(tmp_path):
  for rate in ("low", "high"):
    fake_runs.probe(tmp_path / rate / "probe", "byol", hidden=[])
  fake_runs.probe(tmp_path / "mel", "mel")
  read = [
    results.read_probe(file.parent) for file in tmp_path.rglob("scores.json")
  ]
  (groups,) = results.panels(read).values()
  assert set(groups) == {"byol (low/probe)", "byol (high/probe)", "mel"}


def test_seeds_are_averaged_within_each_setting(tmp_path):
  for seed in (0, 1):
    for rate in ("low", "high"):
      folder = tmp_path / f"seed={seed},rate={rate}"
      fake_runs.probe(folder, "byol", seed=seed, recipe=rate)
    fake_runs.probe(tmp_path / f"head{seed}", "byol", seed=seed, recipe="low")
  read = [
    results.read_probe(folder)
    | {"probe_recipe": "other" if "head" in folder.name else "one"}
    for folder in sorted(tmp_path.iterdir())
  ]
  (groups,) = results.panels(read).values()
  assert {name: len(one["runs"]) for name, one in groups.items()} == {
    "byol (head0, head1)": 2,
    "byol (seed=0,rate=high, seed=1,rate=high)": 2,
    "byol (seed=0,rate=low, seed=1,rate=low)": 2,
  }


def test_only_settings_that_differ_are_listed():
  configs = {
    "a": {"seed": 0, "head": [1, 2], "pretext": {"name": "x", "t": 0.1}},
    "b": {"seed": 0, "head": [1, 3], "pretext": {"name": "x"}},
  }
  assert results.differences(configs) == {
    "head": {"a": [1, 2], "b": [1, 3]},
    "pretext.t": {"a": 0.1},
  }


def test_of_many_tags_the_best_and_worst_are_printed():
  def printed(tags):
    per_tag = {
      f"tag{n}": {"ap": 1 - n / 200, "roc_auc": 0.5, "positives": 1}
      for n in range(tags)
    }
    left_out = [f"rare{n}" for n in range(tags)]
    more = {"per_tag": per_tag, "left_out": left_out, "seeds": 3}
    more |= {"aggregation": "embeddings", "sounding": False}
    return results.by_tag(SCORES | more).splitlines()[6:]

  lines = printed(101)
  names = [line.split()[0] for line in lines[:-1]]
  best, worst = range(10), range(91, 101)
  assert names[:10] == [f"tag{n}" for n in best]
  assert lines[10] == "  (81 other tags are in scores.json)"
  assert names[11:] == [f"tag{n}" for n in worst]
  assert lines[-1].endswith("rare9 and 91 more")
  assert len(printed(20)) == 21
  assert "other tags" not in "".join(printed(20))
