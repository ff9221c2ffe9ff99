"""Metrics by kind of target: classes, survival, a number, several labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from seqssm.metrics.metric import Metric
from seqssm.metrics.scores import auroc
from seqssm_pathology.survival import c_index, integrated_brier, log_rank, survival_log_loss

ROMAN = ("0", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")


@dataclass(frozen=True)
class Classified:
    """Predictions of records with a class.

    Attributes:
        truth: true class indices, (n,).
        probabilities: class probabilities, (n, C).
        ranks: rank of each class (`class_ranks`), or None if the classes have no known order.
    """

    truth: np.ndarray
    probabilities: np.ndarray
    ranks: tuple[int, ...] | None = None

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix, (C, C), true by predicted class."""
        table = np.zeros((self.probabilities.shape[1],) * 2)
        np.add.at(table, (self.truth, self.probabilities.argmax(1)), 1)
        return table

    def rows(self, index: np.ndarray) -> Classified:
        """Select records by index, with repetitions."""
        return replace(self, truth=self.truth[index], probabilities=self.probabilities[index])


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


def class_ranks(classes: Sequence[str]) -> tuple[int, ...] | None:
    """Return the ranks of three or more classes whose names differ in one number: `grade1`, `HER2 2+`, `0`, `stage IV`.

    Roman numbers must be consecutive, since they may be other words; `0` may precede them.

    Args:
        classes: class names.

    Returns:
        Ranks, 0 for the lowest number; None if the names give no order.
    """
    names = [name.strip().casefold() for name in classes]
    first, last = min(names), max(names)  # the beginning of these two is that of all
    same = next((k for k, (one, other) in enumerate(zip(first, last)) if one != other), len(first))
    common = re.sub(r"(?:-?[\d.]+|(?<![a-z])[ivx]+)$", "", first[:same])
    rest = [name.removeprefix(common) for name in names]
    if all(one in ROMAN for one in rest) and len(rest) > 2:
        numbers = [float(ROMAN.index(one)) for one in rest]
        if max(numbers) - min(numbers) >= len(numbers):
            return None
    else:
        sign = "-?" if common.strip() == "" or common[-1].isspace() else ""
        found = [re.fullmatch(rf"({sign}\d+(?:\.\d+)?)\+?", one) for one in rest]
        numbers = [float(one[1]) for one in found if one is not None]
    if len(set(numbers)) < max(3, len(classes)):
        return None
    return tuple(sorted(numbers).index(number) for number in numbers)


def cohen_kappa(table: np.ndarray, ranks: Sequence[int] | None = None) -> float:
    """Compute Cohen's kappa from a confusion matrix (true, predicted).

    Args:
        table: confusion matrix, (C, C).
        ranks: ranks of the classes, whose squared distances are the weights; None weights all errors equally.
    """
    if ranks is None:
        weight = 1.0 - np.eye(len(table))
    else:
        weight = np.subtract.outer(ranks, ranks).astype(np.float64) ** 2
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    chance = (weight * expected).sum()
    return float(1 - (weight * table).sum() / chance) if chance > 0 else np.nan


@dataclass(frozen=True)
class Measured:
    """Predictions of records with a number.

    Attributes:
        truth: true values, (n,), in the unit of the column.
        values: predicted values, (n,).
    """

    truth: np.ndarray
    values: np.ndarray

    def rows(self, index: np.ndarray) -> Measured:
        """Select records by index, with repetitions."""
        return Measured(self.truth[index], self.values[index])


@dataclass(frozen=True)
class Labelled:
    """Predictions of records with several labels.

    Attributes:
        truth: labels, (n, m): 1 present, 0 absent, NaN unknown.
        probabilities: probabilities, (n, m).
    """

    truth: np.ndarray
    probabilities: np.ndarray

    def rows(self, index: np.ndarray) -> Labelled:
        """Select records by index, with repetitions."""
        return Labelled(self.truth[index], self.probabilities[index])

    def by_label(self, function: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
        """Apply a function of (labels (k,) bool, probabilities (k,)) to the known records of each label, (m,)."""
        found = []
        for truth, p in zip(self.truth.T, self.probabilities.T):
            known = np.isfinite(truth)
            found.append(function(truth[known] == 1, p[known]) if known.any() else np.nan)
        return np.array(found)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Compute Pearson's correlation; NaN if one side is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(np.corrcoef(a, b)[0, 1])


def r_squared(found: Measured) -> float:
    """Compute the coefficient of determination about the mean of the tested records; NaN if they are all equal."""
    spread = np.square(found.truth - found.truth.mean()).sum()
    return float(1 - np.square(found.truth - found.values).sum() / spread) if spread > 0 else np.nan


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Compute the average precision: the sum over thresholds of precision times the step of recall.

    Args:
        positive: labels, (n,) bool.
        scores: predicted scores, (n,).

    Returns:
        The average precision; NaN without positives.
    """
    if not positive.any():
        return np.nan
    order = np.argsort(-scores, kind="stable")
    hits, ends = np.cumsum(positive[order]), np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    return float((np.diff(np.append(0, hits[ends])) * hits[ends] / (ends + 1)).sum() / positive.sum())


def f1(positive: np.ndarray, p: np.ndarray) -> float:
    """Compute F1 at a probability of 0.5; NaN without positives and without predicted ones."""
    both = positive.sum() + (p >= 0.5).sum()
    return float(2 * (positive & (p >= 0.5)).sum() / both) if both else np.nan


def finite_mean(values: np.ndarray) -> float:
    """Mean of the finite values; NaN without any."""
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else np.nan


def log_loss(found: Classified) -> float:
    """Negative log-likelihood of the true class, mean over the records, nats; probabilities are at least 1e-15."""
    own = found.probabilities[np.arange(len(found.truth)), found.truth]
    return float(-np.log(np.maximum(own, 1e-15)).mean())


def label_log_loss(found: Labelled) -> float:
    """Binary cross-entropy, mean over the known labels, nats; probabilities are at least 1e-15 from 0 and 1."""
    p = np.clip(found.probabilities, 1e-15, 1 - 1e-15)
    losses = -np.where(found.truth == 1, np.log(p), np.log1p(-p))
    return finite_mean(np.where(np.isfinite(found.truth), losses, np.nan))


ALWAYS = ("val", "test", "interval")

CLASSIFICATION = (
    Metric("auroc", macro_auroc, "max", "", ALWAYS, "macro mean of the AUROC of one class against the rest"),
    Metric("accuracy", accuracy, "max", "", ALWAYS),
    Metric("balanced_accuracy", balanced_accuracy, "max", "", ALWAYS, "mean recall of the classes"),
    Metric("f1", macro_f1, "max", "", ALWAYS, "macro F1"),
    Metric("kappa", lambda found: cohen_kappa(found.confusion), "max", "", ALWAYS, "Cohen's kappa, unweighted"),
    Metric("nll", log_loss, "min", "nats", ALWAYS, "negative log-likelihood"),
)
"""Metrics of classes, computed from `Classified`."""

ORDERED = (
    Metric(
        "quadratic_kappa",
        lambda found: cohen_kappa(found.confusion, found.ranks),
        "max",
        "",
        ALWAYS,
        "Cohen's kappa, quadratic weights",
    ),
)
"""Further metrics of classes whose order is known (`class_ranks`)."""

SURVIVAL = (
    Metric(
        "c_index",
        lambda found: c_index(found.time, found.censored, found.risk),
        "max",
        shown=ALWAYS,
        title="Harrell's C-index",
    ),
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
    Metric("nll", survival_log_loss, "min", "nats", ALWAYS, "negative log-likelihood"),
)
"""Metrics of survival, computed from `Followed`."""

REGRESSION = (
    Metric("mae", lambda f: float(np.abs(f.truth - f.values).mean()), "min", "unit of the column", ALWAYS),
    Metric("rmse", lambda f: float(np.sqrt(np.square(f.truth - f.values).mean())), "min", "unit of the column", ALWAYS),
    Metric("r2", r_squared, "max", "", ALWAYS, "coefficient of determination"),
    Metric("pearson", lambda f: correlation(f.truth, f.values), "max", "", ALWAYS, "Pearson's correlation"),
)
"""Metrics of a number, computed from `Measured`."""

LABELS = (
    Metric("auroc", lambda f: finite_mean(f.by_label(auroc)), "max", "", ALWAYS, "mean AUROC of the labels"),
    Metric(
        "average_precision",
        lambda f: finite_mean(f.by_label(average_precision)),
        "max",
        "",
        ALWAYS,
        "mean average precision of the labels",
    ),
    Metric("f1", lambda f: finite_mean(f.by_label(f1)), "max", "", ALWAYS, "mean F1 of the labels at 0.5"),
    Metric("nll", label_log_loss, "min", "nats", ALWAYS, "binary cross-entropy"),
)
"""Metrics of several labels, computed from `Labelled`."""

TABLES = {"classification": CLASSIFICATION, "survival": SURVIVAL, "regression": REGRESSION, "labels": LABELS}
"""Metrics by kind of target."""

METRICS = tuple({metric.name: metric for table in (*TABLES.values(), ORDERED) for metric in table}.values())
"""All metrics, one per name."""
