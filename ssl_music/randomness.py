"""Random draws that follow from what they are for, not from when they come."""

import json
import zlib
from typing import Any

import numpy as np


def generator(seed: int, *purpose: Any) -> np.random.Generator:
  """Returns the generator of one kind of draw.

  A draw must not depend on what else a run draws, or in which order. So its
  generator is named by its purpose, never by a place in a list.

  Args:
    seed: of the run.
    *purpose: what is drawn, and for which case, as in "minibatches", 0.1, 3;
      strings and numbers that JSON can hold.
  """
  name = json.dumps(purpose).encode()
  return np.random.default_rng([seed, zlib.crc32(name)])
