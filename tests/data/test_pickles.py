"""Pickles are read as `pickle` reads them, and none of their code runs."""

import io
import math
import pickle
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ssl_music.data import pickles
from ssl_music.errors import InputError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
TEXTS = [
  "",
  "a",
  "rock 'n' \"roll\"",
  "back\\slash\n\ttab\r",
  "Björk",
  "音楽🎵",
]
ARRAYS = [
  np.random.default_rng(0).standard_normal(50),
  np.arange(12, dtype=np.int32).reshape(3, 4),
  np.asfortranarray(np.arange(12, dtype=np.uint16).reshape(3, 4)),
  np.arange(6, dtype=">i8").reshape(1, 2, 3),
  np.arange(12, dtype=">f4")[::2],
  np.array([[True, False], [False, True]]),
  np.zeros((0, 3)),
  np.array(2.5),
  np.array([math.nan, math.inf, -0.0], np.float16),
  np.array(TEXTS),
  np.asfortranarray([["a", "bc"], ["é", "音"]]),
  np.array(["b", "cd"]).astype(">U2"),
  np.array([b"a\xff", b""]),
  np.array(["a", "bb", None, 1, 2.5, True, "bb"], object),
  np.asfortranarray(np.arange(6).reshape(2, 3)).astype(object),
]


def written(folder, data, name="data.cP"):
  path = folder / name
  path.write_bytes(data)
  return path


def same(a, b):
  """Says whether two values are equal, of the same types all through."""
  if type(a) is not type(b):
    return False
  if isinstance(a, np.ndarray):
    if a.shape != b.shape or a.dtype != b.dtype.newbyteorder("="):
      return False
    if a.dtype.kind != "O":
      return a.tobytes() == b.astype(a.dtype).tobytes()  # NaN, -0.0
    return all(map(same, a.reshape(-1), b.reshape(-1)))
  if isinstance(a, dict):
    return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
  if isinstance(a, list | tuple):
    return len(a) == len(b) and all(map(same, a, b))
  return a == b or (a != a and b != b)


def random_value(rng, depth=0):
  kind = rng.integers(0, 9 if depth < 4 else 6)
  if kind == 0:
    return [None, True, False][rng.integers(3)]
  if kind == 1:
    return int(rng.integers(-(2**63), 2**63 - 1)) >> int(rng.integers(64))
  if kind == 2:
    return float(rng.standard_normal() * 10.0 ** rng.integers(-300, 300))
  if kind in (3, 4):
    return TEXTS[rng.integers(len(TEXTS))] * int(rng.integers(1, 90))
  if kind == 5:
    return ARRAYS[rng.integers(len(ARRAYS))]
  values = [random_value(rng, depth + 1) for _ in range(rng.integers(0, 6))]
  if kind == 6:
    return {f"{index}é": value for index, value in enumerate(values)}
  return tuple(values) if kind == 7 else values


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_agrees_with_pickle(tmp_path, protocol):
  rng = np.random.default_rng(protocol)
  values = [random_value(rng) for _ in range(80)]
  values += [*ARRAYS, b"", b"\x00\xff'", list(range(3000)), [ARRAYS[0]] * 3]
  values += [{"1": 2, b"a": "b"}, 2**64 - 1, -(2**63), 255, 65536]
  for value in values:
    data = pickle.dumps(value, protocol)
    expected = pickle.loads(data)
    assert same(pickles.read(written(tmp_path, data)), expected), value
    if protocol < 4:  # where NumPy 1 has the same functions
      data = data.replace(b"numpy._core", b"numpy.core")
      assert same(pickles.read(written(tmp_path, data)), expected), value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_of_numpy_become_pythons(tmp_path, protocol):
  scalars = [
    *(np.float64(1.5), np.float32(0.1), np.int8(-3), np.uint64(2**64 - 1)),
    *(np.bool_(True), np.str_("bé"), np.bytes_(b"a\xff")),
  ]
  data = pickle.dumps([scalars, {scalars[5]: scalars[0]}], protocol)
  values = [scalar.item() for scalar in scalars]
  expected = [values, {"bé": 1.5}]
  assert same(pickles.read(written(tmp_path, data)), expected)


def test_the_same_list_twice(tmp_path):
  shared = ["a"]
  first, second = pickles.read(
    written(tmp_path, pickle.dumps([shared, shared]))
  )
  assert first == second == shared


def python2_repr(raw):
  """As Python 2 writes a string."""
  quote = '"' if b"'" in raw and b'"' not in raw else "'"
  named = {9: "\\t", 10: "\\n", 13: "\\r", 92: "\\\\", ord(quote): "\\" + quote}
  escaped = (
    named.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}")
    for byte in raw
  )
  return (quote + "".join(escaped) + quote).encode()


def python2_list(raws):
  """As Python 2's cPickle writes a list of strings in protocol 0."""
  lines = [
    b"S%s\np%d\na" % (python2_repr(r), i + 2) for i, r in enumerate(raws)
  ]
  return b"(lp1\n" + b"".join(lines) + b"."


def python2_array(array):
  """As Python 2 with NumPy 1 writes {"TRAAA": array} in protocol 0."""
  shape = b"".join(b"I%d\n" % n for n in array.shape)
  return (
    b"(dp1\nS'TRAAA'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n"
    b"(cnumpy\nndarray\np4\n(I0\ntp5\nS'b'\np6\ntp7\nRp8\n(I1\n("
    + shape
    + b"tp9\ncnumpy\ndtype\np10\n(S'%s'\np11\n" % array.dtype.str[1:].encode()
    + b"I0\nI1\ntp12\nRp13\n(I3\nS'%s'\np14\n" % array.dtype.str[:1].encode()
    + b"NNNI-1\nI-1\nI0\ntp15\nbI00\nS"
    + python2_repr(array.tobytes())
    + b"\np16\ntp17\nbs."
  )


def test_strings_of_python_2(tmp_path):
  raws = [bytes([byte]) for byte in range(256)]
  raws += [bytes(range(256)), b"\\x41", b"'\"", b"'", b"\\'", b"\\u0041\\N{a}"]
  data = python2_list(raws)
  expected = pickle.loads(data, encoding="latin-1")
  assert expected == [raw.decode("latin-1") for raw in raws]
  assert pickles.read_strings(written(tmp_path, data)) == expected


def test_arrays_of_python_2(tmp_path):
  for array in (ARRAYS[0], ARRAYS[1], ARRAYS[3], ARRAYS[5]):
    data = python2_array(array)
    expected = pickle.loads(data, encoding="latin-1")
    assert np.array_equal(expected["TRAAA"], array)
    assert same(pickles.read(written(tmp_path, data)), expected)
  # Protocol 2: the bytes as BINSTRING instead.
  line = b"S" + python2_repr(array.tobytes()) + b"\n"
  raw = b"T" + len(array.tobytes()).to_bytes(4, "little") + array.tobytes()
  data = b"\x80\x02" + data.replace(line, raw)
  assert same(pickles.read(written(tmp_path, data)), expected)


def test_lists_of_strings(tmp_path):
  for value in (TEXTS, np.array(TEXTS), np.array(TEXTS, object)):
    path = written(tmp_path, pickle.dumps(value, 2))
    assert pickles.read_strings(path) == TEXTS
  path = written(tmp_path, pickle.dumps(np.array([b"a", b"\xe9"])))
  assert pickles.read_strings(path) == ["a", "é"]
  for value in ({"a": 1}, "a", np.array([["a"]]), ["a", 1], [b"a"], np.ones(2)):
    path = written(tmp_path, pickle.dumps(value))
    with pytest.raises(InputError, match="of strings"):
      pickles.read_strings(path)


def npy(array, version=None):
  file = io.BytesIO()
  np.lib.format.write_array(file, array, version)
  return file.getvalue()


def test_npy_files(tmp_path):
  for array in (*ARRAYS, np.array({"a": [1, 2]}, object)):
    for version in ((1, 0), (2, 0)):
      path = written(tmp_path, npy(array, version), "data.npy")
      expected = np.load(path, allow_pickle=True)
      assert same(pickles.load_array(path), expected)
  # As Python 2 on Windows wrote it.
  data = npy(np.arange(6.0)).replace(b"(6,), }  ", b"(6L,), } ")
  path = written(tmp_path, data, "data.npy")
  assert pickles.load_array(path).tolist() == list(range(6))


def test_npy_files_that_are_wrong(tmp_path):
  good = npy(np.arange(6.0))
  objects = npy(np.array(["a", "b"], object))
  for data, message in (
    (b"", "no whole .npy"),
    (good[:40], "no whole .npy"),
    (pickle.dumps([1]), "no whole .npy"),
    (good[:-1], "holds 47 bytes of values for an array of 48"),
    (good + b"\0", "holds 49 bytes"),
    (good.replace(b"(6,)", b"(7,)"), "for an array of 56"),
    (good.replace(b"(6,)", b"-60 "), "no whole .npy"),
    (good.replace(b"<f8", b"<m8"), "array of type '<m8'"),
    (good.replace(b"<f8", b"<c8"), "array of type '<c8'"),
    (good.replace(b"'<f8'", b"'<f8'*9"), "no whole .npy"),
    (objects.replace(b"(2,)", b"(3,)"), "another array"),
    (npy(np.array([{}])) + b"x", "goes on"),
    (objects[:-1], "breaks off"),
    (objects[:128] + pickle.dumps(["a", "b"]), "another array"),
    (objects[:128] + pickle.dumps(np.array(["a", "b"])), "another array"),
  ):
    path = written(tmp_path, data, "data.npy")
    with pytest.raises(InputError, match=message) as error:
      pickles.load_array(path)
    assert str(path) in str(error.value), message


def test_promises_are_not_allocated(tmp_path):
  data = npy(np.arange(6.0)).replace(
    b"(6,), }" + b" " * 9, b"(99999999999,), }"
  )
  assert b"99999999999" in data
  paths = [
    written(tmp_path, data, "data.npy"),
    written(tmp_path, b"B\xff\xff\xff\xffabc", "data.cP"),
    written(tmp_path, b"\x80\x04\x95" + b"\xff" * 7 + b"\0B\xff\xff\xff\x7f."),
  ]
  tracemalloc.start()
  try:
    for path in paths:
      with pytest.raises(InputError):
        reader = pickles.load_array if path.suffix == ".npy" else pickles.read
        reader(path)
    assert tracemalloc.get_traced_memory()[1] < 2e6
  finally:
    tracemalloc.stop()


def test_files_that_cannot_be_read(tmp_path):
  for reader in (pickles.read, pickles.read_strings, pickles.load_array):
    with pytest.raises(InputError, match=r"cannot read .*absent"):
      reader(tmp_path / "absent")
    with pytest.raises(InputError, match="is no file"):
      reader(tmp_path)


def mutated(data, rng):
  """Flips, deletes, inserts or repeats bytes, cuts, or changes digits."""
  data = bytearray(data)
  for _ in range(rng.choice([1, 1, 2, 3])):
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.randrange(1, 12))
    kind = rng.randrange(8)
    if kind == 0:
      del data[start:end]
    elif kind == 1:
      data[start:start] = rng.randbytes(rng.randrange(1, 6))
    elif kind == 2:
      data[start:start] = data[start:end] * rng.randrange(1, 30)
    elif kind == 3:
      del data[start:]
    elif kind < 6:
      data[start:end] = data[start:end].translate(
        bytes.maketrans(b"0123456789", b"%010d" % rng.randrange(10**10))
      )
    elif start < len(data):
      data[start] ^= 1 << rng.randrange(8)
  return bytes(data)


def assert_plain(value):
  """Goes through all of a value, as whoever uses it would."""
  if isinstance(value, np.ndarray):
    assert value.dtype.kind in "biufUSO"
    if value.size < 10_000:
      assert_plain(value.tolist())
  elif isinstance(value, dict):
    assert_plain(list(value.keys()))
    assert_plain(list(value.values()))
  elif isinstance(value, list | tuple):
    for entry in value:
      assert_plain(entry)
  else:
    assert type(value) in (type(None), bool, int, float, str, bytes)
    str(value).encode()


def test_mutated_files_are_values_or_errors(monkeypatch):
  rng = random.Random(1)
  array = np.array([["ab", "ç"]])
  value = {
    "TRAAA": np.arange(5.0),
    "b": [1, 2.5, None, "é"],
    "c": [True, array],
  }
  value["d"] = [np.float32(2), np.array(["x", 3], object), b"raw"]
  seeds = [pickle.dumps(value, protocol) for protocol in PROTOCOLS]
  seeds += [python2_list([b"a/b.mp3", b"\xff'", b"c"] * 3)]
  seeds += [python2_array(np.arange(6, dtype="<i4").reshape(2, 3))]
  arrays = (ARRAYS[1], np.eye(3) > 0, array, np.array(["a", None, 2], object))
  files = [npy(array) for array in arrays]
  counts = {"values": 0, "errors": 0}
  start = time.monotonic()
  for index in range(3000):
    choices = files if index % 3 == 0 else seeds
    data = mutated(rng.choice(choices), rng)
    # Without a file: writing 3000 takes longer than reading them.
    monkeypatch.setattr(pickles, "_bytes", lambda _, data=data: data)
    reader = pickles.load_array if index % 3 == 0 else pickles.read
    try:
      assert_plain(reader(Path("split.cP")))
      counts["values"] += 1
    except InputError as error:
      assert str(error).startswith("split.cP ")
      counts["errors"] += 1
  assert min(counts.values()) > 300, counts  # both were tried
  assert time.monotonic() - start < 60
