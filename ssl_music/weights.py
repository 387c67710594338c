"""A network's weights, from wherever they lie: a run, an export, a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ssl_music import checkpoint, home, results, seal, typed, workdir
from ssl_music.errors import InputError
from ssl_music.models import safetensors_file, torch_checkpoint

# The file of an export (see `export`) that holds its weights, and the version
# of all that lies there.
EXPORTED = "encoder.safetensors"
FORMAT = safetensors_file.FORMAT
# What is read of a config: of a training's, and of a probe's.
_RUN = {
  "seed": int,
  "pretext": {"name": str},
  "frontend": dict,
  "model": {"output": int},
  "data": {"seconds": float},
}
_PROBE = {"encoder": str, "checkpoint": (str, int), "network": str}


class Weights(NamedTuple):
  """A backbone and what it needs to be used.

  Attributes:
    settings: {"frontend", "model", "data": {"seconds"}} of a config.
    variables: {"params", "batch_stats"} of the backbone, NumPy arrays.
    described: what a score says of the encoder, for JSON.
    head: the folder that holds a trained tag head; None where there is none.
  """

  settings: dict[str, Any]
  variables: dict[str, Any]
  described: dict[str, Any]
  head: Path | None


def read(
  path: str | Path, which: str | int = "latest", network: str = "student"
) -> Weights:
  """Reads a trained backbone.

  Args:
    path: the workdir of a pre-training, of a fine-tuning (whose best checkpoint
      is taken) or of a probe (whose encoder is taken); a folder that
      `ssl_music.export` made; a `.safetensors` file of ours; or a checkpoint
      or `.safetensors` file with the published names.
    which: of a pre-training, "latest", "best" or a step.
    network: "student" or "teacher", where there are two.

  Raises:
    InputError: nothing of that kind is there, or it cannot be read; or it
      leaves no choice of a checkpoint or network, and has another one.
  """
  path = Path(home.expanded(str(path)))
  if path.is_file():
    return _only(_of_file(path, network), path, which, network)
  if not path.exists():
    raise InputError(
      f"no encoder {path}: give the workdir of a run, a folder made by"
      " python -m ssl_music.export, or a .pt or .safetensors file"
    )
  if (path / EXPORTED).is_file():
    return _only(_of_export(path, network), path, which, network)
  config = workdir.read_config(path)
  job = config.get("job")
  if job == "probe":
    return _only(_of_probe(path, config), path, which, network)
  if job not in ("pretrain", "finetune"):
    raise InputError(
      f"{path} holds a run without an encoder (its job is {job!r}): give the"
      " workdir of a pre-training, a probe or a fine-tuning"
    )
  tuned = job == "finetune"
  typed.check(config, _RUN, path / "config.json")
  step, state = checkpoint.load(path, "best" if tuned else which, network)
  found = Weights(
    _settings(config),
    {kind: tree["backbone"] for kind, tree in state.items()},
    {
      "encoder": str(path),
      "step": step,
      "network": network,
      "pretext": "finetune" if tuned else config["pretext"]["name"],
      "seed": config["seed"],
      "recipe": workdir.recipe(config),
    },
    path if tuned else None,
  )
  return _only(found, path, which, network) if tuned else found


def _only(
  found: Weights, path: Path, which: str | int, network: str
) -> Weights:
  """Returns the weights, unless others were asked for ("latest": any)."""
  has = found.described
  if str(which) not in ("latest", str(has.get("step"))):
    raise InputError(
      f"a checkpoint ({which}) is chosen of a pre-training, and {path} is none:"
      " leave it out, or give the pre-training"
    )
  if network not in ("student", has.get("network")):
    raise InputError(
      f"{path} is of the {has.get('network')}, not of the {network}: leave the"
      " network out, or give the pre-training"
    )
  return found


def _of_file(path: Path, network: str) -> Weights:
  settings, variables = torch_checkpoint.load(path, network)
  described = {"encoder": str(path), "network": network}
  return Weights(settings, variables, described, None)


def _of_export(path: Path, network: str) -> Weights:
  """An export, which says of itself what its source was."""
  source = workdir.read_config(path).get("source", {})
  # Its one network may be asked for by the name that it had there.
  own = network == source.get("network")
  seal.read(path, EXPORTED, "export it again")
  found = _of_file(path / EXPORTED, "student" if own else network)
  return found._replace(
    described={"encoder": str(path)} | source,
    head=path if (path / "head.npz").is_file() else None,
  )


def _of_probe(path: Path, config: Mapping[str, Any]) -> Weights:
  """The encoder that a probe's head was trained on."""
  typed.check(config, _PROBE, path / "config.json")
  encoder = config["encoder"]
  if encoder in ("mel", "random"):
    raise InputError(
      f"the probe in {path} is of the floor {encoder!r}, which has no trained"
      " network: give a probe of a pre-training"
    )
  if not Path(encoder).exists():
    raise InputError(
      f"the probe in {path} is of the encoder {encoder}, which is not there:"
      " start from the folder in which the probe was made, or move it back"
    )
  # The step that was probed: "latest" may be another by now.
  step = results.read(path).get("step", config["checkpoint"])
  try:
    found = read(encoder, step, config["network"])
  except InputError as error:
    raise InputError(f"the probe in {path} cannot be used: {error}") from error
  return found._replace(head=path)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "frontend": config["frontend"],
    "model": config["model"],
    "data": {"seconds": config["data"]["seconds"]},
  }
