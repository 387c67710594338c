"""What a run says of itself while it goes on."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_music import collapse, hosts, progress
from ssl_music.diagnostics import describe
from ssl_music.errors import InputError

_TIMES = ("waiting_for_data", "probing")


class Log:
  """Gathers metrics on the device and writes their means now and then."""

  def __init__(
    self,
    config: ConfigDict,
    rates: Mapping[str, Callable],
    entries: Sequence[Mapping],
    write: Callable[[int, Mapping[str, float]], None],
    first: int,
    lengths: Mapping[str, int],
  ):
    """Goes on with a log.

    Args:
      config: of the run.
      rates: schedules, whose values are logged.
      entries: of the log so far.
      write: of `workdir.open_metrics`.
      first: the number of steps done.
      lengths: of the run's phases, in steps.
    """
    self._config, self._rates, self._write = config, rates, write
    self._entries = [
      e for e in entries if e["step"] % lengths["log_every"] == 0
    ]
    self._lengths = lengths
    self._segments = config.batch * (config.views + config.short_views)
    self._bar = progress.bar(
      total=lengths["total"],
      initial=first,
      unit="step",
      desc="pre-train",
      disable=not hosts.is_first(),
    )
    self._metrics: list[dict] = []  # of each step since the last entry
    # Of each step since the last save on the grid; a resumed run has the means
    # of its entries, which tile the steps.
    self._losses: list[float] = []
    last, before = first // lengths["save_every"] * lengths["save_every"], 0
    for entry in entries:
      new = entry["step"] - max(before, last)
      self._losses += [entry["loss"]] * max(new, 0)
      before = entry["step"]
    self._verdict: str | None = None
    self._start_clocks()

  def _start_clocks(self) -> None:
    self._began = time.perf_counter()
    self._times = dict.fromkeys(_TIMES, 0.0)

  @contextlib.contextmanager
  def timing(self, name: str) -> Iterator[None]:
    """Counts the time inside as spent on `name`, one of `_TIMES`."""
    began = time.perf_counter()
    yield
    self._times[name] += time.perf_counter() - began

  def __enter__(self) -> "Log":
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.close()  # what is said next has a line of its own

  def step(self, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step."""
    # One step is queued while another runs; more would only hide their speed.
    if self._metrics:
      jax.block_until_ready(self._metrics[-1])
    self._metrics.append(metrics)
    self._bar.update()

  def write(
    self, step: int, features: Mapping[str, jax.Array], found: Mapping
  ) -> None:
    """Writes an entry, and says so when the run has collapsed.

    Args:
      step: the number of steps done.
      features: of the last one, see `step.make_train_step`.
      found: scores of the online probe, if it has run.

    Raises:
      InputError: loss or gradient was not finite since the last one.
    """
    fetched = jax.device_get(self._metrics)
    losses = [float(metrics["loss"]) for metrics in fetched]
    # A gradient that is not finite has spoilt the parameters, too.
    sound = [np.isfinite(m["loss"] + m["gradient_norm"]) for m in fetched]
    if not all(sound):
      raise InputError(
        "loss or gradient is no finite number at step"
        f" {step - len(sound) + 1 + sound.index(False)}, training has diverged:"
        " lower --config.optimizer.learning_rate or lengthen the warm-up, in a"
        " new workdir"
      )
    entry = {
      name: float(np.mean([metrics[name] for metrics in fetched]))
      for name in fetched[0]
    }
    entry |= {
      k: float(v) for k, v in jax.device_get(describe(**features)).items()
    }
    entry |= {name: float(rate(step - 1)) for name, rate in self._rates.items()}
    entry |= found
    seconds = time.perf_counter() - self._began
    training = seconds - self._times["probing"]
    entry["segments_per_second"] = len(losses) * self._segments / training
    entry |= {name: spent / seconds for name, spent in self._times.items()}
    # Entries off the grid, of a signal or a probe, would be counted twice.
    if step % self._lengths["log_every"] == 0:
      self._entries.append({"step": step} | entry)
    before = self._verdict
    self._verdict = collapse.watch(
      self._entries,
      task=self._config.pretext.name,
      warmup=self._lengths["warmup"],
    )
    entry["collapsed"] = float(self._verdict is not None)
    self._write(step, entry)
    self._bar.set_postfix_str(
      f"loss {entry['loss']:.3f}, {entry['segments_per_second']:.0f} segments/s"
    )
    if self._verdict and not before and hosts.is_first():
      # Not by the logger: Orbax's chatter is silenced there.
      self._bar.write(f"warning: {self._verdict}", file=sys.stderr)
    self._losses += losses
    self._metrics = []
    self._start_clocks()

  def stop_if_collapsed(self) -> None:
    """Ends a run that has collapsed, if the config asks for it.

    Raises:
      InputError: it has.
    """
    if self._verdict and self._config.on_collapse == "stop":
      raise InputError(self._verdict)

  def loss_since_save(self) -> float:
    """Returns the mean loss of the steps since the last call."""
    mean = float(np.mean(self._losses))
    self._losses = []
    return mean
