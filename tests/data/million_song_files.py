"""Writes small data sets laid out as the Million Song Dataset's files are."""

import pickle

import numpy as np
import soundfile

from ssl_music.data import million_song_splits
from ssl_music.data.million_song_tags import LASTFM_TAGS

TAGS = list(LASTFM_TAGS)
PARTS = {"train": "train", "validation": "valid", "test": "test"}
SIZES = {"train": 5, "validation": 3, "test": 4}


def msd_id(n):
  letters = "".join(chr(65 + n // 26**i % 26) for i in range(5))
  return f"TR{letters}{n * 7919:011X}"


IDS = [msd_id(n) for n in range(12)]
LABELS = np.random.default_rng(0).random((12, 50)) < 0.1
LABELS[6] = False
BY_PART = {"train": IDS[:5], "validation": IDS[5:8], "test": IDS[8:]}
ROWS = {"train": slice(0, 5), "validation": slice(5, 8), "test": slice(8, 12)}


def write_audio(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  tone = np.sin(np.arange(16_000) / 20)
  soundfile.write(path, 0.5 * tone, 16_000)


def write_paths(source, rows, header="msd_id,path"):
  text = "\n".join([header, *rows]) + "\n"
  (source / "paths.csv").write_text(text, encoding="utf-8")


def write_choi(source):
  folder = source / "lastfm"
  folder.mkdir(exist_ok=True)
  (folder / "50tagList.txt").write_text("\n".join(TAGS) + "\n")
  for part, name in PARTS.items():
    text = "\n".join(BY_PART[part]) + "\n"
    (folder / f"{name}_x_msd_id.txt").write_text(text)
    np.save(folder / f"{name}_y.npy", LABELS[ROWS[part]])
  return folder


def write_cals(source, dtype=None, number="int64"):
  folder = source / "cals"
  folder.mkdir(exist_ok=True)
  np.save(folder / "cals_tags.npy", np.array(TAGS, dtype))
  np.save(folder / "student_ids.npy", np.array([msd_id(40), msd_id(41)], dtype))
  for part, name in PARTS.items():
    np.save(folder / f"{name}_ids.npy", np.array(BY_PART[part], dtype))
    labels = LABELS[ROWS[part]].astype(number)
    np.save(folder / f"{name}_binaries.npy", labels)
  return folder


def write_filtered(source, monkeypatch, protocol=2, vector=None, **changes):
  """Writes the published form of the Last.fm split, but with few tracks."""
  monkeypatch.setattr(million_song_splits, "LASTFM", SIZES)
  folder = source / "lastfm"
  folder.mkdir(exist_ok=True)
  (folder / "50tagList.txt").write_text("\n".join(TAGS) + "\n")
  vector = vector or (lambda row: row[:, None])
  vectors = {msd: vector(LABELS[n]) for n, msd in enumerate(IDS)}
  content = {
    "filtered_list_train": IDS[:8],
    "filtered_list_test": IDS[8:],
    "msd_id_to_tag_vector": vectors,
  }
  for name, value in (content | changes).items():
    path = folder / f"{name}.cP"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
  return folder


def write_own(source, rows, tags=None):
  path = source / "Mine 2.csv"
  text = "\n".join(["msd_id,split,tags", *rows]) + "\n"
  path.write_text(text, encoding="utf-8")
  options = {"split": str(path)}
  if tags is not None:
    options["tags"] = source / "tags.txt"
    options["tags"].write_text("\n".join(tags) + "\n")
  return options


def write_source(root):
  """Audio of the first, sixth and last track, and of one in no split."""
  rows = []
  for n in (0, 5, 11, 40):
    path = f"a/ünï {n}.wav"
    write_audio(root / path)
    rows.append(f"{msd_id(n)},{path},artist {n}")
  write_paths(
    root, [*rows, f"{IDS[1]},b/gone.mp3,artist 1"], "msd_id,path,artist"
  )
  return root
