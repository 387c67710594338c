"""Fine-tuning: backbone and head learn the tags together, from labels.

From a pre-trained backbone, or from an untrained one ("random"), which is
supervised training from scratch. The loop is that of pre-training with the
"supervised" task; splits, tags and scores are those of the probe.
"""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict
from scipy.special import expit

from ssl_music import (
  checkpoint,
  encoder,
  lock,
  metrics,
  parallel,
  probe,
  results,
  scoring,
  tagger,
  train,
  workdir,
)
from ssl_music.config import check_numbers
from ssl_music.data import pipeline
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError
from ssl_music.models.norm import BatchNorm

# What a backbone brings along from its pre-training.
_INHERITED = ("frontend", "model")


def finetune(config: ConfigDict, folder: str | Path) -> dict[str, Any]:
  """Fine-tunes the encoder that a config names, and scores its test tracks.

  Training goes on in a workdir that holds a part of it. Of the checkpoints, the
  one of the highest macro mAP on the validation tracks is scored.

  Args:
    config: of `configs/finetune.py`.
    folder: the workdir, which gets what `train.train` leaves, the network's
      head (see `tagger`) and what `scoring.save` leaves.

  Returns:
    what `scores.json` holds.

  Raises:
    InputError: what is wrong with the config, the encoder or the data set.
    workdir.Stopped: a signal asked to stop; the state is saved.
  """
  checkpoint.check_path(folder)
  folder, mesh = Path(folder), parallel.make_mesh()
  config, backbone, described = start_from_encoder(config)
  check(config, mesh)
  train.check(config, mesh)
  # One segment only tells whether a training track has any.
  parts, tags, missing = probe.choose(
    config,
    probe.open_splits(config),
    config.data.seconds,
    1,
    sounding=config.sounding,
  )
  about = probe.what_is_scored(parts, tags, missing)
  with config.unlocked():
    # A resumed run must have it, too: training itself looks at "train" alone.
    config.data.scored = about["fingerprint"]
  predict = make_predict(config, len(tags), mesh)
  train.train(
    config,
    folder,
    backbone=backbone,
    evaluate=functools.partial(_evaluate, predict, parts["validation"], tags),
  )
  with lock.hold(folder, "running in", "give another --workdir"):
    best, networks = checkpoint.load(folder, "best")
    test = parts["test"]
    head = make_head(networks, tags) | {
      "aggregation": config.aggregation,
      "sounding": config.sounding,
    }
    networks = parallel.replicate(networks, mesh)
    logits = predict(networks, test.tracks, test.where)[None]
    scores = described | about
    scores |= {
      "segments": {"train": best * config.batch * config.views},
      "seeds": 1,
      "aggregation": config.aggregation,
      "sounding": config.sounding,
      "hidden": list(config.pretext.head),
    }
    summary, samples = scoring.summarise(
      test.labels, logits, tags, resamples=config.resamples
    )
    scores |= summary
    scores["shares"] = [
      {"share": 1.0, "tracks": len(parts["train"].used)}
      | scoring.of_one_draw(summary)
    ]
    scores["chosen"] = [_chosen(config, folder, best)]
    predictions = {"logits": logits, "labels": test.labels}
    predictions |= {"ids": test.ids(), "tags": tags}
    with workdir.writing(folder):
      tagger.save(folder, head)
      scoring.save(folder, scores, samples, predictions)
  print(results.by_tag(scores))
  return scores


def start_from_encoder(
  config: ConfigDict,
) -> tuple[ConfigDict, dict[str, Any] | None, dict[str, Any]]:
  """Resolves the encoder that a config names.

  Args:
    config: with "encoder": "random" or a pre-training's workdir, whose
      "checkpoint" and "network" ("student" or "teacher") are taken.

  Returns:
    a copy of the config, with network, front end and segment length of the
    pre-training and the step of its checkpoint, for "random" with a
    `backbone_rate` of 1; the backbone's {"params", "batch_stats"}, None for
    "random"; and what `scores.json` says of the encoder.

  Raises:
    InputError: "mel", which has nothing to train; or the workdir holds no
      pre-training, no readable checkpoint or no such network.
  """
  config = config.copy_and_resolve_references()
  if config.encoder == "mel":
    raise InputError(
      "the encoder mel has no parameters to fine-tune: set --config.encoder to"
      " the workdir of a pre-training, or to random"
    )
  with config.unlocked():
    if config.encoder == "random":
      # Nothing is there yet that large steps could spoil.
      config.optimizer.backbone_rate = 1.0
      described = {"encoder": "random", "seed": config.seed}
      return config, None, described | {"name": "supervised"}
    folder = Path(config.encoder)
    settings = workdir.read_config(folder)
    step, state = checkpoint.load(folder, config.checkpoint, config.network)
    for name in _INHERITED:
      config[name] = ConfigDict(settings[name])
    config.data.seconds = settings["data"]["seconds"]
    # So that a resumed run notices that "latest" is another by now.
    config.checkpoint = str(step)
  task = settings["pretext"]["name"]
  described = {
    "encoder": str(folder),
    "step": step,
    "network": config.network,
    "pretext": task,
    "seed": config.seed,
    "recipe": workdir.recipe(settings),
    "name": f"finetune:{task}",
  }
  return config, {k: tree["backbone"] for k, tree in state.items()}, described


def make_predict(config: ConfigDict, tags: int, mesh: Mesh) -> Callable:
  """Returns the function that tags whole tracks.

  A track's logits come from all its segments by `config.aggregation`: the
  head's of the mean embedding ("embeddings", as the paper probes), the mean
  logits, or the logits of the mean probabilities. Without hidden layers the
  head is linear, and the first two are the same.

  Args:
    config: of a fine-tuning, resolved.
    tags: T, outputs of the head.
    mesh: of devices.

  Returns:
    predict(networks, tracks, where): of {"params", "batch_stats"}, each
    {"backbone", "head"}, whole on every device, and of segments chosen by
    `features.choose_segments`, the float32 [M, T] logits of the M tracks that
    have segments, in the order of their index.
  """
  settings, how = config.to_dict(), config.aggregation
  settings["pretext"]["head"] = (*config.pretext.head, tags)

  def head(networks: Mapping, x: Any) -> Any:
    # Without hidden layers there are no statistics, which are not saved then.
    variables = {k: tree.get("head") or {} for k, tree in networks.items()}
    return encoder.head(settings).apply(variables, x, train=False)

  def segment(networks: Mapping, waveform: Any) -> Any:
    backbone = {kind: tree["backbone"] for kind, tree in networks.items()}
    embedding = encoder.embed(settings, backbone, waveform)
    return embedding if how == "embeddings" else head(networks, embedding)

  whole, divided = PartitionSpec(), PartitionSpec(parallel.AXIS)
  # The variables are an argument: as constants they would be compiled anew at
  # every call.
  of_segments = parallel.map_step(segment, mesh, (whole, divided), divided)
  of_means = parallel.map_step(head, mesh, (whole, whole), whole)

  def predict(networks: Mapping, tracks: Tracks, where: np.ndarray):
    used, owners = np.unique(where[:, 0], return_inverse=True)
    batches = pipeline.segment_batches(
      tracks, where, seconds=config.data.seconds, batch=config.embed_batch
    )
    total, done = 0.0, 0
    for part in pipeline.iterate(batches, workers=0):
      full = np.zeros((config.embed_batch, part.shape[1]), part.dtype)
      full[: len(part)] = part
      y = np.asarray(of_segments(networks, parallel.shard(full, mesh, 0)))
      y = y[: len(part)].astype(np.float64)
      if how == "probabilities":
        # Of both outcomes, since 1 - p would round to 0.
        y = np.concatenate([expit(y), expit(-y)], axis=1)
      if not done:
        total = np.zeros((len(used), y.shape[1]))
      np.add.at(total, owners[done : done + len(part)], y)
      done += len(part)
    mean = total / np.bincount(owners)[:, None]
    if how == "embeddings":
      # On whatever sharding the networks have: the means are whole everywhere.
      return np.asarray(of_means(networks, jnp.asarray(mean, jnp.float32)))
    if how == "probabilities":
      present, absent = np.split(mean, 2, axis=1)
      mean = np.log(present) - np.log(absent)
    return mean.astype(np.float32)

  return predict


def make_head(networks: Mapping, tags: list[str]) -> dict[str, Any]:
  """Returns a network's head for `tagger`, batch norm folded into its layers.

  Args:
    networks: as of `predict` of `make_predict`.
    tags: T, outputs of the head.

  Returns:
    the head without "aggregation" and "sounding".
  """
  params = networks["params"]["head"]
  stats = networks["batch_stats"].get("head") or {}
  layers = []
  for index in range(len(params) - len(stats)):
    kernel = np.asarray(params[f"dense_{index}"]["kernel"], np.float64)
    bias, norm = np.zeros(kernel.shape[1]), f"bn_{index}"
    if norm in stats:
      variance = np.asarray(stats[norm]["var"], np.float64)
      factor = params[norm]["scale"] / np.sqrt(variance + BatchNorm.epsilon)
      kernel = kernel * factor
      bias = params[norm]["bias"] - stats[norm]["mean"] * factor
    layer = {"kernel": kernel, "bias": np.asarray(bias)}
    layers.append({k: v[None].astype(np.float32) for k, v in layer.items()})
  features = len(layers[0]["kernel"][0])
  return {
    "tags": tags,
    "mean": np.zeros(features, np.float32),
    "inverse": np.ones(features, np.float32),
    "layers": layers,
  }


def check(config: ConfigDict, mesh: Mesh) -> None:
  """Finds mistakes in what the config has besides pre-training's.

  Args:
    config: of `configs/finetune.py`.
    mesh: of devices.

  Raises:
    InputError: the first one found.
  """
  check_numbers(config, ["embed_batch", "resamples"])
  parallel.check_divides(config.embed_batch, mesh.size)
  if config.pretext.name != "supervised":
    raise InputError(
      f"fine-tuning learns tags, not {config.pretext.name}: leave"
      " --config.pretext.name as it is, and name the encoder by"
      " --config.encoder"
    )
  if tuple(config.data.splits) != ("train",):
    raise InputError(
      f"fine-tuning learns from train, not {tuple(config.data.splits)}, and is"
      " scored on validation and test: leave --config.data.splits as it is"
    )
  probe.check_aggregation(config.aggregation, "aggregation")
  rate = config.optimizer.backbone_rate
  if not (math.isfinite(rate) and rate >= 0):
    raise InputError(
      f"--config.optimizer.backbone_rate={rate} is no factor of the learning"
      " rate: give 0 or more, such as 0.1"
    )


def _evaluate(
  predict: Callable, part: probe.Part, tags: list[str], networks: Mapping
) -> dict[str, float]:
  """Scores the network's own head on all validation tracks."""
  names = {"validation_map": "map_macro", "validation_roc_auc": "roc_auc_macro"}
  logits = predict(networks, part.tracks, part.where)
  if not np.isfinite(logits).all():  # which the log explains
    return dict.fromkeys(names, math.nan)
  found = metrics.scores(part.labels, logits, tags)
  return {name: found[metric] for name, metric in names.items()}


def _chosen(config: ConfigDict, folder: Path, best: int) -> dict[str, Any]:
  """Returns what a probe says of the parameters it has chosen."""
  found = {entry["step"]: entry for entry in workdir.read_metrics(folder)}
  return {
    "share": 1.0,
    "draw": 0,
    "seed": config.seed,
    "learning_rate": config.optimizer.learning_rate,
    "weight_decay": config.optimizer.weight_decay,
    "step": best,
    "validation_map": found.get(best, {}).get("validation_map"),
  }
