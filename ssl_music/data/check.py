"""Examines a data set's source before hours are spent on preparing it."""

import os
import shutil
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_music import disk, progress
from ssl_music.data import audio, files, parts, plans, ready, workers, writer
from ssl_music.text import printable

_SHOWN = 10  # of a list; the whole is in the CSV that --report names
_SHOWN_TAGS = 10
BYTES_PER_SECOND = 2 * audio.SAMPLE_RATE


def examine(
  plan: Mapping[str, Any],
  source: str | Path,
  *,
  sample: int | None = 200,
  min_seconds: float = 4.0,
  processes: int = 0,
) -> dict[str, Any]:
  """Compares a plan with what lies there, and decodes some of it.

  Args:
    plan: see `plans`.
    source: the folder of the plan's files.
    sample: tracks to decode, drawn at random but always the same; None is all.
      Clips that are known to be broken are decoded besides.
    min_seconds: shorter tracks count as unusable.
    processes: worker processes that decode.

  Returns:
    what `plans.describe` does, and
    "present": {split: tracks whose file is there}, "absent": tracks whose file
    is not; "unnamed": how many audio files the tables do not name; "decoded":
    how many tracks were, "unusable": [(track, reason)] of them; "duration":
    seconds of audio in all, estimated from those, and "speed": tracks decoded
    a second; "artists": {(split, split): names in both}; "without_positive":
    {split: tags that no track of it has}; "known_bad": [(id, reason, where)].
  """
  tracks = plan["tracks"]
  present = [track for track in tracks if track["file"] is not None]
  named = {str(Path(track["file"])) for track in present}
  lying = {str(Path(source) / path) for path in files.find_audio(source)}
  chosen = _choose(present, plan["known_bad"], sample)
  began = time.perf_counter()
  results = _decode(chosen, plan["load"], min_seconds, processes)
  took = time.perf_counter() - began
  seconds = [0.0 if isinstance(s, str) else s for _, s in results]
  return plans.describe(plan) | {
    "present": plans.count(present),
    "absent": [track for track in tracks if track["file"] is None],
    "unnamed": len(lying - named),
    "decoded": len(chosen),
    "unusable": [(t, why) for t, why in results if isinstance(why, str)],
    "duration": float(np.mean(seconds)) * len(present) if seconds else 0.0,
    "speed": len(chosen) / took if chosen else 0.0,
    "artists": _shared_artists(tracks),
    "without_positive": _without_positive(tracks, plan["tags"]),
    "known_bad": _known_bad(plan),
  }


def table(plan: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  """Returns what was found as lines to print.

  Args:
    plan: as given to `examine`.
    found: what that returned.
  """
  title = found["benchmark"] or plan["name"]
  lines = [f"{title}: {len(plan['tags'])} tags, hash {found['fingerprint']}"]
  if found["as_published"] is not None:
    agree = "are" if found["as_published"] else "are NOT"
    lines[0] += f"; the tables {agree} as published"
  elif plan["published"]:
    lines[0] += "; the counts are as published, more is not known here"
  lines.append(f"  {'split':12} {'tables':>8} {'present':>8} {'published':>10}")
  published = (plan["published"] or {}).get("tracks", {})
  counts = plans.count(plan["tracks"])
  for split in [s for s in plans.SPLITS if s in counts or s in published]:
    here, there = counts.get(split, 0), found["present"].get(split, 0)
    lines.append(
      f"  {split:12} {here:8} {there:8} {published.get(split, '-'):>10}"
    )
  lines += _listed(
    f"{len(found['absent'])} files absent",
    [f"{track['split']} {track['path']}" for track in found["absent"]],
  )
  if found["unnamed"]:
    lines.append(f"{found['unnamed']} audio files that the tables do not name")
  lines += _listed(
    f"{found['decoded']} tracks decoded, {len(found['unusable'])} of them"
    " cannot be used",
    [f"{t['split']} {t['path']}: {why}" for t, why in found["unusable"]],
  )
  if found["known_bad"]:
    lines += _listed(
      f"{len(found['known_bad'])} clips known to be broken",
      [f"{name}: {why} ({where})" for name, why, where in found["known_bad"]],
    )
  for (one, other), names in found["artists"].items():
    some = printable(", ".join(names[:3])) + (", …" if len(names) > 3 else "")
    lines.append(f"{len(names)} artists in both {one} and {other}: {some}")
  if counts.keys() & {*plans.SCORED} and not any(
    track["artist"] for track in plan["tracks"]
  ):
    lines.append("artists are not known: overlap between splits not checked")
  for split, tags in found["without_positive"].items():
    some = ", ".join(tags[:_SHOWN_TAGS])
    some += ", …" if len(tags) > _SHOWN_TAGS else ""
    lines.append(f"{len(tags)} tags without a positive in {split}: {some}")
  lines += [f"note: {printable(note)}" for note in found["notes"]]
  return "\n".join(lines)


def advice(
  found: Mapping[str, Any], *, command: str, data_dir: Path, processes: int
) -> str:
  """Returns what can be done next, as lines to print.

  Args:
    found: of `examine`.
    command: that prepares this source.
    data_dir: where to.
    processes: that `command` uses.
  """
  lines = []
  if found["absent"]:
    lines.append(
      f"add the {len(found['absent'])} absent files, or go on without them"
    )
  if found["unusable"]:
    lines.append(
      "fetch the files again that cannot be used, or go on without them"
    )
  lost = {track["split"] for track in found["absent"]}
  lost |= {track["split"] for track, _ in found["unusable"]}
  if found["benchmark"] and "test" in lost:
    lines.append(
      "as long as test tracks are missing, probes refuse to score this as the"
      " benchmark, unless told --config.allow_missing=True"
    )
  present = sum(found["present"].values())
  if not found["duration"]:
    if present > found["decoded"]:
      lines.append(f"prepare it:\n    {command}")
    return "\n".join(["next:", *(f"  - {line}" for line in lines)])
  needed = found["duration"] * BYTES_PER_SECOND / 1e9
  there = Path(data_dir)
  while not os.path.exists(there):  # noqa: PTH110 (never raises)
    there = there.parent
  free = shutil.disk_usage(there).free / 1e9
  enough = "" if free > 1.1 * needed else ": FREE SOME, or give --data_dir"
  minutes = present / found["speed"] / 60
  lines.append(
    f"prepare it, which takes about {minutes:.0f} minutes with {processes}"
    f" processes and {needed:.1f} GB in {data_dir} ({free:.0f} GB free{enough})"
    f":\n    {command}"
  )
  return "\n".join(["next:", *(f"  - {line}" for line in lines)])


def lost(found: Mapping[str, Any]) -> list[dict]:
  """Returns rows (`writer.SKIPPED`) for what is absent or unusable."""
  every = [(track, parts.ABSENT) for track in found["absent"]]
  return [
    {key: track[key] for key in writer.SKIPPED[:3]} | {"reason": reason}
    for track, reason in [*every, *found["unusable"]]
  ]


def _choose(
  present: Sequence[dict], known_bad: Mapping[str, str], sample: int | None
) -> list[dict]:
  if sample is None or sample >= len(present):
    return list(present)
  # By a hash of the name, so that no other file changes whether it is drawn.
  mixed = sorted(present, key=lambda one: zlib.crc32(os.fsencode(one["id"])))
  drawn = {one["id"] for one in mixed[:sample]} | set(known_bad)
  return [track for track in present if track["id"] in drawn]


def _decode(
  tracks: Sequence[dict], load, min_seconds: float, processes: int
) -> list[tuple[dict, float | str]]:
  """Returns (track, seconds or reason) of each, as preparing would find it."""
  if not tracks:
    return []
  bar = {"total": len(tracks), "unit": "track", "desc": "decode"}
  with (
    disk.temporary() as within,
    tempfile.TemporaryDirectory(dir=within) as folder,
    workers.pool(processes) as run,
  ):
    measure = _Measure(ready.Ready(load, min_seconds, Path(folder)))
    return list(progress.bar(run(measure, tracks), **bar))


class _Measure:
  """Prepares a track, keeps its length and throws the audio away."""

  def __init__(self, make_ready: ready.Ready):
    self._make_ready = make_ready

  def __call__(self, track: dict) -> float | str:
    result = self._make_ready(track)
    if isinstance(result, str):
      return result
    return len(result["pcm"]) / audio.SAMPLE_RATE


def _shared_artists(
  tracks: Iterable[Mapping],
) -> dict[tuple[str, str], list[str]]:
  artists = defaultdict(set)
  for track in tracks:
    if track["artist"]:
      artists[track["split"]].add(track["artist"])
  shared = {}
  for index, one in enumerate(plans.SCORED):
    for other in plans.SCORED[index + 1 :]:
      if both := artists[one] & artists[other]:
        shared[one, other] = sorted(both)
  return shared


def _without_positive(
  tracks: Iterable[Mapping], tags: Sequence[str]
) -> dict[str, list[str]]:
  seen = defaultdict(set)
  for track in tracks:
    seen[track["split"]].update(track["tags"])
  without = {
    split: [tag for tag in tags if tag not in seen[split]]
    for split in plans.SCORED
    if split in seen
  }
  return {split: missing for split, missing in without.items() if missing}


def _known_bad(plan: Mapping[str, Any]) -> list[tuple[str, str, str]]:
  split = {track["id"]: track for track in plan["tracks"]}
  found = []
  for name, reason in plan["known_bad"].items():
    where = "left out of the split"
    if name in split:
      where = f"in {split[name]['split']}"
      where += ", absent" if split[name]["file"] is None else ""
    found.append((name, reason, where))
  return found


def _listed(title: str, items: Sequence[str]) -> list[str]:
  more = [f"  and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
  shown = [f"  {printable(item)}" for item in items[:_SHOWN]]
  return [title, *shown, *more]
