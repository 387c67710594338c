"""Kills the finishing of a data set at every line, and runs it again.

`python kills.py FOLDER new|over [all]` prints how many kills there were: at the
first and last time that a line is reached, or at every time. Each is of a
process of its own, forked from this one, which ends without another word: no
`finally`, no buffer.
"""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import tiny

from ssl_music import disk, seal
from ssl_music.data import finish, parts, prepared, records, writer
from ssl_music.errors import InputError

CODE = {file.__file__ for file in (disk, seal, finish, records, writer)}
ROWS = [tiny.tracks()[index] for index in (0, 24)]


def no_load(track):
  raise AssertionError("what was finished is decoded again")


def forked(function):
  """Runs a function in a process of its own; returns its exit code."""
  child = os.fork()
  if not child:
    try:
      function()
    except InputError as error:
      print(error, file=sys.stderr)
      os._exit(2)
    os._exit(0)
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write(data_dir, load, overwrite):
  rows = [row | {"tags": row["tags"][:1]} for row in ROWS]
  tiny.write(data_dir, rows=rows, load=load, overwrite=overwrite)


def stopped(data_dir):
  """Writes all parts, and no more."""
  writer.finish.store = lambda *_: os._exit(9)
  write(data_dir, tiny.load, overwrite=True)


def killed(data_dir, line, overwrite):
  """Goes on, and dies at a line of `CODE`; else lists those it has passed."""
  passed = []

  def trace(frame, event, _):
    if frame.f_code.co_filename not in CODE:
      return None
    if event == "line":
      if len(passed) == line:
        os._exit(9)
      passed.append((frame.f_code.co_filename, frame.f_lineno))
    return trace

  sys.settrace(trace)
  write(data_dir, no_load, overwrite)
  sys.settrace(None)
  Path(data_dir, "lines").write_text(json.dumps(passed))


def content(folder):
  return {file.name: file.read_bytes() for file in folder.iterdir()}


def check_readable(folder, *allowed):
  """Asserts that what is there is one of some data sets."""
  if folder.exists():
    prepared.read(folder)
    assert content(folder) in allowed
  elif replaced := [*folder.parent.glob("replaced.*")]:
    assert content(*replaced) in allowed


def main(base, kind, every):
  os.fsync = lambda _: None  # a kill leaves to the disk what was written
  over = kind == "over"
  start, data_dir = base / "start", base / "data"
  if over:
    tiny.write(start, rows=ROWS[1:])
  assert forked(lambda: stopped(start)) == 9
  [work] = start.glob(f"*/incomplete.{writer.VERSION}/parts")
  (work / f"{parts.ATTEMPT}late").mkdir()  # of an engine's worker
  (work / f"{parts.ATTEMPT}late" / "00000").write_bytes(b"half")
  (work / "00000.todo").write_bytes(b"{}")
  folder = data_dir / "tiny" / writer.VERSION

  def begin():
    shutil.rmtree(data_dir, ignore_errors=True)
    shutil.copytree(start, data_dir)

  begin()
  old = content(folder) if over else {}
  # The parts' files say where they were written: there.
  for file in work.glob(f"*{parts.FINISHED}"):
    text = file.read_text().replace(str(start), str(data_dir))
    file.write_text(text)
  begin()
  assert forked(lambda: killed(data_dir, -1, over)) == 0
  new = content(folder)
  lines = [*map(tuple, json.loads((data_dir / "lines").read_text()))]
  first = {line: number for number, line in reversed([*enumerate(lines)])}
  last = {line: number for number, line in enumerate(lines)}
  chosen = sorted({*first.values(), *last.values()})
  for line in range(len(lines)) if every else chosen:
    begin()
    assert forked(lambda line=line: killed(data_dir, line, over)) == 9
    check_readable(folder, old, new)
    unfinished = folder.with_name(f"incomplete.{writer.VERSION}").exists()
    with contextlib.suppress(InputError):  # "exists", where it was finished
      write(data_dir, no_load if unfinished else tiny.load, over)
    assert content(folder) == new, line
    left = {path.name for path in folder.parent.iterdir()}
    assert left == {".lock", writer.VERSION}, (line, left)
  print(len(lines) if every else len(chosen))


main(Path(sys.argv[1]), sys.argv[2], "all" in sys.argv[3:])
