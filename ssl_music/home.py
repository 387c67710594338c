"""The user's home folder, where there is one."""

import os

from ssl_music.errors import InputError


def expanded(text: str) -> str:
  """Returns a path whose ~ or ~user is a folder, and any other text as it is.

  A shell leaves the ~ of `--out=~/x` alone.

  Raises:
    InputError: nobody knows this home.
  """
  if not text.startswith("~"):
    return text
  path = os.path.expanduser(text)  # noqa: PTH111 (a str, which may be no path)
  if path == text and (text + "/").startswith("~/"):
    raise InputError(
      f"no home folder is known for {text}: set HOME, or give a path without ~"
    )
  return path
