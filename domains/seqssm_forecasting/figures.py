"""Figures: history and forecast of a variate, error by step ahead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqssm.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#3b4252", "#c2571a", ["#4c78a8", "#7a9e5b", "#9a7bb0", "#b0a070"]


def forecast_figure(
    path: Path,
    name: str,
    past: tuple[Any, np.ndarray],
    ahead: tuple[Any, np.ndarray],
    title: str,
    truth: np.ndarray | None = None,
    dated: bool = True,
) -> Path:
    """Draws the end of a variate's history and its forecast.

    Args:
        path: the PNG to write.
        name: of the variate, as in the file; units are not known, so the axis carries the name.
        past: (dates or row numbers, values) of the history.
        ahead: the same of the forecast.
        title: of the figure.
        truth: what came in the end, where it is known.
        dated: whether the axis is time.
    """
    figure, axes = _axes(9.0, 3.6)
    axes.plot(past[0], past[1], color=INK, linewidth=1.2, label="history")
    if truth is not None:
        axes.plot(ahead[0], truth, color=INK, linewidth=1.2, linestyle=":", label="what came")
    # joined to the last value seen, so that the eye sees one line
    line = (np.append(past[0][-1:], ahead[0]), np.append(past[1][-1:], ahead[1]))
    axes.plot(line[0], line[1], color=ACCENT, linewidth=1.6, label="forecast")
    axes.axvline(past[0][-1], color=INK, linewidth=0.6, alpha=0.5)
    axes.set_ylabel(name)
    axes.set_xlabel("date" if dated else "row")
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.0))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))  # room for the legend
    if dated:
        from matplotlib import dates as ticks

        locator = ticks.AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ticks.ConciseDateFormatter(locator))
    return _save(figure, path)


def error_by_step(errors: dict[str, np.ndarray], path: Path) -> Path:
    """Draws the mean squared error (scaled) by step ahead, one line a model; the first one is ours."""
    figure, axes = _axes(6.4, 3.6)
    for number, (name, values) in enumerate(errors.items()):
        own = number == 0
        color = ACCENT if own else MUTED[(number - 1) % len(MUTED)]
        mark = "o" if len(values) < 2 else None
        axes.plot(
            np.arange(1, len(values) + 1), values, color=color, linewidth=2.0 if own else 1.2, label=name, marker=mark
        )
    axes.set_xlabel("steps ahead")
    axes.set_ylabel("mean squared error (scaled)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(-0.02, 1.0))
    return _save(figure, path)


def file_name(text: str) -> str:
    """`text` as part of a file name: letters, digits, dot, dash; the rest becomes an underscore."""
    return re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).strip("_.") or "series"


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")  # no pyplot: nothing global, no window
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=130)
    return path
