"""Dates: frequency, gaps and repetitions, time features at known dates, continuation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import calendar
from seqssm_forecasting.series import Series
from seqssm_forecasting.steps import parse

from seqssm.errors import InputError


def series(dates) -> Series:
    dates = pd.DatetimeIndex(dates)
    return Series(Path("x.csv"), np.zeros((len(dates), 1)), ["a"], dates, np.arange(2, 2 + len(dates)))


@pytest.mark.parametrize(
    ("freq", "found", "words"),
    [
        ("h", "h", "1 hour"),
        ("15min", "15min", "15 minutes"),
        ("10s", "10s", "10 seconds"),
        ("D", "D", "1 day"),
        ("W-WED", "7D", "7 days"),
        ("4W-MON", "28D", "28 days"),
        ("MS", "MS", "1 month (MS)"),
        ("ME", "ME", "1 month (ME)"),
        ("2MS", "2MS", "2 months (2MS)"),
        ("B", "B", "1 business day (B)"),
        ("QS-JAN", "QS-JAN", "3 months (QS-JAN)"),
        ("QS-FEB", "QS-FEB", "3 months (QS-FEB)"),
        ("QE-DEC", "QE-DEC", "3 months (QE-DEC)"),
        ("QE-JAN", "QE-OCT", "3 months (QE-OCT)"),
        ("2QS-JAN", "6MS", "6 months (6MS)"),
        ("YS-JAN", "YS-JAN", "1 year (YS-JAN)"),
        ("YE-JUN", "YE-JUN", "1 year (YE-JUN)"),
        ("2YS-JAN", "2YS-JAN", "2 years (2YS-JAN)"),
        ("BMS", "BMS", "calendar step BMS"),
        ("WOM-3FRI", "WOM-3FRI", "calendar step WOM-3FRI"),
    ],
)
def test_the_frequency_is_inferred_from_the_dates_and_continues_them(freq, found, words):
    dates = pd.date_range("2023-02-01", periods=40, freq=freq)
    step, evidence = calendar.frequency(series(dates[:30]))
    assert (step.name, step.words(), evidence) == (found, words, "the step of all 29 rows")
    assert calendar.frequency(series(dates[:30]), freq)[0] == step, "a given frequency is only checked"
    assert parse(found) == step, "a checkpoint keeps the name"
    assert list(calendar.future(dates[29], step, 10)) == list(dates[30:])


def test_two_names_of_one_step_are_equal():
    dates = pd.date_range("2023-02-01", periods=30, freq="h")
    assert calendar.frequency(series(dates), "60min")[0].name == "h"
    days = pd.date_range("2023-02-01", periods=30, freq="D")
    assert calendar.frequency(series(days), "24h")[0].name == calendar.frequency(series(days))[0].name == "D"


HOURS = pd.date_range("2024-01-01", periods=48, freq="h")


@pytest.mark.parametrize(
    ("dates", "place", "words"),
    [
        (
            HOURS.delete([5]),
            "line 7,",
            r"06:00:00 comes after .* 04:00:00, where the step is 1 hour: 1 row is missing; --data.gaps fill",
        ),
        (HOURS.delete([5, 6, 20]), "line 7,", r"3 rows are missing in 2 places"),
        (HOURS[[0, 1, 3, 2, *range(4, 48)]], "line 5,", "sort the file"),
        (HOURS.delete(slice(2, None)), None, "at least 3 are needed"),
        (HOURS.insert(5, HOURS[4] + pd.Timedelta(minutes=20)), "line 7,", "20 minutes after"),
        (HOURS[np.cumsum(np.arange(9))], "column 1", "irregular dates"),
    ],
)
def test_irregular_dates_are_refused_with_the_first_line(dates, place, words):
    with pytest.raises(InputError, match=words) as caught:
        calendar.frequency(series(dates))
    assert (caught.value.place or "").startswith(place or "")


def test_another_frequency_is_named():
    with pytest.raises(InputError, match="its rows come every 1 hour; expected every 15 minutes"):
        calendar.frequency(series(HOURS), "15min")
    months = series(pd.date_range("2023-01-01", periods=12, freq="MS"))
    with pytest.raises(InputError, match="line 2, column 1: 2023-01-01 does not match the frequency 1 month"):
        calendar.frequency(months, "ME")
    with pytest.raises(InputError, match="not a pandas frequency"):
        calendar.frequency(series(HOURS), "fortnightly")


@pytest.mark.parametrize(
    "freq", ["MS", "ME", "2MS", "QS-FEB", "QE-DEC", "2QS-JAN", "YS-JAN", "YE-DEC", "B", "D", "W-MON", "90min"]
)
@pytest.mark.parametrize("given", [False, True])
def test_gaps_of_every_step_are_found_and_filled(freq, given):
    """The frequency is that of all dates; the message names the row after the gap."""
    whole = pd.date_range("2001-01-01", periods=60, freq=freq)
    holed = whole.delete([7, 20, 21, 50])
    step, _ = calendar.frequency(series(holed), freq if given else None, gaps=True)
    assert step == calendar.frequency(series(whole))[0]
    assert list(calendar.grid(series(holed), step)) == list(whole)
    with pytest.raises(InputError, match=r"4 rows are missing in 3 places; --data\.gaps fill") as caught:
        calendar.frequency(series(holed), freq if given else None)
    assert caught.value.place == "line 9, column 1"
    assert str(whole[8])[:10] in caught.value.message


@pytest.mark.parametrize("day", [2, 15, 28, 30])
@pytest.mark.parametrize("months", [1, 3, 6, 12])
def test_months_on_any_day(day, months):
    ends = pd.date_range("2000-01-31", periods=40 * months, freq="ME")[::months]
    dates = pd.DatetimeIndex([end.replace(day=min(day, end.day)) for end in ends]) + pd.Timedelta(hours=6)
    step, _ = calendar.frequency(series(dates[:30]))
    assert step.name.endswith(f"@{day}")
    assert parse(step.name) == step
    assert list(calendar.future(dates[29], step, 10)) == list(dates[30:])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("M", "ME"),
        ("Q", "QE"),
        ("A-DEC", "YE"),
        ("Y", "YE"),
        ("BM", "BME"),
        ("H", "h"),
        ("15T", "min"),
        ("S", "s"),
        ("2Q", "QE"),
    ],
)
def test_old_aliases_are_rejected_with_the_new_ones(old, new):
    with pytest.raises(InputError, match=f"--data.freq {old}: this alias is now {new}"):
        parse(old)


def test_observed_hours():
    days = pd.bdate_range("2024-01-01", periods=30)
    times = [day + pd.Timedelta(minutes=570 + 30 * k) for day in days for k in range(14)]
    dates = pd.DatetimeIndex(times)
    with pytest.raises(InputError, match=r"--data.calendar observed skips times of the week"):
        calendar.frequency(series(dates))
    step, evidence = calendar.frequency(series(dates[:280]), observed=True)
    assert step.words() == "30 minutes in observed hours (Mon-Fri, 09:30 to 16:00)"
    assert evidence == "70 times of the week with rows"
    assert list(calendar.future(dates[279], step, 140)) == list(dates[280:]), "no forecast after the close"
    assert (calendar.season(step), calendar.mark_kind(step)) == (14, "minute")
    assert parse(step.name) == step
    with pytest.raises(InputError, match="1 row is missing"):
        calendar.frequency(series(dates[:280].delete([30])), observed=True)
    with pytest.raises(InputError, match="two weeks"):
        calendar.frequency(series(dates[:70]), observed=True)


def test_irregular_dates_that_are_kept_are_counted():
    kept = series(HOURS.delete([5, 6]).insert(20, HOURS[21]))
    assert calendar.frequency(kept, None, "keep")[0].name == "h"
    assert calendar.irregularities(kept, parse("h")) == (1, 1)
    with pytest.raises(InputError, match="sort the file"):
        calendar.frequency(series(HOURS[::-1]), None, "keep")


def test_marks_at_known_dates():
    """2024-12-31 23:59:59 is a Tuesday in a leap year; 2023-01-01 00:00 a Sunday."""
    dates = pd.DatetimeIndex(["2024-12-31 23:59:59", "2023-01-01 00:00:00", "2016-07-01 12:00:00"])
    hourly = calendar.marks(dates, "hour")
    assert hourly.dtype == np.float32
    expected = [
        [0.5, 1 / 6 - 0.5, 0.5, 0.5],
        [-0.5, 0.5, -0.5, -0.5],
        [12 / 23 - 0.5, 4 / 6 - 0.5, -0.5, 182 / 365 - 0.5],
    ]
    np.testing.assert_allclose(hourly, expected, atol=1e-6)
    np.testing.assert_allclose(calendar.marks(dates, "second")[0, :2], [0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(calendar.marks(dates, "minute")[2, 0], -0.5, atol=1e-6)
    np.testing.assert_allclose(calendar.marks(dates, "month")[:, 0], [0.5, -0.5, 6 / 11 - 0.5], atol=1e-6)
    # ISO weeks: 2024-12-31 is in week 1, 2023-01-01 in week 52
    np.testing.assert_allclose(calendar.marks(dates, "week")[:2, 1], [-0.5, 51 / 52 - 0.5], atol=1e-6)
    assert calendar.marks(dates, "none").shape == (3, 0)


@pytest.mark.parametrize(
    ("freq", "marks", "season"),
    [
        ("h", "hour", 24),
        ("15min", "minute", 96),
        ("10min", "minute", 144),
        ("5min", "minute", 288),
        ("s", "second", 86_400),
        ("7h", "hour", None),
        ("D", "day", 7),
        ("7D", "week", 52),
        ("B", "day", 5),
        ("MS", "month", 12),
        ("BME", "month", 12),
        ("2MS", "month", 6),
        ("6MS", "quarter", 2),
        ("QS-JAN", "quarter", 4),
        ("2QS-JAN", "quarter", 2),
        ("2YS-JAN", "year", None),
        ("2B", "day", None),
        ("2h", "hour", 12),
        ("90min", "minute", 16),
        ("2D", "day", None),
        ("14D", "week", 26),
        ("28D", "week", 13),
        ("MS@15", "month", 12),
        ("YS-JAN", "year", None),
    ],
)
def test_options_that_depend_on_the_frequency(freq, marks, season):
    assert calendar.mark_kind(parse(freq)) == marks
    assert calendar.season(parse(freq)) == season
