import json

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
  with pytest.raises(InputError, match="no scores in"):
    results.read(tmp_path)
  old = {key: value for key, value in SCORES.items() if key != "missing"}
  file.write_text(json.dumps(old))
  with pytest.raises(InputError, match="an older program's"):
    results.read(tmp_path)
  file.write_text(json.dumps(SCORES))
  assert results.read(tmp_path) == SCORES
