"""A data set is written in parts, each by one process from audio to a shard.

So no audio passes from process to process, and all that the tracks cost is
shared by the cores.
"""

import contextlib
import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssl_music import disk, typed
from ssl_music.data import plans, ready, shards, workers
from ssl_music.data.shards import CHUNK
from ssl_music.errors import InputError

ABSENT = "no such file"
DONE = ".done"  # a file for each part that grows by a byte with each track
ATTEMPT = "attempt."  # begins the folders of parts that are being written
FINISHED = ".json"  # what `Write` returns of a part, once it is whole
# Of one file a part: all of them are open while a data set is read, pooled with
# others perhaps, and a process may open but 1,024 by default, or 256.
_MOST_PARTS = 128
PART = {"number": int, "split": str, "tracks": [dict]}  # see `divide`
_DONE = {
  "shard": {"path": str, "records": int, "bytes": int},
  "file": str,
  "energy": str,
  "sizes": [int],
  "rows": [{"track": int, "row": int, "samples": int, "rms": float}],
  "skipped": [list],
}


def divide(tracks: Sequence[dict]) -> list[dict[str, Any]]:
  """Divides tracks into parts of one split each, the same for any machine.

  Returns:
    {"number", "split", "tracks"} of each part; splits follow one another.
  """
  # Few tracks make small parts, so that every core has some.
  size = max(1, min(8, len(tracks) // 16), -(-len(tracks) // _MOST_PARTS))
  parts = []
  for split in plans.SPLITS:
    own = [track for track in tracks if track["split"] == split]
    parts += [
      {"split": split, "tracks": own[start : start + size]}
      for start in range(0, len(own), size)
    ]
  return [{"number": number} | part for number, part in enumerate(parts)]


class Write:
  """Writes a part; pickles to worker processes.

  Attributes:
    folder: of the parts' files.
  """

  def __init__(
    self,
    load: Callable[[Mapping], Iterable[np.ndarray]],
    tags: Sequence[str],
    min_seconds: float,
    folder: Path,
  ):
    """Takes what is the same for all parts.

    Args:
      load: of a plan.
      tags: of a plan.
      min_seconds: shorter tracks are skipped.
      folder: for the parts' files.
    """
    self._make_ready = ready.Ready(load, min_seconds, folder)
    self._tags, self.folder = list(tags), folder

  def __call__(self, part: Mapping[str, Any]) -> dict[str, Any]:
    """Writes one part.

    Args:
      part: of `divide`.

    Returns:
      "shard"; "energy", a file of the tracks' energies, float32; "rows", for
      each track that can be used a dict with "track" (its place in the part),
      "row" (its first record in the shard), "samples" and "rms"; "skipped",
      pairs of a track's place and the reason.

    Raises:
      OSError: the folder cannot be written to.
    """
    before = self.finished(part)
    return before or self._write(part, map(self._make_ready, _present(part)))

  def carefully(self, part: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a part of which a track crashes the process that decodes it."""
    with workers.pool(1) as run:
      results = run(self._make_ready, _present(part))
      return self._write(part, (result for _, result in results))

  def finished(self, part: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what was written of a part before, here or elsewhere, if all."""
    path = self.folder / f"{part['number']:05}"
    try:
      done = typed.read(path.with_suffix(FINISHED), _DONE)
      done["shard"] = shards.Shard(**done["shard"])
      sizes = [Path(done[f]).stat().st_size for f in ("file", "energy")]
      return done if sizes == done["sizes"] else None
    except (OSError, InputError):
      return None

  def _write(
    self, part: Mapping[str, Any], results: Iterator[dict | str]
  ) -> dict[str, Any]:
    path = self.folder / f"{part['number']:05}"
    rows, skipped = [], []

    def examples() -> Iterator[dict]:
      row = 0
      for place, track in enumerate(part["tracks"]):
        self.folder.stat()  # gone, when the run ended before its time
        count.write(b".")
        result = next(results) if _is_present(track) else ABSENT
        if isinstance(result, str):
          skipped.append((place, result))
          continue
        entry = {"track": place, "row": row, "rms": result["rms"]}
        rows.append(entry | {"samples": len(result["pcm"])})
        result["energy"].astype("<f4").tofile(energies)
        for example in _examples(track, result["pcm"], self._tags):
          row += 1
          yield example

    energy = path.with_suffix(".energy")
    # An engine may try a part twice at once: each writes files of its own, and
    # whichever comes last puts the same in the place of the other's.
    with tempfile.TemporaryDirectory(
      prefix=ATTEMPT, dir=self.folder, ignore_cleanup_errors=True
    ) as attempt:
      own = Path(attempt) / path.name
      with (
        own.with_suffix(".energy").open("wb") as energies,
        path.with_suffix(DONE).open("wb", buffering=0) as count,
      ):
        shard = shards.write_shard(own, self._tags, examples())
      shard = shard._replace(path=str(path))
      own.rename(path)
      own.with_suffix(".energy").rename(energy)
      done = {"shard": shard, "file": shard.path, "energy": str(energy)}
      done["sizes"] = [Path(done[f]).stat().st_size for f in ("file", "energy")]
      done |= {"rows": rows, "skipped": skipped}
      for name in ("file", "energy"):  # before what tells of them
        disk.sync(Path(done[name]))
      text = json.dumps(done | {"shard": shard._asdict()})
      own.with_suffix(FINISHED).write_text(text, encoding="utf-8")
      own.with_suffix(FINISHED).rename(path.with_suffix(FINISHED))
    return done


def signature(plan: Mapping[str, Any], *settings: Any) -> str:
  """Returns a hash of all that decides on what is written.

  Args:
    plan: whose files' sizes and times of change are part of it.
    settings: what else decides.
  """
  digest = hashlib.sha256(repr(settings).encode())
  # Whether it is installed decides on which files are skipped.
  digest.update(repr(importlib.util.find_spec("av") is None).encode())
  for track in plan["tracks"]:
    about = track | {"changed": _changed(track.get("file"))}
    digest.update(repr(sorted(about.items())).encode())
  return digest.hexdigest()


def _changed(file: str | None) -> tuple[int, int] | None:
  with contextlib.suppress(OSError, TypeError):
    about = Path(file).stat()
    return about.st_size, about.st_mtime_ns
  return None


def _is_present(track: Mapping) -> bool:
  return track.get("file", "") is not None


def _present(part: Mapping[str, Any]) -> Iterator[dict]:
  return filter(_is_present, part["tracks"])


def _examples(
  track: Mapping, pcm: np.ndarray, tags: Sequence[str]
) -> Iterator[dict]:
  for chunk in range(-(-len(pcm) // CHUNK)):
    example = {
      "audio": np.asarray(pcm[chunk * CHUNK : (chunk + 1) * CHUNK]),
      "id": track["id"],
      "path": track["path"],
      "chunk": chunk,
    }
    yield example | ({"tags": track["tags"]} if tags else {})
