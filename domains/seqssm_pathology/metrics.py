"""Metrics of slide classification and survival, and Kaplan-Meier curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seqssm.metrics.metric import Metric
from seqssm.metrics.scores import auroc


@dataclass(frozen=True)
class Classified:
    """Predictions of records with a class.

    Attributes:
        truth: true class indices, (n,).
        probabilities: class probabilities, (n, C).
    """

    truth: np.ndarray
    probabilities: np.ndarray

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix, (C, C), true by predicted class."""
        table = np.zeros((self.probabilities.shape[1],) * 2)
        np.add.at(table, (self.truth, self.probabilities.argmax(1)), 1)
        return table


def macro_auroc(found: Classified) -> float:
    """Mean one-vs-rest AUROC over the classes that occur; for two classes the AUROC of the second."""
    classes = found.probabilities.shape[1]
    wanted = [1] if classes == 2 else range(classes)
    areas = [auroc(found.truth == c, found.probabilities[:, c]) for c in wanted]
    known = [area for area in areas if np.isfinite(area)]
    return float(np.mean(known)) if known else np.nan


def accuracy(found: Classified) -> float:
    """Compute the fraction of correctly classified records."""
    table = found.confusion
    return float(table.diagonal().sum() / table.sum())


def balanced_accuracy(found: Classified) -> float:
    """Compute the mean recall over the classes that occur."""
    table = found.confusion
    rows = table.sum(1)
    return float(np.mean(table.diagonal()[rows > 0] / rows[rows > 0]))


def macro_f1(found: Classified) -> float:
    """Mean F1 over the classes that occur or are predicted."""
    table = found.confusion
    both = table.sum(1) + table.sum(0)
    there = both > 0
    return float(np.mean(2 * table.diagonal()[there] / both[there]))


def quadratic_kappa(table: np.ndarray) -> float:
    """Cohen's kappa with squared distances as weights, from a confusion matrix (true, predicted)."""
    number = np.arange(len(table))
    weight = (number[:, None] - number[None]) ** 2
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    chance = (weight * expected).sum()
    return float(1 - (weight * table).sum() / chance) if chance > 0 else np.nan


def c_index(time: np.ndarray, censored: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's concordance index of risk and time, by scikit-survival; NaN if no pair is comparable."""
    from sksurv.exceptions import NoComparablePairException
    from sksurv.metrics import concordance_index_censored

    event = censored == 0
    if len(time) < 2 or not event.any():
        return np.nan
    try:
        return float(concordance_index_censored(event, time, risk)[0])
    except NoComparablePairException:
        return np.nan


def survival_at(curves: np.ndarray, edges: list[float], times: np.ndarray) -> np.ndarray:
    """Interpolate S(t) of each case linearly between the ends of the bins (1 at time 0, constant after the last bin).

    Args:
        curves: survival curves at the ends of the bins, (n, K).
        edges: edges of the bins, K + 1 values.
        times: evaluation times, (T,).

    Returns:
        S(t), (n, T).
    """
    knots = np.concatenate([[0.0], edges[1:]])
    values = np.concatenate([np.ones((len(curves), 1)), curves], axis=1)
    return np.stack([np.interp(times, knots, row) for row in values]) if len(values) else np.empty((0, len(times)))


@dataclass(frozen=True)
class Followed:
    """Predictions of records with a survival time.

    Attributes:
        time: event or censoring times, (n,).
        censored: censoring flags, (n,): 1 censored, 0 event.
        curves: survival curves at the ends of the bins, (n, K).
        edges: edges of the bins, K + 1 values.
        follow_up: (times, censored) for estimating the censoring distribution.
    """

    time: np.ndarray
    censored: np.ndarray
    curves: np.ndarray
    edges: list[float]
    follow_up: tuple[np.ndarray, np.ndarray]

    @property
    def risk(self) -> np.ndarray:
        """Risk scores, (n,): minus the sum of the survival curve; higher is worse."""
        return -self.curves.sum(1)


@dataclass(frozen=True)
class BrierGrid:
    """Times and cases at which integrated Brier scores are comparable.

    Attributes:
        times: evaluation times, (T,), strictly inside the follow-up.
        inside: test cases with a weight, (n,) bool.
        known: (event, time) pairs of the training cases, for the censoring weights.
        own: (event, time) pairs of the test cases in `inside`.
    """

    times: np.ndarray
    inside: np.ndarray
    known: np.ndarray
    own: np.ndarray

    def score(self, survival: np.ndarray) -> float:
        """Compute the integrated Brier score (Graf et al. 1999) by scikit-survival; lower is better.

        Args:
            survival: S(t) of all test cases at `times`, (n, T).

        Returns:
            The score; NaN if the censoring distribution is 0 inside the grid.
        """
        from sksurv.metrics import integrated_brier_score

        try:
            return float(integrated_brier_score(self.known, self.own, survival[self.inside], self.times))
        except ValueError:
            return np.nan


def brier_grid(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], points: int = 100
) -> BrierGrid | None:
    """Define the grid of the integrated Brier score, which all models of a table share.

    Args:
        train: (time, censored) of the cases that determine the censoring weights.
        test: (time, censored) of the test cases; those beyond the training follow-up have no weight and are dropped.
        points: number of points of the time grid.

    Returns:
        The grid; None if the follow-up is too short for one.
    """
    from sksurv.util import Surv

    last = train[0][train[1] == 1].max() if (train[1] == 1).any() else train[0].max()
    inside = test[0] < last
    if inside.sum() < 2:
        return None
    time, censored = test[0][inside], test[1][inside]
    low, high = time.min(), time.max()
    grid = np.linspace(low, high, points + 2)[1:-1]
    grid = grid[(grid > low) & (grid < high)]
    if len(grid) < 2 or not (censored == 0).any():
        return None
    known = Surv.from_arrays(train[1] == 0, train[0])
    return BrierGrid(grid, inside, known, Surv.from_arrays(censored == 0, time))


def integrated_brier(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    curves: np.ndarray,
    edges: list[float],
    points: int = 100,
) -> float:
    """Integrated Brier score of curves that are given at the ends of bins.

    Args:
        train: (time, censored) of the training cases.
        test: (time, censored) of the test cases.
        curves: survival curves of the test cases, (n, K).
        edges: edges of the bins.
        points: number of points of the time grid.

    Returns:
        The score, lower is better; NaN if the follow-up is too short for a grid.
    """
    grid = brier_grid(train, test, points)
    return np.nan if grid is None else grid.score(survival_at(curves, edges, grid.times))


@dataclass(frozen=True)
class KaplanMeier:
    """A Kaplan-Meier curve, a right-continuous step function.

    Attributes:
        times: times of the steps, (m,), from 0.
        survival: survival function at `times`, (m,), from 1.
        low: lower end of the 95 % confidence band (log-log), (m,); NaN if undefined.
        high: upper end of the band, (m,).
    """

    times: np.ndarray
    survival: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, times: np.ndarray) -> np.ndarray:
        """Evaluate S(t) at `times`."""
        return self.survival[np.searchsorted(self.times, times, side="right") - 1]


def kaplan_meier(time: np.ndarray, censored: np.ndarray) -> KaplanMeier:
    """Compute the Kaplan-Meier curve of a group, by scikit-survival.

    Args:
        time: event or censoring times, (n,).
        censored: censoring flags, (n,): 1 censored, 0 event.
    """
    from sksurv.nonparametric import kaplan_meier_estimator

    if not (censored == 0).any():
        ones = np.ones(2)
        return KaplanMeier(np.array([0.0, time.max()]), ones, ones, ones)
    with np.errstate(divide="ignore", invalid="ignore"):  # the band is undefined where S is 0 or 1
        times, survival, (low, high) = kaplan_meier_estimator(censored == 0, time, conf_type="log-log")
    start, one = np.zeros(1), np.ones(1)
    join = np.concatenate
    return KaplanMeier(join([start, times]), join([one, survival]), join([one, low]), join([one, high]))


def at_risk(time: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Number of cases still under observation at each of `times`, (T,).

    Args:
        time: end of observation of each case, (n,).
        times: evaluation times, (T,).
    """
    return (time[None] >= times[:, None]).sum(1)


def log_rank(time: np.ndarray, censored: np.ndarray, group: np.ndarray) -> float:
    """p value of the log-rank test that all groups have the same survival curve; NaN with one group or no event."""
    from sksurv.compare import compare_survival
    from sksurv.util import Surv

    if len(np.unique(group)) < 2 or not (censored == 0).any():
        return np.nan
    return float(compare_survival(Surv.from_arrays(censored == 0, time), group)[1])


CLASSIFICATION = (
    Metric("auroc", macro_auroc, "max", title="macro mean of the AUROC of one class against the rest"),
    Metric("accuracy", accuracy, "max"),
    Metric("balanced_accuracy", balanced_accuracy, "max", title="mean recall of the classes"),
    Metric("f1", macro_f1, "max", title="macro F1"),
    Metric("kappa", lambda found: quadratic_kappa(found.confusion), "max", title="Cohen's kappa, quadratic weights"),
)
"""Metrics of classes, computed from `Classified`."""

SURVIVAL = (
    Metric("c_index", lambda found: c_index(found.time, found.censored, found.risk), "max", title="Harrell's C-index"),
    Metric(
        "ibs",
        lambda f: integrated_brier(f.follow_up, (f.time, f.censored), f.curves, f.edges),
        "min",
        shown=("test",),
        title="integrated Brier score",
    ),
    Metric(
        "log_rank_p",
        lambda found: log_rank(found.time, found.censored, found.risk > np.median(found.risk)),
        shown=("test",),
        title="p of a log-rank test between the halves by risk",
    ),
)
"""Metrics of survival, computed from `Followed`."""

METRICS = (*CLASSIFICATION, *SURVIVAL)
