"""The predictions of a test, read back from a run folder: paired differences between runs, and reliability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

DRAWS, BINS = 300, 10


@dataclass(frozen=True)
class TestRecords:
    """The predictions of a run for its test records, in the order of its file.

    Attributes:
        ids: record ids, unique.
        scores: computes the scores of some records by name, from their positions, (m,) int.
        probabilities: class name -> (labels, (n,): 1, 0 or NaN if unknown; predicted probabilities, (n,)). Empty for
            other tasks.
    """

    __test__ = False  # not a test of pytest

    ids: list[str]
    scores: Callable[[np.ndarray], Mapping[str, float]]
    probabilities: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reliability:
    """Predicted and observed frequencies: of the bins of a class's probabilities, or of interval levels.

    Attributes:
        name: class, or kind of interval.
        predicted, observed: (k,) fractions of 1.
        count: (k,) records behind each of them.
        low, high: (k,) Wilson 95 % intervals of `observed`; NaN where the observations are not independent.
        error: mean |predicted - observed|, weighted by `count`: the expected calibration error.
    """

    name: str
    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def error(self) -> float:
        total = self.count.sum()
        return float((np.abs(self.predicted - self.observed) * self.count).sum() / total) if total else np.nan


def reliability(name: str, truth: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> Reliability:
    """Compare the predicted probabilities of a class with its observed frequency, in bins of equal width.

    Args:
        name: the class.
        truth: labels, (n,): 1 or 0; NaN if unknown, such records are left out.
        probabilities: predicted probabilities, (n,).
        bins: number of bins over [0, 1]; empty ones are left out.
    """
    truth = np.asarray(truth, dtype=float)
    known = ~np.isnan(truth)
    truth, probabilities = truth[known], probabilities[known]
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    used = count > 0
    count, n = count[used], count[used].astype(float)
    predicted = np.bincount(place, weights=probabilities, minlength=bins)[used] / n
    observed = np.bincount(place, weights=truth, minlength=bins)[used] / n
    low, high = wilson(observed, n)
    return Reliability(name, predicted, observed, count, low, high)


def wilson(fraction: np.ndarray, count: np.ndarray, z: float = 1.959964) -> tuple[np.ndarray, np.ndarray]:
    """Confidence interval of a binomial fraction (Wilson 1927).

    (f + z² / 2n ± z sqrt(f (1 - f) / n + z² / 4n²)) / (1 + z² / n)

    Args:
        fraction: observed fractions f.
        count: numbers of trials n.
        z: quantile of the normal distribution; the default gives 95 %.
    """
    middle = fraction + z**2 / (2 * count)
    half = z * np.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2))
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)


def paired_intervals(
    first: TestRecords, other: TestRecords, names: Sequence[str], draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Bootstrap 95 % intervals of the differences `other` - `first`, over records drawn alike for both.

    Args:
        first: the run to compare with.
        other: a run with the same test records, in any order.
        names: scores; those that the records do not give are left out.
        draws: number of draws.
        seed: seed of the draws.
    """
    place = {name: k for k, name in enumerate(other.ids)}
    order = np.array([place[name] for name in first.ids], dtype=np.int64)
    random = np.random.default_rng(seed)
    rows = []
    with np.errstate(all="ignore"):  # a draw may lack a class
        for _ in range(draws if len(order) > 1 else 0):
            index = random.integers(0, len(order), len(order))
            a, b = first.scores(index), other.scores(order[index])
            rows.append({name: b[name] - a[name] for name in names if name in a and name in b})
    found = {}
    for name in rows[0] if rows else ():
        values = np.array([row[name] for row in rows], dtype=np.float64)
        values = values[np.isfinite(values)]
        if len(values) >= draws // 2:
            low, high = np.percentile(values, (2.5, 97.5))
            found[name] = (float(low), float(high))
    return found
