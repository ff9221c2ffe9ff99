"""Dates: whether they are regular, how often they come, calendar marks, the dates that follow.

A frequency is a pandas alias (``"h"``, ``"15min"``, ``"D"``, ``"MS"``, ``"B"``).
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from seqssm.errors import InputError
from seqssm_forecasting.files import Series

MarkKind = Literal["auto", "none", "year", "quarter", "month", "week", "day", "hour", "minute", "second"]

MARKS: dict[str, tuple[str, ...]] = {
    "none": (),
    "year": (),
    "quarter": ("month",),
    "month": ("month",),
    "week": ("day", "week"),
    "day": ("day_of_week", "day", "day_of_year"),
    "hour": ("hour", "day_of_week", "day", "day_of_year"),
    "minute": ("minute", "hour", "day_of_week", "day", "day_of_year"),
    "second": ("second", "minute", "hour", "day_of_week", "day", "day_of_year"),
}
"""The marks of each kind: those of the usual table of time features, all scaled to [-0.5, 0.5]."""

SPAN = {  # mark -> (smallest, largest value)
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day_of_week": (0, 6),
    "day": (1, 31),
    "day_of_year": (1, 366),
    "month": (1, 12),
    "week": (1, 53),
}


def offset(freq: str) -> pd.offsets.BaseOffset:
    """The pandas offset of an alias.

    Raises:
        InputError: pandas does not know it, or it does not go forward.
    """
    try:
        found = to_offset(freq)
    except (ValueError, TypeError):
        found = None
    if found is None or found.n < 1:
        raise InputError(f"--data.freq {freq}: no frequency that pandas knows (h, 15min, D, W, MS, B, ...)")
    return found


def fixed_step(freq: str) -> pd.Timedelta | None:
    """The length of a step where all steps are alike (second to week), else None (month, business day, ...)."""
    found = offset(freq)
    if isinstance(found, pd.offsets.Week):
        return pd.Timedelta(days=7 * found.n)
    if isinstance(found, pd.offsets.Day):
        return pd.Timedelta(days=found.n)
    if isinstance(found, pd.offsets.Tick):
        return pd.Timedelta(found)
    return None


def alias(step: pd.Timedelta) -> str:
    """The shortest alias of a fixed step: ``"h"``, ``"15min"``, ``"D"``, ``"7D"``."""
    if step % pd.Timedelta(days=1) == pd.Timedelta(0):
        days = step // pd.Timedelta(days=1)
        return "D" if days == 1 else f"{days}D"
    return to_offset(step).freqstr


def describe(freq: str) -> str:
    """A frequency in words: ``"1 hour"``, ``"15 minutes"``, ``"month start (MS)"``."""
    step = fixed_step(freq)
    if step is None:
        return f"calendar step {freq}"
    return span(step)


def span(step: pd.Timedelta) -> str:
    """A length of time in its largest whole unit."""
    for name, seconds in (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)):
        one = pd.Timedelta(seconds=seconds)
        if step >= one and step % one == pd.Timedelta(0):
            count = step // one
            return f"{count} {name}{'s' if count > 1 else ''}"
    return str(step)


def frequency(series: Series, freq: str | None = None, irregular: str = "error", gaps: bool = False) -> tuple[str, str]:
    """The frequency of a series' dates and what it was read off.

    The dates are ascending, without repetition unless they are kept as they are.

    Args:
        series: with dates.
        freq: what it must be; None finds it: the step between the dates where all are alike, or a calendar step; with
            gaps the commonest step, of which all others are multiples.
        irregular: ``"keep"`` takes repeated dates and gaps as they are; the commonest step is the frequency.
        gaps: missing dates are allowed.

    Raises:
        InputError: names the first line at fault and how many there are.
    """
    dates, path = series.dates, series.path
    assert dates is not None
    if len(dates) < 3 and freq is None:
        raise InputError(
            f"has {len(dates)} rows; its frequency cannot be seen from fewer than 3, give --data.freq", file=path
        )
    steps = (dates[1:] - dates[:-1]).to_numpy()
    back = np.flatnonzero(steps < np.timedelta64(0))
    if len(back):
        row = int(back[0]) + 1
        raise _at(series, row, f"{dates[row]} comes after {dates[row - 1]}; sort the file by date")
    if freq is not None:
        return _require(series, freq, irregular, gaps), "as given"
    lengths, counts = np.unique(steps[steps > np.timedelta64(0)], return_counts=True)
    if len(lengths) == 0:
        raise _at(series, 1, "all dates are the same")
    evidence = f"the step of {counts.max()} of {len(steps)} rows"
    if len(lengths) == 1:
        return alias(pd.Timedelta(lengths[0])), f"the step of all {len(steps)} rows" if counts[0] == len(
            steps
        ) else evidence
    if lengths[0] >= np.timedelta64(1, "D"):
        found = _calendar_step(dates, gaps)
        if found is not None:
            return found, f"the calendar step of all {len(steps)} rows" if not gaps else "the calendar step of the rows"
    commonest = pd.Timedelta(lengths[counts.argmax()])
    if counts.max() * 2 < len(steps):
        told = ", ".join(f"{span(pd.Timedelta(lengths[k]))} {counts[k]} times" for k in counts.argsort()[::-1][:3])
        raise InputError(
            f"its dates follow no regular step: the commonest, {span(commonest)}, is only {counts.max()} of "
            f"{len(steps)} ({told}); give --data.freq",
            file=path,
            place="column 1",
        )
    return _require(series, alias(commonest), irregular, gaps), evidence


def _calendar_step(dates: pd.DatetimeIndex, gaps: bool) -> str | None:
    """The calendar step (month, quarter, business day, ...) that all dates follow, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas announces that it will return an offset instead of its alias
        try:
            found = pd.infer_freq(dates)
        except (ValueError, OverflowError):
            found = None
    if found is not None:
        return str(getattr(found, "freqstr", found))
    if not gaps:
        return None
    least = min(dates[1:] - dates[:-1])
    for name in ("B", "MS", "ME", "QS", "QE", "YS", "YE"):
        step = offset(name)
        if all(step.is_on_offset(date) for date in dates) and (name == "B") == (least < pd.Timedelta(days=28)):
            return step.freqstr if name != "B" or least >= pd.Timedelta(days=1) else None
    return None


def _require(series: Series, freq: str, irregular: str, gaps: bool) -> str:
    """`freq` in its shortest form, after a check that the dates of the series follow it."""
    dates = series.dates
    assert dates is not None
    step = fixed_step(freq)
    short = freq if step is None else alias(step)
    if irregular == "keep":
        return short
    try:
        expected = pd.date_range(dates[0], periods=len(dates), freq=offset(freq) if step is None else step)
    except (ValueError, OverflowError):
        raise InputError("its dates reach beyond what can be counted", file=series.path, place="column 1") from None
    wrong = np.flatnonzero(expected != dates)
    if not len(wrong):
        return short
    row = max(int(wrong[0]), 1) if len(dates) > 1 else 0
    if step is None:
        whole = grid(dates[0], dates[-1], freq, 10_000_000)
        if gaps and whole is not None and dates.isin(whole).all():
            return short
        raise _at(
            series, row, f"{dates[row]} where {expected[row]} was expected ({describe(freq)}){_FILL * (not gaps)}"
        )
    found = dates[row] - dates[row - 1]
    steps = (dates[1:] - dates[:-1]).to_numpy()
    lengths, counts = np.unique(steps, return_counts=True)
    commonest = pd.Timedelta(lengths[counts.argmax()])
    if commonest != step and not (gaps and commonest % step == pd.Timedelta(0)):
        raise InputError(
            f"its rows come every {span(commonest)}; expected every {span(step)}", file=series.path, place="column 1"
        )
    uneven = np.flatnonzero(steps % step.to_timedelta64() != np.timedelta64(0))
    if len(uneven):
        row = int(uneven[0]) + 1
        found = dates[row] - dates[row - 1]
        raise _at(series, row, f"{span(found)} after the line before, where the step is {span(step)}")
    if gaps:
        return short
    wide = steps[steps > step.to_timedelta64()]
    missing = int(sum(gap // step.to_timedelta64() - 1 for gap in wide))
    raise _at(
        series,
        row,
        f"{span(found)} after the line before, where the step is {span(step)}: rows are missing "
        f"({missing} in {_count(wide, 'place')}){_FILL}",
    )


_FILL = "; every step needs its row, or --data.gaps fill"


def grid(first: pd.Timestamp, last: pd.Timestamp, freq: str, most: int) -> pd.DatetimeIndex | None:
    """Every date from `first` to `last`; None when there are more than `most`."""
    step = fixed_step(freq)
    try:
        if step is not None:
            count = (last - first) // step + 1
            return None if count > most else pd.DatetimeIndex(first + step * np.arange(count)).as_unit("us")
        if (last - first) / pd.Timedelta(hours=12) > most:
            return None
        return pd.DatetimeIndex(pd.date_range(first, last, freq=offset(freq)), freq=None).as_unit("us")
    except (ValueError, OverflowError):
        return None


def irregularities(series: Series, freq: str) -> tuple[int, int]:
    """(repeated dates, gaps) of a series whose dates are kept as they are."""
    assert series.dates is not None
    steps = series.dates[1:] - series.dates[:-1]
    step = fixed_step(freq)
    return int((steps == pd.Timedelta(0)).sum()), 0 if step is None else int((steps > step).sum())


def _at(series: Series, row: int, message: str) -> InputError:
    return InputError(message, file=series.path, place=series.place(row, "1" if series.lines is not None else None))


def _count(items: np.ndarray, name: str) -> str:
    return f"{len(items)} {name}{'s' if len(items) != 1 else ''}"


def future(last: pd.Timestamp, freq: str, steps: int) -> pd.DatetimeIndex:
    """The `steps` dates that follow `last`."""
    step = fixed_step(freq)
    if step is not None:
        return pd.DatetimeIndex([last + step * number for number in range(1, steps + 1)])
    return pd.date_range(last, periods=steps + 1, freq=offset(freq))[1:]


def mark_kind(freq: str) -> str:
    """The kind of marks that goes with a frequency, where it is not given."""
    step = fixed_step(freq)
    if step is None:
        name = type(offset(freq)).__name__
        return next((kind for kind in ("month", "quarter", "year") if kind in name.lower()), "day")
    for kind, seconds in (("week", 7 * 86_400), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if step % pd.Timedelta(seconds=seconds) == pd.Timedelta(0):
            return kind
    return "second"


def marks(dates: pd.DatetimeIndex, kind: str) -> np.ndarray:
    """Calendar marks, (rows, marks), float32 in [-0.5, 0.5].

    The usual time features: hour/23 - 0.5, weekday/6 - 0.5 with Monday 0, (day - 1)/30 - 0.5,
    (day of year - 1)/365 - 0.5, and so on; `MARKS` says which ones a kind has.
    """
    names = MARKS[kind]
    table = np.empty((len(dates), len(names)), dtype=np.float32)
    for position, name in enumerate(names):
        low, high = SPAN[name]
        value = dates.isocalendar().week if name == "week" else getattr(dates, name)
        table[:, position] = (np.asarray(value, dtype=np.float64) - low) / (high - low) - 0.5
    return table


def season(freq: str) -> int | None:
    """The seasonal period in steps that people expect of a frequency: a day, else a week, else a year; None = none."""
    step = fixed_step(freq)
    if step is None:
        kind = mark_kind(freq)
        return {"day": 5, "month": 12, "quarter": 4}.get(kind)
    day, week = pd.Timedelta(days=1), pd.Timedelta(days=7)
    if step < day:
        return int(day / step) if day % step == pd.Timedelta(0) else None
    if step < week:
        return int(week / step) if week % step == pd.Timedelta(0) else None
    return 52 if step == week else None
