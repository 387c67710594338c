"""Do tracks that are near each other have something to do with each other?

Every track of a data set that has a genre is searched for among all the others:
the share of its 10 nearest that have a genre (or the artist) in common with it,
averaged over the tracks for which there is such another. Tracks of an album
sound alike whatever their music, so genre is counted a second time with the
track's own artist left out. In brackets the 95 % interval of 1,000 resamples of
the tracks that are searched for (the collection stays as it is); chance is the
share among all the others. "random" is the mean of three untrained networks.
Each is shown as embedded, centred, and standardised, which is what
`ssl_music.search` does. The last table has the standardised encoders' advantage
over "random", resampled in pairs.

The manifest has the columns path, as in the data set, and artist; without it
there is only the first share.

  python -m benchmarks.search_quality mel random WORKDIR … --data=NAME
"""

from pathlib import Path

import numpy as np
from absl import app, flags, logging

from ssl_music import config as defaults
from ssl_music import features, neighbours, parallel
from ssl_music.data import tables
from ssl_music.data.tracks import Tracks
from ssl_music.neighbours import Space

_DATA = flags.DEFINE_string("data", None, "Data set.", required=True)
_MANIFEST = flags.DEFINE_string("manifest", None, "CSV: path, artist.")
_TAGS = flags.DEFINE_string("tags", "genre---", "How a genre's tag begins.")
_BATCH = flags.DEFINE_integer("batch", 64, "Segments a batch.")

TOP = 10
RANDOM = 3  # untrained networks
RESAMPLES = 1000
SPLITS = ("train", "validation", "test")


def embed(name: str, tracks: Tracks, seed: int) -> tuple[str, np.ndarray]:
  """Returns an encoder's label and its track means, [tracks, D]."""
  config = defaults.probing()
  config.encoder, config.seed = name, seed
  frozen = features.load_encoder(config, Tracks(_DATA.value, ("train",)))
  where = features.choose_segments(tracks, frozen.seconds, None)
  (vectors,) = features.embed_segments(
    frozen, [(tracks, where)], batch=_BATCH.value, mesh=parallel.make_mesh()
  )
  owners = where[:, 0]
  means = [
    vectors[owners == track].mean(axis=0) for track in range(len(tracks))
  ]
  return frozen.described.get("pretext", Path(name).name), np.stack(means)


def spaces(means: np.ndarray) -> dict[str, Space]:
  """Returns ways to look at vectors."""
  fitted = neighbours.fit(means)
  one = np.ones_like(fitted.inverse)
  return {
    "as embedded": Space(0 * fitted.mean, one),
    "centred": Space(fitted.mean, one),
    "standardised": fitted,
  }


def share(
  means: np.ndarray, space: Space, alike: np.ndarray, among: np.ndarray
) -> np.ndarray:
  """Returns the share of alike ones among the nearest, [tracks that have one].

  Args:
    means: float [tracks, D].
    space: of `spaces`.
    alike: bool [tracks, tracks], who has something in common.
    among: bool [tracks, tracks], who may be a neighbour of whom.
  """
  rows, _ = neighbours.nearest(means, means, space, len(means))
  shares = []
  for track in np.flatnonzero((alike & among).any(axis=1)):
    near = rows[track][among[track, rows[track]]][:TOP]
    shares.append(alike[track, near].mean())
  return np.array(shares)


def questions(tracks: Tracks) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns {what is asked: (who is alike, who may be a neighbour)}."""
  columns = [i for i, t in enumerate(tracks.tags) if t.startswith(_TAGS.value)]
  labels = tracks.labels[:, columns].astype(int)
  genre = labels @ labels.T > 0
  others = ~np.eye(len(genre), dtype=bool)
  found = {"same genre": (genre, others)}
  if _MANIFEST.value:
    table = tables.read(_MANIFEST.value, needed=("path", "artist"))
    path, artist = table.column("path"), table.column("artist")
    names = {fields[path]: fields[artist] for _, fields in table.rows}
    artists = np.array([names[path] for path in tracks.paths])
    same = artists[:, None] == artists
    found["same genre, other artist"] = genre, others & ~same
    found["same artist"] = same, others
  return found


def chance(alike: np.ndarray, among: np.ndarray) -> float:
  """Returns the share of alike ones among all, of tracks that have one."""
  kept = (alike & among).any(axis=1)
  return ((alike & among).sum(axis=1) / among.sum(axis=1))[kept].mean()


def resampled(shares: np.ndarray) -> str:
  """Returns a mean and its interval over resamples of the tracks."""
  rng = np.random.default_rng(0)  # the same tracks for all encoders
  draws = rng.integers(0, len(shares), (RESAMPLES, len(shares)))
  low, high = np.quantile(shares[draws].mean(axis=1), (0.025, 0.975))
  return f"{shares.mean():.3f} [{low:.3f}, {high:.3f}]"


def main(argv: list[str]) -> None:
  """Prints both tables for the encoders named."""
  logging.set_verbosity(logging.WARNING)
  tracks = Tracks(_DATA.value, SPLITS)
  asked = questions(tracks)
  print(f"| encoder | vectors | {' | '.join(asked)} |")
  print("| --- | --- |" + " --- |" * len(asked))
  cells = [f"{chance(*question):.3f}" for question in asked.values()]
  print(f"| chance | | {' | '.join(cells)} |", flush=True)
  standardised = {}
  for name in argv[1:]:
    seeds = range(RANDOM if name == "random" else 1)
    runs = [embed(name, tracks, seed) for seed in seeds]
    for kind in spaces(runs[0][1]):
      shares = {
        what: np.mean(
          [share(m, spaces(m)[kind], *question) for _, m in runs], axis=0
        )
        for what, question in asked.items()
      }
      cells = [resampled(one) for one in shares.values()]
      print(f"| {runs[0][0]} | {kind} | {' | '.join(cells)} |", flush=True)
    standardised[runs[0][0]] = shares
  floor = standardised.pop("random", None)
  if floor is None:
    return
  print(f"\n| standardised, less random | {' | '.join(asked)} |")
  print("| --- |" + " --- |" * len(asked))
  for label, shares in standardised.items():
    cells = [resampled(shares[what] - floor[what]) for what in asked]
    print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
  app.run(main)
