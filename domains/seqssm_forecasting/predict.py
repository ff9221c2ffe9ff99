"""From a checkpoint and series files to future rows, with real dates and in the file's units."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seqssm.errors import InputError
from seqssm.prediction import Predictor, Record
from seqssm_forecasting import calendar
from seqssm_forecasting.data import fill, scale
from seqssm_forecasting.figures import file_name, forecast_figure
from seqssm_forecasting.files import DATELESS, Series, read, suffix_of

HISTORY = 3  # look-backs of history that a figure shows


@dataclass
class Window:
    """The end of a series, ready for the network.

    Attributes:
        x: (N, L), float32, scaled.
        marks: (M, L), float32.
        when: (T,) dates of the forecast; row numbers for a file without dates.
        past_when, past: dates or row numbers, and values (rows, N) in the file's units, for the figure.
    """

    x: np.ndarray
    marks: np.ndarray
    when: Any
    past_when: Any
    past: np.ndarray


class ForecastPredictor(Predictor):
    """One record a file; its rows are (variate, date) pairs, in the order of the file's variates, dates ascending."""

    columns = ["unique_id", "ds", "yhat"]  # noqa: RUF012 - a ClassVar of the base class

    def records(self, inputs: list[Path]) -> Iterator[Record]:
        """One record a file. A single file is read at once: if it cannot be used, there is nothing to produce."""
        for path in inputs:
            if not path.exists():
                raise InputError("no such file", file=path)
        for index, path in enumerate(inputs):
            record = Record(index, path.name, path)
            yield self.prepare(record) if len(inputs) == 1 else record

    def prepare(self, record: Record) -> Record:
        if isinstance(record.item, Path):
            record.item = self.window(self.read(record.item))
        return record

    def read(self, path: Path) -> Series:
        """The file, checked against the checkpoint: the same variates by name, the same frequency, enough rows.

        Raises:
            InputError: it does not fit.
        """
        known = self.summary
        if known["dated"] == (suffix_of(path) in DATELESS):
            raise InputError(
                f"the model was trained on series with{'' if known['dated'] else 'out'} dates; give such a file",
                file=path,
            )
        series = read(path)
        if series.columns != known["columns"]:
            series = series.reordered(known["columns"])
            print(f"{path}: columns brought into the checkpoint's order", file=sys.stderr)
        if known["dated"]:
            calendar.frequency(series, known["freq"], known["irregular_dates"])
        if len(series) < known["lookback"]:
            raise InputError(
                f"has {len(series)} rows of history; the model looks back over {known['lookback']}", file=path
            )
        return series

    def window(self, series: Series) -> Window:
        """The last look-back of a series."""
        known = self.summary
        lookback, horizon = known["lookback"], known["horizon"]
        scaled = scale(series.values, known["mean"], known["std"])
        if suffix_of(series.path) == ".npz":
            scaled, filled = fill(scaled, series.path)
            if filled:
                print(f"{series.path}: {filled} missing cells filled with the value before them", file=sys.stderr)
        shown = min(len(series), HISTORY * lookback)
        if series.dates is None:
            when: Any = np.arange(len(series), len(series) + horizon)
            past_when: Any = np.arange(len(series) - shown, len(series))
            marks = np.empty((lookback, 0), dtype=np.float32)
        else:
            when = calendar.future(series.dates[-1], known["freq"], horizon)
            past_when = series.dates[-shown:]
            marks = calendar.marks(series.dates[-lookback:], known["marks"])
        x = scaled[-lookback:].T.astype(np.float32)
        return Window(x, marks.T.copy(), when, past_when, series.values[-shown:])

    def predict(self, records: list[Record]) -> list[list[dict[str, Any]]]:
        windows = [record.item for record in records]
        x = torch.from_numpy(np.stack([window.x for window in windows])).to(self.device)
        marks = torch.from_numpy(np.stack([window.marks for window in windows])).to(self.device)
        scaled = self.model(x, marks if marks.shape[1] else None)  # (B, N, T)
        mean, std = self.summary["mean"], self.summary["std"]
        values = scaled.double().cpu() * std[:, None] + mean[:, None]
        tables = []
        for record, window, table in zip(records, windows, values.numpy()):
            if not np.isfinite(table).all():
                record.reason = "the forecast is not finite"
                tables.append(self.failed(record))
                continue
            when = list(window.when) if isinstance(window.when, pd.DatetimeIndex) else window.when.tolist()
            tables.append(
                [
                    {"unique_id": name, "ds": moment, "yhat": float(value)}
                    for name, row in zip(self.summary["columns"], table)
                    for moment, value in zip(when, row)
                ]
            )
        return tables

    def figures(self, record: Record, rows: list[dict[str, Any]], folder: Path) -> list[Path]:
        """One PNG a variate: the end of the history and the forecast."""
        window, horizon = record.item, self.summary["horizon"]
        drawn = []
        for number, name in enumerate(self.summary["columns"]):
            ahead = np.array([row["yhat"] for row in rows[number * horizon : (number + 1) * horizon]])
            path = (
                folder / f"{record.index:03d}_{file_name(Path(record.id).stem)}_{number + 1:03d}_{file_name(name)}.png"
            )
            drawn.append(
                forecast_figure(
                    path,
                    name,
                    (np.asarray(window.past_when), window.past[:, number]),
                    (np.asarray(window.when), ahead),
                    f"{record.id}: {name}, {horizon} steps ahead",
                    dated=self.summary["dated"],
                )
            )
        return drawn
