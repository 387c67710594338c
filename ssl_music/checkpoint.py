"""Checkpoints of a run; the only file that knows Orbax."""

import contextlib
import errno
import logging
import math
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ssl_music import hosts
from ssl_music.errors import InputError

_FOLDER = "checkpoints"
_CHECKSUMS = "checksums"
_NETWORKS = ("student", "teacher")


@contextlib.contextmanager
def open_run(
  workdir: Path, *, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
  """Opens the checkpoints of a run; on leaving, pending saves are finished.

  What a killed save left is removed, except with `read_only`, which may look
  at a run while it goes on.

  Kept are the two latest, lest a damaged one takes the whole run along, and the
  best (see `save`). (A policy, since `max_to_keep` with `best_fn` would delete
  the latest where it is not among the best, and with it what a killed run goes
  on from.)
  """
  # Orbax tells every move, and with a traceback what it will also raise.
  for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  keep = checkpoint_managers.AnyPreservationPolicy(
    [
      checkpoint_managers.LatestN(2),
      checkpoint_managers.BestN(
        get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False
      ),
    ]
  )
  options = ocp.CheckpointManagerOptions(
    preservation_policy=keep,
    best_fn=_quality,
    cleanup_tmp_directories=not read_only,
    read_only=read_only,
  )
  folder = Path(workdir).absolute() / _FOLDER
  with _readable(folder):
    manager = ocp.CheckpointManager(
      folder, options=options, item_handlers=_handler()
    )
  with _without_late_writes():
    try:
      yield manager
    finally:
      with _written(folder):
        manager.close()


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: Any,
  metrics: Mapping[str, float] | None,
) -> None:
  """Saves in the background; the state may be changed as soon as it returns.

  The best checkpoint of a run is that of the highest "validation_map", the
  online probe's, and in a run without that probe that of the lowest "loss".

  Args:
    manager: of `open_run`.
    step: the number of steps done.
    state: a tree of arrays.
    metrics: with "validation_map" or "loss" or both; None keeps the checkpoint
      out of the choice of the best, and so does a number that is not finite.

  Raises:
    InputError: it, or the save before it, cannot be written.
  """
  if metrics is not None:
    metrics = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(_quality(metrics)):
      metrics = None
  with _written(Path(manager.directory)):
    manager.save(
      step,
      args=ocp.args.PyTreeSave(state),
      metrics=metrics,
      custom_metadata={_CHECKSUMS: _checksums(state)},
    )


def restore(manager: ocp.CheckpointManager, like: Any) -> Any | None:
  """Returns the latest state with the shapes and shardings of `like`.

  Returns:
    None where nothing has been saved.

  Raises:
    InputError: the checkpoint cannot be read.
  """
  step = manager.latest_step()
  if step is None:
    return None
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  as_like = ocp.checkpoint_utils.construct_restore_args(abstract)
  arguments = ocp.args.PyTreeRestore(abstract, restore_args=as_like)
  with _readable(Path(manager.directory) / str(step)):
    restored = manager.restore(step, args=arguments)
    _check(_checksums(restored), _saved_checksums(manager, step))
    return restored


def load(
  workdir: Path, which: str | int = "latest", network: str = "student"
) -> tuple[int, dict]:
  """Loads a run's network as NumPy arrays, whatever devices wrote it.

  Args:
    workdir: of the run.
    which: "latest", "best" (of the highest validation mAP of the online probe,
      else of the lowest loss) or a step.
    network: "student", or "teacher" where the pretext task has one.

  Returns:
    the step, and the network's "params" and "batch_stats".

  Raises:
    InputError: there is no such checkpoint or no such network, or it cannot be
      read.
  """
  folder = Path(workdir).absolute() / _FOLDER
  if network not in _NETWORKS:
    raise InputError(
      f"no network {network!r}: set --config.network to one of"
      f" {', '.join(_NETWORKS)}"
    )
  steps, chosen, expected = [], None, {}
  if folder.is_dir():
    with open_run(workdir, read_only=True) as manager:
      steps = sorted(manager.all_steps())
      named = {"latest": manager.latest_step, "best": manager.best_step}
      chosen = named.get(which, lambda: which)()
      chosen = {str(step): step for step in steps}.get(str(chosen))
      if chosen is not None:
        with _readable(folder / str(chosen)):
          expected = _saved_checksums(manager, chosen)
  if chosen is None:
    raise InputError(
      f"no checkpoint {which!r} in {workdir} (steps there:"
      f" {', '.join(map(str, steps)) or 'none'}): give the workdir of a"
      " pre-training that has saved one"
    )
  path = folder / str(chosen) / "default"
  handler = ocp.PyTreeCheckpointHandler()
  with _readable(path), ocp.Checkpointer(handler) as checkpointer:
    metadata = checkpointer.metadata(path).item_metadata
    if metadata is None:
      raise ValueError("its files are missing or damaged")
    tree = metadata.tree
    teacher = network == "teacher"
    if teacher:
      tree = tree.get("teacher") or {}
      if "params" not in tree:
        raise InputError(
          f"the run in {workdir} has no teacher: probe its student with"
          " --config.network=student, or give a run of a task with a teacher"
        )
    wanted = {key: tree[key] for key in ("params", "batch_stats")}
    if teacher:
      wanted = {"teacher": wanted}
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
    )
    arguments = ocp.args.PyTreeRestore(
      wanted, restore_args=as_numpy, partial_restore=True
    )
    restored = checkpointer.restore(path, arguments)
    _check(_checksums(restored), expected)
    return int(chosen), restored["teacher"] if teacher else restored


def _handler() -> ocp.PyTreeCheckpointHandler:
  """Returns what saves each array whole, from the first device that has it.

  By itself Orbax would have every device save a slice of each array: one small
  program to compile for each, which takes longer than a network takes to save
  (20 s instead of 1 s for the published one on eight virtual devices).
  """
  whole = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
  registry = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, whole), (np.ndarray, ocp.type_handlers.NumpyHandler())
  )
  return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


@contextlib.contextmanager
def _without_late_writes() -> Iterator[None]:
  """Keeps quiet about what ends after its save has failed and been told.

  Where one array cannot be written, Orbax does not wait for the others, each of
  which would print a traceback that there is nobody to tell.
  """
  hook = sys.unraisablehook

  def tell(about: Any) -> None:
    if "Event loop is closed" not in str(about.exc_value):
      hook(about)

  sys.unraisablehook = tell
  try:
    yield
  finally:
    sys.unraisablehook = hook


def _quality(metrics: Mapping[str, float]) -> float:
  """Returns what the best checkpoint has most of."""
  if "validation_map" in metrics:
    return metrics["validation_map"]
  return -metrics["loss"]


def _checksums(state: Mapping[str, Any]) -> dict[str, int]:
  """Returns a CRC-32 of each part of a state, such as its "params".

  Orbax has none of the arrays' bytes: what rots on a disk would be read as if
  it had been learnt.
  """
  sums = {}
  for part, tree in state.items():
    sums[part] = 0
    for leaf in jax.tree.leaves(jax.device_get(tree)):
      data = np.ascontiguousarray(leaf).view(np.uint8)
      sums[part] = zlib.crc32(data, sums[part])
  return sums


def _saved_checksums(manager: ocp.CheckpointManager, step: int) -> dict:
  """Returns those of a checkpoint; none of one from before they were kept."""
  return (manager.metadata(step).custom_metadata or {}).get(_CHECKSUMS, {})


def _check(found: Mapping[str, int], expected: Mapping[str, int]) -> None:
  wrong = [
    part for part in found if found[part] != expected.get(part, found[part])
  ]
  if wrong:
    raise ValueError(f"its {' and '.join(wrong)} are not what was saved")


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # Orbax has no kind of its own for a full disk
    if hosts.is_lost(error):
      raise
    words = map(os.strerror, errno.errorcode)
    known = (word for word in words if word in str(error))
    reason = next(known, f"{type(error).__name__}: {str(error)[:200]}")
    raise InputError(
      f"cannot save a checkpoint to {folder} ({reason}): free some space there;"
      " the same command then goes on from the last save"
    ) from error


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
  try:
    yield
  except InputError:
    raise
  except Exception as error:  # Orbax raises dozens of kinds for damaged files
    if hosts.is_lost(error):
      raise
    reason = str(error).strip().split("\n")[0][:200]
    raise InputError(
      f"unreadable checkpoint {path} ({type(error).__name__}: {reason}): delete"
      " that folder to go on from an older one, or start in a new workdir"
    ) from error
