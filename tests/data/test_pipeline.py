import itertools

import numpy as np
import pytest

from ssl_music.data import pipeline, segments
from ssl_music.data.tracks import Tracks
from ssl_music.data.writer import BLOCK
from ssl_music.errors import InputError

SETTINGS = {"seconds": 1.0, "gap": 1.5, "views": 2, "batch": 8, "seed": 3}
LENGTH, GAP = 10, 15  # in blocks


@pytest.fixture(scope="module")
def tracks(data_dir):
  return Tracks("tiny", ("train",), data_dir)


@pytest.fixture(scope="module")
def batches(tracks):
  return pipeline.pretraining_batches(tracks, **SETTINGS)


def locate(tracks, segment):
  """Finds the track and the start (in blocks) that a segment was read from."""
  for track in range(len(tracks)):
    whole = tracks.read(track, 0, tracks.samples[track])
    starts = range(0, len(whole) - len(segment) + 1, BLOCK)
    for start in starts:
      if np.array_equal(whole[start : start + len(segment)], segment):
        return track, start // BLOCK
  raise AssertionError("a segment that no track holds")


def test_batches_hold_spaced_sounding_segments_of_different_tracks(
  tracks, batches
):
  assert len(batches) == 3  # 24 tracks in batches of 8
  batch = batches[1]
  assert batch.shape == (2, 8, 16_000)
  assert batch.dtype == np.int16
  found = []
  for item in range(8):
    (track, one), (again, other) = (locate(tracks, v) for v in batch[:, item])
    assert track == again
    assert abs(one - other) >= GAP
    energy, rms = tracks.energy(track), tracks.rms[track]
    assert segments.sounding(energy, rms, LENGTH)[[one, other]].all()
    found.append(track)
  assert len(set(found)) == 8


def test_an_epoch_uses_every_track_and_the_next_another_order(tracks, batches):
  repeated = batches.repeat()
  epochs = []
  for epoch in range(2):
    chosen = [repeated[epoch * 3 + step][0] for step in range(3)]
    epochs.append(
      [locate(tracks, segment)[0] for segment in np.concatenate(chosen)]
    )
  assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
  assert epochs[0] != epochs[1]
  assert not np.array_equal(repeated[0], repeated[3])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_reads_the_same(batches, workers):
  repeated = batches.repeat()
  read = itertools.islice(pipeline.iterate(repeated, workers), 7)
  for step, batch in enumerate(read):
    np.testing.assert_array_equal(batch, repeated[step])


def test_goes_on_from_a_step_alone(tracks, batches):
  again = pipeline.pretraining_batches(tracks, **SETTINGS).repeat()[5:]
  for step in range(4):
    np.testing.assert_array_equal(again[step], batches.repeat()[5 + step])


def test_seeds_differ(tracks, batches):
  other = pipeline.pretraining_batches(tracks, **SETTINGS | {"seed": 4})
  assert not np.array_equal(other[0], batches[0])


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"seconds": 30.0}, "need tracks of .* lower --config.data.seconds"),
    ({"batch": 25}, "has 24 tracks .* lower --config.batch to 24"),
    ({"views": 9}, "need tracks of 13 s"),
    ({"seconds": 1.05}, "grid of 0.1 s"),
    ({"gap": 0.0}, "grid of 0.1 s"),
  ],
)
def test_what_cannot_be_drawn_is_said(tracks, changed, message):
  with pytest.raises(InputError, match=message):
    pipeline.pretraining_batches(tracks, **SETTINGS | changed)


def test_segments_for_embedding_come_in_order(tracks):
  where = np.array([[3, 0], [3, 10], [0, 5], [7, 2], [1, 1]])
  batches = pipeline.segment_batches(tracks, where, seconds=1.0, batch=2)
  read = list(pipeline.iterate(batches, workers=0))
  assert [len(batch) for batch in read] == [2, 2, 1]
  for (track, start), segment in zip(where, np.concatenate(read), strict=True):
    expected = tracks.read(track, start * BLOCK, 16_000)
    np.testing.assert_array_equal(segment, expected)
