import csv
import errno
import functools
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
import tiny

from ssl_music import progress
from ssl_music.data import audio, folder, parts, segments, shards, writer
from ssl_music.data.tracks import Tracks, find
from ssl_music.errors import InputError, Resumable


def test_reads_back_what_was_written(data_dir):
  tracks = Tracks("tiny", ("train", "validation", "test"), data_dir)
  assert tracks.tags == tiny.TAGS
  assert len(tracks) == 40
  rng = np.random.default_rng(0)
  for index, track in enumerate(tiny.tracks()):
    pcm = audio.to_pcm(tiny.waveform(track))
    assert tracks.ids[index] == track["id"]
    assert tracks.splits[index] == track["split"]
    assert tracks.samples[index] == len(pcm)
    labels = [tag in track["tags"] for tag in tiny.TAGS]
    assert tracks.labels[index].tolist() == labels
    for _ in range(5):  # across the borders of records
      start = rng.integers(len(pcm) - 1)
      length = rng.integers(1, len(pcm) - start)
      read = tracks.read(index, start, length)
      np.testing.assert_array_equal(read, pcm[start : start + length])
    wave = pcm.astype(np.float64)
    energy = tracks.energy(index)
    loudness = segments.segment_rms(energy, 20)
    start = len(loudness) // 2
    part = wave[start * segments.BLOCK : (start + 20) * segments.BLOCK]
    assert loudness[start] == pytest.approx(np.sqrt((part**2).mean()), rel=1e-5)
    assert tracks.rms[index] == pytest.approx(
      np.sqrt((wave**2).mean()), rel=0.02
    )


def test_is_a_plain_tfds_data_set(data_dir):
  builder = tfds.builder_from_directory(find("tiny", data_dir))
  assert builder.info.features["tags"].feature.names == tiny.TAGS
  source = tfds.data_source("tiny", split="train", data_dir=data_dir)
  first = tiny.tracks()[0]
  pcm = audio.to_pcm(tiny.waveform(first))
  assert source[1]["id"].decode() == first["id"]
  assert source[1]["chunk"] == 1
  np.testing.assert_array_equal(
    source[1]["audio"], pcm[shards.CHUNK : 2 * shards.CHUNK]
  )


def _load_some(track):
  if track["index"] % 2:
    raise audio.AudioError("broken on purpose")
  return [np.ones(track["index"] * 8000, np.float32)]


def _load_none(track):
  raise audio.AudioError("broken on purpose")


def test_skips_are_counted_and_listed(tmp_path):
  rows = tiny.tracks()[:12]
  rows[10]["file"] = None
  summary = tiny.write(tmp_path, "some", rows, _load_some)
  assert summary["prepared"] == {"train": 1}
  reasons = {one["id"]: one["reason"] for one in summary["skipped"]}
  assert len(reasons) == 11
  assert reasons["t10"] == parts.ABSENT
  assert reasons["t01"] == "broken on purpose"
  assert reasons["t06"].startswith("too short (3.0 s")
  with (summary["folder"] / "skipped.csv").open() as file:
    assert list(csv.DictReader(file)) == summary["skipped"]
  missing = Tracks("some", ("train",), tmp_path).missing
  assert missing == {"train": [row["id"] for row in rows if row["id"] != "t08"]}


def test_nothing_usable_leaves_nothing(tmp_path):
  with pytest.raises(InputError, match=r"none of the 40 .* broken on purpose"):
    tiny.write(tmp_path, "none", load=_load_none)
  assert not [path for path in tmp_path.rglob("*") if path.name != ".lock"][1:]


def test_an_existing_data_set_is_kept(tmp_path):
  tiny.write(tmp_path)
  with pytest.raises(InputError, match="data set tiny exists"):
    tiny.write(tmp_path)
  replaced = tiny.write(tmp_path, rows=tiny.tracks()[:3], overwrite=True)
  assert len(Tracks("tiny", ("train",), tmp_path)) == 3
  assert replaced["prepared"] == {"train": 3}


def test_any_number_of_processes_writes_the_same(tmp_path, data_dir):
  tiny.write(tmp_path, processes=2)
  for name in ("tracks.csv", "energy.f32", "tiny-train.array_record-00000"):
    one = (find("tiny", data_dir) / name).read_bytes()
    assert (find("tiny", tmp_path) / name).read_bytes() == one, name


def test_a_killed_run_leaves_nothing_that_looks_finished(tmp_path):
  script = textwrap.dedent("""
    import sys, time
    import tiny

    def slow(track):
      if track["index"] == 5:
        print("going", flush=True)
        time.sleep(60)
      return tiny.load(track)

    tiny.write(sys.argv[1], load=slow)
  """)
  environment = os.environ | {"PYTHONPATH": os.path.dirname(tiny.__file__)}  # noqa: PTH120
  with subprocess.Popen(
    [sys.executable, "-c", script, tmp_path],
    stdout=subprocess.PIPE,
    env=environment,
  ) as process:
    assert process.stdout.readline() == b"going\n"
    with pytest.raises(InputError, match="another process is preparing"):
      tiny.write(tmp_path)
    process.send_signal(signal.SIGKILL)
  assert list((tmp_path / "tiny").glob("incomplete.*"))
  with pytest.raises(InputError, match="no data set 'tiny'"):
    find("tiny", tmp_path)
  began = time.time()
  tiny.write(tmp_path)
  assert time.time() - began < 60
  assert not list((tmp_path / "tiny").glob("incomplete.*"))


class _Interrupted:
  """Loads tracks until one at which it ends the run; counts them."""

  def __init__(self, last):
    self.last, self.loaded = last, []

  def __call__(self, track):
    self.loaded.append(track["id"])
    if track["index"] == self.last:
      raise KeyboardInterrupt
    return tiny.load(track)


def test_an_interrupted_run_goes_on_and_ends_as_an_unbroken_one(
  tmp_path, data_dir
):
  broken = _Interrupted(9)
  with pytest.raises(KeyboardInterrupt):
    tiny.write(tmp_path, load=broken)
  # The last of the finished parts loses its end, as in a power failure.
  work = tmp_path / "tiny" / f"incomplete.{writer.VERSION}" / "parts"
  finished = sorted(work.glob(f"*{parts.FINISHED}"))
  assert len(finished) == 4
  cut = finished[-1].with_suffix("")
  cut.write_bytes(cut.read_bytes()[:-1000])
  rest = _Interrupted(None)
  tiny.write(tmp_path, load=rest)
  assert rest.loaded == [f"t{index:02}" for index in range(6, 40)]
  same = find("tiny", data_dir)
  found = find("tiny", tmp_path)
  names = sorted(file.name for file in same.iterdir())
  assert sorted(file.name for file in found.iterdir()) == names
  for name in names:
    if name != "dataset_info.json":  # which holds the folder
      assert (found / name).read_bytes() == (same / name).read_bytes(), name


@pytest.mark.parametrize(
  "change", ["tags", "file", "min_seconds", "max_seconds"]
)
def test_a_changed_plan_starts_anew(tmp_path, change):
  file = tmp_path / "audio"
  file.write_bytes(b"x")
  rows = [track | {"file": str(file)} for track in tiny.tracks()]
  with pytest.raises(KeyboardInterrupt):
    tiny.write(tmp_path, rows=rows, load=_Interrupted(9))
  if change == "tags":
    rows[0]["tags"] = []
  if change == "file":
    file.write_bytes(b"xy")
  rest = _Interrupted(None)
  seconds = 4.5 if change == "min_seconds" else 4.0
  plan = tiny.plan(rows, rest)
  plan["max_seconds"] = 5.0 if change == "max_seconds" else plan["max_seconds"]
  writer.write("tiny", plan, data_dir=tmp_path, min_seconds=seconds)
  assert len(rest.loaded) == 40


def test_several_data_sets_are_pooled(tmp_path, data_dir):
  tiny.write(tmp_path, "a")
  tiny.write(tmp_path, "b")
  pool = Tracks("a+b", ("train", "unlabelled"), tmp_path)
  one = Tracks("a", ("train",), tmp_path)
  assert len(pool) == 2 * len(one)
  last = len(one) - 1
  np.testing.assert_array_equal(
    pool.read(len(one) + last, 100, 70_000), one.read(last, 100, 70_000)
  )
  np.testing.assert_array_equal(pool.energy(len(one)), one.energy(0))


def test_missing_data_sets_are_named(data_dir):
  with pytest.raises(InputError, match=r"no data set 'absent' .*there: tiny"):
    Tracks("absent", ("train",), data_dir)
  with pytest.raises(InputError, match="names a data set twice"):
    Tracks("tiny+tiny", ("train",), data_dir)
  with pytest.raises(InputError, match="has no track in unlabelled"):
    Tracks("tiny", ("unlabelled",), data_dir)


@pytest.mark.parametrize("processes", [0, 2])
def test_on_a_full_disk_what_is_finished_is_kept(tmp_path, processes):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
  try:
    with pytest.raises(Resumable, match=r"cannot write data set tiny .*too"):
      tiny.write(tmp_path, processes=processes)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  with pytest.raises(InputError, match="no data set 'tiny'"):
    Tracks("tiny", ("train",), tmp_path)
  tiny.write(tmp_path)  # there is space again
  assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == [
    ".lock",
    writer.VERSION,
  ]
  assert len(Tracks("tiny", ("train",), tmp_path)) == 24


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_what_the_machine_lacks_skips_no_file(tmp_path, monkeypatch, number):
  def fails(*_):
    raise OSError(number, os.strerror(number))

  file = tmp_path / "music" / "a.wav"
  file.parent.mkdir()
  soundfile.write(file, tiny.waveform(tiny.tracks()[0]), 16_000)
  monkeypatch.setattr(audio.containers, "parts", fails)
  advice = {errno.EMFILE: "`ulimit -n`", errno.ENOMEM: "free some memory"}
  with pytest.raises(Resumable, match=advice[number]):
    writer.write("own", folder.plan(file.parent), data_dir=tmp_path)


def test_a_replacement_that_was_killed_halfway_keeps_the_old(tmp_path):
  tiny.write(tmp_path)
  folder = find("tiny", tmp_path)
  folder.rename(folder.with_name(f"replaced.{folder.name}"))
  with pytest.raises(InputError, match="none of the 40"):
    tiny.write(tmp_path, load=_load_none, overwrite=True)
  assert find("tiny", tmp_path) == folder
  assert sorted(path.name for path in folder.parent.iterdir()) == [
    ".lock",
    folder.name,
  ]


def _load_slowly(track):
  time.sleep(0.1)
  return tiny.load(track)


@pytest.mark.parametrize("processes", [0, 2])
def test_progress_goes_by_tracks(tmp_path, capsys, monkeypatch, processes):
  quick = functools.partial(progress.bar, mininterval=0)
  monkeypatch.setattr(progress, "bar", quick)
  rows = tiny.tracks()
  rows[3]["file"] = None
  tiny.write(tmp_path, rows=rows, load=_load_slowly, processes=processes)
  shown = re.findall(r"(\d+)/40 ", capsys.readouterr().err)
  assert shown[-1] == "40"
  assert len(set(shown)) > 2
