"""Readers: accepted variants; all other files give one line with file, line and column."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import calendar, files
from seqssm_forecasting.reading import Reading
from seqssm_forecasting.tidy import Policies, tidy

from seqssm.errors import InputError

GOOD = "date,a,b\n2024-01-01 00:00:00,1,2.5\n2024-01-01 01:00:00,-3e2,4\n2024-01-01 02:00:00,5,6\n"


@pytest.fixture
def write(tmp_path):
    """Write text or bytes to a file and return its path."""

    def writer(content, name="series.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return writer


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (GOOD, "x.csv"),
        (GOOD.encode("utf-8-sig"), "bom.csv"),
        (GOOD.replace("\n", "\r\n"), "crlf.csv"),
        (gzip.compress(GOOD.encode(), mtime=0), "x.csv.gz"),
        (GOOD + "\n\n", "blank_end.csv"),
        (GOOD.replace("2024-01-01 0", "2024/1/1 ").replace(":00:00", ":00"), "slash.csv"),
        (GOOD.replace(" 0", "T0"), "t.csv"),
        (GOOD.replace(",", ";"), "semicolons.csv"),
        (GOOD.replace(",", "\t"), "tabs.tsv"),
        (GOOD.replace(",", "|"), "bars.csv"),
        (GOOD.replace(",", ";").replace("2.5", "2,5"), "decimal_comma.csv"),
        (GOOD.encode("utf-16"), "utf16.csv"),
        (GOOD.replace("a,b", '"a",b').replace("-3e2", '" -300 "'), "quotes.csv"),
    ],
)
def test_accepted_spellings_of_one_table(write, content, name):
    (series,) = files.read_series(write(content, name))
    assert series.columns == ["a", "b"]
    np.testing.assert_array_equal(series.values, [[1, 2.5], [-300, 4], [5, 6]])
    assert list(series.dates) == list(pd.date_range("2024-01-01", periods=3, freq="h"))
    assert calendar.frequency(series)[0].name == "h"
    assert list(series.lines) == [2, 3, 4]


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        ("", None, "empty"),
        ("date,a\n", None, "no rows"),
        ("date\n2024-01-01\n", "line 1", "one column"),
        ("date,a,a\n2024-01-01,1,2\n", "line 1", "duplicate column name 'a'"),
        ("date,a,\n2024-01-01,1,2\n", "line 1", "no name"),
        ("Sales of the town,,\ndate,a,b\n2024-01-01,1,2\n", "line 1", "--data.skip_rows skips lines above the header"),
        ("Jahr,Monat,a\n2024,1,2\n2024,2,3\n2024,3,3\n", None, "in several columns: Jahr, Monat"),
        ("Date,Heure,a\n2024-01-01,00:00,2\n2024-01-01,01:00,3\n", None, "in several columns: Date, Heure"),
        (GOOD.replace("2.5\n", "2.5,9\n"), "line 2", "4 cells where the header has 3"),
        (GOOD.replace(",4\n", "\n"), "line 3", "2 cells where the header has 3"),
        (GOOD.replace("4\n", "inf\n"), "line 3, column b", "infinite"),
        (GOOD.replace("4\n", "1e999\n"), "line 3, column b", "infinite"),
        (GOOD.replace("4\n", "error\n"), "line 3, column b", "'error' is not a number"),
        (GOOD.replace("4\n", "1_000\n"), "line 3, column b", "not a number"),
        (GOOD.replace("2024-01-01 01", "01.01.2024 01"), "line 3, column date", "not a date"),
        (GOOD.replace("01-01 01", "13-01 01"), "line 3, column date", "not a date"),
        (
            GOOD.replace("01:00:00", "01:00:00+02:00"),
            "line 3, column date",
            "an offset from UTC, unlike the preceding dates",
        ),
        (GOOD.replace("4\n", "4\0\n"), "line 3", "zero byte"),
        (
            GOOD.replace(",", ";").replace("2.5", "2,500").replace("4\n", "4,125\n").replace("6", "6,500"),
            "line 2",
            "thousands",
        ),
        ("date,a;b,c\n2024-01-01,1;2,3\n", "line 2", "not a number"),
        ("date;a,b\n2024-01-01;1,2\n", "line 1", "commas or semicolons"),
        ("unique_id,ds,y\n,2024-01-01,1\n", "line 2, column unique_id", "no id"),
        (GOOD.replace("4\n", '"4\n'), "line", "CSV"),
    ],
)
def test_bad_files_are_one_line_with_the_position(write, content, place, words):
    path = write(content)
    with pytest.raises(InputError) as caught:
        files.read_series(path)
    assert caught.value.file == str(path)
    assert words in caught.value.message
    assert (caught.value.place or "").startswith(place or "")
    assert bool(caught.value.place) == bool(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", ["True False", "TRUE FALSE", "true false"])
def test_true_and_false_are_1_and_0(write, words):
    """Flags of promotions and holidays, as pandas and spreadsheets write them; gaps stay gaps."""
    cells = [*words.split(), "", words.split()[0]]
    rows = "".join(f"2024-01-0{k + 1},{k}.5,{cell}\n" for k, cell in enumerate(cells))
    (series,) = files.read_series(write(f"date,a,promo\n{rows}"))
    np.testing.assert_array_equal(series.values[:, 1], [1, 0, np.nan, 1])
    assert "promo: true and false read as 1 and 0" in series.notes
    (chosen,) = files.read_series(write(f"date,a,promo\n{rows}"), Reading(text_columns="drop"))
    assert chosen.columns == ["a", "promo"]
    with pytest.raises(InputError, match="line 3, column promo: 'False' is not a number"):
        files.read_series(write("date,a,promo\n2024-01-01,1,7\n2024-01-02,2,False\n2024-01-03,3,9\n"))


def test_files_of_other_kinds(tmp_path, write):
    for path, words in (
        (tmp_path / "no.csv", "no such file"),
        (write("x", "a.docx"), "unknown file type .docx"),
        (write("x", "a.xlsx"), "not a readable Excel workbook"),
        (write(gzip.compress(GOOD.encode(), mtime=0)[:-6], "cut.csv.gz"), "gzip"),
        (write(GOOD, "plain.csv.gz"), "gzip"),
        (write("x", "a.npz"), "npz"),
    ):
        with pytest.raises(InputError, match=words):
            files.read_series(path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="folder"):
        files.read_series(tmp_path / "folder.csv")


def test_damaged_files_give_input_errors_only(write):
    """Random byte flips and truncations of a valid file: a table, or an error of one line."""
    generator = random.Random(5)
    rows = [f"2024-01-{1 + h // 24:02d} {h % 24:02d}:00:00,{h * 0.5},{-h}" for h in range(100)]
    good = ("date,a,b\n" + "\n".join(rows) + "\n").encode()
    refused = []
    for _ in range(1000):
        damaged = bytearray(good[: generator.randint(0, len(good))] if generator.random() < 0.3 else good)
        for _ in range(generator.randint(1, 4)):
            if damaged:
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path = write(bytes(damaged))
        try:
            found = tidy(files.read_series(path), Policies())
            assert np.isfinite(found.series.values).all()
            assert found.freq
        except InputError as error:
            refused.append(str(error))
    assert not any("\n" in line for line in refused)
    assert 50 < len(refused) < 1000, "the damage must matter in some cases, but not in all"


def test_plain_text_without_dates(write):
    (series,) = files.read_series(write("1,2\n3,4\n", "solar.txt"))
    np.testing.assert_array_equal(series.values, [[1, 2], [3, 4]])
    assert series.columns == ["column_1", "column_2"]
    assert series.dates is None
    with pytest.raises(InputError, match=r"line 2: 1 cell where the first line has 2"):
        files.read_series(write("1,2\n3\n", "solar.txt"))
    with pytest.raises(InputError, match=r"line 2, column column_2: 'x' is not a number"):
        files.read_series(write("1,2\n3,x\n", "solar.txt"))


def test_pems_reads_the_flow(tmp_path):
    data = np.arange(24.0).reshape(4, 2, 3)
    data[1, 0, 0] = np.nan
    np.savez(tmp_path / "p.npz", data=data)
    (series,) = files.read_series(tmp_path / "p.npz")
    np.testing.assert_array_equal(series.values, data[:, :, 0])
    for name, content, words in (
        ("other", {"values": data}, "no array named"),
        ("flat", {"data": data[0]}, "shape"),
        ("text", {"data": np.full((2, 2, 1), "a")}, "expected numbers"),
        ("code", {"data": np.full((2, 2, 1), None)}, "not a readable npz"),
    ):
        np.savez(tmp_path / f"{name}.npz", **content)
        with pytest.raises(InputError, match=words):
            files.read_series(tmp_path / f"{name}.npz")


def test_columns_are_matched_by_name(write):
    (series,) = files.read_series(write(GOOD))
    other = series.reordered(["b", "a"])
    np.testing.assert_array_equal(other.values, series.values[:, ::-1])
    with pytest.raises(InputError, match=r"missing: c; unknown: b"):
        series.reordered(["a", "c"])


def test_readers_need_neither_lightning_nor_torch():
    code = "import sys, seqssm_forecasting.files, seqssm_forecasting.tidy, seqssm_forecasting.simulate; "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'lightning')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dates_in_an_index_without_a_name_are_answered_alike(tmp_path):
    """Of the workbook, they were an internal error."""
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0]}, index=pd.date_range("2024-01-01", periods=3))
    frame.to_excel(tmp_path / "x.xlsx")
    frame.to_csv(tmp_path / "x.csv")
    for name in ("x.xlsx", "x.csv"):
        with pytest.raises(InputError, match=r"column 1 has no name; name it"):
            files.read_series(tmp_path / name)
