import pickle
import re

import numpy as np
import pytest
import tiny

from ssl_music.data import audio, ready
from ssl_music.data.segments import BLOCK


@pytest.mark.parametrize("held", [1_000, audio.HELD])
def test_long_and_short_tracks_are_made_ready_alike(
  tmp_path, monkeypatch, held
):
  monkeypatch.setattr(audio, "HELD", held)
  track = tiny.tracks()[0]
  make_ready = pickle.loads(pickle.dumps(ready.Ready(tiny.load, 4, tmp_path)))
  found = make_ready(track)
  assert isinstance(found["pcm"], np.memmap) == (held == 1_000)
  assert not list(tmp_path.iterdir())
  pcm = audio.to_pcm(tiny.waveform(track))
  np.testing.assert_array_equal(found["pcm"], pcm)
  blocks = pcm[: len(pcm) // BLOCK * BLOCK].reshape(-1, BLOCK).astype(float)
  np.testing.assert_allclose(found["energy"], (blocks**2).mean(1), rtol=1e-6)
  assert found["rms"] == pytest.approx(np.sqrt((blocks**2).mean()))


@pytest.mark.parametrize("held", [1_000, audio.HELD])
@pytest.mark.parametrize(
  ("load", "reason"),
  [
    (lambda _: [np.ones(32_000, np.float32)], r"too short \(2.0 s, under 4 s"),
    (lambda _: [np.zeros(320_000, np.float32)], "silent"),
    (lambda _: [], "holds no samples"),
  ],
)
def test_what_is_of_no_use_leaves_no_file(
  tmp_path, monkeypatch, held, load, reason
):
  monkeypatch.setattr(audio, "HELD", held)
  found = ready.Ready(load, 4, tmp_path)({})
  assert re.match(reason, found)
  assert not list(tmp_path.iterdir())


def test_what_has_no_block_is_too_short(tmp_path):
  load = lambda _: [np.ones(BLOCK - 1, np.float32)]
  assert ready.Ready(load, 0, tmp_path)({}).startswith("too short")


def test_energy_of_long_tracks_is_computed_in_parts(monkeypatch):
  pcm = np.random.default_rng(0).integers(-9_999, 9_999, 10 * BLOCK + 7)
  whole = ready.block_energy(pcm.astype(np.int16))
  monkeypatch.setattr(ready, "_SLAB", 3 * BLOCK)
  np.testing.assert_array_equal(ready.block_energy(pcm.astype(np.int16)), whole)
