"""Styles of the built-in demo music, and how a piece is written in one.

`STYLES` holds what makes a waltz a waltz: metre, tempi, progressions, figures
of the accompaniment, rhythms of the melody, drum patterns. `compose` turns a
description of a piece (`demo.describe`) into notes in seconds, which
`demo_synth` plays. Pure functions of their arguments and a generator.
"""

import re

import numpy as np

# Semitones above the tonic. Upper case is major, lower case minor.
CHORDS = {
  "I": (0, 4, 7),
  "ii": (2, 5, 9),
  "IV": (5, 9, 0),
  "V": (7, 11, 2),
  "V7": (7, 11, 2, 5),
  "vi": (9, 0, 4),
  "i": (0, 3, 7),
  "iv": (5, 8, 0),
  "VI": (8, 0, 3),
  "VII": (10, 2, 5),
}
_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}

# A pattern is one bar, cut into equal steps: a symbol starts a note, "-" holds
# it, "." rests. R and F are root and fifth, C the chord, digits its tones
# from below, N a note of the melody, x a stroke. "tempi" are the shares of
# slow, middle and fast pieces, "touch" how much of its length a note sounds.
STYLES = {
  "ballad": {
    "beats": 4,
    "touch": 0.95,
    "tempi": (0.6, 0.4, 0.0),
    "major": ("I vi IV V", "I IV ii V7", "I V vi IV"),
    "minor": ("i VI iv V", "i VI VII i", "i iv i V7"),
    "bass": ("R---R---", "R---F---"),
    "block": ("C---C---", "C---C-C-"),
    "broken": ("01232123", "01212321"),
    "melody": ("N---N---", "N---N-N-", "N-----NN", "N-N-N---"),
    "drums": {"kick": "x......x", "snare": "....x...", "hat": "x.x.x.x."},
  },
  "dance": {
    "beats": 4,
    "touch": 0.6,
    "tempi": (0.0, 0.5, 0.5),
    "major": ("I V vi IV", "I I IV V", "I IV I V"),
    "minor": ("i VI VII i", "i VII VI V", "i iv i V"),
    "bass": ("R.R.R.R.", "RRR.R.RR"),
    "block": (".C.C.C.C", ".C.CCC.C"),
    "broken": (".0.2.1.2", ".0.1.2.3"),
    "melody": ("N--N--N-", "N-NN-NN-", ".NN-N-N-", "N--NN-NN"),
    "drums": {"kick": "x.x.x.x.", "snare": "..x...x.", "hat": ".x.x.x.x"},
  },
  "march": {
    "beats": 4,
    "touch": 0.6,
    "tempi": (0.2, 0.4, 0.4),
    "major": ("I I V V7", "I IV I V7", "I IV V I"),
    "minor": ("i i V V7", "i iv i V", "i iv VII V"),
    "bass": ("R...F...", "R...F.R."),
    "block": ("..C...C.", "..C...CC"),
    "broken": ("..01..21", "..12..C."),
    "melody": (
      "N--NN---N---N---",
      "N---N---N--NN---",
      "N--NN--NN-------",
      "N---N-N-N---N---",
    ),
    "drums": {
      "kick": "x...x...",
      "snare": "....x.......x.xx",
      "hat": "x.x.x.x.",
    },
  },
  "waltz": {
    "beats": 3,
    "touch": 0.8,
    "tempi": (0.25, 0.4, 0.35),
    "major": ("I V7 V7 I", "I IV V7 I", "I vi ii V7"),
    "minor": ("i V7 V7 i", "i iv V7 i", "i VI iv V7"),
    "bass": ("R-....", "R-----"),
    "block": ("..C.C.", "..C-C-"),
    "broken": ("..C.21", "..1.2."),
    "melody": ("N---N-", "N-----", "N-N-N-", "N-NNN-"),
    "drums": {"kick": "x.....", "snare": "....x.", "hat": "..x.x."},
  },
}

# Share of the piece, who joins the accompaniment and its bass (Lead, Drums or
# softly drums), level. Every piece starts thinner than it goes on.
_FORMS = (
  ((0.15, "", 0.5), (0.4, "Ld", 0.8), (0.3, "LD", 1.0), (0.15, "L", 0.7)),
  ((0.2, "L", 0.5), (0.35, "LD", 0.9), (0.1, "d", 0.6), (0.35, "LD", 1.0)),
  ((0.15, "d", 0.6), (0.4, "LD", 0.8), (0.15, "L", 0.6), (0.3, "LD", 1.0)),
)
FINAL = 1.4  # s, the chord that stands for the last bar
_PHRASES = ("abac", "aabc", "abcb")


def compose(about: dict, rng: np.random.Generator) -> dict:
  """Writes the notes of a described track.

  Args:
    about: from `describe`.
    rng: source of the draws.

  Returns:
    "lead", "accompaniment" and "bass" (empty if the track has none): arrays
    [notes, 4] of start (s), duration (s), MIDI pitch, velocity (0 to 1); and
    "drums": {name: array [strokes, 2] of start (s), velocity}, {} without.
  """
  plan = _plan(about["bars"], rng)
  chords, low = _accompany(about, plan, rng)
  lead = _melody(about, plan, rng)
  if not about["bass"]:  # somebody has to play the roots
    chords += [(start, size, p + 12, v) for start, size, p, v in low]
    low = []
  beat = _beat(about, plan) if about["drums"] else {}
  drums = {
    name: _perform(rows, about, rng)[:, [0, 3]] for name, rows in beat.items()
  }
  parts = {"lead": lead, "accompaniment": chords, "bass": low}
  notes = {name: _perform(rows, about, rng) for name, rows in parts.items()}
  return {**notes, "drums": drums}


def _plan(bars, rng):
  """Who plays what in each bar: a dict for each."""
  form = _FORMS[rng.integers(len(_FORMS))]
  ends = np.cumsum([share for share, _, _ in form])
  # A slow swell on top of the sections' levels.
  swell = np.interp(
    np.arange(bars), np.linspace(0, bars, 5), rng.uniform(0.6, 1.0, 5)
  )
  first = rng.integers(2)  # neighbouring sections differ in texture
  lifts = rng.choice((0, 0, 12), len(form))
  variants = rng.integers(2, size=(len(form), 2))
  plan = []
  for bar in range(bars):
    section = min(int(np.sum((bar + 0.5) / bars > ends)), len(form) - 1)
    plan.append(
      {
        "parts": form[section][1],
        "level": form[section][2] * swell[bar],
        "texture": ("block", "broken")[(first + section) % 2],
        "lift": int(lifts[section]),
        "variants": variants[section],
        "last": bar == bars - 1,
      }
    )
  return plan


def _strokes(pattern, about):
  """Reads a bar's pattern: (symbol, start, length), the times in beats."""
  if len(pattern) == 1:  # the final chord lasts as long at any tempo
    yield pattern, 0.0, FINAL * about["tempo"] / 60
    return
  step = about["beats"] / len(pattern)
  for match in re.finditer(r"[^.-]-*", pattern):
    symbols = match.group()
    yield symbols[0], match.start() * step, len(symbols) * step


def _harmony(about, beat):
  """Pitch classes at a beat: of the chord, the root first, and the scale."""
  width = about["bars"] * about["beats"] / len(about["chords"])
  slot = int(beat / width + 1e-6)
  tonic = about["tonics"][slot]
  chord = [(t + tonic) % 12 for t in CHORDS[about["chords"][slot]]]
  scale = {(t + tonic) % 12 for t in _SCALES[about["mode"]]}
  leading = (tonic + 11) % 12
  if leading in chord:  # a minor key's dominant raises the seventh
    scale = (scale - {(tonic + 10) % 12}) | {leading}
  return chord, scale


def _near(target, classes):
  """The pitch nearest to a target whose class is among some."""
  around = range(round(target) - 6, round(target) + 7)
  return min(
    (pitch for pitch in around if pitch % 12 in classes),
    key=lambda pitch: abs(pitch - target),
  )


def _voice(chord, centre):
  """A chord's pitches, in the inversion that lies closest to a centre.

  Neighbouring chords so share tones or move by steps.
  """
  inversions = []
  for first in range(len(chord)):
    pitches = [chord[first]]
    for tone in chord[first + 1 :] + chord[:first]:
      pitches.append(pitches[-1] + (tone - pitches[-1]) % 12)
    shift = 12 * round((centre - np.mean(pitches)) / 12)
    inversions.append([pitch + shift for pitch in pitches])
  return min(inversions, key=lambda pitches: abs(np.mean(pitches) - centre))


def _accompany(about, plan, rng):
  """Chords and bass line: rows of (beat, beats, pitch, velocity)."""
  style = STYLES[about["genre"]]
  centre = rng.uniform(58, 66)
  chords, low = [], []
  for bar, own in enumerate(plan):
    start = bar * about["beats"]
    figure = style[own["texture"]][own["variants"][0]]
    bass = style["bass"][own["variants"][1]]
    touch = style["touch"]
    if own["last"]:
      figure, bass, touch = "C", "R", 1.0
    for symbol, beat, size in _strokes(figure, about):
      pitches = _voice(_harmony(about, start + beat)[0], centre)
      if symbol != "C":
        ladder = [*pitches[:3], pitches[0] + 12]
        pitches = [ladder[int(symbol)]]
      strength = own["level"] * (1 if beat % 2 == 0 else 0.8)
      chords += [(start + beat, touch * size, p, strength) for p in pitches]
    for symbol, beat, size in _strokes(bass, about):
      here, _ = _harmony(about, start + beat)
      # On a chord that has just come in the bass plays its root.
      changed = beat > 0 and here != _harmony(about, start)[0]
      root = 28 + (here[0] - 28) % 12
      pitch = root + 7 if symbol == "F" and not changed else root
      low.append((start + beat, touch * size, pitch, own["level"]))
  return chords, low


def _melody(about, plan, rng):
  """Lead line: chord tones on strong beats, the scale between them."""
  cells = STYLES[about["genre"]]["melody"]
  picks = rng.permutation(len(cells))[:3]
  # A motif is a rhythm and a contour in semitones: repeated over other
  # chords it is recognised, and still fits them.
  motifs = {
    letter: (cells[pick], np.cumsum(rng.normal(0, 2.5, 16)))
    for letter, pick in zip("abc", picks, strict=True)
  }
  phrase = _PHRASES[rng.integers(len(_PHRASES))]
  centre = rng.uniform(67, 76)
  rows = []
  for bar, own in enumerate(plan):
    if "L" not in own["parts"]:
      continue
    start = bar * about["beats"]
    rhythm, contour = motifs[phrase[bar % 4]]
    if own["last"]:
      rhythm, contour = "N", [0]
    for count, (_, beat, size) in enumerate(_strokes(rhythm, about)):
      chord, scale = _harmony(about, start + beat)
      strong = beat % 2 == 0 or size >= 1
      classes = chord if strong else scale
      target = centre + own["lift"] + np.clip(contour[count], -8, 8)
      target = min(target, 88)  # above lies too little of the spectrum
      pitch = _near(target, chord[:1] if own["last"] else classes)
      strength = own["level"] * (1 if strong else 0.75)
      rows.append((start + beat, 0.95 * size, pitch, strength))
  return rows


def _beat(about, plan):
  """Drum strokes: {name: rows of (beat, beats, 0, velocity)}."""
  rows = {name: [] for name in ("kick", "snare", "hat")}
  for bar, own in enumerate(plan):
    if "d" not in own["parts"].lower():
      continue
    start = bar * about["beats"]
    level = own["level"] * (1.0 if "D" in own["parts"] else 0.5)
    for name, pattern in STYLES[about["genre"]]["drums"].items():
      if own["last"]:
        pattern = "x"
      for _, beat, size in _strokes(pattern, about):
        accent = 1.0 if beat % 1 == 0 else 0.7
        rows[name].append((start + beat, size, 0, level * accent))
  return rows


def _perform(rows, about, rng):
  """Beats to seconds, as played by people: never quite on time or even."""
  notes = np.array(rows, float).reshape(-1, 4)
  notes[:, :2] *= 60 / about["tempo"]
  notes[:, 0] += 0.03 + rng.normal(0, 0.005, len(notes)).clip(-0.012, 0.012)
  notes[:, 3] *= rng.uniform(0.8, 1.0, len(notes))
  return notes
