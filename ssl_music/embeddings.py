"""The embedding cache: what a frozen encoder makes of a data set, on disk.

Embedding is the expensive part of a probe, and all probes of an encoder need
the same embeddings. So each (encoder, data set, split) is embedded once, from
the records straight into an array file, and read as a memory map from then on.

The file's name holds a hash of all that the array follows from: the encoder's
identity (weights, settings and code, see `features.identify`), the length of a
segment, which segments, and the data set's content. What changes has another
name, so that nothing stale is ever found; old arrays are left, and the folder
may be deleted at any time. The size of a batch and the number and kind of the
devices change an embedding by rounding alone, so they are not part of the name.

Numbers are float16, half of float32's bytes. `benchmarks/embedding_dtype.py`
compared: over five encoders and two data sets a ridge regression's macro mAP
differs from float32's by .0002 on average and .001 at most, its predictions for
the median tag by 0.5 % of their deviation at most. With bfloat16, which takes
as much room, these are .002, .010 and 4 %: it has an eighth of the resolution,
and features lie up to 30 deviations from zero. Its wider range is not needed:
the largest embeddings seen are 12, mel statistics 95, and float16's largest
number is 65504; a number beyond that is an error, never infinity.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssl_music import disk, features, lock
from ssl_music.data import pipeline
from ssl_music.data.segments import BLOCK
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

DTYPE = np.dtype("<f2")
_LAYOUT = 1  # of the files; another one shall not meet these
_PIECE = 1 << 24  # bytes read at once


def cached(
  frozen: features.Encoder,
  parts: Mapping[str, tuple[Tracks, np.ndarray]],
  *,
  folder: Path,
  batch: int,
  mesh: Mesh,
) -> dict[str, np.ndarray]:
  """Returns embeddings of segments, computed at most once.

  A run that was killed goes on after the whole batches it has written, and
  ends with the same bytes. Two processes may ask for the same at once: one
  embeds, the other waits. A file that is cut or damaged is made anew.

  Args:
    frozen: the encoder.
    parts: {split: (tracks, which segments of them: int64 [segments, 2], of
      `features.choose_segments`)}.
    folder: of the cache, for any encoders and data sets; made if missing.
    batch: segments a batch, a multiple of the devices.
    mesh: of devices.

  Returns:
    {split: float16 [segments, D] in the order of its segments}, memory maps
    that cannot be written to.

  Raises:
    InputError: the folder cannot be written to, or has too little space; an
      embedding is not finite or beyond float16's range.
  """
  folder = Path(folder)
  embed = features.mapped(frozen, mesh)  # compiled at the first batch, if any
  found = {}
  for split, (tracks, where) in parts.items():
    about = describe(frozen, split, tracks, where)
    file = folder / f"{tracks.name}-{split}-{about['key'][:20]}.npy"
    array = _read(file, about)
    if array is None:
      with lock.hold(
        folder,
        f"embedding {tracks.name} into",
        "give another folder",
        name=f"{file.stem}.lock",
        wait=True,
      ):
        array = _read(file, about)  # what another process has made meanwhile
        if array is None:
          _write(file, about, frozen, embed, tracks, where, batch, mesh)
          array = _read(file, about)
    if array is None:
      raise InputError(
        f"{file} does not hold what has just been written to it: check that"
        " disk, or give another folder"
      )
    found[split] = array
  return found


def describe(
  frozen: features.Encoder, split: str, tracks: Tracks, where: np.ndarray
) -> dict[str, Any]:
  """Returns what an array is of, for people and, as "key", for the cache.

  Args:
    frozen: the encoder.
    split: what the caller calls this part of the data set.
    tracks: its tracks.
    where: int64 [segments, 2], which segments of them.
  """
  order = np.ascontiguousarray(where, "<i8")
  inputs = {
    "layout": _LAYOUT,
    "dtype": DTYPE.name,
    "encoder": frozen.identity,
    "blocks": pipeline.blocks(frozen.seconds),
    "data": tracks.fingerprint(),
    "segments": hashlib.sha256(order.tobytes()).hexdigest(),
  }
  key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
  return {
    "key": key,
    "encoder": frozen.described,
    "identity": frozen.identity,
    "seconds": frozen.seconds,
    "data": tracks.name,
    "split": split,
    "tracks": len(np.unique(order[:, 0])),
    "segments": len(order),
    "dtype": DTYPE.name,
  }


def _read(file: Path, about: Mapping[str, Any]) -> np.ndarray | None:
  """Maps a finished array; None where there is none, or it is damaged."""
  try:
    said = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    if said["key"] != about["key"] or said["crc32"] != _checksum(file):
      return None
    return np.load(file, mmap_mode="r")
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _checksum(file: Path) -> int:
  """Returns the CRC-32 of a file; reading it also warms the system's cache."""
  with file.open("rb") as opened:
    return _advance(opened, file.stat().st_size)


def _advance(opened: BinaryIO, size: int) -> int:
  """Reads so many bytes from the start on, and returns their CRC-32."""
  opened.seek(0)
  value = 0
  while size and (piece := opened.read(min(size, _PIECE))):
    value = zlib.crc32(piece, value)
    size -= len(piece)
  return value


def _writing(folder: Path) -> contextlib.AbstractContextManager[None]:
  after = "the same command then goes on"
  return disk.explained(
    "write embeddings to", folder, option="--config.cache_dir", after=after
  )


def _write(file, about, frozen, embed, tracks, where, batch, mesh) -> None:
  """Embeds what is not there yet; the array's own name comes last.

  Until then it is `….npy.partial`, which grows by batches.
  """
  dimensions = _dimensions(frozen)
  header = _header(len(where), dimensions)
  partial = file.with_suffix(".npy.partial")
  with contextlib.ExitStack() as stack:
    with _writing(file.parent):
      # Without a buffer a batch is the system's once it is written, whatever
      # becomes of this process.
      opened = stack.enter_context(partial.open("a+b", buffering=0))
      width = dimensions * DTYPE.itemsize  # bytes a segment
      done = _whole(opened, header, width, len(where), batch)
      checksum = _advance(opened, len(header) + done * width)
    missing = (len(where) - done) * width
    free = shutil.disk_usage(file.parent).free
    if missing > free:
      raise InputError(
        f"the embeddings of {about['data']} need {missing / 1e9:.3g} GB more in"
        f" {file.parent}, where {free / 1e9:.3g} GB are free: free some space,"
        " or give another folder"
      )
    rest = where[done:]
    batches = features.embed_batches(
      embed, tracks, rest, seconds=frozen.seconds, batch=batch, mesh=mesh
    )
    for vectors in batches if len(rest) else ():
      piece = _narrow(vectors, about).tobytes()
      checksum = zlib.crc32(piece, checksum)
      with _writing(file.parent):
        _append(opened, piece)
    with _writing(file.parent):
      os.fsync(opened.fileno())
      said = about | {"dimensions": dimensions, "crc32": checksum}
      text = json.dumps(said, indent=2) + "\n"
      disk.write(file.with_suffix(".json"), text)
      partial.rename(file)


def _whole(
  opened: BinaryIO, header: bytes, width: int, segments: int, batch: int
) -> int:
  """Cuts a partial file after its last whole batch; returns its segments."""
  opened.seek(0)
  if opened.read(len(header)) != header:  # new, or no such file
    opened.truncate(0)
    _append(opened, header)
  rows = (os.fstat(opened.fileno()).st_size - len(header)) // width
  # The last batch alone may be smaller, and whole nevertheless.
  done = segments if rows == segments else rows // batch * batch
  done = done if done <= segments else 0
  opened.truncate(len(header) + done * width)
  return done


def _append(opened: BinaryIO, data: bytes) -> None:
  """Writes all of it, in as many pieces as the system takes it."""
  view = memoryview(data)
  while view:
    view = view[opened.write(view) :]


def _header(segments: int, dimensions: int) -> bytes:
  """Returns the beginning of a NumPy file of such an array."""
  stream = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    stream,
    {
      "descr": np.lib.format.dtype_to_descr(DTYPE),
      "fortran_order": False,
      "shape": (segments, dimensions),
    },
  )
  return stream.getvalue()


def _dimensions(frozen: features.Encoder) -> int:
  """Returns the size of an encoder's embeddings, without computing one."""
  samples = pipeline.blocks(frozen.seconds) * BLOCK
  one = jax.ShapeDtypeStruct((1, samples), jnp.int16)
  return jax.eval_shape(frozen.embed, one).shape[-1]


def _narrow(vectors: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
  """Rounds embeddings to the file's type; none may become infinite."""
  with np.errstate(over="ignore"):
    narrow = vectors.astype(DTYPE)
  if not np.isfinite(narrow).all():
    what = "are not finite"
    if np.isfinite(vectors).all():
      what = f"reach {np.abs(vectors).max():.3g}, beyond float16's 65504"
    raise InputError(
      f"embeddings of {about['data']} by {about['encoder'].get('encoder')}"
      f" {what}: its training has diverged or hardly begun, so probe another"
      " checkpoint with --config.checkpoint, or train it anew at a lower"
      " learning rate"
    )
  return narrow
