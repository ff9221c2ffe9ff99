"""Scores of multilabel ECG diagnosis: the challenges' metrics, areas under curves, F and G, calibration, intervals.

Shapes: truth, outputs (n, m) of zeros and ones; scores (n, m) in [0, 1]; n records, m classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from seqssm.metrics.metric import Metric

METRICS = (
    *(Metric(name, better="max") for name in ("auroc", "auprc", "f1", "challenge")),
    *(Metric(name, better="max", shown=("test",)) for name in ("f2", "g2", "accuracy")),
    *(Metric(name, better="min", shown=("test",)) for name in ("calibration_error", "brier")),
)


def challenge_score(weights: np.ndarray, truth: np.ndarray, outputs: np.ndarray, sinus: int) -> float:
    """The challenge metric of 2020 and 2021 (Perez Alday et al. 2020, section 3; official ``evaluate`` scripts).

    A[j, k] = sum_i truth_ij output_ik / max(1, classes positive in truth or output of i); s = sum_jk W_jk A_jk (NaN
    weights count 0). Score = (s(outputs) - s(sinus rhythm in every record)) / (s(truth) - s(sinus ...)); 0 when these
    two are equal.

    Args:
        weights: (m, m).
        truth, outputs: (n, m).
        sinus: column of sinus rhythm.
    """
    normal = np.zeros_like(truth)
    normal[:, sinus] = 1
    observed, correct, inactive = (_weighted(weights, truth, other) for other in (outputs, truth, normal))
    return float((observed - inactive) / (correct - inactive)) if correct != inactive else 0.0


def _weighted(weights: np.ndarray, truth: np.ndarray, outputs: np.ndarray) -> float:
    truth, outputs = truth.astype(bool), outputs.astype(bool)
    either = np.maximum(1, (truth | outputs).sum(axis=1))
    confusion = (truth / either[:, None]).T @ outputs
    return float(np.nansum(weights * confusion))


def auroc(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(m,) area under the ROC curve by class, tied scores taken together; NaN without positives or negatives."""
    return np.array([_auroc(truth[:, k] > 0, scores[:, k]) for k in range(truth.shape[1])])


def _auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if positives == 0 or negatives == 0:
        return np.nan
    ranks = _ranks(scores)  # the Mann-Whitney statistic with mid-ranks is the trapezoid's area
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _ranks(scores: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def auprc(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(m,) average precision by class: recall steps times the precision at their end; NaN without positives."""
    return np.array([_auprc(truth[:, k] > 0, scores[:, k]) for k in range(truth.shape[1])])


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


def f_measure(truth: np.ndarray, outputs: np.ndarray, beta: float = 1.0) -> np.ndarray:
    """(m,) F-beta by class from plain counts; NaN where a class is in neither truth nor outputs."""
    tp, fp, fn = _counts(truth, outputs, np.ones(len(truth)))
    square = beta * beta
    return _ratio((1 + square) * tp, (1 + square) * tp + fp + square * fn)


def f2_g2(truth: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m,) F2 = 5TP/(5TP+FP+4FN) and G2 = TP/(TP+FP+2FN) of 2020, record i counting 1 / max(1, its true labels)."""
    tp, fp, fn = _counts(truth, outputs, 1 / np.maximum(1, truth.sum(axis=1)))
    return _ratio(5 * tp, 5 * tp + fp + 4 * fn), _ratio(tp, tp + fp + 2 * fn)


def _counts(truth: np.ndarray, outputs: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth, outputs = truth.astype(bool), outputs.astype(bool)
    return share @ (truth & outputs), share @ (~truth & outputs), share @ (truth & ~outputs)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def accuracy(truth: np.ndarray, outputs: np.ndarray) -> float:
    """Share of records whose whole label vector is right; NaN without records."""
    return float((truth.astype(bool) == outputs.astype(bool)).all(axis=1).mean()) if len(truth) else np.nan


def brier(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(m,) mean squared difference of probability and truth."""
    return ((scores - truth) ** 2).mean(axis=0)


def calibration(truth: np.ndarray, scores: np.ndarray, bins: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reliability of all classes together, bins of equal width: (mean probability, observed share, records) by bin."""
    p, y = scores.ravel(), truth.ravel().astype(float)
    place = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, weights=p, minlength=bins) / count
        share = np.bincount(place, weights=y, minlength=bins) / count
    return mean, share, count


def calibration_error(truth: np.ndarray, scores: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean |probability - observed share| over bins, weighted by their size."""
    if truth.size == 0:
        return np.nan
    mean, share, count = calibration(truth, scores, bins)
    return float(np.nansum(np.abs(mean - share) * count) / count.sum())


def macro(values: np.ndarray) -> float:
    """Mean over the classes that have a value; NaN when none has."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def summary(
    truth: np.ndarray,
    scores: np.ndarray,
    outputs: np.ndarray,
    weights: np.ndarray | None = None,
    sinus: int | None = None,
) -> dict[str, float]:
    """Every figure of a set of records, by the name that it is printed with."""
    f2, g2 = f2_g2(truth, outputs)
    values = {
        "auroc": macro(auroc(truth, scores)),
        "auprc": macro(auprc(truth, scores)),
        "f1": macro(f_measure(truth, outputs)),
        "f2": macro(f2),
        "g2": macro(g2),
        "accuracy": accuracy(truth, outputs),
        "calibration_error": calibration_error(truth, scores),
        "brier": float(brier(truth, scores).mean()),
    }
    if weights is not None and sinus is not None:
        values["challenge"] = challenge_score(weights, truth, outputs, sinus)
    return values


def bootstrap(
    count: int,
    figure: Callable[[np.ndarray], float],
    draws: int = 200,
    seed: int = 0,
    usable: Callable[[np.ndarray], bool] | None = None,
) -> tuple[float, float]:
    """5 and 95 % of a figure over records drawn with replacement (`draws` times, the same ones for the same `seed`).

    Args:
        count: records.
        figure: of an index array (count,).
        usable: whether a draw may be used; others are drawn again, up to 20 times (PTB-XL's benchmark draws again
            where a class has no positive).
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
    """Whether a draw of records keeps a positive of each class that has one."""
    present = truth.any(axis=0)
    return lambda index: bool(truth[index].any(axis=0)[present].all())


def intervals(
    truth: np.ndarray,
    scores: np.ndarray,
    outputs: np.ndarray,
    weights: np.ndarray | None = None,
    sinus: int | None = None,
    draws: int = 200,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """5 and 95 % of each figure of `summary`, all from the same draws."""
    random = np.random.default_rng(seed)
    usable = every_class(truth)
    rows = []
    for _ in range(draws if len(truth) else 0):
        index = random.integers(0, len(truth), len(truth))
        for _ in range(20):
            if usable(index):
                break
            index = random.integers(0, len(truth), len(truth))
        rows.append(summary(truth[index], scores[index], outputs[index], weights, sinus))
    names = rows[0] if rows else {}
    found = {}
    for name in names:
        values = np.array([row[name] for row in rows])
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, (5, 95)) if len(values) else (np.nan, np.nan)
        found[name] = (float(low), float(high))
    return found
