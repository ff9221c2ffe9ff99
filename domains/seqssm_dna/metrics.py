"""Scores of DNA models: bits per base, classification with one label or several, regression, bootstrap intervals.

Each score is one entry of a table of metrics, computed by its function from one of the classes below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from seqssm.metrics.metric import Metric, evaluate
from seqssm.metrics.scores import auroc as area_under_roc


class Rows(Protocol):
    """Predictions of records, which can be resampled."""

    def __len__(self) -> int:
        """Return the number of records."""

    def rows(self, index: np.ndarray) -> Any:
        """Select records."""


Found = TypeVar("Found", bound=Rows)


@dataclass(frozen=True)
class BaseScores:
    """Scores of a language model by record or window; only A, C, G and T are targets.

    Attributes:
        nll: sum of the negative log-likelihoods of the record's bases, nats, (n,).
        correct: number of bases that have the highest predicted probability, (n,).
        scored: number of scored bases, (n,).
    """

    nll: np.ndarray
    correct: np.ndarray
    scored: np.ndarray

    def __len__(self) -> int:
        return len(self.nll)

    def rows(self, index: np.ndarray) -> BaseScores:
        """Select records."""
        return BaseScores(self.nll[index], self.correct[index], self.scored[index])


@dataclass(frozen=True)
class Classified:
    """Predictions of records with one class each.

    Attributes:
        truth: class indices, (n,).
        probabilities: class probabilities, (n, C).
    """

    truth: np.ndarray
    probabilities: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)

    def rows(self, index: np.ndarray) -> Classified:
        """Select records."""
        return Classified(self.truth[index], self.probabilities[index])

    @property
    def predicted(self) -> np.ndarray:
        """Class with the highest probability, (n,)."""
        return self.probabilities.argmax(1)

    @property
    def confusion(self) -> np.ndarray:
        """Confusion table, true by predicted class, (C, C) int64."""
        table = np.zeros((self.probabilities.shape[1],) * 2, dtype=np.int64)
        np.add.at(table, (self.truth, self.predicted), 1)
        return table

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Yield (positive, score) of each class against the rest; of the second class only if there are two."""
        count = self.probabilities.shape[1]
        wanted = [1] if count == 2 else range(count)
        return [(self.truth == number, self.probabilities[:, number]) for number in wanted]

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return true positives, false positives and false negatives by class, (C,) each."""
        table = self.confusion
        hits = table.diagonal()
        return hits, table.sum(0) - hits, table.sum(1) - hits


@dataclass(frozen=True)
class MultiLabelled:
    """Predictions of records with any number of classes.

    Attributes:
        truth: zeros and ones, (n, m).
        probabilities: label probabilities, (n, m).
        thresholds: minimum probability for a positive prediction, a scalar or (m,).
    """

    truth: np.ndarray
    probabilities: np.ndarray
    thresholds: float | np.ndarray = 0.5

    def __len__(self) -> int:
        return len(self.truth)

    def rows(self, index: np.ndarray) -> MultiLabelled:
        """Select records."""
        return MultiLabelled(self.truth[index], self.probabilities[index], self.thresholds)

    @property
    def predicted(self) -> np.ndarray:
        """Predicted labels, (n, m) bool."""
        return self.probabilities >= self.thresholds

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Yield (positive, score) of each label."""
        return [(self.truth[:, k] > 0, self.probabilities[:, k]) for k in range(self.truth.shape[1])]

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return true positives, false positives and false negatives by label, (m,) each."""
        truth, predicted = self.truth > 0, self.predicted
        return (truth & predicted).sum(0), (~truth & predicted).sum(0), (truth & ~predicted).sum(0)


@dataclass(frozen=True)
class Regressed:
    """Predicted numbers.

    Attributes:
        truth: true values, (n,) or (n, t).
        predictions: predicted values, of the same shape and in the same units.
    """

    truth: np.ndarray
    predictions: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)

    def rows(self, index: np.ndarray) -> Regressed:
        """Select records."""
        return Regressed(self.truth[index], self.predictions[index])

    def columns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Yield (true values, predictions) of each target, (n,) float64 each."""
        pair = [np.asarray(one, dtype=np.float64) for one in (self.truth, self.predictions)]
        truth, predictions = (one[:, None] if one.ndim == 1 else one for one in pair)
        return [(truth[:, k], predictions[:, k]) for k in range(truth.shape[1])]


# -- language models ---------------------------------------------------------------------------------------------------


def mean_nll(found: BaseScores) -> float:
    """Cross-entropy in nats per base, pooled over all bases rather than averaged over records."""
    total = found.scored.sum()
    return float(found.nll.sum() / total) if total else np.nan


def bits_per_base(found: BaseScores) -> float:
    """Cross-entropy in bits per base; uniform probabilities give 2."""
    return mean_nll(found) / float(np.log(2))


def perplexity(found: BaseScores) -> float:
    """Exponential of the cross-entropy; uniform probabilities give 4."""
    return float(np.exp(mean_nll(found)))


def next_base_accuracy(found: BaseScores) -> float:
    """Fraction of bases that have the highest predicted probability."""
    total = found.scored.sum()
    return float(found.correct.sum() / total) if total else np.nan


# -- classes -----------------------------------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else np.nan


def matthews(table: np.ndarray) -> float:
    """Matthews correlation coefficient of a confusion table (true, predicted) with any number of classes.

    R_K of Gorodkin 2004: (c s - sum_k p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)), with c correct of s
    records, p_k predicted and t_k true records of class k; 0 if all records are of one class or predicted to be.

    Args:
        table: counts, (C, C).
    """
    table = np.asarray(table, dtype=np.float64)
    total, truth, predicted = table.sum(), table.sum(1), table.sum(0)
    below = np.sqrt(total**2 - (predicted**2).sum()) * np.sqrt(total**2 - (truth**2).sum())
    return float((table.trace() * total - truth @ predicted) / below) if below > 0 else 0.0


def mcc(found: Classified | MultiLabelled) -> float:
    """Matthews correlation coefficient; for several labels, the mean over the labels."""
    if isinstance(found, Classified):
        return matthews(found.confusion) if len(found) else np.nan
    tables = [np.array([[len(found) - tp - fp - fn, fp], [fn, tp]]) for tp, fp, fn in zip(*found.counts())]
    return float(np.mean([matthews(table) for table in tables])) if len(found) else np.nan


def accuracy(found: Classified | MultiLabelled) -> float:
    """Fraction of records whose class, or whole set of labels, is predicted correctly."""
    right = found.predicted == found.truth
    return float((right if right.ndim == 1 else right.all(1)).mean()) if len(found) else np.nan


def f1(found: Classified | MultiLabelled) -> float:
    """Mean F1 over the classes that occur or are predicted."""
    tp, fp, fn = found.counts()
    below = 2 * tp + fp + fn
    return float(np.mean(2 * tp[below > 0] / below[below > 0])) if (below > 0).any() else np.nan


def auroc(found: Classified | MultiLabelled) -> float:
    """Area under the ROC curve of the second of two classes, otherwise the mean over the classes."""
    return _mean([area_under_roc(positive, scores) for positive, scores in found.pairs()])


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve as a step function; tied scores form one step.

    Args:
        positive: true labels, (n,) bool.
        scores: predicted scores, (n,).

    Returns:
        sum (R_k - R_{k-1}) P_k over the distinct scores from high to low; NaN without positives.
    """
    total = int(positive.sum())
    if not total:
        return np.nan
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    return float(np.sum(np.diff(hits[ends], prepend=0) * hits[ends] / (ends + 1)) / total)


def auprc(found: Classified | MultiLabelled) -> float:
    """Average precision of the second of two classes, otherwise the mean over the classes."""
    return _mean([average_precision(positive, scores) for positive, scores in found.pairs()])


# -- numbers -----------------------------------------------------------------------------------------------------------


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r; NaN if an argument is constant or there are fewer than two values.

    Args:
        a: values, (n,).
        b: values, (n,).
    """
    if len(a) < 2:
        return np.nan
    x, y = a - a.mean(), b - b.mean()
    below = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / below, -1, 1)) if below > 0 else np.nan


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, (n,); ties get their mean rank.

    Args:
        values: values, (n,).
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def pearson(found: Regressed) -> float:
    """Pearson's r, averaged over the targets."""
    return _mean([correlation(a, b) for a, b in found.columns()])


def spearman(found: Regressed) -> float:
    """Spearman's rank correlation, averaged over the targets."""
    return _mean([correlation(ranks(a), ranks(b)) for a, b in found.columns()])


def r2(found: Regressed) -> float:
    """Coefficient of determination, averaged over the targets."""
    values = []
    for truth, predictions in found.columns():
        spread = ((truth - truth.mean()) ** 2).sum() if len(truth) else 0.0
        values.append(1 - ((truth - predictions) ** 2).sum() / spread if spread > 0 else np.nan)
    return _mean(values)


def rmse(found: Regressed) -> float:
    """Root mean squared error over all targets."""
    pairs = found.columns()
    return float(np.sqrt(np.mean([np.mean((a - b) ** 2) for a, b in pairs]))) if len(found) else np.nan


# -- tables and intervals ----------------------------------------------------------------------------------------------

LANGUAGE = (
    Metric("bits_per_base", bits_per_base, "min", "bits", title="cross-entropy, bits per base"),
    Metric("perplexity", perplexity, "min"),
    Metric("mean_nll", mean_nll, "min", "nats", shown=("test",), title="cross-entropy, nats per base"),
    Metric("next_base_accuracy", next_base_accuracy, "max"),
    Metric("n_scored", lambda found: float(found.scored.sum()), shown=("test",), title="number of scored bases"),
)
"""Scores of language models, from `BaseScores`."""

CLASSES = (
    Metric("mcc", mcc, "max", title="Matthews correlation coefficient"),
    Metric("accuracy", accuracy, "max"),
    Metric("f1", f1, "max", title="macro F1"),
    Metric("auroc", auroc, "max", title="area under the ROC curve"),
    Metric("auprc", auprc, "max", title="average precision"),
)
"""Scores of classes, from `Classified` or `MultiLabelled`."""

REGRESSION = (
    Metric("pearson", pearson, "max", title="Pearson's r"),
    Metric("spearman", spearman, "max", title="Spearman's rank correlation"),
    Metric("r2", r2, "max", title="coefficient of determination"),
    Metric("rmse", rmse, "min", title="root mean squared error"),
)
"""Scores of numbers, from `Regressed`."""

METRICS = (*LANGUAGE, *CLASSES, *REGRESSION)


def bootstrap(
    found: Found,
    figure: Callable[[Found], float],
    draws: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | np.ndarray | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic, over records or groups of records.

    Args:
        found: predictions of records.
        figure: statistic, a function of predictions.
        draws: number of bootstrap samples.
        seed: random seed.
        groups: group of each record, (n,); whole groups are resampled, because their records are not independent.
        level: level of the interval.

    Returns:
        (lower, upper); NaN without records or if the statistic is undefined for all samples.
    """
    random = np.random.default_rng(seed)
    values = [figure(found.rows(index)) for index in _draws(len(found), draws, random, groups)]
    finite = np.array([value for value in values if np.isfinite(value)])
    if not len(finite):
        return np.nan, np.nan
    low, high = np.percentile(finite, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def intervals(
    metrics: Sequence[Metric],
    found: Rows,
    draws: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | np.ndarray | None = None,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of all scores shown in a test, from the same samples.

    Args:
        metrics: table of metrics.
        found: predictions.
        draws: number of bootstrap samples.
        seed: random seed.
        groups: group of each record, (n,); whole groups are resampled.
        level: level of the intervals.
    """
    random = np.random.default_rng(seed)
    rows = [evaluate(metrics, found.rows(index), "test") for index in _draws(len(found), draws, random, groups)]
    result = {}
    for name in rows[0] if rows else ():
        values = np.array([row[name] for row in rows], dtype=np.float64)
        values = values[np.isfinite(values)]
        ends = np.percentile(values, [50 * (1 - level), 50 * (1 + level)]) if len(values) else (np.nan, np.nan)
        result[name] = (float(ends[0]), float(ends[1]))
    return result


def _draws(
    count: int, draws: int, random: np.random.Generator, groups: Sequence[str] | np.ndarray | None
) -> list[np.ndarray]:
    """Yield index arrays of records sampled with replacement."""
    if not count:
        return []
    if groups is None:
        return [random.integers(0, count, count) for _ in range(draws)]
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return [np.concatenate([members[k] for k in random.integers(0, len(members), len(members))]) for _ in range(draws)]
