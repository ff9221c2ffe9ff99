"""Figures: history, actual values, forecast and intervals, per variate and as overview; error by step; residuals."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import numpy as np

from seqssm.plot.canvas import new_axes, new_figure, plain_text, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, ACCENT, MUTED = "#3b4252", "#c2571a", ["#4c78a8", "#7a9e5b", "#9a7bb0", "#b0a070"]
MOST_PANELS = 24  # maximum number of variates in an overview


@dataclass
class Panel:
    """Data of one variate for a figure.

    Attributes:
        name: name in the file; also the axis label, since units are unknown.
        past_when: dates or row numbers of the history.
        past: values of the history; NaN if missing.
        when: dates or row numbers of the forecast.
        ahead: values of the forecast.
        intervals: prediction intervals as (level in percent, low, high).
        actual: actual values, or None if unknown.
    """

    name: str
    past_when: np.ndarray
    past: np.ndarray
    when: np.ndarray
    ahead: np.ndarray
    intervals: list[tuple[float, np.ndarray, np.ndarray]] = field(default_factory=list)
    actual: np.ndarray | None = None


@dataclass(frozen=True)
class TimeAxis:
    """The time axis of a figure.

    Attributes:
        dated: whether positions are dates.
        label: label of the axis.
        zone: time zone of the tick labels if positions are in UTC, which keeps a repeated hour apart; None labels
            positions unconverted.
    """

    dated: bool
    label: str
    zone: str | None = None


def forecast_figure(path: Path, panel: Panel, title: str, axis: TimeAxis) -> Path:
    """Draw the end of a variate's history, its forecast with intervals and, if known, the actual values.

    Args:
        path: path of the PNG.
        panel: the variate.
        title: title of the figure.
        axis: kind and label of the time axis.
    """
    figure, axes = _axes(9.0, 3.6)
    _draw(axes, panel)
    axes.set_ylabel(plain_text(panel.name, 40))
    axes.set_xlabel(axis.label)
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9, ncols=6, loc="upper left", bbox_to_anchor=(0, 1.0))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))  # room for the legend
    if axis.dated:
        _date_axis(axes, panel.past_when, panel.when, axis.zone)
    return save(figure, path)


def overview(path: Path, panels: list[Panel], title: str, axis: TimeAxis) -> Path:
    """Draw up to `MOST_PANELS` variates on one page with a common time axis.

    Args:
        path: path of the PNG.
        panels: the variates; the title reports their number if not all are shown.
        title: title of the page.
        axis: kind and label of the time axis.
    """
    shown = panels[:MOST_PANELS]
    columns = 2 if len(shown) == 4 else min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(4.2 * columns, 2.0 * rows + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes, panel in zip(grid.flat, shown):
        _plain(axes)
        _draw(axes, panel)
        axes.set_title(plain_text(panel.name, 45), fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
    first = np.min([panel.past_when[0] for panel in shown]), np.max([panel.when[-1] for panel in shown])
    if axis.dated:
        _date_axis(grid.flat[0], np.array([first[0]]), np.array([first[1]]), axis.zone, few=True)  # the axis is shared
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    for column in range(columns):  # the lowest panel of each column has the dates
        last = max(range(column, len(shown), columns))
        grid.flat[last].tick_params(labelbottom=True)
        grid.flat[last].set_xlabel(axis.label, fontsize=8)
    more = f" (the first {len(shown)} of {len(panels)} series)" if len(shown) < len(panels) else ""
    figure.suptitle(f"{title}{more}", fontsize=11, x=0.01, ha="left")
    lines, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="upper right", frameon=False, fontsize=9, ncols=6)
    return save(figure, path)


def _draw(axes: Axes, panel: Panel) -> None:
    axes.plot(panel.past_when, panel.past, color=INK, linewidth=1.2, label="history")
    levels = sorted(panel.intervals, key=lambda interval: -interval[0])
    for index, (level, low, high) in enumerate(levels):
        shade = 0.18 + 0.14 * index / max(1, len(levels) - 1)
        axes.fill_between(panel.when, low, high, color=ACCENT, alpha=shade, linewidth=0, label=f"{level:g} % interval")
    if panel.actual is not None:
        axes.plot(panel.when, panel.actual, color=INK, linewidth=1.6, linestyle=":", label="actual")
    # connected to the last observed value
    line = (np.append(panel.past_when[-1:], panel.when), np.append(panel.past[-1:], panel.ahead))
    axes.plot(line[0], line[1], color=ACCENT, linewidth=1.6, label="forecast")
    axes.axvline(panel.past_when[-1], color=INK, linewidth=0.6, alpha=0.5)


def error_by_step(errors: dict[str, np.ndarray], path: Path) -> Path:
    """Draw the mean squared error (scaled) by step ahead, one line per model; the first is the trained model."""
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
    return save(figure, path)


def residuals(path: Path, bias: np.ndarray, first: np.ndarray, lags: int = 48) -> Path:
    """Draw residual diagnostics: mean error by step, distribution and autocorrelation of one-step errors.

    Args:
        path: path of the PNG.
        bias: mean error (forecast - actual) by step ahead, (T,), scaled.
        first: one-step-ahead errors of consecutive windows, (windows, N), scaled; NaN if the actual value is missing.
        lags: number of lags of the autocorrelation.
    """
    figure = new_figure(11.0, 3.4)
    left, middle, right = figure.subplots(1, 3)
    for axes in (left, middle, right):
        _plain(axes)
    left.plot(np.arange(1, len(bias) + 1), bias, color=ACCENT, linewidth=1.6, marker="o" if len(bias) < 2 else None)
    left.axhline(0, color=INK, linewidth=0.6)
    largest = max(0.05, 1.2 * float(np.nanmax(np.abs(bias))))
    left.set_ylim(-largest, largest)
    left.set_title("mean error by step ahead (scaled)", fontsize=9, loc="left")
    left.set_xlabel("steps ahead")
    flat = first[np.isfinite(first)]
    edge = float(np.quantile(np.abs(flat), 0.995)) if len(flat) else 1.0
    middle.hist(flat, bins=60, range=(-edge or -1, edge or 1), color=MUTED[0])
    middle.axvline(0, color=INK, linewidth=0.6)
    middle.set_title("errors one step ahead (scaled)", fontsize=9, loc="left")
    middle.set_xlabel("forecast - actual")
    lags = min(lags, max(1, len(first) // 4))
    memory = autocorrelation(first, lags)
    right.bar(np.arange(1, lags + 1), memory, color=MUTED[0], width=0.8)
    if len(first):
        for side in (-1, 1):  # 95 % limits of white noise
            right.axhline(side * 1.96 / np.sqrt(len(first)), color=INK, linewidth=0.8, linestyle="--")
    right.axhline(0, color=INK, linewidth=0.6)
    right.set_title("their autocorrelation, mean over series", fontsize=9, loc="left")
    right.set_xlabel("lag, steps (dashed: 95 % of white noise)")
    return save(figure, path)


def autocorrelation(values: np.ndarray, lags: int) -> np.ndarray:
    """Return the (lags,) autocorrelation at 1, 2, ... of ``values (rows, N)``, averaged over columns."""
    values = values[:, np.isfinite(values).any(0)]  # no errors after the end of a series
    centred = np.nan_to_num(values - np.nanmean(values, axis=0)) if values.size else values
    power = (centred**2).sum(0)
    alive = power > 0
    if not alive.any():
        return np.zeros(lags)
    return np.array(
        [float(((centred[lag:] * centred[:-lag]).sum(0)[alive] / power[alive]).mean()) for lag in range(1, lags + 1)]
    )


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = new_axes(width, height)
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)


def _date_axis(axes: Axes, first: np.ndarray, last: np.ndarray, zone: str | None, few: bool = False) -> None:
    """Set ticks whose labels show day, month and year where they change.

    Args:
        axes: axes with dates.
        first: dates, the first of which is the start of the axis.
        last: dates, the last of which is the end of the axis.
        zone: time zone of the labels, for dates in UTC.
        few: whether the panel is narrow.
    """
    from matplotlib import dates as ticks

    clock = None if zone is None else ZoneInfo(zone)
    locator = ticks.AutoDateLocator(tz=clock, minticks=3, maxticks=5 if few else 10)
    formats = ["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%S.%f"]
    zeros = ["", "%Y", "%d %b", "%d %b", "%H:%M", "%H:%M"]
    offsets = ["", "", "%Y", "%d %b %Y", "%d %b %Y", "%d %b %Y %H:%M"]
    formatter = ticks.ConciseDateFormatter(locator, clock, formats, offsets, zeros)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.get_offset_text().set_fontsize(8)
    axes.set_xlim(first[0], last[-1])
