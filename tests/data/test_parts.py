import os
import pickle

import numpy as np
import pytest
import tiny
from tensorflow_datasets.proto import tf_example_pb2

from ssl_music.data import audio, parts, ready, shards
from ssl_music.data.tracks import Tracks


def test_parts_hold_every_track_once_and_one_split_each():
  tracks = tiny.tracks()
  divided = parts.divide(tracks[::-1])
  assert [part["number"] for part in divided] == list(range(len(divided)))
  joined = [track for part in divided for track in part["tracks"]]
  assert sorted(t["id"] for t in joined) == [t["id"] for t in tracks]
  splits = [part["split"] for part in divided]
  assert list(dict.fromkeys(splits)) == ["train", "validation", "test"]
  assert splits == sorted(splits, key=splits.index)
  for part in divided:
    assert {track["split"] for track in part["tracks"]} == {part["split"]}
    own = [track["index"] for track in part["tracks"]]
    assert own == sorted(own, reverse=True)  # in the order they were given


@pytest.mark.parametrize("count", [1, 8, 9, 4096, 5000, 100_000])
def test_parts_are_few_enough_to_be_open_at_once(count):
  tracks = [{"split": "train", "id": str(n)} for n in range(count)]
  divided = parts.divide(tracks)
  assert sum(len(part["tracks"]) for part in divided) == count
  assert min(count, 64) / 8 <= len(divided) <= 128


def load(track):
  if track["index"] % 3 == 1:
    raise audio.AudioError("broken on purpose")
  return tiny.load(track)


def test_a_part_says_what_its_files_hold(tmp_path):
  tracks = tiny.tracks()[:6]
  tracks[3]["file"] = None
  part = {"number": 7, "split": "train", "tracks": tracks}
  write = pickle.loads(pickle.dumps(parts.Write(load, tiny.TAGS, 4, tmp_path)))
  done = write(part)
  assert done["skipped"] == [
    (1, "broken on purpose"),
    (3, parts.ABSENT),
    (4, "broken on purpose"),
  ]
  assert [row["track"] for row in done["rows"]] == [0, 2, 5]
  reader = shards.array_record_module.ArrayRecordReader(done["shard"].path)
  written = reader.read_all()
  assert done["shard"].records == len(written)
  assert done["shard"].bytes == sum(map(len, written))
  energy = np.fromfile(done["energy"], "<f4")
  for row in done["rows"]:
    track = tracks[row["track"]]
    pcm = audio.to_pcm(tiny.waveform(track))
    assert row["samples"] == len(pcm)
    chunks = -(-len(pcm) // shards.CHUNK)
    mine = written[row["row"] : row["row"] + chunks]
    read = []
    for chunk, record in enumerate(mine):
      about = tf_example_pb2.Example.FromString(record).features.feature
      read.append(np.frombuffer(about["audio"].bytes_list.value[0], "<i2"))
      assert about["id"].bytes_list.value[0].decode() == track["id"]
      assert about["chunk"].int64_list.value[0] == chunk
      tags = [tiny.TAGS[tag] for tag in about["tags"].int64_list.value]
      assert tags == track["tags"]
    np.testing.assert_array_equal(np.concatenate(read), pcm)
    expected = ready.block_energy(pcm)
    np.testing.assert_array_equal(energy[: len(expected)], expected)
    energy = energy[len(expected) :]
  assert not len(energy)


def crash(track):
  if track["index"] in (2, 17):
    os._exit(1)
  return tiny.load(track)


def test_a_track_that_crashes_its_process_is_skipped_alone(tmp_path):
  summary = tiny.write(tmp_path, load=crash, processes=2)
  reasons = {one["id"]: one["reason"] for one in summary["skipped"]}
  assert reasons == dict.fromkeys(["t02", "t17"], "crashed the decoder")
  whole = tmp_path / "whole"
  without = [t for t in tiny.tracks() if t["index"] not in (2, 17)]
  tiny.write(whole, rows=without)
  found, expected = (
    Tracks("tiny", ("train", "test"), folder) for folder in (tmp_path, whole)
  )
  assert found.ids == expected.ids
  for track in range(len(found)):
    length = int(found.samples[track])
    assert length == expected.samples[track]
    np.testing.assert_array_equal(
      found.read(track, 0, length), expected.read(track, 0, length)
    )
    np.testing.assert_array_equal(found.energy(track), expected.energy(track))


def test_a_part_ends_when_its_folder_is_gone(tmp_path):
  folder = tmp_path / "work"
  folder.mkdir()

  def remove(track):
    if track["index"] == 1:
      folder.rename(tmp_path / "gone")
    assert track["index"] < 3
    return tiny.load(track)

  part = {"number": 0, "split": "train", "tracks": tiny.tracks()[:8]}
  with pytest.raises(OSError, match="No such file"):
    parts.Write(remove, tiny.TAGS, 4, folder)(part)
