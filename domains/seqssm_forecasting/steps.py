"""Steps between dates: fixed, months, business days, observed hours of the week, and pandas' other offsets.

A step indexes the dates of its grid, so that order, gaps and future dates are integer arithmetic. Dates are
``datetime64[us]`` arrays without time zone. Does not import torch.
"""

from __future__ import annotations

import calendar as months
import re
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd
from pandas.tseries import offsets
from pandas.tseries.frequencies import to_offset

from seqssm.errors import InputError

OFF = np.iinfo(np.int64).min
"""Position of a date off the grid."""
US = np.timedelta64(1, "us")
DAY, WEEK = 86_400_000_000, 7 * 86_400_000_000  # microseconds
MONDAY = np.datetime64("1970-01-05", "us")
NEW = {
    "M": "ME (month end); for dates on the first of the month MS",
    "Q": "QE (quarter end); for the first day QS",
    "A": "YE (year end); for the first day YS",
    "Y": "YE (year end); for the first day YS",
    "AS": "YS", "BM": "BME", "BQ": "BQE", "BA": "BYE", "BY": "BYE", "BAS": "BYS", "SM": "SME", "CBM": "CBME",
    "H": "h", "BH": "bh", "CBH": "cbh", "T": "min", "S": "s", "L": "ms", "U": "us", "N": "ns",
}  # fmt: skip
"""Aliases removed from pandas, and their replacements."""


class Step(ABC):
    """The step of a time axis; equal steps have equal names.

    Attributes:
        name: pandas alias, or an extension of it (``MS@15``, ``observed:...``); stored in checkpoints.
    """

    name: str

    @abstractmethod
    def positions(self, dates: np.ndarray, origin: np.datetime64) -> np.ndarray:
        """Return the int64 index of each date on the grid through `origin` (index 0); `OFF` for dates off the grid."""

    @abstractmethod
    def dates(self, origin: np.datetime64, positions: np.ndarray) -> np.ndarray:
        """Return the dates at integer positions of the grid through `origin`."""

    def whole_days(self) -> bool:
        """Return whether the step is a day or longer, so that all dates of the grid have the same time of day."""
        return True

    @abstractmethod
    def words(self) -> str:
        """Describe the step: ``1 hour``, ``3 months (QS-JAN)``."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class Fixed(Step):
    """Steps of equal length, seconds to weeks.

    Args:
        length: microseconds.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        days, rest = divmod(length, DAY)
        self.name = ("D" if days == 1 else f"{days}D") if not rest else to_offset(pd.Timedelta(length, "us")).freqstr

    def positions(self, dates: np.ndarray, origin: np.datetime64) -> np.ndarray:
        index, rest = np.divmod((dates - origin).astype("timedelta64[us]").astype(np.int64), self.length)
        return np.where(rest == 0, index, OFF)

    def dates(self, origin: np.datetime64, positions: np.ndarray) -> np.ndarray:
        return origin.astype("datetime64[us]") + positions * (self.length * US)

    def whole_days(self) -> bool:
        return self.length % DAY == 0

    def words(self) -> str:
        return span(self.length)


class Sampled(Fixed):
    """Equal steps whose length is not a whole number of microseconds; dates are rounded to microseconds.

    Args:
        length: microseconds, a fraction.
    """

    def __init__(self, length: Fraction) -> None:
        self.length = length  # type: ignore[assignment]
        self.name = f"sampled:{length.numerator}/{length.denominator}"

    @staticmethod
    def of(dates: np.ndarray) -> Sampled | None:
        """Return the step of dates whose most common steps differ by a microsecond; None for other dates.

        Args:
            dates: ascending dates; some may be missing.
        """
        values, counts = np.unique(np.diff(dates).astype(np.int64), return_counts=True)
        commonest = int(values[counts.argmax()])
        near = np.abs(values - commonest) <= 1
        if commonest < 2 or commonest % 1000 == 0 or not 1 < near.sum() < 3 or 2 * counts[near].sum() < counts.sum():
            return None
        total = int((dates[-1] - dates[0]).astype(np.int64))
        rows = round(total / float(np.average(values[near], weights=counts[near])))
        rates = (round(1_000_000 * rows / total, -zeros) for zeros in range(6, -1, -1))  # the roundest that fits
        hertz = [Fraction(1_000_000, int(rate)) for rate in rates if rate >= 1]
        simple = (Fraction(round(total * below / rows), below) for below in range(2, 1001))
        for length in (*hertz, *simple, Fraction(total, rows)):
            if abs(length * rows - total) <= 1 and length.denominator > 1:
                step = Sampled(length)
                if 2 * (step.positions(dates, dates[0]) != OFF).sum() > len(dates):
                    return step
        return None

    def positions(self, dates: np.ndarray, origin: np.datetime64) -> np.ndarray:
        apart = (dates - origin).astype("timedelta64[us]").astype(np.int64)
        above, below = self.length.numerator, self.length.denominator
        index = (2 * apart * below + above) // (2 * above)
        return np.where(np.abs(apart * below - index * above) <= below, index, OFF)

    def dates(self, origin: np.datetime64, positions: np.ndarray) -> np.ndarray:
        above, below = self.length.numerator, self.length.denominator
        return origin.astype("datetime64[us]") + (2 * positions * above + below) // (2 * below) * US

    def words(self) -> str:
        return f"{float(self.length):.10g} microseconds"


class Months(Step):
    """Steps of whole months on the first, the last or a fixed day of the month, at the time of day of the origin.

    Args:
        count: months per step.
        day: 1 for the first, 31 for the last, else the day of the month, limited to the length of the month.
        phase: month index modulo `count` of the grid (January of year 0 is 0); None for that of the origin.
    """

    def __init__(self, count: int, day: int = 1, phase: int | None = None) -> None:
        self.count, self.day, self.phase = count, day, None if count == 1 else phase
        self.name = self._name()

    def _name(self) -> str:
        side, suffix = ("E", "") if self.day == 31 else ("S", "" if self.day == 1 else f"@{self.day}")
        unit = 12 if self.count % 12 == 0 else 3 if self.count == 3 else 1
        multiple = "" if self.count == unit else str(self.count // unit)
        if unit == 1:
            return f"{multiple}M{side}{suffix}"
        month = (self.phase or 0) % unit
        if unit == 3 and side == "E":
            month += 9  # pandas names quarters that end in October, November, December
        return f"{multiple}{'Q' if unit == 3 else 'Y'}{side}-{months.month_abbr[month + 1].upper()}{suffix}"

    def positions(self, dates: np.ndarray, origin: np.datetime64) -> np.ndarray:
        month = dates.astype("datetime64[M]").astype(np.int64)
        first = int(origin.astype("datetime64[M]").astype(np.int64))
        index, rest = np.divmod(month - first, self.count)
        good = (rest == 0) & (self._dates(month, origin) == dates)
        if self.phase is not None:
            good &= (first - self.phase) % self.count == 0
        return np.where(good, index, OFF)

    def dates(self, origin: np.datetime64, positions: np.ndarray) -> np.ndarray:
        return self._dates(int(origin.astype("datetime64[M]").astype(np.int64)) + self.count * positions, origin)

    def _dates(self, month: np.ndarray, origin: np.datetime64) -> np.ndarray:
        first = month.astype("datetime64[M]").astype("datetime64[D]")
        last = (month + 1).astype("datetime64[M]").astype("datetime64[D]")
        length = (last - first).astype(np.int64)
        clock = origin.astype("datetime64[us]") - origin.astype("datetime64[D]")
        return (first + np.minimum(self.day, length) - 1).astype("datetime64[us]") + clock

    def words(self) -> str:
        if self.count % 12 == 0:
            return f"{_many(self.count // 12, 'year')} ({self.name})"
        return f"{_many(self.count, 'month')} ({self.name})"


class Business(Step):
    """Steps of business days, Monday to Friday.

    Args:
        count: business days per step.
    """

    def __init__(self, count: int = 1) -> None:
        self.count, self.name = count, "B" if count == 1 else f"{count}B"

    def positions(self, dates: np.ndarray, origin: np.datetime64) -> np.ndarray:
        days, first = dates.astype("datetime64[D]"), origin.astype("datetime64[D]")
        same = (dates - days).astype(np.int64) == (origin.astype("datetime64[us]") - first).astype(np.int64)
        index, rest = np.divmod(np.busday_count(first, days), self.count)
        return np.where(np.is_busday(days) & same & (rest == 0) & np.is_busday(first), index, OFF)

    def dates(self, origin: np.datetime64, positions: np.ndarray) -> np.ndarray:
        first = origin.astype("datetime64[D]")
        days = np.busday_offset(first, self.count * positions, roll="forward")
        return days.astype("datetime64[us]") + (origin.astype("datetime64[us]") - first)

    def words(self) -> str:
        return f"{_many(self.count, 'business day')} ({self.name})"


class Observed(Step):
    """The times of the week at which rows were observed: trading hours, opening hours, school days.

    Args:
        slots: microseconds since Monday 00:00, ascending.
    """

    def __init__(self, slots: np.ndarray) -> None:
        self.slots = np.asarray(slots, dtype=np.int64)
        gaps = np.diff(self.slots)
        self.length = int(np.median(gaps)) if len(gaps) else WEEK
        self.name = "observed:" + ",".join(str(int(slot)) for slot in self.slots // 1_000_000)

    @staticmethod
    def of(dates: np.ndarray) -> Observed:
        """Return the slot of each date."""
        return Observed(np.unique((dates - MONDAY).astype("timedelta64[us]").astype(np.int64) % WEEK))

    def _absolute(self, dates: np.ndarray) -> np.ndarray:
        week, rest = np.divmod((dates - MONDAY).astype("timedelta64[us]").astype(np.int64), WEEK)
        slot = np.searchsorted(self.slots, rest)
        good = self.slots[np.minimum(slot, len(self.slots) - 1)] == rest
        return np.where(good, week * len(self.slots) + slot, OFF)

    def positions(self, dates: np.ndarray, origin: np.datetime64) -> np.ndarray:
        absolute, first = self._absolute(dates), self._absolute(np.array([origin]))[0]
        return np.where((absolute == OFF) | (first == OFF), OFF, absolute - first)

    def dates(self, origin: np.datetime64, positions: np.ndarray) -> np.ndarray:
        week, slot = np.divmod(positions + self._absolute(np.array([origin]))[0], len(self.slots))
        return MONDAY + (week * WEEK + self.slots[slot]) * US

    def whole_days(self) -> bool:
        return len(np.unique(self.slots % DAY)) == 1

    def words(self) -> str:
        days = np.unique(self.slots // DAY)
        clock = [f"{int(t) // 3_600_000_000:02d}:{int(t) // 60_000_000 % 60:02d}" for t in self._ends()]
        whole = "-".join(months.day_abbr[int(day)] for day in (days[[0, -1]] if len(days) > 1 else days))
        return f"{span(self.length)} in observed hours ({whole}, {clock[0]} to {clock[1]})"

    def _ends(self) -> tuple[int, int]:
        clock = self.slots % DAY
        return int(clock.min()), int(clock.max())

    def per_day(self) -> int | None:
        """Return the number of slots per day if it is the same for all observed days."""
        counts = np.unique(np.unique(self.slots // DAY, return_counts=True)[1])
        return int(counts[0]) if len(counts) == 1 else None


class Other(Step):
    """Any other offset of pandas (last Friday of the month, half months, ...).

    Args:
        offset: the pandas offset.
    """

    def __init__(self, offset: pd.offsets.BaseOffset) -> None:
        self.offset, self.name = offset, offset.freqstr

    def positions(self, dates: np.ndarray, origin: np.datetime64) -> np.ndarray:
        low, high = min(dates.min(), origin), max(dates.max(), origin)
        grid = self._range(low, end=high)
        index = pd.DatetimeIndex(grid)
        first = index.get_indexer(pd.DatetimeIndex([origin]))[0]
        found = index.get_indexer(pd.DatetimeIndex(dates))
        return np.where((found < 0) | (first < 0), OFF, found - first)

    def dates(self, origin: np.datetime64, positions: np.ndarray) -> np.ndarray:
        low, high = min(int(positions.min(initial=0)), 0), max(int(positions.max(initial=0)), 0)
        first = pd.Timestamp(origin) + low * self.offset if low else pd.Timestamp(origin)
        return self._range(first.to_datetime64(), periods=high - low + 1)[positions - low]

    def _range(self, first: np.datetime64, **rest: object) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
            found = pd.date_range(pd.Timestamp(first), freq=self.offset, **rest)  # type: ignore[arg-type]
        return found.to_numpy("datetime64[us]")

    def whole_days(self) -> bool:
        return not isinstance(self.offset, offsets.BusinessHour | offsets.CustomBusinessHour)

    def words(self) -> str:
        return f"calendar step {self.name}"


@dataclass(frozen=True)
class _Rule:
    """Conversion of pandas offsets to months: class, months per unit, side, attribute with the month."""

    kind: type
    unit: int
    day: int
    month: str = ""


_RULES = [
    _Rule(offsets.MonthBegin, 1, 1),
    _Rule(offsets.MonthEnd, 1, 31),
    _Rule(offsets.QuarterBegin, 3, 1, "startingMonth"),
    _Rule(offsets.QuarterEnd, 3, 31, "startingMonth"),
    _Rule(offsets.YearBegin, 12, 1, "month"),
    _Rule(offsets.YearEnd, 12, 31, "month"),
]


def parse(freq: str, flag: str = "--data.freq") -> Step:
    """Parse an alias.

    Args:
        freq: a pandas alias, or the name of a `Step`.
        flag: option to name in messages.

    Raises:
        InputError: the alias is unknown, removed from pandas, or does not go forward.
    """
    text, _, day = str(freq).strip().partition("@")
    if sampled := re.fullmatch(r"sampled:([1-9]\d*)/([1-9]\d*)", text):
        return Sampled(Fraction(int(sampled[1]), int(sampled[2])))
    if text.startswith("observed:"):
        return Observed(np.array([int(slot) for slot in text[9:].split(",")]) * 1_000_000)
    old = re.fullmatch(r"(\d*)([A-Za-z]+)(-[A-Za-z]{3})?", text)
    if old and old[2] in NEW:
        end = " (or the same with S for the first day)" if old[3] else ""
        raise InputError(f"{flag} {freq}: this alias is now {NEW[old[2]]}{end} in pandas")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = to_offset(text)
    except (ValueError, TypeError, AttributeError):
        found = None
    if found is None or found.n < 1 or (day and not re.fullmatch(r"[1-9]|[12]\d|3[01]", day)):
        raise InputError(f"{flag} {freq}: not a pandas frequency (h, 15min, D, W, B, MS, QS, YS, ...)")
    step = _of_offset(found, int(day) if day else None)
    if day and not isinstance(step, Months):
        raise InputError(f"{flag} {freq}: a day of the month requires months, quarters or years (MS@15)")
    return step


def _of_offset(offset: pd.offsets.BaseOffset, day: int | None) -> Step:
    if isinstance(offset, offsets.Week):
        return Fixed(offset.n * WEEK)
    if isinstance(offset, offsets.Day):
        return Fixed(offset.n * DAY)
    if isinstance(offset, offsets.Tick):
        return Fixed(round(pd.Timedelta(offset) / pd.Timedelta(1, "us")))
    if type(offset) is offsets.BusinessDay and not offset.offset:
        return Business(offset.n)
    for rule in _RULES:
        if type(offset) is rule.kind:
            count = rule.unit * offset.n
            month = int(getattr(offset, rule.month)) - 1 if rule.month else 0
            return Months(count, day or rule.day, month % rule.unit if offset.n == 1 else None)
    return Other(offset)


def span(length: int) -> str:
    """Format a length of time in its largest whole unit.

    Args:
        length: microseconds.
    """
    for name, one in (("day", DAY), ("hour", 3_600_000_000), ("minute", 60_000_000), ("second", 1_000_000)):
        if length >= one and length % one == 0:
            return _many(length // one, name)
    return str(pd.Timedelta(length, "us"))


def _many(count: int, name: str) -> str:
    return f"{count} {name}{'s' if count != 1 else ''}"
