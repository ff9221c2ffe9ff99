"""Figures of a test: ROC, precision-recall, reliability, F1 by threshold, co-occurrence of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from seqssm.metrics.records import BINS
from seqssm.plot.canvas import new_figure, save
from seqssm_ecg import metrics

SHOWN = 8  # classes per panel: those with the most positives
COLORS = ("#c2571a", "#4c78a8", "#7a9e5b", "#9a7bb0", "#b0a070", "#3b4252", "#d98880", "#45818e")


def curves_figure(
    path: Path, classes: list[str], truth: np.ndarray, scores: np.ndarray, thresholds: np.ndarray
) -> Path:
    """Draw six panels into one PNG; classes without positives or without negatives have no curves.

    Args:
        path: path of the PNG.
        classes: names of the classes.
        truth: labels, (n, m), 0 or 1; NaN if unknown.
        scores: probabilities, (n, m).
        thresholds: decision thresholds, (m,), marked on the F1 curves.
    """
    figure = new_figure(12.5, 7.6)
    axes = figure.subplots(2, 3)
    positives, negatives = (truth > 0).sum(0), (truth == 0).sum(0)
    usable = sorted(np.flatnonzero((positives > 0) & (negatives > 0)), key=lambda k: -positives[k])[:SHOWN]
    for color, k in zip(COLORS, usable):
        tpr, fpr, precision = rates(*metrics.known(truth[:, k], scores[:, k]))
        name = classes[k]
        axes[0, 0].plot(fpr, tpr, color=color, label=f"{name} {metrics.auroc(truth[:, [k]], scores[:, [k]])[0]:.3f}")
        axes[0, 1].plot(
            tpr, precision, color=color, label=f"{name} {metrics.auprc(truth[:, [k]], scores[:, [k]])[0]:.3f}"
        )
        grid = np.linspace(0.01, 0.99, 99)
        f1 = [metrics.f_measure(truth[:, [k]], scores[:, [k]] >= limit)[0] for limit in grid]
        axes[0, 2].plot(grid, f1, color=color, label=name)
        at = metrics.f_measure(truth[:, [k]], scores[:, [k]] >= thresholds[k])[0]
        axes[0, 2].plot(thresholds[k], at, "o", color=color, markersize=4)
    axes[0, 0].plot((0, 1), (0, 1), color="#999999", linewidth=0.6)
    for panel, x, y, title in (
        (axes[0, 0], "false positive rate", "true positive rate", "ROC (area)"),
        (axes[0, 1], "recall", "precision", "precision-recall (area)"),
        (axes[0, 2], "threshold", "F1", "F1 by threshold (dot: fitted on validation)"),
    ):
        _dress(panel, x, y, title)
        panel.legend(frameon=False, fontsize=7)
    found = metrics.calibration(truth, scores)
    axes[1, 0].plot((0, 1), (0, 1), color="#999999", linewidth=0.6)
    axes[1, 0].plot(found.predicted, found.observed, "o-", color=COLORS[0])
    _dress(
        axes[1, 0], "predicted probability", "observed fraction", f"reliability, all classes (error {found.error:.3f})"
    )
    axes[1, 1].hist(scores.ravel(), bins=BINS, range=(0, 1), rwidth=0.9, color=COLORS[1])
    axes[1, 1].set_yscale("log")
    axes[1, 1].yaxis.set_minor_formatter("")
    _dress(axes[1, 1], "predicted probability", "records x classes", "distribution of the predicted probabilities")
    _together(axes[1, 2], classes, truth)
    return save(figure, path)


def rates(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute (true positive rate, false positive rate, precision) by descending threshold, with ties merged."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    tp = np.cumsum(truth[order] > 0)[ends]
    fp = ends + 1 - tp
    tpr, fpr = tp / max(1, tp[-1]), fp / max(1, fp[-1])
    return np.append(0, tpr), np.append(0, fpr), np.append(1, tp / (ends + 1))


def _together(axes, classes: list[str], truth: np.ndarray) -> None:
    """Draw the number of records that have both of two classes, for the most frequent classes."""
    positive = (truth > 0).astype(int)
    shown = np.argsort(-positive.sum(0), kind="stable")[:SHOWN]
    table = positive[:, shown].T @ positive[:, shown]
    axes.imshow(table, cmap="Oranges")
    for i in range(len(shown)):
        for j in range(len(shown)):
            colour = "white" if 2 * table[i, j] > table.max() else "black"
            axes.text(j, i, str(table[i, j]), ha="center", va="center", fontsize=7, color=colour)
    names = [classes[k] for k in shown]
    axes.set_xticks(range(len(shown)), names, fontsize=7, rotation=45, ha="right")
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.set_title("records with both classes", fontsize=9, loc="left")


def _dress(axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
