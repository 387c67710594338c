"""Runs of several processes: how they meet, agree, and end together.

A process a machine, or one an accelerator; each runs the same command. Nothing
here does anything in a run of a single process.
"""

import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import clusters, distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_music import interrupts, parallel
from ssl_music.errors import InputError
from ssl_music.text import printable

# Where the processes are known without being told: JAX's names.
_CLUSTERS = ("gcetpu", "gketpu", "slurm", "ompi")

_MEETING = 300  # s for all processes to begin
_BEAT = 2  # s from one sign of life to the next
# s without a sign of life after which a process counts as dead. It has to be
# less than what JAX waits, which then ends a process without saying who died.
_SILENCE = 25
_SILENCE_OF_JAX = 50
_SO = (
  ", so this one ends, too: the same command on all machines goes on from the"
  " last save"
)
_GRACE = 10  # s to finish a save, when another process has failed
_LONGEST = 24 * 3600  # s that one process may keep the others waiting


def start(coordinator: str | None, processes: int | None, process: int | None):
  """Meets the other processes, if there are any.

  It must be called before anything asks for devices. TPU pods, SLURM's tasks
  and Open MPI's ranks are found without being told.

  Args:
    coordinator: "HOST:PORT" of the first process, a port that is free there;
      None, like the other two, where the environment says it all.
    processes: their number.
    process: which one this is, from 0.

  Raises:
    InputError: some of the three are missing, or out of range.
  """
  given = [coordinator, processes, process]
  cluster = None
  if given == [None] * 3:
    cluster = _detect()
  elif None in given:
    raise InputError(
      "of --coordinator, --processes and --process some are missing: give all"
      " three, or none on a TPU pod or below srun"
    )
  elif not 0 <= process < processes or not coordinator.rpartition(":")[0]:
    raise InputError(
      f"--coordinator={coordinator} --processes={processes}"
      f" --process={process} makes no sense: give HOST:PORT of process 0, and"
      " each process its number from 0 on"
    )
  if not cluster and (processes or 1) == 1:
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # SIGTERM is ours, see `agreement`.
  jax.config.update("jax_enable_preemption_service", False)
  _explain_aborts()
  with _patience():
    jax.distributed.initialize(
      coordinator,
      processes,
      process,
      cluster_detection_method=cluster or "deactivate",
      initialization_timeout=2 * _MEETING,  # which would end in an abort
      heartbeat_timeout_seconds=_SILENCE_OF_JAX,
    )


def is_first() -> bool:
  """Says whether this process is the one that writes what is written once."""
  return jax.process_index() == 0


def first_then_others(make: Callable[[], Any]) -> None:
  """Lets one process make what the others then find.

  Where they do not find it, as each machine has a disk of its own, they make it
  too.

  Args:
    make: makes what is not there; does nothing where it is.
  """
  if is_first():
    make()
  barrier()
  if not is_first():
    make()


def barrier() -> None:
  """Waits for all processes."""
  if jax.distributed.is_initialized():
    _barriers.append(f"ssl_music/barrier/{len(_barriers)}")
    _client().wait_at_barrier(_barriers[-1], _LONGEST * 1000)


def from_first(text: str) -> str:
  """Returns the first process's text to all; each calls it once."""
  if not jax.distributed.is_initialized():
    return text
  if is_first():
    _client().key_value_set("ssl_music/text", text)
  return _client().blocking_key_value_get("ssl_music/text", _LONGEST * 1000)


def agreement(mesh: Mesh) -> Callable[[int], int]:
  """Returns a function by which all processes do the same at the same step.

  All call it at every step with a number of theirs. It returns the largest one
  of any, of the call before, so that nobody waits: it is on its way while a
  step is computed. A single process's number is returned at once.

  Args:
    mesh: of all devices.
  """
  if jax.process_count() == 1:
    return lambda number: number
  divided = NamedSharding(mesh, PartitionSpec(parallel.AXIS))
  largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
  before: list[Any] = [0]

  def agree(number: int) -> int:
    mine = np.full(jax.local_device_count(), number, np.int32)
    everyones = jax.make_array_from_process_local_data(divided, mine)
    before.append(largest(everyones))
    return int(before.pop(0))

  return agree


def together(run: Callable[[], int | None]) -> int | None:
  """Runs what all processes run; where one of them fails, all end.

  Those that are left say which one has failed, and why if it could still tell:
  without that, they would wait for it for ever.

  Args:
    run: returns the exit code.

  Returns:
    what it returns, when all processes are done.
  """
  if not jax.distributed.is_initialized():
    return run()
  failed: queue.SimpleQueue = queue.SimpleQueue()
  ended = threading.Event()
  watch = threading.Thread(target=_watch, args=(failed, ended), daemon=True)
  watch.start()
  try:
    code = run()
    barrier()
  except BaseException as error:
    lost = is_lost(error)
    if lost:  # who has ended, and why, the watch will find out
      failed.put(None)
      watch.join(_SILENCE + 2 * _BEAT)
    known = isinstance(error, InputError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    told = _tell(jax.process_index(), text, 2 if known else 1)
    if not known and (told or not lost):
      traceback.print_exception(error)
    failed.put(text)
    watch.join()  # which ends the process
    raise
  ended.set()
  watch.join()
  jax.distributed.shutdown()
  return code


def is_lost(error: BaseException) -> bool:
  """Says whether an error may be that another process has ended."""
  of_jax = isinstance(error, jax.errors.JaxRuntimeError)
  return jax.distributed.is_initialized() and (of_jax or "Gloo" in str(error))


_barriers: list[str] = []  # a name can be used only once


def _client() -> Any:
  """Returns JAX's connection to the coordinator: keys, values, barriers."""
  return distributed.global_state.client


def _detect() -> str | None:
  """Returns the name of the cluster of several processes that this is one of.

  A shell on a SLURM node is a step of one task in an allocation of many; or one
  of many tasks, of which the others have no terminal and have ended.
  """
  for kind in clusters.ClusterEnv._cluster_types:
    if kind.name in _CLUSTERS and kind.is_env_present():
      count = kind.get_process_count()
      if kind.name == "slurm" and _in_shell():
        print(
          f"note: in a shell of SLURM ({count} tasks) this process runs alone;"
          " srun python -m ssl_music.main runs them all",
          file=sys.stderr,
        )
        return None
      alone = os.environ.get("SLURM_STEP_NUM_TASKS") == "1"
      if count > 1 and not (kind.name == "slurm" and alone):
        return kind.name
  return None


def _in_shell() -> bool:
  """Says whether this is below a shell of `srun --pty` that has many tasks."""
  settings = os.environ
  return (
    "SLURM_PTY_PORT" in settings
    and settings.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    and settings.get("SLURM_TASK_PID") != str(os.getpid())
  )


@contextlib.contextmanager
def _patience() -> Iterator[None]:
  """Ends the process where the others do not come in time."""

  def give_up() -> None:
    print(
      f"\nerror: not all processes have met within {_MEETING} s: start the same"
      " command on every machine, and see that all reach process 0",
      file=sys.stderr,
    )
    interrupts.leave(1)

  print(
    f"meeting the other processes, for {_MEETING} s at most", file=sys.stderr
  )
  timer = threading.Timer(_MEETING, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _explain_aborts() -> None:
  """Adds a clear word where JAX aborts the process.

  It does so where the coordinator is gone, and nobody can catch it. Python's
  own signal handlers would run too late; this one runs within abort(), in a
  thread of JAX's.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, _Handler]
  libc.signal(signal.SIGABRT, _aborted)


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_Handler
def _aborted(number: int) -> None:
  del number
  print(f"\nerror: JAX cannot reach another process{_SO}", file=sys.stderr)
  interrupts.leave(1)


def _tell(process: int | None, text: str, code: int) -> bool:
  """Tells all processes that one has failed, unless another has before.

  Args:
    process: which one; None where the text says so.
    text: what it has failed of.
    code: the exit code.

  Returns:
    whether it was the first to fail.
  """
  mine = {"process": process, "text": text, "code": code}
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _client().key_value_set("ssl_music/failed", json.dumps(mine))
    return True
  return False


def _watch(failed: queue.SimpleQueue, ended: threading.Event) -> None:
  """Gives signs of life, and ends the process when another one has failed.

  Args:
    failed: gets what this process has failed of; None is the end of another.
    ended: set when all processes are done.
  """
  me, client = jax.process_index(), _client()
  seen = {p: ("", time.monotonic()) for p in range(jax.process_count())}
  beats = 0
  while not ended.is_set():
    beats += 1
    try:
      client.key_value_set(f"ssl_music/alive/{me}", str(beats), True)
      for key, value in client.key_value_dir_get("ssl_music/alive/"):
        process = int(key.rpartition("/")[2])
        if seen[process][0] != value:
          seen[process] = value, time.monotonic()
      first = _failure(client)
    except jax.errors.JaxRuntimeError:
      if not ended.is_set():
        print(f"\nerror: process 0 cannot be reached{_SO}", file=sys.stderr)
        interrupts.leave(1)
      return
    if first:
      _report(first, failed)
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        # The coordinator is to be there until all have read it, and those that
        # are busy come here a grace later than the first.
        client.wait_at_barrier("ssl_music/left", 2 * _GRACE * 1000)
      interrupts.leave(first["code"])
    now = time.monotonic()
    silent = [str(p) for p, (_, last) in seen.items() if now - last > _SILENCE]
    if silent:  # told as well, since some see it earlier than others
      _tell(None, f"process {' and '.join(silent)} has ended or hangs{_SO}", 1)


def _failure(client: Any) -> dict | None:
  """Waits a beat for a process to tell that it has failed."""
  try:
    told = client.blocking_key_value_get("ssl_music/failed", _BEAT * 1000)
  except jax.errors.JaxRuntimeError as error:
    if "DEADLINE_EXCEEDED" in str(error):
      return None
    raise
  return json.loads(told)


def _report(first: dict, failed: queue.SimpleQueue) -> None:
  """Says what has failed: in this process, or in another one before."""
  if first["process"] == jax.process_index():
    print(f"\nerror: {printable(first['text'])}", file=sys.stderr)
    return
  mine = None
  with contextlib.suppress(queue.Empty):
    mine = failed.get(timeout=_GRACE)  # where all find the same, all finish
  if mine != first["text"]:  # which has been said
    known = first["process"] is not None
    who = f"process {first['process']} has ended: " if known else ""
    print(f"\nerror: {who}{printable(first['text'])}", file=sys.stderr)
