"""What it costs to keep embeddings in 16 bits, and what the cache saves.

Each encoder embeds the training and validation tracks of a data set. The same
float32 embeddings are rounded to either type of 16 bits; then ridge regression
learns from the standardised segments of the training tracks and tags the mean
embeddings of the validation tracks. Shown are the macro mAP, the standard
deviation of a feature's rounding errors in units of its own (the median feature
and the worst), and how far predictions are from those by float32, in deviations
of these (the median tag). A second table has the cache's speed.

Macro mAP on two data sets (160 rendered scores; 165 recordings of 30 s), laptop
preset, the tasks' encoders after 400 steps on both:

| encoder | float32 | float16 | bfloat16 |
| --- | --- | --- | --- |
| mel | .4707 / .3991 | .4708 / .3991 | .4659 / .3989 |
| random | .4718 / .4018 | .4728 / .4018 | .4736 / .4013 |
| contrastive | .4605 / .4215 | .4604 / .4210 | .4556 / .4317 |
| byol | .4091 / .4092 | .4091 / .4092 | .4095 / .4091 |
| vicreg | .4802 / .4557 | .4802 / .4557 | .4802 / .4559 |

Predictions by float16 are 0.04 to 0.5 % of their deviation from those by
float32, by bfloat16 0.3 to 4 %. Float16's worst feature is rounded by 0.6 % of
its deviation, bfloat16's by 5 %.

  python -m benchmarks.embedding_dtype mel random WORKDIR … --data=NAME
"""

import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from ssl_music import config as defaults
from ssl_music import embeddings, features, metrics, online, parallel
from ssl_music.data.tracks import Tracks

_DATA = flags.DEFINE_string("data", None, "Data set.", required=True)
_SEGMENTS = flags.DEFINE_integer("segments", 25, "Of a training track.")
_BATCH = flags.DEFINE_integer("batch", 64, "Segments a batch.")

SPLITS = ("train", "validation")
TYPES = (np.float32, np.float16, jnp.bfloat16)


def tag(vectors: dict, parts: dict, columns: np.ndarray) -> np.ndarray:
  """Returns predictions for the validation tracks, [M, T]."""
  owners = {split: where[:, 0] for split, (_, where) in parts.items()}
  train = vectors["train"].astype(np.float64)
  begins = np.flatnonzero(np.diff(owners["validation"], prepend=-1))
  means = online.track_means(vectors["validation"], begins)
  mean, deviation = train.mean(axis=0), train.std(axis=0)
  scale = lambda x: (x - mean) / np.where(deviation > 1e-6, deviation, np.inf)
  labels = parts["train"][0].labels[np.ix_(owners["train"], columns)]
  return online.ridge(scale(train), labels, scale(means))


def compare(name: str, vectors: dict, parts: dict) -> None:
  """Prints an encoder's row for each type."""
  tracks = parts["validation"][0]
  used = np.unique(parts["validation"][1][:, 0])
  share = np.stack(
    [tracks.labels[used].mean(axis=0), parts["train"][0].labels.mean(axis=0)]
  )
  columns = np.flatnonzero(((share > 0) & (share < 1)).all(axis=0))
  labels = tracks.labels[np.ix_(used, columns)]
  spread = vectors["train"].std(axis=0)
  alive = spread > 1e-6
  for dtype in TYPES:
    rounded = {s: v.astype(dtype).astype("f4") for s, v in vectors.items()}
    noise = (rounded["train"] - vectors["train"]).std(axis=0)
    noise = noise[alive] / spread[alive]
    predicted = tag(rounded, parts, columns)
    if dtype is np.float32:
      reference = predicted
    apart = (predicted - reference).std(axis=0) / reference.std(axis=0)
    found = metrics.scores(labels, predicted, range(len(columns)))
    numbers = f"{found['map_macro']:.4f} | {np.median(noise):.5f} |"
    numbers += f" {noise.max():.5f} | {np.median(apart):.5f}"
    print(f"| {name} | {jnp.dtype(dtype).name} | {numbers} |", flush=True)


def measure(name: str, frozen, parts: dict, mesh) -> str:
  """Returns an encoder's row of what making and finding its arrays takes."""
  seconds = []
  with tempfile.TemporaryDirectory() as folder:
    for _ in ("miss", "hit"):
      start = time.perf_counter()
      found = embeddings.cached(
        frozen, parts, folder=Path(folder), batch=_BATCH.value, mesh=mesh
      )
      seconds.append(time.perf_counter() - start)
  segments = sum(len(x) for x in found.values())
  size = sum(x.nbytes for x in found.values())
  return (
    f"| {name} | {segments:,} | {segments / seconds[0]:,.0f} | {size:,} |"
    f" {1000 * seconds[1]:.1f} |"
  )


def main(argv: list[str]) -> None:
  """Prints both tables for the encoders named."""
  logging.set_verbosity(logging.WARNING)
  mesh = parallel.make_mesh()
  tracks = {split: Tracks(_DATA.value, (split,)) for split in SPLITS}
  speed = []
  print("| encoder | type | mAP | rounding | worst | predictions |")
  print("| --- | --- | --- | --- | --- | --- |")
  for name in argv[1:]:
    config = defaults.probing()
    config.encoder = name
    frozen = features.load_encoder(config, tracks["train"])
    parts = {
      split: (
        part,
        features.choose_segments(part, frozen.seconds, _SEGMENTS.value),
      )
      for split, part in tracks.items()
    }
    vectors = features.embed_segments(
      frozen, parts.values(), batch=_BATCH.value, mesh=mesh
    )
    label = frozen.described.get("pretext", name)
    compare(label, dict(zip(SPLITS, vectors, strict=True)), parts)
    speed.append(measure(label, frozen, parts, mesh))
  print("\n| encoder | segments | segments/s | bytes | hit, ms |")
  print("| --- | --- | --- | --- | --- |", *speed, sep="\n")


if __name__ == "__main__":
  app.run(main)
