"""Ctrl-C: two seconds, exit code 130, and nobody stays behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
from test_commands import (  # noqa: F401 (the fixture)
  environment,
  pretraining,
  wait_for_metrics,
)

from ssl_music import checkpoint

# What a command may be at when Ctrl-C comes. A line on stdout tells that it is.
BUSY = {
  "deaf": """
def command():  # as in a compiler
  print("busy", flush=True)
  hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
""",
  "swallowing": """
def command():
  print("busy", flush=True)
  while True:
    try:
      time.sleep(60)
    except BaseException:
      pass
""",
  "swallowing while unwinding": """
def command():
  with interrupts.unwinding():
    print("busy", flush=True)
    while True:
      try:
        time.sleep(60)
      except BaseException:
        pass
""",
  "making another error of it": """
def command():
  with interrupts.unwinding():
    try:
      print("busy", flush=True)
      time.sleep(60)
    except BaseException as error:
      raise ValueError("no wonder") from error
""",
  "decoding": """
def command():
  with workers.pool(2) as run:
    for _ in run(time.sleep, [0.1] + [60] * 4):
      print("busy", flush=True)
""",
  "saving": """
def command():
  with workdir.stop_on_signals() as requested:
    requested()
    print("busy", flush=True)
    while not requested():
      pass
    print("saving", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
""",
}

BUSY_MACHINE = 2  # times as slow, with other tests beside these


def start(script):
  head = "import hashlib, sys, time\n"
  if "workdir" in script:
    head += "from ssl_music import workdir\n"
  head += "from ssl_music import errors, interrupts\n"
  head += "from ssl_music.data import workers\n"
  tail = '\nif __name__ == "__main__":\n  errors.report(command)\n'
  return begin([sys.executable, "-c", head + script + tail])


def begin(command, **options):
  """Starts a command in a session of its own."""
  return subprocess.Popen(
    command,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    **options,
  )


def leaves(process, code=130, everyone=False):
  """Sends Ctrl-C, to all as a terminal does or not; returns what was said."""
  began = time.monotonic()
  (os.killpg if everyone else os.kill)(process.pid, signal.SIGINT)
  _, said = process.communicate(timeout=20)
  taken = time.monotonic() - began
  assert process.returncode == code, said
  assert taken < 2 * BUSY_MACHINE
  assert "Traceback" not in said
  while (
    subprocess.run(
      ["pgrep", "-s", str(process.pid)], stdout=subprocess.DEVNULL
    ).returncode
    == 0
  ):
    assert time.monotonic() - began < 5 * BUSY_MACHINE
    time.sleep(0.05)
  return said


@pytest.mark.parametrize("busy", sorted(BUSY.keys() - {"saving"}))
@pytest.mark.parametrize("everyone", [False, True])
def test_it_leaves_whatever_it_is_at(busy, everyone):
  process = start(BUSY[busy])
  assert process.stdout.readline() == "busy\n"
  assert "interrupted" in leaves(process, everyone=everyone)


def test_the_second_leaves_at_once_what_the_first_has_saved():
  process = start(BUSY["saving"])
  assert process.stdout.readline() == "busy\n"
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == "saving\n"
  leaves(process)


@pytest.mark.parametrize("module", ["main", "embed", "prepare", "report"])
def test_it_leaves_while_it_imports(module):
  process = begin(
    [sys.executable, "-X", "importtime", "-m", f"ssl_music.{module}"]
  )
  for line in process.stderr:
    if "importlib.metadata" in line:  # which the package begins with
      break
  leaves(process)


def test_it_leaves_while_it_compiles(environment, tmp_path):  # noqa: F811
  settings = environment | {
    "JAX_LOG_COMPILES": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
  }
  process = pretraining(settings, tmp_path / "run", "--config.data.workers=1")
  for line in process.stderr:
    if "Compiling jit(step)" in line:
      break
  else:
    raise AssertionError("it has not compiled")
  leaves(process)


def test_later_it_saves_first(environment, tmp_path):  # noqa: F811
  workdir = tmp_path / "run"
  process = pretraining(
    environment,
    workdir,
    "--config.save_every_steps=60",
    "--config.data.workers=1",
  )
  wait_for_metrics(workdir, 1)
  os.killpg(process.pid, signal.SIGINT)
  _, said = process.communicate(timeout=60)
  assert process.returncode == 130, said
  assert "stopped by SIGINT at step" in said
  assert "Traceback" not in said
  step, _ = checkpoint.load(workdir)
  assert 2 <= step < 60


@pytest.mark.parametrize("threads", ["some", "no more"])
def test_an_error_does_not_wait_for_what_is_unfinished(threads):
  process = start(f"""
import threading

def command():
  threading.Thread(target=time.sleep, args=(60,)).start()
  if {threads == "no more"}:
    def fail(self):
      raise RuntimeError("can't start new thread")
    threading.Thread.start = fail
  raise errors.InputError("no room")
""")
  _, said = process.communicate(timeout=20)
  assert (process.returncode, said) == (2, "error: no room\n")


def test_a_reader_that_has_left():
  process = start("""
def command():
  sys.stdin.read()
  print("late")
""")
  process.stdout.close()
  process.stdin.close()
  assert process.stderr.read() == ""
  assert process.wait() == 141


def test_a_command_without_stdout():
  process = start("""
def command():
  sys.stdin.read()
  sys.stdout = None
  print("unheard")
""")
  out, said = process.communicate(timeout=20)
  assert (process.returncode, out, said) == (0, "", "")
