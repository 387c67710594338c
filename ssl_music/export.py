"""Takes an encoder away: `python -m ssl_music.export WORKDIR --out=DIR`."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ssl_music import (
  bundle,
  command_line,
  disk,
  interrupts,
  lock,
  model_card,
  parallel,
  provenance,
  seal,
  tagger,
  weights,
)
from ssl_music.errors import InputError, report


def main(arguments: list[str] | None = None) -> None:
  """Exports the encoder that the command line names.

  Raises:
    InputError: there is no such encoder, or it cannot be exported.
  """
  parser = command_line.Parser(
    prog="python -m ssl_music.export",
    description="Write an encoder to a folder that needs nothing of ssl_music:"
    " a program for jax alone, its weights in our names and in the published"
    " ones, a tag head if there is one, a model card, and a check of it all.",
  )
  parser.add_argument(
    "source",
    metavar="WORKDIR",
    type=Path,
    help="of a pre-training, a fine-tuning or a probe (with its head); or a"
    " checkpoint of the authors, or a .safetensors file",
  )
  parser.add_argument(
    "--out", type=Path, required=True, metavar="DIR", help="the new folder"
  )
  parser.add_argument(
    "--checkpoint",
    default="latest",
    help="of a pre-training: latest (default), best, or a step",
  )
  parser.add_argument(
    "--network",
    choices=("student", "teacher"),
    help="of a task with two networks (default: student)",
  )
  parser.add_argument(
    "--license", default="", metavar="TEXT", help="for the model card"
  )
  parser.add_argument(
    "--scores",
    type=Path,
    nargs="+",
    action="extend",
    default=[],
    metavar="PROBE_WORKDIR",
    help="probes of it, for the model card (default: those that lie beside it)",
  )
  options = parser.parse_args(arguments)
  parallel.start()
  with interrupts.unwinding():
    made = export(
      options.source,
      options.out,
      checkpoint=options.checkpoint,
      network=options.network,
      license=options.license,
      scores=options.scores,
    )
  for name, size in made["files"].items():
    gap = made["checked"]["found"].get(name)
    print(
      f"{options.out / name}: {size / 1e6:.2f} MB"
      + ("" if gap is None else f", checked, difference {gap:.1e}")
    )
  if not options.license:
    print(f"no --license was given: {options.out / 'README.md'} says so")


def export(
  source: Path,
  out: Path,
  *,
  checkpoint: str | int = "latest",
  network: str | None = None,
  license: str = "",
  scores: Sequence[Path] = (),
) -> dict[str, Any]:
  """Writes an encoder into a new folder, checked, or leaves nothing.

  Args:
    source: as of `weights.read`.
    out: the folder; its parents are made.
    checkpoint: of a pre-training, "latest", "best" or a step.
    network: "student" or "teacher", where there are two; None is the student,
      and a probe's.
    license: for the model card.
    scores: workdirs of probes, for the card; none are looked for beside the
      source.

  Returns:
    what the card was made of, see `model_card.text`.

  Raises:
    InputError: there is no such encoder, the folder exists or cannot be
      written, or an artefact does not compute what the encoder does.
  """
  source, out = Path(source), Path(out)
  if out.exists() or out.is_symlink():
    raise InputError(f"{out} exists: give a new folder as --out")
  found = _read(source, checkpoint, network)
  facts = {
    "name": out.absolute().name,
    "source": _without_paths(found.described),
    "trainings": provenance.trainings(found.described),
    "scores": provenance.scores(source, found.described, scores),
    "license": license.strip(),
  }
  beside = out.absolute().with_name(f".{out.absolute().name}.partial")
  with (
    disk.explained("write", out, option="--out"),
    lock.hold(beside, "exporting to", "give another --out"),
  ):
    try:
      folder = beside / "export"
      shutil.rmtree(folder, ignore_errors=True)  # a killed process's
      folder.mkdir()
      made = _fill(folder, found, facts)
      folder.rename(out)
    finally:
      shutil.rmtree(beside, ignore_errors=True)
  return made


def _read(
  source: Path, checkpoint: str | int, network: str | None
) -> weights.Weights:
  """Reads the encoder; a network that its source is not of is an error."""
  found = weights.read(source, checkpoint, network or "student")
  has = found.described["network"]
  if network and network != has:
    raise InputError(
      f"--network={network} is not what {source} is of, the {has}: leave it"
      " out, or give the pre-training"
    )
  return found


def _without_paths(described: Mapping[str, Any]) -> dict[str, Any]:
  """What an encoder says of itself, without this machine's folders."""
  return {k: v for k, v in described.items() if k != "encoder"}


def _fill(
  folder: Path, found: weights.Weights, facts: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes everything into a folder; returns what the card was made of."""
  checked = bundle.write(folder, found)
  tags = tagger.load(folder)["tags"] if found.head is not None else []
  config = {"format": weights.FORMAT, "job": "export", **found.settings}
  config |= {"tags": tags, **facts}
  bundle.write_json(folder / "config.json", config)
  about = {
    **facts,
    "settings": found.settings,
    "parameters": sum(
      x.size for x in jax.tree.leaves(found.variables["params"])
    ),
    "tags": tags,
    "checked": checked,
    "files": {
      file.name: file.stat().st_size for file in sorted(folder.iterdir())
    },
  }
  (folder / "README.md").write_text(model_card.text(about), "utf-8")
  seal.close(folder, sorted(file.name for file in folder.iterdir()))
  return about


if __name__ == "__main__":
  report(main)
