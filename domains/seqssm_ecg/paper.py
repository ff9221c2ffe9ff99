"""A page as an electrocardiograph prints it: millimetre grid, 25 mm/s, 10 mm/mV, calibration pulse, lead names.

Nothing is cut without a mark: rows are as high as their traces need; where that is too high, the whole page gets half
the gain, which it states; what still does not fit is cut at marked places, and the footer says so.
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
"""Rows of leads; a row of n leads shows the n-th part of the time each. 3x4 ends with a rhythm strip."""
SECONDS = 10.0
PULSE_MM = 10.0  # space of the calibration pulse, at the left
LABEL_MM = 5.0  # band at the top of a row for the lead names, which no trace enters
LEAST_MM, CLEAR_MM = 12.5, 1.5  # room above and below the base line; distance of a trace to the edge of its row
MOST_MM = 60.0  # height of a row's traces; beyond, half the gain
MARGIN_MM, HEAD_MM, FOOT_MM, BARS_MM = 5.0, 16.0, 8.0, 62.0
OFFSET_MV = 0.5  # a lead with a larger median is drawn around it, which the footer says
NORMALISED_GAIN = 0.3  # R waves reach five standard deviations and more: a unit gets less room than a millivolt
GRID, FINE, INK, MARK = "#e8a0a0", "#f6d5d5", "#222222", "#c2371a"


@dataclass
class Overlay:
    """Attribution to be drawn on a page.

    Attributes:
        title: title of the bars: the class and its probability.
        values: lead -> (n,) absolute attribution over the page's time, any scale.
        fractions: lead -> fraction of the attribution of all leads.
    """

    title: str
    values: Mapping[str, np.ndarray]
    fractions: Mapping[str, float]


@dataclass
class Page:
    """What a page shows.

    Attributes:
        values: lead -> (n,) mV from the first sample; absent leads stay empty and are labelled so.
        rate_hz: sampling rate.
        title: record and diagnoses.
        details: second line: age, sex, filter, where known.
        layout: a key of `LAYOUTS`.
        speed: mm/s.
        gain: mm/mV.
        seconds: length of the whole recording; that of `values` when not given.
        normalised: whether the values are z-scores, not millivolts.
        overlay: attribution: coloured behind the traces, and bars by lead at the right.
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


@dataclass
class _Plan:
    """Where everything is, in millimetres.

    Attributes:
        gain: mm/mV, after halving.
        rows: per row of leads (base line, height of the top above it, depth below it).
        height: of the grid.
        offsets: lead -> mV that is subtracted.
        remarks: what the footer must say.
    """

    gain: float
    rows: list[tuple[float, float, float]]
    height: float
    offsets: dict[str, float]
    remarks: list[str] = field(default_factory=list)


def draw_page(path: Path, page: Page) -> Path:
    """Draw the first ten seconds of a recording; a millimetre of paper is one at the PNG's stated size.

    Args:
        path: the PNG to write.
        page: what it shows.
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
    if page.overlay is not None:
        place = (width + 2 * MARGIN_MM + 10) / total[0], box[1], (bars - 16) / total[0], box[3] * 0.92
        _bars(figure, page.overlay, place)
    return save(figure, path, dpi=150)


def looks_normalised(values: Mapping[str, np.ndarray]) -> bool:
    """Whether the values are z-scores and not millivolts: most usable leads have mean 0 and standard deviation 1.

    Flat leads, and those without samples, do not count.

    Args:
        values: lead -> (n,), the whole recording.
    """
    usable = [row[~np.isnan(row)] for row in values.values()]
    usable = [row for row in usable if len(row) > 1 and np.ptp(row) > FLAT_MV]
    alike = [abs(np.std(row) - 1) < 0.03 and abs(np.mean(row)) < 0.03 for row in usable]
    return len(usable) > 1 and 2 * sum(alike) > len(alike)


def _plan(page: Page) -> _Plan:
    """Gain and rows, from the traces that will be drawn."""
    offsets = {}
    for lead, row in page.values.items():
        shown = row[: round(SECONDS * page.rate_hz)]
        middle = float(np.nanmedian(shown)) if np.isfinite(shown).any() else 0.0
        offsets[lead] = middle if abs(middle) > OFFSET_MV and not page.normalised else 0.0
    gain = page.gain * (NORMALISED_GAIN if page.normalised else 1.0)
    remarks = [f"offset of {value:.3g} mV removed: {lead}" for lead, value in offsets.items() if value]
    extents = [_extent(page, leads, offsets) for leads in LAYOUTS[page.layout]]
    tallest = max(up + down for up, down in extents)
    if tallest * gain > MOST_MM:
        gain /= 2
    rows, top = [], 0.0
    for up, down in extents:
        room = [max(LEAST_MM, min(side * gain + CLEAR_MM, MOST_MM - LEAST_MM)) for side in (up, down)]
        rows.append((top + LABEL_MM + room[0], *room))
        top += LABEL_MM + sum(room)
    plan = _Plan(gain, [(top - base, up, down) for base, up, down in rows], top, offsets, remarks)
    if gain != page.gain * (NORMALISED_GAIN if page.normalised else 1.0):
        plan.remarks.insert(0, "half gain, for large complexes")
    return plan


def _extent(page: Page, leads: tuple[str, ...], offsets: Mapping[str, float]) -> tuple[float, float]:
    """How far the traces of a row reach above and below its base line, mV."""
    up = down = 0.0
    for cell, lead in enumerate(leads):
        _, trace = _part(page, lead, (cell, len(leads)), offsets)
        if len(trace) and np.isfinite(trace).any():
            up, down = max(up, float(np.nanmax(trace))), max(down, -float(np.nanmin(trace)))
    return up, down


def _part(
    page: Page, lead: str, cell: tuple[int, int], offsets: Mapping[str, float]
) -> tuple[tuple[int, int], np.ndarray]:
    """(first and last sample, samples in mV) that a cell (number, cells in its row) shows of a lead."""
    if lead not in page.values:
        return (0, 0), np.empty(0)
    span = SECONDS / cell[1]
    row = page.values[lead]
    first, last = (min(len(row), round((cell[0] + k) * span * page.rate_hz)) for k in (0, 1))
    return (first, last), row[first:last].astype(np.float64) - offsets[lead]


def _cell(axes, page: Page, plan: _Plan, row: tuple[float, float, float], lead: str, cell, more: str) -> None:
    """Lead name and trace of one cell."""
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
    x = PULSE_MM + np.arange(first, last) / page.rate_hz * page.speed
    y = trace * plan.gain
    above, below = y > up + 1e-6, y < -down - 1e-6
    if above.any() or below.any():
        _mark(axes, x[above], base + up, "^")
        _mark(axes, x[below], base - down, "v")
        reach = float(np.nanmax(np.abs(trace)))
        plan.remarks.append(f"{lead} is cut at the triangles, it reaches {reach:.3g} mV")
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
    """Speed, gain, the part that is shown, and every liberty that was taken."""
    samples = len(next(iter(page.values.values())))
    total = samples / page.rate_hz if page.seconds is None else page.seconds
    amplitude = f"{plan.gain:g} mm/mV"
    if page.normalised:
        amplitude = f"normalised, {plan.gain:g} mm per unit (no millivolts)"
    shown = f"first {SECONDS:g} s of {total:.4g} s" if total > SECONDS + 1e-9 else ""
    remarks = plan.remarks[:3] + ([f"{len(plan.remarks) - 3} more remarks"] if len(plan.remarks) > 3 else [])
    return "   ".join(part for part in (f"{page.speed:g} mm/s", amplitude, shown, *remarks) if part)


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
    axes.plot((1, 2.5, 2.5, 7.5, 7.5, 9), base + gain * np.array((0, 0, 1, 1, 0, 0)), color=INK, linewidth=0.7)


def _mark(axes, places: np.ndarray, height: float, marker: str) -> None:
    """Triangles where a trace is cut, at most one per 2 mm."""
    kept: list[float] = []
    for place in places:
        if not kept or place - kept[-1] > 2:
            kept.append(float(place))
    axes.plot(kept, [height] * len(kept), marker, color=MARK, markersize=4, zorder=3)


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
    leads = list(overlay.fractions)[::-1]
    axes.barh(range(len(leads)), [overlay.fractions[lead] for lead in leads], color="#5a85e6")
    axes.set_yticks(range(len(leads)), leads, fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.locator_params(axis="x", nbins=4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{overlay.title}\nfraction of |attribution|", fontsize=8, loc="left", parse_math=False)
