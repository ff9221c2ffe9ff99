"""Scores of slide classification and of survival, and Kaplan-Meier groups."""

from __future__ import annotations

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
    """S(t) of each case: 1 until the end of the first bin, then a step down at each bin's end.

    Args:
        curves: (n, K), S at the ends of the K bins.
        edges: the K + 1 edges of the bins.
        times: (T,).

    Returns:
        (n, T).
    """
    steps = np.concatenate([np.ones((len(curves), 1)), curves], axis=1)
    return steps[:, np.searchsorted(edges[1:], times, side="right")]


def integrated_brier(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    curves: np.ndarray,
    edges: list[float],
    points: int = 100,
) -> float:
    """Integrated Brier score with weights from the training part's censoring (Graf et al. 1999), by scikit-survival.

    Args:
        train, test: (time, censored) of both parts; test cases beyond the training follow-up have no weight and are
            left out.
        curves: (n, K) of the test cases.
        edges: of the bins.
        points: of the time grid, which lies strictly inside the follow-up.

    Returns:
        The score, lower is better; not-a-number where the follow-up leaves no grid.
    """
    from sksurv.metrics import integrated_brier_score
    from sksurv.util import Surv

    last = train[0][train[1] == 1].max() if (train[1] == 1).any() else train[0].max()
    inside = test[0] < last
    if inside.sum() < 2:
        return np.nan
    time, censored = test[0][inside], test[1][inside]
    low, high = time.min(), time.max()
    grid = np.linspace(low, high, points + 2)[1:-1]
    grid = grid[(grid > low) & (grid < high)]
    if len(grid) < 2 or not (censored == 0).any():
        return np.nan
    known = Surv.from_arrays(train[1] == 0, train[0])
    own = Surv.from_arrays(censored == 0, time)
    try:
        return float(integrated_brier_score(known, own, survival_at(curves[inside], edges, grid), grid))
    except ValueError:  # the censoring distribution is 0 somewhere inside
        return np.nan


def kaplan_meier(time: np.ndarray, censored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(times, share still without event) of a group, a step function from (0, 1)."""
    from sksurv.nonparametric import kaplan_meier_estimator

    if not (censored == 0).any():
        return np.array([0.0, time.max()]), np.array([1.0, 1.0])
    times, share = kaplan_meier_estimator(censored == 0, time)
    return np.concatenate([[0.0], times]), np.concatenate([[1.0], share])


def log_rank(time: np.ndarray, censored: np.ndarray, group: np.ndarray) -> float:
    """p of the log-rank test that the groups have one survival curve; not-a-number with one group or no event."""
    from sksurv.compare import compare_survival
    from sksurv.util import Surv

    if len(np.unique(group)) < 2 or not (censored == 0).any():
        return np.nan
    return float(compare_survival(Surv.from_arrays(censored == 0, time), group)[1])
