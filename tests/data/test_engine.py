import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny

from ssl_music import prepare
from ssl_music.data import audio, engine, parts, writer
from ssl_music.data.tracks import find
from ssl_music.errors import InputError, Resumable


def same_files(one, other):
  """Asserts that two folders hold the same, byte for byte."""
  names = sorted(file.name for file in one.iterdir())
  assert sorted(file.name for file in other.iterdir()) == names
  for name in names:
    assert (one / name).read_bytes() == (other / name).read_bytes(), name


def direct():
  return engine.runner("DirectRunner")


def some_tracks(*chosen):
  """So few that each is a part of its own, whose process takes a second."""
  return [tiny.tracks()[index] for index in chosen]


def load(track):
  if track["index"] == 1:
    os._exit(1)
  if track["index"] == 2:
    raise audio.AudioError("broken on purpose")
  return tiny.load(track)


def test_an_engine_writes_what_the_pool_writes(tmp_path):
  """With a track that crashes its decoder, a broken and an absent one."""
  rows = some_tracks(0, 1, 2, 3, 24)
  rows[3]["file"] = None
  pool = tiny.write(tmp_path / "pool", rows=rows, load=load, processes=2)
  found = tiny.write(tmp_path / "engine", rows=rows, load=load, run=direct())
  assert len(pool["skipped"]) == 3
  same = ("name", "prepared", "skipped", "seconds")
  assert [found[key] for key in same] == [pool[key] for key in same]
  same_files(pool["folder"], found["folder"])


def test_the_command_is_the_same_with_a_runner(tmp_path, monkeypatch, capsys):
  """Paths are relative to the command's folder, not to a worker's."""
  monkeypatch.chdir(tmp_path)
  Path("music").mkdir()
  for number in range(2):
    wave = np.sin(np.arange(5 * 16_000) * (0.1 + number))
    soundfile.write(f"music/{number}.wav", 0.1 * wave, 16_000)
  Path("music/2.wav").write_bytes(b"nothing")
  command = ["folder", "--source=music", "--name=own"]
  options = "--runner_options=--direct_num_workers=1 --nonsense=1"
  prepare.main([*command, "--data_dir=one", "--processes=0"])
  local = capsys.readouterr().out.replace("one/", "")
  prepare.main([*command, "--data_dir=other", "--runner=DirectRunner", options])
  said = capsys.readouterr()
  assert said.out.replace("other/", "") == local
  assert "knows no --nonsense" in said.err
  same_files(find("own", "one"), find("own", "other"))


def test_a_worker_may_run_in_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path("0.wav").touch()
  write = parts.Write(_load_file, [], 4, Path("work").absolute())
  Path("work").mkdir()
  track = tiny.tracks()[0] | {"file": "0.wav", "tags": []}
  part = {"number": 0, "split": "train", "tracks": [track]}
  file = engine._put_down(write, part)
  monkeypatch.chdir("/")
  engine.write_part(file, write)
  assert len(write.finished(part)["rows"]) == 1


def _load_file(track):
  Path(track["file"]).stat()
  return tiny.load(track)


def _load_unless(marker, track):
  if marker.exists() and track["index"] == 24:
    raise RuntimeError("no such folder on this machine")
  return tiny.load(track)


def test_after_a_failure_the_same_goes_on(tmp_path, monkeypatch):
  marker = tmp_path / "marker"
  marker.touch()
  slow = functools.partial(_load_unless, marker)
  again = {"rows": some_tracks(0, 3, 24), "load": slow}
  with pytest.raises(
    Resumable,
    match=r"DirectRunner failed \(.*no such folder on this .* goes on after",
  ):
    tiny.write(tmp_path, run=direct(), **again)
  work = tmp_path / "tiny" / f"incomplete.{writer.VERSION}" / "parts"
  finished = {file.stem for file in work.glob(f"*{parts.FINISHED}")}
  (work / f"{parts.ATTEMPT}killed").mkdir()
  assert len(finished) < 3
  marker.unlink()
  given = []
  put_down = engine._put_down

  def counted(write, part):
    given.append(f"{part['number']:05}")
    return put_down(write, part)

  monkeypatch.setattr(engine, "_put_down", counted)
  tiny.write(tmp_path, run=direct(), **again)
  assert sorted([*finished, *given]) == [f"{number:05}" for number in range(3)]
  tiny.write(tmp_path / "whole", rows=some_tracks(0, 3, 24))
  same_files(find("tiny", tmp_path / "whole"), find("tiny", tmp_path))


def test_a_terminated_command_ends_as_such_and_goes_on(tmp_path):
  """Beam's local runner makes a failure of the signal."""
  script = textwrap.dedent("""
    import sys, test_engine, tiny
    from ssl_music import prepare
    from ssl_music.data import demo, engine

    write_part = engine.write_part

    def slowly(file, write):
      if file.endswith("00001.todo"):
        print("going", flush=True)
        engine.time.sleep(60)
      write_part(file, write)

    engine.write_part = slowly
    rows = test_engine.some_tracks(0, 3, 24)
    demo.plan = lambda: tiny.plan(rows)
    prepare.main(["demo", f"--data_dir={sys.argv[1]}", "--runner=DirectRunner"])
  """)
  here = Path(__file__).parent
  environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}
  with subprocess.Popen(
    [sys.executable, "-c", script, tmp_path],
    stdout=subprocess.PIPE,
    env=environment,
  ) as process:
    assert process.stdout.readline() == b"going\n"
    process.send_signal(signal.SIGTERM)
  assert process.returncode == 128 + signal.SIGTERM
  assert (tmp_path / "tiny" / f"incomplete.{writer.VERSION}").exists()
  tiny.write(tmp_path, rows=some_tracks(0, 3, 24), run=direct())
  tiny.write(tmp_path / "whole", rows=some_tracks(0, 3, 24))
  same_files(find("tiny", tmp_path / "whole"), find("tiny", tmp_path))


def _write(tmp_path, load=tiny.load):
  tmp_path.joinpath("work").mkdir(exist_ok=True)
  part = {"number": 0, "split": "train", "tracks": tiny.tracks()[:2]}
  return parts.Write(load, tiny.TAGS, 4, tmp_path / "work"), part


def test_a_part_may_be_tried_twice_at_once(tmp_path):
  """The first attempt is halfway when the second one begins and ends."""
  halfway, go_on = threading.Event(), threading.Event()

  def wait(track):
    if track["index"] == 1:
      halfway.set()
      assert go_on.wait(60)
    return tiny.load(track)

  slow, part = _write(tmp_path, wait)
  quick, _ = _write(tmp_path)
  first = threading.Thread(target=slow._write, args=(part, _results(slow)))
  first.start()
  assert halfway.wait(60)
  done = quick(part)
  before = {f: Path(done[f]).read_bytes() for f in ("file", "energy")}
  assert quick.finished(part)["rows"] == done["rows"]
  go_on.set()
  first.join()
  again = quick.finished(part)
  assert again["rows"] == done["rows"]
  for name, content in before.items():
    assert Path(again[name]).read_bytes() == content
  left = {file.name for file in quick.folder.iterdir()}
  assert left == {"00000", "00000.energy", "00000.done", "00000.json"}


def _results(write):
  return map(write._make_ready, tiny.tracks()[:2])


def test_what_other_machines_have_made_may_come_late(tmp_path, monkeypatch):
  write, part = _write(tmp_path)
  monkeypatch.setattr(engine, "_run", lambda *_: None)
  late = threading.Timer(0.3, write, [part])
  late.start()
  began = time.monotonic()
  [(_, done)] = direct()(write, [part])
  assert time.monotonic() - began < 30
  assert len(done["rows"]) == 2
  monkeypatch.setattr(engine, "LATENESS", 0)
  other = part | {"number": 1}
  with pytest.raises(Resumable, match=r"part 1 is not in .*work"):
    list(direct()(write, [part, other]))


def test_only_names_of_files_pass_through_an_engine(tmp_path, monkeypatch):
  """Dataflow takes no job over 10 MB."""
  jobs = []
  monkeypatch.setattr(engine, "_run", lambda _, files, name: jobs.append(files))
  monkeypatch.setattr(engine, "_wait", lambda *_: None)
  rows = [track | {"note": "x" * 100_000} for track in tiny.tracks()]
  write, _ = _write(tmp_path)
  list(direct()(write, parts.divide(rows)))
  assert sum(map(len, jobs[0])) < 20_000
  part = json.loads(Path(jobs[0][0]).read_text())
  assert part["tracks"][0]["note"] == rows[0]["note"]


def test_a_job_is_cancelled_with_the_command():
  class Job:
    cancelled = False

    def wait_until_finish(self):
      raise KeyboardInterrupt

    def cancel(self):
      self.cancelled = True

  job = Job()
  with pytest.raises(KeyboardInterrupt):
    engine._run(lambda files: job, [], "SomeRunner")
  assert job.cancelled
  job.wait_until_finish = lambda: "CANCELLED"
  with pytest.raises(Resumable, match=r"SomeRunner failed .*CANCELLED"):
    engine._run(lambda files: job, [], "SomeRunner")


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--runner=NoRunner"], "--runner=NoRunner cannot be used"),
    (
      ["--runner=DirectRunner", "--runner_options=--direct_num_workers=x"],
      r"not what Beam takes \(argument --direct_num_workers: invalid int",
    ),
  ],
)
def test_wrong_runners_are_explained(tmp_path, arguments, said, capfd):
  with pytest.raises(InputError, match=said):
    prepare.main(["demo", f"--data_dir={tmp_path / 'data'}", *arguments])
  assert not (tmp_path / "data").exists()
  assert not capfd.readouterr().err  # not Beam's hundred lines of usage


def test_without_beam_its_installation_is_named(tmp_path, monkeypatch):
  find_spec = engine.importlib.util.find_spec
  monkeypatch.setattr(
    engine.importlib.util,
    "find_spec",
    lambda name, *rest: None if name == "apache_beam" else find_spec(name),
  )
  with pytest.raises(InputError, match=r"pip install -e '.\[beam\]'"):
    prepare.main(
      ["demo", f"--data_dir={tmp_path / 'data'}", "--runner=FlinkRunner"]
    )
  assert not (tmp_path / "data").exists()
