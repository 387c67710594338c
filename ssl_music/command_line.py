"""What all command lines share: spelling of options, numbers, errors."""

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from ssl_music import home
from ssl_music.errors import InputError


class Parser(argparse.ArgumentParser):
  """A parser that takes no abbreviations and explains errors in a sentence.

  Options are written with underscores; with dashes they are the same.
  """

  def __init__(self, **settings: Any):
    super().__init__(allow_abbrev=False, **settings)

  def parse_known_args(
    self,
    args: Sequence[str] | None = None,
    namespace: argparse.Namespace | None = None,
  ) -> tuple[argparse.Namespace, list[str]]:
    """Parses arguments; one that nobody knows is an error, also a subparser's.

    Raises:
      InputError: what is wrong with them.
    """
    args = sys.argv[1:] if args is None else args
    known = self._option_string_actions
    found, left = super().parse_known_args(spelled(args, known), namespace)
    if left:
      self.error(unknown(left[0], known))
    return found, []

  def error(self, message: str) -> NoReturn:
    """Raises an `InputError` that names the help of this (sub)command."""
    raise InputError(f"{message} (see {self.prog} --help)")


def spelled(arguments: Sequence[str], known: Collection[str]) -> list[str]:
  """Returns arguments whose options are spelled as they are known.

  Args:
    arguments: of a command line; --max-seconds=5 is --max_seconds=5, and the ~
      of --out=~/x is the home folder.
    known: options, with their dashes in front.
  """
  result = []
  for argument in arguments:
    name, mark, value = argument.partition("=")
    same = f"--{name[2:].replace('-', '_')}"
    if name.startswith("--") and name not in known and same in known:
      name = same
    result.append(f"{home.expanded(name)}{mark}{home.expanded(value)}")
  return result


def unknown(argument: str, known: Collection[str]) -> str:
  """Says that there is no such option, and which one was perhaps meant."""
  name = argument.partition("=")[0]
  if not name.startswith("-"):
    return f"unexpected argument {argument!r}"
  return f"no option {name}{did_you_mean(nearest(name, known))}"


def nearest(name: str, known: Collection[str]) -> list[str]:
  """Returns the names, three at most, that begin with one or are like it."""
  begun = sorted(one for one in known if one.startswith(name))
  return begun[:3] or difflib.get_close_matches(name, known, cutoff=0.7)


def did_you_mean(names: Sequence[str]) -> str:
  """Returns ": did you mean A or B?", or "" of no names."""
  return f": did you mean {' or '.join(names)}?" if names else ""


def natural(text: str) -> int:
  """Returns an option's number of 0 or more.

  Raises:
    ArgumentTypeError: it is none.
  """
  if not re.fullmatch("[0-9]+", text):
    raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
  return int(text)


def positive(text: str) -> int:
  """Returns an option's number of 1 or more.

  Raises:
    ArgumentTypeError: it is none.
  """
  if not re.fullmatch("0*[1-9][0-9]*", text):
    raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
  return int(text)


def seconds(text: str) -> float:
  """Returns an option's number of seconds.

  Raises:
    ArgumentTypeError: it is none.
  """
  if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text):
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
  return float(text)
