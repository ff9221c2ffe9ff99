"""ECG pages in the layout of an electrocardiograph: millimetre grid, 25 mm/s, 10 mm/mV, calibration pulse, lead names.

The height of a row follows its traces. If that exceeds the maximum, the gain of the whole page is halved, which the
page states. A trace that still does not fit is clipped; clipping is marked by triangles and stated in the footer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seqssm.plot.canvas import new_figure, save
from seqssm_ecg.leads import LEADS
from seqssm_ecg.quality import FLAT_MV

LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "3x4": (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"), ("II",)),
    "6x2": (("I", "V1"), ("II", "V2"), ("III", "V3"), ("aVR", "V4"), ("aVL", "V5"), ("aVF", "V6")),
    "12x1": tuple((lead,) for lead in LEADS),
}
"""Rows of leads; each lead of a row of n leads shows 1/n of the time. 3x4 ends with a rhythm strip. In recordings that
end before the last column, all columns start at the first sample."""
SECONDS = 10.0
PULSE_MM = 10.0  # width of the calibration pulse at the left
LABEL_MM = 5.0  # height reserved for the lead names at the top of a row
MIN_ROOM_MM, CLEAR_MM = (
    12.5,
    1.5,
)  # minimum space above and below the baseline; distance of a trace to the edge of its row
MAX_HEIGHT_MM = 60.0  # maximum height of a row's traces; beyond it, the gain is halved
MARGIN_MM, HEAD_MM, FOOT_MM, BARS_MM = 5.0, 16.0, 8.0, 62.0
OFFSET_MV = 0.5  # a lead with a larger median is centred, which the footer states
NORMALISED_GAIN = 0.3  # R waves exceed five standard deviations, so a unit gets less space than a millivolt
GRID, FINE, INK, MARK = "#e8a0a0", "#f6d5d5", "#222222", "#c2371a"


@dataclass
class Overlay:
    """Attribution drawn on a page.

    Attributes:
        title: title of the bar chart: the class and its probability.
        values: absolute attribution by lead over the page's time, (n,) each, any scale.
        fractions: fraction of the total attribution by lead.
    """

    title: str
    values: Mapping[str, np.ndarray]
    fractions: Mapping[str, float]


@dataclass
class Page:
    """Content of a page.

    Attributes:
        values: samples by lead, (n,) each, mV; missing leads stay empty and are labelled as not recorded.
        rate_hz: sampling rate.
        title: title line: record and diagnoses.
        details: second line: age, sex and filter, as far as known.
        layout: layout, a key of `LAYOUTS`.
        speed: paper speed, mm/s.
        gain: gain, mm/mV.
        seconds: duration of the whole recording; by default that of `values`.
        normalised: whether the values are z-scores instead of millivolts.
        overlay: attribution, drawn in colour behind the traces and as bars per lead at the right.
        measurements: heart rate and intervals, at the right of the second line.
    """

    values: Mapping[str, np.ndarray]
    rate_hz: float
    title: str
    details: str = ""
    layout: str = "3x4"
    speed: float = 25.0
    gain: float = 10.0
    seconds: float | None = None
    normalised: bool = False
    overlay: Overlay | None = None
    measurements: str = ""


@dataclass
class _Plan:
    """Geometry of a page, millimetres.

    Attributes:
        gain: gain after halving, mm/mV.
        rows: (baseline, height above it, depth below it) of each row of leads.
        height: height of the grid.
        offsets: subtracted offset by lead, mV.
        remarks: remarks for the footer.
    """

    gain: float
    rows: list[tuple[float, float, float]]
    height: float
    offsets: dict[str, float]
    remarks: list[str] = field(default_factory=list)


def draw_page(path: Path, page: Page) -> Path:
    """Draw the first ten seconds of a recording, to scale at the PNG's stated resolution.

    Args:
        path: path of the PNG.
        page: content of the page.
    """
    plan = _plan(page)
    width = PULSE_MM + SECONDS * page.speed
    bars = BARS_MM if page.overlay is not None else 0.0
    total = (width + 2 * MARGIN_MM + bars, plan.height + HEAD_MM + FOOT_MM)
    figure = new_figure(total[0] / 25.4, total[1] / 25.4)
    figure.set_layout_engine("none")
    box = (MARGIN_MM / total[0], FOOT_MM / total[1], width / total[0], plan.height / total[1])
    axes = figure.add_axes(box)
    _grid(axes, width, plan.height)
    for number, (leads, row) in enumerate(zip(LAYOUTS[page.layout], plan.rows)):
        if not page.normalised:
            _pulse(axes, row[0], plan.gain)
        for cell, lead in enumerate(leads):
            strip = page.layout == "3x4" and number == len(plan.rows) - 1
            _cell(axes, page, plan, row, lead, (cell, len(leads)), " (rhythm)" if strip else "")
    text = {"parse_math": False}
    left = MARGIN_MM / total[0]
    figure.text(left, 1 - 6.5 / total[1], page.title, fontsize=9, weight="bold", **text)
    figure.text(left, 1 - 12.5 / total[1], _details(page), fontsize=8, **text)
    figure.text(left, 2.5 / total[1], _footer(page, plan), fontsize=8, **text)
    if page.measurements:
        right = (MARGIN_MM + width) / total[0]
        figure.text(right, 1 - 12.5 / total[1], page.measurements, fontsize=8, ha="right", **text)
    if page.overlay is not None:
        place = (width + 2 * MARGIN_MM + 10) / total[0], box[1], (bars - 16) / total[0], box[3] * 0.92
        _bars(figure, page.overlay, place)
    return save(figure, path, dpi=150)


def looks_normalised(values: Mapping[str, np.ndarray]) -> bool:
    """Return whether the values look like z-scores: most usable leads have mean 0 and standard deviation 1.

    Flat leads and leads without samples are ignored.

    Args:
        values: samples of the whole recording by lead, (n,) each.
    """
    usable = [row[~np.isnan(row)] for row in values.values()]
    usable = [row for row in usable if len(row) > 1 and np.ptp(row) > FLAT_MV]
    alike = [abs(np.std(row) - 1) < 0.03 and abs(np.mean(row)) < 0.03 for row in usable]
    return len(usable) > 1 and 2 * sum(alike) > len(alike)


def _plan(page: Page) -> _Plan:
    """Compute gain and rows from the traces to be drawn."""
    offsets = {}
    for lead, row in page.values.items():
        shown = row[: round(SECONDS * page.rate_hz)]
        middle = float(np.nanmedian(shown)) if np.isfinite(shown).any() else 0.0
        offsets[lead] = middle if abs(middle) > OFFSET_MV and not page.normalised else 0.0
    gain = page.gain * (NORMALISED_GAIN if page.normalised else 1.0)
    remarks = [f"offset of {value:.3g} mV removed: {lead}" for lead, value in offsets.items() if value]
    if any(_is_short(page, len(leads)) for leads in LAYOUTS[page.layout]):
        remarks.insert(0, "all columns start at 0 s")
    extents = [_extent(page, leads, offsets) for leads in LAYOUTS[page.layout]]
    tallest = max(up + down for up, down in extents)
    if tallest * gain > MAX_HEIGHT_MM:
        gain /= 2
    rows, top = [], 0.0
    for up, down in extents:
        room = [max(MIN_ROOM_MM, min(side * gain + CLEAR_MM, MAX_HEIGHT_MM - MIN_ROOM_MM)) for side in (up, down)]
        rows.append((top + LABEL_MM + room[0], *room))
        top += LABEL_MM + sum(room)
    plan = _Plan(gain, [(top - base, up, down) for base, up, down in rows], top, offsets, remarks)
    if gain != page.gain * (NORMALISED_GAIN if page.normalised else 1.0):
        plan.remarks.insert(0, "half gain, for large complexes")
    return plan


def _extent(page: Page, leads: tuple[str, ...], offsets: Mapping[str, float]) -> tuple[float, float]:
    """Return the maximum extent of a row's traces above and below its baseline, mV."""
    up = down = 0.0
    for cell, lead in enumerate(leads):
        _, trace = _part(page, lead, (cell, len(leads)), offsets)
        if len(trace) and np.isfinite(trace).any():
            up, down = max(up, float(np.nanmax(trace))), max(down, -float(np.nanmin(trace)))
    return up, down


def _part(
    page: Page, lead: str, cell: tuple[int, int], offsets: Mapping[str, float]
) -> tuple[tuple[int, int], np.ndarray]:
    """Return (first sample, last sample, samples in mV) that a cell, (index, cells in its row), shows of a lead."""
    if lead not in page.values:
        return (0, 0), np.empty(0)
    span = SECONDS / cell[1]
    row = page.values[lead]
    column = 0 if _is_short(page, cell[1]) else cell[0]
    first, last = (min(len(row), round((column + k) * span * page.rate_hz)) for k in (0, 1))
    return (first, last), row[first:last].astype(np.float64) - offsets[lead]


def _is_short(page: Page, columns: int) -> bool:
    """Whether a recording ends before the last column begins, so that all columns start at its first sample."""
    samples = max((len(row) for row in page.values.values()), default=0)
    return samples / page.rate_hz <= (columns - 1) * SECONDS / columns


def _cell(axes, page: Page, plan: _Plan, row: tuple[float, float, float], lead: str, cell, more: str) -> None:
    """Draw lead name and trace of a cell."""
    base, up, down = row
    left = PULSE_MM + cell[0] * SECONDS / cell[1] * page.speed
    label = base + up + 1.2
    if lead not in page.values:
        axes.text(left + 1, label, f"{lead}: not recorded", fontsize=7, color="#888888")
        return
    axes.text(left + 1, label, lead + more, fontsize=8, weight="bold", color=INK)
    (first, last), trace = _part(page, lead, cell, plan.offsets)
    if cell[0]:
        axes.plot((left, left), (base - 4, base + 4), color=INK, linewidth=0.6)
    if last - first < 2:
        return
    x = left + np.arange(last - first) / page.rate_hz * page.speed
    y = trace * plan.gain
    above, below = y > up + 1e-6, y < -down - 1e-6
    if above.any() or below.any():
        _mark(axes, x[above], base + up, "^")
        _mark(axes, x[below], base - down, "v")
        reach = float(np.nanmax(np.abs(trace)))
        plan.remarks.append(f"{lead} is clipped at the triangles; its maximum is {reach:.3g} mV")
    y = base + np.clip(y, -down, up)
    overlay = page.overlay
    if overlay is not None and lead in overlay.values:
        scale = max(float(np.max(v)) for v in overlay.values.values())
        if scale > 0:
            _coloured(axes, x, y, _at(overlay.values[lead], first, last, len(page.values[lead])), scale)
    axes.plot(x, y, color=INK, linewidth=0.7)


def _details(page: Page) -> str:
    return "   ".join(part for part in (f"{page.rate_hz:g} Hz", page.details) if part)


def _footer(page: Page, plan: _Plan) -> str:
    """Return the footer: speed, gain, displayed time, and remarks."""
    samples = len(next(iter(page.values.values())))
    total = samples / page.rate_hz if page.seconds is None else page.seconds
    amplitude = f"{plan.gain:g} mm/mV"
    if page.normalised:
        amplitude = f"normalised, {plan.gain:g} mm per unit (not millivolts)"
    shown = f"first {SECONDS:g} s of {total:.4g} s" if total > SECONDS + 1e-9 else ""
    remarks = plan.remarks[:3] + ([f"{len(plan.remarks) - 3} more remarks"] if len(plan.remarks) > 3 else [])
    return "   ".join(part for part in (f"{page.speed:g} mm/s", amplitude, shown, *remarks) if part)


def _at(values: np.ndarray, first: int, last: int, samples: int) -> np.ndarray:
    """Resample the attribution, given at its own rate, to samples first .. last of the page."""
    place = np.linspace(0, samples - 1, len(values))
    return np.interp(np.arange(first, last), place, values)


def _grid(axes, width: float, height: float) -> None:
    """Draw the grid, with lines every millimetre and thicker lines every five."""
    from matplotlib.collections import LineCollection

    for step, color, thick in ((1, FINE, 0.3), (5, GRID, 0.5)):
        lines = [((x, 0), (x, height)) for x in np.arange(0, width + 0.1, step)]
        lines += [((0, y), (width, y)) for y in np.arange(0, height + 0.1, step)]
        axes.add_collection(LineCollection(lines, colors=color, linewidths=thick, zorder=0))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()


def _pulse(axes, base: float, gain: float) -> None:
    """Draw a pulse of 1 mV and 0.2 s (5 mm at 25 mm/s)."""
    axes.plot((1, 2.5, 2.5, 7.5, 7.5, 9), base + gain * np.array((0, 0, 1, 1, 0, 0)), color=INK, linewidth=0.7)


def _mark(axes, places: np.ndarray, height: float, marker: str) -> None:
    """Draw triangles where a trace is clipped, at most one per 2 mm."""
    kept: list[float] = []
    for place in places:
        if not kept or place - kept[-1] > 2:
            kept.append(float(place))
    axes.plot(kept, [height] * len(kept), marker, color=MARK, markersize=4, zorder=3)


def _coloured(axes, x: np.ndarray, y: np.ndarray, weight: np.ndarray, scale: float) -> None:
    """Draw a broad line behind the trace, whose opacity is the attribution."""
    from matplotlib.collections import LineCollection

    points = np.stack([x, y], axis=1)
    colors = np.zeros((len(x) - 1, 4))
    colors[:, :3] = (0.20, 0.45, 0.95)
    colors[:, 3] = np.clip(weight[:-1] / scale, 0, 1) ** 0.7 * 0.85
    segments = np.stack([points[:-1], points[1:]], axis=1)
    axes.add_collection(LineCollection(segments, colors=colors, linewidths=4.0, zorder=1, capstyle="round"))


def _bars(figure, overlay: Overlay, box: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(box)
    leads = list(overlay.fractions)[::-1]
    axes.barh(range(len(leads)), [overlay.fractions[lead] for lead in leads], color="#5a85e6")
    axes.set_yticks(range(len(leads)), leads, fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{overlay.title}\nfraction of |attribution|", fontsize=8, loc="left", parse_math=False)
