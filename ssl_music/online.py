"""The online probe: how much frozen embeddings tell while pre-training goes on.

A fixed subset of a labelled data set is embedded by the network as it is, and
its validation tracks are tagged by ridge regression and by nearest neighbours.
Both are settled within a second, so that a run can be followed and its best
checkpoint chosen by what it is for; the scores to report are the probe's, on
test tracks, which are not looked at here.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from ssl_music import encoder, features, hosts, metrics, parallel
from ssl_music.config import check_numbers
from ssl_music.data import demo, pipeline
from ssl_music.data.segments import BLOCK
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

SPLITS = ("train", "validation")
NAMES = ("validation_map", "validation_roc_auc", "knn_map", "knn_roc_auc")
NEIGHBOURS = 10
# From hardly any penalty to one under which a weight is little more than the
# feature's covariance with the tag (X'X of N standardised vectors of D numbers
# has the trace N · D, some 10^5).
ALPHAS = np.logspace(0, 6, 13)


def prepare(
  config: ConfigDict, mesh: Mesh
) -> Callable[[Mapping[str, Any]], dict[str, float]]:
  """Does once what all evaluations of a run share.

  Args:
    config: of `config.pretraining`; "online" names the data set, prefixes of
      its tags, and how many tracks of either split and sounding segments of a
      track are taken at most. The subset depends on these and on "data.seconds"
      alone, so runs of other seeds, batches or tasks are scored on the same.
    mesh: of devices, whose number divides config.batch.

  Returns:
    a function of the backbone's {"params", "batch_stats"}, whole on every
    device of the mesh, that returns the four of `NAMES`: macro mAP and ROC-AUC
    on the validation tracks by ridge regression and by nearest neighbours; all
    NaN where an embedding is not finite. It blocks until they are there.

  Raises:
    InputError: no such data set, no tags, no track long enough in one of the
      splits, or no tag to score.
  """
  online = config.online
  check_numbers(config, ["online.tracks", "online.segments"])
  try:
    hosts.first_then_others(
      lambda: demo.ensure(online.data, config.data.data_dir)
    )
    tracks = Tracks(online.data, SPLITS, config.data.data_dir)
  except InputError as error:  # which knows of the other data set's option
    raise InputError(
      str(error).replace("--config.data.name", "--config.online.data")
    ) from error
  chosen = {
    split: _draw(tracks, split, config.data.seconds, online.tracks)
    for split in SPLITS
  }
  columns = _choose_tags(config, tracks, chosen)
  labels = {
    split: tracks.labels[np.ix_(rows, columns)]
    for split, rows in chosen.items()
  }
  where = features.choose_segments(
    tracks,
    config.data.seconds,
    online.segments,
    among=np.concatenate([chosen[split] for split in SPLITS]),
  )
  # Where each track's segments begin; every chosen track has one at least.
  begins = np.flatnonzero(np.diff(where[:, 0], prepend=-1))
  parts = _read(tracks, where, config.data.seconds, config.batch, mesh)
  settings = config.to_dict()
  whole, divided = PartitionSpec(), PartitionSpec(parallel.AXIS)
  # The variables are an argument: as constants they would be compiled anew at
  # every call.
  embed = parallel.map_step(
    functools.partial(encoder.embed, settings), mesh, (whole, divided), divided
  )

  def evaluate(variables: Mapping[str, Any]) -> dict[str, float]:
    # One after the other: the memory of several batches may not be there.
    vectors = np.concatenate(
      [
        parallel.fetch(embed(variables, parallel.shard(part, mesh, 0)))
        for part in parts
      ]
    )[: len(where)]
    means = track_means(vectors, begins)
    train, validation = np.split(means, [len(labels["train"])])
    return score(train, labels["train"], validation, labels["validation"])

  return evaluate


def track_means(vectors: np.ndarray, begins: np.ndarray) -> np.ndarray:
  """Averages each track's segments.

  Args:
    vectors: [segments, D], a track's one after the other.
    begins: [tracks] the first segment of each track, increasing.

  Returns:
    float64 [tracks, D].
  """
  counts = np.diff(begins, append=len(vectors))
  total = np.add.reduceat(vectors.astype(np.float64), begins, axis=0)
  return total / counts[:, None]


def score(
  train: np.ndarray,
  train_labels: np.ndarray,
  validation: np.ndarray,
  validation_labels: np.ndarray,
) -> dict[str, float]:
  """Tags validation tracks from training tracks in two ways, and scores both.

  Args:
    train: embeddings of N tracks, [N, D].
    train_labels: bool [N, T].
    validation: embeddings of M tracks, [M, D].
    validation_labels: bool [M, T], of which one tag at least has a positive
      and a negative; the others are left out of the averages.

  Returns:
    the four of `NAMES`, in [0, 1]; NaN where an embedding is not finite.
  """
  if not (np.isfinite(train).all() and np.isfinite(validation).all()):
    return dict.fromkeys(NAMES, math.nan)
  mean, deviation = train.mean(axis=0), train.std(axis=0)
  alive = deviation > 1e-6  # a dead feature is 0, for validation tracks as well
  scale = lambda x: np.where(alive, x - mean, 0) / np.where(alive, deviation, 1)
  train, validation = scale(train), scale(validation)
  values = []
  for predict in (ridge, neighbours):
    predicted = predict(train, train_labels, validation)
    found = metrics.scores(
      validation_labels, predicted, range(predicted.shape[1])
    )
    values += [found["map_macro"], found["roc_auc_macro"]]
  return dict(zip(NAMES, values, strict=True))


def ridge(x: np.ndarray, labels: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Predicts labels linearly; leaving one track out chooses the penalty.

  Args:
    x: standardised [N, D].
    labels: bool [N, T].
    other: what to predict for, [M, D].

  Returns:
    float64 [M, T].
  """
  # Not at the top: a training without a probe starts a second earlier.
  from sklearn.linear_model import RidgeCV

  fitted = RidgeCV(alphas=ALPHAS).fit(x, labels.astype(np.float64))
  return fitted.predict(other).reshape(len(other), -1)  # of one tag, it is [M]


def neighbours(
  x: np.ndarray, labels: np.ndarray, other: np.ndarray
) -> np.ndarray:
  """Returns each tag's share among the nearest tracks, weighted by nearness.

  The `NEIGHBOURS` tracks of the highest cosine similarity count, each by it;
  one of the opposite direction does not count at all.

  Args:
    x: standardised [N, D].
    labels: bool [N, T].
    other: what to predict for, [M, D].

  Returns:
    float64 [M, T] in [0, 1]; 0 where no neighbour is similar.
  """
  from sklearn.neighbors import NearestNeighbors  # as in `ridge`

  search = NearestNeighbors(
    n_neighbors=min(NEIGHBOURS, len(x)), algorithm="brute", metric="cosine"
  )
  distance, nearest = search.fit(x).kneighbors(other)
  weight = np.maximum(1 - distance, 0)  # [M, k]
  total = weight.sum(axis=1, keepdims=True)
  weight /= np.where(total > 0, total, 1)
  return np.einsum("mk,mkt->mt", weight, labels[nearest].astype(np.float64))


def _draw(tracks: Tracks, split: str, seconds: float, most: int) -> np.ndarray:
  """Draws tracks of a split that are long enough, the same for every run."""
  long_enough = tracks.samples // BLOCK >= pipeline.blocks(seconds)
  rows = np.flatnonzero((np.array(tracks.splits) == split) & long_enough)
  if not rows.size:
    raise InputError(
      f"the online probe needs tracks of {seconds:g} s or more in train and"
      f" validation of {tracks.name}, and there is none in {split}: prepare it"
      " with both splits, or choose another with --config.online.data"
    )
  return np.sort(np.random.default_rng(0).permutation(rows)[:most])


def _choose_tags(
  config: ConfigDict, tracks: Tracks, chosen: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Returns the columns of tags that can be learnt and scored."""
  columns = features.choose_tags(
    tracks.name, tracks.tags, config.online.tags, option="online.tags"
  )
  contrast = np.ones(len(columns), bool)
  for rows in chosen.values():
    share = tracks.labels[np.ix_(rows, columns)].mean(axis=0)
    contrast &= (share > 0) & (share < 1)
  if not contrast.any():
    raise InputError(
      "no tag has both a track with it and one without it among the"
      f" {' and the '.join(f'{len(chosen[s])} of {s}' for s in SPLITS)} of"
      f" {tracks.name} that the online probe takes: raise"
      " --config.online.tracks, or prepare a larger data set"
    )
  return np.array(columns)[contrast]


def _read(
  tracks: Tracks, where: np.ndarray, seconds: float, most: int, mesh: Mesh
) -> list[np.ndarray]:
  """Reads the segments in batches of one size, at most `most`.

  They stay in the host's memory: the default's 1024 segments of 4 s take 131
  MB, while reading them again would take about as long as embedding them and
  compete with the readers of the training batches.

  Returns:
    int16 arrays [batch, samples], of several processes this one's rows of
    them; the last segment fills the last batch up.
  """
  count = math.ceil(len(where) / most)
  # The smallest size of so many batches, not to embed more than need be.
  batch = math.ceil(len(where) / count / mesh.size) * mesh.size
  full = np.pad(where, [(0, count * batch - len(where)), (0, 0)], mode="edge")
  mine = full.reshape(count, batch, 2)[:, parallel.rows(batch)]
  size = mine.shape[1]
  segments = pipeline.segment_batches(
    tracks, mine.reshape(-1, 2), seconds=seconds, batch=size
  )
  return list(pipeline.iterate(segments, workers=0))
