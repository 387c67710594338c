"""Reads prepared data sets: a table of tracks, random access to their audio."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssl_music import home, seal
from ssl_music.data import plans, prepared, records
from ssl_music.data.segments import BLOCK
from ssl_music.data.shards import CHUNK
from ssl_music.data.writer import VERSION
from ssl_music.errors import InputError

_ENERGY = "energy.f32"


def default_data_dir() -> Path:
  """Returns TFDS's data folder: $TFDS_DATA_DIR or ~/tensorflow_datasets.

  Raises:
    InputError: neither is known.
  """
  folder = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return Path(home.expanded(folder))


class Tracks:
  """The tracks of some splits of one or several data sets.

  Instances are cheap to pickle: audio and energies are opened by the process
  that reads them.

  Attributes:
    name: as given, such as "demo" or "a+b".
    ids, paths, splits: lists of str, one entry a track.
    missing: {split: ids} of tracks that the data set's tables put into a split
      and that are not in it, since they are absent or unusable.
    card, folder: of the data set, see `plans.describe`; of several, the first
      one's and the last one's.
    samples: int64 [tracks], lengths at 16 kHz.
    rms: float64 [tracks], of the int16 samples.
    tags: the vocabulary in label order; empty for several data sets.
    labels: bool [tracks, tags].
  """

  def __init__(
    self,
    name: str,
    splits: Sequence[str] = ("train", "unlabelled"),
    data_dir: str | os.PathLike | None = None,
  ):
    """Opens data sets.

    Args:
      name: of a prepared data set, or several joined by "+".
      splits: those to take, as far as a data set has them.
      data_dir: TFDS's; None is the default.

    Raises:
      InputError: a data set is not there or is damaged, or none of the splits
        is there.
    """
    self.name = name
    data_dir = Path(data_dir) if data_dir else default_data_dir()
    names = name.split("+")
    if len(set(names)) < len(names):
      raise InputError(
        f"--config.data.name={name} names a data set twice: name each once"
      )
    sets = [prepared.read(find(one, data_dir)) for one in names]
    parts = []  # which data set, a split of it, and which rows are of that
    for place, one in enumerate(sets):
      for split in splits:
        if len(rows := np.flatnonzero(one.table["split"] == split)):
          parts.append((place, split, rows))
    if not parts:
      raise InputError(
        f"data set {name} in {data_dir} has no track in {' or '.join(splits)}:"
        " prepare it with such a split, or choose others with"
        " --config.data.splits"
      )

    def column(name: str) -> np.ndarray:
      own = [sets[place].table[name][rows] for place, _, rows in parts]
      return np.concatenate(own)

    self.missing = {
      split: [id_ for one in sets for own, id_ in one.skipped if own == split]
      for split in splits
    }
    self.card, self.folder = sets[0].card, sets[-1].folder
    self.ids, self.paths, self.splits = (
      column(name).tolist() for name in ("id", "path", "split")
    )
    self.samples, self.rms = column("samples"), column("rms")
    self._row, self._first_block = column("row"), column("block")
    # Not the data sets with their tables: this goes to worker processes.
    self._sealed = [one.sealed for one in sets]
    self._shards = [sets[place].shards[split] for place, split, _ in parts]
    self._set = [place for place, _, _ in parts]
    sizes = [len(rows) for _, _, rows in parts]
    self._part = np.repeat(np.arange(len(parts)), sizes)
    self._handles: dict = {}
    self.tags = sets[0].tags if len(sets) == 1 else []
    self.labels = np.zeros((len(self.ids), len(self.tags)), bool)
    label = {tag: index for index, tag in enumerate(self.tags)}
    for index, tags in enumerate(column("tags") if self.tags else ()):
      self.labels[index, [label[tag] for tag in tags]] = True

  def __len__(self) -> int:
    return len(self.ids)

  def __getstate__(self) -> dict:
    return self.__dict__ | {"_handles": {}}

  def keep_tags(self, columns: Sequence[int]) -> None:
    """Reduces vocabulary and labels to some columns."""
    self.tags = [self.tags[column] for column in columns]
    self.labels = self.labels[:, list(columns)]

  def fingerprint(self, *, labels: bool = False) -> str:
    """Returns a hash of what the tracks are: "TRACKS-AUDIO".

    Of the tracks it holds ids, splits and lengths; of the audio the energies of
    all that the data sets hold, see `seal`. Runs of earlier versions know the
    first half alone, see `same_data`.

    Args:
      labels: whether the tracks' tags count, too.
    """
    rows = [self.splits, self.ids, map(str, self.samples)]
    rows += [map(str, self.labels.tolist())] if labels else []
    audio = [
      sealed.files.get(_ENERGY) or seal.measure(sealed.folder / _ENERGY)
      for sealed in self._sealed
    ]
    digest = hashlib.sha256(json.dumps(audio, sort_keys=True).encode())
    tracks = plans.fingerprint(zip(*rows, strict=True), ())
    return f"{tracks}-{digest.hexdigest()[:16]}"

  def energy(self, track: int) -> np.ndarray:
    """Returns the mean square of a track's blocks, float32 [blocks].

    Raises:
      InputError: the file is damaged there.
    """
    which = -1 - self._set[self._part[track]]  # parts have the others
    if which not in self._handles:
      self._handles[which] = self._sealed[-1 - which].map(_ENERGY, "<f4")
    first = self._first_block[track]
    blocks = self.samples[track] // BLOCK
    return self._handles[which][first : first + blocks]

  def read(
    self, track: int, start: int, length: int, out: np.ndarray | None = None
  ) -> np.ndarray:
    """Reads part of a track.

    Args:
      track: index into the table.
      start: first sample.
      length: in samples; `start + length` is within the track.
      out: int16 [length] to read into; None makes a new array.

    Returns:
      int16 [length].

    Raises:
      InputError: a shard is missing or damaged.
    """
    out = np.empty(length, np.int16) if out is None else out
    row, record = int(self._row[track]), self._source(int(self._part[track]))
    for chunk in range(start // CHUNK, -(-(start + length) // CHUNK)):
      shift = chunk * CHUNK - start  # of the record against `out`
      first, last = max(-shift, 0), min(length - shift, CHUNK)
      audio = record(row + chunk, self.ids[track], chunk)[first:last]
      if len(audio) < last - first:
        raise record.damaged(row + chunk, "it is too short")
      out[shift + first : shift + last] = audio
    return out

  def _source(self, part: int) -> records.Reader:
    if part not in self._handles:
      advice = f"restore that file, or {prepared.ADVICE}"
      self._handles[part] = records.Reader(self._shards[part], advice)
    return self._handles[part]


def same_data(old: str, new: str) -> bool:
  """Says whether two of `Tracks.fingerprint` may be of the same data.

  Args:
    old: that a run has stored, perhaps before the audio was part of it.
    new: of the data as they are.
  """
  return old in (new, tracks_of(new))


def tracks_of(fingerprint: str) -> str:
  """Returns the half of `Tracks.fingerprint` that is not of the audio."""
  return fingerprint.partition("-")[0]


def find(name: str, data_dir: str | os.PathLike | None = None) -> Path:
  """Returns the folder of a data set.

  Raises:
    InputError: it is not there, or of a version that is no longer read.
  """
  data_dir = Path(data_dir) if data_dir else default_data_dir()
  folder = data_dir / name / VERSION
  if name and folder.is_dir():  # there once it is whole
    return folder
  versions = sorted(
    f.parent.name for f in folder.parent.glob("[0-9]*/tracks.csv")
  )
  if name and versions:
    raise InputError(
      f"data set {name} in {data_dir} is of version {' and '.join(versions)},"
      f" and this program reads {VERSION}: make it again with python -m"
      " ssl_music.prepare"
    )
  there = sorted(
    f.parent.parent.name for f in data_dir.glob(f"*/{VERSION}/tracks.csv")
  )
  raise InputError(
    f"no data set {name!r} in {data_dir} (there: {', '.join(there) or 'none'}):"
    " make it with python -m ssl_music.prepare, or give the right"
    " --config.data.name and --config.data.data_dir"
  )
