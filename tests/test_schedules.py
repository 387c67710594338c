import golden
import numpy as np
import pytest

from ssl_music import schedules

STEPS = np.arange(200)


def test_learning_rate_as_published():
  schedule = schedules.warmup_cosine(1e-3, 1e-7, warmup=20, total=200)
  expected = golden.losses()["schedule/lr"]
  np.testing.assert_allclose(schedule(STEPS), expected, rtol=1e-5, atol=1e-9)


def test_weight_decay_as_published():
  schedule = schedules.cosine(0.04, 0.4, total=200)
  expected = golden.losses()["schedule/wd"]
  np.testing.assert_allclose(schedule(STEPS), expected, rtol=1e-5)


def test_without_warmup_the_peak_comes_first():
  schedule = schedules.warmup_cosine(1.0, 0.1, warmup=0, total=10)
  assert schedule(0) == pytest.approx(1)
  assert (np.diff(schedule(np.arange(10))) < 0).all()


def test_after_the_end_nothing_rises_again():
  schedule = schedules.warmup_cosine(1.0, 0.1, warmup=2, total=10)
  np.testing.assert_allclose(schedule(np.arange(10, 30)), 0.1, rtol=1e-6)
