"""Decision thresholds per class, and one temperature or one per class, fitted on validation records only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from seqssm_ecg import metrics

Criterion = Literal["f1", "youden", "challenge"]
DEFAULT = 0.5  # threshold of classes that have only positives or only negatives in validation
ENOUGH = 5  # known positives and negatives that a temperature of its own requires
CANDIDATES = 40  # candidate thresholds per class: quantiles of its scores


def fit_thresholds(
    truth: np.ndarray,
    scores: np.ndarray,
    criterion: Criterion,
    weights: np.ndarray | None = None,
    sinus: int | None = None,
) -> np.ndarray:
    """Fit thresholds (m,); a class is predicted if its score is at least its threshold.

    ``"f1"`` and ``"youden"`` (maximum of true minus false positive rate) treat each class separately. ``"challenge"``
    starts from the F1 thresholds and applies coordinate ascent on the challenge's score until a round over all classes
    changes nothing. Unknown labels (NaN in `truth`) are left out.

    Raises:
        ValueError: `weights` is missing with ``"challenge"``.
    """
    found = np.full(truth.shape[1], DEFAULT)
    for k in range(truth.shape[1]):
        positive, own = metrics.known(truth[:, k], scores[:, k])
        if positive.any() and not positive.all():
            found[k] = _one(positive, own, "youden" if criterion == "youden" else "f1")
    if criterion != "challenge":
        return found
    if weights is None or sinus is None:
        raise ValueError("criterion challenge requires the challenge's weights")
    decisions = scores >= found
    best = metrics.challenge_score(weights, truth, decisions, sinus)
    changed = True
    while changed:
        changed = False
        for k in np.flatnonzero((truth > 0).any(axis=0)):
            for threshold in _candidates(metrics.known(truth[:, k], scores[:, k])[1]):
                trial = decisions.copy()
                trial[:, k] = scores[:, k] >= threshold
                value = metrics.challenge_score(weights, truth, trial, sinus)
                if value > best + 1e-12:
                    best, decisions, changed = value, trial, True
                    found[k] = threshold
    return found


def _candidates(scores: np.ndarray) -> np.ndarray:
    """Return midpoints between consecutive scores, at most `CANDIDATES` of them."""
    ordered = np.unique(scores)
    if len(ordered) < 2:
        return ordered
    middles = (ordered[1:] + ordered[:-1]) / 2
    if len(middles) > CANDIDATES:
        middles = np.quantile(middles, np.linspace(0, 1, CANDIDATES))
    return middles


def _one(truth: np.ndarray, scores: np.ndarray, criterion: str) -> float:
    """Find the best threshold of a class among all midpoints between consecutive scores."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(scores) - 1)
    tp = np.cumsum(truth[order])[ends]
    fp = ends + 1 - tp
    positives = truth.sum()
    if criterion == "f1":
        value = 2 * tp / (tp + fp + positives)
    else:
        value = tp / positives - fp / (len(truth) - positives)
    best = int(np.argmax(value))
    here = ordered[ends[best]]
    below = ordered[ends[best] + 1] if ends[best] + 1 < len(ordered) else here
    return float((here + below) / 2)


def temperature(truth: np.ndarray, logits: np.ndarray) -> float:
    """Fit T of sigmoid(logits / T) by maximum likelihood (Guo et al. 2017) with a golden-section search over log T.

    Unknown labels (NaN in `truth`) are left out.
    """
    truth, logits = metrics.known(truth, logits)
    if not truth.size:
        return 1.0

    def loss(log_t: float) -> float:
        z = logits / np.exp(log_t)
        return float((np.logaddexp(0, z) - truth * z).mean())

    return _golden(loss)


def exclusive_temperature(truth: np.ndarray, logits: np.ndarray) -> float:
    """Fit T of softmax(logits / T) as `temperature` does, for records with one class each.

    Args:
        truth: labels, (n, m), 0 or 1.
        logits: logits, (n, m).
    """
    if not truth.size:
        return 1.0

    def loss(log_t: float) -> float:
        z = logits / np.exp(log_t)
        return float((np.logaddexp.reduce(z, axis=1) - (truth * z).sum(1)).mean())

    return _golden(loss)


def _golden(loss: Callable[[float], float]) -> float:
    """Return the T from 0.05 to 20 with the smallest loss of log T, by golden-section search."""
    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(40):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return float(np.exp((low + high) / 2))


def enough(truth: np.ndarray) -> np.ndarray:
    """Return which classes have `ENOUGH` known positives and negatives in `truth` (n, m), (m,) bool."""
    return ((truth > 0).sum(axis=0) >= ENOUGH) & ((truth == 0).sum(axis=0) >= ENOUGH)


def temperatures(truth: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Fit one temperature per class, (m,), as `temperature` does; the common one for classes without `enough` labels.

    Args:
        truth: labels, (n, m); NaN if unknown.
        logits: logits, (n, m).
    """
    found = np.full(truth.shape[1], temperature(truth, logits))
    for k in np.flatnonzero(enough(truth)):
        found[k] = temperature(truth[:, k], logits[:, k])
    return found
