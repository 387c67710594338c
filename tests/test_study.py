import math

import jax
import numpy as np
import optax
import pytest
from scipy.special import expit

from ssl_music import metrics, parallel, study, tagger
from ssl_music import study_inputs as inputs
from ssl_music.errors import InputError

TRACKS, TAGS, SIZE = {"train": 30, "validation": 21, "test": 25}, 4, 6
CONFIG = {
  "hidden": (),
  "batch": 8,
  "steps": 12,
  "evaluations": 3,
  "learning_rates": (0.01, 0.1),
  "weight_decays": (0.0, 1.0),
  "seeds": 2,
  "aggregation": "embeddings",
}


def make_data(seed=0):
  random = np.random.default_rng(seed)
  direction = random.standard_normal((SIZE, TAGS))
  data = {}
  for split, tracks in TRACKS.items():
    counts = random.integers(1, 4, size=tracks)
    owners = np.repeat(np.arange(tracks), counts)
    centre = random.standard_normal((tracks, SIZE))
    x = centre[owners] + 0.5 * random.standard_normal((len(owners), SIZE))
    noise = random.standard_normal((tracks, TAGS))
    data[split] = {
      "x": (3 * x + 5).astype(np.float16),
      "owners": owners,
      "labels": centre @ direction + noise > 1,
    }
  return data


def make_subsets():
  masks = np.zeros((3, TRACKS["train"]), bool)
  masks[0, :3], masks[1, 5:20], masks[2] = True, True, True
  return [
    {"share": share, "draw": draw, "mask": mask}
    for share, draw, mask in zip((0.1, 0.5, 1.0), (1, 0, 0), masks, strict=True)
  ]


def run(config=None, devices=1, subsets=None):
  mesh = parallel.make_mesh(jax.devices()[:devices])
  subsets = subsets or make_subsets()
  return study.run(
    CONFIG | (config or {}), make_data(), subsets, seed=3, mesh=mesh
  )


@pytest.fixture(scope="module")
def found():
  return run()


def optimizer(rate, decay):
  schedule = optax.cosine_decay_schedule(rate, CONFIG["steps"])
  return optax.adamw(schedule, weight_decay=decay)


@jax.jit
def update(params, state, x, y, rate, decay):
  """A step of a linear probe, compiled once for all rates."""

  def loss(params):
    logits = x @ params["kernel"] + params["bias"]
    p = jax.nn.log_sigmoid(logits) * y + jax.nn.log_sigmoid(-logits) * (1 - y)
    return -p.mean()

  grads = jax.grad(loss)(params)
  updates, state = optimizer(rate, decay).update(grads, state, params)
  return optax.apply_updates(params, updates), state


def one_by_one(config, data, subset, seed, rate, decay):
  """Trains one probe as a plain loop; returns validation mAP and logits."""
  x = data["train"]["x"].astype(np.float64)
  mean, deviation = x.mean(axis=0), x.std(axis=0)
  scale = lambda v: (v.astype(np.float64) - mean) / deviation
  rows = np.flatnonzero(subset["mask"][data["train"]["owners"]])
  y = data["train"]["labels"][data["train"]["owners"]]
  # A subset of few segments has short minibatches.
  batch = min(8, 2 ** math.ceil(math.log2(len(rows))))
  group = subset | {"rows": rows, "seed": seed, "batch": batch}
  (params,) = study.initial(seed, (SIZE, TAGS))
  state = optimizer(rate, decay).init(params)
  tracks = {}
  for split in ("validation", "test"):
    part = data[split]
    tracks[split] = np.stack(
      [
        scale(part["x"][part["owners"] == track]).mean(axis=0)
        for track in range(TRACKS[split])
      ]
    )

  best = -1.0, None
  batches = inputs.minibatches(group, config["steps"])
  for step, chosen in enumerate(batches, 1):
    given = scale(x[chosen]), y[chosen].astype(np.float32)
    params, state = update(params, state, *given, rate, decay)
    if step % (config["steps"] // config["evaluations"]) == 0:
      kernel, bias = params["kernel"], params["bias"]
      logits = tracks["validation"] @ kernel + bias
      labels = data["validation"]["labels"]
      quality = metrics.scores(labels, logits, range(TAGS))["map_macro"]
      if quality > best[0]:
        best = quality, (step, tracks["test"] @ kernel + bias)
  return best


def test_equals_probes_trained_one_by_one(found):
  data, subsets = make_data(), make_subsets()
  for subset, one in ((0, 1), (1, 0), (2, 1)):
    every = {
      (rate, decay): one_by_one(
        CONFIG, data, subsets[subset], 3 + one, rate, decay
      )
      for rate in CONFIG["learning_rates"]
      for decay in CONFIG["weight_decays"]
    }
    chosen = found["chosen"][subset][one]
    quality = max(best for best, _ in every.values())
    assert chosen["validation_map"] == pytest.approx(quality, abs=1e-5)
    name = next(
      n for n in every if np.allclose(n, [*chosen.values()][1:3], rtol=1e-6)
    )
    best, (step, logits) = every[name]
    assert best == pytest.approx(quality, abs=1e-6)
    assert chosen["step"] == step
    np.testing.assert_allclose(
      found["logits"][subset, one], logits, rtol=2e-3, atol=2e-3
    )


def test_devices_and_blocks_make_no_difference(monkeypatch):
  one = run({"hidden": (5,)})
  # Two groups at a time on each of two devices, so six in blocks of up to four.
  monkeypatch.setattr(study, "_block_size", lambda *_: 4)
  other = run({"hidden": (5,)}, devices=2)
  np.testing.assert_allclose(
    one["logits"], other["logits"], rtol=1e-4, atol=1e-4
  )
  assert one["chosen"] == [
    [a | {"validation_map": pytest.approx(a["validation_map"])} for a in every]
    for every in other["chosen"]
  ]
  assert one["logits"].shape == (3, 2, TRACKS["test"], TAGS)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_probe_is_the_same_whatever_else_is_asked_for(found, devices):
  """Other shares, draws and seeds change no bit; a larger grid rounds anew."""
  few, half, whole = make_subsets()
  for subsets in ([whole], [half, whole], [whole, few]):
    for seeds in (1, 3):
      other = run({"seeds": seeds}, devices, subsets)
      for place, subset in enumerate(subsets):
        same = [0.1, 0.5, 1.0].index(subset["share"])
        for seed in range(min(seeds, 2)):
          assert other["chosen"][place][seed] == found["chosen"][same][seed]
          np.testing.assert_array_equal(
            other["logits"][place, seed], found["logits"][same, seed]
          )
  chosen = found["chosen"][2][0]
  grid = {"learning_rates": (chosen["learning_rate"],)}
  grid |= {"weight_decays": (chosen["weight_decay"],), "seeds": 1}
  alone = run(grid, devices, [whole])
  assert alone["chosen"][0][0]["step"] == chosen["step"]
  np.testing.assert_allclose(
    alone["logits"][0, 0], found["logits"][2, 0], rtol=1e-5, atol=1e-5
  )


def test_what_is_averaged(monkeypatch, found):
  """Of a linear probe, embeddings and logits come to the same."""
  monkeypatch.setattr(inputs, "SEGMENTS", 16)
  monkeypatch.setattr(inputs, "TRACKS", 4)
  logits = run({"aggregation": "logits"})["logits"]
  np.testing.assert_allclose(logits, found["logits"], rtol=1e-3, atol=1e-3)
  again = run()["logits"]
  np.testing.assert_allclose(again, found["logits"], rtol=1e-3, atol=1e-3)


def test_probabilities_are_averaged():
  """Against the same probe applied to each segment as a track of its own."""
  config = {"evaluations": 1, "learning_rates": (4,), "weight_decays": (0,)}
  config |= {"seeds": 1}
  mesh, whole = parallel.make_mesh(jax.devices()[:1]), make_subsets()[2:]
  data = make_data()
  odds = study.run(
    CONFIG | config | {"aggregation": "probabilities"},
    data,
    whole,
    seed=0,
    mesh=mesh,
  )["logits"][0, 0]
  test = data["test"]
  owners = test["owners"]
  segments = {
    "owners": np.arange(len(owners)),
    "labels": test["labels"][owners],
  }
  alone = data | {"test": {"x": test["x"], **segments}}
  each = study.run(CONFIG | config, alone, whole, seed=0, mesh=mesh)["logits"]
  assert each.max() > 17  # of which float32's probability is 1
  logits = each[0, 0].astype(np.float64)
  expected = [
    np.log(expit(some).mean(axis=0)) - np.log(expit(-some).mean(axis=0))
    for some in (logits[owners == t] for t in range(TRACKS["test"]))
  ]
  np.testing.assert_allclose(odds, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
  ("hidden", "how"),
  [((), "embeddings"), ((5,), "logits"), ((5,), "probabilities")],
)
def test_the_kept_head_gives_the_same_logits(hidden, how, found):
  config = {"hidden": hidden, "aggregation": how}
  if hidden:
    found = run(config)
  head = found["head"] | {"aggregation": how}
  test = make_data()["test"]
  for track in range(TRACKS["test"]):
    vectors = test["x"][test["owners"] == track]
    np.testing.assert_allclose(
      tagger.logits(head, vectors),
      found["logits"][-1, :, track],
      rtol=1e-5,
      atol=1e-5,
    )


def test_probes_that_all_diverge_are_explained():
  with pytest.raises(InputError, match=r"no finite numbers .*\(inf, inf\)"):
    run({"learning_rates": (np.inf, np.inf)})


def test_selection_follows_the_metric():
  random = np.random.default_rng(0)
  labels = random.random((40, 5)) < [0, 0.1, 0.5, 0.9, 1]
  scores = random.standard_normal((3, 40, 5)).astype(np.float32)
  scores[1] -= 9  # of one sign
  expected = [
    metrics.scores(labels, one, range(5))["map_macro"] for one in scores
  ]
  np.testing.assert_allclose(
    inputs.macro_map(labels, scores), expected, rtol=1e-5
  )


def test_selection_counts_ties_against_and_nothing_for_what_is_no_number():
  labels = np.array([[True], [False], [False], [False]])
  scores = np.zeros((3, 4, 1), np.float32)
  scores[1, 0], scores[2, 3] = 1, np.nan
  np.testing.assert_allclose(inputs.macro_map(labels, scores), [0.25, 1, 0])


def test_minibatches_take_every_segment_before_any_comes_again():
  group = {"rows": np.arange(10, 17), "seed": 0, "batch": 4}
  group |= {"share": 0.1, "draw": 2}
  batches = inputs.minibatches(group, 21)
  assert batches.shape == (21, 4)
  epochs = batches.ravel().reshape(-1, 7)
  assert (np.sort(epochs, axis=1) == np.arange(10, 17)).all()
  assert len(np.unique(epochs, axis=0)) > 1
  for other in ({"draw": 1}, {"share": 0.2}, {"seed": 1}):
    assert (batches != inputs.minibatches(group | other, 21)).any()


def test_blocks_have_minibatches_of_one_length():
  sizes = (1, 3, 16, 17, 40, 300, 300, 300)
  groups = [{"rows": np.arange(n), "name": i} for i, n in enumerate(sizes)]
  blocks = [*inputs.blocks(groups, 24, 2)]
  assert [[g["batch"] for g in block] for block in blocks] == [
    *[[24, 24], [24, 24], [24]],
    *[[16], [4], [1]],
  ]
  names = [group["name"] for block in blocks for group in block]
  assert sorted(names) == [*range(8)]


def test_moments():
  x = np.random.default_rng(0).standard_normal((9_000, 3)) * [1, 1e-3, 50]
  x = (x + np.array([0, 900, -3])).astype(np.float32)
  mean, deviation = inputs.moments(x)
  np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-9)
  np.testing.assert_allclose(deviation, x.astype(np.float64).std(0), rtol=1e-6)
