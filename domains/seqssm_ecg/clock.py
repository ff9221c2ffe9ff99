"""The column of times in a table of samples, which gives the sampling rate or contradicts it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.limits import RATES

NAMES = ("time", "t", "elapsed", "timestamp")
UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "microsecond", "microseconds"), 1e-6),
}
SAME = 0.01  # relative difference of rates that are taken for equal
GAP = 1.5  # steps; a longer one is a gap


def place_of(names: Sequence[str] | None) -> int | None:
    """Return the position of the first column of times (``time``, ``t_ms``, ``Time [s]``), or None."""
    return next((place for place, name in enumerate(names or ()) if _unit(name) is not None), None)


def _unit(name: str) -> tuple[float, ...] | None:
    """Return the possible units of a column in seconds, or None if its name is not that of a column of times."""
    first, *rest = re.findall("[a-z]+", name.casefold()) or [""]
    if first not in NAMES or len(rest) > 1 or not set(rest) <= set(UNITS):
        return None
    return (UNITS[rest[0]],) if rest else (1.0, 1e-3)


@dataclass(frozen=True)
class Clock:
    """A column of times.

    Attributes:
        name: its name.
        times: its values.
    """

    name: str
    times: np.ndarray

    def rate(self, given: float | None, path: Path) -> float | None:
        """Return the sampling rate: the given one, or else that of the column if it has one.

        Args:
            given: the user's sampling rate, or None.
            path: the file, for messages.

        Raises:
            InputError: the two differ by more than 1 %.
        """
        found = self._rates()
        if given is None:
            return found[0] if len(found) == 1 else None
        if found and all(abs(rate / given - 1) > SAME for rate in found):
            raise InputError(
                f"column {self.name}: {found[0]:g} samples per second, but the sampling rate is given as {given:g} Hz",
                file=path,
            )
        return given

    def notes(self) -> list[str]:
        """Report missing samples."""
        steps = self._steps()
        gaps = 0 if steps is None else int((steps > GAP * np.median(steps)).sum())
        return [f"column {self.name} has {gaps} gaps; samples are taken as evenly spaced"] if gaps else []

    def _steps(self) -> np.ndarray | None:
        steps = np.diff(self.times)
        return steps if len(steps) and np.isfinite(steps).all() and (steps > 0).all() else None

    def _rates(self) -> list[float]:
        """Return the rates that fit the commonest step; none for a column that counts the samples."""
        steps, units = self._steps(), _unit(self.name) or ()
        if steps is None or (len(units) > 1 and np.median(steps) == 1):
            return []
        even = steps[steps <= GAP * np.median(steps)]
        rates = [1 / (even.mean() * unit) for unit in units]
        return [_round(rate) for rate in rates if RATES[0] <= rate <= RATES[1]]


def _round(rate: float) -> float:
    """Return the integer within a thousandth of a rate from rounded times, else the rate."""
    return float(round(rate)) if abs(round(rate) / rate - 1) < 1e-3 else float(rate)
