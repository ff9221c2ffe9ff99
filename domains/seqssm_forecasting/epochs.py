"""Numbers of seconds, milliseconds, microseconds or nanoseconds since 1970, as times. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

import numpy as np

UNITS = (  # smallest and largest number, units of a second, name
    (10**8, 10**11, 1, "seconds"),
    (10**11, 10**14, 10**3, "milliseconds"),
    (10**14, 10**17, 10**6, "microseconds"),
    (10**17, 10**19, 10**9, "nanoseconds"),
)
SMALLEST = UNITS[0][0]
"""Smallest number that is read as a time (March 1973); a time axis of plain integers has smaller ones."""
_NUMBER = re.compile(r"\d+(?:\.\d*)?(?:[eE]\+?\d{1,2})?")


ROUNDED = re.compile(r"\d\.?\d*[eE]\+?\d+")
"""A number with an exponent; one that is not read as a time lacks digits."""
WRITE = "it is a rounded number; write all of its digits, or dates such as 2016-07-31 18:00:00"


class FineError(ValueError):
    """Numbers differ only in digits below a microsecond, the resolution of times.

    Args:
        index: index of the first cell whose time is also that of a cell before it.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def read(cells: Sequence[str]) -> tuple[np.ndarray, str] | None:
    """Read numbers since 1970, which may have fractions (``1700000000.25``) or an exponent.

    Args:
        cells: the cells; all must be of one unit.

    Raises:
        FineError: numbers that differ only below a microsecond.

    Returns:
        (Times in UTC, datetime64[us], fractions of a microsecond cut off; name of the unit); None for other cells, and
        for numbers with an exponent that are rounded.
    """
    if not cells or not all(_NUMBER.fullmatch(cell) for cell in cells):
        return None
    numbers = [Decimal(cell) for cell in cells]
    if any(int(number.as_tuple().exponent) > 0 for number in numbers):
        return None  # rounded: 1.7000E+09 has no seconds
    for smallest, largest, unit, name in UNITS:
        if smallest <= min(numbers) and max(numbers) < largest:
            values = np.array([int(number * 1_000_000 / unit) for number in numbers], dtype=np.int64)
            if len(np.unique(values)) < len(set(numbers)):
                seen: dict[int, Decimal] = {}
                number = next(i for i, v in enumerate(values) if seen.setdefault(int(v), numbers[i]) != numbers[i])
                raise FineError(number)
            return values.astype("datetime64[us]"), name
    return None
