"""Damages of files, as disks, power cuts and people make them."""


def mutations(whole, rng):
  """Yields what becomes of a file's content; None where it is lost."""
  yield None
  yield b""
  yield whole[: rng.randrange(len(whole))]
  yield whole + b"\0"
  place = rng.randrange(len(whole))
  for byte in (whole[place] ^ 1 << rng.randrange(8), whole[place] ^ 0xFF):
    yield whole[:place] + bytes([byte]) + whole[place + 1 :]
  size = min(64, len(whole))
  start = rng.randrange(len(whole) - size + 1)
  yield whole[:start] + bytes(size) + whole[start + size :] + b"\n"


def put(file, content):
  """Gives a file such a content."""
  file.unlink(missing_ok=True)
  if content is not None:
    file.write_bytes(content)
