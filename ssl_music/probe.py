"""The probe: what a frozen encoder's embeddings tell about tags."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ssl_music import features, metrics, parallel, results, workdir
from ssl_music.config import check_numbers
from ssl_music.data import demo
from ssl_music.data.plans import MAX_SECONDS, fingerprint
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

SPLITS = ("train", "validation", "test")


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


def probe(config: ConfigDict, folder: str | Path) -> dict[str, Any]:
  """Probes the encoder that a config names, on its data set.

  Args:
    config: of `config.probing`.
    folder: the workdir, which gets the config and `scores.json`.

  Returns:
    what `scores.json` holds.

  Raises:
    InputError: what is wrong with the config, the encoder or the data set.
  """
  folder = Path(folder)
  mesh = parallel.make_mesh()
  sizes = ("segments", "batch", "epochs", "seeds", "resamples")
  positive = [f"probe.{name}" for name in sizes]
  check_numbers(config, ["embed_batch", "frontend.hop", *positive])
  parallel.check_divides(config.embed_batch, mesh.size)
  demo.ensure(config.data.name, config.data.data_dir)
  parts = {
    split: Tracks(config.data.name, (split,), config.data.data_dir)
    for split in SPLITS
  }
  frozen = features.load_encoder(config, parts["train"])
  features.choose_tags(
    config.data.name, parts["train"].tags, config.data.tags, option="data.tags"
  )
  where = {
    split: features.choose_segments(
      part, frozen.seconds, config.probe.segments if split == "train" else None
    )
    for split, part in parts.items()
  }
  # A track shorter than a segment has none, and is not scored.
  used = {split: np.unique(chosen[:, 0]) for split, chosen in where.items()}
  missing = {
    split: sorted(set(part.ids) - {part.ids[t] for t in used[split]})
    + part.missing[split]
    for split, part in parts.items()
  }
  _check_complete(config, parts["test"], missing["test"])
  labels = {split: part.labels[used[split]] for split, part in parts.items()}
  columns = _choose_tags(config, parts["train"].tags, labels)
  tags = [parts["train"].tags[column] for column in columns]
  # From here on something is written.
  with workdir.claim(folder, config.to_dict()):
    vectors = features.embed_segments(
      frozen,
      [(parts[split], where[split]) for split in SPLITS],
      batch=config.embed_batch,
      mesh=mesh,
    )
    data = {}
    for split, x in zip(SPLITS, vectors, strict=True):
      owners = where[split][:, 0]
      if split == "train":
        data[split] = x, parts[split].labels[owners][:, columns]
      else:
        means = _means(x, owners, len(parts[split]))[used[split]]
        data[split] = means, labels[split][:, columns]
    logits, epochs = fit(config.probe.to_dict(), data, seed=config.seed)
    scores = frozen.described | {
      "data": config.data.name,
      "benchmark": _benchmark(parts["test"], tags),
      "as_published": parts["test"].card["as_published"],
      "fingerprint": fingerprint(
        # of what the tables say, whether it is there or not
        [
          (s, id_) for s in SPLITS for id_ in parts[s].ids + parts[s].missing[s]
        ],
        tags,
      ),
      "tracks": {split: len(tracks) for split, tracks in used.items()},
      "missing": {split: len(ids) for split, ids in missing.items()},
      "segments": {"train": len(data["train"][0])},
      "seeds": config.probe.seeds,
      "epochs": epochs,
    }
    scores |= summarise(
      data["test"][1], logits, tags, resamples=config.probe.resamples
    )
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
  print(results.by_tag(scores))
  return scores


def fit(
  config: Mapping, data: Mapping[str, tuple], *, seed: int
) -> tuple[np.ndarray, list[int]]:
  """Trains probes and applies each at its best epoch to the test tracks.

  Minimises binary cross entropy on standardised embeddings with AdamW, once
  for each of `config["seeds"]` seeds side by side. The epoch is that of the
  highest macro mAP on the validation tracks.

  Args:
    config: the config's "probe".
    data: {"train": (segments [N, D], labels [N, T]), "validation" and "test":
      (track means [M, D], labels [M, T])}.
    seed: the first of the seeds.

  Returns:
    test logits, [seeds, M, T], and the epoch chosen for each seed, from 1.
  """
  x, y = data["train"]
  mean, deviation = x.mean(axis=0), x.std(axis=0)
  # A dead feature is 0 everywhere, and stays so.
  scale = lambda v: (v - mean) / np.where(deviation > 1e-6, deviation, 1.0)
  model = Probe((*config["hidden"], y.shape[1]))
  keys = jax.vmap(jax.random.key)(seed + jnp.arange(config["seeds"]))
  # The data are arguments: as constants they would be part of the program.
  train = jax.vmap(functools.partial(_train, model, config), (None, None, 0))
  params = jax.jit(train)(scale(x), y, keys)  # leaves [seeds, epochs, …]
  apply = jax.jit(jax.vmap(model.apply, (0, None)))
  epochs, logits = [], []
  validation, labels = data["validation"]
  for index in range(config["seeds"]):
    history = jax.tree.map(lambda leaf, i=index: leaf[i], params)
    quality = [
      _macro_map(labels, scores)
      for scores in np.asarray(apply({"params": history}, scale(validation)))
    ]
    best = int(np.argmax(quality))
    epochs.append(best + 1)
    chosen = jax.tree.map(lambda leaf, e=best: leaf[e], history)
    test = scale(data["test"][0])
    logits.append(np.asarray(model.apply({"params": chosen}, test)))
  return np.stack(logits), epochs


def summarise(
  labels: np.ndarray, logits: np.ndarray, tags: list[str], *, resamples: int
) -> dict[str, Any]:
  """Scores test logits: means over seeds, intervals over resampled tracks.

  Args:
    labels: [M, T].
    logits: [seeds, M, T].
    tags: T names.
    resamples: bootstrap resamples of the test tracks.

  Returns:
    {"test": {"map_macro", "roc_auc_macro", "map_micro", "roc_auc_micro"},
    "interval": {each: [low, high] at 95 %}, "by_seed": {each: [seeds]},
    "per_tag": {tag: {"ap", "roc_auc", "positives"}}, "left_out": [tags]}.

  Raises:
    ValueError: no tag has positives and negatives among the test tracks.
  """
  scored = [metrics.scores(labels, one, tags) for one in logits]
  names = ("map_macro", "roc_auc_macro", "map_micro", "roc_auc_micro")
  # Every seed with the same resamples, whose scores are then averaged.
  drawn = [
    metrics.bootstrap(labels, one, resamples=resamples) for one in logits
  ]
  per_tag = {
    tag: {
      key: float(np.mean([one["per_tag"][tag][key] for one in scored]))
      for key in ("ap", "roc_auc")
    }
    | {"positives": first["positives"]}
    for tag, first in scored[0]["per_tag"].items()
  }
  return {
    "test": {n: float(np.mean([one[n] for one in scored])) for n in names},
    "interval": {
      n: list(metrics.interval(np.mean([one[n] for one in drawn], axis=0)))
      for n in names
    },
    "by_seed": {n: [one[n] for one in scored] for n in names},
    "per_tag": per_tag,
    "left_out": scored[0]["left_out"],
  }


def _benchmark(test: Tracks, tags: Sequence[str]) -> str:
  """Returns the benchmark's name, with what makes it another's."""
  name = test.card["benchmark"]
  if name and len(tags) < len(test.tags):
    name += f", {len(tags)} of {len(test.tags)} tags"
  kept = test.card["max_seconds"]
  if name and kept is not None and kept < MAX_SECONDS:
    name += f", first {kept:g} s of a track"
  return name


def _check_complete(
  config: ConfigDict, test: Tracks, missing: Sequence[str]
) -> None:
  """Refuses a benchmark's score where test tracks of it are missing."""
  if not (missing and test.card["benchmark"]) or config.allow_missing:
    return
  shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
  raise InputError(
    f"{len(missing)} of the {len(test.ids) + len(test.missing['test'])} test"
    f" tracks of {test.card['benchmark']} are missing from data set"
    f" {test.name} or shorter than a segment ({shown}; see skipped.csv in"
    f" {test.folder}), so that its score would be another benchmark's: prepare"
    " it with these, or have the number stand beside the score with"
    " --config.allow_missing=True"
  )


def _choose_tags(
  config: ConfigDict, tags: list[str], labels: Mapping[str, np.ndarray]
) -> list[int]:
  """Returns the columns to probe; finds what would leave nothing to score."""
  columns = features.choose_tags(
    config.data.name, tags, config.data.tags, option="data.tags"
  )
  for split in ("validation", "test"):
    share = labels[split][:, columns].mean(axis=0)
    if not ((share > 0) & (share < 1)).any():
      raise InputError(
        f"no tag has both a track with it and one without it in {split} of"
        f" {config.data.name}: prepare a larger split"
      )
  return columns


def _train(
  model: Probe, config: Mapping, x: np.ndarray, y: np.ndarray, key: jax.Array
) -> Any:
  """Trains one probe; returns its parameters after each epoch, stacked."""
  x, y = jnp.asarray(x), jnp.asarray(y, jnp.float32)
  batch = min(config["batch"], len(x))
  steps = len(x) // batch
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(
      config["learning_rate"], steps * config["epochs"]
    ),
    weight_decay=config["weight_decay"],
  )
  init_key, shuffle_key = jax.random.split(key)
  params = model.init(init_key, x[:1])["params"]

  def loss(params, rows):
    logits = model.apply({"params": params}, x[rows])
    return optax.sigmoid_binary_cross_entropy(logits, y[rows]).mean()

  def step(carry, rows):
    params, state = carry
    updates, state = optimizer.update(
      jax.grad(loss)(params, rows), state, params
    )
    return (optax.apply_updates(params, updates), state), None

  def epoch(carry, key):
    order = jax.random.permutation(key, len(x))[: steps * batch]
    carry, _ = jax.lax.scan(step, carry, order.reshape(steps, batch))
    return carry, carry[0]

  keys = jax.random.split(shuffle_key, config["epochs"])
  _, history = jax.lax.scan(epoch, (params, optimizer.init(params)), keys)
  return history


def _macro_map(labels: np.ndarray, scores: np.ndarray) -> float:
  """Returns macro mAP over the tags with positives and negatives."""
  positives = labels.sum(axis=0)
  tags = np.flatnonzero((positives > 0) & (positives < len(labels)))
  values = [metrics.average_precision(labels[:, t], scores[:, t]) for t in tags]
  return float(np.mean(values)) if values else float("nan")


def _means(vectors: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
  """Returns each owner's mean vector, [count, D]; NaN where it has none."""
  total = np.zeros((count, vectors.shape[1]))
  np.add.at(total, owners, vectors)
  segments = np.bincount(owners, minlength=count)[:, None]
  with np.errstate(invalid="ignore"):
    return (total / segments).astype(np.float32)
