"""`python -m ssl_music.search`, as a person runs it, and its map."""

import base64
import html.parser
import io
import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import small
import soundfile
import tiny

import ssl_music
from ssl_music import embed, music_map, neighbours, search, vectors
from ssl_music.errors import InputError

NAMES = (
  "high/a.flac",
  "high/b 50%#?.flac",
  "low/c.wav",
  "low/<script>harm()<",
  "low/e&amp;.flac",
  "javascript:harm().flac",
)


@pytest.fixture(scope="module")
def encoder(data_dir, tmp_path_factory):
  """The workdir of a pre-training that has not learnt."""
  folder = tmp_path_factory.mktemp("encoder")
  with small.backbone(), small.one_device():
    small.pretrained(data_dir, folder)
    yield folder


@pytest.fixture(scope="module")
def music(tmp_path_factory):
  """Tracks with names that could be taken for something else, and a copy."""
  folder = tmp_path_factory.mktemp("music")
  for index, name in enumerate(NAMES):
    file = folder / name
    if name.endswith("<"):  # in all, the path has </script>
      file = folder / f"{name}" / "script>.flac"
    file.parent.mkdir(exist_ok=True, parents=True)
    wave = tiny.waveform(tiny.tracks()[index])
    soundfile.write(file, wave, tiny.RATE)
  shutil.copy(folder / "high" / "a.flac", folder / "low" / "copy.flac")
  return folder


@pytest.fixture(scope="module")
def embedded(encoder, music, tmp_path_factory):
  folder = tmp_path_factory.mktemp("vectors")
  arguments = [str(music), f"--encoder={encoder}", f"--out={folder}"]
  assert embed.main([*arguments, "--processes=0", "--hop=0.5"]) == 0
  return folder


def test_neighbours_of_a_file(encoder, music, embedded, tmp_path, capsys):
  link = tmp_path / "link.flac"
  link.symlink_to(music / "high" / "a.flac")
  outside = tmp_path / "outside.flac"
  wave = tiny.waveform(tiny.tracks()[20])
  soundfile.write(outside, wave, tiny.RATE)
  (tmp_path / "broken.flac").write_bytes(b"no audio")
  files = [music / "high" / "a.flac", link, outside, tmp_path / "broken.flac"]
  arguments = [*map(str, files), f"--embeddings={embedded}", "--top=3"]
  assert search.main([*arguments, "--format=json"]) == 1
  said = capsys.readouterr()
  assert f"failed {tmp_path / 'broken.flac'}" in said.err
  lines = [json.loads(line) for line in said.out.splitlines()]
  assert [line["path"] for line in lines] == [str(file) for file in files[:3]]
  # The file itself is left out, by whatever name; its copy is not.
  assert lines[0]["neighbours"] == lines[1]["neighbours"]
  first = lines[0]["neighbours"][0]
  assert first["path"] == str(music / "low" / "copy.flac")
  assert first["cosine"] == pytest.approx(1)
  paths, means, _ = vectors.read_tracks(embedded)
  query = ssl_music.load(encoder).embed(outside, hop=0.5, mean=True)
  deviation = means.std(axis=0)
  scale = np.where(deviation > 1e-6, deviation, np.inf)
  x = np.float64([*means, query] - means.mean(axis=0)) / scale
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  cosines = x[:-1] @ x[-1]
  order = np.argsort(-cosines)[:3]
  found = lines[2]["neighbours"]
  np.testing.assert_allclose(
    [one["cosine"] for one in found], cosines[order], atol=1e-3
  )
  # Of the two copies either may be the first by rounding.
  same = {str(music / "low" / "copy.flac"): str(music / "high" / "a.flac")}
  name = lambda path: same.get(path, path)
  assert [name(one["path"]) for one in found] == [
    name(paths[row]) for row in order
  ]


def test_a_name_that_is_not_utf8(encoder, tmp_path, capsys):
  music = tmp_path / "music"
  music.mkdir()
  for index, name in enumerate((b"caf\xe9.flac", b"tea.flac")):
    file = os.fsdecode(name)
    wave = tiny.waveform(tiny.tracks()[index])
    soundfile.write(os.fsencode(music / file), wave, tiny.RATE)
  out = tmp_path / "vectors"
  arguments = [str(music), f"--encoder={encoder}", f"--out={out}"]
  assert embed.main([*arguments, "--processes=0"]) == 0
  capsys.readouterr()
  file = str(music / os.fsdecode(b"caf\xe9.flac"))
  assert search.main([file, f"--embeddings={out}", "--format=json"]) == 0
  said = json.loads(capsys.readouterr().out)
  assert said["path"] == str(music / "caf\\udce9.flac")
  # The file itself is left out, whatever its name.
  assert [Path(one["path"]).name for one in said["neighbours"]] == ["tea.flac"]


def test_a_table(music, embedded, capsys):
  file = str(music / "high" / "a.flac")
  assert search.main([file, f"--embeddings={embedded}", "--top=2"]) == 0
  head, first, _ = capsys.readouterr().out.splitlines()
  assert head == file
  assert first.split(maxsplit=2) == [
    "1",
    "1.000",
    str(music / "low" / "copy.flac"),
  ]


def test_wrong_input_is_one_sentence(
  data_dir, encoder, music, embedded, tmp_path
):
  file = str(music / "high" / "a.flac")
  with pytest.raises(InputError, match="nothing to search for"):
    search.main([f"--embeddings={embedded}"])
  for of_map in (f"--manifest={tmp_path}/a.csv", "--audio=embed"):
    with pytest.raises(InputError, match="are for the map: give --map="):
      search.main([file, f"--embeddings={embedded}", of_map])
  with pytest.raises(InputError, match="no vectors in"):
    search.main([file, f"--embeddings={tmp_path}"])
  # Another encoder: the same with another front end.
  other = tmp_path / "other"
  shutil.copytree(encoder, other)
  config = json.loads((other / "config.json").read_text())
  config["frontend"]["f_max"] = 4000.0
  (other / "config.json").write_text(json.dumps(config))
  with pytest.raises(InputError, match="is not the one that made the vectors"):
    search.main([file, f"--embeddings={embedded}", f"--encoder={other}"])
  moved = tmp_path / "moved"
  shutil.copytree(embedded, moved)
  about = json.loads((moved / "embeddings.json").read_text())
  about["encoder"]["encoder"] = "/absent"
  (moved / "embeddings.json").write_text(json.dumps(about))
  (moved / "seal.json").unlink()
  with pytest.raises(InputError, match="encoder /absent, which is not there"):
    search.main([file, f"--embeddings={moved}"])
  with pytest.raises(InputError, match="cannot write"):
    search.main([f"--map={tmp_path}/absent/a.html", f"--embeddings={embedded}"])


class Page(html.parser.HTMLParser):
  """Collects a page's elements, and the data in it."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.data = [], None
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_data(self, text):
    if self.elements and self.elements[-1][1].get("type") == "application/json":
      self.data = json.loads(text) if self.data is None else self.data


def test_map_links_to_files_and_names_do_no_harm(
  music, embedded, tmp_path, capsys
):
  manifest = tmp_path / "tags.csv"
  manifest.write_text(
    "path,tags,artist,title\n"
    "high/a.flac,genre---</script><script>harm()|x,Ann,A <b>\n"
    "c.wav,x|y,Ann,\n"
    "copy.flac,y|x,,\n"
  )
  page = tmp_path / "pages" / "map.html"
  page.parent.mkdir()
  arguments = [f"--map={page}", f"--embeddings={embedded}", "--top=3"]
  assert search.main([*arguments, f"--manifest={manifest}"]) == 0
  said = capsys.readouterr()
  assert said.out == ""
  assert "map of 7 of 7 tracks" in said.err
  text = page.read_text("utf-8")
  assert "</script><script>harm" not in text
  found = Page(text)
  assert [tag for tag, _ in found.elements].count("script") == 2
  for tag, attributes in found.elements:
    assert "src" not in attributes, tag
    assert tag not in ("link", "img", "iframe")
  data = found.data
  paths, _, _ = vectors.read_tracks(embedded)
  assert [str(music / name) for name in data["tracks"]] == paths
  for path, link in zip(paths, data["audio"], strict=True):
    assert ":" not in link
    assert (page.parent / unquote(link)).samefile(path)
  for row, near in enumerate(data["neighbours"]):
    assert len(near) == 3
    assert row not in near
  folder, genre, tag = data["colourings"]
  assert folder["name"] == "folder"
  assert folder["groups"][0] == "low"
  assert genre["groups"] == ["</script><script>harm()"]
  assert sorted(genre["of"]) == [[]] * 6 + [[0]]
  # All tags of a track count, not its first alone.
  assert tag["groups"] == ["x", "y"]
  assert sorted(tag["of"]) == [[]] * 4 + [[0], [0, 1], [0, 1]]
  assert sorted(data["titles"]) == [""] * 5 + ["Ann – A <b>", "Ann – c.wav"]


def test_map_with_clips(embedded, tmp_path, monkeypatch):
  monkeypatch.setattr(music_map, "_CLIP_SECONDS", 3)
  page = tmp_path / "map.html"
  arguments = [f"--map={page}", f"--embeddings={embedded}", "--audio=embed"]
  assert search.main(arguments) == 0
  for address in Page(page.read_text("utf-8")).data["audio"]:
    kind, _, text = address.partition(";base64,")
    assert kind == "data:audio/mpeg"
    with soundfile.SoundFile(io.BytesIO(base64.b64decode(text))) as clip:
      assert clip.samplerate == tiny.RATE
      assert abs(clip.frames / tiny.RATE - 3) < 0.2
  monkeypatch.setattr(music_map, "_MOST_CLIPS", 6)
  with pytest.raises(InputError, match="give --audio=link"):
    search.main(arguments)


def groups(count):
  """Vectors in three groups, far apart."""
  rng = np.random.default_rng(0)
  centres = 10 * rng.standard_normal((3, 8))
  of = np.arange(count) % 3
  made = centres[of] + 0.1 * rng.standard_normal((count, 8))
  return made.astype(np.float32), of


@pytest.mark.parametrize("projected", [1000, 60])
def test_what_is_near_lies_near(monkeypatch, projected):
  monkeypatch.setattr(music_map, "_PROJECTED", projected)
  made, of = groups(121)
  space = neighbours.fit(made)
  points = music_map.project(made, space)
  assert points.min() == 0
  assert points.max() == 1
  np.testing.assert_array_equal(points, music_map.project(made, space))
  apart = np.linalg.norm(points[:, None] - points, axis=-1)
  np.fill_diagonal(apart, np.inf)
  near = np.argsort(apart, axis=1)[:, :10]
  assert (of[near] == of[:, None]).mean() > 0.95


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_few_tracks(tmp_path, count):
  made, _ = groups(count)
  paths = [f"/music/{index}.flac" for index in range(count)]
  for means in (made, np.ones_like(made)):
    assert music_map.write(tmp_path / "map.html", paths, means) == count
    data = Page((tmp_path / "map.html").read_text("utf-8")).data
    assert np.isfinite(data["points"]).all()
    assert [len(near) for near in data["neighbours"]] == [count - 1] * count


def test_too_many_tracks_are_sampled(tmp_path, monkeypatch):
  monkeypatch.setattr(music_map, "_DRAWN", 5)
  made, _ = groups(12)
  paths = [f"/music/{index}.flac" for index in range(12)]
  assert music_map.write(tmp_path / "map.html", paths, made) == 5
  data = Page((tmp_path / "map.html").read_text("utf-8")).data
  assert data["tracks"] == ["0.flac", "3.flac", "6.flac", "8.flac", "11.flac"]


def test_a_manifest_that_names_no_track(tmp_path):
  manifest = tmp_path / "tags.csv"
  manifest.write_text("path,tags\nz.wav,x\n")
  with pytest.raises(InputError, match="names no track"):
    music_map.read_manifest(manifest, ["/music/a.wav", "/music/zz.wav"])


def test_rows_of_a_manifest_that_name_no_track_are_counted(tmp_path, capsys):
  manifest = tmp_path / "tags.csv"
  manifest.write_text('path,tags\nCafé.wav,"x, y"\nb.wav,z\nc.wav,z\n', "utf-8")
  paths = ["/music/Cafe\u0301.wav", "/music/d.wav"]
  assert music_map.read_manifest(manifest, paths) == [
    ("", ["x", "y"]),
    ("", []),
  ]
  said = capsys.readouterr().err
  assert "2 of 3 manifest rows" in said and "such as b.wav" in said
