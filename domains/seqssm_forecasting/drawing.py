"""The figures of a prediction: one of each variate, and one of all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seqssm.prediction.predictor import Record
from seqssm_forecasting import figures

if TYPE_CHECKING:
    from seqssm_forecasting.predict import History


def draw(record: Record, most: int, levels: list[float], dated: bool, folder: Path) -> list[Path]:
    """Draws the last window of a record.

    Args:
        record: predicted, its item a `History` whose `drawn` is filled in.
        most: rows of history that are shown.
        levels: of its bands, percent, in the order of the values.
        dated: whether there are dates; else rows are numbered.
        folder: where the PNGs go.
    """
    own: History = record.item
    values, places, truth = own.drawn["values"], own.drawn["places"], own.drawn["truth"]
    end = int(places[0])
    first = max(0, end - most)
    panels = []
    for position, name in enumerate(own.series.columns[-own.outputs :]):
        column = len(own.series.columns) - own.outputs + position
        past = own.series.values[first:end, column].copy()
        if own.there is not None:
            past[~own.there[first:end, column]] = np.nan
        bands = [(level, values[1 + 2 * k, position], values[2 + 2 * k, position]) for k, level in enumerate(levels)]
        panels.append(
            figures.Panel(
                name,
                np.asarray(own.when[first:end]),
                past,
                np.asarray(own.when[places]),
                values[0, position],
                bands,
                None if truth is None else truth[position],
            )
        )
    stem = f"{record.index:03d}_{figures.file_name(Path(record.id).stem)}"
    drawn = []
    for number, panel in enumerate(panels, 1):
        path = folder / f"{stem}_{number:03d}_{figures.file_name(panel.name)}.png"
        title = f"{record.id}: {panel.name}, {len(places)} steps ahead"
        drawn.append(figures.forecast_figure(path, panel, title, dated=dated))
    if len(panels) > 1:
        drawn.append(figures.overview(folder / f"{stem}_overview.png", panels, record.id, dated=dated))
    return drawn
