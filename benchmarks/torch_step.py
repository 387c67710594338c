"""The whole training step in PyTorch, as a person would write it there.

The peer of `ssl_music.step` in `benchmarks/train_step.py`: the same front end,
augmentation (gain and equaliser), network, heads, losses (as published) and
AdamW, on one device. PyTorch is not among the project's requirements; install
it beside, for instance its CPU build.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import torch_network


def make_head(inputs: int, sizes: tuple[int, ...]) -> nn.Sequential:
  """Linear, batch norm and ReLU for each hidden layer; the last is linear."""
  layers: list[nn.Module] = []
  for index, size in enumerate(sizes):
    layers.append(nn.Linear(inputs, size, bias=False))
    if index + 1 < len(sizes):
      layers += [nn.BatchNorm1d(size), nn.ReLU(inplace=True)]
    inputs = size
  return nn.Sequential(*layers)


def contrastive(z: torch.Tensor, temperature: float) -> torch.Tensor:
  """NT-Xent of z [2, B, D]."""
  items = z.shape[1]
  z = F.normalize(z.flatten(0, 1), dim=1)
  logits = z @ z.T / temperature
  logits.fill_diagonal_(-torch.inf)
  target = torch.arange(2 * items, device=z.device).roll(items)
  return F.cross_entropy(logits, target)


def byol(p: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
  """2 - 2 cos of predictions p and the other view's projections."""
  cosine = F.cosine_similarity(p, teacher.flip(0), dim=-1)
  return 2 - 2 * cosine.mean()


def clustering(
  s: torch.Tensor, teacher: torch.Tensor, centre: torch.Tensor
) -> torch.Tensor:
  """DINO's cross entropy of s [2, B, K] with the teacher's other view."""
  target = F.softmax((teacher - centre) / 0.02, dim=-1).flip(0)
  log_p = F.log_softmax(s / 0.1, dim=-1).clamp(min=-100)
  return -(target * log_p).sum(-1).mean()


def standardise(z: torch.Tensor) -> torch.Tensor:
  """Mean 0 and variance 1 over the batch, of z [V, B, D]."""
  variance, mean = torch.var_mean(z, 1, keepdim=True, correction=0)
  return (z - mean) * torch.rsqrt(variance + 1e-5)


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
  """Mean of the squares off the diagonal of [..., D, D]."""
  size = matrix.shape[-1]
  square = matrix.square()
  rest = square.sum() - square.diagonal(dim1=-2, dim2=-1).sum()
  return rest / (matrix.shape[:-2].numel() * size * (size - 1))


def barlow_twins(z: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
  """Barlow Twins of z [2, B, D], of means."""
  first, second = standardise(z)
  matrix = first.T @ second / (len(first) - 1)
  on = (1 - matrix.diagonal()).square().mean()
  return on + weight * off_diagonal(matrix)


def vicreg(z: torch.Tensor) -> torch.Tensor:
  """VICReg of z [2, B, D], of the correlation matrix."""
  invariance = F.mse_loss(z[0], z[1])
  variance = F.relu(1 - (z.var(1) + 1e-5).sqrt()).mean()
  unit = standardise(z)
  matrix = unit.mT @ unit / (z.shape[1] - 1)
  return invariance + variance + off_diagonal(matrix)


def follow(
  teacher: nn.ModuleDict, student: nn.ModuleDict, momentum: float
) -> None:
  """Moves the teacher's parameters towards the student's, who may have more."""
  with torch.no_grad():
    old = [p for part in teacher.values() for p in part.parameters()]
    new = [p for part in teacher for p in student[part].parameters()]
    torch._foreach_lerp_(old, new, 1 - momentum)


def augment(
  mel: torch.Tensor, weights: torch.Tensor, gain: float, equaliser: float
) -> torch.Tensor:
  """A random gain and equaliser curve for each item of mel [N, M, T], in dB."""
  items, knots = len(mel), weights.shape[1]
  change = torch.empty(items, 1, device=mel.device).uniform_(-gain, gain)
  values = equaliser * torch.randn(items, knots, device=mel.device)
  return mel + (values @ weights.T + change)[:, :, None]


def knot_weights(bands: int, knots: int) -> torch.Tensor:
  """[bands, knots]: a smooth curve through values at the knots."""
  place = torch.linspace(0, knots - 1, bands)[:, None] - torch.arange(knots)
  return 0.5 + 0.5 * torch.cos(torch.pi * place.clamp(-1, 1))


def make_step(
  config: Mapping[str, Any],
  *,
  device: str = "cpu",
  compiled: bool = False,
  channels_last: bool = False,
  bfloat16: bool = False,
) -> Callable[[torch.Tensor], torch.Tensor]:
  """Returns a function that takes a training step and returns its loss.

  Args:
    config: of one of `configs/`, as a plain dict, of the published network.
    device: "cpu" or "cuda".
    compiled: by `torch.compile`.
    channels_last: the layout of feature maps.
    bfloat16: autocast of network and head.
  """
  pretext = config["pretext"]
  task, teaches = pretext["name"], "momentum" in pretext
  sizes = tuple(pretext["head"])
  student = nn.ModuleDict(
    {
      "backbone": torch_network.Backbone().embedding,
      "head": make_head(config["model"]["output"], sizes),
    }
  )
  teacher = copy.deepcopy(student).requires_grad_(False) if teaches else None
  if "predictor" in pretext:
    student["predictor"] = make_head(sizes[-1], tuple(pretext["predictor"]))
  student = student.to(device)
  if channels_last:
    student = student.to(memory_format=torch.channels_last)
  if teaches:
    teacher = teacher.to(device)
    if channels_last:
      teacher = teacher.to(memory_format=torch.channels_last)
  front_end = torch_network.LogMel().to(device)
  settings = config["optimizer"]
  decayed = [p for p in student.parameters() if p.ndim > 1]
  others = [p for p in student.parameters() if p.ndim <= 1]
  optimizer = torch.optim.AdamW(
    [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
    lr=settings["learning_rate"],
    betas=(settings["b1"], settings["b2"]),
    weight_decay=settings["weight_decay"],
    fused=True,
  )
  weights = knot_weights(config["frontend"]["n_mels"], 6).to(device)
  centre = torch.zeros(1, sizes[-1], device=device)
  of_task = {
    "contrastive": lambda z: contrastive(z, pretext["temperature"]),
    "barlow_twins": lambda z: barlow_twins(z, pretext["off_diagonal"]),
    "vicreg": vicreg,
  }

  def project(networks: nn.ModuleDict, mel: torch.Tensor) -> torch.Tensor:
    kind = torch.device(device).type
    with torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
      z = networks["head"](networks["backbone"](mel))
      if "predictor" in networks:
        z = networks["predictor"](z)
    return z.float().unflatten(0, (2, -1))

  def loss_of(waveform: torch.Tensor) -> torch.Tensor:
    wave = waveform.flatten(0, 1).float() / 32767
    with torch.no_grad():
      mel = augment(
        front_end(wave),
        weights,
        config["augment"]["gain"],
        config["augment"]["equaliser"],
      )
    z = project(student, mel)
    if not teaches:
      return of_task[task](z)
    with torch.no_grad():
      seen = project(teacher, mel)
    if task == "byol":
      return byol(z, seen)
    loss = clustering(z, seen, centre)
    with torch.no_grad():
      momentum = pretext["centre_momentum"]
      centre.lerp_(seen.mean((0, 1))[None], 1 - momentum)
    return loss

  forward = torch.compile(loss_of) if compiled else loss_of

  def step(waveform: torch.Tensor) -> torch.Tensor:
    loss = forward(waveform.to(device, non_blocking=True))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if teaches:
      follow(teacher, student, pretext["momentum"])
    return loss.detach()

  return step
