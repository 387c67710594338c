"""BYOL (Grill et al., 2020, equations 2 to 4)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ssl_music.pretext.record import LEARNING_RATE, SHARE, SIZES, Pretext

MOMENTUM = {"momentum": SHARE, "final_momentum": SHARE}  # of a teacher


def loss(
  features: Mapping[str, jax.Array],
  config: Mapping,
  axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Brings predictions close to the teacher's projections of other views.

  The mean of 2 - 2 cos over the batch and over all pairs of a teacher's view
  and another view of the student's. This is the paper's formula; the published
  code sums over the batch where it should over features.

  Args:
    features: with the student's "prediction" of this device's items,
      [V, B, D], V >= 2, and "teacher", the teacher's projections of the first G
      views, [G, B, D], 1 <= G <= V (the rest are short views that only the
      student sees); no gradient flows into it.
    config: unused, for the losses' common signature.
    axis_name: unused too: items do not see each other here.

  Returns:
    The loss of this device's items, in [0, 4] (its mean over devices is that
    of the global batch), and {"cosine": mean over the same pairs}.
  """
  del config, axis_name
  teacher = jax.lax.stop_gradient(unit(features["teacher"]))
  cosine = mean_product(teacher, unit(features["prediction"]))
  return 2 - 2 * cosine, {"cosine": cosine}


def unit(x: jax.Array) -> jax.Array:
  """Scales x [..., D] to length 1, in float32 at least; zeros stay zeros."""
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  # Squared, since a norm has no gradient at 0.
  square = jnp.square(x).sum(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-16))


def mean_product(teacher: jax.Array, student: jax.Array) -> jax.Array:
  """Mean over items and pairs of views i != j of teacher_i · student_j.

  Args:
    teacher: the first G views, [G, B, D].
    student: all views, [V, B, D], V >= max(G, 2).
  """
  given, views = len(teacher), len(student)
  # The product of the sums holds all pairs; those of one view come off again.
  every = (teacher.sum(0) * student.sum(0)).sum(-1)
  same = (teacher * student[:given]).sum((0, -1))
  return (every - same).mean() / (given * (views - 1))


TASK = Pretext(
  loss,
  colour="#D55E00",
  marker="s",
  fields={"predictor": SIZES, **MOMENTUM},
  follows=("params", "batch_stats"),
  advice=f"{LEARNING_RATE}, or keep the predictor and raise"
  " --config.pretext.momentum",
)
