"""Code in a pickle never runs, and bombs cost little."""

import copyreg
import io
import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_pickles import npy, python2_array, written

from ssl_music.data import pickles
from ssl_music.errors import InputError

# Code that shows it has run: each makes the folder that it is given.


def make(folder):
  Path(folder).mkdir()
  return folder


class Maker:
  def __new__(cls, folder):
    make(folder)
    return super().__new__(cls)


class Restored:
  def __setstate__(self, state):
    make(state)


def hostile(folder):
  """Yields pickles that make the folder as soon as they are unpickled."""
  module = __name__.encode()
  name = str(folder).encode()
  text = b"V" + name + b"\n"
  short = lambda raw: b"\x8c" + bytes([len(raw)]) + raw
  call = b"c%s\nmake\n(%stR" % (module, text)
  yield b"cos\nmkdir\n(" + text + b"tR."
  yield b"cos\nsystem\n(Vmkdir '" + name + b"'\ntR."
  yield (
    b"\x80\x04" + short(b"os") + short(b"mkdir") + b"\x93" + text + b"\x85R."
  )
  yield b"(" + text + b"i" + module + b"\nmake\n."
  yield b"(c" + module + b"\nmake\n" + text + b"o."
  yield b"\x80\x02c" + module + b"\nMaker\n" + text + b"\x85\x81."
  yield b"\x80\x04c" + module + b"\nMaker\n" + text + b"\x85}\x92."
  yield b"\x80\x02c" + module + b"\nRestored\n)\x81" + text + b"b."
  yield b"c__builtin__\neval\n(V__import__('os').mkdir('" + name + b"')\ntR."
  yield b"cnumpy\nsave\n(V" + name + b".npy\nI1\ntR."
  yield b"\x80\x02\x82\xf0" + text + b"\x85R."  # registered below
  yield b"(l" + call + b"a0I1\n."  # done, thrown away
  yield b"(dS'a'\n" + call + b"s."
  # As an argument of the functions that are known.
  yield b"cnumpy.core.multiarray\n_reconstruct\n(" + call + b"(I0\ntS'b'\ntR."
  yield b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR" + call + b"b."


def test_code_is_never_run(tmp_path):
  marker = tmp_path / "marker"
  others = tmp_path / "marker.npy"
  copyreg.add_extension(__name__, "make", 0xF0)
  try:
    for index, data in enumerate(hostile(marker)):
      with pytest.raises(InputError, match="asks for"):
        pickles.read(written(tmp_path, data))
      header = io.BytesIO()
      array = {"descr": "|O", "fortran_order": False, "shape": (1,)}
      np.lib.format.write_array_header_1_0(header, array)
      path = written(tmp_path, header.getvalue() + data, "data.npy")
      with pytest.raises(InputError, match="asks for"):
        pickles.load_array(path)
      assert not marker.exists() and not others.exists(), index
      # The test is worth something: unpickled, this would have run.
      try:
        pickle.loads(data)
      except Exception as error:
        assert marker.exists() or others.exists(), (index, error)
      if others.exists():
        others.unlink()
      else:
        marker.rmdir()
  finally:
    copyreg.remove_extension(__name__, "make", 0xF0)


def test_no_state_reaches_a_function_of_ours(tmp_path):
  """BUILD sets attributes of whatever has no state of its own."""
  before = dict(vars(pickles._encode)), pickles._encode.__defaults__
  for state in (b"}Va\nI1\ns", b"N}V__defaults__\n(I1\nts\x86"):
    for name in (b"_codecs\nencode", b"numpy\ndtype", b"builtins\ndict"):
      with pytest.raises(InputError):
        pickles.read(written(tmp_path, b"c" + name + b"\n" + state + b"b."))
  assert before == (vars(pickles._encode), pickles._encode.__defaults__)


LONG = b"X" + (2_000_000).to_bytes(4, "little") + b"x" * 2_000_000 + b"\x94"
# Bytes, and some words of the sentence that refuses them.
REFUSED = {
  b"}cos\nsystem\n.": r"the code os\.system, and .* never run",
  b"cos\x1b[31m\nsystem\n.": r"os\\x1b\[31m\.system",
  b"c_codecs\nencode\n(Va\nVrot13\ntR.": "no pickle",
  b"c__builtin__\nbytes\n(I999999999\ntR.": "no pickle",
  b"cnumpy\nndarray\n((I9\nttR.": "no pickle",
  b"cnumpy\ndtype\n(VM8[ns]\nI0\nI1\ntR.": "array of type 'M8",
  b"cnumpy\ndtype\n(Vf8\nI0\nI1\ntR.": "code instead of data",
  b"cnumpy\ndtype\n.": "code instead of data",
  b"Pfile\n.": "refers to what is not in the file",
  b"Nq\x00Q.": "refers to what is not in the file",
  b"\x82\x01.": "asks for EXT1",
  b"\x80\x05\x97.": "no pickle",
  b"\x80\x04\x8f.": "code builtins.set",
  b"(N\x91.": "asks for FROZENSET",
  b"\x80\x06N.": "no pickle",
  b"": "breaks off at byte 0",
  b"(lp1\nS'a'\n": "breaks off at byte 10",
  b"<!DOCTYPE html>": "no pickle",
  b"N.N.": "goes on after the end",
  b".": "no pickle",
  b"t.": "no pickle",
  b"}(Ne.": "no pickle",
  b"}(Nu.": "no pickle",
  b"(NNd.": "a dict of a list",
  b"}]Ns.": "key that is no text",
  b"}I1\nNs.": "key that is no text",
  b"}(Va\nNVa\nNu.": "key twice",
  b"g7\n.": "no pickle",
  b"Np-1\n.": "impossible place",
  b"Nr\xff\xff\xff\xff.": "impossible place",
  b"I" + b"9" * 9000 + b"\n.": "no pickle",
  b"]q\x00h\x00a.": "without measure",  # holds itself
  b"]q\x00}Va\nh\x00sa.": "without measure",
  b"]" * 5000 + b"a" * 4999 + b".": "without measure",
  b"N" + b"\x85" * 150_000 + b".": "without measure",
  b"}N" + b"\x85" * 150_000 + b"Ns.": "key that is no text",
  b"]()q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"e.": "without measure",
  b"\x80\x04]("
  + LONG
  + b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R" * 99
  + b"e.": "far more bytes than it has",
  b"\x8e" + b"\xff" * 8 + b"abc": "breaks off",
  b"\x8d" + b"\xff" * 7 + b"\x7fabc": "breaks off",
  b"\x96" + b"\xff" * 7 + b"\x7fabc": "breaks off",
  b"X\xff\xff\xff\x7fabc": "breaks off",
  b"T\xff\xff\xff\x7fabc": "breaks off",
  b"\x8b\xff\xff\xff\x7fabc": "breaks off",
  b"\x80\x04\x95" + b"\xff" * 7 + b"\0B\xff\xff\xff\x7f.": "breaks off",
  b"X\x03\x00\x00\x00\xed\xa0\x80.": "not Unicode",  # half a surrogate pair
}


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_what_is_refused(tmp_path, index):
  data, message = list(REFUSED.items())[index]
  path = written(tmp_path, data)
  start = time.monotonic()
  tracemalloc.start()
  try:
    with pytest.raises(InputError, match=message) as error:
      pickles.read(path)
    assert tracemalloc.get_traced_memory()[1] < 50 * len(data) + 2e6
  finally:
    tracemalloc.stop()
  assert time.monotonic() - start < 60
  text = str(error.value)
  assert text.startswith(f"{path} ") and text.endswith("publisher again")
  assert len(text) < len(str(path)) + 250 and text.isprintable()


def test_number_of_steps_is_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, "_MAX_STEPS", 100)
  pickles.read(written(tmp_path, b"N0" * 49 + b"N."))
  with pytest.raises(InputError, match="more than 100 steps"):
    pickles.read(written(tmp_path, b"N0" * 50 + b"N."))


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    (b"(I2\nI3\n", b"(I2\nI4\n", "24 bytes of values for an array of 32"),
    (b"(I2\nI3\n", b"(I-2\nI-3\n", "no possible shape"),
    (b"(I2\nI3\n", b"(I01\nF6\n", "no possible shape"),
    (b"(I2\nI3\n", b"(" + b"I1\n" * 40, "no possible shape"),
    (b"(I2\nI3\n", b"(" + b"I9223372036854775807\n" * 32, "24 bytes"),
    (b"(I2\nI3\n", b"(I0\nI9223372036854775807\n", "24 bytes"),
    (b"S'i4'", b"S'c8'", "array of type 'c8'"),
    (b"S'i4'", b"S'i4,i4'", "array of type"),
    (b"S'i4'", b"S'O'", "no pickle|array of type"),
    (b"S'<'", b"S'|'", "no pickle"),
    (b"S'<'", b"S'<i4,<'", "no pickle"),
    (b"I-1\nI-1", b"I8\nI-1", "no pickle"),
    (b"I3\nS'<'", b"I4\nS'<'", "no pickle"),
    (b"tp15\nb", b"tp15\n0", "otherwise"),
    (b"tp17\nb", b"tp17\nbg17\nb", "no pickle"),
    (b"tp17\nb", b"tp17\n0", "code instead"),
    (b"tp17\nb", b"tp17\n" + b"0g13\ng17\nb", "no pickle"),
  ],
)
def test_arrays_that_are_not_as_numpy_writes_them(tmp_path, old, new, message):
  data = python2_array(np.arange(6, dtype="<i4").reshape(2, 3))
  assert data.count(old) == 1
  with pytest.raises(InputError, match=message):
    pickles.read(written(tmp_path, data.replace(old, new)))


def test_arrays_of_impossible_values(tmp_path):
  """NumPy takes these, and fails, or goes wrong, when they are used."""
  for array, old, new in (
    (np.array([True, True]), b"\x01\x01", b"\x01\x02"),
    (np.array(["qq"]), b"q\0\0\0", b"q\0\x11\0"),
    (np.array(["qq"]), b"q\0\0\0", b"\0\xd8\0\0"),
  ):
    data = pickle.dumps(array, 4)
    assert old in data
    with pytest.raises(InputError, match="that"):
      pickles.read(written(tmp_path, data.replace(old, new)))
    path = written(tmp_path, npy(array).replace(old, new), "data.npy")
    with pytest.raises(InputError, match="that"):
      pickles.load_array(path)
