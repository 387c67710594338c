"""Time and memory of the nearest of many vectors, beside scikit-learn's.

Random vectors lie in a file that is mapped, and that has been read before.
Memory is what the process allocates besides; that of scikit-learn holds a
normalised copy of all vectors. Standardising is `neighbours.fit`, once a
collection.

  python -m benchmarks.neighbours --vectors=1000000 --dimensions=512
"""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags
from sklearn.neighbors import NearestNeighbors

from ssl_music import neighbours

_VECTORS = flags.DEFINE_integer("vectors", 1_000_000, "How many.")
_DIMENSIONS = flags.DEFINE_integer("dimensions", 512, "Of each.")
_PEER = flags.DEFINE_bool("peer", True, "Whether scikit-learn runs, too.")

TOP = 10
_PIECE = 50_000


def make(file: Path) -> np.ndarray:
  """Writes random vectors, and maps them."""
  shape = _VECTORS.value, _DIMENSIONS.value
  array = np.lib.format.open_memmap(file, "w+", np.float32, shape)
  rng = np.random.default_rng(0)
  for first in range(0, len(array), _PIECE):
    part = array[first : first + _PIECE]
    part[:] = rng.standard_normal(part.shape, np.float32)
  return array


def allocated() -> float:
  """Returns the megabytes of this process that no file is mapped to."""
  lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
  (line,) = [line for line in lines if line.startswith("RssAnon")]
  return int(line.split()[1]) / 1024


def measure(label: str, work: Callable[[], object]) -> None:
  """Prints how long something takes, and how much it allocates at most."""
  ended, before, peak = threading.Event(), allocated(), [0.0]

  def watch() -> None:
    while not ended.wait(0.005):
      peak[0] = max(peak[0], allocated())

  watching = threading.Thread(target=watch)
  watching.start()
  start = time.perf_counter()
  work()
  seconds = time.perf_counter() - start
  ended.set()
  watching.join()
  more = max(peak[0] - before, 0)
  print(f"| {label} | {seconds:.2f} | {more:,.0f} |", flush=True)


def main(_: list[str]) -> None:
  """Prints the table."""
  with tempfile.TemporaryDirectory() as folder:
    vectors = make(Path(folder) / "vectors.npy")
    vectors.max()
    print(f"| {vectors.shape[0]:,} x {vectors.shape[1]} | seconds | MB |")
    print("| --- | --- | --- |")
    measure("standardise", lambda: neighbours.fit(vectors))
    space = neighbours.fit(vectors)
    for count in (1, 100):
      measure(
        f"{TOP} nearest to {count}",
        lambda count=count: neighbours.nearest(
          vectors[:count], vectors, space, TOP
        ),
      )
    if not _PEER.value:
      return
    peer = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    for count in (1, 100):
      measure(
        f"scikit-learn, {TOP} nearest to {count}",
        lambda count=count: peer.kneighbors(vectors[:count], TOP),
      )


if __name__ == "__main__":
  app.run(main)
