"""Pre-training: the state, the per-device step, and the loop."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ssl_music import (
  checkpoint,
  encoder,
  parallel,
  progress,
  schedules,
  workdir,
)
from ssl_music.augment import augment, resolve
from ssl_music.config import check_numbers, duration
from ssl_music.data import audio, demo, pipeline
from ssl_music.data.tracks import Tracks, fingerprint
from ssl_music.diagnostics import describe
from ssl_music.errors import InputError, explained
from ssl_music.models.frontend import frames
from ssl_music.parallel import AXIS
from ssl_music.pretext import PRETEXTS

State = dict[str, Any]  # "step", "params", "batch_stats", "opt_state"


def train(config: ConfigDict, folder: str | Path) -> State:
  """Pre-trains an encoder; a workdir that holds a run is resumed.

  Args:
    config: of `config.pretraining`, specialised by a file of `configs/`.
    folder: the workdir, which gets the config, metrics and checkpoints.

  Returns:
    the final state.

  Raises:
    InputError: what is wrong with the config, the data or the workdir.
    workdir.Stopped: a signal asked to stop; the state is saved.
  """
  folder, settings = Path(folder), config.to_dict()
  mesh = parallel.make_mesh()
  _check(config, mesh)
  demo.ensure(config.data.name, config.data.data_dir)
  tracks = Tracks(config.data.name, config.data.splits, config.data.data_dir)
  # Into the config that a resumed run must equal.
  settings["data"]["fingerprint"] = fingerprint(
    zip(tracks.splits, tracks.ids, map(str, tracks.samples), strict=True), ()
  )
  batches = pipeline.pretraining_batches(
    tracks,
    seconds=config.data.seconds,
    gap=config.data.gap,
    views=config.views,
    batch=config.batch,
    seed=config.seed,
  )
  lengths = _lengths(config, steps_per_epoch=len(batches))
  rates = learning_schedules(settings, lengths)
  optimizer = make_optimizer(settings, rates)
  with explained():
    state = parallel.replicate(init_state(settings, optimizer), mesh)
    run_step = _compile(settings, optimizer, mesh, state)
  # From here on something is written.
  with (
    workdir.claim(folder, settings),
    checkpoint.open_run(folder) as saved,
    workdir.stop_on_signals() as stop_requested,
  ):
    state = checkpoint.restore(saved, state) or state
    first, total = int(state["step"]), lengths["total"]
    waveforms = pipeline.iterate(batches.repeat()[first:], config.data.workers)
    with workdir.open_metrics(folder, first) as write:
      log = _Log(config, rates, write, first, total)
      for done in range(first + 1, total + 1):
        with log.waiting():
          batch = parallel.shard(next(waveforms), mesh, axis=1)
        state, metrics, embedding = run_step(state, batch)
        log.step(metrics)
        stop = stop_requested()
        save = stop or done == total or done % lengths["save_every"] == 0
        if save or done % lengths["log_every"] == 0:
          log.write(done, embedding)
        if save:
          # What a signal asked for is off the grid, and no candidate for best.
          loss = None if stop else log.loss_since_save()
          checkpoint.save(saved, done, state, loss)
        if stop and done < total:
          raise workdir.Stopped(done, total, stop)
  return state


def init_state(
  config: Mapping, optimizer: optax.GradientTransformation
) -> State:
  """Returns the state at step 0, a pure function of the config.

  Args:
    config: as a plain dict.
    optimizer: of `make_optimizer`.
  """
  backbone_key, head_key = jax.random.split(jax.random.key(config["seed"]))
  samples = round(config["data"]["seconds"] * audio.SAMPLE_RATE)

  # Optimising a program that runs once, and that has a random generator for
  # every shape of weight, would take longer than the step's compilation.
  @functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
  )
  def init():
    mel = encoder.spectrogram(config, jnp.zeros((2, samples)))
    body = encoder.backbone(config).init(backbone_key, mel, train=True)
    features = jnp.zeros((2, config["model"]["output"]))
    top = encoder.head(config).init(head_key, features, train=True)
    return body, top

  body, top = init()
  collect = lambda kind: {
    "backbone": body.get(kind, {}),
    "head": top.get(kind, {}),
  }
  return {
    "step": jnp.zeros((), jnp.int32),
    "params": collect("params"),
    "batch_stats": collect("batch_stats"),
    "opt_state": optimizer.init(collect("params")),
  }


def learning_schedules(
  config: Mapping, lengths: Mapping[str, int]
) -> dict[str, optax.Schedule]:
  """Returns the published schedules of learning rate and weight decay."""
  settings = config["optimizer"]
  return {
    "learning_rate": schedules.warmup_cosine(
      settings["learning_rate"],
      settings["final_learning_rate"],
      lengths["warmup"],
      lengths["total"],
    ),
    "weight_decay": schedules.cosine(
      settings["weight_decay"],
      settings["final_weight_decay"],
      lengths["total"],
    ),
  }


def make_optimizer(
  config: Mapping, rates: Mapping[str, optax.Schedule]
) -> optax.GradientTransformation:
  """Returns AdamW; biases and batch norm's parameters do not decay."""
  settings = config["optimizer"]
  return optax.adamw(
    rates["learning_rate"],
    b1=settings["b1"],
    b2=settings["b2"],
    weight_decay=rates["weight_decay"],
    mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
  )


def make_train_step(
  config: Mapping, optimizer: optax.GradientTransformation
) -> Callable:
  """Returns the per-device step, written as for `jax.pmap`.

  It takes the state and int16 waveforms [V, b, T] (b of the batch's B items on
  this device), and returns the new state, metrics of the global batch, and the
  embeddings of this device, [V, b, D]. Its collectives: batch norm's moments,
  what the loss gathers, and one mean of the gradients.
  """
  backbone, head = encoder.backbone(config, AXIS), encoder.head(config, AXIS)
  pretext = PRETEXTS[config["pretext"]["name"]]

  def forward(params, batch_stats, mel):
    stats = {}
    views, items = mel.shape[:2]
    embedding, stats["backbone"] = backbone.apply(
      _variables(params, batch_stats, "backbone"),
      mel.reshape(views * items, *mel.shape[2:]),
      train=True,
      mutable=["batch_stats"],
    )
    projection, stats["head"] = head.apply(
      _variables(params, batch_stats, "head"),
      embedding,
      train=True,
      mutable=["batch_stats"],
    )
    by_view = lambda x: x.reshape(views, items, -1)
    stats = {name: new.get("batch_stats", {}) for name, new in stats.items()}
    return by_view(embedding), by_view(projection), stats

  def step(state: State, waveforms: jax.Array):
    views, items, _ = waveforms.shape
    total = items * jax.lax.axis_size(AXIS)
    first = items * jax.lax.axis_index(AXIS)
    item = first + jnp.arange(items) + total * jnp.arange(views)[:, None]
    key = jax.random.fold_in(jax.random.key(config["seed"] + 1), state["step"])
    mel = encoder.spectrogram(config, waveforms)
    mel = augment(key, mel, item, config["augment"])

    def loss_function(params):
      embedding, projection, stats = forward(params, state["batch_stats"], mel)
      loss, metrics = pretext(projection, config["pretext"], AXIS)
      return loss, (metrics | {"loss": loss}, stats, embedding)

    grads, (metrics, stats, embedding) = jax.grad(loss_function, has_aux=True)(
      state["params"]
    )
    grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
    updates, opt_state = optimizer.update(
      grads, state["opt_state"], state["params"]
    )
    new_state = {
      "step": state["step"] + 1,
      "params": optax.apply_updates(state["params"], updates),
      "batch_stats": stats,
      "opt_state": opt_state,
    }
    metrics["gradient_norm"] = optax.global_norm(grads)
    return new_state, metrics, embedding

  return step


def map_train_step(
  config: Mapping, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable:
  """Returns the step over all devices of the mesh; it donates the state."""
  whole, divided = PartitionSpec(), PartitionSpec(None, AXIS)
  return parallel.map_step(
    make_train_step(config, optimizer),
    mesh,
    in_specs=(whole, divided),
    out_specs=(whole, whole, divided),
    donate=(0,),
  )


def _compile(
  config: Mapping,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  state: State,
) -> Callable:
  """Compiles the step before the first batch is there."""
  samples = round(config["data"]["seconds"] * audio.SAMPLE_RATE)
  sharding = NamedSharding(mesh, PartitionSpec(None, AXIS))
  waveforms = jax.ShapeDtypeStruct(
    (config["views"], config["batch"], samples), jnp.int16, sharding=sharding
  )
  step = map_train_step(config, optimizer, mesh)
  return step.lower(state, waveforms).compile()


def _variables(params: Mapping, batch_stats: Mapping, name: str) -> dict:
  return {"params": params[name], "batch_stats": batch_stats[name]}


def _check(config: ConfigDict, mesh: Mesh) -> None:
  """Finds mistakes of the config that would be hard to read later."""
  check_numbers(config, ("batch", "frontend.hop"), ("seed", "data.workers"))
  if config.pretext.name not in PRETEXTS:
    raise InputError(
      f"no pretext task {config.pretext.name!r}: set --config.pretext.name to"
      f" one of {', '.join(PRETEXTS)}"
    )
  if config.views < 2:
    raise InputError(
      f"{config.views} views of a track cannot be compared: set --config.views"
      " to 2 or more"
    )
  parallel.check_divides(config.batch, mesh.size)
  samples = round(config.data.seconds * audio.SAMPLE_RATE)
  with explained():
    resolve(
      config.augment,
      bands=config.frontend.n_mels,
      frames=frames(samples, config.frontend.hop),
    )


def _lengths(config: ConfigDict, steps_per_epoch: int) -> dict[str, int]:
  lengths = {
    name: duration(
      config, name, batch=config.batch, steps_per_epoch=steps_per_epoch
    )
    for name in ("total", "warmup", "save_every", "log_every")
  }
  for name in ("total", "save_every", "log_every"):
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


class _Log:
  """Gathers metrics on the device and writes their means now and then."""

  def __init__(self, config, rates, write, first: int, total: int):
    self._rates, self._write = rates, write
    self._segments = config.batch * config.views
    self._bar = progress.bar(
      total=total, initial=first, unit="step", desc="pre-train"
    )
    self._metrics: list[dict] = []  # of each step since the last entry
    self._losses: list[float] = []  # of each step since the last save
    self._began, self._waited = time.perf_counter(), 0.0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    began = time.perf_counter()
    yield
    self._waited += time.perf_counter() - began

  def step(self, metrics: dict[str, jax.Array]) -> None:
    # One step is queued while another runs; more would only hide their speed.
    if self._metrics:
      jax.block_until_ready(self._metrics[-1])
    self._metrics.append(metrics)
    self._bar.update()

  def write(self, step: int, embedding: jax.Array) -> None:
    """Writes an entry.

    Raises:
      InputError: loss or gradient was not finite since the last one.
    """
    fetched = jax.device_get(self._metrics)
    losses = [float(metrics["loss"]) for metrics in fetched]
    # A gradient that is not finite has spoilt the parameters, too.
    sound = [np.isfinite(m["loss"] + m["gradient_norm"]) for m in fetched]
    if not all(sound):
      raise InputError(
        "loss or gradient is no finite number at step"
        f" {step - len(sound) + 1 + sound.index(False)}, training has diverged:"
        " lower --config.optimizer.learning_rate or lengthen the warm-up, in a"
        " new workdir"
      )
    seconds = time.perf_counter() - self._began
    entry = {
      name: float(np.mean([metrics[name] for metrics in fetched]))
      for name in fetched[0]
    }
    entry |= jax.device_get(describe(embedding))
    entry |= {name: rate(step - 1) for name, rate in self._rates.items()}
    entry["segments_per_second"] = len(losses) * self._segments / seconds
    entry["waiting_for_data"] = self._waited / seconds
    self._write(step, entry)
    self._bar.set_postfix_str(
      f"loss {entry['loss']:.3f}, {entry['segments_per_second']:.0f} segments/s"
    )
    self._losses += losses
    self._metrics = []
    self._began, self._waited = time.perf_counter(), 0.0

  def loss_since_save(self) -> float:
    mean = float(np.mean(self._losses))
    self._losses = []
    return mean
