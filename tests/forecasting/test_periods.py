"""Dates and numbers as offices write them: periods, names of months, serial numbers, 24:00, currencies."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import files, holidays, periods, statics, windows
from seqssm_forecasting.data import ForecastingData
from seqssm_forecasting.dates import read_dates
from seqssm_forecasting.reading import Reading
from seqssm_forecasting.tidy import Policies, tidy

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.files.tables import read_table

LANGUAGES = {
    "de": "Jan Feb Mrz Apr Mai Jun Jul Aug Sep Okt Nov Dez",
    "de, full": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "fr": "janv. févr. mars avr. mai juin juil. août sept. oct. nov. déc.",
    "es": "ene feb mar abr may jun jul ago sep oct nov dic",
    "it": "gen feb mar apr mag giu lug ago set ott nov dic",
    "pt": "jan fev mar abr mai jun jul ago set out nov dez",
    "nl": "jan feb mrt apr mei jun jul aug sep okt nov dec",
    "no": "jan feb mars april mai juni juli aug sep okt nov des",
}
QUARTERS = [(year, quarter) for year in range(2010, 2020) for quarter in (1, 2, 3, 4)]
WEEKS = [(year, week) for year in (2022, 2023) for week in range(1, 53)]

MONDAYS = pd.date_range("2024-01-01", periods=30, freq="7D")


@pytest.fixture
def run(tmp_path):
    """Write one series with given dates, read it and make it regular."""

    def go(dates, cells=None, separator=",", policies=None, **reading):
        path = tmp_path / "x.csv"
        rows = zip(dates, cells or [f"{k + 0.5}" for k in range(len(dates))])
        path.write_text("\n".join(["date,y", *(f"{date},{cell}" for date, cell in rows)]).replace(",", separator))
        return tidy(files.read_series(path, Reading(**reading)), policies or Policies())

    return go


@pytest.mark.parametrize(
    ("dates", "freq", "first"),
    [
        ([f"{y}-{q}" for y, q in QUARTERS], "QS-JAN", "2010-01-01"),
        ([f"{y}/{q}" for y, q in QUARTERS], "QS-JAN", "2010-01-01"),
        ([f"{y}.{q}" for y, q in QUARTERS], "QS-JAN", "2010-01-01"),
        ([f"{y}-T{q}" for y, q in QUARTERS], "QS-JAN", "2010-01-01"),
        ([f"{q}/{y}" for y, q in QUARTERS], "QS-JAN", "2010-01-01"),
        ([f"{y}{q}" for y, q in QUARTERS], "QS-JAN", "2010-01-01"),
        ([f"{y + (q - 1) / 4}" for y, q in QUARTERS], "QS-JAN", "2010-01-01"),
        ([f"{y}-{k}" for y in range(1990, 2010) for k in (1, 2)], "6MS", "1990-01-01"),  # were January and February
        ([f"{k}/{y}" for y in range(1900, 1920) for k in (1, 2)], "6MS", "1900-01-01"),
        ([f"{y}.{k}" for y in range(1990, 2010) for k in (0, 5)], "6MS", "1990-01-01"),
        ([f"{y}-{k}" for y in range(1990, 2010) for k in (1, 2, 3)], "4MS", "1990-01-01"),
        ([f"{y}.0" for y in range(1700, 1740)], "YS-JAN", "1700-01-01"),  # were integers
        ([f"{m:%Y-%m-%d}/{m + pd.Timedelta(days=6):%Y-%m-%d}" for m in MONDAYS], "7D", "2024-01-01"),  # weekly Period
        ([f"{q}. Quartal {y}" for y, q in QUARTERS], "QS-JAN", "2010-01-01"),
        ([f"{q}Q{y % 100}" for y, q in QUARTERS], "QS-JAN", "2010-01-01"),
        ([f"KW {w:02d}/{y}" for y, w in WEEKS], "7D", "2022-01-03"),
        ([f"W{w}-{y}" for y, w in WEEKS], "7D", "2022-01-03"),
        ([f"{y}{w:02d}" for y, w in WEEKS], "7D", "2022-01-03"),
        ([f"{y}-{w:02d}" for y, w in WEEKS], "7D", "2022-01-03"),
        ([f"{w}/{y}" for y, w in WEEKS], "7D", "2022-01-03"),
        ([f"2024{k:03d}" for k in range(1, 60)], "D", "2024-01-01"),
        (list(pd.date_range("2024-01-01", periods=60, freq="h").strftime("%Y%m%d%H")), "h", "2024-01-01"),
        (list(pd.date_range("2024-01-01", periods=60, freq="h").strftime("%Y%m%d%H%M")), "h", "2024-01-01"),
        (list(pd.date_range("2024-01-01", periods=60, freq="h").strftime("%Y%m%dT%H%MZ")), "h", "2024-01-01"),
        (list(pd.date_range("2024-01-01", periods=60).strftime("%Y.%m.%d")), "D", "2024-01-01"),
        (list(pd.date_range("2024-01-01", periods=60, freq="h").strftime("%Y-%m-%d %H:%M:%S+00")), "h", "2024-01-01"),
        ([f"{1704067200 + 900 * k}.0" for k in range(60)], "15min", "2024-01-01"),
        ([f"{2010 + k // 12}.{k % 12 + 1:02d}".rstrip("0") for k in range(60)], "MS", "2010-01-01"),
    ],
)
def test_periods(run, dates, freq, first):
    found = run(dates)
    assert (found.freq, str(found.series.dates[0])[:10]) == (freq, first)
    assert found.series.values[:, 0].tolist() == [k + 0.5 for k in range(len(dates))]


@pytest.mark.parametrize("names", LANGUAGES.values(), ids=LANGUAGES)
def test_names_of_months(run, names):
    assert [periods.month_of(name.strip(".").upper()) for name in names.split()] == list(range(12))
    assert run([f"{name} {year}" for year in (2020, 2021) for name in names.split()]).freq == "MS"


def test_words_that_begin_like_a_month_are_none(run):
    assert periods.month_of("Marketing") is periods.month_of("Ma") is periods.month_of("jui") is None
    with pytest.raises(InputError, match=r"line 3, column date: 'Marketing 2020' is not a date"):
        run(["Feb 2020", "Marketing 2020", "Apr 2020"])


@pytest.mark.parametrize("form", [None, "%d.%m.%Y %H:%M"])
def test_the_end_of_a_day_is_the_start_of_the_next(run, form):
    dates = [f"2024-01-{1 + k // 24:02d} {k % 24 + 1:02d}:00" for k in range(72)]
    if form:
        dates = [f"{date[8:10]}.01.2024{date[10:]}" for date in dates]
    found = run(dates, date_format=form)
    assert (found.freq, str(found.series.dates[-1])) == ("h", "2024-01-04 00:00:00")
    assert "24:00 read as 00:00 of the next day, in 3 of the dates" in found.notes
    with pytest.raises(InputError, match=r"line 3, column date: .*24:30.* is not a date"):
        run([dates[0], dates[1].replace("02:00", "24:30"), dates[2]], date_format=form)


def test_intervals_are_read_as_their_start(run):
    ends = pd.date_range("2024-01-01", periods=49, freq="h").strftime("%d.%m.%Y %H:%M")
    found = run([f"{one} - {two}" for one, two in pairwise(ends)], date_format="%d.%m.%Y %H:%M")
    assert (found.freq, str(found.series.dates[-1])) == ("h", "2024-01-02 23:00:00")
    assert any("read as their start" in note for note in found.notes)


@pytest.mark.parametrize(("step", "freq"), [(1, "D"), (1 / 96, "15min")])
def test_serial_numbers_of_spreadsheets(run, step, freq):
    dates = [f"{45292 + k * step:.6f}".rstrip("0").rstrip(".") for k in range(60)]
    assert run(dates, date_format="excel").freq == freq
    assert str(run(dates, date_format="excel").series.dates[0]) == "2024-01-01 00:00:00"
    frame = pd.DataFrame({"date": [45292 + k * step for k in range(60)], "y": np.arange(60.0)})
    assert tidy(files.read_series(frame, Reading(date_format="excel")), Policies()).freq == freq
    if step == 1:
        assert any("--data.date_format excel" in note for note in run(dates).notes)
    else:
        with pytest.raises(InputError, match=r"not a date; .*--data.date_format excel"):
            run(dates[1:])
    with pytest.raises(InputError, match="line 3, column date: 'tbd' is not the serial number of a date"):
        run([dates[0], "tbd", *dates[1:]], date_format="excel")


def test_numbers_of_months_in_a_frame_keep_october():
    """2024.10 is 2024.1 as a number."""
    frame = pd.DataFrame({"date": [2020 + k // 12 + (k % 12 + 1) / 100 for k in range(36)], "y": np.arange(36.0)})
    found = tidy(files.read_series(frame.round(2)), Policies())
    assert (found.freq, found.series.values[9, 0], str(found.series.dates[9])[:7]) == ("MS", 9, "2020-10")


def test_integers_beyond_the_range_of_dates_are_named(run):
    with pytest.raises(InputError, match=r"line 7, column date: 302407 comes after 302405, .*1 row is missing"):
        run([f"30240{k}" for k in range(1, 9) if k != 6])


@pytest.mark.parametrize(
    ("dates", "words"),
    [
        ([f"{y}-Q{q}" for y, q in QUARTERS] + ["2020-Q5"], r"line 42, column date: '2020-Q5' is not a date"),
        ([f"{y}-W{w}" for y, w in WEEKS] + ["2021-W54"], r"line 106, column date: '2021-W54' is not a date"),
        (["2024-01-01", "2024-01-02", "Source: Eurostat"], r"line 4.*--data.skip_rows \[4\] leaves the line out"),
        (["01/31/2024 01:00 PM"], "perhaps '%m/%d/%Y %I:%M %p'$"),
        (["01/02/19", "02/02/19"], "perhaps '%d/%m/%y' or '%m/%d/%y'$"),
        (["01/02/19", "13/02/19"], "perhaps '%d/%m/%y'$"),
        (["01 January 2019", "02 January 2019"], "perhaps '%d %B %Y'$"),
        (["January 1 2019 10:30"], "perhaps '%B %d %Y %H:%M'$"),
        (["Mon 7 Jan 2019"], "perhaps '%a %d %b %Y'$"),
        (["1. Januar 2019"], "other forms$"),
        ([str(x) for x in pd.date_range("2016-03-01", periods=50, tz="Europe/Berlin")],
         "23 hours after the row before.*set --data.timezone"),
        ([str(x) for x in pd.date_range("2016-01-01", periods=50, freq="MS", tz="Europe/Berlin")],
         "does not match the frequency.*set --data.timezone"),
    ],
)  # fmt: skip
def test_the_cell_at_fault_is_named_with_a_remedy(run, dates, words):
    with pytest.raises(InputError, match=words):
        run(dates)


@pytest.mark.parametrize("name", ["Total 2024", "Grand Total", "Insgesamt", "Total général", "Totaux"])
def test_rows_of_totals(run, name):
    dates = list(pd.date_range("2024-01-01", periods=30).strftime("%Y-%m-%d"))
    found = run([*dates, name])
    assert (len(found.series), found.notes) == (30, [f"line 32 skipped: row of {name!r}"])


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1.234,50 kr", 1234.5), ("1 234,50 zł", 1234.5), ("R$ 1.234,50", 1234.5), ("-US$ 1,234.50", -1234.5),
     ("–1,5", -1.5), ("12,50 Kč", 12.5), ("–1,5 %", -1.5)],
)  # fmt: skip
def test_currencies_and_dashes(tmp_path, cell, value):
    dates = pd.date_range("2024-01-01", periods=30).strftime("%Y-%m-%d")
    lines = ["date;y", *(f"{date};{cell}" for date in dates)]
    (tmp_path / "x.csv").write_text("\n".join([*lines[:10], f"{dates[8][:8]}31;–", *lines[10:]]), encoding="utf-8")
    found = tidy(files.read_series(tmp_path / "x.csv"), Policies(unsorted="sort", duplicates="first", missing="mask"))
    assert found.series.values[:30, 0].tolist() == [value] * 30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "id,ds,y\n1,2024-01-01,5\n2,2024-01-02,6\n3,2024-01-03,7",
            "column id differs in every row.*--data.layout wide",
        ),
        ("a,Datum\n5,2024-01-01\n6,2024-01-02", "the first column is a, not Datum; give --data.time_column Datum"),
    ],
)
def test_layouts_that_would_be_misread(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        files.read_series(tmp_path / "x.csv")


def test_names_of_the_long_layout_in_any_case(tmp_path):
    rows = [f"{name},2024-01-0{day},{day}" for name in "ab" for day in range(1, 5)]
    (tmp_path / "x.csv").write_text("\n".join(["Item_ID,Timestamp,Target", *rows]))
    assert [series.columns for series in files.read_series(tmp_path / "x.csv")] == [["a"], ["b"]]


def test_one_column_per_month_is_reported(tmp_path):
    rows = [f"{year},{','.join(str(month) for month in range(12))}" for year in range(2000, 2010)]
    (tmp_path / "x.csv").write_text("\n".join(["year,Jan,Feb,Mar,Apr,May,Jun,Jul,Aug,Sep,Oct,Nov,Dec", *rows]))
    assert any("one column per month" in note for note in files.read_series(tmp_path / "x.csv")[0].notes)


def test_a_table_named_txt(tmp_path):
    (tmp_path / "x.txt").write_text("date,a\n2024-01-01,1\n")
    with pytest.raises(InputError, match=r"line 1: has a header \(date, a\); .*name it .csv"):
        files.read_series(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("2024-02-10", "2024-02-10"), ("2024/2/10 18:00", "2024-02-10 18:00"), ("2024-Q2", "2024-04-01"),
     ("2024-W05", "2024-01-29"), ("20240210", "2024-02-10"), ("2024-03", "2024-03-01"), ("2025", "2025-01-01"),
     ("2024-02-10T18:00+01:00", "2024-02-10 18:00+01:00")],
)  # fmt: skip
def test_dates_of_splits(text, wanted):
    assert windows._moment(text) == pd.Timestamp(wanted)


@pytest.mark.parametrize("text", ["10.02.2024", "02/10/2024", "10 Feb 2024", "2024-13-02", "2024-02-30", "12-11-10"])
def test_dates_of_splits_are_year_first(tmp_path, text):
    """pandas reads 10.02.2024 as 2 October."""
    dates = pd.date_range("2024-01-01", periods=360).strftime("%Y-%m-%d")
    (tmp_path / "x.csv").write_text("\n".join(["date,y", *(f"{day},{k % 7}" for k, day in enumerate(dates))]))
    data = ForecastingData(file=str(tmp_path / "x.csv"), lookback=6, horizon=2, val_from=text, test_from="2024-11-20")
    with pytest.raises(InputError, match=f"--data.val_from {text}: not a year-first date"):
        data.setup()


def test_none_is_a_category_of_words(tmp_path):
    """It was refused as an empty cell; of numbers, it is one."""
    path = tmp_path / "static.csv"
    path.write_text("id,cooling\na,air\nb,none\n")
    rules = statics.learn(statics.read_static_features(path, ["a", "b"]))
    assert statics.names(rules) == ["cooling=air", "cooling=none"]
    path.write_text("id,cooling\na,none\nb,none\n")
    assert statics.features(statics.read_static_features(path, ["a", "b"], rules), rules, path).tolist() == [[0, 1]] * 2
    for cells in ("1,none", "air,NA", "air,"):
        one, other = cells.split(",")
        path.write_text(f"id,cooling\na,{one}\nb,{other}\n")
        with pytest.raises(InputError, match="line 3, column cooling: no value"):
            statics.read_static_features(path, ["a", "b"])


def test_static_numbers_in_any_notation(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("id;capacity;share;region\na;1.234,5;10 %;north\nb;2,5;20 %;south\n")
    frame = statics.read_static_features(path, ["b", "a"])
    assert frame.to_numpy().tolist() == [[2.5, 20.0, "south"], [1234.5, 10.0, "north"]]
    assert statics.names(statics.learn(frame)) == ["capacity", "share", "region=north", "region=south"]


@pytest.mark.parametrize(
    ("cells", "step", "first", "second"),
    [
        (["2024-1", "2024-2"], "QS-JAN", "2024-01", "2024-04"),
        (["3/2024", "4/2024"], "QS-OCT", "2024-07", "2024-10"),
        (["2024-1", "2024-2"], "6MS", "2024-01", "2024-07"),
        (["2024-1", "2024-2"], "4MS", "2024-01", "2024-05"),
        (["2024-1", "2024-2"], "MS", "2024-01", "2024-02"),
        (["1/2024", "2/2024"], "MS", "2024-01", "2024-02"),
        (["2024-10", "2024-11"], "7D", "2024-03", "2024-03"),
        (["2024-01-01", "2024-02-01"], "MS", "2024-01", "2024-02"),
        (["2024-Q1", "2024-Q2"], "MS", "2024-01", "2024-04"),  # written out
    ],
)
def test_a_few_dates_are_read_with_the_step_of_the_model(tmp_path, cells, step, first, second):
    """Two quarters were two months."""
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["date,y", *(f"{cell},1" for cell in cells)]))
    dates = read_dates(read_table(path), "date", step=step).values
    assert [str(date)[:7] for date in dates] == [first, second]


def test_predict_reads_a_short_file_with_the_step_of_the_model(tmp_path):
    table = pd.DataFrame({"date": [f"{y}-{q}" for y, q in QUARTERS], "y": np.arange(40.0)})
    path, run = tmp_path / "x.csv", tmp_path / "run"
    table.to_csv(path, index=False)
    words = [
        "--config",
        "smamba",
        "--model.network",
        "dlinear",
        "--data.file",
        str(path),
        "--data.lookback",
        "3",
        "--data.horizon",
        "2",
    ]
    assert main(["forecasting", "fit", *words, "--trainer.max_epochs", "1", "--output", str(run)]) == 0
    model = seqssm.load(run, accelerator="cpu")
    short = model.predict(table.tail(3))
    assert list(short["ds"].astype(str).str[:7]) == ["2020-01", "2020-04"]


@pytest.mark.parametrize(
    ("form", "given"), [("%Y-%m-%d", None), ("%d.%m.%Y", None), ("%m/%d/%Y", "%m/%d/%Y"), ("%Y-%m-%d", "%m/%d/%Y")]
)
def test_tables_of_holidays_in_the_form_of_the_series(tmp_path, form, given):
    days = pd.to_datetime(["2024-12-25", "2024-01-06"])
    path = tmp_path / "free.csv"
    path.write_text("\n".join(["date,name", *(f"{day},x" for day in days.strftime(form))]))
    assert holidays.learn(str(path), Reading(date_format=given))["dates"] == ["2024-01-06", "2024-12-25"]
    path.write_text("date,name\n25/12/2024,x\n")
    with pytest.raises(InputError, match=r"expected dates such as 2024-12-25 or 25\.12\.2024"):
        holidays.learn(str(path), Reading(date_format=given))


@pytest.mark.parametrize(
    ("cells", "axis", "first"),
    [
        (["2000", "2001"], None, 2000),
        (["2000", "2001"], "dates", 2000),
        (["2300", "2301"], "dates", 2300),
        (["2000", "2001"], "numbers", 1970 + 2000 // 365),
        (["2000.0", "2001.0"], "numbers", 1970 + 2000 // 365),
        (["200001", "200002"], "dates", 2000),
        (["200001", "200002"], "numbers", 1970 + int(200001 / 365.2425)),
        (["19000101", "19000102"], "numbers", 1970 + int(19000101 / 365.2425)),
    ],
)
def test_integers_are_numbers_or_dates_as_in_the_training(tmp_path, cells, axis, first):
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["date,y", *(f"{cell},1" for cell in cells)]))
    found = read_dates(read_table(path), "date", axis=axis)
    assert found.numbered == (axis == "numbers")
    assert found.values[0].astype("datetime64[Y]").astype(int) + 1970 == first


@pytest.mark.parametrize(
    ("learned", "new", "expected"),
    [
        pytest.param(range(1000, 1300), range(2000, 2030), [2030, 2031], marks=pytest.mark.long),
        (range(199_700, 200_000), range(200_001, 200_013), [200_013, 200_014]),
        (range(1750, 2000), range(2290, 2310), ["2310-01-01", "2311-01-01"]),
    ],
)
def test_a_model_reads_integers_as_the_time_axis_of_its_training(tmp_path, learned, new, expected):
    """The continuation of an integer axis were years, and an error; that of years were integers."""

    def written(name, axis):
        table = pd.DataFrame({"date": list(axis), "y": np.sin(np.arange(len(axis)))})
        table.to_csv(tmp_path / name, index=False)
        return str(tmp_path / name)

    path, run, later = written("x.csv", learned), str(tmp_path / "run"), written("new.csv", new)
    words = ["--model.network", "dlinear", "--data.file", path, "--data.lookback", "3", "--data.horizon", "2"]
    words += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--output", run]
    assert main(["forecasting", "fit", "--config", "smamba", *words]) == 0
    output = tmp_path / "out.csv"
    assert main(["predict", run, later, "--output", str(output)]) == 0
    assert pd.read_csv(output)["ds"].tolist() == expected
    assert main(["forecasting", "test", run, "--data.file", later]) == 0
    numbered = isinstance(expected[0], int)
    other = written("other.csv", pd.date_range("2024-01-01", periods=20).date if numbered else range(1, 21))
    assert main(["predict", run, other, "--output", str(output)]) == 2
    assert main(["forecasting", "test", run, "--data.file", other]) == 2


def test_a_table_whose_first_column_is_not_the_date_names_the_one_that_is(tmp_path):
    """Typed dates in another column were "not numbers"."""
    frame = pd.DataFrame({"row": [1, 2, 3], "date": pd.date_range("2024-01-01", periods=3), "y": [1.0, 2.0, 3.0]})
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"the first column is row, not date; give --data.time_column date"):
        files.read_series(tmp_path / "x.parquet")
