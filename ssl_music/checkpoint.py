"""Checkpoints of a run; the only file that knows Orbax.

A checkpoint that is damaged harms nobody but itself: the newest whole one takes
its place. Damaged is what cannot be read although its files can, or what is not
what was saved. What the machine lacks (memory, permission, a device) proves
nothing about a checkpoint.
"""

import contextlib
import gc
import json
import logging
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from ssl_music import disk, hosts, parallel
from ssl_music.errors import InputError

_FOLDER = "checkpoints"
_NETWORKS = ("student", "teacher")
_PATTERNS = "*?[]\\"  # Orbax looks for files below a path by a pattern of it


class Run(NamedTuple):
  """The checkpoints of a run, of `open_run`.

  Attributes:
    manager: Orbax's.
    quality: {step: what the best has most of}, of those that may be the best.
    damaged: steps that have been found to be damaged.
  """

  manager: ocp.CheckpointManager
  quality: dict[int, float]
  damaged: set[int]


class _DamagedError(Exception):
  """A checkpoint is damaged; says how."""


def check_path(workdir: Path | str) -> None:
  """Refuses a path below which no checkpoint could be read back.

  Raises:
    InputError: it has a character of `_PATTERNS`.
  """
  path = str(Path(workdir).absolute())
  for character in _PATTERNS:
    if character in path:
      raise InputError(
        f"the path {path} has the character {character}, and no checkpoint"
        f" below it could be read: take a path without any of {_PATTERNS}"
      )


@contextlib.contextmanager
def open_run(workdir: Path, *, read_only: bool = False) -> Iterator[Run]:
  """Opens the checkpoints of a run; on leaving, pending saves are finished.

  What a killed save left is removed, except with `read_only`, which may look
  at a run while it goes on.

  Args:
    workdir: of the run.
    read_only: for `load`.

  Raises:
    InputError: no checkpoint could be read below this path, or its disk fails.
  """
  check_path(workdir)
  folder = Path(workdir).absolute() / _FOLDER
  quality: dict[int, float] = {}
  damaged: set[int] = set()
  parallel.devices()  # Orbax asks for them, and what lacks is no checkpoint
  with _quiet():
    options = ocp.CheckpointManagerOptions(
      preservation_policy=_Policy(quality, damaged),
      cleanup_tmp_directories=not read_only,
      read_only=read_only,
      # One damaged file of a single checkpoint would keep it from being made.
      lightweight_initialize=True,
    )
    with disk.explained("open the checkpoints in", folder):
      manager = ocp.CheckpointManager(
        folder, options=options, item_handlers=_handler()
      )
    run = Run(manager, quality, damaged)
    try:
      if not read_only:
        _rank(run)
      yield run
    finally:
      with _written(folder):
        manager.close()
      if run.damaged:
        gc.collect()  # what complains when it is thrown away, does so here


def save(
  run: Run, step: int, state: Any, metrics: Mapping[str, float] | None
) -> None:
  """Saves in the background; the state may be changed as soon as it returns.

  The first one of a run is awaited and read back, before hours are spent on
  others. The best checkpoint of a run is that of the highest "validation_map",
  the online probe's, and in a run without that probe that of the lowest "loss".

  Args:
    run: of `open_run`.
    step: the number of steps done.
    state: a tree of arrays.
    metrics: with "validation_map" or "loss" or both; None keeps the checkpoint
      out of the choice of the best, and so does a number that is not finite.

  Raises:
    InputError: it, or the save before it, cannot be written; or the first one
      cannot be read back.
  """
  about: dict[str, Any] = {"checksums": _checksums(state)}
  if metrics is not None:
    metrics = {name: float(value) for name, value in metrics.items()}
    if math.isfinite(_quality(metrics)):
      about["metrics"] = metrics
      run.quality[step] = _quality(metrics)
  first = not run.manager.all_steps()
  with _written(Path(run.manager.directory)):
    if step in run.damaged:
      run.manager.delete(step)
      run.damaged.remove(step)
    run.manager.save(
      step,
      args=ocp.args.PyTreeSave(state),
      custom_metadata=about | {"crc32": _crc32(about)},
    )
    if first:
      run.manager.wait_until_finished()
  if first:
    try:
      found = _checksums(_read(_path(run, step), _all))
      _check(found, about["checksums"])
    except _DamagedError as error:
      raise InputError(
        f"the checkpoint {_path(run, step)} cannot be read back ({error}):"
        " check that disk, or give another --workdir"
      ) from error


def restore(run: Run, like: Any) -> Any | None:
  """Returns the latest whole state with the shapes and shardings of `like`.

  Returns:
    None where nothing has been saved.

  Raises:
    InputError: all checkpoints are damaged, or cannot be read.
  """
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  as_like = ocp.checkpoint_utils.construct_restore_args(abstract)
  arguments = ocp.args.PyTreeRestore(abstract, restore_args=as_like)
  steps = _newest_first(run)
  for step in steps:
    path = _path(run, step)
    try:
      expected = _about(run, step)["checksums"]
      try:
        with _judged(path):
          restored = run.manager.restore(step, args=arguments)
      except _DamagedError as error:
        _check(_checksums(_read(path, _all)), expected)
        raise InputError(
          f"the checkpoint {path} is whole, but not of this config and this"
          f" version of ssl_music ({error}): go on with those that made it, or"
          " give another --workdir"
        ) from error
      _check(_checksums(restored), expected)
    except _DamagedError as error:
      _pass_over(run, step, error)
    else:
      return restored
  if steps:
    raise _nothing_whole(run)
  return None


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
  if network not in _NETWORKS:
    raise InputError(
      f"no network {network!r}: set --config.network to one of"
      f" {', '.join(_NETWORKS)}"
    )
  check_path(workdir)
  steps, order = [], []
  if (Path(workdir) / _FOLDER).is_dir():
    with open_run(workdir, read_only=True) as run:
      steps = _newest_first(run)
      order = [step for step in steps if str(step) == str(which)]
      if which == "latest":
        order = steps
      elif which == "best":
        _rank(run)
        by = lambda step: (run.quality[step], step)
        order = sorted(run.quality, key=by, reverse=True)
      for step in order:
        try:
          return step, _load(run, step, network, workdir)
        except _DamagedError as error:
          if which not in ("latest", "best"):
            others = ", ".join(
              str(other) for other in steps[::-1] if other != step
            )
            raise InputError(
              f"the checkpoint {_path(run, step)} is damaged ({error}): take"
              f" another (steps there: {others or 'none'})"
            ) from error
          _pass_over(run, step, error)
      if order or run.damaged:
        raise _nothing_whole(run)
  raise InputError(
    f"no checkpoint {which!r} in {workdir} (steps there:"
    f" {', '.join(map(str, steps[::-1])) or 'none'}): give the workdir of a"
    " pre-training that has saved one"
  )


def _load(run: Run, step: int, network: str, workdir: Path) -> dict[str, Any]:
  """Loads a network of a checkpoint."""

  def choose(tree: Mapping[str, Any]) -> dict[str, Any]:
    if network == "student":
      return {key: tree[key] for key in ("params", "batch_stats")}
    if "params" not in (tree.get("teacher") or {}):
      raise InputError(
        f"the run in {workdir} has no teacher: probe its student with"
        " --config.network=student, or give a run of a task with a teacher"
      )
    return {"teacher": tree["teacher"]}

  expected = _about(run, step)["checksums"]
  found = _read(_path(run, step), choose)
  _check(_checksums(found), expected)
  return found["teacher"] if network == "teacher" else found


class _Policy:
  """Keeps the two latest whole checkpoints, one as a reserve, and the best.

  `max_to_keep` with `best_fn` would delete the latest where it is not among the
  best, and with it what a killed run goes on from.
  """

  def __init__(self, quality: Mapping[int, float], damaged: set[int]):
    self._quality, self._damaged = quality, damaged

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    """Says of each checkpoint whether it stays; for Orbax."""
    del context
    steps = [one.step for one in checkpoints]
    latest = [step for step in steps if step not in self._damaged][-2:]
    ranked = [step for step in steps if step in self._quality]
    best = max(ranked, key=lambda step: (self._quality[step], step), default=-1)
    # A damaged one stays until the run saves that step again.
    return [step in (*latest, best, *self._damaged) for step in steps]


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
def _quiet() -> Iterator[None]:
  """Keeps Orbax quiet, which tells every move, and twice what it also raises.

  Where one array cannot be written, it does not wait for the others, each of
  which would print a traceback after its event loop is closed.
  """
  hook = sys.unraisablehook

  def tell(about: Any) -> None:
    code = getattr(about.object, "cr_code", None)  # of a coroutine
    late = "Event loop is closed" in str(about.exc_value)
    if not late and not (code and "orbax" in code.co_filename):
      hook(about)

  others = lambda record: "orbax" not in Path(record.pathname).parts
  nobody = lambda record: False
  filters = [(logging.getLogger("absl"), others)]
  filters += [(logging.getLogger("asyncio"), nobody)]
  for logger, wanted in filters:
    logger.addFilter(wanted)
  sys.unraisablehook = tell
  try:
    yield
  finally:
    sys.unraisablehook = hook
    for logger, wanted in filters:
      logger.removeFilter(wanted)


def _path(run: Run, step: int) -> Path:
  return Path(run.manager.directory) / str(step)


def _newest_first(run: Run) -> list[int]:
  return sorted(run.manager.all_steps(), reverse=True)


def _all(tree: Any) -> Any:
  return tree


def _quality(metrics: Mapping[str, float]) -> float:
  """Returns what the best checkpoint has most of."""
  if "validation_map" in metrics:
    return metrics["validation_map"]
  return -metrics["loss"]


def _rank(run: Run) -> None:
  """Finds the quality of all checkpoints that are not damaged."""
  for step in _newest_first(run):
    try:
      metrics = _about(run, step)["metrics"]
    except _DamagedError as error:
      _pass_over(run, step, error)
    else:
      if metrics is not None:
        run.quality[step] = _quality(metrics)


def _about(run: Run, step: int) -> dict[str, Any]:
  """Returns what was said of a checkpoint when it was saved.

  Returns:
    "checksums", {} of one from before they were kept, and "metrics" or None.
  """
  with _judged(_path(run, step)):
    metadata = run.manager.metadata(step)
    if metadata.init_timestamp_nsecs is None:  # which Orbax notes of each
      raise _DamagedError("its metadata are missing or damaged")
    about = dict(metadata.custom_metadata or {})
    if about.pop("crc32", None) not in (None, _crc32(about)):
      raise _DamagedError("its metadata are not what was saved")
    # Orbax kept the metrics of older ones in a file of their own.
    metrics = about.get("metrics", metadata.metrics) or None
    if metrics is not None and not math.isfinite(_quality(metrics)):
      raise _DamagedError("its metrics are no finite numbers")
    return {"checksums": about.get("checksums", {}), "metrics": metrics}


def _read(path: Path, choose: Callable[[Any], Any]) -> Any:
  """Reads what `choose` takes of a checkpoint's tree, as NumPy arrays."""
  path = path / "default"
  handler = ocp.PyTreeCheckpointHandler()
  with _judged(path), ocp.Checkpointer(handler) as checkpointer:
    metadata = checkpointer.metadata(path).item_metadata
    if metadata is None:
      raise _DamagedError("its files are missing or damaged")
    wanted = choose(metadata.tree)
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
    )
    arguments = ocp.args.PyTreeRestore(
      wanted, restore_args=as_numpy, partial_restore=True
    )
    return checkpointer.restore(path, arguments)


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


def _crc32(about: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _check(found: Mapping[str, int], expected: Mapping[str, int]) -> None:
  wrong = [
    part for part in found if found[part] != expected.get(part, found[part])
  ]
  if wrong:
    raise _DamagedError(f"its {' and '.join(wrong)} are not what was saved")


def _pass_over(run: Run, step: int, error: _DamagedError) -> None:
  """Says once that a checkpoint is damaged."""
  if step not in run.damaged:
    run.damaged.add(step)
    run.quality.pop(step, None)
    absl.logging.warning(
      "the checkpoint %s is damaged (%s): it is passed over",
      _path(run, step),
      error,
    )


def _nothing_whole(run: Run) -> InputError:
  return InputError(
    f"every checkpoint in {run.manager.directory} is damaged (steps"
    f" {', '.join(map(str, sorted(run.damaged)))}): restore one from a copy, or"
    " start in a new workdir"
  )


def _system_error(error: BaseException | None) -> OSError | None:
  """Returns the system's error behind one of Orbax, which may be text alone."""
  if error is None:
    return None
  if isinstance(error, OSError) and error.errno:
    return error
  if number := disk.number_in(str(error)):
    return OSError(number, os.strerror(number))
  return _system_error(error.__cause__)


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
  try:
    yield
  except InputError:
    raise
  except Exception as error:  # Orbax has no kind of its own for a full disk
    if hosts.is_lost(error):
      raise
    after = "the same command then goes on from the last save"
    with disk.explained("save a checkpoint to", folder, after=after):
      raise _system_error(error) or OSError(_first_line(error)) from error


@contextlib.contextmanager
def _judged(path: Path) -> Iterator[None]:
  """Raises `_DamagedError` for what a damaged checkpoint makes Orbax raise.

  Raises:
    InputError: the system keeps its files from being read.
  """
  try:
    yield
  except (InputError, _DamagedError, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except Exception as error:  # Orbax raises dozens of kinds for damaged files
    if hosts.is_lost(error):
      raise
    found = _system_error(error)
    with disk.readable(path, "check its disk"):
      if found and found.errno in disk.SYSTEM:
        raise found from error
      for file in path.rglob("*"):
        if file.is_file():
          file.open("rb").close()
    raise _DamagedError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
  text = str(error).strip().partition("\n")[0][:200]
  return f"{type(error).__name__}: {text}"
