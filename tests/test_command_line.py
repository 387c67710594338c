import argparse
import importlib
import sys

import pytest

from ssl_music import command_line, errors, interrupts
from ssl_music.errors import InputError


@pytest.fixture
def parser():
  parser = command_line.Parser(prog="tool")
  folder = parser.add_subparsers(required=True).add_parser("folder")
  folder.add_argument("--max_seconds", type=command_line.seconds)
  folder.add_argument("--sample", type=command_line.natural)
  folder.add_argument("--runner_options")
  return parser


def test_dashes_and_underscores_are_the_same(parser):
  for spelling in ("--max-seconds=5", "--max_seconds=5"):
    assert parser.parse_args(["folder", spelling]).max_seconds == 5
  assert parser.parse_args(["folder", "--max-seconds", "5"]).max_seconds == 5


def test_values_are_left_as_they_are(parser):
  for given in (["--runner-options=--a-b=1"], ["--runner-options", "--a-b x"]):
    found = parser.parse_args(["folder", *given]).runner_options
    assert found.startswith("--a-b")


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (
      ["folder", "--samp=5"],
      "no option --samp: did you mean --sample? (see tool folder --help)",
    ),
    (
      ["folder", "--max-secs=5"],
      "no option --max-secs: did you mean --max_seconds? (see tool folder"
      " --help)",
    ),
    (["folder", "--other"], "no option --other (see tool folder --help)"),
    (["folder", "stray"], "unexpected argument 'stray' (see tool folder"),
    (["folder", "--sample=x"], "'x' is no number of 0 or more (see tool"),
    (["floder"], "choose from 'folder'"),
    ([], "required"),
  ],
)
def test_errors_are_one_sentence(parser, arguments, said):
  with pytest.raises(InputError) as raised:
    parser.parse_args(arguments)
  assert said in str(raised.value)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  ("command", "arguments"),
  [
    ("prepare", ["folder", "--sourc=a"]),
    ("prepare", ["check", "gtzan", "--source=a", "--samp=5"]),
    ("embed", ["a", "--enc=b", "--out=c"]),
    ("tag", ["a", "--enc=b"]),
    ("search", ["--embed=a"]),
    ("export", ["a", "--ou=b"]),
    ("report", ["a", "--ou=b"]),
  ],
)
def test_no_command_takes_abbreviations(command, arguments):
  module = importlib.import_module(f"ssl_music.{command}")
  with pytest.raises(InputError, match=r"required|did you mean"):
    module.main(arguments)


@pytest.mark.parametrize(
  ("check", "good", "wrong"),
  [
    (command_line.natural, ("0", "12"), ("-1", "x", "", "1.5")),
    (command_line.positive, ("1", "007"), ("0", "-1", "")),
    (command_line.seconds, ("4", "0.5", ".5"), ("nan", "inf", "-1", "")),
  ],
)
def test_numbers(check, good, wrong):
  for text in good:
    assert check(text) == float(text)
  for text in wrong:
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text!r} is no"):
      check(text)


def test_an_error_does_not_control_the_terminal(capsys, monkeypatch):
  monkeypatch.setattr(interrupts, "leave", sys.exit)

  def command():
    raise InputError("no file a\x1b[2J\ud800")

  with pytest.raises(SystemExit, match="2"):
    errors.report(command)
  assert capsys.readouterr().err == "error: no file a\\u001b[2J\\ud800\n"
