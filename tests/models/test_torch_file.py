"""Files of torch.save: what PyTorch wrote, hostile ones, and damaged ones."""

import functools
import io
import pathlib
import pickle
import random
import struct
import sys
import time
import tracemalloc
import zipfile

import golden
import make_torch_files
import ml_dtypes
import numpy as np
import pytest
import torch_files
from torch_files import Call, Name, Persistent, Raw, View

from ssl_music.errors import InputError
from ssl_music.models import torch_checkpoint, torch_file

HERE = pathlib.Path(__file__).parent
SYSTEM = Name("posix", "system")
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
FLOATS = Name("torch", "FloatStorage")
VALUES = golden.rand("values", (3, 4))
STORAGE = Persistent(("storage", FLOATS, "0", "cpu", 12))


def written(tmp_path, data):
  path = tmp_path / "file.pt"
  path.write_bytes(data)
  return path


def same(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].dtype == value.dtype, name
    assert found[name].shape == value.shape, name
    assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("file", ["torch_zip.pt", "torch_legacy.pt"])
def test_what_pytorch_wrote(file):
  views = make_torch_files.VIEWS
  if file == "torch_zip.pt":
    views = views | make_torch_files.NEW_VIEWS
  expected = {
    name: view(make_torch_files.values(dtype))
    for name, (dtype, view) in views.items()
  }
  expected = {name: np.asarray(value) for name, value in expected.items()}
  same(
    torch_file.read(HERE / file), expected | {"parameter": expected["whole"]}
  )


@pytest.mark.parametrize("swap", [False, True])
def test_both_byte_orders(tmp_path, swap):
  kinds = ("float16", "bfloat16", "float32", "float64", "int64", "bool")
  state = {kind: make_torch_files.values(kind) for kind in kinds}
  state["transposed"] = state["float32"].T
  path = written(tmp_path, torch_files.zipped(state, swap=swap))
  same(torch_file.read(path), state)


def test_views(tmp_path):
  state = {
    "shared": View(VALUES, 1, (2, 3), (4, 1)),
    "again": VALUES,
    "expanded": View(VALUES, 2, (5, 2), (0, 1)),
    "last": View(VALUES, 11, (1, 1), (2**62, 7)),
    "value": View(VALUES, 5, (), ()),
    "nothing": View(VALUES, 12, (0, 3), (3, 1)),
  }
  expected = {
    "shared": VALUES[:2, 1:4],
    "again": VALUES,
    "expanded": np.broadcast_to(VALUES.reshape(-1)[2:4], (5, 2)),
    "last": VALUES[2:, 3:],
    "value": VALUES[1, 1].reshape(()),
    "nothing": np.zeros((0, 3), np.float32),
  }
  for write in (torch_files.zipped, torch_files.legacy):
    same(torch_file.read(written(tmp_path, write(state))), expected)


def test_what_is_no_tensor_is_passed_over(tmp_path):
  state = {
    "a": VALUES,
    "_extra_state": Call(Name("unknown", "Thing"), (VALUES,)),
    "counter": 3,
    "quantised": Call(Name("torch._utils", "_rebuild_qtensor"), (STORAGE,)),
    7: VALUES,
    (1, 2): VALUES,
    "parameter": Call(
      Name("torch._utils", "_rebuild_parameter"),
      (VALUES, True, Call(Name("collections", "OrderedDict"))),
    ),
  }
  found = torch_file.read(written(tmp_path, torch_files.zipped(state)))
  same(found, {"a": VALUES, "parameter": VALUES})


def test_names_do_not_reach_a_terminal_as_they_are(tmp_path):
  state = {"\x1b[2J\n": VALUES}
  found = torch_file.read(written(tmp_path, torch_files.zipped(state)))
  assert list(found) == [r"\x1b[2J\n"]


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ([VALUES], "holds no state dict"),
    (VALUES, "holds no state dict"),
    (Call(Name("torch.nn", "Linear"), (), None, {}), "holds no state dict"),
    ({}, "holds no tensors by name, neither at its top nor in 'model' or"),
    ({"model": {"a": [VALUES]}}, "holds no tensors by name"),
    ({"model": {"a": Call(SYSTEM, ("true",))}}, "holds no tensors by name"),
  ],
)
def test_files_without_a_state_dict(tmp_path, value, message):
  for write in (torch_files.zipped, torch_files.legacy):
    with pytest.raises(InputError, match=message):
      torch_file.read(written(tmp_path, write(value)))


def rebuilt(storage, *arguments):
  """A tensor of VALUES's storage, as a hostile file would have it."""
  return {
    "values": VALUES,
    "a": Call(REBUILD, (storage, *arguments, False, {})),
  }


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ({"a": View(VALUES, 0, (4, 4), (4, 1))}, "16 values in a storage of 12"),
    ({"a": View(VALUES, 1, (3, 4), (4, 1))}, "13 values in a storage of 12"),
    ({"a": View(VALUES, 0, (2, 2), (12, 1))}, "14 values in a storage of 12"),
    ({"a": View(VALUES, 2**62, (1,), (1,))}, "in a storage of 12"),
    ({"a": View(VALUES, -1, (1,), (1,))}, "no possible shape"),
    ({"a": View(VALUES, 0, (-1,), (1,))}, "no possible shape"),
    ({"a": View(VALUES, 0, (3,), (-1,))}, "no possible shape"),
    ({"a": View(VALUES, 0, (3,), (1, 1))}, "no possible shape"),
    ({"a": View(VALUES, 0, (1.0,), (1,))}, "no possible shape"),
    ({"a": View(VALUES, 0, (True,), (1,))}, "no possible shape"),
    ({"a": View(VALUES, 0, [3], (1,))}, "no possible shape"),
    ({"a": View(VALUES, 0, (1,) * 65, (1,) * 65)}, "no possible shape"),
    ({"a": View(VALUES, 0, (0, 2**62, 2**62), (1, 1, 1))}, "no possible shape"),
    ({"a": View(VALUES, 0, (2**40,), (0,))}, "far larger than the file"),
    ({"a": View(VALUES, 0, (2**62,) * 9, (0,) * 9)}, "far larger than"),
    (rebuilt(3, 0, (1,), (1,)), "a tensor without a storage"),
    (rebuilt(STORAGE, 0, (1,)), "no possible shape"),
    (rebuilt(STORAGE), "no pickle"),
    ({"a": Persistent(("storage", SYSTEM, "0", "cpu", 1))}, "refers to some"),
    ({"a": Persistent(("storage", FLOATS, 0, "cpu", 1))}, "refers to some"),
    ({"a": Persistent(SYSTEM)}, "refers to something else than a storage"),
    (
      rebuilt(Persistent(("storage", FLOATS, "9", "cpu", 1)), 0, (1,), (1,)),
      "lacks",
    ),
  ],
)
def test_tensors_that_cannot_be(tmp_path, value, message):
  for write in (torch_files.zipped, torch_files.legacy):
    with pytest.raises(InputError, match=message):
      torch_file.read(written(tmp_path, write(value)))


def nested(depth):
  return Raw(b"(" * depth + b"t" * depth)


def lists_of_lists(depth):
  """Lists of two that hold the one before twice: 2 ** depth in all."""
  return Raw(b"]q\x00" + b"](h\x00h\x00eq\x00" * depth)


def pairs(count):
  """An OrderedDict of one long list of pairs, made many times."""
  pair = b"(K\x01K\x02t"
  once = b"ccollections\nOrderedDict\nh\x05\x85R0"
  return Raw(b"](" + pair * count + b"eq\x050" + once * count + b"N")


BOMBS = {
  "nested": nested(50_000),
  "doubled": lists_of_lists(5000),
  "doubled as a key": {
    "x": Raw(b"}(" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 99 + b"Nu")
  },
  "a far place of the memo": Raw(b"Nr\xff\xff\xff\xff"),
  "many marks": Raw(b"(" * 50_000),
  "long text": Raw(b"X" + struct.pack("<I", 2**32 - 1)),
  "longer bytes": Raw(b"\x8e" + struct.pack("<Q", 2**60)),
  "a long number": Raw(b"\x8b" + struct.pack("<i", 2**31 - 1)),
  "pairs": pairs(5_000),
  "empty lists": Raw(b"]q\x07" * 100_000),
  "keys of equal hash": {
    i * sys.hash_info.modulus: None for i in range(60_000)
  },
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_cost_little(tmp_path, bomb):
  """They end in an error, or are passed over, within the memory of the file."""
  data = torch_files.zipped({"bomb": BOMBS[bomb], "model": {"a": VALUES}})
  path = written(tmp_path, data)
  start = time.monotonic()
  tracemalloc.start()
  try:
    found = torch_file.read(path)
  except InputError:
    found = None
  finally:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
  assert time.monotonic() - start < 10
  assert peak < 100 * len(data) + 2**20
  if found is not None:
    same(found, {"a": VALUES})


def test_zips_that_are_no_checkpoint(tmp_path):
  state = {"a": np.zeros((500, 500), np.float32)}
  packed = torch_files.zipped(state, method=zipfile.ZIP_DEFLATED)
  with pytest.raises(InputError, match="compressed, which PyTorch never does"):
    torch_file.read(written(tmp_path, packed))
  for part in ("archive/data/0", "archive/data.pkl"):
    whole = torch_files.zipped(state, leave_out=part)
    with pytest.raises(InputError, match=r"lacks its part|none that torch"):
      torch_file.read(written(tmp_path, whole))
  changed = bytearray(torch_files.zipped(state))
  changed[len(changed) // 2] ^= 1  # in the tensor
  with pytest.raises(InputError, match="Bad CRC-32 for file"):
    torch_file.read(written(tmp_path, changed))


def test_a_zip_whose_parts_overlap(tmp_path):
  """A thousand storages that all lie at the same bytes."""
  whole = np.zeros(100_000, np.float32)
  state = {f"t{i}": whole[:1].copy() for i in range(50)}
  storages = {}
  content = torch_files.pickled(state, storages)
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("a/data.pkl", content)
    archive.writestr("a/data/0", whole.tobytes())
    first = archive.getinfo("a/data/0")
    for key in storages:
      if key != "0":
        again = zipfile.ZipInfo(f"a/data/{key}")
        for field in ("header_offset", "CRC", "file_size", "compress_size"):
          setattr(again, field, getattr(first, field))
        archive.filelist.append(again)
  with pytest.raises(InputError, match="parts that overlap"):
    torch_file.read(written(tmp_path, file.getvalue()))


def test_a_zip_with_an_endless_directory(tmp_path, monkeypatch):
  path = written(tmp_path, torch_files.zipped({"a": VALUES}))
  monkeypatch.setattr(torch_file._Limited, "limit", 100)
  with pytest.raises(InputError, match="directory far larger than PyTorch"):
    torch_file.read(path)


def test_legacy_storages_are_checked(tmp_path):
  whole = torch_files.legacy({"a": VALUES})
  keys = pickle.dumps(["0"], 2)
  start = whole.index(keys)
  tail = whole[start + len(keys) :]
  for changed, message in (
    (pickle.dumps(["1"], 2) + tail, "lists a storage that it does not use"),
    (pickle.dumps([], 2), "lacks the storage of a tensor"),
    (pickle.dumps({}, 2), "does not list its storages"),
    (keys + struct.pack("<Q", 2**63) + tail[8:], "breaks off at byte"),
    (keys + struct.pack("<Q", 2) + tail[8:], "12 values in a storage of 2"),
  ):
    with pytest.raises(InputError, match=message):
      torch_file.read(written(tmp_path, whole[:start] + changed))
  version = whole.replace(pickle.dumps(1001, 2), pickle.dumps(999, 2))
  with pytest.raises(InputError, match="unknown version"):
    torch_file.read(written(tmp_path, version))


def mutated(data, rng):
  """Bytes changed, cut out, doubled or swapped for a place in the file."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
    place = rng.randrange(len(data))
    match rng.randrange(5):
      case 0:
        data[place] = rng.randrange(256)
      case 1:
        data[place] ^= 1 << rng.randrange(8)
      case 2:
        del data[place : place + rng.choice((1, 4, 50))]
      case 3:
        data[place:place] = data[place : place + rng.choice((1, 4, 50))]
      case 4:
        data[place : place + 4] = struct.pack("<i", rng.choice((-1, 2**31 - 1)))
    data = data or bytearray(1)
  return bytes(data)


def fuzz(path, count, seed=0):
  """Reads mutated files; returns how many could be read."""
  rng = random.Random(seed)
  value = {**torch_files.junk("false"), "model": {"a": VALUES, "b": VALUES}}
  brain = VALUES.astype(ml_dtypes.bfloat16)
  value["model"] |= {"c": View(VALUES, 1, (2, 2), (1, 4)), "d": brain}
  value["model"]["e"] = VALUES > 0
  real = [
    (HERE / f"torch_{kind}.pt").read_bytes() for kind in ("zip", "legacy")
  ]
  whole = (torch_files.zipped(value), torch_files.legacy(value), *real)
  read = 0
  for index in range(count):
    if index % 5 == 4:  # checksums are right, the pickle is not
      change = functools.partial(mutated, rng=rng)
      data = torch_files.zipped(value, change=change)
    else:
      data = mutated(whole[index % 5 % len(whole)], rng)
    path.write_bytes(data)
    try:
      found = torch_checkpoint._read(path)[0]
    except InputError as error:
      assert "\n" not in str(error)
      continue
    read += 1
    for array in found.values():
      assert array.nbytes < 10 * len(data)
      array.tobytes()  # every value is there
  return read


def test_damaged_files_lead_to_an_error_or_to_tensors(tmp_path):
  assert fuzz(tmp_path / "file.pt", 1500) > 50
