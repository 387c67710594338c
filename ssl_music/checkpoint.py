"""Checkpoints of a run; the only file that knows Orbax."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ssl_music.errors import InputError

_FOLDER = "checkpoints"


@contextlib.contextmanager
def open_run(
  workdir: Path, *, read_only: bool = False
) -> Iterator[ocp.CheckpointManager]:
  """Opens the checkpoints of a run; on leaving, pending saves are finished.

  What a killed save left is removed, except with `read_only`, which may look
  at a run while it goes on.

  Kept are the latest and the one of the lowest loss. (A policy, since
  `max_to_keep` with `best_fn` would delete the latest where it is not among
  the best, and with it what a killed run goes on from.)
  """
  logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every move
  quality = lambda metrics: -metrics["loss"]
  keep = checkpoint_managers.AnyPreservationPolicy(
    [
      checkpoint_managers.LatestN(1),
      checkpoint_managers.BestN(
        get_metric_fn=quality, n=1, keep_checkpoints_without_metrics=False
      ),
    ]
  )
  options = ocp.CheckpointManagerOptions(
    preservation_policy=keep,
    best_fn=quality,
    cleanup_tmp_directories=not read_only,
    read_only=read_only,
  )
  folder = Path(workdir).absolute() / _FOLDER
  with _readable(folder):
    manager = ocp.CheckpointManager(folder, options=options)
  with manager:
    yield manager


def save(
  manager: ocp.CheckpointManager, step: int, state: Any, loss: float | None
) -> None:
  """Saves in the background; the state may be changed as soon as it returns.

  Args:
    manager: of `open_run`.
    step: the number of steps done.
    state: a tree of arrays.
    loss: by which the best is chosen; None keeps it out of that choice.
  """
  metrics = None if loss is None else {"loss": loss}
  manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)


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
  with _readable(Path(manager.directory) / str(step)):
    return manager.restore(step, args=ocp.args.StandardRestore(abstract))


def load(workdir: Path, which: str | int = "latest") -> tuple[int, dict]:
  """Loads a run's network as NumPy arrays, whatever devices wrote it.

  Args:
    workdir: of the run.
    which: "latest", "best" (of the lowest loss) or a step.

  Returns:
    the step, and the state's "params" and "batch_stats".

  Raises:
    InputError: there is no such checkpoint, or it cannot be read.
  """
  folder = Path(workdir).absolute() / _FOLDER
  steps, chosen = [], None
  if folder.is_dir():
    with open_run(workdir, read_only=True) as manager:
      steps = sorted(manager.all_steps())
      named = {"latest": manager.latest_step, "best": manager.best_step}
      chosen = named.get(which, lambda: which)()
  if str(chosen) not in map(str, steps):
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
    network = {key: tree[key] for key in ("params", "batch_stats")}
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), network
    )
    arguments = ocp.args.PyTreeRestore(
      network, restore_args=as_numpy, partial_restore=True
    )
    return int(chosen), checkpointer.restore(path, arguments)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # Orbax raises dozens of kinds for damaged files
    reason = str(error).strip().split("\n")[0][:200]
    raise InputError(
      f"unreadable checkpoint {path} ({type(error).__name__}: {reason}): delete"
      " that folder to go on from an older one, or start in a new workdir"
    ) from error
