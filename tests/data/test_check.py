import numpy as np
import pytest
import soundfile
import tiny

from ssl_music.data import check, folder, parts, ready, writer
from ssl_music.errors import InputError


@pytest.fixture
def source(tmp_path):
  """A folder of 12 tiny tracks, one empty and one cut short."""
  for track in tiny.tracks()[:12]:
    soundfile.write(tmp_path / f"{track['id']}.wav", tiny.waveform(track), 8000)
  (tmp_path / "t03.wav").write_bytes(b"")
  cut = tmp_path / "t04.wav"
  cut.write_bytes(cut.read_bytes()[:20_000])
  return tmp_path


def plan_of(source, **fields):
  """Its plan: test are the tracks from 6 on; of three there is no file."""
  tracks = tiny.tracks()[:15]
  for index, track in enumerate(tracks):
    file = source / f"{track['id']}.wav"
    track["path"] = file.name
    track["file"] = str(file) if file.exists() else None
    track["artist"] = f"artist {index // 4}"
    track["split"] = "train" if index < 6 else "test"
  made = tiny.plan(tracks, folder.Load(None), [*tiny.TAGS, "never"])
  return made | {"benchmark": "Tiny", "known_bad": {"t03": "is empty"}} | fields


def test_everything_is_counted(source):
  soundfile.write(source / "stray.wav", np.ones(8000), 8000)
  plan = plan_of(source)
  found = check.examine(plan, source, sample=None)
  assert found["present"] == {"train": 6, "test": 6}
  assert [track["id"] for track in found["absent"]] == ["t12", "t13", "t14"]
  assert found["unnamed"] == 1
  assert found["decoded"] == 12
  reasons = {track["id"]: reason for track, reason in found["unusable"]}
  assert set(reasons) == {"t03", "t04"}
  assert reasons["t03"] == "the file is empty"
  assert reasons["t04"].startswith("truncated")
  assert found["artists"] == {("train", "test"): ["artist 1"]}
  assert found["without_positive"] == {"train": ["never"], "test": ["never"]}
  assert found["known_bad"] == [("t03", "is empty", "in train")]
  samples = sum(
    2 * len(tiny.waveform(track))
    for track in tiny.tracks()[:12]
    if track["id"] not in reasons
  )
  assert found["duration"] == pytest.approx(samples / tiny.RATE, rel=0.01)
  said = check.table(plan, found)
  for words in (
    f"Tiny: 4 tags, hash {found['fingerprint']}",
    "3 files absent",
    "test t12.wav",
    "1 audio files that the tables do not name",
    "12 tracks decoded, 2 of them cannot be used",
    "train t03.wav: the file is empty",
    "t03: is empty (in train)",
    "1 artists in both train and test: artist 1",
    "1 tags without a positive in test: never",
  ):
    assert words in said
  lost = {row["id"]: row["reason"] for row in check.lost(found)}
  assert lost == reasons | dict.fromkeys(["t12", "t13", "t14"], parts.ABSENT)


def test_a_sample_depends_little_on_the_other_tracks():
  tracks = [{"id": f"{index}"} for index in range(40)]
  few, more = (check._choose(tracks, {}, size) for size in (5, 9))
  assert (len(few), len(more)) == (5, 9)
  assert all(track in more for track in few)
  fewer = check._choose(tracks[1:], {}, 9)
  assert len([track for track in fewer if track in more]) >= 8


def test_a_sample_is_always_the_same_and_holds_the_known_bad(source):
  plan = plan_of(source)
  found = [
    check.examine(plan, source, sample=3, processes=processes)
    for processes in (0, 2)
  ]
  assert found[0]["unusable"] == found[1]["unusable"]
  assert 3 <= found[0]["decoded"] <= 4
  assert "t03" in {track["id"] for track, _ in found[0]["unusable"]}


def test_what_a_check_finds_is_what_preparing_skips(source, tmp_path):
  plan = plan_of(source)
  found = check.examine(plan, source, sample=None)
  summary = writer.write("tiny", plan, data_dir=tmp_path / "data")
  skipped = {one["id"]: one["reason"] for one in summary["skipped"]}
  expected = {one["id"]: one["reason"] for one in check.lost(found)}
  expected["t03"] += " (known: is empty)"
  assert skipped == expected
  assert summary["seconds"] == pytest.approx(found["duration"])


def test_the_published_tables_are_recognised(source):
  plan = plan_of(source)
  found = check.examine(plan, source, sample=0)
  assert "published" not in check.table(plan, found).splitlines()[0]
  published = {"tracks": {"train": 6, "test": 9}, "fingerprint": None}
  hashes = {key: found[key] for key in ("fingerprint", "labels")}
  for known, words in (
    ({}, "the counts are as published, more is not known"),
    (hashes, "the tables are as published"),
    (hashes | {"labels": "0" * 12}, "the tables are NOT as published"),
  ):
    plan["published"] = published | known
    found = check.examine(plan, source, sample=0)
    assert words in check.table(plan, found)


def test_advice_says_what_to_do_next(source, tmp_path):
  plan = plan_of(source)
  command = {"command": "prepare it", "data_dir": tmp_path / "a" / "b"}
  found = check.examine(plan, source, sample=None)
  said = check.advice(found, processes=2, **command)
  for words in (
    "add the 3 absent files",
    "fetch the files again",
    "--config.allow_missing=True",
    "prepare it",
    "with 2 processes",
    "GB free)",
  ):
    assert words in said
  own = check.examine(plan | {"benchmark": ""}, source, sample=None)
  assert "allow_missing" not in check.advice(own, processes=2, **command)
  huge = check.advice(found | {"duration": 1e15}, processes=2, **command)
  assert "FREE SOME" in huge
  nothing = [track | {"file": None} for track in plan["tracks"]]
  found = check.examine(plan | {"tracks": nothing}, source)
  said = check.advice(found, processes=2, **command)
  assert "add the 15 absent files" in said
  assert "prepare it" not in said


def test_a_full_temporary_folder_is_explained(source, monkeypatch):
  def refuse(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(ready.audio, "normalise", refuse)
  with pytest.raises(InputError, match=r"No space left.* another TMPDIR"):
    check.examine(plan_of(source), source)
