"""The rules that tell a collapsed run, on made-up logs."""

import math
import re

import pytest

from ssl_music.collapse import signs, watch
from ssl_music.pretext import PRETEXTS

# Fields of runs that were measured.
HEALTHY = {
  "projection_cosine": 0.25,
  "projection_std": 0.83,
  "projection_rank": 30.0,
  "embedding_cosine": 0.998,  # as of an untrained network: no sign
  "embedding_std": 0.04,
  "embedding_rank": 1.5,
  "loss": 1.0,  # constant: no sign
}
TARGETS = {
  "teacher_mean_entropy": 0.76,
  "teacher_entropy": 0.15,
  "teacher_kl": 0.61,
}
POINTING = {"projection_cosine": 0.9993, "projection_std": 0.06}
TASKS = ("contrastive", "byol", "barlow_twins", "vicreg", "clustering")


def log(*changes, every=10):
  """Entries at steps 10, 20, …, healthy but for the changes."""
  return [
    {"step": every * (i + 1)} | HEALTHY | TARGETS | change
    for i, change in enumerate(changes)
  ]


@pytest.mark.parametrize("task", PRETEXTS)
def test_a_healthy_run_stays_unnamed(task):
  assert watch(log(*[{}] * 20), task=task) is None
  assert watch([], task=task) is None


def test_names_sign_value_step_and_cure():
  verdict = watch(log({}, {}, *[POINTING] * 5), task="byol")
  assert verdict == (
    "collapsed since step 30: all projections point the same way"
    " (projection_cosine 0.9993): lower --config.optimizer.learning_rate, or"
    " keep the predictor and raise --config.pretext.momentum"
  )


def test_the_value_is_the_latest():
  changes = [{"projection_rank": r} for r in (1.9, 1.5, 1.25)]
  verdict = watch(log(*changes), task="vicreg")
  assert verdict.startswith("collapsed since step 10: ")
  assert "(projection_rank 1.25)" in verdict
  assert "--config.pretext.variance" in verdict


def test_needs_the_same_sign_in_the_last_entries():
  entries = log(*[POINTING] * 3)
  assert watch(entries[:2], task="byol") is None
  assert watch(entries[:2], task="byol", patience=2) is not None
  assert watch(entries, task="byol") is not None
  assert watch(entries, task="byol", patience=4) is None
  # A sound entry begins the count anew, wherever it stands.
  for gap in range(3):
    changes = [POINTING] * 3
    changes[gap] = {}
    assert watch(log(*changes), task="byol") is None
  assert "step 30" in watch(log(POINTING, {}, *[POINTING] * 3), task="byol")
  # Different signs in turn are not one that lasts.
  turns = [POINTING, {"projection_rank": 1.0}] * 3
  assert watch(log(*turns), task="byol") is None


def test_the_warm_up_does_not_count():
  entries = log(*[POINTING] * 5)  # steps 10 to 50
  assert watch(entries, task="byol", warmup=30) is None
  assert "since step 30" in watch(entries, task="byol", warmup=20)
  assert "since step 20" in watch(entries, task="byol", warmup=19)


@pytest.mark.parametrize(
  ("change", "meaning"),
  [
    ({"teacher_mean_entropy": 0.01}, "same few clusters .*targets=sinkhorn"),
    ({"teacher_entropy": 0.999}, "uniform .*lower .*teacher_temperature"),
    ({"teacher_kl": 0.001}, "do not depend on the input .*momentum"),
  ],
)
def test_clustering_is_judged_by_its_targets(change, meaning):
  entries = log(*[change] * 3)
  found = watch(entries, task="clustering")
  assert re.search(meaning, found)
  assert watch(entries, task="byol") is None


@pytest.mark.parametrize("task", ["clustering", "supervised"])
def test_logits_may_share_a_direction(task):
  change = {"projection_cosine": 0.999, "projection_rank": 1.1}
  assert watch(log(*[change] * 5), task=task) is None
  assert watch(log(*[change] * 5), task="contrastive") is not None


def test_a_network_that_is_dead():
  zeros = {"projection_cosine": 0.0, "projection_std": 0.0}
  assert "coincide" in watch(log(*[zeros] * 3), task="contrastive")


def test_entries_without_the_fields():
  # Those of a probe stand between the others: they do not break a row.
  rows = log(*[POINTING] * 3)
  probes = [{"step": row["step"], "probe_map": 0.5} for row in rows]
  mixed = [row for pair in zip(rows, probes, strict=True) for row in pair]
  assert "since step 10" in watch(mixed, task="byol")
  assert watch(probes, task="byol") is None
  assert signs(probes[0], "byol") == []


def test_what_is_no_number_is_no_sign():
  change = dict.fromkeys(HEALTHY, math.nan) | dict.fromkeys(TARGETS, math.nan)
  for task in TASKS:
    assert watch(log(*[change] * 3), task=task) is None


def test_signs_of_an_entry():
  (entry,) = log(POINTING | {"projection_std": 0.01, "teacher_kl": 0.0})
  found = [sign.metric for sign in signs(entry, "vicreg")]
  assert found == ["projection_cosine", "projection_std"]
  found = [sign.metric for sign in signs(entry, "clustering")]
  assert found == ["teacher_kl"]
  assert signs(entry, "supervised") == []
