from pathlib import Path

import job_functions
import pytest
import tiny

from ssl_music import benchmark, jobs, report, sweep
from ssl_music import config as defaults
from ssl_music.errors import InputError

FILE = Path(__file__).parent.parent / "configs" / "benchmark.py"


@pytest.fixture
def config(data_dir):
  config = defaults.read(FILE, "laptop")
  config.datasets = "tiny"
  config.data_dir = str(data_dir)
  return config.lock()


def test_pretrainings_come_first_and_probes_need_them(config, tmp_path):
  config.encoders = "contrastive,byol,random,mel"
  config.datasets, config.seeds = "a,b", 2
  planned = benchmark.plan(config, tmp_path)
  names = [job["name"] for job in planned]
  tasks = ["contrastive", "byol", "contrastive-seed1", "byol-seed1"]
  assert names[:4] == [f"pretrain/{task}" for task in tasks]
  assert set(names[4:]) == {
    f"probe/{data}/{encoder}"
    for data in "ab"
    for encoder in [*tasks, "random", "random-seed1", "mel"]
  }
  assert len(names) == 4 + 14
  found = {job["name"]: job for job in planned}
  for name, job in found.items():
    assert job["folder"] == tmp_path / name
    kind, *_, encoder = name.split("/")
    if kind == "pretrain":
      assert job["config"].data.name == "a+b"
      assert job["config"].data.splits == ("train", "unlabelled")
      assert job["config"].seed == name.endswith("seed1")
      assert job["config"].pretext.name == encoder.partition("-")[0]
    else:
      of_task = encoder in tasks
      pretraining = f"pretrain/{encoder}"
      assert job["needs"] == ((pretraining,) if of_task else ())
      assert job["config"].encoder == (
        str(tmp_path / pretraining)
        if of_task
        else encoder.removesuffix("-seed1")
      )
      assert job["config"].data.name == name.split("/")[1]
      assert job["config"].cache_dir == str(tmp_path / "embeddings")
      assert job["config"].probe.shares == (0.01, 0.05, 0.1, 0.2, 1.0)
      assert job["config"].seed == (encoder == "random-seed1")
    assert job["config"].data.data_dir == config.data_dir


def test_networks_that_learn_the_tags(config, tmp_path):
  config.encoders = "byol,finetune-byol,supervised"
  config.datasets, config.seeds = "a,b", 2
  found = {job["name"]: job for job in benchmark.plan(config, tmp_path)}
  assert len(found) == 2 + 2 * 3 * 2
  scratch = found["probe/b/supervised-seed1"]
  assert scratch["config"].job == "finetune"
  assert (scratch["config"].encoder, scratch["needs"]) == ("random", ())
  assert (scratch["config"].seed, scratch["config"].data.name) == (1, "b")
  tuned = found["probe/a/finetune-byol-seed1"]
  assert tuned["config"].job == "finetune"
  assert tuned["config"].encoder == str(tmp_path / "pretrain" / "byol-seed1")
  assert tuned["needs"] == ("pretrain/byol-seed1",)
  assert found["probe/a/byol"]["config"].job == "probe"
  config.encoders = "finetune-byol,mel"
  with pytest.raises(InputError, match=r"'finetune-byol' .* beside the NAME"):
    benchmark.plan(config, tmp_path)


def test_settings_of_the_probes_are_kept(config, tmp_path):
  config.encoders = "mel,supervised"
  config.probe.cache_dir = "/scratch"
  config.probe.data.tags = "genre---"
  config.probe.probe.sounding = True
  config.finetune.allow_missing = True
  probed, tuned = (job["config"] for job in benchmark.plan(config, tmp_path))
  assert probed.cache_dir == "/scratch"
  assert probed.data.tags == tuned.data.tags == "genre---"
  assert tuned.allow_missing and not probed.allow_missing
  assert tuned.sounding


def test_another_seed_adds_jobs_and_keeps_the_others(config, tmp_path):
  before = {job["name"]: job for job in benchmark.plan(config, tmp_path)}
  config.seeds = 3
  after = {job["name"]: job for job in benchmark.plan(config, tmp_path)}
  assert len(after) > len(before)
  for name, job in before.items():
    assert after[name]["config"].to_dict() == job["config"].to_dict()


def test_fields_of_a_task_and_steps_of_all(config, tmp_path):
  config.pretrain.byol.total_steps = 200
  config.pretrain.vicreg.total_steps = 0
  config.pretrain.vicreg.total_epochs = 5
  config.pool = "a+unlabelled"
  steps = lambda: {
    job["name"].removeprefix("pretrain/"): (
      job["config"].total_steps,
      job["config"].total_epochs,
    )
    for job in benchmark.plan(config, tmp_path)
    if job["name"].startswith("pretrain/")
  }
  assert steps()["byol"] == (200, 0)
  assert steps()["vicreg"] == (0, 5)
  assert steps()["contrastive"] == (400, 0)
  assert (
    benchmark.plan(config, tmp_path)[0]["config"].data.name == "a+unlabelled"
  )
  config.total_steps = 77
  assert set(steps().values()) == {(77, 0)}
  config.total_steps = 40
  with pytest.raises(InputError, match=r"lower --config\.warmup_steps, or"):
    benchmark.plan(config, tmp_path)


def test_settings_of_all_pretrainings(config, tmp_path):
  fields = {"total_steps": 30, "warmup_steps": 0, "save_every_steps": 15}
  config.update(fields | {"batch": 16})
  config.pretrain.byol.warmup_steps = 0
  config.pretrain.byol.warmup_epochs = 2
  for job in benchmark.plan(config, tmp_path):
    if job["name"].startswith("pretrain/"):
      found = job["config"]
      assert found.warmup_epochs == 0
      assert {field: found[field] for field in fields} == fields
      assert found.batch == 16
  wrong = ("batch", 0), ("warmup_steps", -1), ("total_steps", 0)
  for field, value in wrong:
    config.update(fields | {"batch": 16} | {field: value})
    with pytest.raises(InputError, match=f"{field}={value} is too small"):
      benchmark.plan(config, tmp_path)


def test_the_paper_preset_is_that_of_all_its_parts():
  config = defaults.read(FILE, "paper")
  assert config.probe.to_dict() | {"probe": None} == (
    defaults.probing("paper").to_dict() | {"probe": None}
  )
  for name, task in config.pretrain.items():
    file = FILE.parent / f"{name}.py"
    assert task.to_dict() == defaults.read(file, "paper").to_dict()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"encoders": "byol,mule"}, "no encoder 'mule' to compare: .*barlow_twins"),
    ({"encoders": "mel,mel"}, "encoders='mel,mel' names one twice"),
    ({"encoders": ""}, "encoders='' names none"),
    ({"datasets": " , "}, "datasets=' , ' names none"),
    ({"datasets": "tiny,absent"}, r"no data set 'absent' .*--config\.datasets"),
    ({"pool": "absent"}, r"no data set 'absent' .*--config\.pool"),
    ({"datasets": "tiny,untagged"}, "untagged has no tags in train"),
    ({"seeds": 0}, "seeds=0 is too small"),
    (
      {"probe": {"data": {"tags": "pitch, loud"}}},
      r"no tags that begin with loud: .* --config\.probe\.data\.tags",
    ),
    (
      {"pretrain": {"byol": {"online": {"data": "absent"}}}},
      r"no data set 'absent' .*--config\.pretrain\.byol\.online\.data",
    ),
    ({"probe": {"probe": {"seeds": 0}}}, r"config\.probe\.probe\.seeds=0 is"),
    ({"probe": {"probe": {"shares": (0.1,)}}}, r"with --config\.probe\.probe"),
    (
      {"pretrain": {"byol": {"on_collapse": "cry"}}},
      r"set --config\.pretrain\.byol\.on_collapse to",
    ),
    (
      {"encoders": "supervised", "finetune": {"aggregation": "sum"}},
      r"set --config\.finetune\.aggregation to",
    ),
  ],
)
def test_mistakes_are_found_before_anything_runs(
  config, tmp_path, fields, message
):
  config.update(fields)
  config.data_dir = str(tmp_path / "data")
  tiny.write(tmp_path / "data")
  if "untagged" in fields.get("datasets", ""):
    rows = [track | {"tags": []} for track in tiny.tracks()]
    tiny.write(tmp_path / "data", name="untagged", rows=rows, tags=[])
  with pytest.raises(InputError, match=message):
    benchmark.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_failed_pretraining_leaves_the_others_alone(
  config, tmp_path, monkeypatch, capfd
):
  monkeypatch.setitem(sweep.JOBS, "pretrain", job_functions.pretrain)
  monkeypatch.setitem(sweep.JOBS, "probe", job_functions.probe)
  reported = []
  monkeypatch.setattr(
    report, "write", lambda *given: reported.append(given), raising=False
  )
  config.encoders = "byol,contrastive,mel"
  folder = tmp_path / "run"
  assert benchmark.run(config, folder) == 1
  states = {record["name"]: record["state"] for record in jobs.read(folder)}
  assert states == {
    "pretrain/byol": "failed",
    "pretrain/contrastive": "done",
    "probe/tiny/byol": "skipped",
    "probe/tiny/contrastive": "done",
    "probe/tiny/mel": "done",
  }
  assert reported == [([folder], folder / "report")]
  out, _ = capfd.readouterr()
  assert "the teacher is ill: call another" in out
  assert "mAP 0.250, ROC-AUC 0.750" in out
