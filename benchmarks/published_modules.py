"""The published modules, and a loop around them; see `published_steps`."""

import importlib
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests import golden

_LOSSES = {
  "contrastive": "NT_Xent",
  "byol": "BYOLLoss",
  "clustering": "ClusteringLoss",
  "barlow_twins": "DiagonalLoss",
  "vicreg": "FeatureStatsLoss",
}
_WITH_TEACHER = {"byol": "SSLBYOL", "clustering": "SSLClustering"}


def modules(folder: Path, *, slip: bool) -> Mapping[str, Any]:
  """Returns the published losses, models, network and schedules, by name.

  Args:
    folder: a checkout of the published code.
    slip: whether BYOL's loss keeps its slip.
  """
  missing = ("gin", "GPUtil", "tensorflow", "torchaudio", "torchinfo")
  stand_ins = {name: mock.MagicMock() for name in missing}
  stand_ins["gin"].configurable = lambda made: made
  package = types.ModuleType("ssl_framework")
  package.__path__ = [str(folder / "ssl_framework")]  # without its __init__
  found: dict[str, Any] = {}
  with mock.patch.dict(sys.modules, stand_ins | {"ssl_framework": package}):
    for name in ("models.resnet", "models", "utils.scheduler"):
      found |= vars(importlib.import_module(f"ssl_framework.{name}"))
    for name in ("selfsupervised_models", "selfsupervised_losses"):
      text = (folder / "ssl_framework" / f"{name}.py").read_text()
      text = text if slip else text.replace("dim=-0", "dim=-1")
      exec(compile(text, name, "exec"), found)
  return found


def _empty(kind: type[torch.nn.Module]) -> torch.nn.Module:
  """Returns a module without what its constructor makes, GPUs among it."""
  made = kind.__new__(kind)
  torch.nn.Module.__init__(made)
  return made


def _networks(found: Mapping, config: Mapping) -> torch.nn.Module:
  """Returns an `SSLModel` of the config's sizes, without the front end."""
  made, settings = _empty(found["SSLModel"]), config["model"]
  made.backbone = found["ModifiedResNet"](
    n_frames=126,
    n_mels=config["frontend"]["n_mels"],
    feature_dim=settings["output"],
    layers=settings["depths"],
    heads=settings["heads"],
    width=settings["width"],
    mono=True,
  )
  made.head = found["Head"](settings["output"], list(config["pretext"]["head"]))
  for module in made.modules():
    # A whole number, of which PyTorch refuses BYOL's teacher a mean.
    if hasattr(module, "num_batches_tracked"):
      module.num_batches_tracked = None
  return made


def _fill(network: torch.nn.Module, prefix: str = "") -> None:
  """Gives a network the weights that the golden rule makes of its names."""
  state = network.state_dict()
  for name, value in state.items():
    made = golden.weight(prefix + name, tuple(value.shape))
    state[name] = torch.from_numpy(made)
  network.load_state_dict(state)


def _model(
  found: Mapping, config: Mapping, epochs: tuple[int, int]
) -> torch.nn.Module:
  """Returns what is trained, with a teacher where the task has one."""
  student = _networks(found, config)
  _fill(student.backbone, "embedding.")
  _fill(student.head)
  pretext = config["pretext"]
  if pretext["name"] not in _WITH_TEACHER:
    return student
  made = _empty(found[_WITH_TEACHER[pretext["name"]]])
  made.student, made.teacher = student, _networks(found, config)
  made.teacher.load_state_dict(student.state_dict())
  made.teacher.requires_grad_(False)
  made.network_momentum = found["get_network_momentum"](*epochs)
  if "predictor" in pretext:
    inputs, sizes = pretext["head"][-1], list(pretext["predictor"])
    made.projector = found["Head"](inputs, sizes)
    _fill(made.projector)
  return made


def _loss(
  found: Mapping, config: Mapping, temperatures: Sequence[float]
) -> torch.nn.Module:
  name, outputs = config["pretext"]["name"], config["pretext"]["head"][-1]
  kind = found[_LOSSES[name]]
  if name in ("barlow_twins", "vicreg"):
    return kind(n_features=outputs)
  if name != "clustering":
    return kind()
  made = kind(n_classes=outputs, n_epochs=1000)
  made.teacher_temp_schedule = temperatures
  return made


def _adamw(model: torch.nn.Module, settings: Mapping) -> torch.optim.AdamW:
  """Returns AdamW; biases and batch norm do not decay, which is our choice."""
  learnt = [p for p in model.parameters() if p.requires_grad]
  matrices = [p for p in learnt if p.ndim > 1]
  others = [p for p in learnt if p.ndim <= 1]
  groups = [
    {"params": matrices, "decays": True},
    {"params": others, "decays": False},
  ]
  return torch.optim.AdamW(groups, betas=(settings["b1"], settings["b2"]))


def train(
  folder: Path,
  config: Mapping,
  batches: Sequence[np.ndarray],
  epochs: tuple[int, int],
  temperatures: Sequence[float],
  *,
  slip: bool,
) -> dict[str, torch.nn.Module]:
  """Trains by the published modules.

  Args:
    folder: a checkout of the published code.
    config: as of `published_steps.recipe`.
    batches: the log-mel spectrograms of each step, [2, B, mel, 126].
    epochs: of the run's length, and the steps in each.
    temperatures: of clustering's teacher at each step.
    slip: as of `modules`.

  Returns:
    {"backbone", "head"} and, where there are any, {"predictor", "teacher
    backbone", "teacher head"}.
  """
  found, settings = modules(folder, slip=slip), config["optimizer"]
  model = _model(found, config, epochs).double().train()
  loss_of = _loss(found, config, temperatures).double().train()
  optimizer = _adamw(model, settings)
  decays = found["get_weights_decay_scheduler"](
    *epochs, settings["weight_decay"], settings["final_weight_decay"]
  )
  speeds = found["get_learning_rate_scheduler"](
    settings["learning_rate"],
    *epochs,
    settings["final_learning_rate"],
    warmup_epochs=1,
  )
  for step, batch in enumerate(batches):
    for group in optimizer.param_groups:
      group["lr"] = speeds[step]
      group["weight_decay"] = decays[step] * group["decays"]
    out = model(torch.from_numpy(batch)[:, :, None])
    seen = (out[0], out[2]) if hasattr(model, "teacher") else (out[0],)
    at = (step,) if config["pretext"]["name"] == "clustering" else ()
    loss, _ = loss_of(*seen, *at)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if hasattr(model, "teacher"):
      model.update_teacher(step)
  if not hasattr(model, "teacher"):
    return {"backbone": model.backbone, "head": model.head}
  student, teacher = model.student, model.teacher
  more = {"predictor": model.projector} if hasattr(model, "projector") else {}
  return {
    "backbone": student.backbone,
    "head": student.head,
    "teacher backbone": teacher.backbone,
    "teacher head": teacher.head,
    **more,
  }
