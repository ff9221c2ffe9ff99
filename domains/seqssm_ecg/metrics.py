"""Metrics of multilabel ECG diagnosis: challenge scores, areas under curves, F and G measures, calibration, intervals.

Shapes: truth and decisions (n, m), 0 or 1; scores (n, m) in [0, 1]; n records, m classes. A label of `truth` may be
NaN, unknown: that cell counts neither for nor against a class, in any metric. All metrics are declared in `METRICS` at
the end of this file, which validation, test, tables by class, intervals, `score` and kfold use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from seqssm.metrics.metric import Metric
from seqssm.metrics.records import Reliability, reliability
from seqssm.metrics.scores import auroc as area_under_roc


@dataclass(frozen=True)
class Predictions:
    """Predictions and true labels.

    Attributes:
        truth: true labels, (n, m), 0 or 1; NaN if unknown.
        scores: probabilities, (n, m).
        decisions: predicted labels, (n, m), 0 or 1.
        weights: weights of the challenge's score, (m, m), or None.
        sinus: column of sinus rhythm, or None.
    """

    truth: np.ndarray
    scores: np.ndarray
    decisions: np.ndarray
    weights: np.ndarray | None = None
    sinus: int | None = None

    def rows(self, index: np.ndarray) -> Predictions:
        """Select records."""
        chosen = self.truth[index], self.scores[index], self.decisions[index]
        return Predictions(*chosen, self.weights, self.sinus)


@dataclass(frozen=True)
class EcgMetric(Metric):
    """A metric of `Predictions`.

    Attributes:
        by_class: function from predictions to (m,), for metrics with a value per class; shown in the tables by class.
        challenge: whether the metric requires the challenge's weights.
    """

    by_class: Callable[[Predictions], np.ndarray] | None = None
    challenge: bool = False


def challenge_score(weights: np.ndarray, truth: np.ndarray, decisions: np.ndarray, sinus: int) -> float:
    """Compute the challenge metric of 2020 and 2021 (Perez Alday et al. 2020, section 3; official scripts).

    A[j, k] = sum_i truth_ij output_ik / max(1, number of classes positive in truth or output of i); s = sum_jk W_jk
    A_jk, with NaN weights as 0. Score = (s(decisions) - s(sinus)) / (s(truth) - s(sinus)), where `sinus` predicts sinus
    rhythm for every record; 0 if the denominator is 0. Cells with an unknown label are negative in truth and outputs.

    Args:
        weights: weights of the score, (m, m).
        truth: true labels, (n, m), 0 or 1; NaN if unknown.
        decisions: predicted labels, (n, m), 0 or 1.
        sinus: column of sinus rhythm.
    """
    normal = np.zeros_like(truth)
    normal[:, sinus] = 1
    observed, correct, inactive = (_weighted(weights, truth, other) for other in (decisions, truth, normal))
    return float((observed - inactive) / (correct - inactive)) if correct != inactive else 0.0


def _weighted(weights: np.ndarray, truth: np.ndarray, decisions: np.ndarray) -> float:
    truth, decisions = truth > 0, decisions.astype(bool) & ~np.isnan(truth)
    either = np.maximum(1, (truth | decisions).sum(axis=1))
    confusion = (truth / either[:, None]).T @ decisions
    return float(np.nansum(weights * confusion))


def known(truth: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the positives (bool) and the values of `others` where the label is known, flat.

    Args:
        truth: labels, 0 or 1; NaN if unknown.
        others: arrays of the same shape.
    """
    chosen = ~np.isnan(truth)
    return (truth[chosen] > 0, *(other[chosen] for other in others))


def auroc(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Compute the area under the ROC curve per class, (m,), with ties merged; NaN without positives or negatives."""
    return np.array([area_under_roc(*known(truth[:, k], scores[:, k])) for k in range(truth.shape[1])])


def auprc(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Compute the average precision per class, (m,), without interpolation; NaN without positives."""
    return np.array([_auprc(*known(truth[:, k], scores[:, k])) for k in range(truth.shape[1])])


def _auprc(truth: np.ndarray, scores: np.ndarray) -> float:
    positives = int(truth.sum())
    if positives == 0:
        return np.nan
    order = np.argsort(-scores, kind="stable")
    hits, sorted_scores = np.cumsum(truth[order]), scores[order]
    ends = np.append(np.flatnonzero(np.diff(sorted_scores)), len(scores) - 1)
    found = hits[ends]
    precision = found / (ends + 1)
    return float(np.sum(np.diff(np.append(0, found)) * precision) / positives)


def f_measure(truth: np.ndarray, decisions: np.ndarray, beta: float = 1.0) -> np.ndarray:
    """Compute F-beta per class, (m,); NaN for a class without true and predicted positives."""
    tp, fp, fn = _counts(truth, decisions, np.ones(len(truth)))
    square = beta * beta
    return _ratio((1 + square) * tp, (1 + square) * tp + fp + square * fn)


def f2_g2(truth: np.ndarray, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute F2 = 5TP/(5TP+FP+4FN) and G2 = TP/(TP+FP+2FN) of the challenge 2020, (m,).

    A record counts 1 / max(1, number of its positive labels) in TP, FP and FN (official script, beta 2), so F2 differs
    from `f_measure` with beta 2, where every record counts 1.

    Args:
        truth: labels, (n, m).
        decisions: decisions, (n, m).
    """
    tp, fp, fn = _counts(truth, decisions, 1 / np.maximum(1, np.nansum(truth, axis=1)))
    return _ratio(5 * tp, 5 * tp + fp + 4 * fn), _ratio(tp, tp + fp + 2 * fn)


def _counts(truth: np.ndarray, decisions: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    positive, negative, decisions = truth > 0, truth == 0, decisions.astype(bool)
    return weight @ (positive & decisions), weight @ (negative & decisions), weight @ (positive & ~decisions)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def accuracy(truth: np.ndarray, decisions: np.ndarray) -> float:
    """Compute the fraction of records whose known labels are all predicted correctly; NaN without records."""
    correct = ((truth > 0) == decisions.astype(bool)) | np.isnan(truth)
    return float(correct.all(axis=1).mean()) if len(truth) else np.nan


def brier(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Compute the Brier score per class, (m,): mean squared difference of probability and label."""
    error = (scores - truth) ** 2
    count = (~np.isnan(error)).sum(axis=0)
    return _ratio(np.nansum(error, axis=0), count)


def calibration(truth: np.ndarray, scores: np.ndarray, bins: int = 10) -> Reliability:
    """Compare predicted and observed frequencies in bins of equal width, all classes pooled."""
    return reliability("all classes", truth.ravel(), scores.ravel(), bins)


def calibration_error(truth: np.ndarray, scores: np.ndarray, bins: int = 10) -> float:
    """Compute the expected calibration error: mean |probability - observed fraction| over bins, weighted by size."""
    return calibration(truth, scores, bins).error


def macro(values: np.ndarray) -> float:
    """Compute the mean over the classes that have a value; NaN if none has."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def summary(predictions: Predictions, where: str = "test") -> dict[str, float]:
    """Compute the metrics shown in `where`, by name; challenge metrics only if there are weights."""
    known = predictions.weights is not None and predictions.sinus is not None
    shown = [metric for metric in METRICS if where in metric.shown and (known or not metric.challenge)]
    return {metric.name: float(metric.function(predictions)) for metric in shown if metric.function is not None}


def rows_by_source(groups: np.ndarray, predictions: Predictions) -> list[dict[str, object]]:
    """Return one row per source: its name, its number of records, the metrics of `summary`.

    Args:
        groups: source names of the records, (n,).
        predictions: predictions of the records.
    """
    rows = []
    for source in sorted(set(groups)):
        own = groups == source
        rows.append({"source": source, "records": int(own.sum()), **summary(predictions.rows(own))})
    return rows


def table_by_class(predictions: Predictions) -> dict[str, np.ndarray]:
    """Compute the metrics with a value per class, (m,) each, by name."""
    return {metric.name: metric.by_class(predictions) for metric in METRICS if metric.by_class is not None}


def bootstrap(
    count: int,
    figure: Callable[[np.ndarray], float],
    draws: int = 200,
    seed: int = 0,
    usable: Callable[[np.ndarray], bool] | None = None,
) -> tuple[float, float]:
    """Compute bootstrap 5 % and 95 % quantiles of a statistic over records drawn with replacement.

    Args:
        count: number of records.
        figure: function from an index array (count,) to the statistic.
        draws: number of bootstrap draws.
        seed: random seed of the draws.
        usable: predicate of accepted draws; a rejected draw is repeated up to 20 times (PTB-XL's benchmark rejects
            draws in which a class has no positives).
    """
    if count == 0:
        return np.nan, np.nan
    random = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        index = random.integers(0, count, count)
        for _ in range(20):
            if usable is None or usable(index):
                break
            index = random.integers(0, count, count)
        values.append(figure(index))
    finite = np.array([value for value in values if np.isfinite(value)])
    if not len(finite):
        return np.nan, np.nan
    return float(np.percentile(finite, 5)), float(np.percentile(finite, 95))


def every_class(truth: np.ndarray) -> Callable[[np.ndarray], bool]:
    """Return a predicate: the draw contains a positive of each class that has one."""
    positive = truth > 0
    present = positive.any(axis=0)
    return lambda index: bool(positive[index].any(axis=0)[present].all())


def intervals(predictions: Predictions, draws: int = 200, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Compute bootstrap 5 % and 95 % quantiles of each metric of `summary`, all from the same draws."""
    random = np.random.default_rng(seed)
    truth = predictions.truth
    usable = every_class(truth)
    rows = []
    for _ in range(draws if len(truth) else 0):
        index = random.integers(0, len(truth), len(truth))
        for _ in range(20):
            if usable(index):
                break
            index = random.integers(0, len(truth), len(truth))
        rows.append(summary(predictions.rows(index)))
    names = rows[0] if rows else {}
    found = {}
    for name in names:
        values = np.array([row[name] for row in rows])
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, (5, 95)) if len(values) else (np.nan, np.nan)
        found[name] = (float(low), float(high))
    return found


def _macro(
    name: str, by_class: Callable[[Predictions], np.ndarray], better: str = "max", val: bool = False, title: str = ""
) -> EcgMetric:
    """Create a metric whose value is the mean over the classes that have one."""
    shown = ("val", "test") if val else ("test",)
    return EcgMetric(
        name,
        lambda p: macro(by_class(p)),
        better,  # type: ignore[arg-type]
        shown=shown,
        title=title,
        by_class=by_class,
    )


METRICS = (
    _macro("auroc", lambda p: auroc(p.truth, p.scores), val=True),
    _macro("auprc", lambda p: auprc(p.truth, p.scores), val=True),
    _macro("f1", lambda p: f_measure(p.truth, p.decisions), val=True),
    _macro("f2", lambda p: f2_g2(p.truth, p.decisions)[0], title="F2 of the challenge 2020, records weighted"),
    _macro("g2", lambda p: f2_g2(p.truth, p.decisions)[1], title="G2 of the challenge 2020, records weighted"),
    EcgMetric("accuracy", lambda p: accuracy(p.truth, p.decisions), "max", shown=("test",)),
    EcgMetric("calibration_error", lambda p: calibration_error(p.truth, p.scores), "min", shown=("test",)),
    EcgMetric(
        "brier",
        lambda p: macro(brier(p.truth, p.scores)),
        "min",
        shown=("test",),
        by_class=lambda p: brier(p.truth, p.scores),
    ),
    EcgMetric("one_lead_auroc", None, "max", shown=("test",)),  # mean over leads, from the task
    EcgMetric("challenge", lambda p: challenge_score(p.weights, p.truth, p.decisions, p.sinus), "max", challenge=True),
)
"""All metrics, in the order of the tables."""
