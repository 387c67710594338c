"""Where an encoder comes from: its trainings and its scores, for a card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_music import results, workdir
from ssl_music.data import audio
from ssl_music.data.tracks import Tracks, same_data
from ssl_music.errors import InputError

# Of what `results.read_probe` gives.
_KEPT = (
  *("name", "data", "benchmark", "as_published", "fingerprint", "tracks"),
  *("missing", "seeds", "aggregation", "sounding", "hidden"),
  *("test", "interval"),
)


def trainings(described: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns what is known of the trainings that made an encoder, in order.

  Args:
    described: of `weights.Weights`.

  Returns:
    for each {"task", "network", "data": [{"name", "splits", "tracks",
    "hours"}], "steps", "batch", "views", "segment_seconds", "seed"}; tracks and
    hours are None where the data set is gone, or has become another one. []
    where the weights came as a file, which tells nothing of it.
  """
  config = _config(Path(described["encoder"]))
  if "trainings" in config:
    return config["trainings"]
  job, before = config.get("job"), []
  if job not in ("pretrain", "finetune"):
    return []
  task = config["pretext"]["name"]
  if job == "finetune" and config["encoder"] != "random":
    start = {"encoder": config["encoder"], "step": config["checkpoint"]}
    before = trainings(start | {"network": config["network"]})
    task = "fine-tuning"
  own = {
    "task": task,
    "network": described["network"],
    "data": _data_sets(config),
    "steps": int(described["step"]),
    "batch": config["batch"],
    "views": config["views"],
    "segment_seconds": config["data"]["seconds"],
    "seed": config["seed"],
  }
  return [*before, own]


def scores(
  source: Path, described: Mapping[str, Any], given: Sequence[Path]
) -> list[dict[str, Any]]:
  """Returns an encoder's scores.

  Args:
    source: where it was read; a probe's, a fine-tuning's and an export's own
      scores come first.
    described: of `weights.Weights`.
    given: workdirs of its probes; without any, those beside the source count.

  Returns:
    for each what `results.read_probe` gives, without what a card has no room
    for.

  Raises:
    InputError: a given folder holds no scores, or another encoder's.
  """
  found = list(_config(source).get("scores", ()))
  if (source / "scores.json").is_file():
    found.append(results.read_probe(source))
  for folder in given:
    one = results.read_probe(folder)
    if not _is_of(one, described):
      raise InputError(
        f"the scores in {folder} are of {_which(one)}, not of"
        f" {_which(described)}: give a probe of that encoder, and start where"
        " its --config.encoder leads to it"
      )
    found.append(one)
  if not given:
    found += _beside(source.absolute(), described)
  return [{key: one[key] for key in _KEPT} for one in found]


def _config(path: Path) -> dict[str, Any]:
  """The config of a run or of an export; {} of what has none."""
  if not (path / "config.json").is_file():
    return {}
  return workdir.read_config(path)


def _data_sets(config: Mapping[str, Any]) -> list[dict[str, Any]]:
  """What a run was trained on, as far as it is still there."""
  data = config["data"]
  labels = data.get("labels")
  names, folder = data["name"].split("+"), data["data_dir"]
  same, parts = False, {}
  try:
    whole = Tracks(data["name"], data["splits"], folder)
    if labels is not None:
      whole.keep_tags([whole.tags.index(tag) for tag in labels])
    now = whole.fingerprint(labels=labels is not None)
    same = same_data(data["fingerprint"], now)
    parts = {name: _samples(name, data["splits"], folder) for name in names}
  except (InputError, KeyError, OSError, ValueError):
    same = False  # gone, or damaged: the card says that it is not known
  return [
    {
      "name": name,
      "splits": list(data["splits"]),
      "tracks": len(parts[name]) if same else None,
      "hours": sum(parts[name]) / audio.SAMPLE_RATE / 3600 if same else None,
    }
    for name in names
  ]


def _samples(name: str, splits: Sequence[str], folder: str) -> list[int]:
  """The lengths of a data set's tracks, of which there may be none."""
  try:
    return Tracks(name, splits, folder).samples.tolist()
  except InputError:
    return []


def _is_of(one: Mapping[str, Any], described: Mapping[str, Any]) -> bool:
  """Tells whether scores are a probe's of an encoder."""
  return (
    Path(one["encoder"]).resolve() == Path(described["encoder"]).resolve()
    and one.get("step") == described.get("step")
    and one.get("network") == described.get("network")
    # It began with that encoder, and has become another one.
    and not one["name"].startswith("finetune:")
  )


def _which(about: Mapping[str, Any]) -> str:
  name = str(about.get("name", ""))
  tuned = f" {name}" if name.startswith("finetune:") else ""
  parts = [f"{key} {about[key]}" for key in ("step", "network") if key in about]
  return f"{about['encoder']}{tuned} ({', '.join(parts)})"


def _beside(source: Path, described: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The scores of an encoder in the folders beside it."""
  found = []
  for file in sorted(source.parent.glob("*/scores.json")):
    if file.parent != source:
      try:
        one = results.read_probe(file.parent)
      except InputError:
        continue  # of an older program, for instance
      found += [one] if _is_of(one, described) else []
  return found
