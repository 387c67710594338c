"""The published backbone in PyTorch: the peer that benchmarks compare with.

An independent build from the paper's description (arXiv:2404.09177) and that of
CLIP's modified ResNet (Radford et al., "Learning Transferable Visual Models
From Natural Language Supervision", 2021): log-mel front end, ResNet and
attention pooling, in plain PyTorch. Its state dict has the published names, so
that checkpoints and exports load with `strict=True`.

PyTorch is no dependency of the project: `pip install torch==2.13.0` beside it.
Then `python -m benchmarks.torch_network` holds this module against the golden
vectors of the published implementation. With `--file=PATH` it loads a file of
safetensors with the published names, strictly, and compares its embeddings with
those of the project's own network for the same file.
"""

import argparse
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ssl_music import encoder
from ssl_music.models import torch_checkpoint
from tests import golden


def mel_filterbank(
  sample_rate: int, n_fft: int, bands: int, f_min: float, f_max: float
) -> torch.Tensor:
  """Triangles with a peak of 1 on Slaney's mel scale.

  Args:
    sample_rate: in hertz.
    n_fft: length of the Fourier transform.
    bands: number of triangles.
    f_min: lower edge of the first in hertz.
    f_max: upper edge of the last in hertz.

  Returns:
    float32 [n_fft // 2 + 1, bands].
  """
  step = math.log(6.4) / 27  # of a mel, above 1 kHz

  def to_mel(hertz: float) -> float:
    if hertz < 1000:
      return hertz * 3 / 200
    return 15 + math.log(hertz / 1000) / step

  mels = torch.linspace(
    to_mel(f_min), to_mel(f_max), bands + 2, dtype=torch.float64
  )
  edges = torch.where(
    mels < 15, mels * 200 / 3, 1000 * torch.exp(step * (mels - 15))
  )
  bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
  distance = edges[None] - bins[:, None]  # [bins, bands + 2]
  widths = edges.diff()
  rising = -distance[:, :-2] / widths[:-1]
  falling = distance[:, 2:] / widths[1:]
  return torch.minimum(rising, falling).clamp(min=0).float()


class _Spectrogram(nn.Module):
  """Power spectrum of centred frames, divided by the window's energy."""

  def __init__(self, n_fft: int, hop: int):
    super().__init__()
    self.n_fft, self.hop = n_fft, hop
    self.register_buffer("window", torch.hann_window(n_fft))

  def forward(self, waveform: torch.Tensor) -> torch.Tensor:
    """Maps [N, samples] to [N, n_fft // 2 + 1, frames]."""
    spectrum = torch.stft(
      waveform,
      self.n_fft,
      self.hop,
      window=self.window,
      center=True,
      pad_mode="reflect",
      return_complex=True,
    )
    return (spectrum / self.window.square().sum().sqrt()).abs().square()


class _MelScale(nn.Module):
  """Mel bands of a power spectrum."""

  def __init__(self, bank: torch.Tensor):
    super().__init__()
    self.register_buffer("fb", bank)

  def forward(self, power: torch.Tensor) -> torch.Tensor:
    """Maps [N, bins, frames] to [N, bands, frames]."""
    return self.fb.t() @ power


class _Mel(nn.Module):
  """Mel spectrogram: named as its constants are in the published files."""

  def __init__(self, sample_rate: int, n_fft: int, hop: int, bands: int):
    super().__init__()
    self.spectrogram = _Spectrogram(n_fft, hop)
    self.mel_scale = _MelScale(
      mel_filterbank(sample_rate, n_fft, bands, 0.0, 11025.0)
    )

  def forward(self, waveform: torch.Tensor) -> torch.Tensor:
    return self.mel_scale(self.spectrogram(waveform))


class LogMel(nn.Module):
  """Front end: a waveform becomes a log-mel spectrogram in decibels."""

  def __init__(
    self,
    sample_rate: int = 16000,
    n_fft: int = 1024,
    hop: int = 512,
    bands: int = 128,
    range_db: float = 100.0,
  ):
    super().__init__()
    self.spec = _Mel(sample_rate, n_fft, hop, bands)
    self.range_db = range_db

  def forward(self, waveform: torch.Tensor) -> torch.Tensor:
    """Maps float [N, samples] to [N, bands, frames]."""
    decibels = 10 * self.spec(waveform).clamp(min=1e-10).log10()
    floor = decibels.amax((1, 2), keepdim=True) - self.range_db
    return torch.maximum(decibels, floor)


class _Block(nn.Module):
  """Bottleneck: 1x1, 3x3, average pool for a stride, 1x1, and a shortcut."""

  def __init__(self, channels: int, planes: int, stride: int):
    super().__init__()
    wide = 4 * planes
    self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(planes)
    self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
    self.bn2 = nn.BatchNorm2d(planes)
    self.conv3 = nn.Conv2d(planes, wide, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(wide)
    self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
    self.downsample = None
    if stride > 1 or channels != wide:
      self.downsample = nn.Sequential(
        OrderedDict(
          {
            "pool": nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
            "0": nn.Conv2d(channels, wide, 1, bias=False),
            "1": nn.BatchNorm2d(wide),
          }
        )
      )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(self.bn1(self.conv1(x)))
    y = self.pool(F.relu(self.bn2(self.conv2(y))))
    y = self.bn3(self.conv3(y))
    return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class _AttentionPool(nn.Module):
  """Attention from the mean of all positions to them and itself."""

  def __init__(self, positions: int, channels: int, heads: int, output: int):
    super().__init__()
    self.heads = heads
    self.positional_embedding = nn.Parameter(
      torch.randn(positions + 1, channels) * channels**-0.5
    )
    self.q_proj = nn.Linear(channels, channels)
    self.k_proj = nn.Linear(channels, channels)
    self.v_proj = nn.Linear(channels, channels)
    self.c_proj = nn.Linear(channels, output)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Maps [N, channels, height, width] to [N, output]."""
    tokens = x.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
    tokens = tokens + self.positional_embedding

    def split(y: torch.Tensor) -> torch.Tensor:
      return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

    answer = F.scaled_dot_product_attention(
      split(self.q_proj(tokens[:, :1])),
      split(self.k_proj(tokens)),
      split(self.v_proj(tokens)),
    )
    return self.c_proj(answer.transpose(1, 2).flatten(1))


class _ResNet(nn.Module):
  """A log-mel spectrogram becomes an embedding."""

  def __init__(
    self,
    width: int,
    depths: tuple[int, ...],
    heads: int,
    output: int,
    size: tuple[int, int],
  ):
    super().__init__()
    half = width // 2
    self.conv1 = nn.Conv2d(1, half, 3, stride=2, padding=1, bias=False)
    self.bn1 = nn.BatchNorm2d(half)
    self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
    self.bn2 = nn.BatchNorm2d(half)
    self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
    self.bn3 = nn.BatchNorm2d(width)
    channels, self.stages = width, len(depths)
    for stage, depth in enumerate(depths):
      blocks = []
      for block in range(depth):
        stride = 2 if stage and not block else 1
        blocks.append(_Block(channels, width * 2**stage, stride))
        channels = 4 * width * 2**stage
      self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
    positions = math.prod((n + 1) // 2 // 2 ** len(depths) for n in size)
    self.attnpool = _AttentionPool(positions, channels, heads, output)

  def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
    """Maps [N, bands, frames] to [N, output]."""
    x = F.relu(self.bn1(self.conv1(spectrogram[:, None])))
    x = F.relu(self.bn2(self.conv2(x)))
    x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
    for stage in range(self.stages):
      x = getattr(self, f"layer{stage + 1}")(x)
    return self.attnpool(x)


class Backbone(nn.Module):
  """The published encoder: float [N, samples] becomes float [N, output].

  `spec` is the front end, `embedding` the network; the defaults are the
  published sizes.
  """

  def __init__(
    self,
    width: int = 16,
    depths: tuple[int, ...] = (3, 4, 6, 3),
    heads: int = 8,
    output: int = 1024,
    samples: int = 64000,
  ):
    super().__init__()
    self.spec = LogMel()
    size = (128, 1 + samples // 512)
    self.embedding = _ResNet(width, depths, heads, output, size)

  def forward(self, waveform: torch.Tensor) -> torch.Tensor:
    """Maps float [N, samples], from -1 to 1, to [N, output]."""
    return self.embedding(self.spec(waveform))


def load(file: Path) -> tuple[Backbone, dict[str, Any]]:
  """Loads a file of safetensors with the published names, strictly.

  Args:
    file: as `torch_checkpoint.write_published` writes it.

  Returns:
    the network, evaluating, and its settings (as `torch_checkpoint.load` has
    them).
  """
  settings, _ = torch_checkpoint.load(file)
  network = Backbone(
    samples=round(settings["data"]["seconds"] * 16000),
    **{key: settings["model"][key] for key in ("width", "heads", "output")},
    depths=tuple(settings["model"]["depths"]),
  )
  network.load_state_dict(load_file(file), strict=True)
  return network.eval(), settings


def _error(ours: torch.Tensor, other: np.ndarray) -> float:
  """‖a − b‖ / ‖b‖ in float64."""
  ours = ours.detach().double().numpy()
  return float(np.linalg.norm(ours - other) / np.linalg.norm(other))


def _check_golden() -> None:
  """Prints how far this module is from the published implementation."""
  network, vectors = Backbone(), golden.models()
  state = {n: torch.tensor(v) for n, v in golden.state_dict("backbone").items()}
  # The rule has no constants of the front end, which the module brings.
  missing, unexpected = network.load_state_dict(state, strict=False)
  assert not unexpected, unexpected
  assert all(name.startswith("spec.") for name in missing), missing
  waves = torch.from_numpy(golden.wave())
  with torch.inference_mode():
    network.eval()
    print("log-mel", _error(network.spec(waves), vectors["logmel"]))
    print("embedding", _error(network(waves), vectors["embedding_eval"]))
  network.double().train()
  embedding = network.embedding(torch.from_numpy(vectors["logmel"]).double())
  print("in training", _error(embedding, vectors["embedding_train"]))
  (embedding * torch.from_numpy(golden.cotangent())).sum().backward()
  for name, parameter in network.named_parameters():
    if f"grad/{name}" in vectors:
      print(name, _error(parameter.grad, vectors[f"grad/{name}"]))


def _check_file(file: Path) -> None:
  """Prints how far apart the two builds are with a file's weights."""
  network, settings = load(file)
  samples = round(settings["data"]["seconds"] * 16000)
  waves = golden.wave()[:, :samples]
  with torch.inference_mode():
    theirs = network(torch.from_numpy(waves))
  _, variables = torch_checkpoint.load(file)
  ours = encoder.embed(settings, variables, waves)
  print("embedding", _error(theirs, np.asarray(ours)))


def main() -> None:
  """Checks this module against the golden vectors, or against our network."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--file", type=Path, help="safetensors, published names")
  file = parser.parse_args().file
  if file is None:
    _check_golden()
  else:
    _check_file(file)


if __name__ == "__main__":
  main()
