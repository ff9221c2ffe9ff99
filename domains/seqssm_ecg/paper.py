"""A page as from an electrocardiograph: millimetre grid, 25 mm/s, 10 mm/mV, calibration pulse, lead names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssm.plot.canvas import new_figure, save
from seqssm_ecg.leads import LEADS

LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "3x4": (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"), ("II",)),
    "6x2": (("I", "V1"), ("II", "V2"), ("III", "V3"), ("aVR", "V4"), ("aVL", "V5"), ("aVF", "V6")),
    "12x1": tuple((lead,) for lead in LEADS),
}
"""Rows of leads; a row of n leads shows the n-th parts of the time one after the other. 3x4 ends with the rhythm."""
SECONDS = 10.0
ROW_MM = 30.0  # at 10 mm/mV; more at a larger gain
PULSE_MM = 10.0  # space of the calibration pulse, at the left
NORMALISED_GAIN = 0.3  # R waves reach five deviations and more: a unit gets less room than a millivolt
GRID, FINE, INK, PULSE = "#e8a0a0", "#f6d5d5", "#222222", "#222222"


@dataclass
class Overlay:
    """Attribution to be drawn on a page.

    Attributes:
        title: of the bars: the class and its probability.
        values: lead -> (n,) absolute attribution over the page's time, any scale.
        shares: lead -> share of it in all leads.
    """

    title: str
    values: Mapping[str, np.ndarray]
    shares: Mapping[str, float]


def page(
    path: Path,
    values: Mapping[str, np.ndarray],
    rate_hz: float,
    title: str,
    layout: str = "3x4",
    speed: float = 25.0,
    gain: float = 10.0,
    overlay: Overlay | None = None,
) -> Path:
    """Draws the first ten seconds of a recording, one millimetre of paper a millimetre at the PNG's stated size.

    Args:
        path: the PNG to write.
        values: lead -> (n,) mV; leads that are not there stay empty, and say so.
        rate_hz: sampling rate.
        title: record and diagnoses.
        layout: a key of `LAYOUTS`.
        speed: mm/s.
        gain: mm/mV.
        overlay: attribution: colours the trace, and bars of the leads' shares at the right.

    Values that look like z-scores are labelled "normalised", drawn smaller, and get no calibration pulse.
    """
    rows = LAYOUTS[layout]
    normalised = looks_normalised(values)
    if normalised:
        gain *= NORMALISED_GAIN
    samples = len(next(iter(values.values())))
    seconds = min(SECONDS, samples / rate_hz)
    width = PULSE_MM + SECONDS * speed
    row_mm = ROW_MM * max(1.0, gain / 10)
    height = row_mm * len(rows)
    bars = 62.0 if overlay is not None else 0.0
    margin, head, foot = 5.0, 14.0, 7.0
    total = (width + 2 * margin + bars, height + head + foot)
    figure = new_figure(total[0] / 25.4, total[1] / 25.4)
    figure.set_layout_engine("none")
    box = (margin / total[0], foot / total[1], width / total[0], height / total[1])
    axes = figure.add_axes(box)
    _grid(axes, width, height)
    scale = max((float(np.max(v)) for v in overlay.values.values()), default=0.0) if overlay is not None else 0.0
    for number, leads in enumerate(rows):
        base = height - row_mm * (number + 0.5)
        span = SECONDS / len(leads)
        if not normalised:
            _pulse(axes, base, gain)
        for cell, lead in enumerate(leads):
            start, end = cell * span, min((cell + 1) * span, seconds)
            left = PULSE_MM + start * speed
            strip = " (rhythm)" if layout == "3x4" and number == len(rows) - 1 else ""
            if lead not in values:
                axes.text(left + 1, base + 9, f"{lead}: not recorded", fontsize=7, color="#888888")
                continue
            axes.text(left + 1, base + 9, lead + strip, fontsize=8, weight="bold", color=INK)
            first, last = round(start * rate_hz), round(end * rate_hz)
            if last - first < 2:
                continue
            trace = values[lead][first:last]
            x = PULSE_MM + np.arange(first, last) / rate_hz * speed
            y = base + np.clip(trace * gain, -row_mm, row_mm)
            if overlay is not None and lead in overlay.values and scale > 0:
                _coloured(axes, x, y, _at(overlay.values[lead], first, last, samples), scale)
            axes.plot(x, y, color=INK, linewidth=0.7)
            if cell:
                axes.plot((left, left), (base - 4, base + 4), color=INK, linewidth=0.6)
    shown = f", first {seconds:g} s of {samples / rate_hz:.4g} s" if samples / rate_hz > seconds + 1e-9 else ""
    figure.text(margin / total[0], 1 - 6 / total[1], title[:150], fontsize=9, weight="bold")
    amplitude = f"normalised, {gain:g} mm a unit (no millivolts)" if normalised else f"{gain:g} mm/mV"
    figure.text(margin / total[0], 2 / total[1], f"{speed:g} mm/s   {amplitude}{shown}", fontsize=8)
    if overlay is not None:
        _bars(figure, overlay, ((width + 2 * margin + 10) / total[0], box[1], (bars - 16) / total[0], box[3] * 0.92))
    return save(figure, path, dpi=150)


def looks_normalised(values: Mapping[str, np.ndarray]) -> bool:
    """Whether every lead has mean 0 and deviation 1, as no electrodes give: z-scores, not millivolts."""
    if len(values) < 2:
        return False
    return all(abs(np.nanstd(row) - 1) < 0.03 and abs(np.nanmean(row)) < 0.03 for row in values.values())


def _at(values: np.ndarray, first: int, last: int, samples: int) -> np.ndarray:
    """Attribution, at its own rate, at samples first .. last of the page."""
    place = np.linspace(0, samples - 1, len(values))
    return np.interp(np.arange(first, last), place, values)


def _grid(axes, width: float, height: float) -> None:
    """Small boxes of a millimetre, large ones of five."""
    from matplotlib.collections import LineCollection

    for step, color, thick in ((1, FINE, 0.3), (5, GRID, 0.5)):
        lines = [((x, 0), (x, height)) for x in np.arange(0, width + 0.1, step)]
        lines += [((0, y), (width, y)) for y in np.arange(0, height + 0.1, step)]
        axes.add_collection(LineCollection(lines, colors=color, linewidths=thick, zorder=0))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()


def _pulse(axes, base: float, gain: float) -> None:
    """1 mV for 0.2 s (5 mm at 25 mm/s)."""
    axes.plot((1, 2.5, 2.5, 7.5, 7.5, 9), base + gain * np.array((0, 0, 1, 1, 0, 0)), color=PULSE, linewidth=0.7)


def _coloured(axes, x: np.ndarray, y: np.ndarray, weight: np.ndarray, scale: float) -> None:
    """A broad line behind the trace, the stronger the more the stretch counted."""
    from matplotlib.collections import LineCollection

    points = np.stack([x, y], axis=1)
    colors = np.zeros((len(x) - 1, 4))
    colors[:, :3] = (0.20, 0.45, 0.95)
    colors[:, 3] = np.clip(weight[:-1] / scale, 0, 1) ** 0.7 * 0.85
    segments = np.stack([points[:-1], points[1:]], axis=1)
    axes.add_collection(LineCollection(segments, colors=colors, linewidths=4.0, zorder=1, capstyle="round"))


def _bars(figure, overlay: Overlay, box: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(box)
    leads = list(overlay.shares)[::-1]
    axes.barh(range(len(leads)), [overlay.shares[lead] for lead in leads], color="#5a85e6")
    axes.set_yticks(range(len(leads)), leads, fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{overlay.title}\nshare of |attribution|", fontsize=8, loc="left")
