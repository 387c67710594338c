import itertools
import multiprocessing
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from ssl_music.data import pipeline, segments
from ssl_music.data.segments import BLOCK
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

SETTINGS = {"seconds": 1.0, "gap": 1.5, "views": 2, "batch": 8, "seed": 3}
LENGTH, GAP = 10, 15  # in blocks
SHORT = 6
MULTI_CROP = {"short_views": 3, "short_seconds": 0.6, "labels": True}


@pytest.fixture(scope="module")
def tracks(data_dir):
  return Tracks("tiny", ("train",), data_dir)


@pytest.fixture(scope="module")
def batches(tracks):
  return pipeline.pretraining_batches(tracks, **SETTINGS)


@pytest.fixture(scope="module")
def crops(tracks):
  return pipeline.pretraining_batches(tracks, **SETTINGS, **MULTI_CROP)


def burst(track):
  """Noise of 6 s, loud from 1 to 2.3 s and from 3 s for a while."""
  index = track["index"]
  noise = np.random.default_rng(index).standard_normal(6 * tiny.RATE)
  loud = np.zeros(60, bool)
  loud[10:23] = loud[30 : 42 + index] = True
  return [noise * np.where(np.repeat(loud, BLOCK), 0.1, 0.005)]


@pytest.fixture(scope="module")
def bursts(tmp_path_factory):
  """Four tracks, untagged, of which a good part is not sounding."""
  folder = tmp_path_factory.mktemp("bursts")
  described = [
    {"index": i, "id": f"b{i}", "path": f"b{i}", "split": "train", "tags": []}
    for i in range(4)
  ]
  tiny.write(folder, "bursts", described, burst, tags=[])
  return Tracks("bursts", ("train",), folder)


def every_segment(tracks, length):
  """Maps the audio of every segment to its track and start (in blocks)."""
  found = {}
  for track in range(len(tracks)):
    whole = tracks.read(track, 0, tracks.samples[track])
    for start in range(len(whole) // BLOCK - length + 1):
      segment = whole[start * BLOCK : (start + length) * BLOCK]
      found[segment.tobytes()] = track, start
  return found


@pytest.fixture(scope="module")
def place(tracks):
  """Finds the track and the start that a segment was read from."""
  found = every_segment(tracks, LENGTH) | every_segment(tracks, SHORT)
  return lambda segment: found[segment.tobytes()]


def assert_same(batch, expected):
  assert set(batch) == set(expected)
  jax.tree.map(np.testing.assert_array_equal, batch, expected)


def test_batches_hold_spaced_sounding_segments_of_different_tracks(
  tracks, batches, place
):
  assert len(batches) == 3  # 24 tracks in batches of 8
  assert set(batches[1]) == {"views"}
  batch = batches[1]["views"]
  assert batch.shape == (2, 8, 16_000)
  assert batch.dtype == np.int16
  found = []
  for item in range(8):
    (track, one), (again, other) = (place(view) for view in batch[:, item])
    assert track == again
    assert abs(one - other) >= GAP
    energy, rms = tracks.energy(track), tracks.rms[track]
    assert segments.sounding(energy, rms, LENGTH)[[one, other]].all()
    found.append(track)
  assert len(set(found)) == 8


def test_draws_stay_what_they_were(batches, place):
  """A run that is resumed goes on with the batches it was started with."""
  tracks = [4, 22, 16, 7, 21, 3, 18, 19]
  starts = [[30, 38, 23, 14, 70, 29, 52, 7], [67, 23, 8, 58, 41, 9, 19, 28]]
  found = [[place(s) for s in view] for view in batches[0]["views"]]
  assert found == [list(zip(tracks, s, strict=True)) for s in starts]


def test_multi_crop_batches_have_the_batch_on_axis_1(crops):
  described = {name: (x.shape, x.dtype) for name, x in crops[1].items()}
  assert described == {
    "views": ((2, 8, 16_000), np.int16),
    "short": ((3, 8, 9_600), np.int16),
    "labels": ((1, 8, 3), np.int8),
  }


def test_short_views_and_labels_leave_the_views_as_they_are(batches, crops):
  for step in range(3):
    np.testing.assert_array_equal(crops[step]["views"], batches[step]["views"])


def test_short_views_and_labels_are_of_the_views_tracks(tracks, crops, place):
  batch = crops[2]
  for item in range(8):
    track, _ = place(batch["views"][0, item])
    assert [place(s)[0] for s in batch["short"][:, item]] == [track] * 3
    tags = {tiny.TAGS[tag] for tag in np.flatnonzero(batch["labels"][0, item])}
    index = int(tracks.ids[track].removeprefix("t"))
    assert tags == set(tiny.tracks()[index]["tags"])


def test_short_views_are_all_the_sounding_ones_and_no_others(bursts):
  batches = pipeline.pretraining_batches(
    bursts,
    **SETTINGS | {"batch": 4},
    short_views=12,
    short_seconds=0.6,
  ).repeat()
  expected = set()
  for track in range(4):
    whole = bursts.read(track, 0, bursts.samples[track]).astype(np.float64)
    rms = np.sqrt(np.square(whole).mean())
    for start in range(60 - SHORT + 1):
      segment = whole[start * BLOCK : (start + SHORT) * BLOCK]
      if 10 * np.log(np.sqrt(np.square(segment).mean()) / rms) > -7.5:
        expected.add((track, start))
  where = every_segment(bursts, SHORT)
  assert 80 < len(expected) < 0.7 * len(where)
  drawn = {
    where[segment.tobytes()]
    for step in range(40)
    for segment in batches[step]["short"].reshape(-1, 9_600)
  }
  assert drawn == expected


def test_one_view_without_a_partner(tracks, place):
  batches = pipeline.pretraining_batches(tracks, **SETTINGS | {"views": 1})
  batch = batches[0]["views"]
  assert batch.shape == (1, 8, 16_000)
  assert len({place(segment)[0] for segment in batch[0]}) == 8


def test_an_epoch_uses_every_track_and_the_next_another_order(batches, place):
  repeated = batches.repeat()
  epochs = []
  for epoch in range(2):
    chosen = [repeated[epoch * 3 + step]["views"][0] for step in range(3)]
    epochs.append([place(segment)[0] for segment in np.concatenate(chosen)])
  assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
  assert epochs[0] != epochs[1]
  assert not np.array_equal(repeated[0]["views"], repeated[3]["views"])


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_reads_the_same(crops, workers):
  repeated = crops.repeat()
  read = itertools.islice(pipeline.iterate(repeated, workers), 7)
  for step, batch in enumerate(read):
    assert_same(batch, repeated[step])


def test_no_more_workers_than_cores(crops, monkeypatch):
  monkeypatch.setattr(pipeline, "cores", lambda: 1)
  before = set(multiprocessing.active_children())
  read = pipeline.iterate(crops.repeat(), workers=3)
  assert_same(next(read), crops[0])
  assert len(set(multiprocessing.active_children()) - before) == 1


def test_goes_on_from_a_step_alone(tracks, crops):
  again = pipeline.pretraining_batches(tracks, **SETTINGS, **MULTI_CROP)
  again = again.repeat()[5:]
  for step in range(4):
    assert_same(again[step], crops.repeat()[5 + step])


def test_seeds_differ(tracks, crops):
  other = pipeline.pretraining_batches(
    tracks, **SETTINGS | {"seed": 4}, **MULTI_CROP
  )
  assert not np.array_equal(other[0]["views"], crops[0]["views"])
  assert not np.array_equal(other[0]["short"], crops[0]["short"])


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"seconds": 30.0}, "need tracks of .* lower --config.data.seconds"),
    ({"seconds": 30.0, "views": 1}, "seconds, or"),
    ({"batch": 25}, "has 24 tracks .* lower --config.batch to 24"),
    ({"views": 9}, "need tracks of 13 s"),
    ({"seconds": 1.05}, "config.data.seconds=1.05 .* grid of 0.1 s"),
    ({"gap": 0.0}, "config.data.gap=0.0 .* grid of 0.1 s"),
    (
      {"short_views": 1, "short_seconds": 0.55},
      "config.data.short_seconds=0.55 .* grid of 0.1 s",
    ),
    (
      {"short_views": 1, "short_seconds": 1.1},
      "config.data.short_seconds=1.1 is longer .* give 1 or less",
    ),
  ],
)
def test_what_cannot_be_drawn_is_said(tracks, changed, message):
  with pytest.raises(InputError, match=message):
    pipeline.pretraining_batches(tracks, **SETTINGS | changed)


def test_labels_need_tags(bursts):
  settings = SETTINGS | {"batch": 4}
  with pytest.raises(
    InputError, match=r"bursts has no tags .* --config.data.name"
  ):
    pipeline.pretraining_batches(bursts, **settings, labels=True)


def test_a_track_without_a_sounding_short_segment_is_not_used(data_dir):
  tracks = Tracks("tiny", ("train",), data_dir)
  energy = tracks.energy
  hollow = np.zeros(50, np.float32)
  hollow[[10, 12]] = 1  # mean square 2/3 in 3 blocks, 1/2 in 2
  tracks.energy = lambda track: energy(track) if track else hollow
  tracks.rms[0] = np.sqrt(0.6) / segments.SOUNDING
  settings = {"seconds": 0.3, "gap": 0.3, "views": 1, "batch": 24, "seed": 0}
  assert len(pipeline.pretraining_batches(tracks, **settings)) == 1
  with pytest.raises(InputError, match=r"has 23 tracks .*and one of 0.2 s"):
    pipeline.pretraining_batches(
      tracks, **settings, short_views=1, short_seconds=0.2
    )


def test_segments_for_embedding_come_in_order(tracks):
  where = np.array([[3, 0], [3, 10], [0, 5], [7, 2], [1, 1]])
  batches = pipeline.segment_batches(tracks, where, seconds=1.0, batch=2)
  read = list(pipeline.iterate(batches, workers=0))
  assert [len(batch) for batch in read] == [2, 2, 1]
  for (track, start), segment in zip(where, np.concatenate(read), strict=True):
    expected = tracks.read(track, start * BLOCK, 16_000)
    np.testing.assert_array_equal(segment, expected)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_batches(tracks, processes, monkeypatch):
  """Over epochs, one of which ends between two batches; nobody reads more."""
  settings = SETTINGS | MULTI_CROP | {"batch": 16}  # of 24 tracks
  whole = pipeline.pretraining_batches(tracks, **settings).repeat()
  parts = [
    pipeline.pretraining_batches(
      tracks, **settings, process=process, processes=processes
    )
    for process in range(processes)
  ]
  assert {len(part) for part in parts} == {1}
  for step in range(3):
    mine = [part.repeat()[step] for part in parts]
    joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *mine)
    assert_same(joined, whole[step])
  read, rows = [], tracks.read
  monkeypatch.setattr(
    type(tracks),
    "read",
    lambda self, track, *a: read.append(track) or rows(track, *a),
  )
  parts[1].repeat()[1]
  assert len(set(read)) == 16 // processes


def test_a_killed_worker_is_explained(batches):
  before = set(multiprocessing.active_children())
  source = pipeline.iterate(batches.repeat(), 1)
  next(source)
  (worker,) = set(multiprocessing.active_children()) - before
  worker.kill()
  with pytest.raises(InputError, match=r"was killed.*--config.data.workers=0"):
    for _ in range(100):
      next(source)


READER = """
import os, signal, sys
from absl import flags
from ssl_music.data import pipeline
from ssl_music.data.tracks import Tracks

if __name__ == "__main__":
  tracks = Tracks("tiny", ("train",), sys.argv[1])
  batches = pipeline.pretraining_batches(
    tracks, seconds=1.0, gap=1.5, views=2, batch=8, seed=3
  )
  flags.FLAGS.mark_as_parsed()  # Grain has some
  source = pipeline.iterate(batches.repeat(), 2)
  next(source)
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_parent(data_dir, tmp_path):
  script = tmp_path / "reader.py"
  script.write_text(READER)
  # The workers hold their parent's standard output: it ends when they do.
  done = subprocess.run(
    [sys.executable, script, data_dir],
    stdout=subprocess.PIPE,
    timeout=120,
    check=False,
  )
  assert done.returncode == -signal.SIGKILL
