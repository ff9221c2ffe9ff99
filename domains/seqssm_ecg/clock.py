"""The column of times in a table of samples, which gives the sampling rate or contradicts it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.limits import RATES
from seqssm_ecg.recording import ArraySpec

NAMES = {"time", "t", "elapsed", "timestamp", "zeit", "temps", "tiempo", "tempo"}
FILL = {"in", "elapsed", "since", "start"}
UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), 1e-9),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}
UNSTATED = (1.0, 1e-3, 1e-6, 1e-9)  # units of a column that names none; the range of rates leaves one of them
SAME = 0.01  # relative difference of rates that are taken for equal
NEAR = 0.05  # relative difference of the rates of two columns that may be due to rounding or to two clocks
FIRST = 1000  # times whose digits are counted
GAP = 1.75  # steps; a longer one is a gap (2 without one sample; times rounded to half a step have steps of 1.5)
MOST = 1_000_000  # times that are read; the rest of a day's recording has the same rate
FEW = 0.02  # share of long steps up to which they are gaps; times rounded to one step or two have more


def places_of(names: Sequence[str] | None) -> list[int]:
    """Return the positions of the columns of times (``time``, ``t_ms``, ``Time [s]``)."""
    return [place for place, name in enumerate(names or ()) if _units(name)]


def _units(name: str) -> tuple[float, ...]:
    """Return the possible units of a column in seconds; none if its name is not that of a column of times."""
    words = re.findall("[a-z]+", name.casefold())
    units = [UNITS[word] for word in words if word in UNITS]
    if not NAMES.intersection(words) or len(units) > 1 or not set(words) <= {*NAMES, *FILL, *UNITS}:
        return ()
    return tuple(units) or UNSTATED


@dataclass(frozen=True)
class Clock:
    """A column of times.

    Attributes:
        name: its name.
        times: its values, of a file the first `MOST`; NaN where one is missing.
        written: whether they were written as times or dates, and are in seconds.
        dated: whether they were written as dates, which may be those of packets.
    """

    name: str
    times: np.ndarray
    written: bool = False
    dated: bool = False

    def measured(self) -> Measured | None:
        """Return the rates of the column, or None if its times do not increase."""
        steps = self._steps()
        if steps is None:
            return None
        usual = steps <= GAP * np.median(steps)
        gaps = int((~usual).sum())
        few = gaps <= FEW * len(steps)
        count = f"{gaps} gap{'s' if gaps > 1 else ''}"
        notes = [f"column {self.name} has {count}; samples are taken as evenly spaced"] if gaps and few else []
        rates = [] if self.dated and gaps else self._rates(steps[usual] if few else steps)
        accepted = [*rates, *self._rates(steps)]
        return Measured(self.name, rates, accepted, _resolution(self.times), notes, self.dated)

    def _steps(self) -> np.ndarray | None:
        """Return the differences of the times, or None if these do not increase."""
        known = np.flatnonzero(np.isfinite(self.times))
        steps = np.diff(self.times[known]) / np.diff(known)
        return steps if len(steps) and (steps > 0).all() else None

    def _rates(self, steps: np.ndarray) -> list[float]:
        """Return the rates that fit the steps; none for a column that counts the samples."""
        units = (1.0,) if self.written else _units(self.name)
        if len(units) > 1 and (steps == 1).all():
            return []
        rates = [1 / (steps.mean() * unit) for unit in units]
        return [rate for rate in rates if RATES[0] <= rate <= RATES[1]]


@dataclass(frozen=True)
class Measured:
    """The rates of a column of times.

    Attributes:
        name: its name.
        rates: possible sampling rates, without gaps; none for a column that counts the samples.
        accepted: rates that a given one may be equal to: these, and those with gaps.
        resolution: unit of the last digit of its times, in steps.
        notes: notes on gaps.
        dated: whether its times were written as dates.
    """

    name: str
    rates: list[float]
    accepted: list[float]
    resolution: float
    notes: list[str]
    dated: bool


def timed(clocks: Sequence[Clock], spec: ArraySpec, path: Path) -> tuple[ArraySpec, list[str]]:
    """Return how a table is read, with a sampling rate if its columns of times have one, and notes.

    Of columns whose rates differ a little, the one with the finest times is used, and of a column of dates and another
    one the latter; a given rate decides between any. Dates with gaps, which may be of packets, have no rate.

    Args:
        clocks: the columns of times.
        spec: how the user has it read.
        path: the file, for messages.

    Raises:
        InputError: the user's rate differs from those of all columns by more than 1 %, or the rates of two columns by
            more than 5 %.
    """
    found = [one for clock in clocks if (one := clock.measured()) is not None]
    notes = [note for one in found for note in one.notes]
    given = spec.rate_hz
    if given is not None:
        rated = [one for one in found if one.rates]
        wrong = [one for one in rated if all(abs(rate / given - 1) > SAME for rate in one.accepted)]
        if wrong and len(wrong) == len(rated):
            agreed(wrong[0].rates[0], given, f"column {wrong[0].name}", path)
        used = f"the given {given:g} Hz is used"
        return spec, notes + [f"column {one.name} has {one.rates[0]:g} samples per second; {used}" for one in wrong]
    certain = [one for one in found if len(one.rates) == 1]
    if not certain:
        return spec, notes
    best = min(certain, key=lambda one: (one.dated, one.resolution))
    for other in certain:
        pair, difference = (best.rates[0], other.rates[0]), abs(other.rates[0] / best.rates[0] - 1)
        if difference > NEAR and other.dated == best.dated:
            raise InputError(
                f"columns {best.name} and {other.name}: {pair[0]:g} and {pair[1]:g} samples per second; remove the "
                "wrong one, or pass the sampling rate (predict --array-rate-hz, fit --data.array_rate_hz)",
                file=path,
            )
        if difference > SAME:
            notes.append(
                f"columns {best.name} and {other.name} have {pair[0]:g} and {pair[1]:g} samples per second; "
                f"{best.name} is used"
            )
    return replace(spec, rate_hz=_rounded(best.rates[0])), notes


def _resolution(times: np.ndarray) -> float:
    """Return the unit of the last digit of increasing times, in median steps, down to a thousandth of a step."""
    known = times[np.isfinite(times)][:FIRST]
    step = float(np.median(np.diff(known)))
    places = [math.floor(-math.log10(step)) + more for more in range(4)]
    since = known - known[0]
    exact = (place for place in places if np.abs(np.round(since, place) - since).max() < 1e-3 * step)
    return 10.0 ** -next(exact, places[-1]) / step


def agreed(rate_hz: float, given: float | None, source: str, path: Path) -> float:
    """Return the sampling rate of a file if the user gave none, else the user's.

    Args:
        rate_hz: rate in the file.
        given: rate that the user gave, or None.
        source: where the file has its rate, for messages.
        path: the file, for messages.

    Raises:
        InputError: they differ by more than 1 %.
    """
    if given is not None and abs(rate_hz / given - 1) > SAME:
        raise InputError(
            f"{source}: {rate_hz:g} samples per second, but the sampling rate is given as {given:g} Hz", file=path
        )
    return rate_hz if given is None else given


def _rounded(rate: float) -> float:
    """Return the integer within a thousandth of a rate from rounded times, else the rate."""
    return float(round(rate)) if abs(round(rate) / rate - 1) < 1e-3 else float(rate)
