"""GTZAN: 1,000 excerpts in ten genres, in their fault-filtered split.

- Source: G. Tzanetakis and P. Cook, "Musical Genre Classification of Audio
  Signals", 2002; once on http://marsyas.info/downloads/datasets.html, now
  passed on as copies (the original's .au, or .wav made of it).
- Licence: none is stated; the excerpts are of commercial recordings.
- Size: 30 s each, mono at 22,050 Hz, 1.2 GB in all.
- Split: C. Kereliuk, B. L. Sturm and J. Larsen, "Deep Learning and Music
  Adversaries", IEEE Transactions on Multimedia 17(11), 2015. It leaves out 70
  excerpts that Sturm's catalogue ("The GTZAN dataset: Its contents, its faults,
  their effects on evaluation, and its future use", 2013) holds against the data
  set, repeated or distorted ones. The lists are in this module.
- Counts: train 443, validation 197, test 290.

Layout, where `genres` may also be called `genres_original`, lie in a folder
`Data`, or be the source itself:

    SOURCE/genres/blues/blues.00000.au
    SOURCE/genres/blues/blues.00001.au
    …
    SOURCE/genres/rock/rock.00099.au

Other formats are taken just as well (blues.00000.wav).
"""

import os
from pathlib import Path

from ssl_music.data import files, folder, plans
from ssl_music.errors import InputError
from ssl_music.text import utf8

# The field's names as they are: there is one kind of tag only.
GENRES = [
  "blues",
  "classical",
  "country",
  "disco",
  "hiphop",
  "jazz",
  "metal",
  "pop",
  "reggae",
  "rock",
]
EACH = 100  # excerpts a genre, numbered from 0
KNOWN_BAD = {"jazz.00054": "cannot be decoded in copies that circulate"}
PUBLISHED = {
  "tracks": {"train": 443, "validation": 197, "test": 290},
  "fingerprint": "ada110a1cba7",
  "labels": "16fecc534c7e",
}
_FOLDERS = ("", "genres", "genres_original", "Data/genres_original")
_CITATION = """@article{tzanetakis2002musical,
  author = {Tzanetakis, George and Cook, Perry},
  title = {Musical Genre Classification of Audio Signals},
  journal = {IEEE Transactions on Speech and Audio Processing},
  volume = {10},
  number = {5},
  pages = {293--302},
  year = {2002},
}
@article{kereliuk2015deep,
  author = {Kereliuk, Corey and Sturm, Bob L. and Larsen, Jan},
  title = {Deep Learning and Music Adversaries},
  journal = {IEEE Transactions on Multimedia},
  volume = {17},
  number = {11},
  pages = {2059--2071},
  year = {2015},
}
"""
# {split: {genre: the numbers of its excerpts}}
_RANGES = {
  "train": {
    "blues": "29-49 73-97",
    "classical": "30-33 43-48 50-67 80-99",
    "country": "19-26 28-29 65-99",
    "disco": "5 15-20 22-37 39-45 47 49 53-54 56-57 59 61 70 73-74 89",
    "hiphop": "2-25 28-29 31-38 41-42 55-61 77-80",
    "jazz": "0-1 11-24 41 47-72",
    "metal": "2-3 5 21 24 35 46-57 59-66 69 71-72 79-80 84 86 89-99",
    "pop": "2-9 11-12 16-20 23-29 31-36 38-42 44 46 49-50 80 97-99",
    "reggae": "0-2 4 6 9 11-12 14-32 42-45 49-51 54-60 63 69",
    "rock": "0-9 16-26 57-70 91-99",
  },
  "validation": {
    "blues": "0-11 50-60",
    "classical": "0-10 68-76",
    "country": "0-7 9-18 27 41-42 45 49",
    "disco": "0 2-4 6-14 46 48 52 67-68 72 75 90 95",
    "hiphop": "81-98",
    "jazz": "2-10 25-32",
    "metal": "0-1 6-11 16-20 36-37 68 76-77 81-82",
    "pop": "10 53 55 58-62 81 83-86",
    "reggae": "61-62 70 72 74 76-78 85 92-99",
    "rock": "38 49-56 71-85",
  },
  "test": {
    "blues": "12-28 61-72 98-99",
    "classical": "11-29 34-41 49 77-79",
    "country": "30-40 43-44 46-48 50-51 53-64",
    "disco": "1 21 58 62-66 69 76-88 91-94 96-97 99",
    "hiphop": "0 26-27 30 40 43-45 51-54 62-75 99",
    "jazz": "73-99",
    "metal": "12-15 22-23 25-33 38-39 67 70 73-75 78 83 85 87-88",
    "pop": "0-1 13-14 43 63-66 69-79 82 88-96",
    "reggae": "34-40 46-48 52-53 64-68 71 79 82-84 87-90",
    "rock": "10-15 27-37 39-48 86-90",
  },
}


def split() -> dict[str, str]:
  """Returns {id: split} of the 930 excerpts, by split, genre and number."""
  found: dict[str, str] = {}
  for name, genres in _RANGES.items():
    for genre, ranges in genres.items():
      found |= {f"{genre}.{n:05d}": name for n in _expand(ranges)}
  return found


def plan(
  source: str | os.PathLike, *, max_seconds: float | None = 600.0
) -> dict:
  """Plans the data set; nothing is decoded yet.

  Args:
    source: the folder, laid out as above.
    max_seconds: how much of each track is kept, from its start; None is all.

  Returns:
    a plan, as `writer.write` takes it: each excerpt of the split is a track,
    its genre its only tag. The excerpts that the split leaves out are no
    tracks, not even unlabelled ones, since some of them repeat others.

  Raises:
    InputError: there are no genres' folders.
  """
  source = Path(source)
  root = _genres_folder(source)
  inside = root.relative_to(source)
  paths = files.find_audio(root)
  by_id = {
    Path(stem).name: path
    for stem, path in files.by_stem(paths).items()
    if _is_excerpt(stem)
  }
  rows = []
  for track, name in split().items():
    genre = track.partition(".")[0]
    path = by_id.get(track)
    rows.append(
      {
        "id": track,
        "path": utf8(str(inside / (path or f"{genre}/{track}.au"))),
        "file": None if path is None else str(root / path),
        "split": name,
        "tags": [genre],
        "artist": "",
      }
    )
  counts = PUBLISHED["tracks"]
  return plans.make(
    "gtzan",
    rows,
    folder.Load(max_seconds),
    tags=list(GENRES),
    description=(
      "GTZAN: excerpts of 30 s, one of ten genres each, in the fault-filtered"
      f" split ({counts['train']} train, {counts['validation']} validation,"
      f" {counts['test']} test), which leaves out 70 of the 1,000 for"
      " repetitions and distortions; its tables name no artists."
    ),
    citation=_CITATION,
    licence=(
      "None is stated; the excerpts are of commercial recordings and circulate"
      " for research."
    ),
    benchmark="GTZAN, fault-filtered split",
    published=PUBLISHED,
    known_bad=KNOWN_BAD,
    notes=_notes(paths, by_id),
  )


def _expand(ranges: str) -> list[int]:
  """Returns [0, 3, 4, 5] of "0 3-5"."""
  found = []
  for part in ranges.split():
    first, _, last = part.partition("-")
    found += range(int(first), int(last or first) + 1)
  return found


def _genres_folder(source: Path) -> Path:
  """Returns the folder with most of the genres' folders."""
  if not source.is_dir():
    raise InputError(f"no folder {source}: give one with --source")
  counts = {
    source / name: sum((source / name / genre).is_dir() for genre in GENRES)
    for name in _FOLDERS
  }
  best = max(counts, key=counts.get)
  if not counts[best]:
    places = ", ".join(map(str, counts))
    raise InputError(
      f"no folder of a genre (blues, classical, …) in any of {places}: give the"
      " folder that holds GTZAN's genres with --source"
    )
  return best


def _is_excerpt(stem: str) -> bool:
  """Tells whether a file is one of the 1,000: "blues/blues.00000"."""
  genre, _, number = Path(stem).name.partition(".")
  return (
    genre in GENRES
    and len(number) == 5
    and number.isascii()
    and number.isdecimal()
    and int(number) < EACH
    and stem == f"{genre}/{genre}.{number}"
  )


def _notes(paths: list[str], by_id: dict[str, str]) -> list[str]:
  """Says what of the folder is not taken."""
  notes = []
  others = len(by_id.keys() - split().keys())
  if others:
    notes.append(
      "Of the 70 excerpts that the split leaves out for repetitions and"
      f" distortions, {others} are here and not taken."
    )
  strange = [p for p in paths if not _is_excerpt(os.path.splitext(p)[0])]  # noqa: PTH122
  if strange:
    notes.append(
      "Audio files that are no excerpts of GTZAN, and not taken:"
      f" {len(strange)}, such as {utf8(strange[0])}."
    )
  copies = len(paths) - len(strange) - len(by_id)
  if copies:
    notes.append(
      f"Further files of an excerpt in other formats, not taken: {copies}."
    )
  return notes
