"""Finishes a data set of written parts, however often that is killed.

Beside the data set's folder `VERSION` lies, until it is whole,

  incomplete.VERSION/
    signature      of what is being written, of `parts.signature`
    parts/         what the workers write, and read where they go on
    whole/         the data set, as far as it is there
    finished.json  "shards", and the summary: from here on all parts are written

With `finished.json` a run decodes nothing any more. It takes the steps of
`complete` from the first to the last, and each may have been taken before. The
data set appears by one renaming, with its seal. One that it replaces is moved
to `replaced.VERSION` just before, and `recover` moves it back after a kill
between the two. What is to be removed is called `removed.…` first, so that no
worker of an engine that is late writes there.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from ssl_music import disk, seal, typed
from ssl_music.data import parts, records
from ssl_music.data.shards import Shard
from ssl_music.errors import InputError

PARTS, WHOLE, STATE = "parts", "whole", "finished.json"
_SIGNATURE = "signature"
TABLES = ("tracks.csv", "energy.f32", "skipped.csv", "card.json")
_KIND = {
  "shards": {str: [{"file": str, "records": int, "bytes": int, "size": int}]},
  "prepared": {str: int},
  "skipped": [{str: str}],
  "seconds": float,
}


def unfinished(folder: Path) -> Path:
  """Returns where a data set is while it is written."""
  return folder.with_name(f"incomplete.{folder.name}")


def recover(
  folder: Path, signature: Callable[[], str]
) -> dict[str, Any] | None:
  """Ends what a kill between the last steps has left undone.

  Args:
    folder: of the data set, whether it is there or not.
    signature: returns that of what is wanted.

  Returns:
    what `finished.json` holds, if the data set is what is wanted and was killed
    once it was in its place; else None.

  Raises:
    OSError: a folder cannot be moved or removed.
  """
  replaced, work = _replaced(folder), unfinished(folder)
  if replaced.exists() and not folder.exists():
    replaced.rename(folder)
  state = None
  if (work / STATE).exists() and not (work / WHOLE).exists():
    if folder.exists() and _is_of(work, signature()):
      state = _read(work)
    remove(work)
  remove(replaced)
  for leftover in folder.parent.glob("removed.*"):
    shutil.rmtree(leftover)
  return state


def begin(folder: Path, signature: str) -> None:
  """Makes the folder of a new run, or keeps that of one which was killed.

  Args:
    folder: of the data set.
    signature: of `parts.signature`; another one starts anew.

  Raises:
    OSError: a folder cannot be made or removed.
  """
  work = unfinished(folder)
  resumed = _is_of(work, signature)
  for leftover in folder.parent.glob("incomplete.*"):
    if leftover != work or not resumed:
      remove(leftover)
  (work / PARTS).mkdir(parents=True, exist_ok=True)
  if resumed:
    for attempt in (work / PARTS).glob(f"{parts.ATTEMPT}*"):
      shutil.rmtree(attempt, ignore_errors=True)
    finished = len([*(work / PARTS).glob(f"*{parts.FINISHED}")])
    print(f"going on after {finished} finished parts", file=sys.stderr)
  else:
    disk.write(work / _SIGNATURE, signature)


def written(folder: Path, name: str) -> dict[str, Any] | None:
  """Returns what `finished.json` holds, if all that it tells of is there."""
  work = unfinished(folder)
  state = _read(work)
  if state is None:
    return None
  files = [(work / WHOLE / table, None) for table in TABLES]
  for source, target, size in _moves(work, name, state):
    files.append((source if source.exists() else target, size))
  for file, size in files:
    if not file.exists() or size not in (None, file.stat().st_size):
      return None
  return state


def complete(
  folder: Path, info: tfds.core.DatasetInfo, state: Mapping[str, Any]
) -> None:
  """Makes a data set of its parts, and puts it in its place.

  Args:
    folder: of the data set; one that is there is replaced.
    info: of the data set, without splits.
    state: of `finished.json`.

  Raises:
    OSError: a file cannot be moved or written. The same call goes on.
  """
  work = unfinished(folder)
  whole = work / WHOLE
  names = []
  for source, target, _ in _moves(work, info.name, state):
    if source.exists():
      source.rename(target)
    names.append(target.name)
  for file in whole.iterdir():
    if file.name not in (*TABLES, *names):  # of a killed run
      file.unlink()
  records.write_metadata(
    whole,
    info,
    {
      split: [Shard(one["file"], one["records"], one["bytes"]) for one in every]
      for split, every in state["shards"].items()
    },
  )
  small = {file.name for file in whole.iterdir()} - set(names)
  seal.close(whole, sorted(small), heads=names)
  if folder.exists():
    folder.rename(_replaced(folder))
  whole.rename(folder)
  disk.sync(folder.parent)
  remove(_replaced(folder))
  remove(work)


def remove(folder: Path) -> None:
  """Removes a folder, if it is there."""
  if folder.exists():
    removed = folder.with_name(f"removed.{folder.name}")
    folder.rename(removed)
    shutil.rmtree(removed)


def store(folder: Path, state: Mapping[str, Any]) -> None:
  """Notes that all parts of a data set are written, and its tables too.

  Raises:
    OSError: it cannot be written.
  """
  work = unfinished(folder)
  for table in TABLES:
    disk.sync(work / WHOLE / table)
  disk.write(work / STATE, json.dumps(state))


def _is_of(work: Path, signature: str) -> bool:
  """Says whether an unfinished folder is of what is wanted."""
  file = work / _SIGNATURE
  return file.exists() and file.read_bytes() == signature.encode()


def _read(work: Path) -> dict[str, Any] | None:
  """Returns what `finished.json` holds; None if it is missing or damaged."""
  try:
    return typed.read(work / STATE, _KIND)
  except InputError:
    return None


def _replaced(folder: Path) -> Path:
  return folder.with_name(f"replaced.{folder.name}")


def _moves(
  work: Path, name: str, state: Mapping[str, Any]
) -> Iterator[tuple[Path, Path, int]]:
  """Yields where each shard was written, where it belongs, and its size."""
  for split, every in state["shards"].items():
    for index, shard in enumerate(every):
      target = work / WHOLE / records.shard_name(name, split, index)
      yield work / PARTS / shard["file"], target, shard["size"]
