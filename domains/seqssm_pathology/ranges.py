"""Bags unlike those of the training split: other magnifications, or means, sizes, norms or spreads of the features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NORM = 2e-3  # largest distance of a norm from 1, of features that were normalised and stored in 16 bits
EQUAL = 1e-5  # largest standard deviation of equal patches, relative to the features' size

UNUSUAL = "features unlike those of the training; another encoder, magnification, normalisation or unit?"
"""What may be wrong with unusual bags."""


def in_words(powers: Iterable[float]) -> str:
    """Format magnifications: ``10x and 20x``."""
    return " and ".join(f"{one:g}x" for one in powers)


@dataclass
class Profile:
    """Statistics of the features of a bag, or of the values of one row of a table.

    Attributes:
        means: mean of each feature over the patches, (D,) float64.
        sizes: root mean square of each feature, (D,) float64.
        patches: number of patches.
        unit: whether all patches have norm 1.
        powers: magnifications of the patches; empty if unknown.
    """

    means: np.ndarray
    sizes: np.ndarray
    patches: int = 1
    unit: bool = False
    powers: frozenset[float] = frozenset()

    @classmethod
    def of(cls, features: np.ndarray, powers: Iterable[float] = ()) -> Profile:
        """Return the profile of a bag (N, D) of patches of some magnifications, or of a row of values (D,)."""
        if features.ndim == 1:
            values = features.astype(np.float64)
            return cls(values, np.abs(values))
        means = features.mean(0, dtype=np.float64)
        squares = np.einsum("nd,nd->d", features, features, dtype=np.float64)
        norms = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
        unit = features.shape[1] > 1 and bool(np.abs(norms - 1).max() < NORM)
        return cls(means, np.sqrt(squares / len(features)), len(features), unit, frozenset(powers))

    @property
    def spreads(self) -> np.ndarray:
        """Standard deviation of each feature over the patches, (D,) float64."""
        return np.sqrt(np.maximum(self.sizes**2 - self.means**2, 0))


class Ranges:
    """Ranges of the mean features of the training bags: bags of another encoder or in other units are outside many.

    The range of a feature is widened by `WIDER` + `WIDER_BY` / n of its width on either side, for n training bags. A
    bag is unusual if more than `FRACTION` + `FRACTION_BY` / n of its features, and more than `FEW`, are outside. The
    limits were set on held-out bags of four cohorts and training splits of 8 to 512 bags. For a bag with fewer patches
    than those of the training, the range is widened by `ERRORS` standard errors of its means.

    Features near 0 are inside of ranges around 0. A bag is also unusual if its size (the root mean square of its
    features, each relative to the largest one of the training, averaged) is below `SMALL` times the smallest one of a
    training bag, if the spread over its patches, on the same scale, is below `ALIKE` times the smallest one, and if all
    of its patches have norm 1 where those of no training bag have, or the reverse.

    Args:
        low: smallest mean of a training bag, (D,) float64.
        high: largest mean, (D,) float64.
        bags: number of training bags.
        largest: largest root mean square of a training bag, (D,) float64; None in checkpoints that lack it, whose
            ranges notice neither sizes nor spreads nor norms.
        within: root mean square of the training bags' standard deviations over the patches, (D,) float64.
        size: smallest size of a training bag.
        spread: smallest spread of a training bag with several patches; None without such bags.
        patches: smallest number of patches of a training bag.
        unit: number of training bags whose patches all have norm 1.
        powers: magnifications of the training bags; empty if that of one is unknown.
    """

    FEWEST = 8  # bags; fewer have no ranges
    WIDER, WIDER_BY = 0.1, 4.0
    FRACTION, FRACTION_BY, FEW = 0.052, 2.0, 2
    SMALL, ALIKE, ERRORS = 0.2, 0.1, 3.0

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        bags: int,
        largest: Tensor | None = None,
        within: Tensor | None = None,
        size: float = 0.0,
        spread: float | None = None,
        patches: int = 1,
        unit: int = 0,
        powers: Sequence[float] = (),
    ) -> None:
        self.low, self.high, self.bags, self.largest, self.within = low, high, bags, largest, within
        self.size, self.spread, self.patches, self.unit, self.powers = size, spread, patches, unit, list(powers)
        margin = (self.WIDER + self.WIDER_BY / bags) * (high - low)
        margin += 1e-6 * torch.maximum(low.abs(), high.abs()).clamp(min=1e-30)  # a constant that was rounded
        self._low, self._high = (low - margin).numpy(), (high + margin).numpy()

    @classmethod
    def fit(cls, found: Sequence[Profile]) -> Ranges | None:
        """Fit to the profiles of the training bags; None for fewer than `FEWEST` bags."""
        if len(found) < cls.FEWEST:
            return None
        means = [one.means for one in found]
        low, high, largest, within = (
            torch.from_numpy(np.asarray(values, np.float64))
            for values in (
                np.min(means, 0),
                np.max(means, 0),
                np.max([one.sizes for one in found], 0),
                np.sqrt(np.mean([one.spreads**2 for one in found], 0)),
            )
        )
        own = cls(low, high, len(found), largest, within)
        own.size = min(own._relative(one.sizes) for one in found)
        own.spread = min((own._relative(one.spreads) for one in found if one.patches > 1), default=None)
        own.patches, own.unit = min(one.patches for one in found), sum(one.unit for one in found)
        if all(one.powers for one in found):
            own.powers = sorted(set().union(*(one.powers for one in found)))
        return own

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any] | None) -> Ranges | None:
        """Restore the ranges of a checkpoint; None if it has none.

        Earlier ones have no sizes, or (without ``largest``) those of the means, which are small in large bags.
        """
        if summary is None:
            return None
        return cls(**summary) if "largest" in summary else cls(summary["low"], summary["high"], summary["bags"])

    def outside(self, bag: Profile) -> float:
        """Return the fraction of features whose mean is outside its range.

        Args:
            bag: profile of the bag.
        """
        more: np.ndarray | float = 0.0
        if self.within is not None and bag.patches < self.patches:
            more = self.ERRORS * self.within.numpy() * (bag.patches**-0.5 - self.patches**-0.5)
        return float(((bag.means < self._low - more) | (bag.means > self._high + more)).mean())

    def _relative(self, values: np.ndarray) -> float:
        """Mean of values of the features, each relative to the largest size of its feature."""
        assert self.largest is not None
        largest = self.largest.numpy()
        used = largest > 0
        return float((values[used] / largest[used]).mean()) if used.any() else 0.0

    @property
    def limit(self) -> float:
        """Largest fraction of features outside of a usual bag."""
        return max(self.FRACTION + self.FRACTION_BY / self.bags, self.FEW / len(self.low) + 1e-6)

    def remark(self, bag: Profile) -> str:
        """Describe an unusual bag; "" for a usual one.

        Args:
            bag: profile of the bag.
        """
        other = sorted(one for one in bag.powers if not np.isclose(one, self.powers, rtol=0.1).any())
        if other and self.powers:
            return f"patches at {in_words(other)}, those of the training bags are at {in_words(self.powers)}"
        if self.largest is not None:
            if not bag.sizes.any() and self.size > 0:
                return "all features are 0"
            if bag.unit and not self.unit:
                return "the features of every patch have norm 1, those of the training bags do not"
            spread = self._relative(bag.spreads)
            if bag.patches > 1 and self.spread is not None and spread < self.ALIKE * self.spread:
                equal = spread < EQUAL * max(self._relative(bag.sizes), EQUAL)
                return "all patches are equal" if equal else "patches far more alike than those of the training bags"
        outside = self.outside(bag)
        if outside > self.limit:
            return f"{100 * outside:.0f} % of the features are outside the range of the training bags"
        if self.largest is not None:
            if self._relative(bag.sizes) < self.SMALL * self.size:
                return "features far smaller than those of the training bags"
            if self.unit == self.bags and not bag.unit:
                return "the features of the patches do not have norm 1, those of the training bags do"
        return ""

    def summary(self) -> dict[str, Any]:
        names = ("low", "high", "bags", "largest", "within", "size", "spread", "patches", "unit", "powers")
        return {name: getattr(self, name) for name in names}
