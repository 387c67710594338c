"""Clustering as in DINO (Caron et al., 2021, equations 1 to 4, section 3.1)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ssl_music.errors import InputError
from ssl_music.pretext import byol, correlation
from ssl_music.pretext.record import (
  LEARNING_RATE,
  NOT_NEGATIVE,
  POSITIVE,
  SHARE,
  Pretext,
  Sign,
  one_of,
)

_FLOOR = -100.0  # of the student's log probabilities, as published


def loss(
  features: Mapping[str, jax.Array],
  config: Mapping,
  axis_name: str | None = None,
  *,
  memory: Mapping[str, jax.Array],
  teacher_temperature: jax.typing.ArrayLike,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Predicts the cluster the teacher sees in another view.

  The cross entropy of the student's softmax with the teacher's targets, mean
  over the batch and over all pairs of a teacher's view and another view of the
  student's; and, if weighted, minus the entropy of the student's mean softmax
  over all views of the global batch (MSN, Assran et al., 2022, equation 2),
  which keeps clusters in use.

  Args:
    features: with the student's logits of this device's items, "projection",
      [V, B, K], V >= 2, K >= 2, and the teacher's of the first G views,
      "teacher", [G, B, K], 1 <= G <= V (the rest are short views that only the
      student sees); no gradient flows into it.
    config: "temperature" (> 0, of the student), "targets" (see `log_targets`),
      "sinkhorn_iterations" (>= 1) and "mean_entropy" (weight >= 0).
    axis_name: the mapped axis over which the batch is spread, or None.
    memory: {"centre": [1, K]} before this step's update.
    teacher_temperature: > 0, scalar, may be traced.

  Returns:
    The loss (its mean over devices is that of the global batch), and metrics
    of the global batch. In nats divided by log K, so that they lie in [0, 1]:
    "teacher_mean_entropy", the entropy of the mean target (0: a single cluster
    is in use); "teacher_entropy", the mean entropy of a target (1: targets say
    nothing); and "teacher_kl", the first minus the second, which is the mean
    KL divergence of a target from the mean target (0: collapse of either
    kind). In nats: "student_teacher_kl", the cross entropy minus the mean
    entropy of a target.

  Raises:
    InputError: config "targets" is unknown.
  """
  s, teacher = features["projection"], features["teacher"]
  s = s.astype(jnp.promote_types(s.dtype, jnp.float32))
  log_q = log_targets(teacher, config, axis_name, memory, teacher_temperature)
  q = jnp.exp(log_q)
  log_p = jax.nn.log_softmax(s / config["temperature"])
  cross_entropy = -byol.mean_product(q, jnp.maximum(log_p, _FLOOR))
  total = cross_entropy
  if config["mean_entropy"]:
    # Every device holds all of this term. Its gradient reaches a device's
    # items through the mean, which divides it by the number of devices: like
    # the rest, it is the global loss's after one mean over devices.
    mean_p = _mean(jnp.exp(log_p), axis_name)
    total = total - config["mean_entropy"] * _entropy(mean_p)

  entropy = -(q * log_q).sum(-1).mean()
  mean_entropy = _entropy(_mean(q, axis_name))
  if axis_name is not None:
    terms = (cross_entropy, entropy)
    cross_entropy, entropy = jax.lax.pmean(terms, axis_name)
  most = jnp.log(s.shape[-1])
  metrics = {
    "teacher_mean_entropy": mean_entropy / most,
    "teacher_entropy": entropy / most,
    "teacher_kl": (mean_entropy - entropy) / most,
    "student_teacher_kl": cross_entropy - entropy,
  }
  return total, metrics


def log_targets(
  teacher: jax.Array,
  config: Mapping,
  axis_name: str | None,
  memory: Mapping[str, jax.Array],
  temperature: jax.typing.ArrayLike,
) -> jax.Array:
  """Returns the logarithm of the distributions that the student shall have.

  Args:
    teacher: its logits of this device's items, [G, B, K].
    config: "targets", "centring" (softmax of the logits minus the centre) or
      "sinkhorn" (see `log_sinkhorn`; the centre goes unused), and
      "sinkhorn_iterations".
    axis_name: the mapped axis over which the batch is spread, or None.
    memory: {"centre": [1, K]}.
    temperature: > 0, scalar.

  Returns:
    [G, B, K], without a gradient.

  Raises:
    InputError: config "targets" is neither.
  """
  kind = config["targets"]
  dtype = jnp.promote_types(teacher.dtype, jnp.float32)
  teacher = jax.lax.stop_gradient(teacher.astype(dtype))
  if kind == "centring":
    centre = jax.lax.stop_gradient(memory["centre"])
    return jax.nn.log_softmax((teacher - centre) / temperature)
  if kind == "sinkhorn":
    iterations = config["sinkhorn_iterations"]
    return log_sinkhorn(teacher / temperature, iterations, axis_name)
  raise InputError(
    f"clustering knows no targets {kind!r}: set --config.pretext.targets to"
    " 'centring' or 'sinkhorn'"
  )


def log_sinkhorn(
  logits: jax.Array, iterations: int, axis_name: str | None = None
) -> jax.Array:
  """Spreads each view's items evenly over clusters, by Sinkhorn-Knopp.

  SwAV (Caron et al., 2020, section 3): in turn, the clusters are given equal
  shares of the global batch and each item a sum of 1. It stays in logarithms,
  as exp of logits at low temperatures leaves the range of float32. Devices
  exchange one number a view and cluster, never the matrix.

  Args:
    logits: at their temperature, [G, B, K], without a gradient.
    iterations: >= 1; three are usual, and many make the shares equal.
    axis_name: the mapped axis over which the batch is spread, or None.

  Returns:
    [G, B, K], the logarithm of distributions: exactly so for each item, and
    approximately evenly spread over clusters.
  """
  for _ in range(iterations):
    largest = logits.max(-2, keepdims=True)
    if axis_name is not None:
      largest = jax.lax.pmax(largest, axis_name)
    share = correlation.mean_over_batch(jnp.exp(logits - largest), axis_name)
    logits = jax.nn.log_softmax(logits - largest - jnp.log(share))
  return logits


def init_memory(config: Mapping) -> dict[str, jax.Array]:
  """Returns {"centre": zeros [1, K]}, K the last size of config "head"."""
  return {"centre": jnp.zeros((1, config["head"][-1]))}


def update_memory(
  memory: Mapping[str, jax.Array],
  features: Mapping[str, jax.Array],
  config: Mapping,
  axis_name: str | None = None,
) -> dict[str, jax.Array]:
  """Moves the centre towards the teacher's mean logits (equation 4).

  Args:
    memory: {"centre": [1, K]}.
    features: with the teacher's logits of this device's items, "teacher",
      [G, B, K].
    config: "centre_momentum", in [0, 1]: the share of the old centre.
    axis_name: the mapped axis over which the batch is spread, or None.

  Returns:
    The new memory, the same on all devices.
  """
  centre, momentum = memory["centre"], config["centre_momentum"]
  mean = _mean(features["teacher"].astype(centre.dtype), axis_name)
  return {"centre": momentum * centre + (1 - momentum) * mean}


def _mean(x: jax.Array, axis_name: str | None) -> jax.Array:
  """The mean of x [V, B, K] over views and the global batch, [1, K]."""
  return correlation.mean_over_batch(x, axis_name).mean(0)


def _entropy(p: jax.Array) -> jax.Array:
  """The entropy of the distribution p [1, K] in nats, a scalar."""
  # Clipped, since the logarithm's gradient is infinite at 0.
  return -(p * jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))).sum()


# No sign is taken from its projections: the centre removes from the targets
# what all logits share. (Where targets stayed sound, a rank was 1.3 in
# passing; in a run that collapsed, the cosine stayed at 0.92 and the rank at
# 14.) Measured as `record.PROJECTIONS`.
#
# Mean entropy: healthy 0.60 to 0.80; without centre 0.13 after 20 steps, 0
# after 40. At 0.2, targets use 2 of 32 clusters, or 5 of 4096.
# Entropy: healthy 0.04 to 0.25; at a teacher's temperature of 1, 0.997 after 20
# steps.
# KL: on real music, 200 steps of the published form, 0.11 to 0.17 at last at
# rates of 2e-3 and 5e-4; at 5e-3, where the embedding's rank fell to 2 and its
# score to half of an untrained network's, 0.035 from step 150 on. With Sinkhorn
# and cosine prototypes 0.11 at least in 400 steps. A uniform teacher 0.002, a
# single cluster 0.
_SIGNS = (
  Sign(
    "teacher_mean_entropy",
    False,
    0.2,
    "all targets are the same few clusters",
    "raise --config.pretext.mean_entropy, set"
    " --config.pretext.targets=sinkhorn, or lower"
    " --config.optimizer.learning_rate",
  ),
  Sign(
    "teacher_entropy",
    True,
    0.99,
    "the targets are uniform",
    "lower --config.pretext.teacher_temperature and"
    " --config.pretext.final_teacher_temperature",
  ),
  Sign("teacher_kl", False, 0.05, "the targets do not depend on the input"),
)
TASK = Pretext(
  loss,
  colour="#009E73",
  marker="^",
  fields={
    "cosine_prototypes": one_of(True, False),
    "targets": one_of("centring", "sinkhorn"),
    "sinkhorn_iterations": POSITIVE,
    "centre_momentum": SHARE,
    "mean_entropy": NOT_NEGATIVE,
    "temperature": POSITIVE,
    "teacher_temperature": POSITIVE,
    "final_teacher_temperature": POSITIVE,
    **byol.MOMENTUM,
  },
  follows=("params",),
  init_memory=init_memory,
  update_memory=update_memory,
  rates=("teacher_temperature",),
  signs=_SIGNS,
  advice=f"{LEARNING_RATE} or raise --config.pretext.momentum",
)
