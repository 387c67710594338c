"""An encoder that is taken away: by the command, and what is refused."""

import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import fake_runs
import numpy as np
import pytest
import small
import tiny

import ssl_music
from ssl_music import (
  bundle,
  export,
  features,
  model_card,
  provenance,
  tagger,
  verify_export,
  weights,
)
from ssl_music.data import audio
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError
from ssl_music.models import safetensors_file

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "ssl_music.export"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """Of a plain machine, whose processes share what they compile."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(
      "JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled"))
    )
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    yield {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def head(aggregation="embeddings", hidden=()):
  """A tag head of two seeds for tiny's encoder."""
  rng = np.random.default_rng(3)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  sizes = (16, *hidden, len(tiny.TAGS))
  layers = [
    {"kernel": draw(2, inner, outer), "bias": draw(2, outer)}
    for inner, outer in itertools.pairwise(sizes)
  ]
  return {
    "tags": tiny.TAGS,
    "aggregation": aggregation,
    "sounding": False,
    "mean": draw(16),
    "inverse": np.abs(draw(16)),
    "layers": layers,
  }


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
  """A pre-training that has not learnt; beside it a probe with a head."""
  folder = tmp_path_factory.mktemp("runs")
  (folder / "pretrained").mkdir()
  small.pretrained(data_dir, folder / "pretrained")
  tracks = Tracks("tiny", ("train", "unlabelled"), data_dir)
  change(
    folder / "pretrained" / "config.json",
    lambda config: config["data"].update(fingerprint=tracks.fingerprint()),
  )
  config = tiny.probing(data_dir, encoder=str(folder / "pretrained"))
  fake_runs.probe(folder / "probe", "contrastive", data="tiny")
  text = json.dumps(config.to_dict())
  (folder / "probe" / "config.json").write_text(text)
  tagger.save(folder / "probe", head())
  encoder = {"encoder": str(folder / "pretrained"), "step": 7}
  change(folder / "probe" / "scores.json", lambda s: s.update(encoder))
  return folder


def change(file, how):
  content = json.loads(file.read_text())
  how(content)
  file.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def exported(environment, runs):
  """What the command makes of the probe: the encoder and its head."""
  out = runs / "exports" / "tiny"
  done = subprocess.run(
    [*COMMAND, runs / "probe", f"--out={out}", "--license=CC0-1.0"],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert re.search(
    r"encoder\.stablehlo: .*difference \d\.\de-\d\d", done.stdout
  )
  return out


def verify(folder, environment):
  """Runs the script of an export, where no package of ours can be found."""
  done = subprocess.run(
    [sys.executable, "-I", folder / "verify.py"],
    env=environment,
    capture_output=True,
    text=True,
  )
  return done.returncode, json.loads(done.stdout)


def test_the_command_leaves_a_whole_bundle(exported, runs):
  assert sorted(path.name for path in exported.iterdir()) == [
    "README.md",
    "config.json",
    "encoder.safetensors",
    "encoder.stablehlo",
    "encoder_published.safetensors",
    "head.npz",
    "seal.json",
    "verify.json",
    "verify.npz",
    "verify.py",
  ]
  assert [path.name for path in exported.parent.iterdir()] == ["tiny"]
  found = json.loads((exported / "verify.json").read_text())
  for name in ("encoder.safetensors", "encoder_published.safetensors"):
    assert found["found"][name] == 0
  for name in ("encoder.stablehlo", "head.npz"):
    assert 0 <= found["found"][name] <= found["allowed"][name] == 1e-4
  assert "/" not in json.dumps(
    json.loads((exported / "config.json").read_text())
  )
  assert str(runs) not in (exported / "README.md").read_text()


def test_an_export_is_loaded_and_probed_like_its_source(
  exported, runs, data_dir
):
  track = tiny.waveform(tiny.tracks()[0])
  there, here = ssl_music.load(runs / "probe"), ssl_music.load(exported)
  assert here.identity == there.identity
  np.testing.assert_array_equal(
    here.embed(track, tiny.RATE), there.embed(track, tiny.RATE)
  )
  assert here.tag(track, tiny.RATE) == there.tag(track, tiny.RATE)
  assert here.described == {
    "encoder": str(exported),
    "step": 7,
    "network": "student",
    "pretext": "contrastive",
    "seed": 5,
    "recipe": there.described["recipe"],
  }
  config = tiny.probing(data_dir, encoder=str(exported))
  tracks = Tracks("tiny", ("train",), data_dir)
  assert features.load_encoder(config, tracks).identity == here.identity


def test_an_exported_teacher_answers_to_its_name(exported, tmp_path):
  with pytest.raises(InputError, match="there is no teacher in an export"):
    ssl_music.load(exported, network="teacher")
  folder = tmp_path / "teacher"
  shutil.copytree(exported, folder)
  change(
    folder / "config.json", lambda c: c["source"].update(network="teacher")
  )
  (folder / "seal.json").unlink()
  for network in ("student", "teacher"):
    assert ssl_music.load(folder, network=network).described["network"] == (
      "teacher"
    )


def test_anybody_can_check_it_again(exported, environment, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(exported, copy)
  with (copy / "encoder_published.safetensors").open("r+b") as file:
    file.seek(-3, os.SEEK_END)
    byte = file.read(1)
    file.seek(-3, os.SEEK_END)
    file.write(bytes([byte[0] ^ 1]))
  shutil.copy(exported / "encoder.stablehlo", copy)
  code, report = verify(copy, environment)
  assert (code, report["passed"], report["present"]) == (1, False, [])
  names = ("input", "encoder.safetensors", "encoder_published.safetensors")
  assert [report[name] for name in names] == ["same", "same", "differs"]
  assert report["encoder.stablehlo"] <= 1e-4


def test_the_card_says_what_is_known(exported, runs, data_dir):
  card = (exported / "README.md").read_text()
  assert "## Licence\n\nCC0-1.0\n" in card
  (training,) = json.loads((exported / "config.json").read_text())["trainings"]
  tracks = Tracks("tiny", ("train", "unlabelled"), data_dir)
  hours = tracks.samples.sum() / audio.SAMPLE_RATE / 3600
  assert training["data"][0]["hours"] == pytest.approx(hours)
  assert (training["task"], training["steps"]) == ("contrastive", 7)
  assert f"tiny (train, unlabelled): 24 tracks, {hours:.1f} hours" in card
  scores = json.loads((runs / "probe" / "scores.json").read_text())
  low, high = scores["interval"]["map_macro"]
  value = scores["test"]["map_macro"]
  assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in card
  assert f"tiny ({scores['fingerprint']})" in card
  for tag in tiny.TAGS:
    assert f"`{tag}`" in card


def test_without_a_licence_the_card_says_so(exported):
  config = json.loads((exported / "config.json").read_text())
  checked = json.loads((exported / "verify.json").read_text())
  about = config | {"settings": config, "parameters": 1, "files": {}}
  about |= {"license": "", "checked": checked}
  assert "## Licence\n\n**Missing.**" in model_card.text(about)
  about["trainings"][0]["data"][0]["hours"] = None  # the data set is gone
  assert "tiny (train, unlabelled): size not known" in model_card.text(about)


def test_the_scores_on_a_card_are_the_encoders(runs):
  source = runs / "pretrained"
  described = {"encoder": str(source), "step": 7, "network": "student"}
  (found,) = provenance.scores(source, described, [])  # beside it
  assert found["name"] == "contrastive"
  assert provenance.scores(source, described, [runs / "probe"]) == [found]
  for other in ({"step": 1}, {"network": "teacher"}, {"encoder": "else"}):
    assert provenance.scores(source, described | other, []) == []
    with pytest.raises(InputError, match=r"are of .*step 7.*, not of"):
      provenance.scores(source, described | other, [runs / "probe"])
  with pytest.raises(InputError, match="no scores in"):
    provenance.scores(source, described, [runs])


def test_the_input_is_what_the_rule_says():
  """The rule once more, in Python's whole numbers."""

  def mix(n):
    n = (n ^ n >> 16) * 0x85EBCA6B % 2**32
    n = (n ^ n >> 13) * 0xC2B2AE35 % 2**32
    return n ^ n >> 16

  wave = lambda p: 2 * abs(p % 65536 - 32768) - 32768
  noise = lambda n: mix(n) // 65536 - 32768
  size = 16000
  rules = [
    lambda n: noise(n) // 8,
    lambda n: (
      sum(wave(step * n) // 4 for step in (1802, 2252, 2700))
      if n < 3 * size // 4
      else 0
    ),
    lambda n: (
      wave((900 + 211 * ((n // 4000) ** 2 % 13)) * n)
      * (4000 - n % 4000)
      // 8000
    ),
    lambda n: wave(n * n // 8) * (size - n) // size,
    lambda n: wave(300 * n) + 3 * noise(n),
    lambda n: mix(n) % 3 - 1,
    lambda n: 0,
    lambda n: 32767 if n == size // 2 else 0,
  ]
  made = verify_export.pcm(size)
  places = [0, 1, 2, 3999, 4000, 4001, 8000, 8001, 11999, 12000, 15999]
  for segment, rule in zip(made, rules, strict=True):
    clipped = [min(max(rule(n), -32767), 32767) for n in places]
    assert segment[places].tolist() == clipped
  loudness = np.abs(verify_export.waveform(size)).mean(axis=1)
  assert loudness[4] > 0.7  # it is clipped
  assert 0 == loudness[6] < loudness[5] < loudness[7] < 1e-4


@pytest.mark.parametrize("aggregation", tagger.AGGREGATIONS)
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_tags_without_this_package(aggregation, hidden, tmp_path):
  made = head(aggregation, hidden)
  tagger.save(tmp_path, made)
  vectors = np.random.default_rng(0).standard_normal((7, 16))
  with np.load(tmp_path / "head.npz") as arrays:
    found = verify_export.tag(dict(arrays), vectors)
  assert list(found) == tiny.TAGS
  np.testing.assert_allclose(
    list(found.values()), tagger.apply(made, vectors), rtol=1e-5
  )


def left(folder):
  return sorted(path.name for path in folder.iterdir())


def test_another_program_than_the_encoders_is_not_kept(
  environment, runs, tmp_path, monkeypatch
):
  make = bundle.program

  def other(settings, variables):
    changed = json.loads(json.dumps(settings))
    changed["frontend"]["top_db"] = 60.0
    return make(changed, variables)

  monkeypatch.setattr(bundle, "program", other)
  with pytest.raises(InputError, match=r"is not the encoder .*encoder\.stable"):
    export.export(runs / "pretrained", tmp_path / "out")
  assert left(tmp_path) == []


def test_bfloat16_may_differ_by_its_roundings(environment, runs, tmp_path):
  source = tmp_path / "run"
  shutil.copytree(runs / "pretrained", source)
  change(source / "config.json", lambda c: c["model"].update(dtype="bfloat16"))
  made = export.export(source, tmp_path / "out")["checked"]
  limit = made["allowed"]["encoder.stablehlo"]
  assert 1e-3 < limit < 0.2
  assert made["found"]["encoder.stablehlo"] <= limit
  assert made["found"]["encoder.safetensors"] == 0


@pytest.mark.parametrize("limit", [10_000, 60_000])
def test_a_full_disk_leaves_nothing(environment, runs, tmp_path, limit):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
  try:
    with pytest.raises(InputError, match=r"cannot write .*out \(.*too large"):
      export.export(runs / "pretrained", tmp_path / "out")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert left(tmp_path) == []


def rewrite(exported, folder, how):
  """An export whose weights were changed by `how`(arrays)."""
  shutil.copytree(exported, folder)
  (folder / "seal.json").unlink()
  arrays, config = safetensors_file.read(folder / weights.EXPORTED)
  how(arrays)
  safetensors_file.write(folder / weights.EXPORTED, arrays, config)
  return folder


def test_what_cannot_be_exported(exported, runs, tmp_path, monkeypatch):
  out = tmp_path / "out"
  with pytest.raises(InputError, match=r"exists: give a new folder as --out"):
    export.export(runs / "pretrained", exported)
  with pytest.raises(InputError, match="no encoder"):
    export.export(tmp_path / "absent", out)
  with pytest.raises(InputError, match="has no teacher"):
    export.export(runs / "pretrained", out, network="teacher")
  with pytest.raises(InputError, match="no checkpoint '5'"):
    export.export(runs / "pretrained", out, checkpoint="5")
  with pytest.raises(InputError, match=r"a checkpoint \(best\) is chosen of a"):
    export.export(runs / "probe", out, checkpoint="best")
  for source, choice in (
    (runs / "probe", {"network": "teacher"}),
    (exported, {"checkpoint": "best"}),
    (exported / weights.EXPORTED, {"checkpoint": 5}),
  ):
    with pytest.raises(InputError, match="or give the pre-training"):
      ssl_music.load(source, **choice)
  bare = tmp_path / "bare"
  shutil.copytree(runs / "pretrained" / "checkpoints", bare / "checkpoints")
  with pytest.raises(InputError, match=r"it has no config\.json"):
    export.export(bare, out)
  lost = rewrite(
    exported, tmp_path / "lost", lambda a: a.pop("params/stem/conv1/kernel")
  )
  with pytest.raises(InputError, match="missing params/stem/conv1/kernel"):
    export.export(lost, out)
  ill = rewrite(
    exported, tmp_path / "ill", lambda a: a["params/stem/bn1/bias"].fill(1e38)
  )
  with pytest.raises(InputError, match="no finite number"):
    export.export(ill, out)
  monkeypatch.setattr(safetensors_file, "FORMAT", 2)
  newer = rewrite(exported, tmp_path / "newer", lambda a: None)
  monkeypatch.undo()
  with pytest.raises(InputError, match=r"of format 2 .* install a newer"):
    export.export(newer, out)
  assert left(tmp_path) == ["bare", "ill", "lost", "newer"]
