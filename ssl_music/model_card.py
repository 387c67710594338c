"""The model card of an export: its README.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from ssl_music import results
from ssl_music.metrics import METRICS

MISSING_LICENCE = (
  "**Missing.** Whoever exported this encoder has not said under which licence"
  " it may be used. Until that is known, do not pass it on; its licence depends"
  " on that of the audio it was trained on, too. (Export again with"
  " `--license`, or write it here.)"
)


def text(about: Mapping[str, Any]) -> str:
  """Returns a card in Markdown.

  Args:
    about: {"name"; "settings", of `weights.Weights`; "parameters", their
      number; "source", what that says of the encoder; "trainings" and "scores",
      of `provenance`; "tags", () without a head; "license", or ""; "files":
      {name: bytes}; "checked", what `bundle.write` returns}.
  """
  settings = about["settings"]
  seconds, model = settings["data"]["seconds"], settings["model"]
  parts = [
    f"# {about['name']}",
    f"A music encoder: {seconds:g} s of audio in, a vector of"
    f" {model['output']} numbers out. A small ResNet with attention pooling on"
    f" a log-mel spectrogram, {about['parameters']:,} parameters, computed in"
    f" {model['dtype']}. {_source(about['source'])} Exported by ssl_music"
    f" {about['checked']['versions']['ssl_music']}.",
    "## Licence",
    about["license"] or MISSING_LICENCE,
    "## Input and output",
    _contract(settings),
    "## Use",
    _use(about),
    "## Training",
    _trainings(about["trainings"]),
    "## Scores",
    _scores(about["scores"]),
    "## Intended use",
    _INTENDED,
    "## What was checked",
    _checked(about),
  ]
  return "\n\n".join(parts) + "\n"


def _source(source: Mapping[str, Any]) -> str:
  if "pretext" not in source:
    return "The weights came as a file."
  network = f", {source['network']} network" if "network" in source else ""
  return (
    f"Training: {source['pretext']}, step {source['step']}{network}; see below."
  )


def _contract(settings: Mapping) -> str:
  seconds, front_end = settings["data"]["seconds"], settings["frontend"]
  bands = ", ".join(f"{name} {value}" for name, value in front_end.items())
  return "\n".join(
    [
      f"- In: float32 [batch, {round(16000 * seconds)}], any batch: segments of"
      f" {seconds:g} s, 16 kHz, mono (the mean of the channels), the *track's*"
      " peak at 1 (divide the whole track by its largest absolute value before"
      " cutting it). Of int16 samples, divide by 32767.",
      f"- Out: float32 [batch, {settings['model']['output']}], not normalised.",
      "- A track's vector is the mean of its segments' vectors. When it was"
      " trained and scored, segments far quieter than their track (a root mean"
      " square under 0.47 of the track's) were left out.",
      f"- Front end, which is part of the encoder: {bands}.",
    ]
  )


def _use(about: Mapping[str, Any]) -> str:
  samples = round(16000 * about["settings"]["data"]["seconds"])
  versions = about["checked"]["versions"]
  blocks = [
    "**jax alone** (`pip install jax flatbuffers`), on CPU, CUDA or TPU."
    " `encoder.stablehlo` holds front end, network and weights. It was exported"
    f" by jax {versions['jax']}: a newer jax reads it (for half a year after,"
    " jax promises that), an older one may not. Differentiation is not kept.",
    _python(f"""
import numpy as np
from jax import export

with open("encoder.stablehlo", "rb") as file:
  embed = export.deserialize(file.read()).call
segments = np.zeros((3, {samples}), np.float32)
vectors = np.asarray(embed(segments))
"""),
    "**ssl_music**, from files of any format and length:",
    _python("""
import ssl_music

encoder = ssl_music.load("THIS_FOLDER")
vectors = encoder.embed("song.mp3")
"""),
    "**PyTorch**: `encoder_published.safetensors` has the names of the paper's"
    " authors (arXiv:2404.09177), constants of the front end included. Their"
    " backbone, built with these sizes"
    f" ({_sizes(about['settings'])}), takes it as it is:",
    _python("""
from safetensors.torch import load_file

state = load_file("encoder_published.safetensors")
backbone.load_state_dict(state, strict=True)
"""),
    "**The weights alone**, in the names and layouts of ssl_music's Flax"
    " network; the config lies in the file's metadata:",
    _python("""
from safetensors.numpy import load_file

weights = load_file("encoder.safetensors")
"""),
  ]
  if about["tags"]:
    blocks += [
      f"**Tags.** `head.npz` is a trained head for {len(about['tags'])} tags:"
      ' `encoder.tag("song.mp3")` with ssl_music, or with NumPy, in this'
      " folder, of a track's vectors:",
      _python("""
import numpy as np
import verify

probabilities = verify.tag(np.load("head.npz"), vectors)
"""),
      "The tags: " + ", ".join(f"`{tag}`" for tag in about["tags"]) + ".",
    ]
  return "\n\n".join(blocks)


def _sizes(settings: Mapping) -> str:
  model = settings["model"]
  shown = [f"{name} {model[name]}" for name in ("width", "heads", "output")]
  return ", ".join([*shown, f"blocks {tuple(model['depths'])}"])


def _python(code: str) -> str:
  return f"```python\n{code.strip()}\n```"


def _trainings(found: Sequence[Mapping[str, Any]]) -> str:
  if not found:
    return "Not known: the weights came as a file, which says nothing of it."
  rows = [["task", "data", "steps", "audio heard", "seed"]]
  for one in found:
    heard = one["steps"] * one["batch"] * one["views"] * one["segment_seconds"]
    rows.append(
      [
        f"{one['task']} ({one['network']} network)",
        "; ".join(map(_data_set, one["data"])),
        f"{one['steps']}, of {one['batch']} × {one['views']} segments of"
        f" {one['segment_seconds']:g} s",
        f"{heard / 3600:.1f} h",
        str(one["seed"]),
      ]
    )
  return _table(rows)


def _data_set(data: Mapping[str, Any]) -> str:
  size = "size not known"
  if data["hours"] is not None:
    size = f"{data['tracks']:,} tracks, {data['hours']:.1f} hours"
  return f"{data['name']} ({', '.join(data['splits'])}): {size}"


def _scores(found: Sequence[Mapping[str, Any]]) -> str:
  if not found:
    return "None were given with the export, and none were found beside it."
  head = ["name", "data set (hash of splits and tags)", "test tracks", "of"]
  rows = [[*head, *(results.TITLES[metric] for metric in METRICS)]]
  for one in found:
    cells = [
      f"{one['test'][metric]:.3f} [{low:.3f}, {high:.3f}]"
      for metric in METRICS
      for low, high in [one["interval"][metric]]
    ]
    hidden = "-".join(map(str, one["hidden"])) if one["hidden"] else "linear"
    rows.append(
      [
        one["name"],
        results.data_name(one),
        f"{one['tracks']['test']}{results.missing_test(one)}",
        f"{hidden}, {results.averaging(one)}, {one['seeds']} seeds",
        *cells,
      ]
    )
  note = (
    "In brackets the 95 % interval over test tracks, by bootstrap. Only scores"
    " with the same hash can be compared."
  )
  return f"{_table(rows)}\n\n{note}"


def _checked(about: Mapping[str, Any]) -> str:
  checked = about["checked"]
  versions = ", ".join(f"{k} {v}" for k, v in checked["versions"].items())
  rows = [["file", "bytes", "difference", "allowed"]]
  for name, size in about["files"].items():
    gap, most = (checked[key].get(name) for key in ("found", "allowed"))
    shown = ["" if x is None else f"{x:.1e}" for x in (gap, most)]
    if name in checked["tensors"]:
      shown = ["none", "none"]
    rows.append([f"`{name}`", f"{size:,}", *shown])
  dtype = about["settings"]["model"]["dtype"]
  rounding = "" if dtype == "float32" else _ROUNDING.format(dtype)
  return (
    "Every artefact was loaded again, `encoder.stablehlo` in a process of its"
    " own on the CPU with jax alone, and compared with the network on eight"
    " segments made by rule, faint, silent and clipped ones among them:"
    " embeddings by ‖a − b‖ / ‖b‖, probabilities of tags by their difference,"
    f" weights bit by bit.{rounding} `python verify.py` repeats it;"
    f" `verify.json` has the rule.\n\n{_table(rows)}\n\nWith {versions}."
  )


_ROUNDING = (
  " The network computes in {}, whose roundings depend on the order of"
  " sums: allowed is twice its distance from the same network in float32."
)


def _table(rows: Sequence[Sequence[str]]) -> str:
  clean = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
  clean.insert(1, ["---"] * len(rows[0]))
  return "\n".join("| " + " | ".join(row) + " |" for row in clean)


_INTENDED = "\n".join(
  [
    "For research and for sorting one's own music: vectors for tagging, search"
    " and comparison, or to start a training from. Judge it on music like yours"
    " first: nothing here says how it does on other genres, on speech or on"
    " noise than those it was trained and scored on.",
    "",
    "Not for decisions about people, such as whom to pay or to play, and not to"
    " tell who made a recording or whether two are the same.",
  ]
)
