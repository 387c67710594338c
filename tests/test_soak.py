import soak


def test_nothing_is_lost_under_faults(tmp_path):
  faults = ("limit of file size", "worker killed", "damaged checkpoint")
  counts, wrong = soak.soak(tmp_path, 5, faults=faults)
  assert not wrong
  for name in faults:
    assert counts[name]["times"] == counts[name]["resumed"] == 1
  assert counts["the end"]["times"] == 1
