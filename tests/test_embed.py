"""Files embedded into a folder of vectors, by function and by command."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small
import soundfile
import tiny

import ssl_music
from ssl_music import embed, embed_files, lock, vector_parts, vectors
from ssl_music.data import audio, cuts
from ssl_music.data.segments import BLOCK
from ssl_music.errors import InputError

RATE = tiny.RATE
GOOD = ["a.wav", "b/c.FLAC", "b/ü n.ogg", "d.wav"]
BAD = {"bad.mp3": "undecodable", "none.wav": "empty", "short.wav": "too short"}


@pytest.fixture(scope="module")
def encoder(data_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  with small.backbone(), small.one_device():
    small.pretrained(data_dir, folder)
    yield ssl_music.load(folder, batch=8)


@pytest.fixture
def music(tmp_path):
  folder = tmp_path / "music"
  (folder / "b").mkdir(parents=True)
  for name, row in zip(GOOD, tiny.tracks(), strict=False):
    soundfile.write(folder / name, tiny.waveform(row), RATE)
  (folder / "bad.mp3").write_bytes(bytes(range(256)) * 8)
  (folder / "none.wav").touch()
  soundfile.write(folder / "short.wav", np.linspace(-1, 1, RATE // 2), RATE)
  (folder / "notes.txt").write_text("no audio")
  return folder


@pytest.fixture
def out(tmp_path):
  return tmp_path / "out"


def run(encoder, music, out, **options):
  return embed_files.embed_files(
    encoder, embed_files.find([music]), out, **options
  )


def by_name(out, music):
  """{name: mean} of a folder's tracks."""
  paths, means, _ = vectors.read_tracks(out)
  names = [os.path.relpath(path, music) for path in paths]
  assert len(set(names)) == len(names)
  return dict(zip(names, means, strict=True))


def same(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", vectors.FORMATS)
def test_vectors_are_those_of_each_file_alone(encoder, music, out, kind):
  done = run(encoder, music, out, kind=kind, hop=0.5)
  assert (done.tracks, done.present, done.merged) == (4, 0, True)
  names = {
    os.path.relpath(path, music): why for path, why in done.failed.items()
  }
  assert names.keys() == BAD.keys()
  assert all(BAD[name] in why for name, why in names.items())
  means = by_name(out, music)
  assert list(means) == sorted(GOOD)
  seconds = 0
  for name, mean in means.items():
    same(mean, encoder.embed(music / name, hop=0.5, mean=True))
    seconds += soundfile.info(music / name).duration
  assert done.seconds == pytest.approx(seconds)
  rows = list(vectors.read(out))
  whole = [encoder.embed(music / name, hop=0.5) for name in sorted(GOOD)]
  same(np.concatenate([block.vector for block in rows]), np.concatenate(whole))
  assert sum(len(block.path) for block in rows) == done.segments
  assert rows[0].start[:3].tolist() == [0, 0.5, 1.0]
  said = vectors.read_about(out)
  assert said["identity"] == encoder.identity and said["hop"] == 0.5
  assert not [f for f in (out / "parts").iterdir() if f.suffix != ".lock"]


def test_long_tracks_wait_in_files(encoder, music, out, monkeypatch):
  run(encoder, music, out)
  monkeypatch.setattr(audio, "HELD", RATE)
  again = run(encoder, music, out.with_name("long"))
  assert again.tracks == 4
  expected, found = by_name(out, music), by_name(out.with_name("long"), music)
  for name in GOOD:
    np.testing.assert_array_equal(found[name], expected[name])
  assert not list((out.with_name("long") / "parts").glob("*.partial"))


def test_a_long_track_may_be_shorter_than_a_segment(tmp_path):
  wave = tiny.waveform(tiny.tracks()[0])
  soundfile.write(tmp_path / "a.wav", wave, RATE)
  blocks = len(wave) // BLOCK
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(audio, "HELD", RATE)
    decode = cuts.Decode(blocks + 1, 1, tmp_path, "pcm")
    assert "too short" in decode((0, str(tmp_path / "a.wav")))
    assert not list(tmp_path.glob("*.pcm"))
    decode = cuts.Decode(blocks, 1, tmp_path, "pcm")
    assert len(decode((0, str(tmp_path / "a.wav"))).starts) == 1


def test_again_only_what_is_new_or_changed(encoder, music, out):
  run(encoder, music, out)
  table = out / "embeddings.parquet"
  before, first = table.stat().st_mtime_ns, by_name(out, music)
  done = run(encoder, music, out)
  assert (done.tracks, done.present, len(done.failed)) == (0, 4, 3)
  assert table.stat().st_mtime_ns == before
  shutil.copy(music / "a.wav", music / "new.wav")
  shutil.copy(music / "d.wav", music / "b" / "c.FLAC")
  (music / "d.wav").write_bytes(b"RIFF")
  (music / "none.wav").unlink()
  (music / "bad.mp3").unlink()
  shutil.copy(music / "a.wav", music / "bad.mp3")
  (music / "a.wav").touch()
  done = run(encoder, music, out)
  assert (done.tracks, done.present, len(done.failed)) == (4, 1, 2)
  found = by_name(out, music)
  assert found.keys() == {*GOOD, "new.wav", "bad.mp3"} - {"d.wav"}
  same(found["b/c.FLAC"], first["d.wav"])
  same(found["new.wav"], first["a.wav"])
  failed = (out / "failed.csv").read_text()
  assert "d.wav" in failed and "bad.mp3" not in failed
  assert done.about["tracks"] == 5


def test_shards_together_are_the_whole(encoder, music, out):
  run(encoder, music, out)
  other = out.with_name("shards")
  advice = "give another --out"
  with lock.hold(other, "embedding into", advice, shared=True):
    for number in (1, 2, 3):  # beside others
      done = run(encoder, music, other, shard=(number, 3))
      assert not done.merged and done.present == 0
    with pytest.raises(InputError, match="another process is embedding into"):
      run(encoder, music, other)
    with (
      lock.hold(other / "parts", "", "", name=".2-of-3.lock"),
      pytest.raises(InputError, match="embedding as 2-of-3"),
    ):
      run(encoder, music, other, shard=(2, 3))
  assert not (other / "embeddings.parquet").exists()
  assert by_name(other, music).keys() == set(GOOD)
  done = run(encoder, music, other)
  assert (done.tracks, done.present, done.merged) == (0, 4, True)
  expected, found = by_name(out, music), by_name(other, music)
  for name in GOOD:
    same(found[name], expected[name])
  assert (other / "failed.csv").read_text() == (out / "failed.csv").read_text()


def test_only_vectors_of_a_kind_are_mixed(encoder, music, out, monkeypatch):
  run(encoder, music, out)
  with pytest.raises(InputError, match=r"every 1 s, not every 0\.5 s"):
    run(encoder, music, out, hop=0.5)
  with pytest.raises(InputError, match="does not fit the grid"):
    run(encoder, music, out.with_name("x"), hop=0.25)
  assert not out.with_name("x").exists()
  with (
    monkeypatch.context() as patch,
    pytest.raises(InputError, match="another"),
  ):
    patch.setattr(encoder, "identity", "0")
    run(encoder, music, out)
  about = vectors.read_about(out)
  (out / "seal.json").unlink()
  vector_parts.write_about(out, about | {"format_version": 9})
  with pytest.raises(InputError, match="format 9"):
    run(encoder, music, out)


def test_a_full_disk_loses_the_last_part_alone(
  encoder, music, out, monkeypatch
):
  monkeypatch.setattr(vector_parts, "_PART_SECONDS", 0)
  finish, parts = vector_parts._Part.finish, []

  def full(part, failed):
    if len(parts) >= 2:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    parts.append(part)
    finish(part, failed)

  monkeypatch.setattr(encoder, "batch", 2)
  with monkeypatch.context() as patch:
    patch.setattr(vector_parts._Part, "finish", full)
    with pytest.raises(InputError, match=r"No space left.*the same command"):
      run(encoder, music, out)
  kept = by_name(out, music)
  assert 0 < len(kept) < 4
  assert not list((out / "parts").glob("*.partial"))
  done = run(encoder, music, out)
  assert (done.tracks, done.present) == (4 - len(kept), len(kept))
  assert by_name(out, music).keys() == set(GOOD)


def test_an_encoder_that_fails_is_told(encoder, music, out, monkeypatch):
  monkeypatch.setattr(
    encoder, "start", lambda batch: np.full((len(batch), 16), np.nan, "f4")
  )
  with pytest.raises(InputError, match="not finite"):
    run(encoder, music, out)
  assert by_name(out, music) == {}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--shard=0/2"], "none of 1/N"),
    (["--shard=3/2"], "none of 1/N"),
    (["--batch=0"], "no number of 1 or more"),
    (["--hop=nan"], "no number of seconds"),
    (["--processes=x"], "no number of 0 or more"),
  ],
)
def test_wrong_options(arguments, message):
  with pytest.raises(InputError, match=message):
    embed.main(["m", "--encoder=e", "--out=o", *arguments])


def test_a_folder_whose_tables_were_removed_is_written_anew(
  encoder, music, out
):
  run(encoder, music, out)
  paths, found, _ = vectors.read_tracks(out)
  for file in out.glob("embeddings.*"):
    file.unlink()
  run(encoder, music, out)
  again, new, _ = vectors.read_tracks(out)
  assert again == paths
  np.testing.assert_array_equal(new, found)


def test_what_is_not_there(tmp_path, encoder, music):
  with pytest.raises(InputError, match="no file or folder"):
    embed_files.find([tmp_path / "absent"])
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="no audio under"):
    embed_files.find([tmp_path / "empty"])
  notes = str(music / "notes.txt")  # a file is taken whatever its name
  assert notes in embed_files.find([music, notes, music / "b", notes])
  with pytest.raises(InputError, match="cannot write to"):
    run(encoder, music, music / "notes.txt")


def test_as_a_command_bad_input_is_one_sentence(music, out):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "ssl_music.embed", str(music)),
      *("--encoder=/absent", f"--out={out}"),
    ],
    cwd=Path(__file__).parent.parent,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: no encoder /absent")
  assert "Traceback" not in done.stderr


# The command, with a small network and parts of few rows.
COMMAND = """
import sys
sys.path.insert(0, sys.argv[1])
import small
from ssl_music import embed, vector_parts
from ssl_music.errors import report
vector_parts._PART_SECONDS = 0
with small.backbone():
  report(lambda: embed.main(sys.argv[2:]))
"""


@pytest.fixture
def command(data_dir, tmp_path):
  (tmp_path / "run").mkdir()
  with small.backbone():
    small.pretrained(data_dir, tmp_path / "run")

  def start(music, out, *options):
    here = str(Path(__file__).parent)
    options = [f"--encoder={tmp_path / 'run'}", f"--out={out}", *options]
    return subprocess.Popen(
      [sys.executable, "-c", COMMAND, here, str(music), *options],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=os.environ | {"XLA_FLAGS": ""},
    )

  return start


def test_killed_or_stopped_it_goes_on(command, music, out):
  for copy in range(60):
    shutil.copy(music / "a.wav", music / f"z{copy:02}.wav")
  options = ["--batch=8", "--processes=1"]
  for stop, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
    process = command(music, out, *options)
    kept = len(vectors.part_files(out))
    while process.poll() is None and len(vectors.part_files(out)) < kept + 3:
      time.sleep(0.005)
    process.send_signal(stop)
    said = process.communicate()[1]
    assert process.returncode == code, said
  assert "the same command goes on" in said
  assert 4 < len(by_name(out, music)) < 64
  process = command(music, out, *options)
  said, error = process.communicate()
  assert process.returncode == 1, error  # as some files are bad
  assert "were there already, 3 failed" in said and "bad.mp3" in said
  whole = out.with_name("whole")
  assert command(music, whole, *options).wait() == 1
  expected, found = by_name(whole, music), by_name(out, music)
  assert list(found) == list(expected)
  for name, mean in expected.items():
    same(found[name], mean)
