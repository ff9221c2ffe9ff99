"""The time axis of a series: step, gaps, calendar marks, seasonal period and future dates."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm_forecasting.series import Series
from seqssm_forecasting.steps import DAY, OFF, WEEK, Business, Fixed, Months, Observed, Sampled, Step, parse, span

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
"""Calendar marks of each kind: the usual time features, scaled to [-0.5, 0.5]."""

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
MONTH = 27 * DAY  # shorter than any month, even across a clock change
MOST_ROWS = 5_000_000  # maximum size of a filled grid; more indicates a wrong frequency or date
FILL = "; --data.gaps fill inserts rows without values"


def frequency(
    series: Series,
    freq: str | None = None,
    irregular: str = "error",
    gaps: bool = False,
    observed: bool = False,
) -> tuple[Step, str]:
    """Find the step of a series' dates, and the evidence for it.

    Dates must be ascending, without duplicates unless those are kept.

    Args:
        series: series with dates.
        freq: required step; None infers it: calendar months or longer, business days, else the most common step.
        irregular: ``"keep"`` accepts duplicate and missing dates; the most common step is the frequency.
        gaps: whether missing dates are allowed.
        observed: whether the time axis consists of the times of the week that have rows.

    Raises:
        InputError: no regular step, or missing dates without `gaps`; the message has the first line concerned.
    """
    assert series.dates is not None
    dates = series.dates.to_numpy("datetime64[us]")
    if len(dates) < 3 and freq is None:
        rows = f"has {len(dates)} {'row' if len(dates) == 1 else 'rows'}"
        raise InputError(f"{rows}; at least 3 are needed to find the frequency, or give --data.freq", file=series.path)
    lengths = np.diff(dates).astype(np.int64)
    back = np.flatnonzero(lengths < 0)
    if len(back):
        row = int(back[0]) + 1
        raise at(series, row, f"{series.label(row)} comes after {series.label(row - 1)}; sort the file by date")
    if not lengths.any() and len(lengths):
        raise at(series, 1, "all dates are the same")
    if freq is not None:
        step, evidence = parse(freq), "as given"
    elif observed:
        step = Observed.of(dates)
        if len(step.slots) * 2 > len(dates):
            raise InputError("needs at least two weeks of rows for --data.calendar observed", file=series.path)
        evidence = f"{len(step.slots)} times of the week with rows"
    else:
        step, evidence = _infer(series, dates, lengths)
    if irregular == "keep":
        return step, evidence
    _check(series, dates, step, gaps)
    return step, evidence


def _infer(series: Series, dates: np.ndarray, lengths: np.ndarray) -> tuple[Step, str]:
    """Infer the step that most dates follow, and the evidence for it."""
    values, counts = np.unique(lengths[lengths > 0], return_counts=True)
    for found in (_months(dates) if values[0] >= MONTH else None, _business(dates, values, counts)):
        if found is not None:
            step, hits = found
            return step, f"the step of {_of(hits, len(lengths))}"
    if len(values) > 1 and values[0] >= DAY and (other := _pandas_step(dates)) is not None:
        return other, f"the step of all {len(lengths)} rows"
    if (sampled := Sampled.of(dates)) is not None:
        hits = int(counts[np.abs(values - float(sampled.length)) <= 1].sum())
        return sampled, f"the step of {_of(hits, len(lengths))}, within 1 microsecond"
    commonest, hits = int(values[counts.argmax()]), int(counts.max())
    if hits * 2 < len(lengths):
        order = counts.argsort()[::-1][:3]
        told = ", ".join(f"{span(int(values[k]))} {counts[k]} times" for k in order)
        raise InputError(
            f"irregular dates: the most common step, {span(commonest)}, occurs in only {hits} of {len(lengths)} rows "
            f"({told}); give --data.freq",
            file=series.path,
            place=f"column {series.axis}",
        )
    return Fixed(commonest), f"the step of {_of(hits, len(lengths))}"


def _of(hits: int, rows: int) -> str:
    return f"all {rows} rows" if hits == rows else f"{hits} of {rows} rows"


def _months(dates: np.ndarray) -> tuple[Step, int] | None:
    """Return (months on the same day and time, number of steps of exactly that many months), or None."""
    days = dates.astype("datetime64[D]")
    if len(np.unique((dates - days).astype(np.int64))) > 1:
        return None
    month = dates.astype("datetime64[M]").astype(np.int64)
    steps = np.diff(month)
    day_of_month = days - dates.astype("datetime64[M]").astype("datetime64[D]") + 1
    ends = (month + 1).astype("datetime64[M]").astype("datetime64[D]") - days
    day = 31 if (ends.astype(np.int64) == 1).all() else int(day_of_month.astype(np.int64).max())
    values, counts = np.unique(steps[steps > 0], return_counts=True)
    count = int(np.gcd.reduce(values))
    hits = int(counts[values == count].sum())
    step = Months(count, day, int(month[0]) % count)
    if hits * 2 < len(steps) or (step.positions(dates, dates[0]) == OFF).any():
        return None
    return step, hits


def _business(dates: np.ndarray, values: np.ndarray, counts: np.ndarray) -> tuple[Step, int] | None:
    """Return business days if no date is on a weekend although the dates span some; else None."""
    if values[0] != DAY or len(values) == 1 or values[counts.argmax()] != DAY:
        return None
    days = dates.astype("datetime64[D]")
    step = Business()
    if not np.is_busday(days).all() or (step.positions(dates, dates[0]) == OFF).any():
        return None
    hits = int((np.diff(step.positions(dates, dates[0])) == 1).sum())
    return (step, hits) if days[-1] - days[0] >= np.timedelta64(7, "D") and hits * 2 >= len(dates) - 1 else None


def _pandas_step(dates: np.ndarray) -> Step | None:
    """Return another calendar step that all dates follow (last Friday of the month, ...), or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = pd.infer_freq(pd.DatetimeIndex(dates))
        except (ValueError, OverflowError):
            return None
    return None if found is None else parse(str(getattr(found, "freqstr", found)))


def _check(series: Series, dates: np.ndarray, step: Step, gaps: bool) -> None:
    """Reject dates that are off the grid of `step`, and gaps unless they are allowed."""
    try:
        position = step.positions(dates, dates[0])
    except (ValueError, OverflowError):
        raise InputError("dates are out of range", file=series.path, place=f"column {series.axis}") from None
    if position[0] == OFF:
        raise at(series, 0, f"{series.label(0)} does not match the frequency {step.words()}")
    beside = np.flatnonzero(position == OFF)
    if len(beside):
        lengths = np.diff(dates).astype(np.int64)
        values, counts = np.unique(lengths, return_counts=True)
        commonest = int(values[counts.argmax()])
        if isinstance(step, Fixed) and not isinstance(step, Sampled) and commonest % step.length:
            words = f"its rows come every {span(commonest)}; expected every {step.words()}"
            raise InputError(words, file=series.path, place=f"column {series.axis}")
        row = max(int(beside[0]), 1)
        after = f"{span(int(lengths[row - 1]))} after the row before, where the step is {step.words()}"
        if not isinstance(step, Fixed):
            after = f"{series.label(row)} does not match the frequency {step.words()}"
        raise at(series, row, f"{after}{_local_days(series, lengths)}")
    jumps = np.diff(position)
    wide = np.flatnonzero(jumps > 1)
    if not len(wide) or gaps:
        return
    if isinstance(step, Fixed) and (jumps > 1).all():
        found = round(int(np.gcd.reduce(jumps)) * step.length)
        words = f"its rows come every {span(found)}; expected every {step.words()}"
        raise InputError(words, file=series.path, place=f"column {series.axis}")
    row = int(wide[0]) + 1
    missing = int((jumps[wide] - 1).sum())
    how = "1 row is missing" if missing == 1 else f"{missing} rows are missing in {_count(len(wide), 'place')}"
    words = f"{series.label(row)} comes after {series.label(row - 1)}, where the step is {step.words()}: {how}"
    raise at(series, row, f"{words}{_hours(dates, step, position)}{clock_hint(series, row)}{FILL}")


def _local_days(series: Series, lengths: np.ndarray) -> str:
    """Return a hint at the time zone for days or longer steps whose dates in UTC are at two times of the day."""
    assert series.dates is not None
    clocks = np.unique(series.dates.to_numpy("datetime64[us]").astype(np.int64) % DAY)
    close = len(clocks) == 2 and min(int(clocks[1] - clocks[0]), DAY - int(clocks[1] - clocks[0])) <= DAY // 12
    if series.zone == "UTC" and close and lengths.min() > DAY // 2:
        return (
            "; its dates were converted to UTC: if they are local days, set --data.timezone to their zone (e.g. "
            "Europe/Berlin)"
        )
    return ""


def _hours(dates: np.ndarray, step: Step, position: np.ndarray) -> str:
    """Return a hint at observed hours if most missing rows are at times of the week without any row."""
    if not isinstance(step, Fixed) or step.length >= DAY or position[-1] + 1 < 2 * len(position):
        return ""
    slots = Observed.of(dates)
    count = slots.positions(dates[-1:], dates[0])[0] + 1
    return "; --data.calendar observed skips times of the week without rows" if count < 1.2 * len(dates) else ""


def clock_hint(series: Series, row: int) -> str:
    """Return a hint at the time zone if the clocks may have changed: a missing or repeated early Sunday hour.

    Args:
        series: a series with dates in an unknown time zone.
        row: row after the gap, of a duplicate date, or with a step back in time.
    """
    assert series.dates is not None
    before, date = series.dates[row - 1], series.dates[row]
    changed = abs(date - before) <= pd.Timedelta(hours=2) and before.hour <= 3
    if series.zone is None and not series.numbered and changed and date.day_of_week == 6:
        return "; if the clocks changed here, set --data.timezone (e.g. Europe/Berlin)"
    return ""


def grid(series: Series, step: Step) -> np.ndarray:
    """Return all dates from a series' first to its last.

    Raises:
        InputError: there are more than `MOST_ROWS`.
    """
    assert series.dates is not None
    dates = series.dates.to_numpy("datetime64[us]")
    last = int(step.positions(dates[-1:], dates[0])[0])
    if last >= MOST_ROWS:
        raise InputError(
            f"more than {MOST_ROWS} steps of {step.words()} from {series.label(0)} to {series.label(-1)}: check the "
            "dates and the frequency",
            file=series.path,
        )
    return step.dates(dates[0], np.arange(last + 1))


def irregularities(series: Series, step: Step) -> tuple[int, int]:
    """Count (duplicate dates, gaps) of a series whose dates are kept."""
    assert series.dates is not None
    lengths = np.diff(series.dates.to_numpy("datetime64[us]")).astype(np.int64)
    longer = int((lengths > step.length + isinstance(step, Sampled)).sum()) if isinstance(step, Fixed) else 0
    return int((lengths == 0).sum()), longer


def at(series: Series, row: int, message: str) -> InputError:
    """Return an error for a row of a series."""
    column = series.axis if series.lines is not None else None
    return InputError(message, file=series.path, place=series.place(row, column))


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"


def future(last: pd.Timestamp, step: Step, steps: int) -> pd.DatetimeIndex:
    """Return the `steps` dates after `last`."""
    return pd.DatetimeIndex(step.dates(last.to_datetime64().astype("datetime64[us]"), np.arange(1, steps + 1)))


def mark_kind(step: Step) -> str:
    """Return the default kind of marks for a step."""
    if isinstance(step, Months):
        return "year" if step.count % 12 == 0 else "quarter" if step.count % 3 == 0 else "month"
    if isinstance(step, Fixed | Observed):
        kinds = (("week", WEEK), ("day", DAY), ("hour", 3_600_000_000), ("minute", 60_000_000))
        return next((kind for kind, length in kinds if step.length % length == 0), "second")
    name = "" if isinstance(step, Business) else type(step.offset).__name__.lower()  # type: ignore[attr-defined]
    return next((kind for kind in ("month", "quarter", "year") if kind in name), "day")


def marks(dates: pd.DatetimeIndex, kind: str) -> np.ndarray:
    """Compute calendar marks, (rows, marks), float32 in [-0.5, 0.5].

    The usual time features: hour/23 - 0.5, weekday/6 - 0.5 with Monday 0, (day - 1)/30 - 0.5,
    (day of year - 1)/365 - 0.5, and so on; `MARKS` lists them by kind.
    """
    names = MARKS[kind]
    table = np.empty((len(dates), len(names)), dtype=np.float32)
    for position, name in enumerate(names):
        low, high = SPAN[name]
        value = dates.isocalendar().week if name == "week" else getattr(dates, name)
        table[:, position] = (np.asarray(value, dtype=np.float64) - low) / (high - low) - 0.5
    return table


def season(step: Step) -> int | None:
    """Return the default seasonal period in steps: a day, else a week, else a year; None if none is a whole number."""
    if isinstance(step, Observed):
        return step.per_day()
    if isinstance(step, Months):
        return _whole(12, step.count)
    if isinstance(step, Business):
        return _whole(5, step.count)
    if not isinstance(step, Fixed):
        return {"day": 5, "month": 12, "quarter": 4}.get(mark_kind(step))
    if step.length < DAY:
        return _whole(DAY, step.length)
    if step.length < WEEK:
        return _whole(WEEK, step.length)
    weeks, rest = divmod(step.length, WEEK)
    return None if rest else _whole(52, weeks)


def _whole(period: int, step: int) -> int | None:
    return period // step if period % step == 0 and period > step else None
