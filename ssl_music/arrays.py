"""Writes NumPy archives (`.npz`), and reads those that come from elsewhere."""

import io
import math
import os
import struct
import tokenize
import warnings
import zipfile
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ssl_music.errors import InputError

_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


def dump(arrays: Mapping[str, npt.ArrayLike]) -> bytes:
  """Returns named arrays as an archive, as `np.savez` writes it."""
  stream = io.BytesIO()
  np.savez(stream, **arrays)
  return stream.getvalue()


def parse(
  content: bytes, where: str | os.PathLike, advice: str
) -> dict[str, np.ndarray]:
  """Returns the arrays of an archive, in little more memory than it takes.

  Args:
    content: of the file.
    where: the file, for messages.
    advice: what to do about a wrong one, for messages.

  Raises:
    InputError: it is damaged, or no archive of `dump`: compressed, or with
      arrays of objects or of other sizes than they say.
  """
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      members = archive.infolist()
      if any(one.compress_type != zipfile.ZIP_STORED for one in members):
        raise ValueError("it is compressed")
      if sum(member.file_size for member in members) > len(content):
        raise ValueError("it unpacks to more than it holds")
      return {
        member.filename.removesuffix(".npy"): _array(archive.read(member))
        for member in members
      }
  except (
    *(ArithmeticError, EOFError, LookupError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, struct.error, tokenize.TokenError),
    zipfile.BadZipFile,
  ) as error:
    raise InputError(f"{where} is damaged ({error}): {advice}") from error


def read_header(stream: io.BytesIO) -> tuple[tuple[int, ...], str, np.dtype]:
  """Returns shape, order and dtype of a .npy file (format 1.0 or 2.0).

  The stream is left at the values. Damage raises errors of many kinds.
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Python 2's numbers, such as 5L
    header = _HEADERS[np.lib.format.read_magic(stream)]
    shape, by_columns, dtype = header(stream)
  return shape, "F" if by_columns else "C", dtype


def _array(content: bytes) -> np.ndarray:
  stream = io.BytesIO(content)
  shape, order, dtype = read_header(stream)
  start = stream.tell()
  size = math.prod(shape) * dtype.itemsize
  if (
    dtype.hasobject or size != len(content) - start or min(shape, default=0) < 0
  ):
    raise ValueError(f"no array of {dtype} {list(shape)}")
  if not size:
    return np.zeros(shape, dtype, order)
  values = np.frombuffer(content, dtype, math.prod(shape), start)
  return values.reshape(shape, order=order)
