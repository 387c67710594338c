"""A trace of some steps, to be opened in TensorBoard or Perfetto."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

FOLDER = "profile"
_SKIPPED = 2  # the first steps fill queues and caches


@contextlib.contextmanager
def trace(workdir: str | Path, steps: int) -> Iterator[Callable[[Any], None]]:
  """Traces some steps of the loop inside.

  The trace lies in `profile/` of the workdir, for TensorBoard's profile plugin,
  and in it `perfetto_trace.json.gz` for ui.perfetto.dev.

  Args:
    workdir: of the run.
    steps: how many; 0 traces nothing. The first two are left out.

  Yields:
    a function to be called before every step with what the last one computes,
    which is waited for where tracing begins and ends.
  """
  seen, running = 0, False

  def before_step(state: Any) -> None:
    nonlocal seen, running
    if steps and seen == _SKIPPED:
      jax.block_until_ready(state)
      folder = Path(workdir) / FOLDER
      jax.profiler.start_trace(folder, create_perfetto_trace=True)
      running = True
    elif running and seen == _SKIPPED + steps:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      running = False
    seen += 1

  try:
    yield before_step
  finally:
    if running:  # the run was shorter, or has ended with an error
      jax.profiler.stop_trace()
