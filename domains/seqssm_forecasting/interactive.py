"""A self-contained HTML page of forecasts with a selector of series, drawn by plotly (``seqssm[plots]``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.plot.viewer import write_viewer
from seqssm_forecasting.figures import Panel, TimeAxis

TEMPLATE = Path(__file__).with_name("interactive.html")


def require_plotly() -> None:
    """Raise an error if plotly is not installed.

    Raises:
        InputError: it is not.
    """
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise InputError("--html needs plotly: pip install 'seqssm[plots]'") from None


def write_page(path: Path, panels: list[Panel], title: str, axis: TimeAxis, trained: int | None = None) -> Path:
    """Write the page as one file with the script of plotly inside, about 5 MB.

    Args:
        path: the HTML file.
        panels: the series.
        title: title of the page.
        axis: kind and label of the time axis.
        trained: number of steps that the model was trained for, if the forecast is longer; else None.
    """
    from plotly.offline import get_plotlyjs

    data = {"axis": axis.label, "trained": trained, "panels": [_plain(panel, axis) for panel in panels]}
    steps = len(panels[0].when) if panels else 0
    subtitle = f"{len(panels)} series, {steps} steps ahead. Drag to zoom, double-click to reset."
    return write_viewer(path, TEMPLATE, title, subtitle, data, {"PLOTLY": get_plotlyjs()})


def _plain(panel: Panel, axis: TimeAxis) -> dict[str, Any]:
    """Convert a panel to plain Python; missing values are None."""
    return {
        "name": panel.name,
        "past_when": _positions(panel.past_when, axis),
        "past": _values(panel.past),
        "when": _positions(panel.when, axis),
        "ahead": _values(panel.ahead),
        "intervals": [
            [f"{level:g}", _values(low), _values(high)]
            for level, low, high in sorted(panel.intervals, key=lambda one: -one[0])
        ],
        "actual": None if panel.actual is None else _values(panel.actual),
    }


def _values(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _positions(when: np.ndarray, axis: TimeAxis) -> list[Any]:
    """Format dates in the zone of the axis; numbers stay."""
    if not axis.dated:
        return np.asarray(when).tolist()
    dates = pd.DatetimeIndex(when)
    if axis.zone is not None:
        dates = dates.tz_localize("UTC").tz_convert(axis.zone).tz_localize(None)
    return [date.isoformat() for date in dates]
