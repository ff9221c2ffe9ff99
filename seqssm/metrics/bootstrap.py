"""Bootstrap intervals over clusters of records, such as all records of a patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 500
LEVEL = 95.0  # percent


@dataclass(frozen=True)
class Part:
    """The records of a test set.

    Attributes:
        clusters: cluster (patient) of each record, (n,).
        figures: function from record indices, with repetitions, to scores by name.
    """

    clusters: Sequence[str]
    figures: Callable[[np.ndarray], Mapping[str, float]]


def bootstrap(parts: Sequence[Part], draws: int = DRAWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw clusters with replacement, and compute the mean of the scores over the parts for each draw.

    A cluster is drawn with all its records, and equally often in every part: folds that test the same patients several
    times, or several models on the same patients, are resampled together. The same seed and clusters give the same
    draws, so differences of two results are paired.

    Args:
        parts: test sets; the figure of interest is the mean of a score over them, without those where it is undefined.
        draws: number of draws.
        seed: random seed.

    Returns:
        Scores of the draws by name, (draws,) each; NaN where a score is undefined in all parts.
    """
    names = sorted({cluster for part in parts for cluster in part.clusters})
    number = {name: k for k, name in enumerate(names)}
    owners = [np.array([number[cluster] for cluster in part.clusters], dtype=np.int64) for part in parts]
    random = np.random.default_rng(seed)
    found: list[dict[str, float]] = []
    for _ in range(draws if names else 0):
        times = np.bincount(random.integers(0, len(names), len(names)), minlength=len(names))
        scores: dict[str, list[float]] = {}
        for part, owner in zip(parts, owners):
            index = np.repeat(np.arange(len(owner)), times[owner])
            if len(index):
                for name, value in part.figures(index).items():
                    scores.setdefault(name, []).append(float(value))
        found.append({name: mean(values) for name, values in scores.items()})
    keys = dict.fromkeys(name for one in found for name in one)
    return {name: np.array([one.get(name, np.nan) for one in found]) for name in keys}


def mean(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN without any."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def ends(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws; (NaN, NaN) without finite ones.

    Args:
        values: scores of the draws, (draws,).
        level: coverage, percent.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.percentile(finite, [(100 - level) / 2, (100 + level) / 2])
    return float(low), float(high)
