"""Compiled programs are kept between runs, since they take long to compile."""

import hashlib
import os
import platform
from pathlib import Path

import jax


def keep(cache_home: str | os.PathLike | None = None) -> None:
  """Turns on XLA's persistent cache, for what has not been compiled yet.

  Programs lie below the user's cache folder, in one for each kind of
  processor: of a home that several machines share, none may meet the code of
  another. Where `JAX_COMPILATION_CACHE_DIR` or jax's own setting names a
  folder, or `JAX_ENABLE_COMPILATION_CACHE` is false, that stands. Where nobody
  knows the user's home, none are kept.

  Args:
    cache_home: None is `$XDG_CACHE_HOME`, else `~/.cache`.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return
  folder = cache_home or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  try:
    folder = Path(folder).expanduser() / "ssl_music" / "compiled" / _processor()
  except RuntimeError:  # of a user without a home
    return
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)  # of a sweep's jobs
  jax.config.update("jax_compilation_cache_dir", str(folder))


def _processor() -> str:
  """Returns a name that machines of the same instructions share."""
  about = platform.machine()
  info = Path("/proc/cpuinfo")
  if info.is_file():
    lines = info.read_text(encoding="utf-8").splitlines()
    able = [line for line in lines if line.startswith(("flags", "Features"))]
    about += able[0] if able else ""
  digest = hashlib.sha256(about.encode()).hexdigest()
  return f"{platform.machine()}-{digest[:12]}"
