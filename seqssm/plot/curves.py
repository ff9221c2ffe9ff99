"""Learning curves and reliability diagrams, for the report of any domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seqssm.plot.canvas import new_figure, plain_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from seqssm.metrics.records import Reliability

COLORS = ("#4c78a8", "#c2571a", "#7a9e5b", "#9a7bb0", "#b0a070", "#3b4252", "#d98880", "#45818e")
COLUMNS = 2  # panels per row


def learning_curves(log: pd.DataFrame, best: int | None) -> Figure:
    """Draw the columns of `log.csv` over the epochs: losses in one panel, each validation score in its own.

    Args:
        log: one row per epoch.
        best: epoch of `best.ckpt`, marked in every panel; None if unknown.
    """
    scores = [name for name in log.columns if name.startswith("val_") and name != "val_loss"]
    panels = [["train_loss", "val_loss"], *([name] for name in scores), ["learning_rate"]]
    panels = [[name for name in names if name in log.columns] for names in panels]
    panels = [names for names in panels if names]
    rows = -(-len(panels) // COLUMNS)
    figure = new_figure(4.4 * COLUMNS, 2.3 * rows + 0.2)
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, names in zip(grid, panels):
        for color, name in zip(COLORS, names):
            shown = log[["epoch", name]].dropna()
            axes.plot(shown["epoch"], shown[name], "o-", color=color, markersize=3, linewidth=1.2, label=name)
        if best is not None:
            axes.axvline(best, color="#999999", linewidth=0.8, linestyle=":", label="best.ckpt")
        dress(axes, "epoch", names[0] if len(names) == 1 else "loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=7)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def reliability_diagram(curves: Sequence[Reliability], x: str, y: str) -> Figure:
    """Draw observed over predicted frequencies, with intervals where known; the diagonal is perfect calibration.

    Args:
        curves: at most eight.
        x: label of the horizontal axis.
        y: label of the vertical axis.
    """
    figure = new_figure(5.2, 4.6)
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="#999999", linewidth=0.8, label="perfect")
    for color, one in zip(COLORS, curves):
        label = f"{plain_text(one.name, 30)} (error {one.error:.3f})"
        axes.plot(one.predicted, one.observed, "o-", color=color, markersize=4, linewidth=1.2, label=label)
        axes.vlines(one.predicted, one.low, one.high, color=color, linewidth=0.8, alpha=0.6)
    dress(axes, x, y)
    axes.legend(frameon=False, fontsize=7)
    return figure


def dress(axes, x: str, y: str) -> None:
    """Label axes and remove the top and right spines.

    Args:
        axes: the axes.
        x: label of the horizontal axis.
        y: label of the vertical axis.
    """
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
