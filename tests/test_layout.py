"""Imports point down only, and nothing imports TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "ssl_music"
# Lower rooms first: a module imports from its own room and those above it here.
ROOMS = (
  {"early", "interrupts", "text"},
  {"compiled", "errors", "lock", "metrics", "progress", "unpickler"},
  {"home", "randomness"},
  {"command_line", "template"},
  {"arrays", "disk", "typed"},
  {"seal"},
  {"tagger", "vectors", "neighbours", "pretext"},
  {"results", "published", "page", "drawing", "vector_parts"},
  {"augment", "schedules", "diagnostics", "collapse", "parallel"},
  {"hosts"},
  {"bootstrap", "config", "optimizer", "subsets"},
  {"config_help"},
  {"models", "scoring", "figures", "appendix"},
  {
    "data",
    "encoder",
    "checkpoint",
    "workdir",
    "log",
    "step",
    "trace",
  },
  {"features", "weights", "online", "jobs", "task", "cluster", "summary"},
  {"music_map"},
  {"embeddings", "study", "study_inputs", "pretrained"},
  {"train", "probe", "report", "embed_batches", "embed_files"},
  {"finetune", "sweep"},
  {"benchmark", "bundle", "model_card", "provenance", "verify_export"},
  {"export", "main", "prepare", "embed", "tag", "search"},
)
LEVEL = {name: level for level, room in enumerate(ROOMS) for name in room}


def imports(file):
  """Yields the rooms of ssl_music that a file imports, at any depth."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      parts = name.split(".")
      if parts[0] == "ssl_music":
        yield parts[1]
      assert parts[0] not in ("tensorflow", "torch"), file


def room(file):
  return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files():
  return [
    file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py"
  ]


def test_imports_point_down():
  for file in files():
    for imported in imports(file):
      assert LEVEL[imported] <= LEVEL[room(file)], (file, imported)


def test_data_models_and_losses_do_not_know_each_other():
  apart = {"data", "models", "pretext"}
  for file in files():
    if room(file) in apart:
      assert not set(imports(file)) & (apart - {room(file)}), file


def test_only_one_file_knows_orbax():
  knowing = [f.name for f in files() if "orbax" in f.read_text()]
  assert knowing == ["checkpoint.py"]


def test_nothing_imports_tensorflow_by_the_way():
  script = (
    "import sys, ssl_music.main, ssl_music.prepare, ssl_music.report;"
    "import ssl_music.embed_files, ssl_music.export;"
    "sys.exit('tensorflow' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", script], check=True)


def test_text_is_utf8_whatever_the_locale():
  for file in files():
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
      if not isinstance(node, ast.Call):
        continue
      name = ast.unparse(node.func)
      given = [*node.args, *(keyword.value for keyword in node.keywords)]
      words = [arg.value for arg in given if isinstance(arg, ast.Constant)]
      modes = [w for w in words if isinstance(w, str) and set(w) <= {*"rwxab+"}]
      text = name.endswith(("read_text", "write_text")) or (
        name.split(".")[-1] == "open" and name not in ("os.open", "av.open")
      )
      if text and not any("b" in mode for mode in modes):
        assert "utf-8" in words, (file, node.lineno)


def test_functions_stay_short():
  others = [*(PACKAGE.parent / "tests").rglob("*.py")]
  others += (PACKAGE.parent / "benchmarks").rglob("*.py")
  for file in [*files(), *others]:
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.FunctionDef):
        code = node.body[bool(ast.get_docstring(node)) :]
        length = node.end_lineno - code[0].lineno + 1 if code else 0
        assert length <= 80, (file, node.name, length)
