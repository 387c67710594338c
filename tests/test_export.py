"""An exported encoder, by its command, with a network of the real shape."""

import json

import numpy as np
import pytest
import tiny
from jax import export as jax_export

import ssl_music
from ssl_music import export, train
from ssl_music.errors import InputError


@pytest.fixture(scope="module")
def exported(data_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp("export")
  config = tiny.pretraining(data_dir, total_steps=2, warmup_steps=0)
  train.train(config, folder / "run")
  export.main([str(folder / "run"), f"--out={folder / 'out'}"])
  return folder


def test_every_artefact_embeds_like_the_run(exported):
  track = tiny.waveform(tiny.tracks()[0])
  encoder = ssl_music.load(exported / "run")
  vectors = encoder.embed(track, tiny.RATE)
  again = ssl_music.load(exported / "out").embed(track, tiny.RATE)
  np.testing.assert_allclose(again, vectors, rtol=1e-4, atol=1e-4)
  published = exported / "out" / "encoder_published.safetensors"
  assert published.stat().st_size > 0
  cut = encoder.cut(track, tiny.RATE)
  segments = cut.pcm[cut.starts[:, None] + np.arange(tiny.RATE)]
  program = (exported / "out" / "encoder.stablehlo").read_bytes()
  call = jax_export.deserialize(bytearray(program)).call
  for count in (1, len(segments)):
    found = call(segments[:count].astype(np.float32) / 32767)
    np.testing.assert_allclose(found, vectors[:count], rtol=1e-3, atol=1e-3)


def test_it_says_what_it_is_and_that_it_was_checked(exported):
  card = (exported / "out" / "README.md").read_text()
  assert "Missing" in card  # no licence was given
  assert "contrastive" in card
  json.loads((exported / "out" / "verify.json").read_text())


def test_what_is_there_is_not_overwritten(exported):
  with pytest.raises(InputError, match="out"):
    export.main([str(exported / "run"), f"--out={exported / 'out'}"])
