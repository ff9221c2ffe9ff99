"""The table reader: every dialect of one table gives the same cells and lines; errors are one line."""

from __future__ import annotations

import datetime
import gzip
import random
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from seqssm.errors import InputError
from seqssm.files.tables import TableOptions, read_table, table_of_frame

PLAIN = "id,name,value\n1,Ann,2.5\n2,Bob,-3\n3,Cy,4\n"
FLAGS = {name: f"--data.{name}" for name in ("separator", "encoding", "comment", "skip_rows", "columns")}


@pytest.fixture
def write(tmp_path):
    """Write text or bytes to a file and return its path."""

    def writer(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return writer


def cells(table):
    return {name: list(table.frame[name]) for name in table.columns}


WANTED = {"id": ["1", "2", "3"], "name": ["Ann", "Bob", "Cy"], "value": ["2.5", "-3", "4"]}


@pytest.mark.parametrize(
    ("content", "name", "lines", "note"),
    [
        (PLAIN, "t.csv", [2, 3, 4], None),
        (PLAIN.encode("utf-8-sig"), "t.csv", [2, 3, 4], None),
        (PLAIN.replace("\n", "\r\n"), "t.csv", [2, 3, 4], None),
        (PLAIN.replace("\n", "\r"), "t.csv", [2, 3, 4], None),
        (PLAIN.rstrip("\n"), "t.csv", [2, 3, 4], None),
        (PLAIN.encode("utf-16"), "t.csv", [2, 3, 4], "read as utf-16"),
        (PLAIN.encode("utf-16-le"), "t.csv", [2, 3, 4], "read as utf-16-le"),
        (PLAIN.encode("utf-16-be"), "t.csv", [2, 3, 4], "read as utf-16-be"),
        (PLAIN.encode("utf-32"), "t.csv", [2, 3, 4], "read as utf-32"),
        (gzip.compress(PLAIN.encode(), mtime=0), "t.csv.gz", [2, 3, 4], None),
        (gzip.compress(PLAIN.encode(), mtime=0), "t.csv", [2, 3, 4], None),
        (PLAIN.replace(",", ";"), "t.csv", [2, 3, 4], "separated by semicolons"),
        (PLAIN.replace(",", "\t"), "t.tsv", [2, 3, 4], "separated by tabs"),
        (PLAIN.replace(",", "|"), "t.txt", [2, 3, 4], "separated by vertical bars"),
        (PLAIN.replace(",", " ; "), "t.csv", [2, 3, 4], "separated by semicolons"),
        ("sep=;\n" + PLAIN.replace(",", ";"), "t.csv", [3, 4, 5], "separated by semicolons"),
        (PLAIN.replace("Ann", '"Ann"').replace("name", '"name"'), "t.csv", [2, 3, 4], None),
        (PLAIN.replace("Ann", ' "Ann" '), "t.csv", [2, 3, 4], None),
        (PLAIN.replace("\n", ",\n"), "t.csv", [2, 3, 4], "trailing separators"),
        (PLAIN.replace("2.5\n", "2.5,,\n"), "t.csv", [2, 3, 4], "1 rows with trailing separators"),
        (PLAIN.replace("2,Bob", "\n\n2,Bob"), "t.csv", [2, 5, 6], None),
        (PLAIN.replace("2,Bob", "  \n2,Bob"), "t.csv", [2, 4, 5], None),
        (PLAIN.replace("2,Bob", ",,\n2,Bob"), "t.csv", [2, 4, 5], "1 empty row dropped (line 3)"),
        (PLAIN + "\n\n,,\n , ,\n", "t.csv", [2, 3, 4], "2 empty rows dropped (lines 7, 8)"),
        ("\n\n" + PLAIN, "t.csv", [4, 5, 6], None),
        ("# made by a logger\n# 2024\n" + PLAIN, "t.csv", [4, 5, 6], "2 comment lines (#) above"),
        ("# logger\n" + PLAIN.replace("2,Bob", "#x\n2,Bob"), "t.csv", [3, 5, 6], "1 comment line (#) below"),
        ("#" + PLAIN, "t.csv", [2, 3, 4], None),
        ("# logger\n# " + PLAIN, "t.csv", [3, 4, 5], "1 comment line (#) above"),
        (PLAIN.replace("id,", ",id,").replace("1,A", "0,1,A").replace("2,B", "1,2,B").replace("3,C", "2,3,C"),
         "t.csv", [2, 3, 4], "row numbers dropped"),
    ],
)  # fmt: skip
def test_every_dialect_of_one_table(write, content, name, lines, note):
    table = read_table(write(content, name))
    assert cells(table) == WANTED
    assert list(table.lines) == lines
    assert note is None or any(note in line for line in table.notes)
    assert note is not None or not table.notes


@pytest.mark.parametrize(
    ("content", "options", "lines", "note"),
    [
        (PLAIN.replace("\n1", "\n,,kg\n1"), {"skip_rows": (2,)}, [3, 4, 5], "line 2 skipped"),
        ("Report\n\n" + PLAIN, {"skip_rows": 2}, [4, 5, 6], "2 lines skipped"),
        ("% logger\n" + PLAIN.replace("2.5", "2.5 % high"), {"comment": "%"}, [3, 4, 5], "at the end of lines"),
        (PLAIN.replace(",", "  "), {"separator": "space"}, [2, 3, 4], None),
        (PLAIN.replace(",", "~"), {"separator": "~"}, [2, 3, 4], None),
        (PLAIN.replace("4\n", "4\nTotal,,3.5\n"), {"skip_rows": (5,)}, [2, 3, 4], "line 5 skipped"),
        (PLAIN.replace(",Bob", ',"Bob"').replace("\n1", '\n"x\ny",,\n1'), {"skip_rows": (2, 3)}, [4, 5, 6], "skipped"),
    ],
)
def test_options_decide_what_the_file_leaves_open(write, content, options, lines, note):
    table = read_table(write(content), TableOptions(**options))
    assert cells(table) == WANTED
    assert list(table.lines) == lines
    assert note is None or any(note in line for line in table.notes)


def test_columns_to_use(write):
    table = read_table(write(PLAIN), TableOptions(columns=("value", "id")))
    assert table.columns == ["id", "value"], "in the file's order"
    with pytest.raises(InputError, match=r"has no column vlaue \(--data.columns\); did you mean value\?"):
        read_table(write(PLAIN), TableOptions(columns=("vlaue",)), flags=FLAGS)


def test_quoted_cells_are_unchanged(write):
    table = read_table(write('a,b\n"x, ""y""\nz",1\nu,"2"\n'))
    assert cells(table) == {"a": ['x, "y"\nz', "u"], "b": ["1", "2"]}
    assert list(table.lines) == [2, 4]
    assert list(read_table(write('a\n5" pipe\n')).frame["a"]) == ['5" pipe']


def test_older_encodings_are_reported(write):
    table = read_table(write("id,größe\n1,2\n".encode("cp1252")), flags=FLAGS)
    assert table.columns == ["id", "größe"]
    assert table.notes == ["not UTF-8 (line 1), read as Windows-1252; --data.encoding names another encoding"]
    table = read_table(write("id,größe\n1,2\n".encode("cp850")), TableOptions(encoding="cp850"))
    assert table.columns == ["id", "größe"]


def test_a_table_without_a_header(write):
    table = read_table(write("1 2\n3 4\n", "solar.txt"), TableOptions(header=False))
    assert cells(table) == {"column_1": ["1", "3"], "column_2": ["2", "4"]}
    assert list(table.lines) == [1, 2]


def test_short_rows_are_refused_or_filled(write):
    path = write("train,val,test\na,b,c\nd\n")
    with pytest.raises(InputError, match=r"line 3: 1 cell where the header has 3; --data.skip_rows skips lines"):
        read_table(path, flags=FLAGS)
    table = read_table(path, TableOptions(pad_rows=True))
    assert cells(table) == {"train": ["a", "d"], "val": ["b", ""], "test": ["c", ""]}
    assert table.notes == ["1 short rows filled with empty cells (line 3)"]


@pytest.mark.parametrize(
    ("content", "options", "place", "words"),
    [
        ("", {}, None, "is empty"),
        ("a,b\n", {}, None, "no rows"),
        ("a,b\n\n,\n", {}, None, "no rows"),
        ("a,a\n1,2\n", {}, "line 1", "duplicate column name 'a' (columns 1 and 2)"),
        ("a,b\n1,2\n3,4,5\n", {}, "line 3", "3 cells where the header has 2"),
        ("a,b\n1,2\n3\n", {}, "line 3", "1 cell where the header has 2"),
        ('a,b\n1,2\n3,"4\n5,6\n', {}, "line 3", "unclosed quote"),
        ('a,b\n1,"2"x\n', {}, "line 2", "is not a CSV row"),
        ("a;b,c\n1;2,3\n", {}, "line 1", "commas or semicolons; give --data.separator"),
        (b"a,b\n1,2\0\n", {}, "line 2", "zero byte"),
        (b"PK\x03\x04xx", {}, None, ".xlsx"),
        (b"PAR1xx", {}, None, "Parquet"),
        (b"a,b\n\x81,2\n", {}, "line 2", "is not UTF-8 text; give --data.encoding"),
        (b"a,b\n\xe4,2\n", {"encoding": "utf-8"}, "line 2", "is not UTF-8 text"),
        ("a,b\n1,2\n", {"encoding": "latin-99"}, None, "--data.encoding latin-99: unknown encoding"),
        ("a,b\n1,2\n", {"separator": "xy"}, None, "--data.separator xy"),
        ("a,b\n1,2\n", {"comment": "//"}, None, "--data.comment //"),
        ("a,b\n1,2\n", {"skip_rows": -1}, None, "--data.skip_rows -1"),
        ("a,b\n1,2\n", {"skip_rows": 9}, None, "is empty"),
    ],
)
def test_bad_tables_are_one_line_with_the_position(write, content, options, place, words):
    with pytest.raises(InputError) as caught:
        read_table(write(content), TableOptions(**options), flags=FLAGS)
    assert words in caught.value.message
    assert caught.value.place == place
    assert "\n" not in str(caught.value)


def test_files_that_are_not_tables(tmp_path, write):
    (tmp_path / "folder.csv").mkdir()
    for path, words in (
        (tmp_path / "no.csv", "no such file"),
        (tmp_path / "folder.csv", "is a folder"),
        (write(gzip.compress(PLAIN.encode(), mtime=0)[:-6], "cut.csv.gz"), "not a complete gzip file"),
        (write(PLAIN, "plain.csv.gz"), "not a complete gzip file"),
        (write("x", "old.xls"), "save the table as .xlsx or CSV"),
        (write("x", "a.parquet"), "not a readable Parquet file"),
        (write("x", "a.xlsx"), "not a readable Excel workbook"),
    ):
        with pytest.raises(InputError, match=words):
            read_table(path)


def test_both_parsers_agree_on_random_tables(write, monkeypatch):
    """pyarrow's parser and the row-by-row reader give the same cells, lines and errors."""
    from seqssm.files import rows

    generator = random.Random(3)
    fast = rows._fast
    refused = 0
    for _ in range(400):
        separator = generator.choice(",;\t")
        pieces = ["a", " b ", "", '"q"', '"s,;\tx"', '"d""d"', "1.5", "x y", 'i"n', "ä", "#z", '"n\nl"']
        weights = [9] * 9 + [1, 1, 1]
        lines = [separator.join(("u", "v", "w"))]
        for _ in range(generator.randint(1, 12)):
            width = 3 if generator.random() < 0.98 else 2
            lines.append(separator.join(generator.choices(pieces, weights, k=width)))
            if generator.random() < 0.1:
                lines.append(generator.choice(["", "  ", separator * 2]))
        path = write(generator.choice(["\n", "\r\n"]).join(lines))
        results = []
        for reader in (fast, lambda *_: None):
            monkeypatch.setattr(rows, "_fast", reader)
            try:
                table = read_table(path, TableOptions(separator=separator))
                results.append((cells(table), list(table.lines)))
            except InputError as error:
                results.append(str(error))
        assert results[0] == results[1], path.read_text()
        refused += isinstance(results[0], str)
    assert 5 < refused < 300


def test_workbooks(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed: pip install 'seqssm[excel]'")
    from datetime import datetime

    book = openpyxl.Workbook()
    book.active.title = "notes"
    sheet = book.create_sheet("data")
    for row in (["Report"], [], ["id", "when", "value", "flag"], [1, datetime(2024, 1, 31, 18), 2.5, True],
                [2, datetime(2024, 2, 1), 1000, None], []):  # fmt: skip
        sheet.append(row)
    book.save(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match="no sheet nope; it has notes, data"):
        read_table(tmp_path / "t.xlsx", TableOptions(sheet="nope"))
    table = read_table(tmp_path / "t.xlsx", TableOptions(skip_rows=1))
    assert cells(table) == {
        "id": ["1", "2"],
        "when": ["2024-01-31 18:00:00", "2024-02-01 00:00:00"],
        "value": ["2.5", "1000"],
        "flag": ["True", ""],
    }
    assert list(table.lines) == [4, 5]
    assert table.place(1, "flag") == "row 5, column flag"
    assert table.notes == ["sheet 'data' of 2 read"]
    typed = read_table(tmp_path / "t.xlsx", TableOptions(skip_rows=1), text=False).frame
    assert typed["value"].tolist() == [2.5, 1000.0]
    assert typed["when"].tolist() == [pd.Timestamp("2024-01-31 18:00"), pd.Timestamp("2024-02-01")]


def test_a_workbook_without_openpyxl_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InputError, match=r"pip install 'seqssm\[excel\]', or save the sheet as CSV"):
        read_table(tmp_path / "t.xlsx")


def test_parquet_and_frames(tmp_path):
    frame = pd.DataFrame(
        {"id": ["a", None], "n": [1.0, np.nan], "k": [1, 2], "when": pd.to_datetime(["2024-01-31"] * 2)}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    for table in (read_table(tmp_path / "t.parquet"), table_of_frame(frame, text=True)):
        assert cells(table) == {
            "id": ["a", ""],
            "n": ["1", ""],
            "k": ["1", "2"],
            "when": ["2024-01-31 00:00:00"] * 2,
        }
        assert list(table.lines) == [1, 2]
    typed = table_of_frame(frame).frame
    assert typed["n"].dtype == "float64"
    assert list(typed["id"]) == ["a", ""]
    indexed = table_of_frame(frame.set_index("when"))
    assert indexed.columns == ["when", "id", "n", "k"]
    with pytest.raises(InputError, match="DataFrame: has a header but no rows"):
        table_of_frame(frame.iloc[:0])


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("rows", [slice(2, None), [3, 1, 4, 2], [0, 0, 1, 1], [0, 1, 2, 3]])
def test_row_numbers_of_pandas_are_no_column_and_never_shift_cells(tmp_path, rows, text):
    """A stored index was read as a column `index`; beside text of other types, cells were joined by it."""
    whole = pd.DataFrame(
        {
            "id": list("abcdef"),
            "n": [1.5, 2.5, 3.5, 4.5, 5.5, 6.5],
            "price": [Decimal(n) for n in range(6)],
            "kind": pd.Categorical(list("xyxyxy")),
            "when": pd.period_range("2024-01", periods=6, freq="M"),
            "ok": [True, False] * 3,
        }
    )
    frame = whole.iloc[rows]
    frame.to_parquet(tmp_path / "t.parquet")
    for table in (read_table(tmp_path / "t.parquet", text=text), table_of_frame(frame, text=text)):
        assert table.columns == list(whole.columns)
        assert list(table.frame.index) == [0, 1, 2, 3]
        for name in whole.columns:
            assert list(table.frame[name].astype("str")) == list(frame[name].astype("str")), name


def test_an_index_with_a_name_is_a_column(tmp_path):
    frame = pd.DataFrame({"y": [1.0, 2.0]}, index=pd.RangeIndex(5, 7, name="t"))
    names = pd.DataFrame({"y": [1.0, 2.0]}, index=["a", "b"])
    both = frame.assign(t=[1, 2])
    for one, columns in ((frame, ["t", "y"]), (names, ["index", "y"])):
        one.to_parquet(tmp_path / "t.parquet")
        assert read_table(tmp_path / "t.parquet").columns == table_of_frame(one).columns == columns
    with pytest.raises(InputError, match="DataFrame: the index and a column are both named t; rename one"):
        table_of_frame(both)


def test_lists_and_bytes_in_columns(tmp_path):
    """Parquet gives lists as arrays, whose comparison with a missing value was an internal error."""
    frame = pd.DataFrame({"labels": [["a", "b"], [], None], "vector": [np.arange(2.0)] * 3, "raw": [b"AC", b"", None]})
    frame.to_parquet(tmp_path / "t.parquet")
    for table in (read_table(tmp_path / "t.parquet"), table_of_frame(frame, text=True)):
        assert cells(table) == {
            "labels": ["['a', 'b']", "[]", ""],
            "vector": ["[0.0, 1.0]"] * 3,
            "raw": ["AC", "", ""],
        }


def test_the_reader_stays_light():
    code = (
        "import sys, seqssm.files.tables; sys.exit(any(n in sys.modules for n in ('torch', 'lightning', 'openpyxl')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2024-01-01,5,7\n2024-01-02,6,8\n", "the first row contains values"),
        ("1,50.5\n2,51.5\n", "the first row contains values"),
        ("5,5\n6,7\n", "the first row contains values"),
        ("0,1,2\n5,6,7\n", None),
        ("date,2019,2020\n1,2,3\n", None),
        (",0,1\n0,5,6\n", None),
    ],
)
def test_a_header_of_values_is_refused(tmp_path, text, words):
    path = tmp_path / "x.csv"
    path.write_text(text)
    if words is None:
        assert len(read_table(path)) == text.count("\n") - 1
    else:
        with pytest.raises(InputError, match=words):
            read_table(path)


@pytest.mark.parametrize("name", ["t.csv", "t.xlsx", "t.parquet"])
@pytest.mark.parametrize(
    "cells",
    [
        pd.date_range("2024-01-01", periods=3),
        pd.date_range("2024-01-01", periods=3, tz="UTC"),
        pd.timedelta_range("1h", periods=3),
        [datetime.time(1), datetime.time(2), datetime.time(3)],
        [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2), datetime.date(2024, 1, 3)],
        [True, False, True],
        ["x", "y", "z"],
    ],
    ids=["dates", "zone", "durations", "times", "days", "truth", "words"],
)
@pytest.mark.parametrize("text", [True, False])
def test_an_unnamed_first_column_of_any_type_is_kept(cells, name, text, tmp_path):
    """Dates in such a column of a workbook, as from `to_excel` of a frame with a date index, raised a TypeError."""
    if name == "t.xlsx" and isinstance(cells, pd.DatetimeIndex):
        cells = cells.tz_localize(None)  # workbooks have no time zones
    frame = pd.DataFrame({"Unnamed: 0": cells, "a": [1.0, 2.0, 3.0]})
    writers = {"t.csv": "to_csv", "t.xlsx": "to_excel", "t.parquet": "to_parquet"}
    header = frame if name == "t.parquet" else frame.rename(columns={"Unnamed: 0": ""})
    getattr(header, writers[name])(tmp_path / name, index=False)
    assert read_table(tmp_path / name, text=text).columns == ["Unnamed: 0", "a"]
    assert table_of_frame(frame, text=text).columns == ["Unnamed: 0", "a"]
