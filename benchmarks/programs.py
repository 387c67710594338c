"""Compiles steps without running them, and reads what they send and hold."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_music import optimizer, parallel, step
from ssl_music.data import audio
from ssl_music.parallel import AXIS
from ssl_music.pretext import PRETEXTS

# Of the schedules, which change no shape.
LENGTHS = {"warmup": 10, "total": 1000, "temperature_warmup": 50}
KINDS = ("all-gather", "reduce-scatter", "all-reduce")
# Quicker code generation; what is sent and held is the same.
_QUICK = {"xla_backend_optimization_level": 0}
_BITS = re.compile(r"\d+")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(
  r"^\s+(?:ROOT )?(?P<name>%?[\w.-]+) = (?P<result>.*?) (?P<kind>[a-z][\w-]*)"
  r"\((?P<operands>[^)]*)\)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# What names arrays, or waits for them, and is no kernel.
_NAMES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_COLLECTIVE = re.compile(
  r"= (?P<result>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all"
  r"|collective-permute|collective-broadcast)(?P<start>-start)?\("
)


class Collective(NamedTuple):
  """A collective of a program, as one device sees it.

  Attributes:
    kind: one of `KINDS`.
    payload: bytes of all devices' results together for an all-gather, of what
      goes in for a reduce-scatter, of the sum for an all-reduce.
  """

  kind: str
  payload: int

  def sent(self, devices: int) -> float:
    """Returns the bytes a device sends, by the ring algorithms."""
    times = 2 if self.kind == "all-reduce" else 1
    return times * self.payload * (devices - 1) / devices


class Kernel(NamedTuple):
  """A kernel of a program's main part.

  Attributes:
    kind: the instruction, such as "fusion" or "copy".
    moved: bytes of its operands and its results.
    cycles: that a TPU's compiler estimates, 0 of another.
  """

  kind: str
  moved: int
  cycles: int


def kernels(program: str) -> list[Kernel]:
  """Returns the kernels of a compiled program's text."""
  sizes, found = {}, []
  for line in _computations(program)["ENTRY"]:
    match = _INSTRUCTION.match(line)
    if not match:
      continue
    size = sum(size for _, size in shapes(match["result"]))
    sizes[match["name"]] = size
    if match["kind"] in _NAMES or match["kind"].endswith("-done"):
      continue
    operands = re.findall(r"%[\w.-]+", match["operands"])
    moved = size + sum(sizes.get(name, 0) for name in operands)
    cycles = _CYCLES.search(line)
    found.append(Kernel(match["kind"], moved, int(cycles[1]) if cycles else 0))
  return found


def collectives(program: str, devices: int) -> list[Collective]:
  """Returns the collectives of a compiled program's text.

  Args:
    program: `as_text()` of a compiled program.
    devices: over all of which they go.

  Raises:
    ValueError: a collective that is not one of `KINDS`, or in the body of a
      loop, of which the text does not say how often it runs.
  """
  found = []
  loops = set(re.findall(r"body=(%[\w.-]+)", program))
  for name, lines in _computations(program).items():
    here = [match for match in map(_COLLECTIVE.search, lines) if match]
    if here and name in loops:
      raise ValueError(f"a collective in {name}, which may run any often")
    for match in here:
      kind = match["kind"]
      if kind not in KINDS:
        raise ValueError(f"no rule for {match[0]}")
      arrays = [size for _, size in shapes(match["result"])]
      if match["start"] and kind == "all-gather":
        arrays = arrays[len(arrays) // 2 :]  # the operands come first
      payload = sum(arrays)
      if kind == "reduce-scatter":
        payload *= devices
      found.append(Collective(kind, payload))
  return found


def largest_array(program: str) -> tuple[str, int]:
  """Returns the largest array that a program's main part makes.

  Args:
    program: `as_text()` of a compiled program.

  Returns:
    its type and shape, such as "f32[2,8]", and its bytes.
  """
  results = (
    line.split(" = ", 1)[1].split("(", 1)[0]
    for line in _computations(program)["ENTRY"]
    if " = " in line and not line.split(" = ", 1)[1].startswith("(")
  )
  return max(
    (shape for result in results for shape in shapes(result)),
    key=lambda shape: shape[1],
  )


def shapes(text: str) -> list[tuple[str, int]]:
  """Returns the arrays named in a text, with their bytes."""
  found = []
  for kind, sizes in _SHAPE.findall(text):
    bits = _BITS.search(kind)
    width = 1 if bits is None else math.ceil(int(bits[0]) / 8)
    count = math.prod(int(size) for size in sizes.split(",") if size)
    found.append((f"{kind}[{sizes}]", width * count))
  return found


def memory(program: jax.stages.Compiled) -> int:
  """Returns the bytes a device holds at most: arguments, results, between."""
  found = program.memory_analysis()
  return (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    + found.temp_size_in_bytes
    - found.alias_size_in_bytes
  )


def compile_step(config: Mapping[str, Any], mesh: Mesh) -> jax.stages.Compiled:
  """Compiles the training step of a config, a plain dict, over a mesh."""
  return lower_step(config, mesh).compile(_QUICK)


def lower_step(
  config: Mapping[str, Any], mesh: Mesh, platform: str | None = None
) -> jax.stages.Lowered:
  """Lowers the training step of a config, a plain dict, over a mesh.

  Args:
    config: a supervised one has as many tags as its head has outputs.
    mesh: of devices that need not be there.
    platform: to lower for, such as "tpu"; None is that of the mesh's devices.
  """
  rates = optimizer.learning_schedules(config, LENGTHS)
  rates |= step.teacher_schedules(config, LENGTHS)
  updates = optimizer.make_optimizer(config, rates)
  # Only shapes: `init_state` compiles what it draws with, which nothing may
  # trace.
  with jax.disable_jit():
    state = jax.eval_shape(lambda: step.init_state(config, updates))
  samples = round(config["data"]["seconds"] * audio.SAMPLE_RATE)
  shape = config["views"], config["batch"], samples
  batch = {"views": jax.ShapeDtypeStruct(shape, jnp.int16)}
  pretext = config["pretext"]
  if PRETEXTS[pretext["name"]].labels:
    shape = 1, config["batch"], pretext["head"][-1]
    batch["labels"] = jax.ShapeDtypeStruct(shape, jnp.int8)
  program = step.map_train_step(config, updates, rates, mesh)
  traced = program.trace(
    _on(state, mesh, PartitionSpec()),
    _on(batch, mesh, PartitionSpec(None, AXIS)),
  )
  return traced.lower(lowering_platforms=platform and (platform,))


def compile_loss(config: Mapping[str, Any], mesh: Mesh) -> jax.stages.Compiled:
  """Compiles a task's loss and its gradient for the heads' outputs alone."""
  pretext, whole = config["pretext"], PartitionSpec()
  divided = PartitionSpec(None, AXIS)
  task = PRETEXTS[pretext["name"]]
  shape = config["views"], config["batch"], pretext["head"][-1]
  z = jax.ShapeDtypeStruct(shape, jnp.float32)
  kinds = ("projection", "prediction", "teacher")
  given, specs = {}, {}
  if task.init_memory:
    memory = task.init_memory(pretext)
    given["memory"], specs["memory"] = memory, dict.fromkeys(memory, whole)
  if task.draws:
    given["key"], specs["key"] = jax.random.key(0), whole
  for rate in task.rates:
    given[rate], specs[rate] = jax.ShapeDtypeStruct((), jnp.float32), whole

  def gradient(features, given):
    loss = lambda features: task.loss(features, pretext, AXIS, **given)[0]
    return jax.grad(loss)(features)

  mapped = parallel.map_step(gradient, mesh, (divided, specs), divided)
  return mapped.lower(dict.fromkeys(kinds, z), given).compile(_QUICK)


def _on(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
  """Returns the shapes of a tree, with their place on the mesh."""
  sharding = NamedSharding(mesh, spec)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )


def _computations(program: str) -> dict[str, list[str]]:
  """Returns the lines of each computation; "ENTRY" is the main one."""
  found, lines = {}, []
  for line in program.splitlines():
    if line.endswith("{") and not line.startswith((" ", "HloModule")):
      lines = found.setdefault(line.split(maxsplit=1)[0], [])
    elif line.startswith(" "):
      lines.append(line)
  return found
