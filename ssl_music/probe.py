"""The probe: what a frozen encoder's embeddings tell about tags."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssl_music import (
  arrays,
  disk,
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


class Part(NamedTuple):
  """The tracks of a split that a probe uses.

  Attributes:
    tracks: of the split.
    where: int64 [segments, 2], track and start of every segment.
    used: [M] the tracks that have segments, rising.
    labels: bool [M, T], of the chosen tags.
  """

  tracks: Tracks
  where: np.ndarray
  used: np.ndarray
  labels: np.ndarray

  def ids(self) -> list[str]:
    """Returns the names of the M tracks."""
    return [self.tracks.ids[track] for track in self.used]


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
  folder, mesh, given = Path(folder), parallel.make_mesh(), config.probe
  check(config, mesh.size)
  splits = open_splits(config)
  frozen = features.load_encoder(config, splits["train"])
  parts, tags, missing = choose(
    config, splits, frozen.seconds, given.segments, sounding=given.sounding
  )
  drawn = subsets.draw(
    parts["train"].labels,
    given.shares,
    given.draws,
    seed=config.seed,
    stratified=given.stratified,
  )
  # From here on something is written.
  with workdir.claim(folder, config.to_dict()):
    vectors = embeddings.cached(
      frozen,
      {split: (part.tracks, part.where) for split, part in parts.items()},
      folder=Path(config.cache_dir or folder / "embeddings"),
      batch=config.embed_batch,
      mesh=mesh,
    )
    data = {
      split: {
        "x": vectors[split],
        "owners": np.searchsorted(part.used, part.where[:, 0]),
        "labels": part.labels,
      }
      for split, part in parts.items()
    }
    found = study.run(given.to_dict(), data, drawn, seed=config.seed, mesh=mesh)
    about = what_is_scored(parts, tags, missing) | {
      "segments": {"train": len(parts["train"].where)},
      "seeds": given.seeds,
      "aggregation": given.aggregation,
      "sounding": given.sounding,
      "hidden": list(given.hidden),
    }
    scores, samples = _score(
      parts["test"].labels, tags, drawn, found, given.resamples
    )
    scores = (
      frozen.described | {"name": _label(frozen.described)} | about | scores
    )
    _save(folder, parts, tags, drawn, found, scores, samples)
  print(results.by_tag(scores))
  return scores


def open_splits(config: ConfigDict) -> dict[str, Tracks]:
  """Opens the splits of a config's data set; makes the built-in one first."""
  name, data_dir = config.data.name, config.data.data_dir
  demo.ensure(name, data_dir)
  return {split: Tracks(name, (split,), data_dir) for split in SPLITS}


def choose(
  config: ConfigDict,
  splits: Mapping[str, Tracks],
  seconds: float,
  most: int,
  *,
  sounding: bool,
) -> tuple[dict[str, Part], list[str], dict[str, list[str]]]:
  """Chooses segments, tracks and tags.

  Args:
    config: with "data" and "allow_missing".
    splits: of `open_splits`.
    seconds: length of a segment.
    most: sounding segments of a training track, at most.
    sounding: take only the sounding segments of validation and test tracks,
      not all of them.

  Returns:
    what is used of each split, the tags, and the ids of each split's tracks
    that are absent or shorter than a segment.

  Raises:
    InputError: test tracks of a benchmark are missing, or there is nothing to
      score.
  """
  where = {
    split: features.choose_segments(tracks, seconds, most)
    if split == "train"
    else features.choose_segments(tracks, seconds, None, sounding=sounding)
    for split, tracks in splits.items()
  }
  used = {split: np.unique(chosen[:, 0]) for split, chosen in where.items()}
  missing = {
    split: sorted(set(tracks.ids) - {tracks.ids[t] for t in used[split]})
    + tracks.missing[split]
    for split, tracks in splits.items()
  }
  _check_complete(config, splits["test"], missing["test"])
  labels = {s: tracks.labels[used[s]] for s, tracks in splits.items()}
  columns = _choose_tags(config, splits["train"].tags, labels)
  parts = {
    split: Part(tracks, where[split], used[split], labels[split][:, columns])
    for split, tracks in splits.items()
  }
  return parts, [splits["train"].tags[column] for column in columns], missing


def _score(
  labels: np.ndarray,
  tags: Sequence[str],
  drawn: Sequence[Mapping[str, Any]],
  found: Mapping[str, Any],
  resamples: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Scores a study's test logits.

  Args:
    labels: of the test tracks, bool [M, T].
    tags: T names.
    drawn: of `subsets.draw`.
    found: of `study.run`.
    resamples: bootstrap resamples of the test tracks.

  Returns:
    what `scoring.summarise` does of all training tracks, with "shares", the
    scores of each share, and "chosen", the probe of each draw and seed; and the
    score of every resample.
  """
  # Shares rise to 1, of which there is one draw.
  scores, samples = scoring.summarise(
    labels, found["logits"][-1], tags, resamples=resamples
  )
  places: dict[float, list[int]] = {}
  for place, one in enumerate(drawn):
    places.setdefault(one["share"], []).append(place)
  shares = [
    {"share": share, "tracks": int(drawn[of_share[0]]["mask"].sum())}
    | (
      scoring.of_one_draw(scores)
      if share == 1
      else scoring.summarise_draws(
        labels, found["logits"][of_share], tags, resamples=resamples
      )
    )
    for share, of_share in places.items()
  ]
  chosen = [
    {"share": one["share"], "draw": one["draw"]} | picked
    for one, every in zip(drawn, found["chosen"], strict=True)
    for picked in every
  ]
  return scores | {"shares": shares, "chosen": chosen}, samples


def _save(
  folder: Path,
  parts: Mapping[str, Part],
  tags: list[str],
  drawn: Sequence[Mapping[str, Any]],
  found: Mapping[str, Any],
  scores: Mapping[str, Any],
  samples: Mapping[str, np.ndarray],
) -> None:
  """Leaves a probe's results in its workdir; `scores.json` comes last."""
  chosen = {
    "masks": [one["mask"] for one in drawn],
    "shares": [one["share"] for one in drawn],
    "draws": [one["draw"] for one in drawn],
    "ids": parts["train"].ids(),
  }
  test = parts["test"]
  predictions = {"logits": found["logits"][-1], "labels": test.labels}
  predictions |= {"ids": test.ids(), "tags": tags}
  head = {name: scores[name] for name in ("aggregation", "sounding")}
  with workdir.writing(folder):
    disk.write(folder / "subsets.npz", arrays.dump(chosen))
    tagger.save(folder, found["head"] | head | {"tags": tags})
    scoring.save(folder, scores, samples, predictions)


def _benchmark_name(test: Tracks, tags: Sequence[str]) -> str:
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
    " it with these, or report the number of missing ones with the score, by"
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


def check(config: ConfigDict, devices: int) -> None:
  """Finds mistakes in the config that would be hard to understand later.

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
  parts: Mapping[str, Part],
  tags: Sequence[str],
  missing: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
  """Returns what `scores.json` says of the data that the scores are of.

  Args:
    parts: what is used of each split.
    tags: that are scored.
    missing: of `choose`.
  """
  splits = {split: part.tracks for split, part in parts.items()}
  # Of all tracks of the splits, whether they are there or not.
  ids = [(s, i) for s in SPLITS for i in splits[s].ids + splits[s].missing[s]]
  test = splits["test"]
  return {
    "data": test.name,
    "benchmark": _benchmark_name(test, tags),
    "as_published": test.card["as_published"],
    "fingerprint": fingerprint(ids, tags),
    "tracks": {split: len(part.used) for split, part in parts.items()},
    "missing": {split: len(ids) for split, ids in missing.items()},
  }


def _label(described: Mapping[str, Any]) -> str:
  """Returns what tables and figures call an encoder."""
  name = described.get("pretext", described["encoder"])
  # "supervised" is what `finetune` scores by the network's own head.
  return "supervised (probed)" if name == "supervised" else name
