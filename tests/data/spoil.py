"""Damages a prepared data set in every file, and opens and reads it.

`python spoil.py FOLDER COUNT SEED [unsealed]` prints how it went: "refused" in
a sentence, "same" values read nevertheless, "wrong" values, or a traceback.
"""

import collections
import json
import random
import re
import shutil
import sys
import traceback
from pathlib import Path

import numpy as np
import tiny

from ssl_music import seal
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

ROWS = [tiny.tracks()[index] for index in (0, 3, 24, 25, 32)]
HOW = ("flip", "cut", "empty", "delete", "number", "nan", "line", "replace")
HOW += ("swap", "append")
HOSTILE = (
  b"",
  b"\0" * 100,
  b"[" * 100_000,
  b"{}",
  b"[]",
  b"null",
  b'{"sealed": true}',
  b"\xff\xfe" * 50,
  b"a,b\n1,2\n",
)


def make(data_dir, sealed=True):
  """Writes a data set with a track that is missing; returns its folder."""
  lost = tiny.tracks()[26] | {"file": None}
  folder = tiny.write(data_dir, rows=[*ROWS, lost])["folder"]
  if not sealed:  # as a version before has made it
    (folder / seal.NAME).unlink()
    card = json.loads((folder / "card.json").read_text())
    del card["sealed"]
    (folder / "card.json").write_text(json.dumps(card))
  return folder


def read(data_dir):
  """Returns all that there is to read, by the user's way."""
  tracks = Tracks("tiny", ("train", "validation", "test"), data_dir)
  every = range(len(tracks))
  return {
    "table": [tracks.ids, tracks.paths, tracks.splits, tracks.missing],
    "labels": [tracks.tags, tracks.labels.tolist()],
    "card": [tracks.card[key] for key in ("benchmark", "max_seconds")],
    "numbers": [tracks.samples.tolist(), tracks.rms.tolist()],
    "energies": [tracks.energy(track).tobytes() for track in every],
    "audio": [
      tracks.read(track, 0, int(tracks.samples[track])).tobytes()
      for track in every
    ],
  }


def damage(file, others, rng):
  """Damages a file; returns how."""
  content = file.read_bytes()
  how = rng.choice(
    [
      "flip",
      "cut",
      "empty",
      "delete",
      "number",
      "nan",
      "line",
      "replace",
      "swap",
      "append",
    ]
  )
  place = rng.randrange(len(content) or 1)
  if how == "flip" and content:
    changed = bytearray(content)
    changed[place] ^= 1 << rng.randrange(8)
    content = bytes(changed)
  elif how == "cut":
    content = content[:place]
  elif how == "empty":
    content = b""
  elif how in ("number", "nan"):
    numbers = [*re.finditer(rb"[0-9]+", content[:100_000])]
    new = rng.choice([b"0", b"1", b"7", b"-1", b"99999999999999999999999"])
    new = rng.choice([b"NaN", b"1e999", b""]) if how == "nan" else new
    if numbers:
      start, end = rng.choice(numbers).span()
      content = content[:start] + new + content[end:]
  elif how == "line":
    lines = content.split(b"\n")
    lines[rng.randrange(len(lines))] = rng.choice(lines)
    content = b"\n".join(lines)
  elif how == "replace":
    content = rng.choice(HOSTILE)
  elif how == "swap":
    content = rng.choice(others).read_bytes()
  elif how == "append":
    content += rng.choice([b"x", b"\n", content, b"\0" * 4])
  file.unlink()
  if how != "delete":
    file.write_bytes(content)
  return how


def run(data_dir, count, seed, sealed=True):
  """Returns {outcome: [what was done]} of so many damages."""
  folder = make(data_dir, sealed)
  right = read(data_dir)
  files = sorted(folder.iterdir())
  small = [file for file in files if "array_record" not in file.name]
  rng = random.Random(seed)
  found = collections.defaultdict(list)
  for number in range(count):
    file = rng.choice(files if number % 4 == 0 else small)
    content = file.read_bytes()
    what = f"{file.name}: {damage(file, files, rng)} ({number})"
    try:
      same = read(data_dir) == right
      found["same" if same else "wrong"].append(what)
    except InputError as error:
      said = str(error)
      assert file.name in said or not sealed or "seal.json" in said, said
      found["refused"].append(what)
    except Exception:
      found["traceback"].append(f"{what}\n{traceback.format_exc()}")
    file.write_bytes(content)
  return found


def main(folder, count, seed, *kind):
  np.seterr(all="raise")
  shutil.rmtree(folder, ignore_errors=True)
  found = run(Path(folder), int(count), int(seed), "unsealed" not in kind)
  print({outcome: len(every) for outcome, every in found.items()})
  for outcome in ("wrong", "traceback"):
    print(outcome, *found[outcome][:20], sep="\n")


if __name__ == "__main__":
  main(*sys.argv[1:])
