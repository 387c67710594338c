"""The mesh of all accelerators, and how a per-device step is mapped over it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_music import compiled
from ssl_music.errors import InputError

AXIS = "batch"  # the name by which a step's collectives know the devices


def start(shared: str | None = None) -> list[jax.Device]:
  """Starts jax with programs kept between runs; returns all devices.

  Every command that computes calls it first: what comes later could blame a
  file for a device that is not there.

  Args:
    shared: a folder that all processes of a run see. Where there are several,
      jax lets only the first keep programs, and the others find them there.

  Raises:
    InputError: a kind of device was asked for that is not there.
  """
  compiled.keep(shared if jax.distributed.is_initialized() else None)
  return devices()


def devices() -> list[jax.Device]:
  """Returns all devices.

  Raises:
    InputError: a kind of device was asked for that is not there.
  """
  asked = jax.config.jax_platforms
  try:
    return jax.devices()
  except (AssertionError, RuntimeError) as error:  # jax has no type of its own
    if not asked:
      raise
    why = str(error).partition(" (")[0].removesuffix(".")
    raise InputError(
      f"JAX_PLATFORMS={asked} asks for devices that jax does not find"
      f"{f' ({why})' if why else ''}: unset it to compute on what there is, or"
      " install the driver and jax for them (README, Presets and options)"
    ) from error


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the one-dimensional mesh of the devices; None means all.

  A process's devices stand together, so that its rows of a batch do.

  Raises:
    InputError: processes with different numbers of devices.
  """
  devices = sorted(devices or jax.devices(), key=lambda d: d.process_index)
  counts = set(Counter(device.process_index for device in devices).values())
  if len(counts) > 1:
    raise InputError(
      f"some processes have {min(counts)} devices and some {max(counts)}: run"
      " on machines that are alike"
    )
  return Mesh(np.asarray(devices), (AXIS,))


def map_step(
  step: Callable,
  mesh: Mesh,
  in_specs: Any,
  out_specs: Any,
  donate: Sequence[int] = (),
) -> Callable:
  """Maps a per-device function over the mesh and compiles it.

  The function is written as for `jax.pmap(step, axis_name=AXIS)`, which has
  been a `shard_map` itself since JAX 0.10; `check_vma=False` gives it pmap's
  meaning of a collective's gradient (that of the sum over devices), which
  `check_vma=True` would change silently.

  Args:
    step: sees its device's part of each argument.
    mesh: of `make_mesh`.
    in_specs: a `PartitionSpec` for each argument: `PartitionSpec()` for what
      all devices share, one that names `AXIS` for what is divided.
    out_specs: the same for what it returns.
    donate: arguments whose memory the outputs may take.
  """
  mapped = jax.shard_map(
    step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )
  return jax.jit(mapped, donate_argnums=tuple(donate))


def shard(batch: Any, mesh: Mesh, axis: int) -> Any:
  """Puts a batch on the mesh, divided along one of its axes.

  Args:
    batch: an array, or a tree of arrays, of NumPy; of several processes, each
      gives its `rows` of it.
    mesh: of `make_mesh`.
    axis: the axis to divide, of every array.
  """
  spec = PartitionSpec(*[None] * axis, AXIS)
  sharding = NamedSharding(mesh, spec)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def rows(batch: int) -> slice:
  """Returns the rows of a batch of this size that are this process's."""
  share = batch // jax.process_count()
  first = jax.process_index() * share
  return slice(first, first + share)


def fetch(array: jax.Array) -> np.ndarray:
  """Returns all of an array, whatever devices of whatever process hold it."""
  return multihost_utils.process_allgather(array, tiled=True)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a tree of arrays whole on every device of the mesh."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def check_divides(batch: int, devices: int, parts: int = 1) -> None:
  """Checks that a batch can be divided evenly over devices.

  Args:
    batch: its size.
    devices: their number.
    parts: into which each device divides its share again.

  Raises:
    InputError: it cannot; the message names the nearest sizes.
  """
  pieces = devices * parts
  if batch % pieces:
    lower = batch // pieces * pieces
    over = f"{devices} devices" + (f" in {parts} parts" if parts > 1 else "")
    near = f"{lower} or " if lower else ""
    raise InputError(
      f"a batch of {batch} does not divide over {over}: set"
      f" --config.batch to {near}{lower + pieces}"
    )
