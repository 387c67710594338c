"""One of several processes: the command, with a network that compiles quickly.

`python tests/host_process.py PROCESS:SIGNAL:STEP FLAGS…` sends the process of
that number a signal at that step; "-" sends none.
"""

import os
import sys

import small
from absl import app

from ssl_music import hosts, main
from ssl_music.errors import report


def surprise(process, signal, step):
  """Makes a process send itself a signal at a step."""
  agreement, calls = hosts.agreement, iter(range(1, 10**9))

  def surprising(mesh):
    agree = agreement(mesh)

    def at_step(number):
      if next(calls) == step and hosts.jax.process_index() == process:
        os.kill(os.getpid(), signal)
      return agree(number)

    return at_step

  hosts.agreement = surprising


if __name__ == "__main__":
  plan = sys.argv.pop(1)
  if plan != "-":
    surprise(*map(int, plan.split(":")))
  hosts._SILENCE, hosts._GRACE = 10, 3  # s: a test has less patience
  with small.backbone():
    report(lambda: app.run(main.main, flags_parser=main._parse))
