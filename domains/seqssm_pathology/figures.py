"""Figures: attention over a slide, ranked scores, survival curve of a case, risk groups."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqssm.files.disk import atomic
from seqssm_pathology import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GROUPS = "#3b4252", ("#4c78a8", "#c2571a")
COLOURS = "coolwarm"
CANVAS = 1500  # longest side of a heat map, pixels
OPACITY = 0.45  # over a thumbnail
LETTERS = 10  # of a title on an inch


def percentiles(scores: np.ndarray) -> np.ndarray:
    """Rank of each score in its bag, from 0 (lowest) to 1; ties share their mean rank."""
    if len(scores) == 1:
        return np.ones(1)
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return middle[inverse] / (len(scores) - 1)


def side_of(coords: np.ndarray, known: int | None) -> int:
    """Side of a patch in level-0 pixels: known, or the smallest distance between neighbours in x or y."""
    if known is not None:
        return known
    gaps = [np.diff(np.unique(coords[:, axis])) for axis in (0, 1)]
    smallest = [int(gap.min()) for gap in gaps if len(gap)]
    return min(smallest) if smallest else 256


def heat_map(
    path: Path,
    coords: np.ndarray,
    values: np.ndarray,
    side: int,
    title: str,
    thumbnail: Any = None,
    extent: tuple[int, int] | None = None,
    label: str = "rank of the score in the slide (1 = highest)",
) -> Path:
    """Draws values at their patches, means where patches overlap.

    Args:
        path: the PNG to write.
        coords: (N, 2), top left corners, level-0 pixels.
        values: (N,), 0 to 1.
        side: of a patch, level-0 pixels.
        title: what the colour says.
        thumbnail: image of the whole slide, or None for a plain canvas.
        extent: (width, height) of the slide, level-0 pixels; from the patches when not known.
        label: of the colour bar.
    """
    if extent is None:
        origin = coords.min(0)
        width, height = (int(v) for v in coords.max(0) + side - origin)
    else:
        origin, (width, height) = np.zeros(2, dtype=np.int64), extent
    scale = min(1.0, CANVAS / max(width, height))
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    total, count = np.zeros((rows, columns)), np.zeros((rows, columns))
    for (x, y), value in zip(coords - origin, values):
        left, top = int(x * scale), int(y * scale)
        right, bottom = max(left + 1, round((x + side) * scale)), max(top + 1, round((y + side) * scale))
        total[top:bottom, left:right] += value
        count[top:bottom, left:right] += 1
    shown = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    size = 6.0
    figure, axes = _axes(size * min(2.0, width / max(height, 1)) + 1.6, size + 0.5)
    where = (origin[0], origin[0] + width, origin[1] + height, origin[1])
    if thumbnail is not None:
        axes.imshow(thumbnail, extent=where, aspect="equal")
    image = axes.imshow(
        shown, extent=where, cmap=COLOURS, vmin=0, vmax=1, interpolation="nearest", aspect="equal",
        alpha=1.0 if thumbnail is None else OPACITY,
    )  # fmt: skip
    axes.set_xlabel("x, level-0 pixels")
    axes.set_ylabel("y, level-0 pixels")
    _title(axes, title)
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label(label, fontsize=9)
    return _save(figure, path)


def ranked(path: Path, scores: np.ndarray, attention: np.ndarray, title: str, what: str = "patches") -> Path:
    """Draws the scores from the highest down, and how much of the attention the first of them have together."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes(7.0, 3.4)
    order = np.argsort(-scores, kind="stable")
    rank = np.arange(1, len(scores) + 1)
    marker = "." if len(rank) < 50 else ""
    axes.plot(rank, scores[order], color=INK, linewidth=1.4, marker=marker)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"{what}, highest score first")
    axes.set_ylabel("score before softmax")
    _title(axes, title)
    other = axes.twinx()
    other.plot(rank, np.cumsum(attention[order]), color=GROUPS[1], linewidth=1.2, linestyle="--", marker=marker)
    other.set_ylabel(f"attention of the first {what} together", color=GROUPS[1])
    other.set_ylim(0, 1.05)
    other.spines["top"].set_visible(False)
    return _save(figure, path)


def survival_curve(path: Path, edges: list[float], curve: np.ndarray, unit: str, title: str) -> Path:
    """Draws the survival curve of a case: a step at the end of each bin."""
    figure, axes = _axes(6.0, 3.4)
    end = 1.04 * edges[-1]  # the last step, at the end of the last bin, is seen as well
    times = np.concatenate([[0.0], edges[1:], [end]])
    axes.step(times, np.concatenate([[1.0], curve, curve[-1:]]), where="post", color=INK, linewidth=1.6)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(unit)
    axes.set_ylabel("share without event")
    _title(axes, title)
    return _save(figure, path)


def risk_groups(path: Path, time: np.ndarray, censored: np.ndarray, risk: np.ndarray, unit: str) -> Path:
    """Draws Kaplan-Meier curves of the two halves by predicted risk, with the p of their log-rank test."""
    figure, axes = _axes(6.4, 4.0)
    high = risk > np.median(risk)
    for name, group, colour in (("lower risk", ~high, GROUPS[0]), ("higher risk", high, GROUPS[1])):
        if not group.any():
            continue
        times, share = metrics.kaplan_meier(time[group], censored[group])
        label = f"{name} (n = {group.sum()}, {int((censored[group] == 0).sum())} events)"
        axes.step(times, share, where="post", color=colour, linewidth=1.6, label=label)
        ends = np.sort(time[group & (censored == 1)])
        axes.plot(ends, share[np.searchsorted(times, ends, side="right") - 1], "|", color=colour, markersize=6)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(unit)
    axes.set_ylabel("share without event")
    p = metrics.log_rank(time, censored, high)
    title = f"test cases parted at the median of the predicted risk, log-rank p = {p:.2g}"
    _title(axes, title)
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _title(axes: Axes, title: str) -> None:
    """Sets a title above the left end, in lines no longer than the figure is wide; long ids of slides are broken."""
    width = max(20, int(axes.figure.get_figwidth() * LETTERS))
    lines = [piece for line in title.splitlines() for piece in textwrap.wrap(line, width)[:3]]
    axes.set_title("\n".join(lines), fontsize=9, loc="left")


def _save(figure: Figure, path: Path) -> Path:
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=110)
    return path
