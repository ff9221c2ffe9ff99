"""Bounds of numeric options, which are checked before anything is read or built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from seqssm.errors import InputError


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest value of a numeric option; NaN and infinity are never accepted.

    Attributes:
        least: smallest value.
        most: largest value.
        above: whether `least` itself is excluded.
        below: whether `most` itself is excluded.
        meaning: what `most` is, for the message.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    meaning: str = ""

    def problem(self, value: float) -> str | None:
        """Describe what is wrong with `value`; None if nothing is."""
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        low = value <= self.least if self.above else value < self.least
        high = value >= self.most if self.below else value > self.most
        if not low and not high:
            return None
        if math.isfinite(self.least) and math.isfinite(self.most) and not self.meaning:
            left, right = "(" if self.above else "[", ")" if self.below else "]"
            return f"must be in {left}{_plain(self.least)}, {_plain(self.most)}{right}"
        if low:
            return f"must be {'above' if self.above else 'at least'} {_plain(self.least)}"
        words = f"{'below' if self.below else 'at most'} {_plain(self.most)}"
        return f"{words}, {self.meaning}" if self.meaning else f"must be {words}"

    def require(self, flag: str, value: Any) -> None:
        """Raise InputError, naming `flag`, for a number, or a number in a list, that is out of bounds."""
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, int | float) and not isinstance(one, bool) and (problem := self.problem(one)):
                raise InputError(f"{flag} {one}: {problem}")


def _plain(number: float) -> str:
    """Format a bound: integers in full, whatever their type."""
    return f"{number:.0f}" if number == int(number) and abs(number) < 1e16 else f"{number:g}"


NONE = Bounds()
"""Of any finite number."""
COUNT = Bounds(1, 2**31 - 1)
"""Of what is counted: records, steps, letters."""
RATE = Bounds(0, 1, below=True)
"""Of probabilities and fractions that must not be everything: [0, 1)."""
SEED = Bounds(0, 2**32 - 1)
"""Of NumPy's generators."""
