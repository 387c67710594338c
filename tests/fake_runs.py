"""Workdirs as probes and pre-trainings leave them, of made-up scores."""

import json

import numpy as np

from ssl_music.results import METRICS

QUALITY = {
  "mel": 0.22,
  "random": 0.24,
  "byol": 0.3,
  "vicreg": 0.31,
  "barlow_twins": 0.33,
  "clustering": 0.35,
  "contrastive": 0.38,
}
SHARES = (0.01, 0.05, 0.1, 0.2, 1.0)


def probe(
  folder,
  name,
  *,
  data="own",
  seed=0,
  resamples=120,
  tags=("calm", "dance", "rock"),
  shares=SHARES,
  **more,
):
  """Leaves a probe's scores.json and resamples.npz; returns the scores."""
  rng = np.random.default_rng([len(name), seed, len(data), ord(data[0])])
  quality = QUALITY.get(name, 0.3) + 0.02 * rng.normal()
  offset = {"map_macro": 0, "map_micro": 0.02}  # ROC-AUC lies higher
  # The draws of test tracks are the same for all, what they do is mostly so.
  common = 0.015 * np.random.default_rng(0).normal(size=(4, resamples))
  scores, intervals, drawn = [], [], {}
  for share in shares:
    level = quality * (1 + 0.12 * np.log10(share))
    value = {m: level + offset.get(m, 0.4) for m in METRICS}
    scores.append(value)
    intervals.append({m: [value[m] - 0.03, value[m] + 0.035] for m in METRICS})
  for index, metric in enumerate(METRICS):
    noise = 0.004 * rng.normal(size=resamples)
    drawn[metric] = scores[-1][metric] + common[index] + noise
  draws = lambda value, share: [
    value + 0.01 * rng.normal() * (share < 1)
    for _ in range(4 if share < 1 else 1)
  ]
  found = {
    "encoder": name if name in ("mel", "random") else f"/runs/{name}",
    "step": 400,
    "network": "student",
    "seed": seed,
    "name": name,
    "data": data,
    "benchmark": "",
    "as_published": None,
    "fingerprint": f"{len(data):012x}",
    "tracks": {"train": 400, "validation": 60, "test": 80},
    "missing": {"train": 0, "validation": 0, "test": 0},
    "segments": {"train": 4000},
    "seeds": 3,
    "aggregation": "embeddings",
    "sounding": False,
    "hidden": [],
    "test": scores[-1],
    "interval": intervals[-1],
    "by_seed": {m: [scores[-1][m]] * 3 for m in METRICS},
    "per_tag": {
      tag: {
        "ap": float(np.clip(quality + rng.normal() / 10, 0, 1)),
        "roc_auc": 0.7,
        "positives": 60 // (index + 1),
      }
      for index, tag in enumerate(tags)
    },
    "left_out": [],
    "shares": [
      {
        "share": share,
        "tracks": max(int(400 * share), 1),
        "test": value,
        "interval": interval,
        "by_draw": {m: draws(value[m], share) for m in METRICS},
      }
      for share, value, interval in zip(shares, scores, intervals, strict=True)
    ],
    "chosen": [],
  } | more
  folder.mkdir(parents=True)
  (folder / "scores.json").write_text(json.dumps(found))
  np.savez(folder / "resamples.npz", **drawn)
  config = {"job": "probe", "encoder": found["encoder"], "seed": seed}
  (folder / "config.json").write_text(json.dumps(config))
  return found


def pretraining(folder, task, *, seed=0, steps=400):
  """Leaves a pre-training's config.json and metrics.jsonl."""
  rng = np.random.default_rng([len(task), seed])
  folder.mkdir(parents=True)
  config = {
    "job": "pretrain",
    "seed": seed,
    "pretext": {"name": task, "head": [512, 512, 256]},
    "optimizer": {"learning_rate": 5e-4 if task == "byol" else 2e-3},
  }
  if task == "contrastive":
    config["pretext"]["temperature"] = 0.1
  (folder / "config.json").write_text(json.dumps(config))
  lines = []
  for step in range(10, steps + 1, 10):
    done = step / steps
    noise = lambda: 1 + 0.04 * rng.normal()
    entry = {
      "step": step,
      "loss": len(task) * (0.4 + np.exp(-4 * done)) * noise(),
      "learning_rate": 1e-3 * (1 + np.cos(np.pi * done)),
      "collapsed": 0.0,
      "segments_per_second": 150.0,
    }
    for space in ("embedding", "projection"):
      entry[f"{space}_std"] = (0.5 + 0.3 * done) * noise()
      entry[f"{space}_rank"] = (5 + 20 * done) * noise()
      entry[f"{space}_cosine"] = (0.6 - 0.4 * done) * noise()
    if task == "clustering":
      entry["teacher_entropy"] = 0.2 * noise()
      entry["teacher_mean_entropy"] = 0.7 * noise()
      entry["teacher_kl"] = 0.5 * noise()
    if step % 100 == 0:
      entry["validation_map"] = (0.25 + 0.1 * done) * noise()
    lines.append(json.dumps(entry) + "\n")
  (folder / "metrics.jsonl").write_text("".join(lines))


def study(top, encoders=tuple(QUALITY), datasets=("own",), seeds=(0,), **more):
  """Leaves a benchmark's workdir."""
  for name in encoders:
    for seed in seeds:
      suffix = f"-seed{seed}" if len(seeds) > 1 else ""
      if name not in ("mel", "random"):
        pretraining(top / "pretrain" / f"{name}{suffix}", name, seed=seed)
      for data in datasets:
        folder = top / "probe" / data / f"{name}{suffix}"
        probe(folder, name, data=data, seed=seed, **more)
