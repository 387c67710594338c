"""The state of a run, and the step that all pretext tasks share."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from ssl_music import encoder, parallel, schedules
from ssl_music.augment import augment
from ssl_music.data import audio
from ssl_music.models.norm import BatchNorm
from ssl_music.optimizer import flatten
from ssl_music.parallel import AXIS
from ssl_music.pretext import PRETEXTS

# "step", "params", "batch_stats", "opt_state"; with a teacher also "teacher"
# (its "params" and "batch_stats") and, where the task has one, "memory".
State = dict[str, Any]
KINDS = ("params", "batch_stats")
TEACHER = ("backbone", "head")  # the networks that a teacher has


def init_state(
  config: Mapping,
  optimizer: optax.GradientTransformation,
  backbone: Mapping[str, Any] | None = None,
) -> State:
  """Returns the state at step 0, a pure function of its arguments.

  Args:
    config: as a plain dict.
    optimizer: of `optimizer.make_optimizer`.
    backbone: {"params", "batch_stats"} to start from, of a network of the
      config's "model"; None draws the parameters.
  """
  keys = jax.random.split(jax.random.key(config["seed"]))
  samples = round(config["data"]["seconds"] * audio.SAMPLE_RATE)
  task = PRETEXTS[config["pretext"]["name"]]
  head, predictor = encoder.head(config), encoder.predictor(config)

  # Optimising a program that runs once, and that has a random generator for
  # every shape of weight, would take longer than the step's compilation. All of
  # it is one program, since each shape of zeros would be one of its own.
  @functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
  )
  def init(backbone):
    mel = encoder.spectrogram(config, jnp.zeros((2, samples)))
    features = jnp.zeros((2, config["model"]["output"]))
    made = {
      "backbone": encoder.backbone(config).init(keys[0], mel, train=True),
      "head": head.init(keys[1], features, train=True),
    }
    if predictor.sizes:
      key = jax.random.fold_in(keys[1], 1)
      projection = jnp.zeros((2, head.sizes[-1]))
      made["predictor"] = predictor.init(key, projection, train=True)
    if backbone:  # copies, since the step donates the state
      made["backbone"] = jax.tree.map(jnp.copy, backbone)
    networks = {
      kind: {name: variables.get(kind, {}) for name, variables in made.items()}
      for kind in KINDS
    }
    state = {
      "step": jnp.zeros((), jnp.int32),
      **networks,
      "opt_state": optimizer.init(networks["params"]),
    }
    if task.follows:
      # Copies: the step donates the state, and no buffer can be given twice.
      state["teacher"] = {
        kind: {
          name: jax.tree.map(jnp.copy, networks[kind][name]) for name in TEACHER
        }
        for kind in KINDS
      }
    if task.init_memory:
      state["memory"] = task.init_memory(config["pretext"])
    return state

  return init(dict(backbone) if backbone else None)


def teacher_schedules(
  config: Mapping, lengths: Mapping[str, int]
) -> dict[str, optax.Schedule]:
  """Returns the published schedules of what a task's teacher has."""
  pretext, made = config["pretext"], {}
  if "momentum" in pretext:
    made["teacher_momentum"] = schedules.cosine(
      pretext["momentum"],
      pretext["final_momentum"],
      lengths.get("momentum") or lengths["total"],
    )
  if "teacher_temperature" in pretext:
    made["teacher_temperature"] = schedules.cosine(
      pretext["teacher_temperature"],
      pretext["final_teacher_temperature"],
      max(lengths["temperature_warmup"], 1),
    )
  return made


def make_train_step(
  config: Mapping,
  optimizer: optax.GradientTransformation,
  rates: Mapping[str, optax.Schedule],
) -> Callable:
  """Returns the per-device step, written as for `jax.pmap`.

  It takes the state and a batch {"views": int16 [V, b, T], "short": int16
  [S, b, t], "labels": [1, b, tags]}, the last two where there are any (b of
  the batch's B items on this device). It returns the new state, metrics of the
  global batch, and this device's features {"embedding" [V + S, b, D],
  "projection" [V + S, b, P], "teacher" [V, b, P]}. Its collectives: batch
  norm's moments, what the loss gathers, and one mean of the gradients.
  """
  pretext = config["pretext"]
  task = PRETEXTS[pretext["name"]]

  def loss_of(features: dict, given: dict) -> tuple[jax.Array, dict]:
    given = dict(given)
    teacher = {k: given.pop(k) for k in ("teacher",) if k in given}
    loss, metrics = task.loss(features | teacher, pretext, AXIS, **given)
    return loss, metrics | {"loss": loss}

  network = functools.partial(_network, config)
  gradients = functools.partial(
    _gradients, network, loss_of, config["accumulate"]
  )

  def step(state: State, batch: Mapping[str, jax.Array]):
    mels = _spectrograms(config, state["step"], batch)
    given = {name: rates[name](state["step"]) for name in task.rates}
    if task.labels:
      given["labels"] = batch["labels"]
    if task.init_memory:
      given["memory"] = state["memory"]
    if task.draws:
      key = jax.random.key(config["seed"] + 2)
      given["key"] = jax.random.fold_in(key, state["step"])
    if task.follows:
      seen, teacher_stats = _in_parts(
        network, config["accumulate"], state["teacher"], mels[:1]
      )
      given["teacher"] = jax.lax.stop_gradient(seen["projection"])
    grads, metrics, stats, features = gradients(
      {kind: state[kind] for kind in KINDS}, mels, given
    )
    grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
    updates, opt_state = optimizer.update(
      grads, state["opt_state"], state["params"]
    )
    new = {
      "step": state["step"] + 1,
      "params": optax.apply_updates(state["params"], updates),
      "batch_stats": stats,
      "opt_state": opt_state,
    }
    if task.follows:
      teacher = {**state["teacher"], "batch_stats": teacher_stats}
      momentum = rates["teacher_momentum"](state["step"])
      for kind in task.follows:
        student = {name: new[kind][name] for name in TEACHER}
        teacher[kind] = follow(teacher[kind], student, momentum)
      new["teacher"] = teacher
      features["teacher"] = given["teacher"]
    if task.update_memory:
      new["memory"] = task.update_memory(
        state["memory"], features, pretext, AXIS
      )
    metrics["gradient_norm"] = optax.global_norm(flatten(grads))
    del features["prediction"]
    return new, metrics, features

  return step


def follow(teacher: Any, student: Any, momentum: jax.typing.ArrayLike) -> Any:
  """Moves a teacher's variables towards the student's.

  An exponential moving average, momentum · teacher + (1 - momentum) · student
  (Grill et al., 2020, equation 1).

  Args:
    teacher: a tree of arrays.
    student: a tree of the same structure.
    momentum: from 0 (the teacher becomes the student) to 1.
  """
  mean = lambda old, new: momentum * old + (1 - momentum) * new
  return jax.tree.map(mean, teacher, student)


def map_train_step(
  config: Mapping,
  optimizer: optax.GradientTransformation,
  rates: Mapping[str, optax.Schedule],
  mesh: Mesh,
) -> Callable:
  """Returns the step over all devices of the mesh; it donates the state."""
  whole, divided = PartitionSpec(), PartitionSpec(None, AXIS)
  return parallel.map_step(
    make_train_step(config, optimizer, rates),
    mesh,
    in_specs=(whole, divided),
    out_specs=(whole, whole, divided),
    donate=(0,),
  )


def _spectrograms(
  config: Mapping, step: jax.Array, batch: Mapping[str, jax.Array]
) -> list[jax.Array]:
  """Returns the augmented spectrograms of views and, if any, short views."""
  key = jax.random.fold_in(jax.random.key(config["seed"] + 1), step)
  mels, seen = [], 0
  for name in ("views", "short"):
    if name in batch:
      views, items, _ = batch[name].shape
      total = items * jax.lax.axis_size(AXIS)
      first = items * jax.lax.axis_index(AXIS)
      view = seen + jnp.arange(views)[:, None]
      item = first + jnp.arange(items) + total * view
      mel = encoder.spectrogram(config, batch[name])
      mels.append(augment(key, mel, item, config["augment"]))
      seen += views
  return mels


def _network(
  config: Mapping, variables: Mapping, mels: list[jax.Array]
) -> tuple[dict[str, jax.Array], dict]:
  """Applies backbone, head and (where there is one) predictor, in training.

  Args:
    config: as a plain dict.
    variables: {"params", "batch_stats"} of a student or a teacher.
    mels: views, [V, b, mel, frame], and short views, of fewer frames.

  Returns:
    {"embedding", "projection", "prediction"}, [V + S, b, features] each, and
    the new batch statistics.
  """
  params, stats = variables["params"], dict(variables["batch_stats"])

  def apply(module, name, views):
    def run(x):
      return module.apply(
        {"params": params[name], "batch_stats": stats[name]},
        x,
        train=True,
        mutable=["batch_stats"],
      )

    if config["views_together"]:
      y, changed = run(views.reshape(-1, *views.shape[2:]))
      moved = changed.get("batch_stats", {})
    else:
      y, changed = jax.vmap(run)(views)
      seen = changed.get("batch_stats", {})
      moved = jax.tree.map(_in_turn, stats[name], seen)
    stats[name] = moved
    return y.reshape(*views.shape[:2], -1)

  embedding = jnp.concatenate(
    [
      apply(
        encoder.backbone(config, AXIS, resize_positions=i > 0), "backbone", mel
      )
      for i, mel in enumerate(mels)
    ]
  )
  projection = apply(encoder.head(config, AXIS), "head", embedding)
  prediction = projection
  if "predictor" in params:
    module = encoder.predictor(config, AXIS)
    prediction = apply(module, "predictor", projection)
  features = {
    "embedding": embedding,
    "projection": projection,
    "prediction": prediction,
  }
  return features, stats


def _in_turn(old: jax.Array, new: jax.Array) -> jax.Array:
  """Returns running statistics after one view has moved them after another.

  Args:
    old: [channels].
    new: what each view alone has made of them, [V, channels].
  """
  kept = old
  for moved in new:
    kept = moved + BatchNorm.momentum * (kept - old)
  return kept


def _gradients(
  network: Callable,
  loss_of: Callable,
  parts: int,
  variables: Mapping,
  mels: list[jax.Array],
  given: dict,
) -> tuple[Any, dict, dict, dict]:
  """Returns gradients, metrics, new batch statistics and features.

  With `parts` > 1 the network sees the batch in so many parts, one after
  another, and the loss all of it: once without gradients for the features,
  whose gradients then go back part by part (GradCache, Gao et al., 2021). That
  costs one more forward pass, and is exact for every loss. Batch norm's
  statistics are those of a part.
  """
  stats = variables["batch_stats"]
  if parts == 1:

    def whole(params):
      seen = {"params": params, "batch_stats": stats}
      features, new = network(seen, mels)
      loss, metrics = loss_of(features, given)
      return loss, (metrics, new, features)

    grads, aux = jax.grad(whole, has_aux=True)(variables["params"])
    return grads, *aux

  features, new = _in_parts(network, parts, variables, mels)
  back, metrics = jax.grad(loss_of, has_aux=True)(features, given)

  def add(grads, part):
    mels, back = part
    of_params = lambda params: network(
      {"params": params, "batch_stats": stats}, mels
    )[0]
    (more,) = jax.vjp(of_params, variables["params"])[1](back)
    return jax.tree.map(jnp.add, grads, more), None

  zeros = jax.tree.map(jnp.zeros_like, variables["params"])
  grads, _ = jax.lax.scan(add, zeros, _split((mels, back), parts))
  return grads, metrics, new, features


def _in_parts(
  network: Callable, parts: int, variables: Mapping, mels: list[jax.Array]
) -> tuple[dict, dict]:
  """Applies the network to the batch in so many parts, without gradients."""
  if parts == 1:
    return network(variables, mels)

  def one(stats, mels):
    features, stats = network(variables | {"batch_stats": stats}, mels)
    return stats, features

  stats, features = jax.lax.scan(
    one, variables["batch_stats"], _split(mels, parts)
  )
  # [parts, V, b / parts, …] back to [V, b, …], see `_split`.
  join = lambda x: jnp.moveaxis(x, 0, 2).reshape(x.shape[1], -1, *x.shape[3:])
  return jax.tree.map(join, features), stats


def _split(tree: Any, parts: int) -> Any:
  """Splits [V, b, …] into [parts, V, b / parts, …].

  Part i takes the items i, i + parts, …, which are the same for any number of
  devices.
  """

  def split(x):
    x = x.reshape(x.shape[0], -1, parts, *x.shape[2:])
    return jnp.moveaxis(x, 2, 0)

  return jax.tree.map(split, tree)
