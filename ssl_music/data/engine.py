"""Parts of a data set written by an engine: Dataflow, Spark, Flink, by Beam.

An engine's workers and this process share the folder of the data set. A part's
tracks lie there as JSON, what a worker makes of them goes there too, and only
the files' names and how to write a part pass through the engine: its pipelines
are small, however many tracks there are. What becomes of the parts, see
`finish`.
"""

import contextlib
import functools
import importlib.util
import io
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ssl_music import disk, interrupts, typed
from ssl_music.data import parts, workers
from ssl_music.errors import InputError, Resumable

_TO_CANCEL = 60  # s to end a job elsewhere, which costs as long as it runs

# Seconds. File systems of a network show late what other machines have made.
LATENESS = 90


def runner(name: str, options: Sequence[str] = ()) -> workers.Run:
  """Returns `run(write, parts)`, which yields (part, what `write` returned).

  What an earlier run has finished is not given to the engine again.

  Args:
    name: of one of Beam's runners, such as "FlinkRunner".
    options: flags for it, as on a command line.

  Raises:
    InputError: Beam is not installed, or does not know the runner or a flag.
      `run` raises `Resumable` where the engine fails.
  """
  if importlib.util.find_spec("apache_beam") is None:
    raise InputError(
      f"--runner={name} needs Apache Beam, which is not installed: run pip"
      " install -e '.[beam]', or leave --runner out"
    )
  start = _starter(name, options)

  def run(
    write: parts.Write, every: Sequence[dict]
  ) -> Iterator[tuple[dict, dict]]:
    missing = [part for part in every if write.finished(part) is None]
    todo = [_put_down(write, part) for part in missing]
    if todo:
      _run(functools.partial(start, write), todo, name)
    deadline = time.monotonic() + LATENESS
    for part in every:
      yield part, _wait(write, part, deadline, name)

  return run


def write_part(file: str, write: parts.Write) -> None:
  """Writes one part, on a worker of the engine.

  In a process of its own, since a file may crash its decoder, and the engine
  would try the whole part again and then give the job up.

  Args:
    file: of `_put_down`, as JSON.
    write: what the engine has brought along, as it has this function.

  Raises:
    InputError: the file is damaged.
    OSError: the folder cannot be read or written.
  """
  part = typed.read(file, parts.PART, "run the same command again")
  with workers.pool(1) as run:
    [(_, done)] = run(write, [part])
  if isinstance(done, str):
    write.carefully(part)


def _put_down(write: parts.Write, part: dict[str, Any]) -> str:
  file = write.folder / f"{part['number']:05}.todo"
  tracks = [_absolute(track) for track in part["tracks"]]
  disk.write(file, json.dumps(part | {"tracks": tracks}))
  return str(file)


def _absolute(track: dict) -> dict:
  """Returns a track whose file is found from any folder."""
  file = track.get("file")
  return track | ({"file": str(Path(file).absolute())} if file else {})


def _starter(name: str, options: Sequence[str]) -> Callable:
  """Returns a function of files that starts a job and returns it."""
  logging.disable(logging.WARNING)  # it warns that it comes without BigQuery
  import apache_beam as beam
  from apache_beam.options import pipeline_options
  from apache_beam.runners.runner import create_runner

  logging.disable(logging.NOTSET)
  try:
    engine = create_runner(name)
  except (ImportError, ValueError, AttributeError) as error:
    raise InputError(
      f"--runner={name} cannot be used ({error}): give local, DirectRunner,"
      " DataflowRunner, FlinkRunner or SparkRunner"
    ) from error
  flags = pipeline_options.PipelineOptions([*options])
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      known = flags.get_all_options()
      given = flags.get_all_options(retain_unknown_options=True)
  except SystemExit as error:
    reason = said.getvalue().strip().rpartition(" error: ")[2]
    raise InputError(
      f"--runner_options={shlex.join(options)} is not what Beam takes"
      f" ({reason}): see its page on {name}"
    ) from error
  for flag in given.keys() - known.keys():  # Flink's server knows some more
    print(f"note: Beam itself knows no --{flag}", file=sys.stderr)
  # Else Beam's local runner tries to download a program to run instead of it.
  # Nothing here has a trigger.
  types = flags.view_as(pipeline_options.TypeOptions)
  types.allow_unsafe_triggers = True

  def start(write: parts.Write, files: Sequence[str]) -> Any:
    pipeline = beam.Pipeline(runner=engine, options=flags)
    named = pipeline | "parts" >> beam.Create(files)
    # Without it, a worker would get all of them.
    spread = named | "spread" >> beam.Reshuffle()
    _ = spread | "write" >> beam.Map(write_part, write)
    return pipeline.run()

  return start


def _run(start: Callable, files: Sequence[str], name: str) -> None:
  """Runs a job to its end, or cancels it with this process."""
  job = None
  with interrupts.unwinding(_TO_CANCEL):
    try:
      job = start(files)
      state = job.wait_until_finish()
    except BaseException as error:  # each engine has errors of its own
      signalled = _signalled(error)
      if signalled is None:
        raise _failed(name, _reason(error)) from error
      if job is not None:
        job.cancel()
      raise signalled from None
  if state != "DONE":
    raise _failed(name, f"the job ended as {state}")


def _signalled(error: BaseException | None) -> BaseException | None:
  """Returns what a signal has raised, of which Beam may make another error."""
  while error and not isinstance(error, (KeyboardInterrupt, SystemExit)):
    error = error.__cause__ or error.__context__
  return error


def _reason(error: BaseException) -> str:
  """Returns the last line of an error, which may hold a worker's traceback."""
  lines = [line for line in str(error).splitlines() if line.strip()]
  return lines[-1].strip() if lines else type(error).__name__


def _failed(name: str, reason: str) -> Resumable:
  return Resumable(
    f"{name} failed ({reason}): see that its workers have ssl_music and the"
    " folders of --source and --data_dir at the same paths; the same command"
    " goes on after the parts that are finished"
  )


def _wait(
  write: parts.Write, part: dict[str, Any], deadline: float, name: str
) -> dict[str, Any]:
  while (done := write.finished(part)) is None:
    if time.monotonic() > deadline:
      raise _failed(name, f"part {part['number']} is not in {write.folder}")
    time.sleep(1)
  return done
