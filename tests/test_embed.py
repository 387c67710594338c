"""`python -m ssl_music.embed`, as a person runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
import soundfile
import tiny

import ssl_music
from ssl_music import embed, vectors
from ssl_music.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def encoder(data_dir, tmp_path_factory):
  """The workdir of a pre-training that has not learnt."""
  folder = tmp_path_factory.mktemp("encoder")
  with small.backbone():
    small.pretrained(data_dir, folder)
    yield folder


@pytest.fixture
def music(tmp_path):
  """A folder with six tracks in two folders, one in stereo, and odd files."""
  folder = tmp_path / "music"
  (folder / "inner").mkdir(parents=True)
  for index, track in enumerate(tiny.tracks()[:6]):
    wave = tiny.waveform(track)
    wave = np.stack([wave, wave], axis=1) if index == 2 else wave
    name = f"{'inner/' if index % 2 else ''}t{index}.flac"
    soundfile.write(folder / name, wave, tiny.RATE)
  (folder / "empty.wav").touch()
  (folder / "short.wav").write_bytes(b"RIFF")
  return folder


def run(encoder, music, out, *more):
  arguments = [str(music), f"--encoder={encoder}", f"--out={out}"]
  return embed.main([*arguments, "--processes=0", *more])


def test_every_file_has_the_vectors_that_it_has_alone(
  encoder, music, tmp_path, capsys
):
  assert run(encoder, music, tmp_path / "out") == 1  # two have failed
  said = capsys.readouterr().out
  assert "6 files embedded" in said
  assert "empty.wav: the file is empty" in said
  paths, means, about = vectors.read_tracks(tmp_path / "out")
  assert len(paths) == 6
  loaded = ssl_music.load(encoder)
  assert about["dimensions"] == loaded.dimensions
  for path, mean in zip(paths, means, strict=True):
    alone = loaded.embed(path, mean=True)
    np.testing.assert_allclose(mean, alone, rtol=1e-5, atol=1e-5)


def test_only_what_is_new_or_changed_is_embedded(
  encoder, music, tmp_path, capsys
):
  run(encoder, music, tmp_path / "out")
  before = dict(zip(*vectors.read_tracks(tmp_path / "out")[:2], strict=True))
  capsys.readouterr()
  soundfile.write(music / "t0.flac", tiny.waveform(tiny.tracks()[9]), tiny.RATE)
  soundfile.write(music / "t9.flac", tiny.waveform(tiny.tracks()[8]), tiny.RATE)
  run(encoder, music, tmp_path / "out")
  assert "2 files embedded" in capsys.readouterr().out
  after = dict(zip(*vectors.read_tracks(tmp_path / "out")[:2], strict=True))
  assert len(after) == 7
  changed = str(music / "t0.flac")
  assert not np.allclose(after[changed], before[changed])
  for path in before.keys() - {changed}:
    np.testing.assert_array_equal(after[path], before[path])


def test_shards_together_are_the_whole(encoder, music, tmp_path):
  run(encoder, music, tmp_path / "whole")
  for shard in ("1/2", "2/2"):
    run(encoder, music, tmp_path / "out", f"--shard={shard}")
  run(encoder, music, tmp_path / "out")
  whole = vectors.read_tracks(tmp_path / "whole")
  found = vectors.read_tracks(tmp_path / "out")
  order = np.argsort(found[0])
  assert [found[0][place] for place in order] == sorted(whole[0])
  np.testing.assert_allclose(
    found[1][order], whole[1][np.argsort(whole[0])], rtol=1e-5, atol=1e-5
  )


def test_another_encoder_or_hop_is_refused(encoder, music, tmp_path):
  run(encoder, music, tmp_path / "out")
  with pytest.raises(InputError, match="hop"):
    run(encoder, music, tmp_path / "out", "--hop=0.5")
  about = tmp_path / "out" / "embeddings.json"
  said = json.loads(about.read_text())
  about.write_text(json.dumps(said | {"format_version": 99}))
  with pytest.raises(InputError, match="format 99"):
    run(encoder, music, tmp_path / "out")


def test_as_a_command_bad_input_is_one_sentence(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "ssl_music.embed", str(tmp_path)),
      *("--encoder=/absent", f"--out={tmp_path / 'out'}"),
    ],
    cwd=ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.count("error: ") == 1
  assert "Traceback" not in done.stderr
