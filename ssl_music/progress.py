"""Progress bars."""

import functools
import sys

from tqdm import tqdm

# In a log file every refresh is a line of its own.
bar = functools.partial(
  tqdm, mininterval=0.2 if sys.stderr.isatty() else 10, dynamic_ncols=True
)
