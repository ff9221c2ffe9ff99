"""Scores shared by several domains."""

from __future__ import annotations

import numpy as np


def auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of one class.

    Computed as the Mann-Whitney statistic with mid-ranks: the fraction of (positive, negative) pairs in which the
    positive has the higher score, ties counting half. Equal to the trapezoidal area.

    Args:
        positive: labels, (n,) bool.
        scores: predicted scores, (n,).

    Returns:
        The area; NaN if there are no positives or no negatives.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return np.nan
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
