"""What a command does before it imports anything that takes long.

`python -m ssl_music.NAME` imports the package first, and so do the processes
that a command starts.
"""

import os
import sys

from ssl_music import interrupts


def begin() -> None:
  """Makes a command read and write UTF-8, and leave at Ctrl-C."""
  # While `python -m` imports the package, the first argument is "-m"; later, as
  # in a command's processes, it is the path of the command's module.
  by_name = any(word.startswith("ssl_music.") for word in sys.orig_argv)
  if sys.argv[0] == "-m" and by_name:
    _restart_in_utf8()
    # Python's tracker removes what a process that leaves at once has shared,
    # and would warn of it.
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    os.environ.setdefault("PYTHONWARNINGS", quiet)
    interrupts.leave_at_once()
  elif os.path.dirname(sys.argv[0]) == os.path.dirname(__file__):  # noqa: PTH120
    interrupts.leave_at_once()


def _restart_in_utf8() -> None:
  """Starts Python again in its UTF-8 mode, unless the locale is UTF-8.

  Names of files, tables and texts are then the same everywhere (Python 3.15
  does so by itself, PEP 686). What is printed keeps the locale's encoding;
  letters that it lacks become escapes.
  """
  encoding = getattr(sys.stdout, "encoding", "utf-8")
  settings = {"PYTHONUTF8": "1"}
  settings["PYTHONIOENCODING"] = f"{encoding}:backslashreplace"
  plain = {sys.getfilesystemencoding(), encoding.lower()} == {"utf-8"}
  begun = settings.items() <= os.environ.items()
  if plain or begun or sys.flags.ignore_environment:
    return
  os.environ.update(settings)
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
