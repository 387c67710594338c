"""Instruments, drum kit and room of the built-in demo music, in numpy.

A pitched note is held by `tone`, one function a method of synthesis: plucked
strings (Karplus-Strong), frequency-modulated bells, and wavetables for organ,
bowed string, flute and bass. `render` places notes of one instrument in time
and shapes their beginnings and ends, `render_drums` does the same for hits,
and `master` puts the mix into a room and through an equaliser.

No oscillator has a partial above `BAND_LIMIT` (of a bell, under 1 % of its
amplitude has), so nothing aliases at 16 kHz.
Draws come from the caller's generator, or from the seed within a style.
"""

import functools
import math

import numpy as np

SAMPLE_RATE = 16_000
BAND_LIMIT = 7200.0
INSTRUMENTS = ("bass", "bell", "bowed", "flute", "organ", "plucked")

_BANDS = 7  # of the equaliser, from 50 to 8,000 Hz
_STAGES = 3  # of the equaliser's drift over a track
_CYCLE = 2048  # samples of a wavetable
_MASTER_FFT = 2**19  # 32.8 s: the longest track and the tail of its room
_STRING_FFT = 2**16  # 4.1 s: by then every plucked string is silent

# Seconds of (attack, release): raised cosines, so that no note clicks.
_FADES = {
  "bass": (0.008, 0.06),
  "bell": (0.003, 0.3),
  "bowed": (0.11, 0.15),
  "flute": (0.05, 0.09),
  "organ": (0.015, 0.06),
  "plucked": (0.002, 0.12),
}


def hertz(pitch: float) -> float:
  """Frequency of a MIDI pitch: 440 Hz for 69, doubling every 12."""
  return 440.0 * 2.0 ** ((pitch - 69) / 12)


def draw_style(instrument: str, rng: np.random.Generator) -> dict:
  """Draws one player's instrument: two tracks share a kind, not a sound.

  Args:
    instrument: one of `INSTRUMENTS`.
    rng: source of the draws.

  Returns:
    The arguments of the synthesis, for `tone`; what they are depends on the
    instrument. "attack" and "release" (seconds) and "seed" always exist.
  """
  if instrument not in INSTRUMENTS:
    raise ValueError(f"{instrument!r} is not one of {INSTRUMENTS}")
  u = rng.uniform
  attack, release = _FADES[instrument]
  style = {
    "attack": attack * u(0.7, 1.4),
    "release": release * u(0.7, 1.4),
    "seed": int(rng.integers(2**31)),
  }
  if instrument == "plucked":
    own = {
      "decay": u(1.2, 3.0),  # seconds to -60 dB
      "damping": u(0.12, 0.5),  # of high partials
      "position": u(0.1, 0.3),  # where along the string
      "tilt": u(0.9, 1.5),
    }
  elif instrument == "bell":
    own = {
      "ratio": rng.choice([1.41, 2.76, 3.5]),  # inharmonic on purpose
      "index": u(0.8, 2.2),  # above 2.4 the carrier itself is lost
      "decay": u(1.5, 3.5),  # seconds to -30 dB at 440 Hz
    }
  elif instrument == "organ":
    own = {
      # Stops of 16', 5 1/3', 4', 2 2/3', 2', 1 3/5', 1'; 8' is always 1.
      "stops": u(0.0, 0.65, 7) * (u(size=7) < 0.7),
      "tremulant": u(0.0, 0.12),
      "rate": u(5.0, 7.0),
    }
  elif instrument == "bowed":
    own = {
      "vibrato": u(0.004, 0.009),  # relative depth; 0.0058 is 10 cents
      "rate": u(4.8, 6.4),
      "tilt": u(0.9, 1.3),
      "body": u([250, 700, 1800], [450, 1300, 3200]),  # Hz, resonances
      "breath": u(0.005, 0.02),
    }
  elif instrument == "flute":
    own = {
      "vibrato": u(0.001, 0.004),
      "rate": u(4.5, 5.8),
      "tremolo": u(0.05, 0.2),
      "overtones": np.array([u(0.2, 0.6), u(0.05, 0.25), u(0.02, 0.08)]),
      "breath": u(0.02, 0.07),
    }
  else:
    own = {
      "cutoff": u(220, 600),  # Hz
      "decay": u(0.8, 3.0),
      "even": u(0.3, 1.0),  # level of even partials, 1 for a sawtooth
    }
  return style | own


def tone(
  instrument: str, frequency: float, seconds: float, style: dict
) -> np.ndarray:
  """One held note, without the fades that `render` adds.

  Args:
    instrument: one of `INSTRUMENTS`.
    frequency: of the fundamental, in Hz, 30 to 2,000.
    seconds: how long.
    style: from `draw_style` for the same instrument.

  Returns:
    float32 [seconds · 16,000], peak about 1 (not normalised).
  """
  time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
  return _TONES[instrument](frequency, time, style).astype(np.float32)


def render(
  notes: np.ndarray, instrument: str, style: dict, samples: int
) -> np.ndarray:
  """Plays notes on one instrument.

  Each pitch is synthesised once, as long as its longest note: a track of
  hundreds of notes has some fifteen pitches.

  Args:
    notes: [N, 4], a row of start (s), duration (s), MIDI pitch, velocity
      (0 to 1, an amplitude).
    instrument: one of `INSTRUMENTS`.
    style: from `draw_style`.
    samples: length of the result; what rings longer is cut.

  Returns:
    float32 [samples]; silence without notes.
  """
  out = np.zeros(samples, np.float32)
  for pitch in np.unique(notes[:, 2]):
    same = notes[notes[:, 2] == pitch]
    longest = same[:, 1].max() + style["release"]
    held = tone(instrument, hertz(pitch), longest, style)
    for start, duration, _, velocity in same:
      first = round(start * SAMPLE_RATE)
      size = round((duration + style["release"]) * SAMPLE_RATE)
      size = min(size, samples - first, held.size)
      if size > 0:
        note = held[:size] * np.float32(velocity)
        # A short note still has to speak: at most half of it is attack.
        _fade(note, min(style["attack"], duration / 2), style["release"])
        out[first : first + size] += note
  return out


def draw_kit(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Draws a drum kit: float32 one-shots "kick", "snare" and "hat"."""
  u = rng.uniform
  time = np.arange(round(0.45 * SAMPLE_RATE)) / SAMPLE_RATE

  def decay(seconds):
    return np.exp(-time / seconds)

  low = u(42, 60)
  sweep = low * time + u(2, 4) * u(0.02, 0.04) * low * -np.expm1(-time / 0.03)
  kick = np.sin(2 * np.pi * sweep) * decay(u(0.06, 0.13))
  head = np.sin(2 * np.pi * u(160, 240) * time) * decay(0.05)
  rattle = _noise(time.size, u(700, 1500), u(4500, 7000), rng)
  snare = u(0.3, 0.8) * head + 0.35 * rattle * decay(u(0.04, 0.09))
  hat = 0.35 * _noise(time.size, u(3800, 5200), BAND_LIMIT, rng)
  kit = {"kick": kick, "snare": snare, "hat": hat * decay(u(0.015, 0.06))}
  for name, hit in kit.items():
    kit[name] = hit.astype(np.float32)
    _fade(kit[name], 0.001, 0.1)
  return kit


def render_drums(
  hits: dict[str, np.ndarray], kit: dict, samples: int
) -> np.ndarray:
  """Plays a drum kit: {name: [N, 2] start (s), velocity} → [samples]."""
  out = np.zeros(samples, np.float32)
  for name, rows in hits.items():
    for start, velocity in rows:
      first = round(start * SAMPLE_RATE)
      hit = kit[name][: max(samples - first, 0)]
      out[first : first + hit.size] += hit * np.float32(velocity)
  return out


def level(stem: np.ndarray) -> np.ndarray:
  """Scales a stem to a root mean square of 0.1 where it plays.

  Silent stretches do not count, so a part that enters late is not louder.
  """
  power = np.square(stem[: stem.size // 800 * 800]).reshape(-1, 800).mean(1)
  playing = power > 1e-4 * max(power.max(initial=0.0), 1e-12)
  if not playing.any():
    return stem
  return stem * np.float32(0.1 / np.sqrt(power[playing].mean()))


def master(mix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Room, equaliser, noise floor and loudness of one recording.

  They are drawn independently of the music: what is played cannot be read
  off the spectrum's slope or the level. The equaliser drifts, as if the
  microphone were carried about, so that neither says for sure whether two
  segments are of one recording.

  Args:
    mix: float32 [samples], at most 30 s.
    rng: source of the draws.

  Returns:
    float32 [samples], its peak between -14 and -0.5 dB of full scale.
  """
  spectrum = np.fft.rfft(mix, _MASTER_FFT)
  spectrum *= np.fft.rfft(_room(rng), _MASTER_FFT)
  lasting = rng.normal(0, 2.0, _BANDS)  # dB
  heard = []
  for _ in range(_STAGES + 1):
    gains = (lasting + rng.normal(0, 4.0, _BANDS)).clip(-10, 10)
    curve = sum(map(np.multiply, _bands(), gains.astype(np.float32) / 20))
    heard.append(np.fft.irfft(spectrum * np.float32(10) ** curve)[: mix.size])
  out = heard[0]
  ends = np.linspace(0, mix.size, _STAGES + 1).astype(int)
  for stage in range(_STAGES):
    own = slice(ends[stage], ends[stage + 1])
    old, new = heard[stage][own], heard[stage + 1][own]
    out[own] = old + np.linspace(0, 1, old.size, dtype=np.float32) * (new - old)
  hiss = rng.standard_normal(mix.size, np.float32) * out.std()
  out += hiss * np.float32(10 ** (rng.uniform(-60, -45) / 20))
  _fade(out, 0.01, 0.3)
  peak = max(float(np.abs(out).max()), 1e-9)
  return out * np.float32(10 ** (rng.uniform(-14, -0.5) / 20) / peak)


def _room(rng):
  """Impulse response: the direct sound, then echoes that die away."""
  size = round(rng.uniform(0.3, 1.4) * SAMPLE_RATE)  # to -60 dB
  time = np.arange(size) / size
  # High frequencies die away twice as fast, as among furniture.
  echoes = _noise(size, 60, 1200, rng) * np.exp(-6.9 * time)
  echoes += _noise(size, 1200, BAND_LIMIT, rng) * np.exp(-13.8 * time)
  _fade(echoes, 0.01, 0.02)  # the first ones come after the direct sound
  echoes *= rng.uniform(0.1, 0.5) / np.sqrt(np.square(echoes).sum())
  echoes[0] += 1.0
  return echoes.astype(np.float32)


def _plucked(frequency, time, style):
  # Karplus-Strong, solved in the frequency domain: the loop (a delay of one
  # period, a two-point low-pass, a gain) is a linear filter, its delay may be
  # fractional, and one transform replaces a filter of hundreds of taps.
  omega = 2 * np.pi * np.arange(_STRING_FFT // 2 + 1) / _STRING_FFT
  at = 2 * np.pi * frequency / SAMPLE_RATE
  damping = style["damping"]
  own_delay = -np.angle(1 - damping + damping * np.exp(-1j * at)) / at
  period = SAMPLE_RATE / frequency
  gain = 10 ** (-3 / (frequency * style["decay"]))
  loop = gain * (1 - damping + damping * np.exp(-1j * omega))
  loop *= np.exp(-1j * omega * (period - own_delay))
  partials = np.arange(1, int(BAND_LIMIT / frequency) + 1)
  shape = np.sin(np.pi * partials * style["position"])
  table = _cycle(shape / partials ** style["tilt"], style["seed"])
  burst = _oscillate(table, np.arange(int(np.ceil(period))) / period)
  burst -= burst.mean()  # the loop would keep an offset longest of all
  string = np.fft.irfft(np.fft.rfft(burst, _STRING_FFT) / (1 - loop))
  return np.pad(string, (0, time.size))[: time.size]


def _bell(frequency, time, style):
  ratio = style["ratio"]
  # The n-th partial above the carrier has about (index / 2)^n / n! of its
  # amplitude: the first one too high to sound is to stay under 1 %.
  above = 1 + max(int((BAND_LIMIT - frequency) / (ratio * frequency)), 0)
  most = 2 * (0.01 * math.factorial(above)) ** (1 / above)
  decay = style["decay"] * (440 / frequency) ** 0.4
  index = min(style["index"], most) * np.exp(-time / (0.35 * decay))
  phase = 2 * np.pi * frequency * time
  ring = np.sin(phase + index * np.sin(ratio * phase))
  return ring * np.exp(-3.5 * time / decay)


def _organ(frequency, time, style):
  amplitudes = np.zeros(17)  # of half the frequency, for the 16' stop
  amplitudes[2] = 1.0
  amplitudes[[1, 3, 4, 6, 8, 10, 16]] = style["stops"]
  keep = int(BAND_LIMIT / (frequency / 2))
  table = _cycle(amplitudes[1 : keep + 1], style["seed"])
  sway = np.sin(2 * np.pi * style["rate"] * time)
  sound = _oscillate(table, frequency / 2 * time)
  return sound * (1 + style["tremulant"] * sway)


def _bowed(frequency, time, style):
  partials = np.arange(1, int(BAND_LIMIT / frequency / 1.02) + 1)
  away = (partials * frequency / style["body"][:, None] - 1) / 0.3
  body = 0.4 + (1.2 / (1 + np.square(away))).sum(0)
  table = _cycle(body / partials ** style["tilt"], style["seed"])
  onset = np.minimum(time / 0.35, 1.0)  # vibrato comes after the attack
  phase = _vibrato(frequency, time, style["vibrato"] * onset, style["rate"])
  return _oscillate(table, phase) + _breath(frequency, time, style)


def _flute(frequency, time, style):
  amplitudes = np.concatenate([[1.0], style["overtones"]])
  amplitudes = amplitudes[: int(BAND_LIMIT / frequency / 1.02)]
  table = _cycle(amplitudes, style["seed"])
  phase = _vibrato(frequency, time, style["vibrato"], style["rate"])
  sway = np.sin(2 * np.pi * style["rate"] * time)
  sound = _oscillate(table, phase) + _breath(frequency, time, style)
  return sound * (1 + style["tremolo"] * sway)


def _bass(frequency, time, style):
  partials = np.arange(1, int(min(BAND_LIMIT, 2500) / frequency) + 1)
  low_pass = 1 / (1 + (partials * frequency / style["cutoff"]) ** 3)
  even = np.where(partials % 2 == 0, style["even"], 1.0)
  table = _cycle(even * low_pass / partials, style["seed"])
  return _oscillate(table, frequency * time) * np.exp(-time / style["decay"])


_TONES = {
  "bass": _bass,
  "bell": _bell,
  "bowed": _bowed,
  "flute": _flute,
  "organ": _organ,
  "plucked": _plucked,
}


def _cycle(amplitudes, seed):
  """One period of a sum of harmonics with random phases, peak 1."""
  spectrum = np.zeros(_CYCLE // 2 + 1, complex)
  turns = np.random.default_rng(seed).uniform(size=amplitudes.size)
  spectrum[1 : turns.size + 1] = amplitudes * np.exp(2j * np.pi * turns)
  table = np.fft.irfft(spectrum)
  return table / np.abs(table).max()


def _oscillate(table, phase):
  """Reads a wavetable at phases in periods, between its points."""
  position = (phase % 1.0) * _CYCLE
  left = position.astype(np.int64)
  left %= _CYCLE  # 1 - 1e-17 rounds up to a whole period
  step = np.diff(table, append=table[0])
  return table[left] + (position - np.floor(position)) * step[left]


def _vibrato(frequency, time, depth, rate):
  sway = 1 + depth * np.sin(2 * np.pi * rate * time)
  return np.cumsum(frequency * sway) / SAMPLE_RATE


def _breath(frequency, time, style):
  # The seed holds for a pitch, not for a style: no two pitches hiss alike.
  rng = np.random.default_rng([style["seed"], round(frequency)])
  high = min(4 * frequency, BAND_LIMIT)
  return style["breath"] * _noise(time.size, frequency, high, rng)


def _noise(size, low, high, rng):
  """Gaussian noise of unit variance between two frequencies in Hz."""
  padded = max(1 << (size - 1).bit_length(), 16)  # a fast transform
  frequency = np.fft.rfftfreq(padded, 1 / SAMPLE_RATE)
  # Slopes of an eighth, since a sharp edge would ring.
  gain = np.clip((frequency - 0.875 * low) / (0.125 * low), 0, 1)
  gain *= np.clip((1.125 * high - frequency) / (0.125 * high), 0, 1)
  white = np.fft.rfft(rng.standard_normal(padded))
  noise = np.fft.irfft(gain * white)[:size]
  return noise / max(noise.std(), 1e-12)


@functools.cache
def _bands():
  """An equaliser's bands, cosines in octaves that add up to 1 everywhere."""
  frequency = np.fft.rfftfreq(_MASTER_FFT, 1 / SAMPLE_RATE)
  place = np.log2(frequency.clip(50) / 50) * (_BANDS - 1) / np.log2(160)
  away = np.abs(place - np.arange(_BANDS)[:, None]).clip(0, 1)
  return (0.5 + 0.5 * np.cos(np.pi * away)).astype(np.float32)


def _fade(sound, attack, release):
  """Raised-cosine fades of so many seconds, in place."""
  rise = min(round(attack * SAMPLE_RATE), sound.size)
  fall = min(round(release * SAMPLE_RATE), sound.size)
  sound[:rise] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(rise) / max(rise, 1))
  slope = 0.5 + 0.5 * np.cos(np.pi * np.arange(1, fall + 1) / max(fall, 1))
  sound[sound.size - fall :] *= slope
