"""Compiles the training steps for TPUs and GPUs, of which none need be there.

Nothing is run: the figures are what the accelerator's own compiler says of the
program that it makes, an estimate and no clock. For every device and task:

- the cycles that the compiler estimates (TPUs only),
- the bytes that kernels move (a GPU's: of their operands and results),
- the bytes that one device holds, and the largest batch that fits, in
  proportion,
- kernels, copies among them, collectives and the bytes of their results,
- the seconds of compilation.

"plain" is the contrastive step as a plain script has it (`plain_step.py`),
"embed" the frozen encoder. The floor is what must be moved: parameters, audio,
and the output of each convolution and product, once.

  python -m benchmarks.targets --devices=v5e:1,v5e:8,h100 --tasks=contrastive

The compilers come by pip from `libtpu` (140 MB) and `jax-cuda12-plugin` (6 GB),
in the versions that this jax asks for, into a folder of their own below the
user's cache. A TPU's program takes about six minutes of one core to compile.
"""

import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import plain_step, programs
from ssl_music import encoder, errors
from ssl_music.data import audio
from ssl_music.errors import InputError
from ssl_music.parallel import AXIS

# Topology, devices of it in use, and bytes that one holds.
TPUS = {
  "v5e:1": ("v5e:2x2", 1, 16 * 2**30),
  "v5e:4": ("v5e:2x2", 4, 16 * 2**30),
  "v5e:8": ("v5e:2x4", 8, 16 * 2**30),
  "v5e:256": ("v5e:16x16", 256, 16 * 2**30),
  "v6e:1": ("v6e:2x2", 1, 32 * 2**30),
  "v6e:8": ("v6e:2x4", 8, 32 * 2**30),
  "v6e:256": ("v6e:16x16", 256, 32 * 2**30),
}
# An H100 as its own driver describes it to XLA.
H100 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32
shared_memory_per_block: 49152 shared_memory_per_core: 233472
threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536
registers_per_block_limit: 65536 } platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3" """
H100_BYTES = 84942979072
TASKS = ("contrastive", "byol", "clustering", "barlow_twins", "vicreg")

_DEVICES = flags.DEFINE_list(
  "devices", ["v5e:1", "v5e:8", "v6e:1", "h100"], f"Of {[*TPUS, 'h100']}."
)
_TASKS = flags.DEFINE_list(
  "tasks", [*TASKS, "embed", "plain"], "What to compile."
)
_BATCH = flags.DEFINE_integer("batch", 128, "Pairs of 4 s on each device.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of the network.")
_CHILD = flags.DEFINE_bool("child", False, "Internal: compile here.")


def wheels(extra: str) -> Path:
  """Returns a folder with the compiler that jax[extra] asks for.

  Raises:
    InputError: it isn't there and can't be installed.
  """
  wanted = [
    text.split(";")[0].strip()
    for text in importlib.metadata.requires("jax")
    if text.endswith(f'extra == "{extra}"')
    and text.startswith(("libtpu", "jax-cuda"))
  ]
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  folder = Path(home).expanduser() / "ssl_music" / "targets"
  folder /= f"{extra}-jax-{jax.__version__}"
  if folder.is_dir():
    return folder
  partial = folder.with_name(f"{folder.name}.{os.getpid()}")
  install = [sys.executable, "-m", "pip", "install", "--quiet"]
  done = subprocess.run(
    [*install, "--retries=1", f"--target={partial}", *wanted],
    capture_output=True,
    text=True,
  )
  if done.returncode:
    shutil.rmtree(partial, ignore_errors=True)
    said = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
    raise InputError(
      f"{' '.join(wanted)}, the compiler for jax[{extra}], cannot be installed"
      f" ({said}): connect to a package index, or install it there by: pip"
      f" install --target={folder} {' '.join(wanted)}"
    )
  partial.rename(folder)
  return folder


def environment(device: str) -> dict[str, str]:
  """Returns the variables with which a process can compile for a device.

  Raises:
    InputError: no such device, or as of `wheels`.
  """
  if device not in (*TPUS, "h100"):
    raise InputError(
      f"no device {device!r}: --devices takes {', '.join(TPUS)} and h100"
    )
  folder = wheels("tpu" if device in TPUS else "cuda12")
  path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
  settings = {
    "PYTHONPATH": os.pathsep.join(path),
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
  }
  return os.environ | settings


def make_mesh(device: str) -> Mesh:
  """Returns a mesh of devices to compile for.

  Raises:
    InputError: this compiler does not know it, or another process is compiling.
  """
  try:
    if device == "h100":
      found = topologies.get_topology_desc(
        "h100", platform="cuda", topology="1x1x1", target_config=H100
      ).devices
    else:
      topology, count, _ = TPUS[device]
      found = topologies.get_topology_desc(topology, platform="tpu").devices
      found = found[:count]
  except RuntimeError as error:
    if "lockfile" in str(error) or "in use" in str(error):
      raise InputError(
        "another process on this machine uses libtpu and holds its lock: wait"
        " until it has ended"
      ) from None
    raise InputError(
      f"the compiler installed for {device} does not know it: {error}"
    ) from None
  return Mesh(np.asarray(found), (AXIS,))


def lower(task: str, mesh: Mesh, batch: int, dtype: str) -> jax.stages.Lowered:
  """Lowers a task's step as published, of so many pairs on each device."""
  if task == "plain":
    return plain_step.lower(mesh, batch, dtype)
  name = "contrastive" if task == "embed" else task
  config = importlib.import_module(f"configs.{name}").get_config("paper")
  config.model.dtype, config.batch = dtype, batch * mesh.size
  config = config.to_dict()
  if task != "embed":
    return programs.lower_step(config, mesh)
  return _lower_embed(config, mesh, 2 * batch)


def _lower_embed(config: Mapping, mesh: Mesh, segments: int):
  divided = NamedSharding(mesh, PartitionSpec(AXIS))
  samples = round(config["data"]["seconds"] * audio.SAMPLE_RATE)
  shape = mesh.size * segments, samples
  waveform = jax.ShapeDtypeStruct(shape, jnp.int16, sharding=divided)
  embed = lambda variables, x: encoder.embed(config, variables, x)
  return jax.jit(embed, out_shardings=divided).lower(
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec())
      ),
      _variables(config),
    ),
    waveform,
  )


def _variables(config: Mapping) -> Any:
  samples = round(config["data"]["seconds"] * audio.SAMPLE_RATE)

  def init():
    mel = encoder.spectrogram(config, jnp.zeros((2, samples)))
    return encoder.backbone(config).init(jax.random.key(0), mel, train=True)

  return jax.eval_shape(init)


def floor(config: Mapping, batch: int) -> int:
  """Returns the bytes that a step on one device cannot but move.

  Args:
    config: as a plain dict, of which the backbone and the audio count.
    batch: pairs of segments.
  """
  samples = round(config["data"]["seconds"] * audio.SAMPLE_RATE)
  segments = 2 * batch

  def run(variables, waveform):
    mel = encoder.spectrogram(config, waveform)
    seen = encoder.backbone(config).apply(
      variables,
      mel,
      train=True,
      mutable=["batch_stats", "intermediates"],
      capture_intermediates=lambda layer, _: isinstance(
        layer, nn.Conv | nn.Dense
      ),
    )
    return seen[1]["intermediates"]

  variables = _variables(config)
  waveform = jax.ShapeDtypeStruct((segments, samples), jnp.int16)
  kept = jax.eval_shape(run, variables, waveform)
  arrays = jax.tree.leaves((variables["params"], waveform, kept))
  return sum(x.size * x.dtype.itemsize for x in arrays)


def measure(device: str, task: str, batch: int, dtype: str) -> dict[str, Any]:
  """Compiles a program and returns what its compiler says of it."""
  mesh = make_mesh(device)
  began = time.perf_counter()
  lowered = lower(task, mesh, batch, dtype)
  options = {"xla_gpu_autotune_level": 0} if device == "h100" else None
  compiled = lowered.compile(options)
  seconds = time.perf_counter() - began
  text = compiled.as_text()
  kernels = programs.kernels(text)
  sent = programs.collectives(text, mesh.size)
  held = compiled.memory_analysis()
  given = held.argument_size_in_bytes + held.output_size_in_bytes
  given -= held.alias_size_in_bytes
  room = H100_BYTES if device == "h100" else TPUS[device][2]
  found = {
    "kernels": len(kernels),
    "copies": sum(kernel.kind == "copy" for kernel in kernels),
    "held": given + held.temp_size_in_bytes,
    "largest": int(batch * (room - given) / held.temp_size_in_bytes),
    "collectives": len(sent),
    "sent": sum(one.payload for one in sent),
    "seconds": seconds,
  }
  if device == "h100":
    found["moved"] = sum(kernel.moved for kernel in kernels)
  else:
    found["cycles"] = sum(kernel.cycles for kernel in kernels)
    found["moved"] = compiled.cost_analysis()["bytes accessed"]
  return found


def row(device: str, task: str) -> str:
  """Compiles in a process of its own, and returns a row of the table.

  Raises:
    InputError: as of `wheels` and `make_mesh`, or the compiler failed.
  """
  command = [sys.executable, "-m", "benchmarks.targets", "--child"]
  command += [f"--devices={device}", f"--tasks={task}"]
  command += [f"--batch={_BATCH.value}", f"--dtype={_DTYPE.value}"]
  done = subprocess.run(
    command, capture_output=True, text=True, env=environment(device)
  )
  if done.returncode:
    said = (done.stderr.strip().splitlines() or ["no word"])[-1]
    raise InputError(re.sub(r"^error: ", "", said))
  found = json.loads(done.stdout.splitlines()[-1])
  cells = [device, task]
  cells += [f"{found['cycles'] / 1e6:.1f}" if "cycles" in found else "–"]
  cells += [f"{found['moved'] / 1e9:.1f}", f"{found['held'] / 1e9:.1f}"]
  cells += [f"{found['largest']:,}", f"{found['kernels']:,}"]
  cells += [f"{found['copies']}", f"{found['collectives']}"]
  cells += [f"{found['sent'] / 1e6:.1f}", f"{found['seconds']:.0f}"]
  return f"| {' | '.join(cells)} |"


def main() -> None:
  """Prints the table."""
  if _CHILD.value:
    given = _DEVICES.value[0], _TASKS.value[0], _BATCH.value, _DTYPE.value
    print(json.dumps(measure(*given)))
    return
  config = importlib.import_module("configs.contrastive").get_config("paper")
  config.model.dtype = _DTYPE.value
  least = floor(config.to_dict(), _BATCH.value)
  print(
    f"{_BATCH.value} pairs of 4 s a device, {_DTYPE.value}; no step of the"
    f" contrastive task can move less than {least / 1e9:.2f} GB.\n"
  )
  titles = ["device", "task", "M cycles", "GB moved", "GB held"]
  titles += ["largest batch", "kernels", "copies", "collectives", "MB of them"]
  titles += ["s to compile"]
  print(f"| {' | '.join(titles)} |")
  print("| --- " * len(titles) + "|", flush=True)
  for device in _DEVICES.value:
    for task in _TASKS.value:
      print(row(device, task), flush=True)


if __name__ == "__main__":
  app.run(lambda _: errors.report(main))
