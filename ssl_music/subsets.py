"""Which training tracks' labels a study with few labels may use."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssl_music import randomness
from ssl_music.errors import InputError

# Swaps of a stratified draw; more bring it hardly closer.
_SWEEPS, _CANDIDATES = 2, 32


def check(shares: Sequence[float]) -> None:
  """Checks the shares of the labels that a config names.

  Args:
    shares: of the training tracks.

  Raises:
    InputError: one is not in (0, 1], or repeated, or 1 is not among them.
  """
  numbers = all(isinstance(share, int | float) for share in shares)
  if not (numbers and all(0 < share <= 1 for share in shares) and 1 in shares):
    raise InputError(
      f"shares of the labels are {tuple(shares)}: give numbers over 0 up to 1,"
      " and 1 among them, with --config.probe.shares"
    )
  if len(set(shares)) < len(shares):
    raise InputError(
      f"a share of the labels is repeated in {tuple(shares)}: name each once"
      " with --config.probe.shares"
    )


def draw(
  labels: np.ndarray,
  shares: Sequence[float],
  draws: int,
  *,
  seed: int,
  stratified: bool = False,
) -> list[dict[str, Any]]:
  """Draws subsets of the training tracks.

  Args:
    labels: bool [tracks, T].
    shares: of the tracks, in (0, 1].
    draws: of every share but 1, of which there is one.
    seed: of the draws. At random, a draw of a share holds the same draw of
      every smaller one.
    stratified: keep the frequencies of the tags (`stratify`).

  Returns:
    {"share", "draw", "mask": bool [tracks]} each, shares rising; a share has
    one track at least. A mask follows from the seed, its share and its draw,
    whatever other shares and draws there are.

  Raises:
    InputError: as `check`.
  """
  check(shares)
  tracks, found = len(labels), []
  for share in sorted(shares):
    for index in range(draws if share < 1 else 1):
      # The same for all shares, so that the smaller ones are held.
      rng = randomness.generator(seed, "subset", index)
      count = max(1, round(share * tracks))
      chosen = rng.permutation(tracks)[:count]
      if stratified and count < tracks:
        chosen = stratify(labels, count, rng)
      mask = np.zeros(tracks, bool)
      mask[chosen] = True
      found.append({"share": float(share), "draw": index, "mask": mask})
  return found


def stratify(
  labels: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
  """Draws tracks among which tags are about as frequent as among all.

  Begins with a random draw, and swaps drawn tracks for others as long as that
  brings the tags' counts closer to their share. Iterative stratification
  (Sechidis et al., 2011) decides by the rarest tags first: with many of them,
  its draws hold the same tracks again and again, and none of a tag's only one.

  Args:
    labels: bool [tracks, T].
    count: how many tracks to draw, under all of them.
    rng: of the draw and of the swaps.

  Returns:
    int [count], indices of tracks.
  """
  tracks = len(labels)
  order, labels = rng.permutation(tracks), labels.astype(np.int32)
  share = count / tracks * labels.sum(axis=0)
  # Rounded by chance, so that over many draws rare tags have their share, too.
  excess = labels[order[:count]].sum(axis=0) - np.floor(
    share + rng.random(len(share))
  )
  for place in np.tile(np.arange(count), _SWEEPS):
    others = rng.integers(count, tracks, _CANDIDATES)
    change = labels[order[others]] - labels[order[place]]
    distance = np.square(excess + change).sum(axis=1)
    best = distance.argmin()
    if distance[best] < np.square(excess).sum():
      excess = excess + change[best]
      order[[place, others[best]]] = order[[others[best], place]]
  return order[:count]
