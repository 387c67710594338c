"""Many probes at once: subsets of the labels x seeds x rates x weight decays.

All probes of a study see the same frozen embeddings, so they are trained side
by side in one program. A *group* of probes has a subset of the training tracks
and a seed; its *members* differ in learning rate and weight decay alone and
share every minibatch. Groups are divided over the devices.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from ssl_music import parallel, progress
from ssl_music import study_inputs as inputs
from ssl_music.errors import InputError
from ssl_music.parallel import AXIS

# What a block of groups may take on a device, in bytes.
_MEMORY = 2**30


class Probe(nn.Module):
  """Linear layers with ReLU between them.

  Attributes:
    sizes: outputs of each layer; one entry is a linear probe.
  """

  sizes: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [N, D] to logits [N, sizes[-1]]."""
    for index, size in enumerate(self.sizes):
      x = nn.Dense(size)(x)
      x = nn.relu(x) if index + 1 < len(self.sizes) else x
    return x


def run(
  config: Mapping[str, Any],
  data: Mapping[str, Mapping[str, np.ndarray]],
  subsets: Sequence[np.ndarray],
  *,
  seed: int,
  mesh: Mesh,
) -> dict[str, Any]:
  """Trains all probes and applies the chosen ones to the test tracks.

  Minimises binary cross entropy on embeddings, standardised by all training
  segments, with AdamW and a cosine schedule. Each probe is taken at the step,
  and each group at the learning rate and weight decay, of the highest macro mAP
  on the validation tracks.

  Args:
    config: the config's "probe".
    data: of each of "train", "validation" and "test": "x", finite embeddings
      of segments [N, D]; "owners", the track of each, int [N], rising, every
      track with one segment or more; "labels" of those tracks, bool
      [tracks, T].
    subsets: masks of the training tracks, bool [tracks] each, none empty.
    seed: the first of `config["seeds"]` seeds.
    mesh: of devices.

  Returns:
    "logits" of test tracks, float32 [subsets, seeds, tracks, T]; "chosen",
    [subsets][seeds] of {"seed", "learning_rate", "weight_decay", "step",
    "validation_map"}; "head", {"mean", "inverse", "layers"} of `tagger`, of the
    chosen probes of the last subset.

  Raises:
    InputError: no probe of a group has finite logits, at any evaluation.
  """
  labels = data["train"]["labels"]
  model = Probe((*config["hidden"], labels.shape[1]))
  members = [
    *itertools.product(config["learning_rates"], config["weight_decays"])
  ]
  groups = [
    {
      "rows": np.flatnonzero(mask[data["train"]["owners"]]),
      "seed": seed + one,
      "subset": index,
    }
    for index, mask in enumerate(subsets)
    for one in range(config["seeds"])
  ]
  mean, deviation = inputs.moments(data["train"]["x"])
  # A dead feature is 0 everywhere, and stays so.
  scale = {
    "mean": np.float32(mean),
    "inverse": np.float32(1 / np.where(deviation > 1e-6, deviation, 1)),
  }
  train = {"x": data["train"]["x"], "y": labels[data["train"]["owners"]]}
  scored = {
    split: inputs.track_means(data[split])
    if config["aggregation"] == "embeddings"
    else inputs.in_blocks(data[split])
    for split in ("validation", "test")
  }
  given = parallel.replicate({"scale": scale, "train": train, **scored}, mesh)
  counts = {split: len(data[split]["labels"]) for split in scored}
  features = data["train"]["x"].shape[1]
  functions = _functions(config, model, members, features, counts, mesh)
  validation = data["validation"]["labels"]
  size = _block_size(config, data, len(members), len(groups), mesh.size)
  logits, chosen, heads = [], [], []
  for start in progress.bar(
    range(0, len(groups), size), desc="probe", unit="block"
  ):
    block = groups[start : start + size]
    full = block + block[:1] * (size - len(block))  # one shape for all blocks
    one, picked, params = _train(
      config, functions, given, full, validation, mesh
    )
    logits.append(one)
    heads.append(params)
    chosen += [
      {
        "seed": group["seed"],
        "learning_rate": float(members[pick["member"]][0]),
        "weight_decay": float(members[pick["member"]][1]),
        "step": pick["step"],
        "validation_map": pick["validation_map"],
      }
      for group, pick in zip(block, picked, strict=False)
    ]
  together = np.concatenate(logits)[: len(groups)]
  seeds = config["seeds"]
  last = slice(len(groups) - seeds, len(groups))  # before those that fill up
  head = jax.tree.map(lambda *x: np.concatenate(x)[last], *heads)
  return {
    "logits": together.reshape(len(subsets), seeds, *together.shape[1:]),
    "chosen": [chosen[i : i + seeds] for i in range(0, len(chosen), seeds)],
    "head": scale
    | {"layers": [head[f"Dense_{index}"] for index in range(len(head))]},
  }


def macro_map(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Returns macro mAP of many rankings, in a few passes over sorted integers.

  `metrics.average_precision` but for ties: where a negative's score is a
  positive's to the last bit of float32, the negative comes first.

  Args:
    labels: bool [M, T]; tags without a positive or a negative are left out.
    scores: float32 [K, M, T].

  Returns:
    float64 [K]; 0 where a score is not finite.
  """
  positives = labels.sum(axis=0)
  kept = (positives > 0) & (positives < len(labels))
  ordered = np.ascontiguousarray(scores[..., kept].swapaxes(1, 2), np.float32)
  finite = np.isfinite(ordered).all(axis=(1, 2))
  # As integers, floats of one sign sort like numbers; of the others, all bits
  # but the sign are flipped. The last bit, then, tells positives. Negated, so
  # that the best comes first.
  bits = (-ordered).view(np.int32)
  bits ^= (bits >> 31) & 0x7FFF_FFFF
  bits = (bits & ~1) | labels[:, kept].T
  bits.sort(axis=-1)
  hit = (bits & 1).astype(np.float32)
  precision = np.cumsum(hit, axis=-1) / np.arange(1, len(labels) + 1)
  values = (precision * hit).sum(axis=-1) / positives[kept]
  return np.where(finite, values.mean(axis=-1), 0.0)


def _functions(
  config: Mapping,
  model: Probe,
  members: Sequence[tuple[float, float]],
  features: int,
  counts: Mapping[str, int],
  mesh: Mesh,
) -> dict[str, Callable]:
  """Returns the compiled parts of `_train`; leaves of a state are [G, H, …]."""
  rates = jnp.asarray(members, jnp.float32)
  decay = optax.cosine_decay_schedule(1.0, config["steps"])
  as_odds = config["aggregation"] == "probabilities"

  def optimizer(member):
    return optax.adamw(
      lambda count: member[0] * decay(count), weight_decay=member[1]
    )

  # As of `step.init_state`: it would take longer to optimise than to run.
  @functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
  )
  def draw(seed):
    return model.init(jax.random.key(seed), jnp.zeros((1, features)))["params"]

  def init(params):
    def start(params, member):
      return params, optimizer(member).init(params)

    of_members = jax.vmap(start, (None, 0))
    return jax.vmap(of_members, (0, None))(params, rates)

  def loss(params, x, y):
    logits = model.apply({"params": params}, x)
    return optax.sigmoid_binary_cross_entropy(logits, y).mean()

  def update(state, member, x, y):
    params, opt_state = state
    grads = jax.grad(loss)(params, x, y)
    updates, opt_state = optimizer(member).update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  def train(given, state, rows):
    def step(state, rows):  # [G, B]
      x = _standard(given["train"]["x"][rows], given["scale"])
      y = given["train"]["y"][rows].astype(jnp.float32)
      of_members = jax.vmap(update, (0, 0, None, None))
      of_groups = jax.vmap(of_members, (0, None, 0, 0))
      return of_groups(state, rates, x, y), None

    return jax.lax.scan(step, state, rows.swapaxes(0, 1))[0]

  def score(given, params, split):
    def of_block(total, block, params):
      x = _standard(block["x"], given["scale"])
      values = jax.vmap(lambda p: model.apply({"params": p}, x), out_axes=1)(
        params
      )
      if as_odds:  # of both outcomes, since 1 - p would round to 0
        both = jax.nn.sigmoid(values), jax.nn.sigmoid(-values)
        values = jnp.concatenate(both, axis=-1)
      # [N, H, T or 2 T]
      new = jax.ops.segment_sum(values, block["owners"], counts[split])
      return total + new, None

    def of_group(params):
      columns = model.sizes[-1] * (2 if as_odds else 1)
      shape = counts[split], len(jax.tree.leaves(params)[0]), columns
      one = functools.partial(of_block, params=params)
      return jax.lax.scan(one, jnp.zeros(shape), given[split])[0]

    total = jax.lax.map(of_group, params)  # [G, tracks, H, T]
    owners = given[split]["owners"].ravel()
    segments = jnp.bincount(owners, length=counts[split])
    mean = (total / segments[:, None, None]).swapaxes(1, 2)
    if as_odds:  # which rank alike
      present, absent = jnp.split(jnp.log(jnp.maximum(mean, 1e-37)), 2, axis=-1)
      mean = present - absent
    return mean

  whole, divided = PartitionSpec(), PartitionSpec(AXIS)
  mapped = functools.partial(parallel.map_step, mesh=mesh, out_specs=divided)
  functions = {
    "draw": draw,
    "init": mapped(init, in_specs=(divided,)),
    "train": mapped(train, in_specs=(whole, divided, divided), donate=(1,)),
  }
  for split in counts:
    functions[split] = mapped(
      functools.partial(score, split=split), in_specs=(whole, divided)
    )
  return functions


def _standard(x: jax.Array, scale: Mapping[str, jax.Array]) -> jax.Array:
  return (x.astype(jnp.float32) - scale["mean"]) * scale["inverse"]


def _train(
  config: Mapping,
  functions: Mapping[str, Callable],
  given: Mapping,
  groups: Sequence[Mapping],
  labels: np.ndarray,
  mesh: Mesh,
) -> tuple[np.ndarray, list[dict], dict]:
  """Trains a block of groups.

  Args:
    config: the config's "probe".
    functions: of `_functions`.
    given: what all groups share.
    groups: {"rows", "seed", "subset"} each.
    labels: of the validation tracks.
    mesh: of devices.

  Returns:
    logits of test tracks by the chosen probe of each group, [G, tracks, T];
    which probe that is: {"member", "step", "validation_map"} each; and its
    parameters, leaves [G, …].
  """
  put = functools.partial(parallel.shard, mesh=mesh, axis=0)
  seeds = {group["seed"] for group in groups}
  initial = {seed: jax.device_get(functions["draw"](seed)) for seed in seeds}
  params = [initial[group["seed"]] for group in groups]
  steps, evaluations = config["steps"], config["evaluations"]
  batch = min(config["batch"], len(given["train"]["x"]))
  rows = np.stack([inputs.minibatches(group, batch, steps) for group in groups])
  state = functions["init"](put(jax.tree.map(lambda *x: np.stack(x), *params)))
  kept, quality, taken = None, None, None
  # Parts of one length, so that one program does for all.
  for part in range(1, evaluations + 1):
    length = steps // evaluations
    some = rows[:, (part - 1) * length : part * length]
    state = functions["train"](given, state, put(some))
    logits = np.asarray(functions["validation"](given, state[0]))
    found = _quality(labels, logits)  # [G, H]
    if kept is None:
      kept = jax.tree.map(jnp.copy, state[0])
      quality, taken = found, np.full(found.shape, length)
      continue
    better = found > quality
    kept = _choose(put(better), state[0], kept)
    quality = np.maximum(found, quality)
    taken[better] = part * length
  if not quality.max(axis=1).all():
    raise InputError(
      f"the probes' logits are no finite numbers at any of the learning rates"
      f" {config['learning_rates']} and weight decays"
      f" {config['weight_decays']}: give lower ones with"
      " --config.probe.learning_rates and --config.probe.weight_decays"
    )
  best = quality.argmax(axis=1)
  chosen = _pick(put(best), kept)
  picked = [
    {
      "member": int(member),
      "step": int(taken[group, member]),
      "validation_map": float(quality[group, member]),
    }
    for group, member in enumerate(best)
  ]
  logits = np.asarray(functions["test"](given, chosen))[:, 0]
  return logits, picked, jax.tree.map(lambda x: np.asarray(x)[:, 0], chosen)


@functools.partial(jax.jit, donate_argnums=2)
def _choose(better: jax.Array, new: Any, old: Any) -> Any:
  """Takes those of the new parameters [G, H, …] that are better [G, H]."""
  of_shape = lambda x: better.reshape(better.shape + (1,) * (x.ndim - 2))
  return jax.tree.map(lambda n, o: jnp.where(of_shape(n), n, o), new, old)


@jax.jit
def _pick(member: jax.Array, params: Any) -> Any:
  """Takes one member [G] of each group of [G, H, …], as [G, 1, …]."""
  one = lambda x, m: jax.lax.dynamic_slice_in_dim(x, m, 1)
  return jax.tree.map(lambda leaf: jax.vmap(one)(leaf, member), params)


def _quality(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
  """Returns macro mAP [G, H] of logits [G, H, tracks, T]."""
  return np.stack([macro_map(labels, group) for group in logits])


def _block_size(
  config: Mapping,
  data: Mapping[str, Mapping],
  members: int,
  groups: int,
  devices: int,
) -> int:
  """Returns how many groups are trained at a time, a multiple of devices."""
  tags = data["train"]["labels"].shape[1]
  sizes = (data["train"]["x"].shape[1], *config["hidden"], tags)
  numbers = sum((1 + a) * b for a, b in itertools.pairwise(sizes))
  validation = len(data["validation"]["labels"]) * tags
  if config["aggregation"] == "probabilities":
    validation *= 2  # both outcomes
  # Parameters, their moments, gradients, update and the best so far; logits
  # here and on the device.
  one = 4 * members * (7 * numbers + 3 * validation)
  most = max(_MEMORY // one, 1) * devices
  blocks = -(-groups // most)
  return -(-groups // (blocks * devices)) * devices
