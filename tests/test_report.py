import csv
import html
import importlib.metadata
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import fake_runs
import numpy as np
import pytest

from ssl_music import appendix, published, report, results, summary
from ssl_music.errors import InputError

MTAT = "MagnaTagATune, cleaned split (rebuilt)"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """A report of two encoders with two seeds each, and what lies about."""
  top = tmp_path_factory.mktemp("study")
  fake_runs.study(
    top,
    ("mel", "contrastive"),
    seeds=(0, 1),
    benchmark=MTAT,
    as_published=True,
    left_out=["hum"],
    tags=("calm", "a<b>|c"),
    shares=(0.1, 1.0),
    missing={"train": 0, "validation": 0, "test": 3},
  )
  half = top / "half"
  half.mkdir()
  (half / "scores.json").write_text('{"encoder": "mel", "test": {')
  (top / "other").mkdir()
  (top / "other" / "config.json").write_text("[]")
  (top / "other" / "metrics.jsonl").write_bytes(b"\xff\xfe{")
  assert report.main([str(top)]) == 0
  return top / "report"


class Outline(HTMLParser):
  """Collects a page's links, headings, and images without a text."""

  def __init__(self):
    super().__init__()
    self.ids, self.links, self.bare, self.open = set(), set(), 0, []

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.ids.add(attributes.get("id"))
    for name in ("href", "src", "srcset"):
      self.links |= {attributes.get(name)} - {None}
    self.bare += tag == "img" and not attributes.get("alt")
    if tag not in ("meta", "img", "source"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_the_page_needs_nothing_besides_itself(written):
  text = (written / "index.html").read_text()
  outline = Outline()
  outline.feed(text)
  assert outline.open == []
  assert not outline.bare
  beside = {file.name for file in written.iterdir()}
  for link in outline.links:
    inside = link.startswith("data:image/svg+xml;base64,")
    assert inside or link[1:] in outline.ids or link in beside
  assert {"results.csv", "tags.csv", "scores.svg"} <= outline.links
  assert "url(" not in text
  assert "a<b>" not in text
  assert "a&lt;b&gt;|c" in text


def test_the_page_says_when_by_what_and_of_which_runs_it_was_made(written):
  text = html.unescape((written / "index.html").read_text())
  version = importlib.metadata.version("ssl_music")
  assert re.search(rf"Made on 20\d\d-.* UTC by ssl_music {version}, of", text)
  runs = [*(written.parent / "probe" / "own").iterdir()]
  runs += (written.parent / "pretrain").iterdir()
  assert len(runs) == 6
  for folder in runs:
    assert f'<th scope="row">{folder}</th>' in text


def test_figures_are_of_one_column_on_a_narrow_screen(written):
  """Those of several; the others are the same on every screen."""
  text = (written / "index.html").read_text()
  assert text.count("<source media") == 2  # curves and collapse
  assert text.count("<img alt") == 6


def test_what_cannot_be_read_is_skipped_and_said(written):
  found = json.loads((written / "results.json").read_text())
  assert [re.search(r"\w+(?=:)", s)[0] for s in found["skipped"]] == [
    "half",
    "other",
  ]
  assert "half" in (written / "results.md").read_text()


def test_csv_has_a_row_an_encoder_share_and_metric(written):
  with (written / "results.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 2 * 2 * len(results.METRICS)
  keys = {(r["encoder"], r["share"], r["metric"]) for r in rows}
  assert len(keys) == len(rows)
  folder = written.parent / "probe" / "own"
  seeds = [
    json.loads((folder / f"mel-seed{s}" / "scores.json").read_text())
    for s in (0, 1)
  ]
  expected = [one["shares"][0]["test"]["map_macro"] for one in seeds]
  (row,) = [
    r
    for r in rows
    if (r["encoder"], r["share"], r["metric"]) == ("mel", "0.1", "map_macro")
  ]
  assert float(row["score"]) == pytest.approx(sum(expected) / 2)
  lowest = min(min(s["shares"][0]["by_draw"]["map_macro"]) for s in seeds)
  assert float(row["lowest_draw"]) == lowest
  with (written / "tags.csv").open() as file:
    assert {r["tag"] for r in csv.DictReader(file)} == {"calm", "a<b>|c"}


def test_every_figure_is_there_twice_and_in_the_markdown(written):
  names = {"scores", "shares", "comparison", "tags_own", "curves", "collapse"}
  assert {file.stem for file in written.glob("*.png")} == names
  assert {file.stem for file in written.glob("*.svg")} == names
  text = (written / "results.md").read_text()
  assert set(re.findall(r"\]\((\w+)\.png\)", text)) == names
  for said in (
    "3 test tracks are missing",
    "hum",
    r"a\<b\>\|c",
    "another scale",
    "the dots lie above the score",
  ):
    assert said in text


def test_names_control_neither_terminal_nor_spreadsheet(tmp_path, capsys):
  name = "a\x1b[2Jb\ud800-->"
  for index, one in enumerate(("mel", name)):
    folder = tmp_path / str(index)
    fake_runs.probe(folder, one, tags=("=1+1", "calm"))
  assert report.main([str(tmp_path)]) == 0
  said = capsys.readouterr().out
  assert "\x1b" not in said
  assert r"a\u001b[2Jb\ud800-->" in said
  out = tmp_path / "report"
  for file in ("index.html", "results.md"):
    assert "\x1b" not in (out / file).read_text()
  for file in out.glob("*.svg"):
    ElementTree.parse(file)
  with (out / "tags.csv").open() as file:
    assert {row["tag"] for row in csv.DictReader(file)} == {"'=1+1", "calm"}


def test_an_old_report_is_replaced_as_a_whole(written, monkeypatch):
  before = (written / "results.json").read_bytes()
  monkeypatch.setattr(summary, "figures_of", lambda *_, **__: [])
  left = written.parent / ".report.partial" / "new" / "figures"
  left.mkdir(parents=True)  # of a killed process

  def full(*_):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(report, "_csv", full)
    with pytest.raises(InputError, match="No space left"):
      report.write([written.parent], written)
  assert (written / "results.json").read_bytes() == before
  assert {file.name for file in written.parent.iterdir()} == {
    "half",
    "other",
    "pretrain",
    "probe",
    "report",
  }
  (out := written.parent / "again").mkdir()
  (out / "index.html").touch()
  (out / "old.png").touch()
  report.write([written.parent], out)
  assert (out / "results.json").read_bytes() == before
  assert not (out / "old.png").exists()


def test_two_reports_leave_each_other_alone(written, monkeypatch):
  before = (written / "results.json").read_bytes()
  refused = []

  def meanwhile(*_, **__):
    """Another process writes the same report, in the midst of this one."""
    with pytest.raises(InputError, match=r"another .* writing a report to"):
      report.write([written.parent], written)
    refused.append(True)
    return []

  monkeypatch.setattr(summary, "figures_of", meanwhile)
  report.write([written.parent], written)
  assert refused
  assert (written / "results.json").read_bytes() == before


def test_other_folders_are_not_overwritten(tmp_path):
  fake_runs.probe(tmp_path / "run", "mel")
  with pytest.raises(InputError, match="something else than a report"):
    report.write([tmp_path / "run"], tmp_path)
  assert (tmp_path / "run" / "scores.json").exists()


def test_a_probe_alone_is_printed_only(tmp_path, capsys):
  fake_runs.probe(tmp_path / "run", "mel")
  assert report.main([str(tmp_path / "run")]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 3
  assert not (tmp_path / "run" / "report").exists()


def test_a_pretraining_alone_has_its_curves_written(tmp_path, capsys):
  fake_runs.pretraining(tmp_path / "run", "byol")
  fake_runs.pretraining(tmp_path / "other", "mel")
  assert report.main([str(tmp_path / "run")]) == 0
  out = tmp_path / "run" / "report"
  assert capsys.readouterr().out == f"report: {out / 'index.html'}\n"
  assert {file.stem for file in out.glob("*.svg")} == {"curves", "collapse"}
  both = [str(tmp_path / "run"), str(tmp_path / "other")]
  with pytest.raises(InputError, match=r"pre-trainings alone.*give --out=DIR"):
    report.main(both)


def test_nothing_to_report_is_explained(tmp_path):
  with pytest.raises(InputError, match=r"no scores in .*: give the workdir"):
    report.main([str(tmp_path)])
  with pytest.raises(InputError, match="no folder"):
    report.main([str(tmp_path / "none")])


def test_only_scores_of_the_same_test_tracks_are_compared(tmp_path):
  fake_runs.probe(tmp_path / "a", "mel")
  fake_runs.probe(tmp_path / "b", "contrastive")
  fake_runs.probe(tmp_path / "c", "byol", tracks={"train": 400, "test": 79})
  probes, _, _ = report.find([tmp_path])
  panels = results.panels(probes)
  pairs = summary.compare_all(panels)["own"]["map_macro"]
  assert {(p["first"], p["second"]) for p in pairs} == {
    ("mel", "contrastive"),
    ("contrastive", "mel"),
  }
  names = list(panels["own"])
  values = summary.matrix(names, pairs)
  a, b, c = (names.index(n) for n in ("mel", "contrastive", "byol"))
  samples = [np.load(tmp_path / n / "resamples.npz")["map_macro"] for n in "ab"]
  assert values[b, a] == np.mean(samples[1] > samples[0])
  assert values[a, b] + values[b, a] == 1
  assert np.isnan([values[a, c], values[c, b], values[a, a]]).all()
  said = " ".join(appendix.caveats(panels))
  assert "not all encoders were scored on the same number" in said


def test_published_scores_stand_beside_their_benchmark_alone():
  theirs = published.beside(MTAT, True)
  assert theirs["contrastive"]["map_macro"] == 0.4303
  assert theirs["byol"]["shares"][0.05] == 0.320
  assert published.beside(MTAT, False) == {}
  assert published.beside(f"{MTAT}, 10 of 50 tags", True) == {}
  assert published.beside("MTG-Jamendo top50, split 0", None)["vicreg"] == {
    "map_macro": 0.2157,
    "roc_auc_macro": 0.7669,
    "shares": {},
  }
