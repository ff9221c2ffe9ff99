"""Files of users: layouts, numbers, dates and panels are read correctly or rejected with the line and an option."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import files
from seqssm_forecasting.calendar import future
from seqssm_forecasting.data import ForecastingData
from seqssm_forecasting.reading import Reading
from seqssm_forecasting.steps import parse
from seqssm_forecasting.tidy import Policies, tidy
from seqssm_forecasting.windows import borders_by_date

from seqssm.errors import InputError

ROWS = 60


@pytest.fixture
def text():
    """60 hours of two series as CSV lines."""
    dates = pd.date_range("2024-01-01", periods=ROWS, freq="h").strftime("%Y-%m-%d %H:%M")
    return ["date,s0,s1", *(f"{date},{k + 0.25},{100 - k}.5" for k, date in enumerate(dates))]


@pytest.fixture
def run(tmp_path):
    """Write lines, read them and make them regular."""

    def go(lines, name="x.csv", policies=None, freq=None, **reading):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        observed = reading.get("calendar") == "observed"
        return tidy(files.read_series(path, Reading(**reading)), policies or Policies(), freq, observed)

    return go


def with_dates(text, dates):
    return [text[0], *(f"{date},{line.split(',', 1)[1]}" for date, line in zip(dates, text[1:]))]


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reading", "note"),
    [
        (lambda t: [*t, ",,", ",,"], {}, "2 empty rows dropped (lines 62, 63)"),
        (lambda t: ["# station 7", "# UTC", *t], {}, "2 comment lines (#) above the header"),
        (lambda t: [t[0], ",kWh,degC", *t[1:]], {}, "line 2 skipped: units or descriptions (kWh, degC)"),
        (lambda t: [t[0], "time,kWh,degC", *t[1:]], {}, "line 2 skipped"),
        (lambda t: [t[0], ",kWh,degC", *t[1:]], {"skip_rows": (2,)}, "line 2 skipped as requested"),
        (lambda t: ["Report 7", "", *t], {"skip_rows": 2}, "2 lines skipped as requested"),
        (lambda t: [*t, "Total,12000,12000"], {}, "line 62 skipped: row of 'Total'"),
        (lambda t: [*t, "Summe:,12000,12000"], {}, "line 62 skipped: row of 'Summe:'"),
        (lambda t: ["," + t[0], *(f"{k},{line}" for k, line in enumerate(t[1:]))], {}, "row numbers dropped"),
        (lambda t: [line + "," for line in t], {}, "trailing separators"),
        (lambda t: [t[0] + ",place", *(line + ",Ulm" for line in t[1:])], {"text_columns": "drop"}, "ignored: place"),
        (lambda t: [t[0] + ",place", *(line + ",Ulm" for line in t[1:])], {"columns": ("s0", "s1")}, None),
        (lambda t: [t[0], *(line + " % ok" for line in t[1:])], {"comment": "%"}, "60 comments (%)"),
    ],
)  # fmt: skip
def test_layouts(run, text, change, reading, note):
    found = run(change(text), **reading)
    assert found.series.columns == ["s0", "s1"]
    assert found.series.values[:, 0].tolist() == [k + 0.25 for k in range(ROWS)]
    assert found.series.values[:, 1].tolist() == [100.5 - k for k in range(ROWS)]
    assert found.freq == "h"
    assert note is None or any(note in line for line in found.notes)


def test_ambiguous_files_are_an_error(run, text):
    with pytest.raises(InputError, match=r"line 62, column date: 'tbd' is not a date"):
        run([*text, "tbd,1,2"])
    with pytest.raises(InputError, match=r"line 2, column place: 'Ulm' is not a number"):
        run([text[0] + ",place", *(line + ",Ulm" for line in text[1:])])
    with pytest.raises(InputError, match=r"has no column s2 \(--data.columns\); did you mean s"):
        run(text, columns=("s2",))
    with pytest.raises(InputError, match=r"line 2: 3 cells where the header has 1; --data.skip_rows"):
        run(["Report 7", *text])


@pytest.mark.parametrize("missing", ["#N/A", "NA", "n/a", "NULL", "-", "#DIV/0!"])
def test_missing_values_as_programs_write_them(run, text, missing):
    text[30] = text[30].replace("29.25", missing)
    with pytest.raises(InputError, match=r"line 31, column s0: no value; --data.missing mask"):
        run(text)
    found = run(text, policies=Policies(missing="forward"))
    assert found.series.values[29, 0] == 28.25


@pytest.mark.parametrize(("mark", "decimal"), [(".", ","), (",", "."), ("'", "."), (" ", ","), ("\u202f", ",")])
def test_thousands(run, mark, decimal):
    """From 900 to 1137.5 as written in that locale; the other column is ambiguous."""

    def written(value):
        return f"{value:,.1f}".translate({ord(","): mark, ord("."): decimal})

    dates = pd.date_range("2024-01-01", periods=ROWS, freq="h")
    found = run(["date;s0", *(f"{date};{written(900.5 + 4 * k)}" for k, date in enumerate(dates))])
    assert found.series.values[:, 0].tolist() == [900.5 + 4 * k for k in range(ROWS)]
    assert any("thousands separators removed" in note for note in found.notes)


def test_an_ambiguous_thousand_is_refused_with_its_line(run):
    dates = pd.date_range("2024-01-01", periods=ROWS, freq="h")
    lines = ["date;s0", *(f"{date};{980 + k:,}".replace(",", ".") for k, date in enumerate(dates))]
    with pytest.raises(
        InputError, match=r"line 22, column s0: '1.000' is ambiguous.*give --data.decimal point or comma"
    ):
        run(lines)
    assert run(lines, decimal="comma").series.values[-1, 0] == 1039


# -- dates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dates", "freq", "first", "note"),
    [
        ([1577836800 + 3600 * k for k in range(ROWS)], "h", "2020-01-01 00:00:00", "seconds since 1970, UTC"),
        ([1000 * (1577836800 + 60 * k) for k in range(ROWS)], "min", "2020-01-01 00:00:00", "milliseconds"),
        ([f"{1577836800 + 3600 * k}.25" for k in range(ROWS)], "h", "2020-01-01 00:00:00.250000", "seconds since"),
        ([f"{1577836800 + 3600 * k:.9e}" for k in range(ROWS)], "h", "2020-01-01 00:00:00", "read as seconds since"),
        ([f"{1 + k % 4}-{1960 + k // 4}" for k in range(ROWS)], "QS-JAN", "1960-01-01 00:00:00", "read as quarters"),
        ([f"{1960 + k // 4}-Q{1 + k % 4}" for k in range(ROWS)], "QS-JAN", "1960-01-01 00:00:00", "read as quarters"),
        ([f"Q{1 + k % 4} {1960 + k // 4}" for k in range(ROWS)], "QS-JAN", "1960-01-01 00:00:00", "read as quarters"),
        ([f"{1960 + k // 2}H{1 + k % 2}" for k in range(ROWS)], "6MS", "1960-01-01 00:00:00", "read as half-years"),
        ([f"{2000 + k // 12}-{1 + k % 12:02d}" for k in range(ROWS)], "MS", "2000-01-01 00:00:00", "read as months"),
        ([f"{1 + k % 12:02d}/{2000 + k // 12}" for k in range(ROWS)], "MS", "2000-01-01 00:00:00", "read as months"),
        ([f"{2000 + k // 12}M{1 + k % 12:02d}" for k in range(ROWS)], "MS", "2000-01-01 00:00:00", "read as months"),
        (pd.date_range("2000-01-01", periods=ROWS, freq="MS").strftime("%b %Y"), "MS", "2000-01-01 00:00:00", "months"),
        (pd.date_range("2000-01-01", periods=ROWS, freq="MS").strftime("%Y-%b"), "MS", "2000-01-01 00:00:00", "months"),
        (pd.date_range("2000-01-01", periods=ROWS, freq="MS").strftime("%B %Y"), "MS", "2000-01-01 00:00:00", "months"),
        (pd.date_range("1998-01-01", periods=ROWS, freq="MS").strftime("%b-%y"), "MS", "1998-01-01 00:00:00",
         "dates such as Jan-98 read as months of 1998"),
        (pd.date_range("2003-01-01", periods=ROWS, freq="MS").strftime("%y-%b"), "MS", "2003-01-01 00:00:00",
         "months of 2003"),
        (pd.date_range("2001-03-01", periods=30, freq="3MS").strftime("%b %y"), "QS-MAR", "2001-03-01 00:00:00",
         "months of 2001"),
        ([f"2020-W{1 + k:02d}" for k in range(53)], "7D", "2019-12-30 00:00:00", "ISO weeks, from their Monday"),
        (range(1960, 1960 + ROWS), "YS-JAN", "1960-01-01 00:00:00", "read as years"),
        (pd.date_range("2024-01-01", periods=ROWS).strftime("%Y%m%d"), "D", "2024-01-01 00:00:00", "read as %Y%m%d"),
        (pd.date_range("2000-02-15", periods=ROWS, freq=pd.DateOffset(months=1)).strftime("%Y-%m-%d"), "MS@15",
         "2000-02-15 00:00:00", None),
    ],
)  # fmt: skip
def test_dates_as_people_write_them(run, text, dates, freq, first, note):
    dates = [str(date) for date in dates]
    found = run(with_dates(text, dates))
    assert (found.freq, str(found.series.dates[0])) == (freq, first)
    assert found.series.values[: len(dates), 0].tolist() == [k + 0.25 for k in range(len(dates))]
    assert note is None or any(note in line for line in found.notes)


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        (
            [f"{1577836800 + 3600 * k:.6E}" for k in range(ROWS)],
            r"line 2, .*'1.577837E\+09' is .* a rounded number; write",
        ),
        (
            [10**8 - 3600 + 3600 * k for k in range(ROWS)],
            r"integers from 99996400 to \d+: too large for steps, and not of",
        ),
    ],
)
def test_large_numbers_that_are_no_times(run, text, dates, message):
    with pytest.raises(InputError, match=message):
        run(with_dates(text, [str(date) for date in dates]))


@pytest.mark.parametrize("first", [0, 1700000000, 1700000000000])
@pytest.mark.parametrize(("cell", "words"), [("", "no date"), ("n/a", "'n/a' is not a date"), ("1e", "'1e' is not a")])
def test_a_damaged_cell_among_numbers_is_named(run, text, first, cell, words):
    """The first valid cell was named."""
    dates = [str(first + k) for k in range(ROWS)]
    dates[5] = cell
    with pytest.raises(InputError, match=f"line 7, column date: {words}"):
        run(with_dates(text, dates))


@pytest.mark.parametrize("rate", [3, 44, 256, 44100])
@pytest.mark.parametrize("gap", [False, True])
def test_a_rate_whose_step_is_no_whole_microsecond_is_regular(run, text, rate, gap):
    """Times are read to a microsecond; steps that differ by one were 'irregular'."""
    seconds = [repr(1700000000 + k / rate) for k in range(ROWS + 1)]
    if gap:
        del seconds[7]
    policies = Policies(gaps="fill", missing="mask")
    found = run(with_dates(text, seconds), policies=policies)
    assert found.freq == f"sampled:{Fraction(10**6, rate).numerator}/{Fraction(10**6, rate).denominator}"
    assert len(found.series) == ROWS + gap
    assert parse(found.freq) == found.step
    later = future(found.series.dates[0], found.step, 10**6)[-1]
    assert abs(later.timestamp() - 1700000000 - 10**6 / rate) < 3e-6
    assert run(with_dates(text, seconds), policies=policies, freq=found.freq).step == found.step
    seconds[20] = repr(float(seconds[20]) + 0.25 / rate)
    with pytest.raises(InputError, match=r"line 22, column date: .* after the row before"):
        run(with_dates(text, seconds), policies=policies)


def test_times_that_differ_below_a_microsecond_are_an_error(run, text):
    """They were duplicate dates."""
    with pytest.raises(InputError, match=r"line 3, column date: .* below the resolution of 1 microsecond"):
        run(with_dates(text, [f"1700000000.{k:09d}" for k in range(ROWS)]))


def test_columns_of_folds_are_reported(run, text):
    """They were series, or ignored, without a word."""
    what = "column kfold holds folds (0 to 2) and is not used for the split; series are split by time (--data.split,"
    wide = [f"{text[0]},kfold", *(f"{line},{k % 3}" for k, line in enumerate(text[1:]))]
    notes = run(wide).series.notes
    assert any(note.startswith(what) and note.endswith("--data.columns lists those to read") for note in notes)
    assert not any("folds" in note for note in run(wide, columns=("s0", "s1")).series.notes)
    dates = [line.split(",")[0] for line in text[1:]]
    rows = [(name, date, k, k % 3) for name in "ab" for k, date in enumerate(dates)]
    long = pd.DataFrame(rows, columns=["unique_id", "ds", "y", "kfold"])
    assert any(note.startswith(what) for note in files.read_series(long)[0].notes)


def test_the_split_takes_seconds_since_1970(run, text):
    dates = [str(1577836800 + 3600 * k) for k in range(ROWS)]
    series = run(with_dates(text, dates)).series
    found = borders_by_date(series, 4, dates[ROWS // 2], dates[3 * ROWS // 4])
    assert found == borders_by_date(series, 4, "2020-01-02 06:00", "2020-01-02 21:00")
    assert found["test"] == (3 * ROWS // 4 - 4, ROWS)


@pytest.mark.parametrize(
    ("given", "words"),
    [("1.7018e9", "it is a rounded number; write all of its digits"), ("-5", "seconds since 1970"), ("0", "seconds")],
)
def test_a_split_at_another_number_says_what_is_accepted(run, text, given, words):
    series = run(with_dates(text, [str(1577836800 + 3600 * k) for k in range(ROWS)])).series
    with pytest.raises(InputError, match=f"--data.val_from {given}: not a .*{words}"):
        borders_by_date(series, 4, given, "2020-01-02 21:00")


def test_times_where_the_model_has_integers_are_named(tmp_path):
    """They were 'not a date; set --data.date_format'."""
    path = tmp_path / "x.csv"
    path.write_text("t,x\n" + "".join(f"{1700000000 + 60 * k},{k}\n" for k in range(9)))
    summary = {"dated": True, "numbered": True, "freq": None}
    message = "time axis of numbers, and this one has dates: dates such as 1700000000 read as seconds since 1970, UTC"
    with pytest.raises(InputError, match=message):
        files.read_for_model(path, Reading(), summary)


@pytest.mark.parametrize(
    "dates",
    [
        pd.date_range("2024-01-01", periods=ROWS).strftime("%b-%d"),  # days
        pd.date_range("2024-01-01", periods=31).strftime("%d-%b"),
        pd.date_range("1955-01-01", periods=ROWS, freq="MS").strftime("%b-%y"),  # or 2055
    ],
)
def test_two_digits_that_may_be_days_or_years_are_refused(run, text, dates):
    words = rf"line 2, column date: '{dates[0]}' is not a date; .*two digits may be a day or a year of either century"
    with pytest.raises(InputError, match=words):
        run(with_dates(text, dates))


@pytest.mark.parametrize(
    ("cells", "value", "note"),
    [
        (lambda k: f"${1000.5 + k:,}", 1000.5, "s0: currency $ removed from 60 cells"),
        (lambda k: f"({1000.5 + k:,})", -1000.5, "s0: brackets or a trailing minus read as negative in 60 cells"),
        (lambda k: f"{1000.5 + k:,}-", -1000.5, "s0: brackets or a trailing minus read as negative in 60 cells"),
        (lambda k: f"{0.5 + k} %", 0.5, "s0: percent sign removed from 60 cells, values are in percent"),
    ],
)
def test_amounts_as_spreadsheets_show_them(run, text, cells, value, note):
    lines = [f"{line.split(',')[0]};{cells(k)}" for k, line in enumerate(text[1:])]
    for text_columns in ("error", "drop"):
        found = run(["date;s0", *lines], text_columns=text_columns)
        assert found.series.values[0, 0] == value
        assert note in found.notes


def test_a_time_axis_of_numbers(run, text):
    found = run(with_dates(text, range(1, ROWS + 1)))
    assert found.series.numbered
    assert found.series.label(-1) == "60"
    holed = with_dates(text, range(1, ROWS + 1))
    del holed[10]
    with pytest.raises(InputError, match=r"line 11, column date: 11 comes after 9.*1 row is missing"):
        run(holed)
    assert len(run(holed, policies=Policies(gaps="fill", missing="mask")).series) == ROWS


def test_a_gap_names_its_own_line_and_the_policy(run, text):
    lines = with_dates(text, pd.date_range("2000-01-01", periods=ROWS, freq="MS").strftime("%Y-%m-%d"))
    del lines[40]
    with pytest.raises(
        InputError, match=r"line 41, column date: 2003-05-01 comes after 2003-03-01, .*--data.gaps fill"
    ):
        run(lines)
    found = run(lines, policies=Policies(gaps="fill", missing="linear"))
    assert (found.freq, len(found.series)) == ("MS", ROWS)
    assert found.series.values[39, 0] == 39.25


def test_future_covariates_in_gaps_have_their_own_policy(run, text):
    lines = [f"{line},{'promo' if k == 0 else k % 2}" for k, line in enumerate(text)]
    del lines[10]
    fill = {"gaps": "fill", "missing": "mask"}
    with pytest.raises(
        InputError, match=r"2024-01-01 09:00.*column promo: missing future covariate.*--data.future_missing"
    ):
        run(lines, policies=Policies(**fill), future=("promo",))
    for how, value in (("forward", 1), ("zero", 0)):
        found = run(lines, policies=Policies(**fill, future_missing=how), future=("promo",))
        assert found.series.values[9, 2] == value
        assert any("1 missing cell of future covariates" in note for note in found.notes)


# -- panels ------------------------------------------------------------------------------------------------------------


def panel(**spans):
    """A long table: series by name with (first, end) day."""
    generator = np.random.default_rng(2)
    days = pd.date_range("2021-01-01", periods=300)
    parts = []
    for name, (first, end) in spans.items():
        y = 50 + 10 * np.sin(2 * np.pi * np.arange(300) / 10) + generator.normal(0, 1, 300)
        parts.append(pd.DataFrame({"unique_id": name, "ds": days[first:end], "y": y[first:end].round(2)}))
    return pd.concat(parts)


def test_a_series_that_cannot_be_trained_on_does_not_stop_the_others(tmp_path, capsys):
    path = tmp_path / "x.csv"
    panel(A=(0, 300), B=(0, 300), C_ended=(0, 190), D=(60, 300), E_new=(240, 300)).to_csv(path, index=False)
    data = ForecastingData(file=str(path), lookback=14, horizon=7)
    data.setup("fit")
    assert data.series.columns == ["A", "B", "C_ended", "D"]
    out = capsys.readouterr().out
    assert "not used: E_new (no window with values in the train split)" in out
    assert "fewer than 30 validation windows, prediction intervals pooled over series: A, B, C_ended, D" not in out
    assert data.summary()["left_out"] == {"E_new": "no window with values in the train split"}
    batch = data.test_set.__getitems__([0])
    assert batch["target_mask"][0, [0, 1, 3]].all()
    assert not batch["target_mask"][0, 2].any()
    own = panel(A=(0, 300))["y"].to_numpy()[:210]
    assert data.mean[0] == pytest.approx(own.mean())
    assert torch_finite(data)


def torch_finite(data):
    return all(bool(value.isfinite().all()) for value in data.train_set.__getitems__([0])["x"])


def test_a_small_file_is_trained_on(tmp_path):
    """Fewer windows than a batch: one partial batch per epoch instead of none."""
    path = tmp_path / "x.csv"
    dates = pd.date_range("2024-01-01", periods=30, freq="h")
    pd.DataFrame({"date": dates, "a": np.arange(30.0), "b": 1.5}).to_csv(path, index=False)
    data = ForecastingData(file=str(path), lookback=6, horizon=2)
    data.setup("fit")
    assert len(data.train_set) < data.batch_size
    assert len(list(data.train_dataloader())) == 1
    with pytest.raises(InputError, match=r"30 rows are too few: with --data.lookback 96.*at least \d+ rows are needed"):
        ForecastingData(file=str(path)).setup()


def test_data_frames_are_read_as_files_are(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text("\n".join(text) + "\n")
    frame = pd.read_csv(path, parse_dates=["date"])
    for given in (frame, frame.set_index("date"), pd.read_csv(path)):
        one = ForecastingData(file=given, lookback=6, horizon=2, columns="s0", sentinels=-9999)
        other = ForecastingData(file=str(path), lookback=6, horizon=2, columns=["s0"], sentinels=[-9999.0])
        one.setup()
        other.setup()
        assert one.train_set[0]["x"].equal(other.train_set[0]["x"])
        assert one.summary()["columns"] == ["s0"]
        assert one.hparams["file"] is None
    with pytest.raises(InputError, match=r"DataFrame: row 4, column s0: no value; --data.missing"):
        ForecastingData(file=frame.assign(s0=frame["s0"].where(frame.index != 3)), lookback=6, horizon=2).setup()
    with pytest.raises(InputError, match=r"DataFrame: row 4, column date: .*1 row is missing; --data.gaps fill"):
        ForecastingData(file=frame.drop(index=3), lookback=6, horizon=2).setup()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (lambda t: t[1:], r"line 1: the first row contains values \(2024-01-01 00:00, 0.25, 100.5\), not column names"),
        (lambda t: ["time_s,date", *(f"{k},{line.split(',')[0]}" for k, line in enumerate(t[1:]))],
         "the first column is time_s, not date; give --data.time_column date"),
        (lambda t: ["date,hour,s0", *(f"{line[:10]},{k % 24},{k}" for k, line in enumerate(t[1:]))],
         "the date is in several columns: date, hour; join them in one column"),
        (lambda t: ["Year,Month,Day,s0", *(f"2024,1,{1 + k // 9},{k}" for k in range(ROWS))],
         "the date is in several columns: Year, Month, Day"),
        (lambda t: ["date,store,sales", *(f"{line[:16]},{s},{k}" for s in "ab" for k, line in enumerate(t[1:]))],
         "if store names the series, give --data.id_column store, --data.time_column date"),
        (lambda t: ["date,s,i,y", *(f"{x[:16]},{s},{i},7" for s in "ab" for i in (1, 2) for x in t[1:])],
         "if s and i together name the series, join them in one column"),
        (lambda t: ["<!DOCTYPE html><html>", *t], "is a web page, not a table"),
        (lambda t: ["version https://git-lfs.github.com/spec/v1", *t], "is a Git LFS pointer"),
    ],
)  # fmt: skip
def test_files_that_would_be_misread_are_rejected_with_a_remedy(run, text, lines, words):
    with pytest.raises(InputError, match=words):
        run(lines(text))


def test_small_values_are_not_constant(run, text):
    from seqssm_forecasting.scaling import scaler

    for unit in (1e-30, 1e-12, 1.0, 1e30):
        found = run(
            [text[0], *(f"{line.split(',')[0]},{(3 + k % 5) * unit},{0.1 * unit}" for k, line in enumerate(text[1:]))]
        )
        mean, std, constant = scaler(found.series.values, found.series)
        assert constant == ["s1"]
        assert (float(mean[0]), float(std[0])) == (pytest.approx(5 * unit), pytest.approx(2**0.5 * unit))
