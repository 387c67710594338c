import numpy as np
import pytest

from ssl_music.data import demo, demo_score, demo_synth

RATE = demo.SAMPLE_RATE
# A few tracks of every genre; synthesising all would take too long.
SOME = range(12, 24)


@pytest.fixture(scope="module")
def descriptions():
  return [demo.describe(index) for index in range(demo.TRACKS)]


@pytest.fixture(scope="module")
def tracks():
  return {index: demo.track(index) for index in SOME}


def spectrum(wave):
  power = np.square(np.abs(np.fft.rfft(wave * np.hanning(wave.size))))
  return np.fft.rfftfreq(wave.size, 1 / RATE), power


def bar_length(about):
  return about["beats"] * 60 / about["tempo"]


def melodies(about, parts):
  """Pitches of some parts, each with the tonic at its time."""
  score = demo_score.compose(about, np.random.default_rng(0))
  slot_length = bar_length(about) * about["bars"] / len(about["chords"])
  for start, _, pitch, _ in np.concatenate([score[part] for part in parts]):
    # Players may be 12 ms early.
    slot = int((start - 0.03 + 0.013) / slot_length)
    yield int(pitch), about["tonics"][slot]


def play(instrument, pitch, seconds=1.0, seed=0):
  style = demo_synth.draw_style(instrument, np.random.default_rng(seed))
  note = np.array([[0.0, seconds, pitch, 1.0]])
  samples = round((seconds + 1) * RATE)
  return demo_synth.render(note, instrument, style, samples)


def test_a_track_depends_on_seed_and_index_alone(tracks):
  wave, about = tracks[13]
  demo._table.cache_clear()
  demo.track(20, seed=1)
  again, same = demo.track(13)
  np.testing.assert_array_equal(again, wave)
  assert same == about
  other, _ = demo.track(13, seed=1)
  assert other.size != wave.size or not np.allclose(other, wave)


def test_tracks_differ(tracks):
  starts = np.array([wave[: 4 * RATE] for wave, _ in tracks.values()])
  similarity = np.corrcoef(starts)
  assert np.abs(similarity - np.eye(len(starts))).max() < 0.5


def test_segments_of_a_track_differ(tracks):
  for wave, _ in tracks.values():
    size = 4 * RATE
    first, second = wave[RATE : RATE + size], wave[3 * size : 4 * size]
    ratio = np.corrcoef(first, second)[0, 1]
    assert abs(ratio) < 0.7


def test_waveforms_are_sound(tracks):
  for wave, _ in tracks.values():
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert 20 * RATE <= wave.size <= 30 * RATE
    assert np.isfinite(wave).all()
    peak = np.abs(wave).max()
    assert 0.19 < peak <= 1
    half_seconds = wave[: wave.size // 8000 * 8000].reshape(-1, 8000)
    loud = np.sqrt(np.square(half_seconds).mean(1)) > 1e-2 * peak
    between = np.diff(np.flatnonzero(loud), prepend=-1, append=loud.size) - 1
    assert between.max() < 4
    # Nothing starts or ends with a click.
    assert max(abs(wave[0]), abs(wave[-1])) < 1e-3


def test_track_returns_what_describe_says(tracks):
  for index, (_, about) in tracks.items():
    described = demo.describe(index)
    assert about == {key: described[key] for key in ("id", "tags", "split")}
  assert tracks[12][1]["id"] == "demo_0012"


@pytest.mark.parametrize("index", [-1, demo.TRACKS])
def test_there_are_no_other_tracks(index):
  with pytest.raises(ValueError, match=f"0 to {demo.TRACKS - 1}"):
    demo.describe(index)


def test_tags_are_the_vocabulary(descriptions):
  used = {tag for about in descriptions for tag in about["tags"]}
  assert sorted(used) == sorted(demo.TAGS) == list(demo.TAGS)
  for about in descriptions:
    assert about["tags"] == sorted(set(about["tags"]))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_every_tag_has_both_sides_in_each_split(seed):
  rows = [demo.describe(index, seed) for index in range(demo.TRACKS)]
  counts = {"train": 96, "validation": 24, "test": 40}
  for split, count in counts.items():
    own = [row["tags"] for row in rows if row["split"] == split]
    assert len(own) == count
    for tag in demo.TAGS:
      share = np.mean([tag in tags for tags in own])
      assert 0.1 < share < 0.6, (split, tag)


def test_tags_say_what_is_played(descriptions):
  for index, about in enumerate(descriptions):
    tags = set(about["tags"])
    rng = np.random.default_rng(index)
    score = demo_score.compose(about, rng)
    playing = {about["lead"], about["accompaniment"]}
    playing |= {"bass"} if len(score["bass"]) else set()
    playing |= {"drums"} if score["drums"] else set()
    named = {t[13:] for t in tags if t.startswith("instrument---")}
    assert playing == named
    assert ("genre---waltz" in tags) == (about["beats"] == 3)
    assert len(score["lead"]) and len(score["accompaniment"])


def test_tempo_tags_follow_the_tempo(descriptions):
  for about in descriptions:
    tempo = about["tempo"]
    assert 60 <= tempo <= 170
    assert ("mood/theme---slow" in about["tags"]) == (tempo < 80)
    assert ("mood/theme---fast" in about["tags"]) == (tempo > 130)
    assert not 80 < tempo < 90 and not 120 < tempo < 130


def test_notes_fall_on_the_grid(descriptions):
  for about in descriptions[::10]:
    score = demo_score.compose(about, np.random.default_rng(0))
    starts = np.concatenate([score["lead"], score["accompaniment"]])[:, 0]
    quarters = (starts - 0.03) * about["tempo"] / 60
    late = np.abs(quarters * 4 - np.round(quarters * 4)) / 4
    assert (late * 60 / about["tempo"]).max() < 0.0125


def test_the_beat_can_be_heard(descriptions):
  # Drums on every beat: energy rises again one beat later, not at lags that
  # are no fraction of a bar.
  index = next(
    index
    for index, about in enumerate(descriptions)
    if about["genre"] == "dance" and about["drums"]
  )
  wave, _ = demo.track(index)
  energy = np.square(wave[: wave.size // 160 * 160]).reshape(-1, 160).sum(1)
  onset = np.maximum(np.diff(np.log(energy + 1e-6 * energy.max())), 0)
  onset = np.convolve(onset - onset.mean(), np.hanning(7), "same")
  beat = 60 / descriptions[index]["tempo"] / 0.01  # in frames of 10 ms

  def echo(lag):
    lags = [int(lag), int(lag) + 1]
    return max(onset[k:] @ onset[:-k] for k in lags) / (onset @ onset)

  assert echo(beat) > 0.2
  assert echo(beat) > echo(0.62 * beat) + 0.1
  assert echo(beat) > echo(1.38 * beat) + 0.1


def test_harmony_is_in_the_mode(descriptions):
  for about in descriptions:
    minor = about["mode"] == "minor"
    assert minor == ("mood/theme---minor" in about["tags"])
    home = "i" if minor else "I"
    assert about["chords"][0] == about["chords"][-1] == home
    third = 3 if minor else 4
    assert third in demo_score.CHORDS[home]
    sounding = {
      (pitch - tonic) % 12
      for pitch, tonic in melodies(about, parts=("lead", "accompaniment"))
    }
    # The other mode's third never sounds.
    assert third in sounding and 7 - third not in sounding


def test_every_track_changes_its_key(descriptions):
  for about in descriptions:
    assert len(about["tonics"]) == len(about["chords"])
    assert len(set(about["tonics"])) > 1


def test_melody_follows_the_chords(descriptions):
  for about in descriptions[::5]:
    score = demo_score.compose(about, np.random.default_rng(3))
    for start, _, pitch, _ in score["lead"]:
      place = (start - 0.03) / bar_length(about)
      if abs(place - round(place)) * bar_length(about) > 0.013:
        continue  # not on a bar's first beat
      slot = round(place * len(about["chords"]) / about["bars"])
      chord = demo_score.CHORDS[about["chords"][slot]]
      assert (pitch - about["tonics"][slot]) % 12 in chord


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("instrument", demo_synth.INSTRUMENTS)
def test_instruments_are_in_tune(instrument, seed):
  pitch = 33 if instrument == "bass" else 69
  frequency, power = spectrum(play(instrument, pitch, 2.0, seed))
  near = np.abs(frequency / demo_synth.hertz(pitch) - 1) < 0.2
  peak = frequency[near][power[near].argmax()]
  assert peak == pytest.approx(demo_synth.hertz(pitch), rel=0.01)


@pytest.mark.parametrize("instrument", ["organ", "plucked"])
def test_the_fundamental_is_strongest(instrument):
  frequency, power = spectrum(play(instrument, 69))
  assert frequency[power.argmax()] == pytest.approx(440, rel=0.01)


@pytest.mark.parametrize("instrument", ["organ", "plucked"])
def test_no_partial_is_aliased(instrument):
  # All of the energy lies on multiples of half the fundamental (the organ's
  # 16' stop): an alias would lie between them.
  hertz = demo_synth.hertz(85)
  frequency, power = spectrum(play(instrument, 85, 2.0))
  between = np.abs(frequency / hertz * 2 % 1 - 0.5) < 0.4
  assert power[between].sum() < 1e-4 * power.sum()


@pytest.mark.parametrize("instrument", demo_synth.INSTRUMENTS)
def test_notes_begin_and_end_softly(instrument):
  wave = play(instrument, 57, 0.2)
  last = np.flatnonzero(wave)[-1]
  peak = np.abs(wave).max()
  assert np.abs(wave[:4]).max() < 0.05 * peak
  assert np.abs(wave[last - 4 :]).max() < 0.01 * peak
  assert last < RATE


def test_unknown_instruments_are_refused():
  with pytest.raises(ValueError, match="kazoo"):
    demo_synth.draw_style("kazoo", np.random.default_rng(0))


def test_no_notes_are_silence():
  style = demo_synth.draw_style("organ", np.random.default_rng(0))
  wave = demo_synth.render(np.zeros((0, 4)), "organ", style, 100)
  np.testing.assert_array_equal(demo_synth.level(wave), np.zeros(100))
