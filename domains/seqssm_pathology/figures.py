"""Figures: attention over a slide, ranked scores, survival curve of a case, risk groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seqssm.plot import canvas
from seqssm_pathology import survival

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GROUPS = "#3b4252", ("#4c78a8", "#c2571a")
COLOURS = "coolwarm"
CANVAS = 1500  # longest side of a heat map, pixels
OPACITY = 0.45  # opacity over a thumbnail
EVIDENCE = "evidence (integrated gradients)"
SIGNED = "evidence, relative to the largest (0.5 = none, 1 = for, 0 = against)"
COVERED = 0.05  # minimum covered fraction of the patches' bounding box; below it, a remark is added


def percentiles(scores: np.ndarray) -> np.ndarray:
    """Compute the rank of each score in its bag, from 0 (lowest) to 1; ties get their mean rank."""
    if len(scores) == 1:
        return np.ones(1)
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return middle[inverse] / (len(scores) - 1)


def signed(values: np.ndarray) -> np.ndarray:
    """Map signed values to 0 .. 1, with 0.5 for no evidence and the largest magnitude at 0 or 1."""
    largest = float(np.abs(values).max())
    return 0.5 + values / (2 * largest) if largest > 0 else np.full(len(values), 0.5)


@dataclass(frozen=True)
class Background:
    """Canvas of a heat map.

    Attributes:
        side: side of a patch, level-0 pixels.
        thumbnail: RGB image of the whole slide, or None for a plain canvas.
        extent: (width, height) of the slide, level-0 pixels; by default the extent of the patches.
        mpp: micrometres per level-0 pixel; None for axes in level-0 pixels.
    """

    side: int
    thumbnail: np.ndarray | None = None
    extent: tuple[float, float] | None = None
    mpp: float | None = None


def heat_map(
    path: Path,
    coords: np.ndarray,
    values: np.ndarray,
    background: Background,
    title: str,
    label: str = "rank of the score in the slide (1 = highest)",
) -> Path:
    """Draw values at their patches, averaged where patches overlap.

    Args:
        path: the PNG to write.
        coords: top left corners of the patches, (N, 2), level-0 pixels.
        values: values to draw, (N,), 0 to 1.
        background: canvas of the map.
        title: title of the figure.
        label: label of the colour bar.
    """
    origin, (width, height) = np.zeros(2, dtype=np.int64), background.extent or (0, 0)
    if background.extent is None:
        origin = coords.min(0)
        width, height = (int(v) for v in coords.max(0) + background.side - origin)
    shown = _painted(coords - origin, values, background.side, width, height)
    size, ratio = 6.0, width / max(height, 1)
    figure, axes = canvas.new_axes(size * min(2.0, ratio) + 1.6, size * min(1.0, 2.0 / ratio) + 0.8)
    unit, scale = ("level-0 pixels", 1.0) if background.mpp is None else ("\u00b5m", background.mpp)
    left, top = origin * scale
    where = (left, left + width * scale, top + height * scale, top)
    if background.thumbnail is not None:
        axes.imshow(background.thumbnail, extent=where, aspect="equal")
    image = axes.imshow(
        shown, extent=where, cmap=COLOURS, vmin=0, vmax=1, interpolation="nearest", aspect="equal",
        alpha=1.0 if background.thumbnail is None else OPACITY,
    )  # fmt: skip
    axes.set_xlabel(f"x, {unit}")
    axes.set_ylabel(f"y, {unit}")
    canvas.set_title(axes, title)
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label(label, fontsize=9)
    return canvas.save(figure, path)


def sheet(path: Path, images: list[np.ndarray], captions: list[str], title: str, columns: int = 5) -> Path:
    """Draw images in rows, each with its caption.

    Args:
        path: the PNG to write.
        images: RGB images, (H, W, 3) uint8.
        captions: text above each image.
        title: title of the figure.
        columns: images per row.
    """
    rows = -(-len(images) // columns)
    figure = canvas.new_figure(1.7 * columns, 1.9 * rows + 0.6)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.set_axis_off()
        if place < len(images):
            axes.imshow(images[place])
            axes.set_title(captions[place], fontsize=8)
    figure.suptitle(title.replace("$", r"\$"), fontsize=9, x=0.01, ha="left")
    return canvas.save(figure, path)


def _painted(coords: np.ndarray, values: np.ndarray, side: int, width: int, height: int) -> np.ndarray:
    """Rasterise values to an image of at most `CANVAS` pixels per side; NaN outside patches."""
    scale = min(1.0, CANVAS / max(width, height))
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    total, count = np.zeros((rows, columns)), np.zeros((rows, columns))
    for (x, y), value in zip(coords, values):
        left, top = int(x * scale), int(y * scale)
        right, bottom = max(left + 1, round((x + side) * scale)), max(top + 1, round((y + side) * scale))
        total[top:bottom, left:right] += value
        count[top:bottom, left:right] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def ranked(
    path: Path,
    scores: np.ndarray,
    attention: np.ndarray,
    title: str,
    what: str = "patches",
    axis: str = "score before softmax",
) -> Path:
    """Draw the scores in descending order, and the cumulative attention.

    Args:
        path: the PNG to write.
        scores: scores or evidence, (N,).
        attention: attention, (N,).
        title: title of the figure.
        what: what an instance is called, in the plural.
        axis: label of the axis of the scores.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = canvas.new_axes(7.0, 3.4)
    order = np.argsort(-scores, kind="stable")
    rank = np.arange(1, len(scores) + 1)
    marker = "." if len(rank) < 50 else ""
    axes.plot(rank, scores[order], color=INK, linewidth=1.4, marker=marker)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"{what}, highest score first")
    axes.set_ylabel(axis)
    canvas.set_title(axes, title)
    other = axes.twinx()
    other.plot(rank, np.cumsum(attention[order]), color=GROUPS[1], linewidth=1.2, linestyle="--", marker=marker)
    other.set_ylabel(f"cumulative attention of the first {what}", color=GROUPS[1])
    other.set_ylim(0, 1.05)
    other.spines["top"].set_visible(False)
    return canvas.save(figure, path)


def survival_curve(path: Path, edges: list[float], curve: np.ndarray, unit: str, title: str) -> Path:
    """Draw the survival curve of a case, linear between the ends of the bins, which are marked.

    Args:
        path: the PNG to write.
        edges: edges of the bins, K + 1 values.
        curve: survival at the ends of the bins, (K,).
        unit: name of the time axis.
        title: title of the figure.
    """
    figure, axes = canvas.new_axes(6.0, 3.4)
    times = np.concatenate([[0.0], edges[1:]])
    axes.plot(times, np.concatenate([[1.0], curve]), color=INK, linewidth=1.6)
    axes.plot(edges[1:], curve, "o", color=INK, markersize=4)
    axes.set_xlim(0, 1.04 * edges[-1])
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(unit)
    axes.set_ylabel("fraction without event")
    canvas.set_title(axes, title)
    return canvas.save(figure, path)


def risk_groups(path: Path, time: np.ndarray, censored: np.ndarray, risk: np.ndarray, unit: str) -> Path:
    """Draw Kaplan-Meier curves of the two halves by predicted risk.

    The figure has 95 % confidence bands, censored cases as ticks, numbers at risk, and the p of a log-rank test.

    Args:
        path: the PNG to write.
        time: event or censoring times, (n,).
        censored: censoring flags, (n,): 1 censored, 0 event.
        risk: risk scores, (n,); higher is worse.
        unit: name of the time axis.
    """
    figure = canvas.new_figure(6.4, 4.8)
    axes, table = figure.subplots(2, height_ratios=(6, 1))
    axes.spines[["top", "right"]].set_visible(False)
    groups = [(name, group, colour) for (name, group), colour in zip(survival.halves(risk).items(), GROUPS)]
    for name, group, colour in groups:
        curve = survival.kaplan_meier(time[group], censored[group])
        median = curve.median()[0]
        reached = f"{median:.3g}" if np.isfinite(median) else "not reached"
        label = f"{name} (n = {group.sum()}, {int((censored[group] == 0).sum())} events, median {reached})"
        axes.step(curve.times, curve.survival, where="post", color=colour, linewidth=1.6, label=label)
        axes.fill_between(curve.times, curve.low, curve.high, step="post", color=colour, alpha=0.15, linewidth=0)
        ends = np.sort(time[group & (censored == 1)])
        axes.plot(ends, curve.at(ends), "|", color=colour, markersize=6)
    axes.set_xlim(0, 1.02 * time.max())
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(unit)
    axes.set_ylabel("fraction without event")
    p = survival.log_rank(time, censored, groups[0][1])
    how = "log-rank p not defined" if np.isnan(p) else f"log-rank p = {p:.2g}"
    canvas.set_title(axes, f"test cases split at the median predicted risk\n{how}; bands: 95 % confidence")
    axes.legend(frameon=False, fontsize=9)
    _numbers_at_risk(axes, table, time, groups)
    return canvas.save(figure, path)


def _numbers_at_risk(axes: Axes, table: Axes, time: np.ndarray, groups: list[tuple[str, np.ndarray, str]]) -> None:
    """Draw the numbers at risk at each tick of `axes`, one row per group, in the axes `table`."""
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(ticks)
    table.set(xlim=axes.get_xlim(), ylim=(len(groups) - 0.4, -1.4), xticks=[], yticks=[])
    table.spines[:].set_visible(False)
    table.text(0, -0.9, "number at risk", color=INK, fontsize=8, va="center")
    for row, (_, group, colour) in enumerate(groups):
        for tick, count in zip(ticks, survival.at_risk(time[group], np.array(ticks))):
            table.text(tick, row, str(count), color=colour, fontsize=8, ha="center", va="center")
