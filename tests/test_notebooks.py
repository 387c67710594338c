"""Every notebook of colab/, from top to bottom, on demo music."""

import ast
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ("pretrain", "probe", "embed_and_search")  # each uses the last's


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("notebooks")


def notebook(name):
  return nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)


def shorten(cell, folder):
  """Replaces values in a cell that assigns parameters."""
  values = {
    "STEPS": 2,
    "PROBE_STEPS": 20,
    "DATA_DIR": str(folder / "data"),
    "RUNS": str(folder / "runs"),
    "ENCODER": str(folder / "runs" / "contrastive"),
    "MUSIC": str(folder / "music"),
    "VECTORS": str(folder / "vectors"),
  }
  lines = []
  for statement in ast.parse(cell.source).body:
    name = statement.targets[0].id
    value = values.get(name, ast.literal_eval(statement.value))
    lines.append(f"{name} = {value!r}")
  return "\n".join(lines)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_top_to_bottom(name, folder, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("MPLBACKEND", "agg")
  found = notebook(name)
  (parameters,) = [
    cell
    for cell in found.cells
    if "parameters" in cell.metadata.get("tags", ())
  ]
  parameters.source = shorten(parameters, folder)
  client = NotebookClient(
    found, timeout=600, resources={"metadata": {"path": str(ROOT)}}
  )
  client.execute(env=dict(os.environ))
  shown = json.dumps([cell.get("outputs", []) for cell in found.cells])
  if name == "embed_and_search":
    assert "<html" in shown
    assert (folder / "vectors" / "embeddings.json").is_file()
  else:
    assert "<svg" in shown or "data:image" in shown


def test_hold_no_logic():
  names = {file.stem for file in (ROOT / "colab").glob("*.ipynb")}
  assert names == set(NOTEBOOKS)
  for name in NOTEBOOKS:
    for cell in notebook(name).cells:
      if cell.cell_type == "code" and "%" not in cell.source:
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.While}, name
      assert not cell.get("outputs"), f"{name} is saved with its outputs"
