"""Hyper-parameters as functions of the step, as published."""

import jax
import jax.numpy as jnp
import optax


def cosine(start: float, end: float, total: int) -> optax.Schedule:
  """Goes from `start` at step 0 towards `end` along half a cosine.

  Step `total` would be the first at `end`: the published schedules divide by
  the number of steps.

  Args:
    start: value at step 0.
    end: value at step `total` and after.
    total: in steps, at least 1.
  """

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    share = jnp.minimum(jnp.asarray(step) / total, 1)
    return end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * share))

  return schedule


def warmup_cosine(
  peak: float, edge: float, warmup: int, total: int
) -> optax.Schedule:
  """Rises linearly from `edge` to `peak`, then falls back along a cosine.

  The peak is reached at the last step of the warm-up and held for the next,
  the cosine's first, as in the published code.

  Args:
    peak: the largest value.
    edge: value at step 0 (where there is a warm-up) and at the end.
    warmup: length of the rise, in steps.
    total: length of both, in steps, more than `warmup`.
  """
  fall = cosine(peak, edge, total - warmup)

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step)
    rise = edge + (peak - edge) * step / max(warmup - 1, 1)
    return jnp.where(step < warmup, rise, fall(step - warmup))

  return schedule
