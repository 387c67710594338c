"""Two programs that take a step and say what they did until then.

Children of `benchmarks.start`. The last line each prints is a JSON object:
seconds and seconds of processor time at the end of every part.

  python -m benchmarks.start_parts command FLAGS OF ssl_music.main
  python -m benchmarks.start_parts plain PRESET BATCH
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# The parent's clock when it started this process; imports count from there.
BEGAN = float(os.environ.get("BENCHMARK_BEGAN", time.time()))
_ends: dict[str, tuple[float, float]] = {}


def end(part: str) -> None:
  """Notes that a part of the start has ended."""
  _ends[part] = time.time() - BEGAN, time.process_time()


def report() -> None:
  """Prints when each part has ended."""
  print(json.dumps(_ends), flush=True)


def durations(ends: dict[str, list[float]]) -> dict[str, np.ndarray]:
  """Turns the ends of parts into their durations, and adds that of all."""
  times = np.array([[0.0, 0.0], *ends.values()])
  found = dict(zip(ends, np.diff(times, axis=0), strict=True))
  return found | {"all": times[-1]}


class Timed:
  """A jitted function, and what it becomes, that notes its two halves."""

  def __init__(self, program: Any):
    self._program = program

  def lower(self, *args: Any) -> "Timed":
    """Traces the function."""
    lowered = self._program.lower(*args)
    end("tracing")
    return Timed(lowered)

  def compile(self) -> Any:
    """Compiles what was traced."""
    compiled = self._program.compile()
    end("compiling")
    return compiled


def command(argv: list[str]) -> None:
  """Runs the command until its first step is done."""
  from ssl_music import main, step, train

  end("imports")
  init_state, compile_step = step.init_state, train._compile

  def timed_init(*args: Any) -> step.State:
    import jax

    end("data set")
    state = jax.block_until_ready(init_state(*args))
    end("initial state")
    return state

  def timed_compile(config: Any, run_step: Any, *args: Any) -> Callable:
    import jax

    run = compile_step(config, Timed(run_step), *args)

    def first(*args: Any) -> None:
      end("first batch")
      jax.block_until_ready(run(*args))
      end("first step")
      report()
      raise SystemExit(0)

    return first

  step.init_state, train._compile = timed_init, timed_compile
  sys.argv = ["ssl_music.main", *argv]
  main.report(lambda: main.app.run(main.main, flags_parser=main._parse))


def plain(preset: str, batch: int) -> None:
  """Takes a step as a short script of Flax and optax would.

  The same front end, network, head and batch of contrastive, on one device and
  on noise; no data set, no schedules, no augmentation, nothing saved.
  """
  import importlib

  import jax
  import jax.numpy as jnp
  import optax

  from ssl_music import encoder
  from ssl_music.pretext import contrastive

  end("imports")
  get_config = importlib.import_module("configs.contrastive").get_config
  config = get_config(preset).to_dict()
  samples = round(16_000 * config["data"]["seconds"])
  rng = np.random.default_rng(0)
  views = rng.integers(-9999, 9999, (2, batch, samples), np.int16)
  end("data set")
  backbone, head = encoder.backbone(config), encoder.head(config)
  optimizer = optax.adamw(1e-3)

  @jax.jit
  def init(key, views):
    keys = jax.random.split(key)
    mel = encoder.spectrogram(config, views[0, :2])
    embedding, first = backbone.init_with_output(keys[0], mel, train=True)
    second = head.init(keys[1], embedding, train=True)
    networks = {
      kind: {"backbone": first[kind], "head": second[kind]}
      for kind in ("params", "batch_stats")
    }
    return networks, optimizer.init(networks["params"])

  def loss_of(params, stats, views):
    def apply(module, name, x):
      y, changed = module.apply(
        {"params": params[name], "batch_stats": stats[name]},
        x,
        train=True,
        mutable=["batch_stats"],
      )
      return y, changed["batch_stats"]

    mel = encoder.spectrogram(config, views.reshape(-1, samples))
    embedding, first = apply(backbone, "backbone", mel)
    z, second = apply(head, "head", embedding)
    z = z.reshape(2, batch, -1)
    loss, _ = contrastive.nt_xent(z, config["pretext"]["temperature"])
    return loss, {"backbone": first, "head": second}

  @jax.jit
  def train_step(networks, opt_state, views):
    params, stats = networks["params"], networks["batch_stats"]
    gradient = jax.value_and_grad(loss_of, has_aux=True)
    (loss, stats), grads = gradient(params, stats, views)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return {"params": params, "batch_stats": stats}, opt_state, loss

  networks, opt_state = jax.block_until_ready(init(jax.random.key(0), views))
  end("initial state")
  lowered = train_step.lower(networks, opt_state, jnp.asarray(views))
  end("tracing")
  run = lowered.compile()
  end("compiling")
  views = jnp.asarray(views)
  end("first batch")
  jax.block_until_ready(run(networks, opt_state, views))
  end("first step")
  report()


if __name__ == "__main__":
  if sys.argv[1] == "command":
    command(sys.argv[2:])
  else:
    plain(sys.argv[2], int(sys.argv[3]))
