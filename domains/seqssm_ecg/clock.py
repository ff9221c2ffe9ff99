"""The column of times in a table of samples, which gives the sampling rate or contradicts it."""

from __future__ import annotations

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
    """

    name: str
    times: np.ndarray

    def timed(self, spec: ArraySpec, path: Path) -> tuple[ArraySpec, list[str]]:
        """Return how the array is read, with a sampling rate if the column has one, and notes on missing samples.

        Args:
            spec: how the user has it read.
            path: the file, for messages.

        Raises:
            InputError: the user's rate differs from the column's by more than 1 %.
        """
        steps = self._steps()
        if steps is None:
            return spec, []
        usual = steps <= GAP * np.median(steps)
        gaps = int((~usual).sum())
        few = gaps <= FEW * len(steps)
        rates = self._rates(steps[usual] if few else steps)
        count = f"{gaps} gap{'s' if gaps > 1 else ''}"
        notes = [f"column {self.name} has {count}; samples are taken as evenly spaced"] if gaps and few else []
        given = spec.rate_hz
        if given is None:
            return replace(spec, rate_hz=_rounded(rates[0])) if len(rates) == 1 else spec, notes
        if rates and all(abs(rate / given - 1) > SAME for rate in (*rates, *self._rates(steps))):
            raise InputError(
                f"column {self.name}: {rates[0]:g} samples per second, but the sampling rate is given as {given:g} Hz",
                file=path,
            )
        return spec, notes

    def _steps(self) -> np.ndarray | None:
        """Return the differences of the times, or None if these do not increase."""
        known = np.flatnonzero(np.isfinite(self.times))
        steps = np.diff(self.times[known]) / np.diff(known)
        return steps if len(steps) and (steps > 0).all() else None

    def _rates(self, steps: np.ndarray) -> list[float]:
        """Return the rates that fit the steps; none for a column that counts the samples."""
        units = _units(self.name)
        if len(units) > 1 and (steps == 1).all():
            return []
        rates = [1 / (steps.mean() * unit) for unit in units]
        return [rate for rate in rates if RATES[0] <= rate <= RATES[1]]


def timed(clocks: Sequence[Clock], spec: ArraySpec, path: Path) -> tuple[ArraySpec, list[str]]:
    """Return how a table is read (`Clock.timed`), by the first of its columns of times that has a sampling rate.

    Args:
        clocks: the columns of times.
        spec: how the user has it read.
        path: the file, for messages.

    Raises:
        InputError: a column contradicts the user's rate, or another column.
    """
    found = [(clock.name, *clock.timed(spec, path)) for clock in clocks]
    rates = [(name, own.rate_hz) for name, own, _ in found if own.rate_hz is not None]
    for name, rate in rates:
        if abs(rate / rates[0][1] - 1) > SAME:
            message = (
                f"columns {rates[0][0]} and {name}: {rates[0][1]:g} and {rate:g} samples per second; remove the wrong "
                "one"
            )
            raise InputError(message, file=path)
    if rates and spec.rate_hz is None:
        spec = replace(spec, rate_hz=rates[0][1])
    return spec, [note for *_, notes in found for note in notes]


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
