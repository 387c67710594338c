"""Pre-training: the loop around the step."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ssl_music import (
  checkpoint,
  features,
  hosts,
  online,
  optimizer,
  parallel,
  pretext,
  step,
  workdir,
)
from ssl_music.augment import resolve
from ssl_music.config import check_numbers, duration
from ssl_music.data import audio, demo, pipeline
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError, explained
from ssl_music.log import Log
from ssl_music.models.frontend import frames
from ssl_music.parallel import AXIS
from ssl_music.pretext import PRETEXTS
from ssl_music.trace import trace

# Durations that every run has, and those of which 0 means "none".
_LENGTHS = ("total", "save_every", "log_every")
_OPTIONAL = ("warmup", "probe_every", "temperature_warmup", "momentum")


def train(
  config: ConfigDict,
  folder: str | Path,
  *,
  backbone: Mapping[str, Any] | None = None,
  evaluate: Callable[[Mapping[str, Any]], dict[str, float]] | None = None,
  profile: int = 0,
) -> step.State:
  """Pre-trains an encoder; a workdir that holds a run is resumed.

  Args:
    config: of `config.pretraining`, specialised by a file of `configs/`.
    folder: the workdir, which gets the config, metrics and checkpoints.
    backbone: {"params", "batch_stats"} that the backbone starts from; None
      draws them.
    evaluate: takes the place of the online probe: called at every save (and
      every `probe_every`) with the student's {"params", "batch_stats"}, each
      {"backbone", "head"}, it returns what to log; by its "validation_map" the
      best checkpoint is chosen. None is the probe that `config.online` names,
      if any.
    profile: how many steps to trace, see `trace`.

  Returns:
    the final state.

  Raises:
    InputError: what is wrong with the config, the data or the workdir; or the
      run has diverged, or collapsed with `on_collapse` = "stop".
    workdir.Stopped: a signal asked to stop; the state is saved.
  """
  checkpoint.check_path(folder)
  folder, settings = Path(folder), config.to_dict()
  mesh = parallel.make_mesh()
  check(config, mesh)
  hosts.first_then_others(
    lambda: demo.ensure(config.data.name, config.data.data_dir)
  )
  tracks = Tracks(config.data.name, config.data.splits, config.data.data_dir)
  _settle(settings, tracks)
  batches = _batches(config, tracks)
  probed = evaluate is not None or bool(config.online.data)
  lengths = _lengths(config, steps_per_epoch=len(batches), probed=probed)
  rates = optimizer.learning_schedules(settings, lengths)
  rates |= step.teacher_schedules(settings, lengths)
  updates = _make_optimizer(settings, rates)
  if evaluate is None and probed:
    evaluate = _online_probe(config, mesh)
  devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
  _say(
    f"{config.pretext.name} on {devices}: {lengths['total']} steps of"
    f" {config.batch} of the {len(tracks.ids)} tracks of {config.data.name};"
    " compiling …"
  )
  began = time.perf_counter()
  with explained():
    initial = step.init_state(settings, updates, backbone)
    state = parallel.replicate(initial, mesh)
    run_step = _compile(
      settings, step.map_train_step(settings, updates, rates, mesh), mesh, state
    )
  _say(f"compiled in {time.perf_counter() - began:.0f} s")
  # From here on something is written.
  with (
    workdir.claim(folder, settings),
    checkpoint.open_run(folder) as saved,
    workdir.stop_on_signals() as stop_requested,
  ):
    state = checkpoint.restore(saved, state) or state
    first, total = int(state["step"]), lengths["total"]
    if 0 < first < total:
      _say(f"{folder} is at step {first} of {total}, and goes on from there")
    agree = hosts.agreement(mesh)
    source = pipeline.iterate(batches.repeat()[first:], config.data.workers)
    due = lambda name, done: lengths[name] and done % lengths[name] == 0
    with (
      workdir.open_metrics(folder, first) as (entries, write),
      trace(folder, profile) as before_step,
      Log(config, rates, entries, write, first, lengths) as log,
    ):
      for done in range(first + 1, total + 1):
        before_step(state)
        with jax.profiler.StepTraceAnnotation("step", step_num=done):
          with log.timing("waiting_for_data"):
            batch = parallel.shard(next(source), mesh, axis=1)
          state, metrics, seen = run_step(state, batch)
          del batch  # or the last one's shared memory outlives the run
        log.step(metrics)
        stop = agree(stop_requested())
        # What a signal asks for is off the grid, and no candidate for best.
        candidate = done == total or due("save_every", done)
        save = stop or candidate
        found = {}
        if evaluate and (candidate or due("probe_every", done)):
          jax.block_until_ready(state)  # whose time is the step's
          with log.timing("probing"):
            found = evaluate({kind: state[kind] for kind in step.KINDS})
        if save or found or due("log_every", done):
          log.write(done, seen, found)
        if save:
          loss = log.loss_since_save() if candidate else None
          quality = {"loss": loss, **found} if candidate else None
          checkpoint.save(saved, done, state, quality)
        if stop and done < total:
          raise workdir.Stopped(done, total, stop)
        log.stop_if_collapsed()
  return state


def _say(text: str) -> None:
  """Tells whoever waits; of several processes, one does."""
  if hosts.is_first():
    print(text, file=sys.stderr, flush=True)


def _settle(settings: dict, tracks: Tracks) -> None:
  """Puts what the data say into the config that a resumed run must equal.

  Args:
    settings: the config as a plain dict, which gets the data's fingerprint, and
      of a task with labels their names and the head's last size.
    tracks: to train on; of a task with labels, their tags become the config's.

  Raises:
    InputError: no such tags, or another process has other settings or data.
  """
  data, name = settings["data"], settings["pretext"]["name"]
  labels = PRETEXTS[name].labels
  if labels:
    tracks.keep_tags(
      features.choose_tags(
        data["name"], tracks.tags, data["tags"], option="data.tags"
      )
    )
    data["labels"] = list(tracks.tags)
    head = settings["pretext"]["head"]
    settings["pretext"]["head"] = (*head, len(tracks.tags))
  data["fingerprint"] = tracks.fingerprint(labels=labels)
  workdir.check_alike(settings)


def _batches(config: ConfigDict, tracks: Tracks) -> grain.MapDataset:
  """Returns this process's rows of an epoch's batches."""
  return pipeline.pretraining_batches(
    tracks,
    seconds=config.data.seconds,
    gap=config.data.gap,
    views=config.views,
    short_views=config.short_views,
    short_seconds=config.data.short_seconds,
    labels=PRETEXTS[config.pretext.name].labels,
    batch=config.batch,
    seed=config.seed,
    process=jax.process_index(),
    processes=jax.process_count(),
  )


def _make_optimizer(
  config: Mapping, rates: Mapping[str, optax.Schedule]
) -> optax.GradientTransformation:
  """Returns the config's optimiser, with the backbone's rate if it has one.

  The factor "backbone_rate" scales what the optimiser changes at last, and so
  the learning rate that the backbone has, weight decay included.
  """
  updates = optimizer.make_optimizer(config, rates)
  factor = config["optimizer"].get("backbone_rate", 1.0)
  if factor == 1:
    return updates
  of_backbone = lambda params: {name: name == "backbone" for name in params}
  return optax.chain(updates, optax.masked(optax.scale(factor), of_backbone))


def _online_probe(config: ConfigDict, mesh: Mesh) -> Callable:
  """Returns the online probe as `train` calls it, see its `evaluate`."""
  probe = online.prepare(config, mesh)

  def evaluate(networks: Mapping[str, Any]) -> dict[str, float]:
    return probe({kind: tree["backbone"] for kind, tree in networks.items()})

  return evaluate


def _compile(
  config: Mapping, run_step: Callable, mesh: Mesh, state: step.State
) -> Callable:
  """Compiles the step before the first batch is there."""
  sharding = NamedSharding(mesh, PartitionSpec(None, AXIS))
  data, task = config["data"], PRETEXTS[config["pretext"]["name"]]

  def of_shape(first: int, size: int, dtype: jnp.dtype):
    shape = first, config["batch"], size
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  samples = lambda seconds: round(seconds * audio.SAMPLE_RATE)
  batch = {
    "views": of_shape(config["views"], samples(data["seconds"]), jnp.int16)
  }
  if config["short_views"]:
    batch["short"] = of_shape(
      config["short_views"], samples(data["short_seconds"]), jnp.int16
    )
  if task.labels:
    batch["labels"] = of_shape(1, len(data["labels"]), jnp.int8)
  return run_step.lower(state, batch).compile()


def check(config: ConfigDict, mesh: Mesh) -> None:
  """Finds mistakes in the config that would be hard to understand later.

  Raises:
    InputError: the first one found.
  """
  check_numbers(
    config,
    ("batch", "accumulate", "frontend.hop"),
    ("seed", "data.workers", "short_views"),
  )
  pretext.check(config.pretext)
  if config.on_collapse not in ("warn", "stop"):
    raise InputError(
      f"on_collapse is {config.on_collapse!r}: set --config.on_collapse to warn"
      " or stop"
    )
  task = PRETEXTS[config.pretext.name]
  least = 1 if task.labels else 2
  if config.views < least:
    raise InputError(
      f"{config.views} views of a track are too few for {config.pretext.name}:"
      f" set --config.views to {least} or more"
    )
  if task.labels and "tags" not in config.data:
    raise InputError(
      "the config says nothing of tags to learn: start from"
      " configs/supervised.py"
    )
  if config.batch < 2 and not task.labels:
    raise InputError(
      f"in a batch of {config.batch} there is nothing to compare a track with:"
      " set --config.batch to 2 or more"
    )
  optimizer.check(config)
  parallel.check_divides(config.batch, mesh.size, config.accumulate)
  seconds = [config.data.seconds]
  seconds += [config.data.short_seconds] if config.short_views else []
  with explained():
    for length in seconds:
      samples = round(length * audio.SAMPLE_RATE)
      resolve(
        config.augment,
        bands=config.frontend.n_mels,
        frames=frames(samples, config.frontend.hop),
      )


def _lengths(
  config: ConfigDict, steps_per_epoch: int, *, probed: bool
) -> dict[str, int]:
  lengths = {
    name: duration(
      config, name, batch=config.batch, steps_per_epoch=steps_per_epoch
    )
    for name in (*_LENGTHS, *_OPTIONAL)
    if f"{name}_steps" in config
  }
  if lengths["probe_every"] and not probed:
    raise InputError(
      "the config says how often to probe, but not on what: name a data set"
      " with --config.online.data, or unset probe_every"
    )
  for name in _LENGTHS:
    if not lengths[name]:
      raise InputError(
        f"the config gives no {name}: set one of --config.{name}_steps,"
        f" --config.{name}_epochs and --config.{name}_examples to 1 or more"
      )
  if lengths["warmup"] >= lengths["total"]:
    raise InputError(
      f"the warm-up of {lengths['warmup']} steps is not shorter than the"
      f" {lengths['total']} steps in all: lower --config.warmup_steps or raise"
      " --config.total_steps"
    )
  return lengths
