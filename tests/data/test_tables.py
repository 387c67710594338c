import csv
import io
import random

import pytest

from ssl_music.data import tables
from ssl_music.errors import InputError


@pytest.fixture
def write(tmp_path):
  def write(data):
    path = tmp_path / "table.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path

  return write


def rows(table):
  return [fields for _, fields in table.rows]


def lines(table):
  return [line for line, _ in table.rows]


# Reading ---------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_reads_what_csv_wrote_and_knows_where_each_row_begins(
  write, delimiter, end
):
  rng = random.Random(f"{delimiter}{end}")
  alphabet = ["a", "é", "日", " ", '"', "'", ",", "\t", ";", "\n", "\x85", "\\"]
  for _ in range(100):
    columns = [f"column {index}" for index in range(rng.randint(2, 4))]
    quoting = rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
    if end == "\r":  # csv.writer leaves \n unquoted then
      quoting = csv.QUOTE_ALL
    text, expected = io.StringIO(newline=""), []
    out = csv.writer(
      text, delimiter=delimiter, lineterminator=end, quoting=quoting
    )
    out.writerow(columns)
    for _ in range(rng.randint(0, 5)):
      if rng.random() < 0.2:
        text.write(end)  # an empty line
      before = text.getvalue().replace("\r\n", "\n").replace("\r", "\n")
      fields = [
        "".join(rng.choices(alphabet, k=rng.randint(0, 5))) for _ in columns
      ]
      out.writerow(fields)
      expected.append((before.count("\n") + 1, fields))
    whole = text.getvalue()
    bom = rng.choice(["", "\ufeff"])
    table = tables.read(write(bom + whole), delimiter=delimiter)
    assert table.columns == columns
    assert table.rows == expected
    if end != "\r":  # as the field reads such tables
      reader = csv.DictReader(io.StringIO(whole), delimiter=delimiter)
      assert [dict(zip(columns, f, strict=True)) for f in rows(table)] == list(
        reader
      )


def test_all_line_ends_in_one_file(write):
  table = tables.read(write("a,b\r\n1,2\n3,4\r5,6"))
  assert table.rows == [(2, ["1", "2"]), (3, ["3", "4"]), (4, ["5", "6"])]


def test_rows_after_one_of_several_lines_are_counted_on(write):
  table = tables.read(write('a,b\n1,"x, ""y""\n\nz"\n3,4\n\n5,6\n'))
  assert rows(table) == [["1", 'x, "y"\n\nz'], ["3", "4"], ["5", "6"]]
  assert lines(table) == [2, 5, 7]


def test_latin_1_text_is_not_cut_at_next_line_characters(write):
  data = "a\tb\r\n1\tcaf\xe9\x85\x0b\x1c\r\n2\t\xa0x\r\n".encode("latin-1")
  table = tables.read(write(data), delimiter="\t", encoding="latin-1")
  assert rows(table) == [["1", "caf\xe9\x85\x0b\x1c"], ["2", "\xa0x"]]
  with pytest.raises(InputError, match=r"line 2 is not UTF-8 .*byte 10 "):
    tables.read(write(data), delimiter="\t")


def test_unquoted_tables_keep_quotes(write):
  path = write('a\tb\n"x\ty "z"\n')
  assert rows(tables.read(path, delimiter="\t", quoted=False)) == [
    ['"x', 'y "z"']
  ]
  with pytest.raises(InputError, match=r"line 2: .*quotes"):
    tables.read(path, delimiter="\t")


def test_ragged_rows_have_more_fields_never_fewer(write):
  path = write("a\tb\n1\t2\n1\t2\t3\t4\n")
  table = tables.read(path, delimiter="\t", quoted=False, ragged=True)
  assert rows(table) == [["1", "2"], ["1", "2", "3", "4"]]
  path = write("a\tb\n1\t2\t3\n1\n")
  with pytest.raises(InputError, match="line 3 has 1 fields, not the 2"):
    tables.read(path, delimiter="\t", quoted=False, ragged=True)


def test_a_column_by_name(write):
  table = tables.read(write("a,b\n1,2\n"), needed=("b",))
  assert (table.column("a"), table.column("b")) == (0, 1)
  with pytest.raises(InputError, match=r"line 1 has no column 'c' .*'a', 'b'"):
    table.column("c")


# Complaints ------------------------------------------------------------------


@pytest.mark.parametrize(
  ("data", "complaint"),
  [
    ("", "is empty"),
    ("\ufeff", "is empty"),
    ("\n\r\n", "is empty"),
    ("path\n", "line 1 has no column 'tags' .it has 'path'.: add it"),
    ("x\n", "line 1 has no column 'path' and no column 'tags'"),
    ("Path, tags\n", "no column 'path' and no column 'tags' .it has 'Path', "),
    ("path,tags,path\n", "line 1: column 'path' is there twice"),
    ("path,tags\n1,2\n1\n", "line 3 has 1 fields, not the 2 of the header"),
    ("path,tags\n\n1,2,3\n", "line 3 has 3 fields, not the 2 of the header"),
    ("path,tags\n   \n", "line 2 has 1 fields"),
    ('path,tags\n1,"2\n3,4\n', "line 2: unexpected end of data"),
    ('path,tags\n"1\n2",3\n1,"2"3\n', "line 4: .*quotes"),
    ("path,tags\r\r1,2\r1,\0", "line 4 holds a NUL"),
    (b"path,tags\n1,2\n1,\xff\n", "line 3 is not UTF-8 text .byte 16 "),
    (b"\xef\xbb\xbfpath,tags\n\xff\n", "line 2 is not UTF-8 text .byte 13 "),
    (b"path,tags\r1,2\r1,\xff\r", "line 3 is not UTF-8 text"),
    ("path,tags\n1,2\n".encode("utf-16"), "line 1 is not UTF-8 text .byte 0 "),
    ("path,tags\n1,2\n".encode("utf-16-le"), "line 1 holds a NUL"),
    ("path,tags\n1," + "x" * 200_000, "line 2: field larger than"),
  ],
)
def test_complaints_name_file_and_line(write, data, complaint):
  path = write(data)
  with pytest.raises(InputError, match=complaint) as error:
    tables.read(path, needed=("path", "tags"))
  assert str(error.value).startswith(str(path))
  assert "\n" not in str(error.value)


def test_many_columns_are_not_all_listed(write):
  path = write(",".join(f"tag{index}" for index in range(2000)) + "\n")
  with pytest.raises(InputError, match="no column 'path'") as error:
    tables.read(path, needed=("path",))
  assert len(str(error.value)) < len(str(path)) + 300


@pytest.mark.parametrize("read", [tables.read, tables.read_lines])
def test_what_is_no_file(tmp_path, read):
  with pytest.raises(InputError, match="No such file"):
    read(tmp_path / "nowhere.csv")
  with pytest.raises(InputError, match="Is a directory"):
    read(tmp_path)
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  with pytest.raises(InputError, match=r"cannot read .*loop"):
    read(tmp_path / "loop")
  with pytest.raises(InputError, match="too long"):
    read(tmp_path / ("x" * 300))


# Lists, places, paths --------------------------------------------------------


def test_lists_are_stripped_and_keep_their_lines(write):
  path = write("\ufeffrock\r\n\r\n  female vocals\t\r\n \r\nx,y\r\n")
  expected = [(1, "rock"), (3, "female vocals"), (5, "x,y")]
  assert tables.read_lines(path) == expected
  assert tables.read_lines(write("")) == []
  with pytest.raises(InputError, match="line 2 is not UTF-8"):
    tables.read_lines(write(b"a\n\xff\n"))


def test_where():
  assert tables.where("f.csv", 3) == "f.csv, line 3"
  assert tables.where("f.csv", 3, "path") == "f.csv, line 3, column 'path'"
  assert tables.where("f.csv", 3, 7) == "f.csv, line 3, column 7"


@pytest.mark.parametrize(
  ("text", "path"),
  [
    ("a.mp3", "a.mp3"),
    ("a/b.mp3", "a/b.mp3"),
    (" a/b.mp3  ", "a/b.mp3"),
    ("./a//b/../c.mp3", "a/c.mp3"),
    ("a/b/", "a/b"),
    ("..a/...", "..a/..."),
    ("a\\..\\..\\b", "a\\..\\..\\b"),
    ("~/a", "~/a"),
    ("C:/a", "C:/a"),
    ("a/ b", "a/ b"),
  ],
)
def test_paths_inside_a_folder(text, path):
  assert tables.inside(text, "here") == path


@pytest.mark.parametrize(
  "text", ["..", "../a", "a/../../b", " ../a", "/", "/a", "//a", "./../a/b"]
)
def test_paths_that_leave_the_folder(text):
  with pytest.raises(InputError, match=r"here: path .* leaves the folder"):
    tables.inside(text, "here")


@pytest.mark.parametrize(
  "text",
  ["", ".", "./", " \t", "a/..", "a\0b", "\0", "a\nb", "a\tb", "\x1b[2Ja"],
)
def test_paths_of_no_file(text):
  with pytest.raises(InputError, match=r"here: .* is no path of a file"):
    tables.inside(text, "here")


def test_paths_made_of_any_parts_stay_inside_or_are_refused(tmp_path):
  root = tmp_path / "deep" / "down"
  root.mkdir(parents=True)
  rng = random.Random(0)
  kept = 0
  for _ in range(2000):
    text = "/".join(rng.choices(["a", "..", ".", "", " ", "..."], k=4))
    place = (root / text.strip()).resolve()
    try:
      path = tables.inside(text, "here")
    except InputError:
      # The path itself, or a step of it, is no file inside.
      assert place == root or not place.is_relative_to(root)
    else:
      kept += 1
      assert place == root / path
      assert place.is_relative_to(root)
  assert 200 < kept < 1800
