"""Whether a run has collapsed, judged by the entries of its log."""

from collections.abc import Mapping, Sequence

from ssl_music.pretext import PRETEXTS
from ssl_music.pretext.record import Sign


def signs(entry: Mapping[str, float], task: str) -> list[Sign]:
  """Returns the signs of collapse that an entry shows.

  Args:
    entry: of metrics.jsonl, with the fields of `diagnostics.describe` and the
      task's metrics; a field that is missing or not a number is no sign.
    task: the pretext task's name.
  """
  return [
    sign
    for sign in PRETEXTS[task].signs
    if sign.metric in entry and _holds(sign, entry)
  ]


def watch(
  entries: Sequence[Mapping[str, float]],
  *,
  task: str,
  warmup: int = 0,
  patience: int = 3,
) -> str | None:
  """Says whether a run has collapsed.

  It has when the same sign holds in each of the last `patience` entries that
  have its field.

  Args:
    entries: of metrics.jsonl so far, in order of their "step"; see `signs`.
    task: the pretext task's name.
    warmup: entries up to this step do not count.
    patience: entries, at least 1.

  Returns:
    One sentence with the sign, its value now, the step since which it holds
    without a break, and what to try; None if the run has not collapsed.
  """
  counted = [entry for entry in entries if entry["step"] > warmup]
  for sign in PRETEXTS[task].signs:
    since, held, value = None, 0, None
    for entry in reversed([e for e in counted if sign.metric in e]):
      if sign not in signs(entry, task):
        break
      since, held = entry["step"], held + 1
      value = entry[sign.metric] if value is None else value
    if held >= patience:
      advice = sign.advice or PRETEXTS[task].advice
      return (
        f"collapsed since step {since}: {sign.meaning} ({sign.metric}"
        f" {value:.4g}): {advice}"
      )
  return None


def _holds(sign: Sign, entry: Mapping[str, float]) -> bool:
  value = entry[sign.metric]
  return value > sign.limit if sign.above else value < sign.limit
