import importlib.util

import pytest
from absl import flags

from benchmarks import device


@pytest.fixture(params=["--rehearse", "--norehearse"])
def parts(request, tmp_path):
  flags.FLAGS(["tests", request.param])
  yield device.parts(tmp_path)
  flags.FLAGS(["tests", "--norehearse"])


def test_every_part_can_be_run(parts):
  names = [name for name, _, _ in parts]
  assert len(set(names)) == len(names)  # a file each
  for _, share, (module, *_) in parts:
    assert importlib.util.find_spec(module) and 0 < share <= 1


def test_a_part_that_fails_or_takes_too_long_is_told(tmp_path, capsys):
  failed, endless = tmp_path / "failed.txt", tmp_path / "endless.txt"
  assert not device.run(failed, ["no_such_module"], 60)
  assert "No module named" in failed.read_text(encoding="utf-8")
  sleeping = "print('begun', flush=True); import time; time.sleep(99)"
  assert device.run(endless, ["timeit", "-n1", "-r1", sleeping], 3)
  told = capsys.readouterr().out
  assert "failed: exit code 1" in told and "No module named" in told
  assert "endless: stopped at its limit" in told and "begun" in told
