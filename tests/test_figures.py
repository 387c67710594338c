import re
from xml.etree import ElementTree

import fake_runs
import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from ssl_music import drawing, figures, report, results, summary

NAMES = [*fake_runs.QUALITY, "finetune:contrastive", "byol (teacher)", "own"]


def test_every_encoder_looks_different_and_the_same_everywhere():
  style = drawing.styles([*NAMES, "supervised", "other"])
  looks = {(s["color"], s["marker"]) for s in style.values()}
  assert len(looks) == len(style)
  assert drawing.styles(["mel", "byol"])["byol"] == style["byol"]
  assert style["finetune:contrastive"]["color"] == style["contrastive"]["color"]
  assert style["byol (teacher)"]["linestyle"] != style["byol"]["linestyle"]
  for name in ("mel", "random"):  # grey
    color = style[name]["color"]
    assert color[1:3] == color[3:5] == color[5:7]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  top = tmp_path_factory.mktemp("runs")
  fake_runs.study(top, ("mel", "byol"), ("own", "mtat"), shares=(0.1, 1.0))
  probes, trainings, _ = report.find([top])
  return results.panels(probes), trainings


def test_scores_are_drawn_where_they_are(found):
  panels, _ = found
  figure = figures.scores(panels, drawing.styles(NAMES))
  assert len(figure.axes) == 4
  for axis, title in zip(figure.axes[:2], panels, strict=True):
    order = [label.get_text() for label in axis.get_yticklabels()]
    values = [panels[title][name]["test"]["map_macro"] for name in order]
    assert values == sorted(values)
    # One large mark an encoder, on its row.
    marks = [line for line in axis.lines if line.get_marker() not in ("None",)]
    drawn = [(m.get_xdata()[0], m.get_ydata()[0]) for m in marks]
    assert drawn == [(value, row) for row, value in enumerate(values)]
    assert len(axis.collections) == len(order)


def test_shares_have_a_band_of_draws(found):
  panels, _ = found
  figure = figures.shares(panels, drawing.styles(NAMES))
  axis = figure.axes[0]
  assert [t.get_text() for t in axis.get_xticklabels()] == ["10", "100"]
  draws = panels["mtat"]["byol"]["shares"][0]["draws"]["map_macro"]
  bands = [band.get_paths()[0].vertices[:, 1] for band in axis.collections]
  assert any(
    np.isclose(band, min(draws)).any() and np.isclose(band, max(draws)).any()
    for band in bands
  )
  whole = {
    title: {
      name: one | {"shares": one["shares"][-1:]} for name, one in groups.items()
    }
    for title, groups in panels.items()
  }
  assert figures.shares(whole, drawing.styles(NAMES)) is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_any_number_of_data_sets_has_its_panels(count):
  figure, axes = drawing.pairs(count, 2, 2)
  assert axes.shape == (2, count)
  visible = [axis for axis in figure.axes if axis.get_visible()]
  assert set(visible) == set(axes.ravel())
  for top, bottom in axes.T:
    first, second = (a.get_subplotspec() for a in (top, bottom))
    assert first.colspan == second.colspan
    assert first.rowspan.start + 1 == second.rowspan.start


def test_tags_are_ordered_by_their_positives(found):
  panels, _ = found
  figure = figures.tags("own", panels["own"])
  labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
  assert labels == ["calm (60)", "dance (30)", "rock (20)"]


def test_curves_survive_runs_that_have_just_begun(found):
  _, trainings = found
  begun = trainings[0] | {"entries": [{"step": 10, "loss": float("nan")}]}
  figure = figures.curves([begun], drawing.styles(NAMES))
  assert figure.axes[0].get_title() == "loss, byol"
  figures.collapse_signs([begun], drawing.styles(NAMES))


def test_long_names_are_not_cut_off_and_files_are_the_same_again(
  found, tmp_path
):
  panels, _ = found
  before = dict(matplotlib.rcParams)
  long = "a$long$name_" * 5
  panels = {long: {long: next(iter(panels["own"].values()))}}
  for name in ("long", "again"):
    with drawing.settings():
      figure = figures.scores(panels, drawing.styles([long]))
      (tmp_path / f"{name}.png").write_bytes(drawing.png(figure))
      (tmp_path / f"{name}.svg").write_bytes(drawing.svg(figure))
  picture = imread(tmp_path / "long.png")[..., :3]
  for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
    assert (edge == 1).all()
  assert dict(matplotlib.rcParams) == before
  for kind in ("svg", "png"):
    files = [tmp_path / f"{name}.{kind}" for name in ("long", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_files_of_tag_figures_never_meet(found):
  panels, _ = found
  names = summary.tag_figures({"a/b": panels["own"], "a:b": panels["own"]})
  assert len(names) == 2
  assert not any("/" in name for name in names)


def test_a_figure_is_legible_on_light_and_dark_pages(found):
  panels, trainings = found
  style = drawing.styles(NAMES)
  with drawing.settings():
    for figure in (
      figures.scores(panels, style),
      figures.curves(trainings, style),
    ):
      text = drawing.svg(figure).decode()
      head, rest = text.split("</style>", 1)
      assert "prefers-color-scheme: dark" in head
      # Neither black ink nor white paper, which one of the two would hide.
      assert not re.search("#(0{6}|f{6})|white|black", rest, re.IGNORECASE)
      ElementTree.fromstring(text)


def test_panels_stand_in_one_column_on_a_narrow_screen(found):
  panels, trainings = found
  style = drawing.styles(NAMES)
  for figure in (
    figures.scores(panels, style, across=1),
    figures.shares(panels, style, across=1),
    figures.curves(trainings, style, across=1),
    figures.collapse_signs(trainings, style, across=1),
  ):
    assert figure.axes[0].get_gridspec().ncols == 1
    assert all(axis.get_visible() for axis in figure.axes)
