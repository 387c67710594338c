import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ssl_music import embeddings, features, parallel
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

BATCH = 16
WIDTH = 64


@pytest.fixture(scope="module")
def mesh():
  return parallel.make_mesh()


@pytest.fixture(scope="module")
def mel(data_dir):
  return encoder(data_dir, encoder="mel")


@pytest.fixture(scope="module")
def plain():
  """An encoder that compiles in a moment."""

  def embed(waveform):
    pieces = waveform.reshape(len(waveform), WIDTH, -1)
    return pieces.astype(jnp.float32).mean(axis=-1)

  return features.Encoder(embed, 1.0, {"encoder": "plain"}, "plain")


def encoder(data_dir, **fields):
  config = tiny.probing(data_dir)
  config.update_from_flattened_dict(fields)
  return features.load_encoder(config, Tracks("tiny", ("train",), data_dir))


def parts(data_dir, seconds=1.0, splits=("train", "test"), most=3):
  found = {}
  for split in splits:
    tracks = Tracks("tiny", (split,), data_dir)
    found[split] = tracks, features.choose_segments(tracks, seconds, most)
  return found


def cached(frozen, wanted, folder, mesh):
  return embeddings.cached(
    frozen, wanted, folder=folder, batch=BATCH, mesh=mesh
  )


def counting(frozen, calls):
  """The encoder, which notes how many segments it embeds."""

  def embed(waveform):
    jax.debug.callback(lambda: calls.append(len(waveform)))
    return frozen.embed(waveform)

  return frozen._replace(embed=embed)


class Killed(Exception):
  pass


def killed_after(batches, frozen, wanted, folder, mesh, monkeypatch):
  """Has a run end at a moment when so many batches are written."""
  inner = features.embed_batches

  def some(*args, **kwargs):
    for index, vectors in enumerate(inner(*args, **kwargs)):
      if index == batches:
        raise Killed
      yield vectors

  with monkeypatch.context() as patch:
    patch.setattr(features, "embed_batches", some)
    with pytest.raises(Killed):
      cached(frozen, wanted, folder, mesh)


def arrays(folder):
  return sorted(folder.glob("*.npy"))


def test_equals_what_the_encoder_computes(data_dir, tmp_path, mel, mesh):
  wanted = parts(data_dir)
  found = cached(mel, wanted, tmp_path, mesh)
  assert list(found) == ["train", "test"]
  segments = np.stack(
    [
      tracks.read(track, start * 1600, tiny.RATE)
      for tracks, where in wanted.values()
      for track, start in where.tolist()
    ]
  )
  expected = np.asarray(jax.jit(mel.embed)(segments))
  train, test = found["train"], found["test"]
  assert (train.shape, test.shape) == ((72, WIDTH), (24, WIDTH))
  # Rounding to 11 bits, and the order of a sum now and then.
  np.testing.assert_allclose(
    np.concatenate([train, test]), expected, rtol=2**-11, atol=1e-4
  )
  for array in (train, test):
    assert isinstance(array, np.memmap)
    assert array.dtype == np.float16
    with pytest.raises(ValueError, match="read-only"):
      array[0] = 0


def test_a_file_says_what_it_is_of(data_dir, tmp_path, plain, mesh):
  cached(plain, parts(data_dir), tmp_path, mesh)
  (file,) = tmp_path.glob("tiny-test-*.json")
  said = json.loads(file.read_text())
  about = {"data": "tiny", "split": "test", "segments": 24, "tracks": 8}
  about |= {"encoder": {"encoder": "plain"}, "dimensions": WIDTH}
  about |= {"dtype": "float16", "seconds": 1.0}
  assert about.items() <= said.items()
  plain = np.load(file.with_suffix(".npy"))  # a file as any other
  assert plain.shape == (24, WIDTH)


def test_what_is_there_is_not_computed_again(data_dir, tmp_path, plain, mesh):
  calls = []
  frozen = counting(plain, calls)
  wanted = parts(data_dir)
  first = cached(frozen, wanted, tmp_path, mesh)
  assert calls
  calls.clear()
  second = cached(frozen, wanted, tmp_path, mesh)
  assert not calls
  for split in first:
    np.testing.assert_array_equal(first[split], second[split])
  # A split more computes that one alone.
  more = cached(frozen, parts(data_dir, splits=tiny_splits()), tmp_path, mesh)
  assert sum(calls) == 2 * BATCH  # 24 segments in two batches
  assert set(more) == {"train", "validation", "test"}


def tiny_splits():
  return tuple(dict.fromkeys(tiny.SPLITS))


def test_every_input_has_a_key_of_its_own(data_dir, mel, tmp_path, monkeypatch):
  variables = lambda config, tracks: {"params": np.full(3, config["seed"])}
  monkeypatch.setattr(features, "_random_variables", variables)
  tracks, where = parts(data_dir)["train"]
  key = lambda f, t, w: embeddings.describe(f, "train", t, w)["key"]
  random = encoder(data_dir, **{"encoder": "random"})
  seed = encoder(data_dir, **{"encoder": "random", "seed": 1})
  front = encoder(data_dir, **{"encoder": "mel", "frontend.n_mels": 48})
  _, few = parts(data_dir, most=2)["train"]
  longer = mel._replace(seconds=1.5)
  copy, other = tmp_path / "copy", tmp_path / "other"
  shutil.copytree(data_dir, copy)
  rows = tiny.tracks()
  rows[0] |= {"index": 99}  # another waveform under the same name
  tiny.write(other, rows=rows)
  keys = [
    key(mel, tracks, where),
    key(random, tracks, where),
    key(seed, tracks, where),
    key(front, tracks, where),
    key(longer, tracks, where),
    key(mel, tracks, few),
    key(mel, tracks, where[::-1]),
    key(mel, Tracks("tiny", ("test",), data_dir), where),
    key(mel, Tracks("tiny", ("train",), other), where),
  ]
  assert len(set(keys)) == len(keys)
  # What an embedding does not depend on.
  again = encoder(data_dir, **{"encoder": "mel", "seed": 5, "probe.epochs": 7})
  assert key(again, tracks, where) == keys[0]
  assert key(mel, Tracks("tiny", ("train",), copy), where) == keys[0]


def test_one_weight_makes_another_encoder():
  config = tiny.probing("").to_dict()
  a, b = np.zeros((2, 3), np.float32), np.ones(3, np.float32)
  variables = {"params": {"a": a, "b": b}}
  identity = features.identify(config, variables)
  assert features.identify(config, jax.tree.map(jnp.array, variables)) == (
    identity
  )
  changed = [
    {"params": {"a": a, "b": np.nextafter(b, 2)}},
    {"params": {"a": a.reshape(3, 2), "b": b}},
    {"params": {"a": a, "c": b}},
    {"params": {"a": a.view(np.int32), "b": b}},
  ]
  assert identity not in [features.identify(config, v) for v in changed]
  assert features.identify(config | {"seed": 7}, variables) == identity
  config["model"]["heads"] = 1
  assert features.identify(config, variables) != identity


@pytest.mark.parametrize("torn", [0, 37])
def test_a_killed_run_goes_on(
  data_dir, tmp_path, plain, mesh, monkeypatch, torn
):
  wanted = parts(data_dir, splits=("train",))  # 72 segments: 4.5 batches
  whole = cached(plain, wanted, tmp_path / "whole", mesh)["train"]
  folder = tmp_path / "killed"
  killed_after(3, plain, wanted, folder, mesh, monkeypatch)
  assert not arrays(folder)
  (partial,) = folder.glob("*.npy.partial")
  assert partial.stat().st_size > 3 * BATCH * WIDTH * 2
  with partial.open("ab") as file:  # half a batch
    file.write(b"\1" * torn)
  calls = []
  found = cached(counting(plain, calls), wanted, folder, mesh)["train"]
  assert sum(calls) == 2 * BATCH  # the last two batches, one filled up
  assert Path(found.filename).read_bytes() == Path(whole.filename).read_bytes()
  assert not list(folder.glob("*.partial"))


def test_killed_before_the_last_renaming(data_dir, tmp_path, plain, mesh):
  wanted = parts(data_dir, splits=("test",))
  first = np.array(cached(plain, wanted, tmp_path, mesh)["test"])
  (file,) = arrays(tmp_path)
  file.rename(file.with_suffix(".npy.partial"))
  calls = []
  found = cached(counting(plain, calls), wanted, tmp_path, mesh)["test"]
  assert not calls
  np.testing.assert_array_equal(found, first)


@pytest.mark.parametrize("harm", ["cut", "bit", "no json", "other partial"])
def test_damaged_files_are_made_anew(data_dir, tmp_path, plain, mesh, harm):
  wanted = parts(data_dir, splits=("test",))
  first = np.array(cached(plain, wanted, tmp_path, mesh)["test"])
  (file,) = arrays(tmp_path)
  content = bytearray(file.read_bytes())
  if harm == "cut":
    file.write_bytes(content[:-2])
  elif harm == "bit":
    content[-100] ^= 1
    file.write_bytes(content)
  else:
    file.with_suffix(".json").unlink()
  if harm == "other partial":
    file.with_suffix(".npy.partial").write_bytes(b"\0" * len(content))
  found = cached(plain, wanted, tmp_path, mesh)["test"]
  np.testing.assert_array_equal(found, first)


def test_the_number_of_devices_does_not_count(data_dir, tmp_path, plain, mesh):
  assert mesh.size == 8
  wanted = parts(data_dir, splits=("test",))
  eight = cached(plain, wanted, tmp_path / "eight", mesh)["test"]
  single = parallel.make_mesh(jax.devices()[:1])
  one = cached(plain, wanted, tmp_path / "one", single)["test"]
  assert arrays(tmp_path / "one")[0].name == arrays(tmp_path / "eight")[0].name
  np.testing.assert_allclose(eight, one, rtol=2**-10, atol=1e-4)


def test_two_at_once_compute_once(data_dir, tmp_path, plain, mesh):
  calls = []
  frozen = counting(plain, calls)
  wanted = parts(data_dir, splits=("test",))
  with ThreadPoolExecutor(2) as pool:
    run = lambda _: cached(frozen, wanted, tmp_path, mesh)["test"]
    one, other = pool.map(run, range(2))
  np.testing.assert_array_equal(one, other)
  assert sum(calls) == 2 * BATCH


@pytest.mark.parametrize(
  ("factor", "message"),
  [(1e6, r"reach \S+, beyond float16"), (jnp.nan, "are not finite")],
)
def test_nothing_becomes_infinite_in_silence(
  data_dir, tmp_path, plain, mesh, factor, message
):
  loud = plain._replace(
    embed=lambda x: factor * plain.embed(x), identity="loud"
  )
  wanted = parts(data_dir, splits=("test",))
  with pytest.raises(InputError, match=f"of tiny by plain {message}"):
    cached(loud, wanted, tmp_path, mesh)
  assert not arrays(tmp_path)


def test_a_full_disk_is_explained(data_dir, tmp_path, plain, mesh, monkeypatch):
  wanted = parts(data_dir, splits=("test",))

  def full(opened, data):
    opened.write(data[:10])
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(embeddings, "_append", full)
    with pytest.raises(InputError, match="No space left on device"):
      cached(plain, wanted, tmp_path, mesh)
  usage = shutil._ntuple_diskusage(1, 1, 1)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"need 3.07e-06 GB more in"):
      cached(plain, wanted, tmp_path, mesh)
  assert not arrays(tmp_path)
  assert cached(plain, wanted, tmp_path, mesh)["test"].shape == (24, WIDTH)


def test_a_folder_that_cannot_be_made_is_explained(
  data_dir, tmp_path, plain, mesh
):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match=r"cannot write to \S+ \(Not a dir"):
    cached(plain, parts(data_dir), tmp_path / "file" / "folder", mesh)
