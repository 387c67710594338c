"""Code in a pickle never runs, and what is no plain data is refused."""

import copyreg
import io
import pickle
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
      with pytest.raises(InputError, match=r"never|asks for"):
        pickles.read(written(tmp_path, data))
      header = io.BytesIO()
      array = {"descr": "|O", "fortran_order": False, "shape": (1,)}
      np.lib.format.write_array_header_1_0(header, array)
      path = written(tmp_path, header.getvalue() + data, "data.npy")
      with pytest.raises(InputError, match=r"never|asks for"):
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


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"}cos\nsystem\n.", r"the code os\.system at byte 1, and .* never run"),
    (b"cbuiltins\neval\n.", r"builtins\.eval at byte 0"),
    (b"cnumpy\nload\n(Va\ntR.", r"numpy\.load at byte 0"),
    (b"c_codecs\nencode\n(Va\nVrot13\ntR.", "uses encode as NumPy does not"),
    (b"c_codecs\ndecode\n(Va\nVlatin1\ntR.", r"_codecs\.decode"),
    (b"c__builtin__\nbytes\n(I999999999\ntR.", "uses bytes"),
    (b"cnumpy\nndarray\n((I9\nttR.", "uses ndarray"),
    (b"cnumpy\ndtype\n(VO\nI0\nI0\ntR.", "uses dtype"),
    (b"cnumpy\ndtype\n(VM8[ns]\nI0\nI1\ntR.", "array of type 'M8"),
    (b"cnumpy\ndtype\n(Vf8\nI0\nI1\ntR.", "code instead of data"),
    (b"cnumpy\ndtype\n.", "code instead of data"),
    (b"cos\x1b[31m\nsystem\n.", r"os\\x1b\[31m\.system"),
    (b"cos\\x2e\\q\nsystem\n.", r"os\\\\x2e\\\\q\.system"),
    (b"Pfile\n.", "asks for PERSID"),
    (b"Nq\x00Q.", "asks for BINPERSID"),
    (b"\x82\x01.", "asks for EXT1"),
    (b"\x80\x05\x97.", "asks for NEXT_BUFFER"),
    (b"\x80\x04\x8f.", "asks for EMPTY_SET"),
    (b"\x80\x06N.", "protocol 6"),
    (b"", "breaks off at byte 0"),
    (b"(lp1\nS'a'\n", "breaks off at byte 10"),
    (b"<!DOCTYPE html>", "no pickle"),
    (b"N.N.", "goes on after the end"),
    (b"NN.", "halfway"),
    (b"(N.", "halfway"),
    (b".", "halfway"),
    (b"a.", "byte"),
    (b"Na.", "byte"),
    (b"]]Na.", "halfway"),
    (b"t.", "byte"),
    (b"0.", "byte"),
    (b"\x86.", "byte"),
    (b"}(Ne.", "byte"),
    (b"}(Nu.", "byte"),
    (b"}]Ns.", "key that is neither"),
    (b"}(Va\nNVa\nNu.", "key twice"),
    (b"g7\n.", "byte"),
    (b"h\x07.", "byte"),
    (b"Np-1\n.", "byte"),
    (b"I" + b"9" * 4000 + b"\n.", "64 bits"),
    (b"I" + b"9" * 9000 + b"\n.", "byte"),
    (b"L18446744073709551616L\n.", "64 bits"),
    (b"\x8a\x09" + b"\x01" * 9 + b".", "64 bits"),
    (b"]q\x00h\x00a.", "holds itself"),
    (b"]q\x00}Va\nh\x00sa.", "holds itself"),
    (b"]q\x00(h\x00h\x00te.", "byte"),
    (b"](q\x00h\x00te.", "byte"),
    (b"]" * 5000 + b"a" * 4999 + b".", "nested"),
    (b"N" + b"\x85" * 150_000 + b".", "nested"),
    (b"}N" + b"\x85" * 150_000 + b"Ns.", "key that is neither"),
    (b"(" * 10_000 + b".", "halfway"),
    (b"]q\x00N2" + b"](h\x00h\x00eq\x00" * 90 + b".", "halfway"),
    (b"\x8e" + b"\xff" * 8 + b"abc", "byte"),
    (b"\x8e" + b"\xff" * 7 + b"\x7fabc", "breaks off"),
    (b"\x8d" + b"\xff" * 7 + b"\x7fabc", "breaks off"),
    (b"\x96" + b"\xff" * 7 + b"\x7fabc", "breaks off"),
    (b"X\xff\xff\xff\x7fabc", "breaks off"),
    (b"T\xff\xff\xff\x7fabc", "breaks off"),
    (b"\x8b\xff\xff\xff\x7fabc", "breaks off"),
    (b"X\x03\x00\x00\x00\xed\xa0\x80.", "byte"),  # half a surrogate pair
  ],
)
def test_what_is_refused(tmp_path, data, message):
  path = written(tmp_path, data)
  with pytest.raises(InputError, match=message) as error:
    pickles.read(path)
  text = str(error.value)
  assert text.startswith(f"{path} ") and text.endswith("publisher again")
  assert len(text) < len(str(path)) + 250 and text.isprintable()


def test_lists_that_repeat_without_measure(tmp_path):
  """The value of these few bytes has 2**60 lists."""
  data = b"]" + b"q\x000](h\x00h\x00e" * 60 + b"."
  with pytest.raises(InputError, match="without measure"):
    pickles.read(written(tmp_path, data))


def test_number_of_steps_is_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, "_MAX_STEPS", 100)
  pickles.read(written(tmp_path, b"N0" * 49 + b"N."))
  with pytest.raises(InputError, match="more than 100 steps"):
    pickles.read(written(tmp_path, b"N0" * 50 + b"N."))


def array_pickle(old, new):
  """A pickled array with an error in one place."""
  data = python2_array(np.arange(6, dtype="<i4").reshape(2, 3))
  assert data.count(old) == 1
  return data.replace(old, new)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    (b"(I2\nI3\n", b"(I2\nI4\n", "24 bytes of values for an array of 8"),
    (b"(I2\nI3\n", b"(I-2\nI-3\n", "no possible shape"),
    (b"(I2\nI3\n", b"(I01\nF6\n", "no possible shape"),
    (b"(I2\nI3\n", b"(" + b"I1\n" * 40, "no possible shape"),
    (b"(I2\nI3\n", b"(" + b"I9223372036854775807\n" * 32, "24 bytes"),
    (b"(I2\nI3\n", b"(I0\nI9223372036854775807\n", "24 bytes"),
    (b"S'i4'", b"S'c8'", "array of type 'c8'"),
    (b"S'i4'", b"S'i4,i4'", "array of type"),
    (b"S'i4'", b"S'O'", "byte"),
    (b"S'i4'", b"S'b1'", "byte"),
    (b"S'<'", b"S'|'", "byte"),
    (b"S'<'", b"S'<i4,<'", "byte"),
    (b"I-1\nI-1", b"I8\nI-1", "byte"),
    (b"I3\nS'<'", b"I4\nS'<'", "sets up"),
    (b"bI00", b"bI7", "sets up"),
    (b"tp15\nb", b"tp15\n0", "sets up"),
    (b"tp17\nb", b"tp17\nbg17\nb", "sets up"),
    (b"tp17\nb", b"tp17\n0", "code instead"),
    (b"S'b'", b"S'c'", "uses reconstruct"),
    (b"tp17\nb", b"tp17\n" + b"0g13\ng17\nb", "sets up"),
  ],
)
def test_arrays_that_are_not_as_numpy_writes_them(tmp_path, old, new, message):
  with pytest.raises(InputError, match=message):
    pickles.read(written(tmp_path, array_pickle(old, new)))


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


def test_a_memo_that_multiplies_bytes_is_refused(tmp_path):
  """A long text once in the file, and many arrays made of it."""
  raw = b"x" * 2_000_000
  one = pickle.dumps(np.frombuffer(raw, "S1"), protocol=5)
  assert isinstance(pickles.read(_write(tmp_path, one)), np.ndarray)
  text = b"X" + len(raw).to_bytes(4, "little") + raw + b"\x94"
  call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
  data = b"\x80\x04](" + text + b"0" + call * 100 + b"e."
  with pytest.raises(InputError, match="makes far more bytes than it has"):
    pickles.read(_write(tmp_path, data))


def _write(folder, data):
  path = folder / "data.pkl"
  path.write_bytes(data)
  return path
