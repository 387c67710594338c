import csv
import io
import json
import os
import sys

import pytest

from ssl_music import errors, interrupts, text
from ssl_music.errors import InputError

HOSTILE = "a\x1b[2J\x9b31m\n\t\x7f\u202egnp\u2066.wav"


def test_a_terminal_only_shows_what_is_printable():
  shown = text.printable(HOSTILE)
  assert shown.isprintable()
  assert shown.startswith("a\\u001b[2J\\u009b31m\\u000a\\u0009\\u007f\\u202e")
  for name in (
    "é 日 ☃ e\u0301.wav",
    "ن\u200cم",
    "x y",
    "\U0001f469\u200d\U0001f3a4",
  ):
    assert text.printable(name) == name


def test_names_that_are_no_text_become_text():
  name = os.fsdecode(b"caf\xe9.wav")
  assert text.utf8(name) == "caf\\udce9.wav" == text.printable(name)
  assert text.utf8("é\x1b") == "é\x1b"  # a name of a file, not for terminals


def test_json_in_a_line_stays_what_it_is():
  about = {"path": HOSTILE, "tags": ["é"]}
  line = text.printable(json.dumps(about, ensure_ascii=False))
  assert line.isprintable()
  assert json.loads(line) == about


@pytest.mark.parametrize(
  "name", ["=1+1", "+1", "-x", "@a", "\ta", "\ra", "'=1", "''@x", "-x\ny"]
)
def test_formulas_are_text_to_a_spreadsheet(name):
  assert text.cell(name) == f"'{name}"
  assert text.raw_cell(text.cell(name)) == name


@pytest.mark.parametrize("name", ["a=1", "-", "", "'a", "'", "rock/-x.mp3"])
def test_other_cells_stay_what_they_are(name):
  assert text.cell(name) == text.raw_cell(name) == name
  assert text.cells({"name": name, "n": -1.5}) == {"name": name, "n": -1.5}


def test_an_error_shows_names_printable(capsys, monkeypatch):
  monkeypatch.setattr(interrupts, "leave", sys.exit)

  def fails():
    raise InputError(f"{HOSTILE} is no audio: give another")

  with pytest.raises(SystemExit, match="2"):
    errors.report(fails)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.isprintable()
  assert line.endswith(".wav is no audio: give another")


def test_tables_and_terminals_get_hostile_names_by_every_command(tmp_path):
  from ssl_music import report, search, tag

  names = {"path": HOSTILE, "tag": "=cmd()"}
  stream = io.StringIO()
  tag.write_csv(stream)(names["path"], {names["tag"]: 0.5})
  [[_, said, number]] = list(csv.reader(io.StringIO(stream.getvalue())))[1:]
  assert (said, number) == ("'=cmd()", "0.500000")
  for write in (tag.write_table, tag.write_lines):
    stream = io.StringIO()
    write(stream)(names["path"], {"rock": 0.5})
    assert all(map(str.isprintable, stream.getvalue().splitlines()))
  for form in search._FORMATS.values():
    lines = form(HOSTILE, [(HOSTILE, 0.5)]).splitlines()
    assert all(map(str.isprintable, lines))
  assert report._csv([{"a": "=x", "b": -1}]) == "a,b\n'=x,-1\n"
