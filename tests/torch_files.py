"""Files as `torch.save` writes them, made without PyTorch, to test the reader.

The pickles are put together opcode by opcode, so that they can name any
function or class, installed or not, harmful or not.
"""

import dataclasses
import io
import itertools
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import golden
import numpy as np

STORAGES = {
  "bool": "BoolStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "float32": "FloatStorage",
  "float64": "DoubleStorage",
  "int64": "LongStorage",
}
MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass
class Name:
  """A function or class."""

  module: str
  name: str


@dataclasses.dataclass
class Call:
  """What a function or class makes, with items and state if it has any."""

  function: Any
  arguments: Any = ()
  items: dict | None = None
  state: Any = None
  opcode: bytes = b"R"


@dataclasses.dataclass
class Raw:
  """Opcodes as they are."""

  opcodes: bytes


@dataclasses.dataclass
class Persistent:
  """A persistent id."""

  identity: Any


@dataclasses.dataclass
class View:
  """A tensor: values of an array, by offset, size and stride."""

  values: np.ndarray
  offset: Any = 0
  size: Any = None
  stride: Any = None


def ordered(items: dict) -> Call:
  """An OrderedDict; as a state dict's, with metadata."""
  metadata = Call(Name("collections", "OrderedDict"), (), {"": {"version": 1}})
  function = Name("collections", "OrderedDict")
  return Call(function, (), items, {"_metadata": metadata})


def pickled(value: Any, storages: dict[str, np.ndarray]) -> bytes:
  """Pickles a value in protocol 2; arrays as tensors, adding their storages."""
  keys = {}
  slots = itertools.count()

  def tensor(view: View) -> Call:
    array = view.values
    key = keys.setdefault(id(array), str(len(keys)))
    storages[key] = array
    kind = Name("torch", STORAGES[array.dtype.name])
    size = array.shape if view.size is None else view.size
    stride = view.stride
    if stride is None:
      stride = tuple(step // array.itemsize for step in array.strides)
    storage = Persistent(("storage", kind, key, "cuda:0", array.size))
    hooks = Call(Name("collections", "OrderedDict"))
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, (storage, view.offset, size, stride, False, hooks))

  def write(value: Any) -> bytes:
    match value:
      case None | bool() | int() | float():
        return pickle.dumps(value, 2)[2:-1]
      case str():
        data = value.encode()
        put = b"r" + struct.pack("<I", next(slots))
        return b"X" + struct.pack("<I", len(data)) + data + put
      case tuple():
        return b"(" + b"".join(map(write, value)) + b"t"
      case list():
        return b"](" + b"".join(map(write, value)) + b"e"
      case dict():
        pairs = itertools.chain.from_iterable(value.items())
        return b"}(" + b"".join(map(write, pairs)) + b"u"
      case np.ndarray():
        return write(tensor(View(value)))
      case View():
        return write(tensor(value))
      case Name(module, name):
        return f"c{module}\n{name}\n".encode()
      case Persistent(identity):
        return write(identity) + b"Q"
      case Raw(opcodes):
        return opcodes
      case Call(function, arguments, items, state, opcode):
        data = write(function) + write(arguments) + opcode
        if items is not None:
          data += write(items)[1:]
        return data if state is None else data + write(state) + b"b"
    raise TypeError(type(value))

  return b"\x80\x02" + write(value) + b"."


def zipped(
  value: Any,
  *,
  change: Callable[[bytes], bytes] = bytes,
  swap: bool = False,
  method: int = zipfile.ZIP_STORED,
  leave_out: str = "",
) -> bytes:
  """The bytes of a file in the present format.

  Args:
    value: to be pickled.
    change: made to the pickle.
    swap: write as a big-endian machine does.
    method: of compression.
    leave_out: a part.
  """
  storages: dict[str, np.ndarray] = {}
  parts = {"archive/data.pkl": change(pickled(value, storages))}
  parts["archive/byteorder"] = b"big" if swap else b"little"
  for key, array in storages.items():
    array = array.byteswap() if swap else array
    parts[f"archive/data/{key}"] = array.tobytes(order="A")
  parts["archive/version"] = b"3\n"
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method) as archive:
    for name, content in parts.items():
      if name != leave_out:
        archive.writestr(name, content)
  return file.getvalue()


def legacy(value: Any) -> bytes:
  """The bytes of a file in the format before PyTorch 1.6."""
  storages: dict[str, np.ndarray] = {}
  machine = {"protocol_version": 1001, "little_endian": True}
  data = pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2)
  data += pickle.dumps(machine, 2) + pickled(value, storages)
  data += pickle.dumps(list(storages), 2)
  for array in storages.values():
    data += struct.pack("<q", array.size) + array.tobytes(order="A")
  return data


def junk(command: str) -> dict[str, Any]:
  """What else lies in checkpoints, and what would run a command."""
  unknown = Name("omegaconf.dictconfig", "DictConfig")
  moments = golden.rand("moments", (7, 5))
  return {
    "epoch": 3,
    "optimizer": {
      "state": {0: {"step": np.array(7, np.float32), "exp_avg": moments}},
      "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.98), "params": [0, 1]}],
    },
    "config": Call(unknown, (), None, {"_content": {"a": [1, None, True]}}),
    "args": Call(Name("argparse", "Namespace"), (), None, {"lr": 0.1}, b"\x81"),
    "best": Call(Name("numpy.core.multiarray", "scalar"), ("f8", "00000000")),
    "history": Call(Name("collections", "defaultdict"), (), {"loss": [0.5]}),
    "model_class": Name("ssl_framework.selfsupervised_models", "SSLModel"),
    "harm": Call(Name("posix", "system"), (command,)),
    "more": Call(Name("builtins", "eval"), (f"__import__('os').{command}",)),
    "harmful state": Call(
      *(Call(Name("builtins", "type"), ("X",)), (command,), {1: 2}, command)
    ),
    "a number": 2**200,
  }


def layouts(
  student: dict[str, np.ndarray], teacher: dict[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
  """State dicts as the five published files have them, by pretext task."""
  head = {"ops.0.weight": golden.rand("head", (4, 6))}

  def under(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}

  single = under("module.backbone.", student) | under("module.head.", head)
  double = {
    **under("student.module.backbone.", student),
    **under("student.module.head.", head),
    **under("teacher.backbone.", teacher),
    **under("teacher.head.", head),
  }
  return {
    "contrastive": single,
    "barlow_twins": single,
    "feature_stats": single,
    "byol": double | under("projector.", head),
    "clustering": double,
  }
