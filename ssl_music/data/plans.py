"""Plans: what a data set will hold, before any audio is decoded.

Each kind of data set (`folder`, `magnatagatune`, …) has a function `plan` that
reads its tables and returns a plain dict:

- "name": the data set's, unless the user gives another;
- "tracks": a dict for each track of the split, in the tables' order: "id" (as
  in the tables, whatever the file is called), "path" (for people), "file" (to
  open; None where it is absent), "split" (one of `SPLITS`), "tags" and "artist"
  ("" where unknown);
- "load": a picklable function of a track that yields float32 blocks at 16 kHz,
  or raises `audio.AudioError`;
- "tags": the vocabulary, in the order of the label columns;
- "description", "citation" (BibTeX), "licence";
- "benchmark": what people call it in tables of scores; "" for one's own data;
- "published": {"tracks": {split: count}, "fingerprint", "labels": hashes, or
  None} of the publisher's tables; None where nothing of them is known here;
- "max_seconds": what is kept of each track, from its start; None is all;
- "known_bad": {id: reason} of clips that are known to be broken; and
- "notes": sentences on what the tables hold besides.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ssl_music.errors import InputError

SPLITS = ("train", "validation", "test", "unlabelled")
SCORED = SPLITS[:3]
MAX_SECONDS = 600.0  # of a track, as published


def make(name: str, tracks: list[dict], load, **fields) -> dict[str, Any]:
  """Returns a plan; what is not given is empty.

  Args:
    name: of the data set.
    tracks: of it.
    load: of one of them.
    **fields: any of a plan's others.

  Raises:
    InputError: a tag holds "|", which separates tags.
  """
  plan = {"name": name, "tracks": tracks, "load": load}
  plan |= {"tags": [], "description": "", "citation": "", "licence": ""}
  plan |= {"benchmark": "", "published": None, "max_seconds": None}
  plan |= {"known_bad": {}, "notes": []}
  unknown = fields.keys() - plan.keys()
  if unknown:
    raise ValueError(f"a plan has no {', '.join(sorted(unknown))}")
  bad = [tag for tag in fields.get("tags", ()) if "|" in tag]
  if bad:
    raise InputError(
      f"tag {bad[0]!r} of {name} holds |, which separates tags: rename it"
    )
  return plan | fields


def fingerprint(tracks: Iterable[tuple[str, ...]], tags: Sequence[str]) -> str:
  """Returns a hash of which track is in which split and of the tags' order.

  Scores with the same fingerprint are of the same tracks and label columns.

  Args:
    tracks: (split, id) of each, in any order.
    tags: in the order of the columns.
  """
  digest = hashlib.sha256()
  for tag in tags:
    digest.update(f"tag\t{tag}\n".encode())
  for line in sorted(tracks):
    digest.update("\t".join(line).encode() + b"\n")
  return digest.hexdigest()[:12]


def label_hash(tracks: Iterable[Mapping]) -> str:
  """Returns a hash of which tags each track has, in any order of both."""
  digest = hashlib.sha256()
  for line in sorted([track["id"], *sorted(track["tags"])] for track in tracks):
    digest.update("\t".join(line).encode() + b"\n")
  return digest.hexdigest()[:12]


def count(tracks: Iterable[Mapping]) -> dict[str, int]:
  """Returns how many tracks each split has, without those that have none."""
  counted = Counter(track["split"] for track in tracks)
  return {split: counted[split] for split in SPLITS if counted[split]}


def describe(plan: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a data set keeps of its plan besides the tracks.

  Returns:
    "benchmark", "licence", "notes"; "fingerprint" and "labels" of the tracks
    that can be scored; "tracks", their count by split; "max_seconds"; and
    "as_published", whether the tables are the publisher's: None where nothing
    is known that speaks against it, but not all that would prove it.
  """
  scored = [track for track in plan["tracks"] if track["split"] in SCORED]
  tracks = [(track["split"], track["id"]) for track in scored]
  found = {
    "tracks": count(scored),
    "fingerprint": fingerprint(tracks, plan["tags"]),
    "labels": label_hash(scored),
  }
  published = plan["published"] or {}
  known = {key: value for key, value in published.items() if value is not None}
  as_published = None
  if any(found[key] != value for key, value in known.items()):
    as_published = False
  elif known.keys() == found.keys():
    as_published = True
  return {
    "benchmark": plan["benchmark"],
    "as_published": as_published,
    "max_seconds": plan["max_seconds"],
    **found,
    "licence": plan["licence"],
    "notes": list(plan["notes"]),
  }
