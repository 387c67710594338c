import pytest

from ssl_music import prepare
from ssl_music.errors import InputError


@pytest.mark.parametrize(
  ("given", "left"),
  [
    ("check folder --source=a", "folder --source=a"),
    ("check gtzan --all --source check", "gtzan --source check"),
    ("check gtzan --sample 5 --name check", "gtzan --name check"),
    ("check gtzan --sample=5 --report=b --seed 1", "gtzan --seed 1"),
    ("check folder --report all --source --all-", "folder --source --all-"),
  ],
)
def test_a_check_ends_with_the_command_that_prepares(given, left):
  assert prepare._without_check(given.split()) == left.split()


@pytest.mark.parametrize(
  "wrong",
  [
    "--processes=x",
    "--processes=-1",
    "--seed=-1",
    "--max_seconds=nan",
    "--max_seconds=-1",
    "--min_seconds=inf",
    "--min_seconds=",
  ],
)
def test_wrong_numbers_are_explained(wrong):
  with pytest.raises(InputError, match=" is no number") as raised:
    prepare.main(["folder", "--source=a", wrong])
  assert wrong.split("=")[0] in str(raised.value)


def test_options_of_a_runner_need_one(tmp_path):
  with pytest.raises(InputError, match="give --runner, too"):
    prepare.main(
      ["demo", f"--data_dir={tmp_path}", "--runner_options=--parallelism=64"]
    )
  assert not list(tmp_path.iterdir())
