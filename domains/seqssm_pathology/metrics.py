"""Scores of slide classification and of survival, and Kaplan-Meier groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seqssm.metrics.metric import Metric

METRICS = (
    *(Metric(name, better="max") for name in ("auroc", "accuracy", "balanced_accuracy", "f1", "kappa", "c_index")),
    Metric("ibs", better="min", shown=("test",)),
    Metric("log_rank_p", shown=("test",)),
)


def classification(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Scores of class probabilities.

    Args:
        truth: (n,) class numbers.
        probabilities: (n, C).

    Returns:
        ``auroc`` (macro mean of one class against the rest, over classes that are there; for two classes that of the
        second), ``accuracy``, ``balanced_accuracy`` (mean recall), ``f1`` (macro), ``kappa`` (quadratic weights, for
        classes with an order such as grades). Not-a-number where not defined.
    """
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    wanted = [1] if classes == 2 else range(classes)
    areas = [auroc(truth == c, probabilities[:, c]) for c in wanted]
    known = [area for area in areas if np.isfinite(area)]
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, predicted), 1)
    hits, rows, columns = table.diagonal(), table.sum(1), table.sum(0)
    there = rows + columns > 0
    return {
        "auroc": float(np.mean(known)) if known else np.nan,
        "accuracy": float(hits.sum() / table.sum()),
        "balanced_accuracy": float(np.mean(hits[rows > 0] / rows[rows > 0])),
        "f1": float(np.mean(2 * hits[there] / (rows + columns)[there])),
        "kappa": quadratic_kappa(table),
    }


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Share of (positive, negative) pairs in which the positive has the higher score; ties count half."""
    count = int(positive.sum())
    if count in (0, len(positive)):
        return np.nan
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each distinct score, from 1
    ranks = middle[inverse][positive].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(positive) - count)))


def quadratic_kappa(table: np.ndarray) -> float:
    """Cohen's kappa with squared distances as weights, from a confusion table (truth, predicted)."""
    number = np.arange(len(table))
    weight = (number[:, None] - number[None]) ** 2
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    chance = (weight * expected).sum()
    return float(1 - (weight * table).sum() / chance) if chance > 0 else np.nan


def c_index(time: np.ndarray, censored: np.ndarray, risk: np.ndarray) -> float:
    """Concordance of risk and time (Harrell), by scikit-survival; not-a-number where no pair can be compared."""
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
    """S(t) of each case, linear between the ends of the bins (constant density): 1 at time 0, constant after the last.

    Args:
        curves: (n, K), S at the ends of the K bins.
        edges: the K + 1 edges of the bins.
        times: (T,).

    Returns:
        (n, T).
    """
    knots = np.concatenate([[0.0], edges[1:]])
    values = np.concatenate([np.ones((len(curves), 1)), curves], axis=1)
    return np.stack([np.interp(times, knots, row) for row in values]) if len(values) else np.empty((0, len(times)))


@dataclass(frozen=True)
class BrierGrid:
    """Times and cases on which integrated Brier scores can be compared.

    Attributes:
        times: (T,), strictly inside the follow-up.
        inside: (n,) bool, test cases that have a weight.
        known: training (event, time) pairs, for the weights by the censoring.
        own: the same of the test cases inside.
    """

    times: np.ndarray
    inside: np.ndarray
    known: np.ndarray
    own: np.ndarray

    def score(self, survival: np.ndarray) -> float:
        """The integrated Brier score (Graf et al. 1999), by scikit-survival; lower is better.

        Args:
            survival: (n, T), S(t) of all test cases at `times`.

        Returns:
            Not-a-number where the censoring distribution is 0 inside the grid.
        """
        from sksurv.metrics import integrated_brier_score

        try:
            return float(integrated_brier_score(self.known, self.own, survival[self.inside], self.times))
        except ValueError:
            return np.nan


def brier_grid(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], points: int = 100
) -> BrierGrid | None:
    """Where integrated Brier scores are taken: all models of a table share it.

    Args:
        train: (time, censored), from which the weights by the censoring come.
        test: (time, censored); cases beyond the training follow-up have no weight and are left out.
        points: of the time grid.

    Returns:
        None where the follow-up leaves no grid.
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
    """Integrated Brier score of curves that are known at the ends of bins.

    Args:
        train: (time, censored) of the training cases.
        test: (time, censored) of the test cases.
        curves: (n, K) of the test cases.
        edges: of the bins.
        points: of the time grid.

    Returns:
        The score, lower is better; not-a-number where the follow-up leaves no grid.
    """
    grid = brier_grid(train, test, points)
    return np.nan if grid is None else grid.score(survival_at(curves, edges, grid.times))


@dataclass(frozen=True)
class KaplanMeier:
    """A Kaplan-Meier curve, a right-continuous step function.

    Attributes:
        times: (m,), from 0.
        survival: (m,), from 1.
        low: (m,), lower end of the 95 % confidence band (log-log); NaN where not defined.
        high: (m,), upper end.
    """

    times: np.ndarray
    survival: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, times: np.ndarray) -> np.ndarray:
        """S(t) at `times`."""
        return self.survival[np.searchsorted(self.times, times, side="right") - 1]


def kaplan_meier(time: np.ndarray, censored: np.ndarray) -> KaplanMeier:
    """The Kaplan-Meier curve of a group, by scikit-survival.

    Args:
        time: (n,).
        censored: (n,), 1 censored, 0 event.
    """
    from sksurv.nonparametric import kaplan_meier_estimator

    if not (censored == 0).any():
        ones = np.ones(2)
        return KaplanMeier(np.array([0.0, time.max()]), ones, ones, ones)
    with np.errstate(divide="ignore", invalid="ignore"):  # the band is not defined where S is 0 or 1
        times, survival, (low, high) = kaplan_meier_estimator(censored == 0, time, conf_type="log-log")
    start, one = np.zeros(1), np.ones(1)
    join = np.concatenate
    return KaplanMeier(join([start, times]), join([one, survival]), join([one, low]), join([one, high]))


def at_risk(time: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Number of cases still under observation at each of `times`, (T,).

    Args:
        time: (n,) end of each case's observation.
        times: (T,).
    """
    return (time[None] >= times[:, None]).sum(1)


def log_rank(time: np.ndarray, censored: np.ndarray, group: np.ndarray) -> float:
    """p of the log-rank test that the groups have one survival curve; not-a-number with one group or no event."""
    from sksurv.compare import compare_survival
    from sksurv.util import Surv

    if len(np.unique(group)) < 2 or not (censored == 0).any():
        return np.nan
    return float(compare_survival(Surv.from_arrays(censored == 0, time), group)[1])
