"""Times a study's probes: at once, one by one, and by scikit-learn.

Four parts:

- study: shares of the labels x draws x learning rates x weight decays x seeds
  on one data set by `study.run`; the same probes one after the other, each in a
  plain loop of minibatches, validated with scikit-learn's average precision, by
  a jitted step and, with `--torch`, by PyTorch; and scikit-learn's logistic
  regression, its penalty picked on the validation tracks. Macro mAP on the test
  tracks stands beside each time.
- floor: what the machine's products and memory allow.
- count: what 10, 100 and 1,000 probes cost at once.
- large: memory and time at the size of MTG-Jamendo's top50 (55,000 tracks),
  with made-up embeddings.

  python -m benchmarks.probes --name=demo --encoder=random --every=10

One by one takes minutes to hours, so `--every` runs but every tenth of those
probes and the table says so. What was measured is in `benchmarks/README.md`.
"""

import argparse
import itertools
import math
import resource
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
from absl import flags
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier

from ssl_music import config as defaults
from ssl_music import embeddings, features, parallel, study, subsets
from ssl_music import study_inputs as inputs
from ssl_music.data import demo
from ssl_music.data.tracks import Tracks

SHARES, DRAWS = (0.01, 0.05, 0.1, 0.2, 1.0), 4
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn
SPLITS = ("train", "validation", "test")
LARGE = {"train": 32_136, "validation": 10_888, "test": 11_356}  # tracks
SEGMENTS = {"train": 25, "validation": 55, "test": 55}  # of 4 minutes


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--name", default="demo", help="a prepared data set")
  parser.add_argument("--data_dir", help="TFDS's folder")
  parser.add_argument("--encoder", default="random")
  parser.add_argument("--every", type=int, default=1)
  parser.add_argument("--parts", default="floor,study,count,large")
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--torch", help="a Python with torch, to compare with")
  parser.add_argument("--scratch", help="for temporary files, up to 5 GB")
  options = parser.parse_args()
  flags.FLAGS(["probes"])
  warnings.simplefilter("ignore", ConvergenceWarning)
  config = defaults.probing()
  config.data.name, config.data.data_dir = options.name, options.data_dir
  config.encoder, config.probe.steps = options.encoder, options.steps
  parts = options.parts.split(",")
  with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
    if {"floor", "study", "count"} & {*parts}:
      data = load(config, Path(scratch))
      shapes = ", ".join(f"{s} {data[s]['x'].shape}" for s in SPLITS)
      print(f"{options.name}, {options.encoder}: {shapes}, {jax.devices()}")
    if "floor" in parts:
      floor(config.probe.to_dict(), data)
    if "study" in parts:
      compare(config.probe.to_dict(), data, options.every, options.torch)
    if "count" in parts:
      count(config.probe.to_dict(), data)
    if "large" in parts:
      large(config.probe.to_dict(), Path(scratch))


def load(config, scratch: Path) -> dict:
  """Returns the data of `study.run`."""
  demo.ensure(config.data.name, config.data.data_dir)
  parts, chosen = {}, {}
  for split in SPLITS:
    parts[split] = Tracks(config.data.name, (split,), config.data.data_dir)
  frozen = features.load_encoder(config, parts["train"])
  for split, tracks in parts.items():
    train = split == "train"
    most = config.probe.segments if train else None
    where = features.choose_segments(
      tracks, frozen.seconds, most, sounding=train
    )
    chosen[split] = tracks, where
  vectors = embeddings.cached(
    frozen,
    chosen,
    folder=scratch,
    batch=config.embed_batch,
    mesh=parallel.make_mesh(),
  )
  return {
    split: {
      "x": vectors[split],
      "owners": where[:, 0],
      "labels": tracks.labels,
    }
    for split, (tracks, where) in chosen.items()
  }


def compare(config: dict, data: dict, every: int, torch: str) -> None:
  """Prints time and score of each way."""
  drawn = subsets.draw(data["train"]["labels"], SHARES, DRAWS, seed=0)
  members = len(config["learning_rates"]) * len(config["weight_decays"])
  total = len(drawn) * config["seeds"] * members
  mesh, rows = parallel.make_mesh(), []
  for name in ("at once, compilation included", "at once, compiled before"):
    began = time.perf_counter()
    found = study.run(config, data, drawn, seed=0, mesh=mesh)
    taken = time.perf_counter() - began
    by_share = {}
    for one, logits in zip(drawn, found["logits"], strict=True):
      quality = [_map(data["test"]["labels"], seed) for seed in logits]
      by_share.setdefault(one["share"], []).extend(quality)
    rows.append((name, total, taken, taken, by_share))
    jax.block_until_ready(mesh.devices)
  jobs, names, whole = _alone(config, data, drawn, every)
  loops = {"one by one, jitted step": lambda: _one_by_one(config, jobs)}
  if torch:
    loops["one by one, PyTorch"] = lambda: _by_torch(torch, jobs)
  for name, loop in loops.items():
    rows.append(_row(name, loop(), names, whole, data, drawn))
  rows.append(_by_sklearn(data, drawn))
  shares = sorted({one["share"] for one in drawn})
  print(
    f"\n{total} probes ({len(drawn)} subsets x {config['seeds']} seeds x"
    f" {members} settings), {config['steps']} steps\n\n"
    "| | probes run | seconds | all of them | times at once | "
    + " | ".join(f"mAP at {share:.0%}" for share in shares)
    + " |\n"
    + "| --- " * (5 + len(shares))
    + "|"
  )
  for name, run, taken, whole, by_share in rows:
    # With a large `--every`, no probe of a share may have been run.
    scores = " | ".join(
      f"{np.mean(by_share[share]):.3f}" if share in by_share else "–"
      for share in shares
    )
    print(
      f"| {name} | {run} | {taken:.1f} | {whole:.1f} |"
      f" {whole / rows[0][3]:.1f} | {scores} |"
    )


def _one_by_one(config: dict, jobs: dict) -> tuple:
  """Trains probes in plain loops; returns scores, test logits and seconds."""
  x, y = jobs["x"], jobs["y"]
  apply = jax.jit(lambda params, x: x @ params["kernel"] + params["bias"])

  def optimizer(rate, decay):
    schedule = optax.cosine_decay_schedule(1.0, config["steps"])
    return optax.adamw(lambda count: rate * schedule(count), weight_decay=decay)

  @jax.jit  # once for all of them, as rates are arguments
  def step(params, state, x, y, rate, decay):
    loss = lambda p: optax.sigmoid_binary_cross_entropy(apply(p, x), y).mean()
    updates, state = optimizer(rate, decay).update(
      jax.grad(loss)(params), state, params
    )
    return optax.apply_updates(params, updates), state

  def train(rows, rate, decay):
    (params,) = study.initial(0, (x.shape[1], y.shape[1]))
    state, best = optimizer(rate, decay).init(params), (-1.0, None)
    for index, chosen in enumerate(rows, 1):
      params, state = step(params, state, x[chosen], y[chosen], rate, decay)
      if index % jobs["length"] == 0:
        logits = np.asarray(apply(params, jobs["validation"]))
        quality = _map(jobs["labels"], logits)
        best = max(best, (quality, params), key=lambda pair: pair[0])
    return best[0], np.asarray(apply(best[1], jobs["test"]))

  train(jobs["rows_0"][: jobs["length"]], *jobs["settings"][0])  # compiles
  began = time.perf_counter()
  found = [
    train(jobs[f"rows_{index}"], *setting)
    for index, setting in enumerate(jobs["settings"])
  ]
  scores, logits = zip(*found, strict=True)
  return scores, logits, time.perf_counter() - began


def _by_torch(python: str, jobs: dict) -> tuple:
  """Has another Python train the same in PyTorch; returns the same."""
  with tempfile.TemporaryDirectory() as folder:
    given, made = (f"{folder}/{name}.npz" for name in ("jobs", "found"))
    np.savez(given, **jobs)
    script = Path(__file__).with_name("probes_torch.py")
    subprocess.run([python, script, given, made], check=True)
    with np.load(made) as found:
      return found["scores"], found["logits"], float(found["seconds"])


def _alone(config: dict, data: dict, drawn: list, every: int) -> tuple:
  """Returns what loops are given, and the subset and seed of each probe.

  Of every so-manieth group: whole groups, since the best of one is scored.
  """
  mean, deviation = inputs.moments(data["train"]["x"])
  scale = lambda x: ((x - mean) / np.maximum(deviation, 1e-6)).astype(
    np.float32
  )
  owners = data["train"]["owners"]
  jobs = {
    "x": scale(data["train"]["x"].astype(np.float32)),
    "y": data["train"]["labels"][owners].astype(np.float32),
    "labels": data["validation"]["labels"],
    "length": config["steps"] // config["evaluations"],
  }
  for split in ("validation", "test"):
    jobs[split] = scale(inputs.track_means(data[split])["x"][0])
  groups = [
    one
    | {"rows": np.flatnonzero(one["mask"][owners])}
    | {"seed": seed, "subset": index}
    for index, one in enumerate(drawn)
    for seed in range(config["seeds"])
  ]
  settings = [
    *itertools.product(config["learning_rates"], config["weight_decays"])
  ]
  names, chosen = [], groups[every // 2 :: every]
  for (group,) in inputs.blocks(chosen, config["batch"], 1):
    rows = inputs.minibatches(group, config["steps"])
    for _ in settings:
      jobs[f"rows_{len(names)}"] = rows
      names.append((group["subset"], group["seed"]))
  jobs["settings"] = np.tile(settings, (len(chosen), 1))
  return jobs, names, len(groups) * len(settings)


def _row(name: str, found: tuple, names: list, whole: int, data, drawn):
  """Returns a line of the table: the best of each group is what is scored."""
  of_group: dict = {}
  for key, score, logits in zip(names, *found[:2], strict=True):
    of_group.setdefault(key, []).append((score, logits))
  by_share: dict = {}
  for (subset, _), every in of_group.items():
    logits = max(every, key=lambda pair: pair[0])[1]
    quality = _map(data["test"]["labels"], logits)
    by_share.setdefault(drawn[subset]["share"], []).append(quality)
  return name, len(names), found[2], found[2] * whole / len(names), by_share


def _by_sklearn(data: dict, drawn: list) -> tuple:
  """Fits logistic regression to each subset, its penalty by validation."""
  mean, deviation = inputs.moments(data["train"]["x"])
  scale = lambda x: (x - mean) / np.maximum(deviation, 1e-6)
  x, owners = (
    scale(data["train"]["x"].astype(np.float64)),
    data["train"]["owners"],
  )
  held = {
    split: scale(inputs.track_means(data[split])["x"][0])
    for split in ("validation", "test")
  }
  by_share, began = {}, time.perf_counter()
  for one in drawn:
    rows = one["mask"][owners]
    y = data["train"]["labels"][owners][rows]
    both = y.any(axis=0) & ~y.all(axis=0)  # others it refuses
    best = -1.0, 0.0
    for penalty in PENALTIES:
      logits = {s: np.zeros((len(v), y.shape[1])) for s, v in held.items()}
      if both.any():
        fitted = OneVsRestClassifier(LogisticRegression(C=penalty)).fit(
          x[rows], y[:, both].astype(int)
        )
        for split, vectors in held.items():
          found = fitted.decision_function(vectors)
          logits[split][:, both] = found.reshape(len(vectors), -1)
      quality = _map(data["validation"]["labels"], logits["validation"])
      test = _map(data["test"]["labels"], logits["test"])
      best = max(best, (quality, test))
    by_share.setdefault(one["share"], []).append(best[1])
  took = time.perf_counter() - began
  name = f"scikit-learn's LogisticRegression, {len(PENALTIES)} penalties"
  return name, len(drawn) * len(PENALTIES), took, took, by_share


def _map(labels: np.ndarray, scores: np.ndarray) -> float:
  both = labels.any(axis=0) & ~labels.all(axis=0)
  return average_precision_score(labels[:, both], scores[:, both])


def floor(config: dict, data: dict) -> None:
  """Prints operations and bytes of the study, and NumPy's speed at them."""
  drawn = subsets.draw(data["train"]["labels"], SHARES, DRAWS, seed=0)
  owners = data["train"]["owners"]
  groups = [
    {"rows": np.flatnonzero(one["mask"][owners])} for one in drawn
  ] * config["seeds"]
  rows = sum(b[0]["batch"] for b in inputs.blocks(groups, config["batch"], 1))
  outputs = data["train"]["labels"].shape[1]
  outputs *= len(config["learning_rates"]) * len(config["weight_decays"])
  size = data["train"]["x"].shape[1]
  # Forward, and backward to the kernel; the input needs no gradient.
  products = 4 * rows * size * outputs * config["steps"]
  # AdamW reads four arrays and writes three.
  moved = 7 * 4 * size * outputs * len(groups) * config["steps"]
  speeds = {}
  for n in (2048, outputs):
    a, b = np.ones((256, size), "f4"), np.ones((size, n), "f4")
    speeds[n] = 2 * 256 * size * n / _seconds(lambda a=a, b=b: a @ b)
  x, source = np.zeros(2**24, "f4"), np.ones(2**24, "f4")
  copied = 2 * x.nbytes / _seconds(lambda: np.copyto(x, source))
  print(
    f"\nfloor: {products / 1e12:.2f} Tflop of products at"
    f" {speeds[outputs] / 1e9:.0f} GFLOP/s (NumPy, [256, {size}] x"
    f" [{size}, {outputs}]; {speeds[2048] / 1e9:.0f} with 2048 columns):"
    f" {products / speeds[outputs]:.1f} s; AdamW {moved / 1e9:.0f} GB at"
    f" {copied / 1e9:.0f} GB/s: {moved / copied:.1f} s"
  )


def _seconds(call) -> float:
  """Returns the shortest time of some calls."""
  best = math.inf
  for _ in range(50):
    began = time.perf_counter()
    call()
    best = min(best, time.perf_counter() - began)
  return best


def count(config: dict, data: dict) -> None:
  """Prints what so many probes of all labels cost at once."""
  mesh = parallel.make_mesh()
  whole = subsets.draw(data["train"]["labels"], (1.0,), 1, seed=0)
  print("\n| probes at once | seconds | ms a probe |\n| --- | --- | --- |")
  for probes in (1, 10, 100, 1000):
    settings = {
      "learning_rates": tuple(np.geomspace(1e-3, 1e-2, min(probes, 10))),
      "weight_decays": (0.01,),
      "seeds": max(probes // 10, 1),
    }
    taken = []
    for _ in range(2):  # the first compiles
      began = time.perf_counter()
      study.run(config | settings, data, whole, seed=0, mesh=mesh)
      taken.append(time.perf_counter() - began)
    print(f"| {probes} | {taken[1]:.1f} | {1e3 * taken[1] / probes:.0f} |")


def large(config: dict, scratch: Path) -> None:
  """Prints memory and time at the size of the largest benchmark."""
  rng, data = np.random.default_rng(0), {}
  for split, tracks in LARGE.items():
    owners = np.repeat(np.arange(tracks), SEGMENTS[split])
    x = np.lib.format.open_memmap(
      scratch / f"{split}.npy", "w+", np.float16, (len(owners), 1024)
    )
    for start in range(0, len(x), 2**14):
      part = x[start : start + 2**14]
      part[:] = rng.standard_normal(part.shape, np.float32)
    x.flush()
    labels = rng.random((tracks, 50)) < 0.05
    x = np.load(scratch / f"{split}.npy", mmap_mode="r")
    data[split] = {"x": x, "owners": owners, "labels": labels}
  drawn = subsets.draw(data["train"]["labels"], SHARES, DRAWS, seed=0)
  few = config | {"steps": 40, "evaluations": 2}
  began = time.perf_counter()
  found = study.run(few, data, drawn, seed=0, mesh=parallel.make_mesh())
  taken = time.perf_counter() - began
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  members = len(config["learning_rates"]) * len(config["weight_decays"])
  print(
    f"\nlarge: {sum(LARGE.values()):,} tracks, {len(data['train']['x']):,}"
    f" training segments of 1024, {found['logits'].shape[0]} subsets x"
    f" {config['seeds']} seeds x {members} settings: {few['steps']} steps and"
    f" {few['evaluations']} evaluations in {taken:.0f} s, peak {peak:.1f} GiB"
    " (with what of the arrays is in the page cache)"
  )


if __name__ == "__main__":
  main()
