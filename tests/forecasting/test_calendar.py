"""Dates: frequency, gaps and repetitions, marks at known dates, the dates that follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import calendar
from seqssm_forecasting.files import Series

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
        ("MS", "MS", "calendar step MS"),
        ("ME", "ME", "calendar step ME"),
        ("B", "B", "calendar step B"),
        ("QS-JAN", "QS-JAN", "calendar step QS-JAN"),
        ("YS-JAN", "YS-JAN", "calendar step YS-JAN"),
    ],
)
def test_the_frequency_is_read_off_the_dates_and_continues_them(freq, found, words):
    dates = pd.date_range("2023-02-01", periods=40, freq=freq)
    assert calendar.frequency(series(dates[:30]))[0] == found
    assert calendar.frequency(series(dates[:30]), freq)[0] == found, "given, it is only checked"
    assert calendar.describe(found) == words
    assert list(calendar.future(dates[29], found, 10)) == list(dates[30:])


def test_two_names_of_one_step_are_the_same():
    dates = pd.date_range("2023-02-01", periods=30, freq="h")
    assert calendar.frequency(series(dates), "60min")[0] == "h"
    days = pd.date_range("2023-02-01", periods=30, freq="D")
    assert calendar.frequency(series(days), "24h")[0] == calendar.frequency(series(days))[0] == "D"


HOURS = pd.date_range("2024-01-01", periods=48, freq="h")


@pytest.mark.parametrize(
    ("dates", "place", "words"),
    [
        (HOURS.delete([5]), "line 7,", "2 hours after the line before, where the step is 1 hour"),
        (HOURS.delete([5, 6, 20]), "line 7,", r"3 in 2 places"),
        (HOURS[[0, 1, 3, 2, *range(4, 48)]], "line 5,", "sort the file"),
        (HOURS.delete(slice(2, None)), None, "fewer than 3"),
        (HOURS.insert(5, HOURS[4] + pd.Timedelta(minutes=20)), "line 7,", "20 minutes after"),
        (HOURS[np.cumsum(np.arange(9))], "column 1", "no regular step"),
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
    with pytest.raises(InputError, match="line 3"):
        calendar.frequency(months, "ME")
    with pytest.raises(InputError, match="no frequency that pandas knows"):
        calendar.frequency(series(HOURS), "fortnightly")


def test_a_gap_in_calendar_steps_is_found():
    months = pd.date_range("2020-01-01", periods=30, freq="MS").delete([7])
    with pytest.raises(InputError):
        calendar.frequency(series(months))
    with pytest.raises(InputError, match="line 9"):
        calendar.frequency(series(months), "MS")


def test_kept_as_they_are_they_are_counted():
    kept = series(HOURS.delete([5, 6]).insert(20, HOURS[21]))
    assert calendar.frequency(kept, None, "keep")[0] == "h"
    assert calendar.irregularities(kept, "h") == (1, 1)
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
        ("QS-JAN", "quarter", 4),
        ("YS-JAN", "year", None),
    ],
)
def test_what_goes_with_a_frequency(freq, marks, season):
    assert calendar.mark_kind(freq) == marks
    assert calendar.season(freq) == season
