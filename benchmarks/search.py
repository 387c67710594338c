"""Scores settings of pre-training without looking at a test track.

Each setting pre-trains the laptop preset's network on the training tracks of
the data sets, pooled. Its score is the macro mAP
of a ridge regression on the mean embeddings of training and validation tracks,
each track predicted from the other folds of five, three times over, over the
tags with five tracks or more. (A few dozen validation tracks alone would tell
nothing apart.) Settings that are done are not run again.

  python -m benchmarks.search augmentation --data=a+b --out=runs/search
  python -m benchmarks.search tasks --data=a+b --out=runs/search
  python -m benchmarks.search floors --data=a+b --out=runs/search
"""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssl_music import config as defaults
from ssl_music import features, parallel, train, workdir
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

_DATA = flags.DEFINE_string("data", None, "Data sets, a+b.", required=True)
_OUT = flags.DEFINE_string("out", None, "Where runs are kept.", required=True)
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of each run.")
_SEED = flags.DEFINE_integer("seed", 0, "Of network and pre-training.")
_TAGS = flags.DEFINE_string("tags", "", "Prefixes of the tags to score, 'a,b'.")
_PART = flags.DEFINE_string("part", "0/1", "i/n runs each n-th setting.")

Setting = tuple[str, str, dict]  # task, label, what differs from its config

SEGMENTS = 8  # of a track
FLOORS = 5  # untrained networks
OFF = {"augment.gain": 0.0, "augment.equaliser": 0.0, "augment.noise": 0.0}
STRENGTHS = {
  "gain": (6.0, 12.0),
  "equaliser": (3.0, 8.0),
  "mix": (0.1, 0.3),
  "noise": (0.03, 0.3),
  "crop_time": (0.1, 0.3),
  "crop_frequency": (0.1, 0.3),
}
TOGETHER = {
  "gain 6, equaliser 3": {"gain": 6.0, "equaliser": 3.0},
  "gain 12, equaliser 6": {"gain": 12.0, "equaliser": 6.0},
  "all, mild": {
    "gain": 6.0,
    "equaliser": 3.0,
    "mix": 0.1,
    "crop_time": 0.1,
    "crop_frequency": 0.1,
    "time_masks": 1,
    "time_mask_width": 8,
    "frequency_masks": 1,
    "frequency_mask_width": 8,
  },
  "all, strong": {
    "gain": 12.0,
    "equaliser": 6.0,
    "mix": 0.3,
    "noise": 0.1,
    "crop_time": 0.3,
    "crop_frequency": 0.3,
    "time_masks": 2,
    "frequency_masks": 2,
  },
}
RATE = "optimizer.learning_rate"
# What a task's settings were before this search, and differ from in each row.
BEFORE = {
  "contrastive": {},
  "byol": {"pretext.momentum": 0.98},
  "clustering": {
    "pretext.targets": "centring",
    "pretext.cosine_prototypes": False,
    "pretext.momentum": 0.98,
  },
  "barlow_twins": {"pretext.off_diagonal": 1.0},
  "vicreg": {"pretext.covariance": 1.0},
}


def augmentation() -> Iterator[Setting]:
  """Contrastive, with one operation at a time, then with several."""
  yield "contrastive", "none", OFF
  for name, values in STRENGTHS.items():
    for value in values:
      yield "contrastive", f"{name} {value:g}", OFF | {f"augment.{name}": value}
  for axis in ("time", "frequency"):
    for count, width in ((1, 8), (2, 16)):
      masks = {
        f"augment.{axis}_masks": count,
        f"augment.{axis}_mask_width": width,
      }
      yield "contrastive", f"{axis} masks {count} x {width}", OFF | masks
  for label, values in TOGETHER.items():
    changes = {f"augment.{name}": value for name, value in values.items()}
    yield "contrastive", label, OFF | changes


def tasks() -> Iterator[Setting]:
  """Each task's learning rate, and what else it is sensitive to."""

  def setting(task: str, label: str, rate: float = 2e-3, **changes) -> Setting:
    changes = {f"pretext.{name}": value for name, value in changes.items()}
    label = f"{label} rate {rate:g}".strip()
    return task, label, BEFORE[task] | {RATE: rate} | changes

  for task in BEFORE:
    for rate in (5e-4, 2e-3, 5e-3):
      yield setting(task, "", rate)
  yield setting("contrastive", "temperature 0.1", temperature=0.1)
  yield setting("byol", "momentum 0.9", momentum=0.9)
  for rate in (2e-4, 5e-4, 2e-3):
    yield setting("byol", "momentum 0.996", rate, momentum=0.996)
  yield setting("barlow_twins", "off-diagonal 5", off_diagonal=5.0)
  yield setting("vicreg", "covariance 10", covariance=10.0)
  yield setting("clustering", "momentum 0.9", momentum=0.9)
  cosine = {"cosine_prototypes": True}
  yield setting("clustering", "cosine", **cosine)
  for label, more in (("", {}), (" cosine", cosine)):
    entropy = {"mean_entropy": 1.0} | more
    yield setting("clustering", f"entropy{label}", **entropy)
    for rate in (5e-4, 2e-3):
      sinkhorn = {"targets": "sinkhorn"} | more
      yield setting("clustering", f"Sinkhorn{label}", rate, **sinkhorn)


SEARCHES = {"augmentation": augmentation, "tasks": tasks}


def track_vectors(encoder: str, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean embeddings [tracks, D] and labels of train and validation."""
  config = defaults.probing()
  config.encoder, config.seed = encoder, _SEED.value
  tracks = Tracks(name, ("train", "validation"))
  frozen = features.load_encoder(config, Tracks(name, ("train",)))
  where = features.choose_segments(tracks, frozen.seconds, SEGMENTS)
  (vectors,) = features.embed_segments(
    frozen, [(tracks, where)], batch=64, mesh=parallel.make_mesh()
  )
  owners = where[:, 0]
  used = np.unique(owners)
  means = np.stack([vectors[owners == track].mean(axis=0) for track in used])
  columns = features.choose_tags(name, tracks.tags, _TAGS.value, option="tags")
  return means, tracks.labels[np.ix_(used, columns)]


def cross_validate(x: np.ndarray, y: np.ndarray) -> float:
  """Returns the macro mAP of ridge regression on held-out folds."""
  scores = []
  for repeat in range(3):
    predicted = np.zeros(y.shape)
    for fit, rest in KFold(5, shuffle=True, random_state=repeat).split(x):
      model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11)))
      predicted[rest] = model.fit(x[fit], y[fit]).predict(x[rest])
    scores += [
      average_precision_score(y[:, tag], predicted[:, tag])
      for tag in np.flatnonzero(y.sum(axis=0) >= 5)
    ]
  return float(np.mean(scores))


def score(encoder: str) -> list[float]:
  """Returns the score of an encoder on each data set."""
  names = _DATA.value.split("+")
  return [cross_validate(*track_vectors(encoder, name)) for name in names]


def run(search: str, setting: Setting) -> None:
  """Pre-trains with a setting, unless that is done, and shows its score."""
  task, label, changes = setting
  name = f"{task}_{label}".replace(" ", "_").replace(",", "")
  folder = Path(_OUT.value) / f"{search}_{_STEPS.value}_{_SEED.value}" / name
  config = importlib.import_module(f"configs.{task}").get_config()
  config.data.name, config.seed = _DATA.value, _SEED.value
  config.total_steps = config.save_every_steps = _STEPS.value
  config.warmup_steps = _STEPS.value // 10
  config.update_from_flattened_dict(changes)
  file = folder / "score.json"
  if not file.exists():
    try:
      train.train(config, folder)
    except InputError as error:  # diverged: the other settings go on
      print(f"| {task}: {label} | {error} |", flush=True)
      return
    file.write_text(json.dumps(score(str(folder))), encoding="utf-8")
  collapsed = workdir.read_metrics(folder)[-1]["collapsed"]
  show(
    f"{task}: {label}", json.loads(file.read_text(encoding="utf-8")), collapsed
  )


def show(label: str, scores: list[float], collapsed: float = 0.0) -> None:
  """Prints a row of the table."""
  cells = [f"{value:.3f}" for value in (np.mean(scores), *scores)]
  cells += ["collapsed"] if collapsed else []
  print(f"| {label} | {' | '.join(cells)} |", flush=True)


def main(argv: list[str]) -> None:
  """Prints the scores of a search."""
  logging.set_verbosity(logging.WARNING)
  print(f"| setting | mean | {_DATA.value.replace('+', ' | ')} |")
  if argv[1:] == ["floors"]:
    show("mel", score("mel"))
    for _ in range(FLOORS):
      show(f"random, seed {_SEED.value}", score("random"))
      flags.FLAGS.seed += 1
    return
  (search,) = argv[1:]
  part, parts = map(int, _PART.value.split("/"))
  for setting in list(SEARCHES[search]())[part::parts]:
    run(search, setting)


if __name__ == "__main__":
  app.run(main)
