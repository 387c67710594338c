"""A small MagnaTagATune: its tables and lists as they are published."""

import pickle

import numpy as np

# The header's order, in which "loud" and "female voice" tie with others.
TAGS = ["no vocals", "metal", "guitar", "unused", "loud", "female voice"]
CLIPS = [  # id, path, artist, tags
  ("7", "f/zoé-song-01-a-0-29.mp3", "Zoé", ["guitar", "loud"]),
  ("2", "0/abc-song_v.2-01-b-0-29.mp3", "A\tB", ["guitar", "no vocals"]),
  ("30", "b/abc-song_v.2-01-b-29-58.mp3", 'The "A"', ["guitar"]),
  ("31", "b/abc-song_v.2-01-b-58-87.mp3", 'The "A"', []),
  ("1", "c/d-e-01-f-0-29.mp3", "Björk; Ünal", ["no vocals", "female voice"]),
  ("5", "d/g-h-01-i-0-29.mp3", "G", ["metal", "female voice", "guitar"]),
  ("6", "e/j-k-01-l-0-29.mp3", "J", ["metal", "loud"]),
]
# By hand: guitar 4, then those of two clips as in the header.
VOCABULARY = ["guitar", "no vocals", "metal", "loud", "female voice"]
CAMEL_CASE = ["guitar", "noVocals", "metal", "loud", "femaleVoice"]
SPLITS = {
  "0": "train",
  "b": "train",
  "c": "validation",
  "d": "test",
  "e": "test",
  "f": "test",
}


def table(rows, encoding="utf-8"):
  """The publisher's dialect: tabs, everything quoted, CRLF."""
  lines = [
    "\t".join('"' + field.replace('"', '""') + '"' for field in row) + "\r\n"
    for row in rows
  ]
  return "".join(lines).encode(encoding)


def annotations(clips=CLIPS, tags=TAGS):
  rows = [["clip_id", *tags, "mp3_path"]]
  for name, path, _, has in clips:
    rows.append([name, *(str(int(tag in has)) for tag in tags), path])
  return rows


def write(root, clips=CLIPS, tags=TAGS):
  root.mkdir(exist_ok=True)
  rows = annotations(clips, tags)
  (root / "annotations_final.csv").write_bytes(table(rows))
  info = [["clip_id", "title", "artist", "mp3_path"]]
  info += [[name, "x", artist, path] for name, path, artist, _ in clips]
  # Songs that no player heard have no clip.
  info.append(["999", "y", "Nobody", ""])
  (root / "clip_info_final.csv").write_bytes(table(info, "latin-1"))
  return root


def write_lists(folder, clips=CLIPS, vocabulary=VOCABULARY, lines=CAMEL_CASE):
  """Published lists of the tagged clips, each in the reverse order."""
  folder.mkdir()
  for short, part in (
    ("train", "train"),
    ("valid", "validation"),
    ("test", "test"),
  ):
    mine = [c for c in clips[::-1] if c[3] and SPLITS[c[1][0]] == part]
    names = [c[1].replace(".mp3", ".npy") for c in mine]
    (folder / f"{short}_list_pub.cP").write_bytes(pickle.dumps(names, 2))
    labels = [[float(tag in c[3]) for tag in vocabulary] for c in mine]
    np.save(folder / f"y_{short}_pub.npy", np.array(labels))
  (folder / "top50_tags.txt").write_text("\n".join(lines) + "\n")
  return folder


def by_id(plan):
  return {track["id"]: track for track in plan["tracks"]}
