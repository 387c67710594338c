"""A trained encoder, as a person uses it from Python."""

import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import small
import soundfile
import tiny

import ssl_music
from ssl_music import checkpoint, probe, tagger
from ssl_music.data import audio
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

RATE = tiny.RATE


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
  """A pre-training that has not learnt, and a probe of it."""
  folder = tmp_path_factory.mktemp("runs")
  (folder / "pretrained").mkdir()
  with small.backbone():
    small.pretrained(data_dir, folder / "pretrained")
    config = tiny.probing(data_dir, encoder=str(folder / "pretrained"))
    probe.probe(config, folder / "probe")
    yield folder


@pytest.fixture(scope="module")
def encoder(runs):
  return ssl_music.load(runs / "probe")


@pytest.fixture(scope="module")
def track():
  return tiny.waveform(tiny.tracks()[0])


def test_vectors_do_not_depend_on_the_batch(encoder, track):
  vectors = encoder.embed(track, RATE)
  assert vectors.shape == (len(track) // RATE, encoder.dimensions)
  cut = encoder.cut(track, RATE)
  samples = np.arange(RATE)
  for start, vector in zip(cut.starts, vectors, strict=True):
    alone = encoder.embed_segments(cut.pcm[None, start + samples])[0]
    np.testing.assert_allclose(alone, vector, rtol=1e-5, atol=1e-5)
  many = np.tile(cut.pcm[cut.starts[:, None] + samples], (40, 1))
  again = encoder.embed_segments(many)[-len(vectors) :]
  np.testing.assert_allclose(again, vectors, rtol=1e-5, atol=1e-5)


def test_a_file_an_array_and_its_stereo_are_alike(encoder, track, tmp_path):
  vectors = encoder.embed(track, RATE)
  pcm = np.int16(np.rint(track * 32768))
  soundfile.write(tmp_path / "a.wav", pcm, RATE)
  of_file = encoder.embed(tmp_path / "a.wav")
  np.testing.assert_allclose(
    of_file, encoder.embed(pcm, RATE), rtol=1e-4, atol=1e-4
  )
  np.testing.assert_allclose(of_file, vectors, rtol=0.05, atol=0.05)
  stereo = np.stack([track, track], axis=1)
  np.testing.assert_allclose(
    encoder.embed(stereo, RATE), vectors, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(
    encoder.embed(0.3 * track, RATE), vectors, rtol=0.05, atol=0.05
  )


def test_arrays_of_every_kind_are_alike(encoder, track):
  pcm = np.int16(np.rint(0.9 * track * 32768))
  wanted = encoder.cut(pcm, RATE).pcm
  stereo = np.stack([pcm, pcm])
  for same in (
    pcm.tolist(),
    pcm.astype(np.int64),
    pcm.astype(np.int32) << 16,
    pcm.astype(np.int64) << 16,
    pcm / 32768,
    stereo,
    stereo.T,
    stereo.tolist(),
    tuple(stereo),
    pcm[None],
    pcm[:, None],
  ):
    np.testing.assert_array_equal(encoder.cut(same, RATE).pcm, wanted)
  np.testing.assert_array_equal(encoder.cut(pcm, float(RATE)).pcm, wanted)
  coarse = np.uint8(np.rint(0.9 * track * 127) + 128)
  found = encoder.cut(coarse, RATE).pcm.astype(int)
  assert np.abs(found - wanted).max() < 700


def test_a_tracks_mean_is_what_the_probe_had(runs, data_dir, encoder):
  """The embedding cache holds the probe's own, of the same audio."""
  (file,) = (runs / "probe" / "embeddings").glob("tiny-test-*.npy")
  cached = np.load(file).astype(np.float32)
  tracks = Tracks("tiny", ("test",), data_dir)
  rows = {row["id"]: row for row in tiny.tracks()}
  wave = tiny.waveform(rows[tracks.ids[0]])
  cut = encoder.cut(wave, RATE)
  assert cut.sounding.all()
  count = len(cut.sounding)
  mean = encoder.embed(wave, RATE, mean=True)
  np.testing.assert_allclose(cached[:count].mean(0), mean, rtol=0.01, atol=0.01)
  assert encoder.embed(wave, RATE).shape[0] == count


def test_the_hop_is_from_start_to_start(encoder, track):
  whole = encoder.embed(track, RATE)
  half = encoder.embed(track, RATE, hop=0.5)
  assert len(half) == 2 * len(whole) - 1 or len(half) == 2 * len(whole)
  np.testing.assert_allclose(
    half[::2][: len(whole)], whole, rtol=1e-5, atol=1e-5
  )


def test_tags_are_the_probes(runs, data_dir, encoder):
  scored = np.load(runs / "probe" / "predictions.npz")
  rows = {row["id"]: row for row in tiny.tracks()}
  for place in range(3):
    found = encoder.tag(tiny.waveform(rows[str(scored["ids"][place])]), RATE)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    odds = 1 / (1 + np.exp(-scored["logits"][:, place]))
    wanted = dict(zip(map(str, scored["tags"]), odds.mean(0), strict=True))
    assert found.keys() == wanted.keys()
    for tag, value in found.items():
      assert value == pytest.approx(wanted[tag], abs=0.01)


def test_a_head_says_which_segments_of_a_track_are_tagged(runs):
  encoder = ssl_music.load(runs / "probe")
  track = tiny.waveform(tiny.tracks()[0])
  track[RATE : 3 * RATE] *= 1e-3
  cut = encoder.cut(track, RATE)
  assert cut.sounding.sum() == len(cut.sounding) - 2
  vectors = encoder.embed_cut(cut)
  found = []
  for sounding in (False, True):
    encoder.head["sounding"] = sounding
    some = vectors[cut.sounding] if sounding else vectors
    expected = tagger.apply(encoder.head, some)
    found.append(encoder.tag(track, RATE))
    assert list(found[-1].values()) == sorted(map(float, expected))[::-1]
  assert found[0] != found[1]


def test_a_head_meets_the_weights_that_it_was_trained_on(runs, data_dir):
  head = ssl_music.load(runs / "probe")
  other = jax.tree.map(lambda x: np.asarray(1.5 * x), small.state(data_dir))
  with checkpoint.open_run(runs / "pretrained") as saved:
    checkpoint.save(saved, 9, other, {"loss": 2.0})  # training goes on
  latest = ssl_music.load(runs / "pretrained")
  assert latest.described["step"] == 9 and latest.identity != head.identity
  assert ssl_music.load(runs / "probe").identity == head.identity
  shutil.rmtree(runs / "pretrained" / "checkpoints" / "7")
  with pytest.raises(
    InputError, match=r"the probe in .* cannot be used: no .* 7 in"
  ):
    ssl_music.load(runs / "probe")


def test_a_long_track_has_nowhere_to_wait(encoder, tmp_path, monkeypatch):
  soundfile.write(tmp_path / "a.wav", tiny.waveform(tiny.tracks()[0]), RATE)
  monkeypatch.setattr(audio, "HELD", RATE)
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
  with pytest.raises(InputError, match="cannot write temporary files to"):
    encoder.embed(tmp_path / "a.wav")


def test_an_encoder_without_a_head_cannot_tag(runs, track):
  with pytest.raises(InputError, match="no head to tag with"):
    ssl_music.load(runs / "pretrained").tag(track, RATE)


@pytest.mark.parametrize(
  ("source", "rate", "message"),
  [
    (np.zeros(RATE * 3, np.float32), RATE, "silent"),
    (np.ones(RATE * 3, np.float32), RATE, "silent"),
    (np.arange(100, dtype=np.float32), RATE, "too short"),
    (np.full(RATE * 2, np.nan, np.float32), RATE, "not finite"),
    (np.full(RATE * 2, 1e300), RATE, "not finite"),
    (np.ones(RATE * 2, np.float32), None, "needs its sample rate"),
    (np.ones(RATE * 2, np.float32), 0, "0 is no sample rate"),
    (np.ones(RATE * 2, np.float32), -RATE, "is no sample rate"),
    (np.ones(RATE * 2, np.float32), np.nan, "nan is no sample rate"),
    (np.ones(RATE * 2, np.float32), "8000", "'8000' is no sample rate"),
    (np.ones((2, 2, 2), np.float32), RATE, "is no track"),
    (np.ones((0, 2), np.float32), RATE, "is no track"),
    ([], RATE, "is no track"),
    (np.float32(1), RATE, "is no track"),
    (np.ones(RATE * 2, bool), RATE, "an array of bool is no track"),
    (np.ones(RATE * 2, np.complex64), RATE, "complex64 is no track"),
    (np.ones(RATE * 2, object), RATE, "an array of object is no track"),
    (np.ones(RATE * 2, np.uint16), RATE, "an array of uint16 is no track"),
    ([[0.1, 0.2], [0.3]], RATE, "this list is no track"),
    (["a.wav", "b.wav"], RATE, "is no track"),
    (None, RATE, "is no track"),
    (np.array([[1.0], [-1.0]]) * np.sin(np.arange(9_000)), RATE, "cancel out"),
    ("/absent.wav", None, "cannot embed /absent.wav"),
  ],
)
def test_what_cannot_be_embedded(encoder, source, rate, message):
  with pytest.raises(InputError, match=message):
    encoder.embed(source, rate)


def test_what_is_no_encoder(tmp_path, runs):
  with pytest.raises(InputError, match="no encoder"):
    ssl_music.load(tmp_path / "absent")
  with pytest.raises(InputError, match="no run in"):
    ssl_music.load(tmp_path)
  config = json.loads((runs / "probe" / "config.json").read_text())
  for changed, message in (
    ({"encoder": "random"}, "is of the floor"),
    ({"encoder": "/gone"}, "which is not there"),
    ({"job": "benchmark"}, "a run without an encoder"),
  ):
    Path(tmp_path / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(InputError, match=message):
      ssl_music.load(tmp_path)
