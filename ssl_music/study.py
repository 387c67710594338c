"""Many probes at once: subsets of the labels x seeds x rates x weight decays.

All probes of a study see the same frozen embeddings, so they are trained side
by side in one program. A *group* of probes has a subset of the training tracks
and a seed; its *members* differ in learning rate and weight decay alone and
share every minibatch, so that their first layers are one matrix product. Groups
are divided over the devices.

Parameters are plain arrays, a list of {"kernel", "bias"} of layers with ReLU
between them; of H members, kernels are [inputs, H, outputs] and biases
[H, outputs].
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from ssl_music import parallel, progress
from ssl_music import study_inputs as inputs
from ssl_music.errors import InputError
from ssl_music.parallel import AXIS

# What the blocks of groups that are in work may take on a device, in bytes.
_MEMORY = 2**30
# Blocks in work: one is scored on the host while the other trains.
_AT_ONCE = 2


def run(
  config: Mapping[str, Any],
  data: Mapping[str, Mapping[str, np.ndarray]],
  subsets: Sequence[Mapping[str, Any]],
  *,
  seed: int,
  mesh: Mesh,
) -> dict[str, Any]:
  """Trains all probes and applies the chosen ones to the test tracks.

  Minimises binary cross entropy on embeddings, standardised by all training
  segments, with AdamW and a cosine schedule. Each probe is taken at the step,
  and each group at the learning rate and weight decay, of the highest macro mAP
  on the validation tracks.

  A probe follows from its share, draw, seed, learning rate and weight decay,
  whatever others are trained beside it: to the last bit on a CPU as long as the
  grid of rates and decays is the same; otherwise to rounding, since a product
  of other sizes may add up in another order.

  Args:
    config: the config's "probe".
    data: of each of "train", "validation" and "test": "x", finite embeddings
      of segments [N, D]; "owners", the track of each, int [N], rising, every
      track with one segment or more; "labels" of those tracks, bool
      [tracks, T].
    subsets: of the training tracks, of `subsets.draw`, none empty.
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
  members = [
    *itertools.product(config["learning_rates"], config["weight_decays"])
  ]
  groups = [
    {
      "rows": np.flatnonzero(some["mask"][data["train"]["owners"]]),
      "seed": seed + one,
      "subset": index,
      "share": some["share"],
      "draw": some["draw"],
    }
    for index, some in enumerate(subsets)
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
  sizes = (data["train"]["x"].shape[1], *config["hidden"], labels.shape[1])
  functions = _trainer(config, members, mesh) | _scorer(config, counts, mesh)
  validation = data["validation"]["labels"]
  size = _block_size(config, data, len(members), len(groups), mesh)
  train_one = functools.partial(
    _train, config, functions, given, sizes, validation, mesh
  )
  blocks = [*inputs.blocks(groups, config["batch"], size)]
  logits, chosen, heads = {}, {}, {}
  with ThreadPoolExecutor(_AT_ONCE) as pool:
    # One shape for all blocks of minibatches of one length.
    full = (block + block[:1] * (size - len(block)) for block in blocks)
    done = pool.map(train_one, full)
    bar = progress.bar(blocks, desc="probe", unit="block")
    for block, (one, picked, params) in zip(bar, done, strict=True):
      for place, (group, pick) in enumerate(zip(block, picked, strict=False)):
        key = group["subset"], group["seed"]
        logits[key] = one[place]
        heads[key] = jax.tree.map(lambda x, n=place: x[n], params)
        rate, decay = map(float, members[pick.pop("member")])
        chosen[key] = {
          "seed": group["seed"],
          "learning_rate": rate,
          "weight_decay": decay,
        } | pick
  seeds = range(seed, seed + config["seeds"])
  by_subset = lambda found: [
    [found[index, one] for one in seeds] for index in range(len(subsets))
  ]
  whole = by_subset(heads)[-1]
  return {
    "logits": np.array(by_subset(logits)),
    "chosen": by_subset(chosen),
    "head": scale | {"layers": jax.tree.map(lambda *x: np.stack(x), *whole)},
  }


def initial(seed: int, sizes: Sequence[int]) -> list[dict[str, np.ndarray]]:
  """Draws the parameters that a probe starts from, as of flax's dense layers.

  Args:
    seed: of the draw.
    sizes: features, units of hidden layers, tags.

  Returns:
    a layer each, {"kernel": float32 [inputs, outputs], "bias": [outputs]}.
  """
  draw = jax.nn.initializers.lecun_normal()
  keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
  return [
    {"kernel": np.asarray(draw(key, pair)), "bias": np.zeros(pair[1], "f4")}
    for key, pair in zip(keys, itertools.pairwise(sizes), strict=True)
  ]


def _apply(params: Sequence[Mapping], x: jax.Array) -> jax.Array:
  """Returns logits [N, H, T] of x [N, D] by all members."""
  first, *others = params
  features, *shape = first["kernel"].shape
  y = x @ first["kernel"].reshape(features, -1)
  y = y.reshape(-1, *shape) + first["bias"]
  for layer in others:
    y = jnp.einsum("nhi,iho->nho", jax.nn.relu(y), layer["kernel"])
    y += layer["bias"]
  return y


def _trainer(
  config: Mapping, members: Sequence[tuple[float, float]], mesh: Mesh
) -> dict[str, Callable]:
  """Returns the compiled "init" and "train"; leaves of a state are [G, …]."""
  rate, weight_decay = jnp.asarray(members, jnp.float32).T[..., None]
  schedule = optax.cosine_decay_schedule(1.0, config["steps"])
  adam = optax.scale_by_adam()

  def init(params):
    def start(params):
      # Members are on the axis before the last.
      wide = jax.tree.map(
        lambda x: jnp.repeat(x[..., None, :], len(members), axis=-2), params
      )
      return wide, adam.init(wide)

    return jax.vmap(start)(params)

  def update(state, x, y):
    params, moments = state
    logits, back = jax.vjp(lambda params: _apply(params, x), params)
    # The gradient of binary cross entropy, mean over segments and tags. The
    # CPU's tanh is nine times as fast as its exp.
    probability = 0.5 + 0.5 * jnp.tanh(0.5 * logits)
    (grads,) = back((probability - y[:, None]) / y.size)
    at = rate * schedule(moments.count)
    updates, moments = adam.update(grads, moments)
    params = jax.tree.map(
      lambda p, u: p - at * (u + weight_decay * p), params, updates
    )
    return params, moments

  def train(given, state, rows):
    def of_group(state, rows):
      def step(state, rows):  # [B]
        x = _standard(given["train"]["x"][rows], given["scale"])
        y = given["train"]["y"][rows].astype(jnp.float32)
        return update(state, x, y), None

      return jax.lax.scan(step, state, rows)[0]

    if len(rows) > 1:
      return jax.vmap(of_group)(state, rows)
    # Plain products are twice as fast on the CPU as batches of one.
    one = of_group(*jax.tree.map(lambda x: x[0], (state, rows)))
    return jax.tree.map(lambda x: x[None], one)

  whole, divided = PartitionSpec(), PartitionSpec(AXIS)
  mapped = functools.partial(parallel.map_step, mesh=mesh, out_specs=divided)
  return {
    "init": mapped(init, in_specs=(divided,)),
    "train": mapped(train, in_specs=(whole, divided, divided), donate=(1,)),
  }


def _scorer(
  config: Mapping, counts: Mapping[str, int], mesh: Mesh
) -> dict[str, Callable]:
  """Returns the compiled function that scores the tracks of each split.

  Args:
    config: the config's "probe".
    counts: tracks of each split.
    mesh: of devices.

  Returns:
    {split: f(given, params) -> logits [G, H, tracks, T]}.
  """
  as_odds = config["aggregation"] == "probabilities"

  def score(given, params, split):
    def of_block(total, block, params):
      x = _standard(block["x"], given["scale"])
      values = _apply(params, x)
      if as_odds:  # of both outcomes, since 1 - p would round to 0
        both = jax.nn.sigmoid(values), jax.nn.sigmoid(-values)
        values = jnp.concatenate(both, axis=-1)
      # [N, H, T or 2 T]
      new = jax.ops.segment_sum(values, block["owners"], counts[split])
      return total + new, None

    def of_group(params):
      columns = params[-1]["bias"].shape[-1] * (2 if as_odds else 1)
      shape = counts[split], len(params[-1]["bias"]), columns
      one = functools.partial(of_block, params=params)
      return jax.lax.scan(one, jnp.zeros(shape), given[split])[0]

    if config["aggregation"] == "embeddings":
      x = _standard(given[split]["x"][0], given["scale"])  # of tracks
      return jax.lax.map(lambda one: _apply(one, x).swapaxes(0, 1), params)
    total = jax.lax.map(of_group, params)  # [G, tracks, H, T]
    owners = given[split]["owners"].ravel()
    segments = jnp.bincount(owners, length=counts[split])
    mean = (total / segments[:, None, None]).swapaxes(1, 2)
    if as_odds:  # which rank alike
      present, absent = jnp.split(jnp.log(jnp.maximum(mean, 1e-37)), 2, axis=-1)
      mean = present - absent
    return mean

  whole, divided = PartitionSpec(), PartitionSpec(AXIS)
  return {
    split: parallel.map_step(
      functools.partial(score, split=split), mesh, (whole, divided), divided
    )
    for split in counts
  }


def _standard(x: jax.Array, scale: Mapping[str, jax.Array]) -> jax.Array:
  return (x.astype(jnp.float32) - scale["mean"]) * scale["inverse"]


def _train(
  config: Mapping,
  functions: Mapping[str, Callable],
  given: Mapping,
  sizes: Sequence[int],
  labels: np.ndarray,
  mesh: Mesh,
  groups: Sequence[Mapping],
) -> tuple[np.ndarray, list[dict], dict]:
  """Trains a block of groups.

  Args:
    config: the config's "probe".
    functions: of `_trainer` and `_scorer`.
    given: what all groups share.
    sizes: of the probes' layers, as of `initial`.
    labels: of the validation tracks.
    mesh: of devices.
    groups: of `inputs.blocks`.

  Returns:
    logits of test tracks by the chosen probe of each group, [G, tracks, T];
    which probe that is: {"member", "step", "validation_map"} each; and its
    parameters, as of one probe, with leaves [G, …].
  """
  put = functools.partial(parallel.shard, mesh=mesh, axis=0)
  seeds = {group["seed"] for group in groups}
  drawn = {seed: initial(seed, sizes) for seed in seeds}
  params = [drawn[group["seed"]] for group in groups]
  steps, evaluations = config["steps"], config["evaluations"]
  rows = np.stack([inputs.minibatches(group, steps) for group in groups])
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
    if better.any():
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
  return (
    logits,
    picked,
    jax.tree.map(lambda x: np.asarray(x)[..., 0, :], chosen),
  )


@functools.partial(jax.jit, donate_argnums=2)
def _choose(better: jax.Array, new: Any, old: Any) -> Any:
  """Takes those of the new parameters [G, …, H, out] that are better [G, H]."""
  shape = lambda x: (len(x), *[1] * (x.ndim - 3), x.shape[-2], 1)
  return jax.tree.map(
    lambda n, o: jnp.where(better.reshape(shape(n)), n, o), new, old
  )


@jax.jit
def _pick(member: jax.Array, params: Any) -> Any:
  """Takes one member [G] of each group of [G, …, H, out], as [G, …, 1, out]."""
  one = lambda x, m: jax.lax.dynamic_slice_in_dim(x, m, 1, axis=-2)
  return jax.tree.map(lambda leaf: jax.vmap(one)(leaf, member), params)


def _quality(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
  """Returns macro mAP [G, H] of logits [G, H, tracks, T]."""
  return np.stack([inputs.macro_map(labels, group) for group in logits])


def _block_size(
  config: Mapping,
  data: Mapping[str, Mapping],
  members: int,
  groups: int,
  mesh: Mesh,
) -> int:
  """Returns how many groups are trained at a time, a multiple of devices."""
  if mesh.devices.flat[0].platform == "cpu":
    # Its cores share the products of one group, whose parameters stay in its
    # cache.
    return mesh.size
  tags = data["train"]["labels"].shape[1]
  sizes = (data["train"]["x"].shape[1], *config["hidden"], tags)
  numbers = sum((1 + a) * b for a, b in itertools.pairwise(sizes))
  validation = len(data["validation"]["labels"]) * tags
  if config["aggregation"] == "probabilities":
    validation *= 2  # both outcomes
  # Parameters, their moments, gradients, update and the best so far; logits
  # here and on the device.
  one = 4 * members * (7 * numbers + 3 * validation) * _AT_ONCE
  most = max(_MEMORY // one, 1) * mesh.size
  blocks = -(-groups // most)
  return -(-groups // (blocks * mesh.size)) * mesh.size
