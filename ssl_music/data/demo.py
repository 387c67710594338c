"""Built-in demo music: 160 short pieces with known tags, made on the spot.

Nothing has to be downloaded to try the whole way from audio to scores. Each
piece is composed (a style, a tempo, a mode, a key, a chord progression, a
melody that follows it, a form that goes from thin to full), played by
`demo_synth`'s instruments, and put into a room of its own. Loudness,
equalisation and reverb are drawn independently of the tags, so what tells the
tags apart is in the music: timbres, speed, metre and harmony. Key and
equalisation change within a track, so two segments of it share these traits
more surely than anything that has nothing to do with a tag.

`track` and `describe` are pure functions of (index, seed): workers can make
tracks in any order.
"""

import functools
import os

import numpy as np

from ssl_music.data import demo_score, demo_synth, plans, writer
from ssl_music.data.tracks import default_data_dir, find
from ssl_music.errors import InputError

SAMPLE_RATE = demo_synth.SAMPLE_RATE
TRACKS = 160
TAGS = (
  "genre---ballad",
  "genre---dance",
  "genre---march",
  "genre---waltz",
  "instrument---bass",
  "instrument---bell",
  "instrument---bowed",
  "instrument---drums",
  "instrument---flute",
  "instrument---organ",
  "instrument---plucked",
  "mood/theme---fast",
  "mood/theme---minor",
  "mood/theme---slow",
)
# Quarter notes a minute. No tempo lies near the bounds of slow and fast: what
# is neither is between 90 and 118.
SLOW, MIDDLE, FAST = (60, 79), (90, 118), (132, 170)

# 12 of each 20 for training, 3 for validation, 5 for test: 96, 24 and 40. A
# quarter of the tracks are kept for the test, since the average precision of
# a tag with ten positives already moves by 0.1 from one draw to the next.
_SPLITS = ("train",) * 12 + ("validation",) * 3 + ("test",) * 5
_CHORDALS = ("bell", "bowed", "organ", "plucked")  # can accompany
_DUETS = tuple(
  (lead, other)
  for lead in (*_CHORDALS, "flute")
  for other in _CHORDALS
  if lead != other
)

_ENDING = 0.8  # s after the final chord, for the room to die away


def describe(index: int, seed: int = 0) -> dict:
  """Says what a track will be, without synthesising it.

  Args:
    index: 0 to `TRACKS` - 1.
    seed: of the whole data set, not negative.

  Returns:
    "id", "tags" (sorted) and "split", as from `track`; "genre"; "tempo" in
    quarter notes a minute; "mode", "major" or "minor"; "lead" and
    "accompaniment", instruments; "bass" and "drums", bools; "beats" in a bar;
    "bars", the last one a single chord; "chords", Roman numerals at equal
    distances, one or two a bar; "tonics", for each chord the key's pitch
    class, from 0 (C) to 11.
  """
  if not 0 <= index < TRACKS:
    raise ValueError(f"index must be 0 to {TRACKS - 1}, not {index}")
  row = _table(seed)[index]
  rng = np.random.default_rng([seed, index, 0])
  style = demo_score.STYLES[row["genre"]]
  bar = style["beats"] * 60 / row["tempo"]
  bars = 1 + int(rng.integers(np.ceil(18 / bar), 27.5 // bar, endpoint=True))
  # A harmony held for 3 s would be the only one in some segments.
  progression = str(rng.choice(style[row["mode"]])).split()
  slots = 2 if style["beats"] == 4 and bar > 3 else 1
  chords = (progression * bars)[: slots * (bars - 1) - 1]
  chords += ["V7"] + ["I" if row["mode"] == "major" else "i"] * slots
  # One or two modulations, where the progression starts anew: the key does not
  # tell tracks apart.
  moves = np.cumsum([rng.integers(12), *rng.choice((-5, -2, 2, 5), 2)])
  period = len(progression) * int(np.ceil(len(chords) / 12))
  keys = np.minimum(np.arange(len(chords)) // period, 2)
  keys[-slots:] = keys[-slots - 1]  # the last cadence stays in its key
  return {
    "id": f"demo_{index:04d}",
    "tags": _tags(row),
    "split": _SPLITS[index % len(_SPLITS)],
    **row,
    "beats": style["beats"],
    "bars": bars,
    "chords": chords,
    "tonics": [int(tonic) for tonic in moves[keys] % 12],
  }


def track(index: int, seed: int = 0) -> tuple[np.ndarray, dict]:
  """Makes one track.

  Args:
    index: 0 to `TRACKS` - 1.
    seed: of the whole data set, not negative.

  Returns:
    The waveform, mono at 16 kHz, float32 [samples] of 20 to 30 s, within
    ±1; and {"id": "demo_0007", "tags": [...], "split": "train"}, the tags
    sorted and from `TAGS`, the split "train", "validation" or "test".
  """
  about = describe(index, seed)
  # Streams of their own: another way to compose keeps the same instruments.
  play, sound, room = (
    np.random.default_rng([seed, index, stream]) for stream in (1, 2, 3)
  )
  score = demo_score.compose(about, play)
  seconds = (about["bars"] - 1) * about["beats"] * 60 / about["tempo"]
  seconds += demo_score.FINAL + _ENDING
  samples = round(seconds * SAMPLE_RATE)
  parts = {"lead": about["lead"], "accompaniment": about["accompaniment"]}
  if about["bass"]:
    parts["bass"] = "bass"
  mix = np.zeros(samples, np.float32)
  for part, instrument in parts.items():
    tone = demo_synth.draw_style(instrument, sound)
    stem = demo_synth.render(score[part], instrument, tone, samples)
    mix += demo_synth.level(stem) * _gain(part, sound)
  if about["drums"]:
    kit = demo_synth.draw_kit(sound)
    stem = demo_synth.render_drums(score["drums"], kit, samples)
    mix += demo_synth.level(stem) * _gain("drums", sound)
  wave = demo_synth.master(mix, room)
  return wave, {key: about[key] for key in ("id", "tags", "split")}


def plan(tracks: int = TRACKS, seed: int = 0) -> dict:
  """Plans the data set; see `plans`.

  Args:
    tracks: how many, from the first on.
    seed: of the music.
  """
  made = [describe(index, seed) for index in range(tracks)]
  return plans.make(
    "demo",
    [
      {key: one[key] for key in ("id", "tags", "split")}
      | {"path": one["id"], "artist": "", "index": index, "seed": seed}
      for index, one in enumerate(made)
    ],
    _load,
    tags=list(TAGS),
    description="Synthetic music with known tags.",
  )


def ensure(name: str, data_dir: str | os.PathLike | None) -> None:
  """Makes the data set "demo" if `name` asks for it and it is not there.

  Args:
    name: of one data set, or of several joined by "+".
    data_dir: TFDS's; None is the default.
  """
  if "demo" not in name.split("+"):
    return
  folder = data_dir or default_data_dir()
  try:
    find("demo", folder)
  except InputError:
    writer.write("demo", plan(), data_dir=folder)


@functools.lru_cache(maxsize=8)
def _table(seed):
  """What is balanced over all tracks: a dict for each index."""
  # Each column is dealt within a split, like cards: for every seed, every
  # split has its share of every tag.
  rng = np.random.default_rng([seed, TRACKS])
  rows = [{} for _ in range(TRACKS)]
  for split in dict.fromkeys(_SPLITS):
    own = [i for i in range(TRACKS) if _SPLITS[i % len(_SPLITS)] == split]
    genres = _deal(tuple(demo_score.STYLES), len(own), rng)
    columns = {
      "genre": genres,
      "tempo": _tempi(genres, rng),
      "mode": _deal(("major", "minor"), len(own), rng),
      "duet": _deal(_DUETS, len(own), rng),
      "bass": _deal((False, True), len(own), rng),
      "drums": _deal((False, True), len(own), rng),
    }
    for place, index in enumerate(own):
      row = {name: column[place] for name, column in columns.items()}
      row["lead"], row["accompaniment"] = row.pop("duet")
      rows[index] = row
  return rows


def _deal(options, count, rng):
  """So many options in random order, each as often as the others."""
  order = [options[i] for i in rng.permutation(len(options))]
  deck = (order * (count // len(order) + 1))[:count]
  return [deck[i] for i in rng.permutation(count)]


def _tempi(genres, rng):
  """A tempo for each genre, in the shares of its style."""
  tempi = np.zeros(len(genres))
  for genre in sorted(set(genres)):
    own = np.flatnonzero(np.array(genres) == genre)
    ranks = (rng.permutation(own.size) + rng.uniform()) / own.size
    bounds = np.cumsum(demo_score.STYLES[genre]["tempi"])[:-1]
    for index, rank in zip(own, ranks, strict=True):
      low, high = (SLOW, MIDDLE, FAST)[int(np.sum(rank >= bounds))]
      tempi[index] = rng.uniform(low, high)
  return [float(tempo) for tempo in tempi]


def _tags(row):
  tags = [f"genre---{row['genre']}"]
  tags += [f"instrument---{row[part]}" for part in ("lead", "accompaniment")]
  tags += [f"instrument---{part}" for part in ("bass", "drums") if row[part]]
  bounds = {"slow": SLOW, "fast": FAST}
  tags += [
    f"mood/theme---{name}"
    for name, (low, high) in bounds.items()
    if low <= row["tempo"] <= high
  ]
  if row["mode"] == "minor":
    tags.append("mood/theme---minor")
  return sorted(tags)


def _gain(part, rng):
  """How loud a part is in the mix, as a factor."""
  low, high = {
    "lead": (-3, 3),
    "accompaniment": (-5, 1),
    "bass": (-6, 1),
    "drums": (-8, 0),
  }[part]
  return np.float32(10 ** (rng.uniform(low, high) / 20))


def _load(row):
  return [track(row["index"], row["seed"])[0]]
