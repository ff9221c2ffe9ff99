"""Figures of a prediction: one per variate, and an overview."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from seqssm.plot.canvas import file_name, plain_text
from seqssm_forecasting import figures, interactive
from seqssm_forecasting.history import History
from seqssm_forecasting.series import numbers_of


def draw(
    name: str,
    index: int,
    own: History,
    most: int,
    levels: list[float],
    folder: Path,
    html: bool = False,
    trained: int | None = None,
) -> list[Path]:
    """Draw the last window of a record.

    Args:
        name: name of the record.
        index: index of the record.
        own: the predicted record, with `drawn` set.
        most: number of rows of history to show.
        levels: coverage levels of the prediction intervals, percent, in the order of the values.
        folder: folder of the files.
        html: whether to write the page with all series too.
        trained: number of steps that the model was trained for, if the forecast is longer; else None.
    """
    values, rows, actual = own.drawn["values"], own.drawn["rows"], own.drawn["actual"]
    end = int(rows[0])
    first = max(0, end - most)
    when, axis = _axis(own)
    panels = []
    for position, variate in enumerate(own.names):
        if variate in own.reasons:
            continue
        column = len(own.series.columns) - own.outputs + position
        past = own.series.values[first:end, column].copy()
        if own.observed is not None:
            past[~own.observed[first:end, column]] = np.nan
        limits = [(level, values[1 + 2 * k, position], values[2 + 2 * k, position]) for k, level in enumerate(levels)]
        panels.append(
            figures.Panel(
                variate,
                when[first:end],
                past,
                when[rows],
                values[0, position],
                limits,
                None if actual is None else actual[position],
            )
        )
    stem = f"{index:03d}_{file_name(Path(name).stem)}"
    drawn = []
    for number, panel in enumerate(panels, 1):
        path = folder / f"{stem}_{number:03d}_{file_name(panel.name)}.png"
        title = f"{plain_text(name)}: {plain_text(panel.name)}, {len(rows)} steps ahead"
        drawn.append(figures.forecast_figure(path, panel, title, axis))
    if html and panels:
        drawn.append(interactive.write_page(folder / f"{stem}.html", panels, name, axis, trained))
    if len(panels) > 1:
        drawn.append(figures.overview(folder / f"{stem}_overview.png", panels, plain_text(name), axis))
    return drawn


def _axis(own: History) -> tuple[np.ndarray, figures.TimeAxis]:
    """Return (positions on the time axis, axis kind): dates (in the user's time zone), integers or row numbers."""
    series = own.series
    if series.dates is None:
        return np.asarray(own.when), figures.TimeAxis(False, "row")
    if series.numbered:
        return numbers_of(own.when), figures.TimeAxis(False, "number")
    label = f"date ({series.zone})" if series.zone else "date"
    return np.asarray(own.when), figures.TimeAxis(True, label, series.zone if series.utc else None)
