"""`python -m ssl_music.tag`, as a person runs it."""

import csv
import io
import json

import numpy as np
import pytest
import small
import soundfile
import tiny

import ssl_music
from ssl_music import tag, tagger
from ssl_music.errors import InputError


@pytest.fixture(scope="module")
def probe(data_dir, tmp_path_factory):
  """The workdir of a probe whose head has not learnt."""
  folder = tmp_path_factory.mktemp("probe")
  (folder / "encoder").mkdir()
  rng = np.random.default_rng(0)
  with small.backbone():
    small.pretrained(data_dir, folder / "encoder")
    config = tiny.probing(data_dir, encoder=str(folder / "encoder"))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    kernel = rng.standard_normal((2, 16, 4)).astype(np.float32)
    head = {
      "tags": ["a", "b, c", "genre---ü", "low"],
      "aggregation": "logits",
      "sounding": False,
      "mean": np.zeros(16, np.float32),
      "inverse": np.ones(16, np.float32),
      "layers": [{"kernel": kernel, "bias": np.zeros((2, 4), np.float32)}],
    }
    tagger.save(folder, head)
    scores = json.dumps({"step": 7, "missing": {}})
    (folder / "scores.json").write_text(scores)
    yield folder


@pytest.fixture
def music(tmp_path):
  """Two tracks and a broken one."""
  folder = tmp_path / "music"
  folder.mkdir()
  for index, name in enumerate(("a, b.flac", "ü.wav")):
    wave = tiny.waveform(tiny.tracks()[index])
    soundfile.write(folder / name, wave, tiny.RATE)
  (folder / "z.mp3").write_bytes(b"no audio")
  return folder


def test_tags_are_those_of_each_file_alone(probe, music, tmp_path, capsys):
  out = tmp_path / "tags.jsonl"
  arguments = [str(music), f"--encoder={probe}", "--format=json"]
  assert tag.main([*arguments, f"--out={out}"]) == 1
  said = capsys.readouterr()
  assert said.out == ""
  assert "2 files tagged, 1 failed" in said.err
  assert f"failed {music / 'z.mp3'}: is a text file" in said.err
  encoder = ssl_music.load(probe)
  lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
  assert [line["path"] for line in lines] == [
    str(music / "a, b.flac"),
    str(music / "ü.wav"),
  ]
  for line in lines:
    alone = encoder.tag(line["path"])
    assert list(line["tags"]) == list(alone)
    assert line["tags"] == pytest.approx(alone, abs=1e-5)
  assert not list(tmp_path.glob("*.partial"))


def test_a_table_and_csv_hold_the_likeliest(probe, music, capsys):
  file = str(music / "a, b.flac")
  expected = list(ssl_music.load(probe).tag(file).items())[:2]
  arguments = [file, f"--encoder={probe}", "--top=2"]
  assert tag.main(arguments) == 0
  head, *rows = capsys.readouterr().out.splitlines()
  assert head == file
  assert rows == [f"  {value:.3f}  {name}" for name, value in expected]
  assert tag.main([*arguments, "--format=csv"]) == 0
  rows = list(csv.reader(capsys.readouterr().out.splitlines()))
  assert rows[0] == ["path", "tag", "probability"]
  assert rows[1:] == [[file, name, f"{value:.6f}"] for name, value in expected]


def test_long_tracks_wait_in_a_file(probe, music, monkeypatch):
  from ssl_music.data import audio

  file = str(music / "ü.wav")
  encoder = ssl_music.load(probe)
  (expected,) = tag.tag_files(encoder, [file])
  monkeypatch.setattr(audio, "HELD", 1000)
  (found,) = tag.tag_files(encoder, [file])
  assert found == expected


def test_wrong_input_is_one_sentence(probe, music, tmp_path):
  run = lambda *arguments: tag.main([str(music), *map(str, arguments)])
  with pytest.raises(InputError, match="no head to tag with: give the workdir"):
    run(f"--encoder={probe / 'encoder'}")
  with pytest.raises(InputError, match="no encoder"):
    run("--encoder=/absent")
  with pytest.raises(InputError, match="cannot write"):
    run(f"--encoder={probe}", f"--out={tmp_path / 'absent' / 'tags'}")
  with pytest.raises(InputError, match="no file or folder"):
    tag.main(["/absent.wav", f"--encoder={probe}"])


def test_names_control_neither_terminal_nor_spreadsheet():
  for form, said in (
    ("table", "a\\u001b[2J.mp3\n  0.500  =1+1\n"),
    ("csv", "path,tag,probability\na\x1b[2J.mp3,'=1+1,0.500000\n"),
  ):
    file = io.StringIO()
    tag.FORMATS[form](file)("a\x1b[2J.mp3", {"=1+1": 0.5})
    assert file.getvalue() == said
