"""The probe: what a frozen encoder's embeddings tell about tags."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_music import (
  embeddings,
  features,
  parallel,
  results,
  scoring,
  study,
  subsets,
  tagger,
  workdir,
)
from ssl_music.config import check_numbers
from ssl_music.data import demo
from ssl_music.data.plans import MAX_SECONDS, fingerprint
from ssl_music.data.tracks import Tracks
from ssl_music.errors import InputError

SPLITS = ("train", "validation", "test")


def probe(config: ConfigDict, folder: str | Path) -> dict[str, Any]:
  """Probes the encoder that a config names, on its data set.

  Args:
    config: of `config.probing`.
    folder: the workdir, which gets the config, the embeddings (unless the
      config has a folder for them), `subsets.npz`, the head (see `tagger`) that
      all training tracks' labels gave, and what `scoring.save` leaves.

  Returns:
    what `scores.json` holds.

  Raises:
    InputError: what is wrong with the config, the encoder or the data set.
  """
  folder = Path(folder)
  mesh = parallel.make_mesh()
  check(config, mesh.size)
  demo.ensure(config.data.name, config.data.data_dir)
  parts = {
    split: Tracks(config.data.name, (split,), config.data.data_dir)
    for split in SPLITS
  }
  frozen = features.load_encoder(config, parts["train"])
  where = {
    split: features.choose_segments(
      part, frozen.seconds, config.probe.segments if split == "train" else None
    )
    for split, part in parts.items()
  }
  # A track shorter than a segment has none, and is not scored.
  used = {split: np.unique(chosen[:, 0]) for split, chosen in where.items()}
  missing = missing_tracks(parts, used)
  check_complete(config, parts["test"], missing["test"])
  labels = {split: part.labels[used[split]] for split, part in parts.items()}
  columns = choose_tags(config, parts["train"].tags, labels)
  labels = {split: found[:, columns] for split, found in labels.items()}
  tags = [parts["train"].tags[column] for column in columns]
  chosen = subsets.draw(
    labels["train"],
    config.probe.shares,
    config.probe.draws,
    seed=config.seed,
    stratified=config.probe.stratified,
  )
  # From here on something is written.
  with workdir.claim(folder, config.to_dict()):
    vectors = embeddings.cached(
      frozen,
      {split: (parts[split], where[split]) for split in SPLITS},
      folder=Path(config.cache_dir or folder / "embeddings"),
      batch=config.embed_batch,
      mesh=mesh,
    )
    data = {
      split: {
        "x": vectors[split],
        "owners": np.searchsorted(used[split], where[split][:, 0]),
        "labels": labels[split],
      }
      for split in SPLITS
    }
    masks = [one["mask"] for one in chosen]
    found = study.run(
      config.probe.to_dict(), data, chosen, seed=config.seed, mesh=mesh
    )
    whole = found["logits"][-1]  # shares rise to 1
    scores = frozen.described | {"name": _label(frozen.described)}
    scores |= what_is_scored(parts, used, missing, tags)
    scores |= {
      "segments": {"train": len(where["train"])},
      "seeds": config.probe.seeds,
      "aggregation": config.probe.aggregation,
      "hidden": list(config.probe.hidden),
    }
    resamples = config.probe.resamples
    summary, samples = scoring.summarise(
      labels["test"], whole, tags, resamples=resamples
    )
    scores |= summary
    *few, every = _by_share(chosen).items()
    scores["shares"] = [
      {"share": share, "tracks": int(masks[places[0]].sum())}
      | scoring.summarise_draws(
        labels["test"], found["logits"][places], tags, resamples=resamples
      )
      for share, places in few
    ]
    scores["shares"].append(
      {"share": every[0], "tracks": len(used["train"])}
      | scoring.of_one_draw(summary)
    )
    scores["chosen"] = [
      {"share": one["share"], "draw": one["draw"]} | picked
      for one, every in zip(chosen, found["chosen"], strict=True)
      for picked in every
    ]
    ids = {
      split: [parts[split].ids[t] for t in used[split]] for split in SPLITS
    }
    np.savez(
      folder / "subsets.npz",
      masks=masks,
      shares=[one["share"] for one in chosen],
      draws=[one["draw"] for one in chosen],
      ids=ids["train"],
    )
    predictions = {"logits": whole, "labels": labels["test"]}
    predictions |= {"ids": ids["test"], "tags": tags}
    head = found["head"] | {"tags": tags}
    tagger.save(folder, head | {"aggregation": config.probe.aggregation})
    scoring.save(folder, scores, samples, predictions)
  print(results.by_tag(scores))
  return scores


def missing_tracks(
  parts: Mapping[str, Tracks], used: Mapping[str, np.ndarray]
) -> dict[str, list[str]]:
  """Returns the ids of each split's tracks that are absent or too short.

  Args:
    parts: the tracks of each split.
    used: which of them are long enough.
  """
  return {
    split: sorted(set(part.ids) - {part.ids[t] for t in used[split]})
    + part.missing[split]
    for split, part in parts.items()
  }


def tag_fingerprint(parts: Mapping[str, Tracks], tags: Sequence[str]) -> str:
  """Returns the hash of splits and tag order, whether tracks are there or not.

  Args:
    parts: the tracks of each split.
    tags: that are scored.
  """
  return fingerprint(
    [(s, id_) for s in SPLITS for id_ in parts[s].ids + parts[s].missing[s]],
    tags,
  )


def benchmark_name(test: Tracks, tags: Sequence[str]) -> str:
  """Returns the benchmark's name, with what makes it another's."""
  name = test.card["benchmark"]
  if name and len(tags) < len(test.tags):
    name += f", {len(tags)} of {len(test.tags)} tags"
  kept = test.card["max_seconds"]
  if name and kept is not None and kept < MAX_SECONDS:
    name += f", first {kept:g} s of a track"
  return name


def check_complete(
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


def choose_tags(
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


def check(config: ConfigDict, devices: int) -> None:
  """Finds mistakes of the config that would be hard to read later.

  Args:
    config: of `config.probing`.
    devices: their number.

  Raises:
    InputError: the first one found.
  """
  given = config.probe
  sizes = ("segments", "batch", "steps", "evaluations", "seeds", "draws")
  positive = [f"probe.{name}" for name in (*sizes, "resamples")]
  check_numbers(config, ["embed_batch", "frontend.hop", *positive])
  parallel.check_divides(config.embed_batch, devices)
  if given.steps % given.evaluations:
    raise InputError(
      f"{given.steps} steps of a probe are no multiple of its"
      f" {given.evaluations} evaluations: change --config.probe.steps or"
      " --config.probe.evaluations"
    )
  check_aggregation(given.aggregation, "probe.aggregation")
  for name in ("learning_rates", "weight_decays"):
    sound = lambda one: isinstance(one, int | float) and 0 <= one < math.inf
    if not given[name] or not all(map(sound, given[name])):
      raise InputError(
        f"--config.probe.{name}={tuple(given[name])}: give one or more finite"
        " numbers that are not negative"
      )
  if not all(isinstance(size, int) and size > 0 for size in given.hidden):
    raise InputError(
      f"--config.probe.hidden={tuple(given.hidden)} are no sizes of layers:"
      " give whole numbers of 1 or more, or () for a linear probe"
    )
  subsets.check(given.shares)


def check_aggregation(how: str, option: str) -> None:
  """Checks what is averaged over a track's segments.

  Args:
    how: what the config says.
    option: where it says so, below "--config.".

  Raises:
    InputError: it is none of `tagger.AGGREGATIONS`.
  """
  if how not in tagger.AGGREGATIONS:
    raise InputError(
      f"no aggregation {how!r}: set --config.{option} to one of"
      f" {', '.join(tagger.AGGREGATIONS)}"
    )


def what_is_scored(
  parts: Mapping[str, Tracks],
  used: Mapping[str, np.ndarray],
  missing: Mapping[str, Sequence[str]],
  tags: Sequence[str],
) -> dict[str, Any]:
  """Returns what `scores.json` says of the data that the scores are of.

  Args:
    parts: the tracks of each split.
    used: which of them are long enough.
    missing: of `missing_tracks`.
    tags: that are scored.
  """
  test = parts["test"]
  return {
    "data": test.name,
    "benchmark": benchmark_name(test, tags),
    "as_published": test.card["as_published"],
    "fingerprint": tag_fingerprint(parts, tags),
    "tracks": {split: len(tracks) for split, tracks in used.items()},
    "missing": {split: len(ids) for split, ids in missing.items()},
  }


def _label(described: Mapping[str, Any]) -> str:
  """Returns what tables and figures call an encoder."""
  name = described.get("pretext", described["encoder"])
  # By "supervised" goes what is scored by its own head, of `finetune`.
  return "supervised (probed)" if name == "supervised" else name


def _by_share(chosen: Sequence[Mapping]) -> dict[float, list[int]]:
  """Returns the places of each share's draws."""
  places: dict[float, list[int]] = {}
  for place, one in enumerate(chosen):
    places.setdefault(one["share"], []).append(place)
  return places
