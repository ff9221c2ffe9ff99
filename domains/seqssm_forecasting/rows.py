"""The table of a record: one row per series and date, or one per date with a column per series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError, Status
from seqssm_forecasting import zones
from seqssm_forecasting.history import History
from seqssm_forecasting.series import listed, numbers_of

DATES = ("ds", "cutoff")
"""Columns with dates."""
RECURSIVE = "recursive"
"""Column that is True for steps beyond the horizon of training."""
TAKEN = ("index", "id", *DATES, "status", "reason", RECURSIVE)
"""Columns that no series of a wide table may be named like."""


@dataclass(frozen=True)
class Layout:
    """Columns of a table of forecasts.

    Attributes:
        names: names of the series that are forecast.
        suffixes: suffixes of the values per series and date: "" for the forecast, ``-lo-80``, ``-hi-80``, ...
        backtest: whether there are the columns ``cutoff`` and ``y``.
        wide: whether there is one column per series.
        lookback: steps, for messages.
        trained: number of steps that the model was trained for, if forecasts are longer; else None.
    """

    names: list[str]
    suffixes: list[str]
    backtest: bool
    wide: bool
    lookback: int
    trained: int | None = None

    def estimates(self) -> list[str]:
        """List the columns with forecasts and intervals."""
        if not self.wide:
            return [f"yhat{suffix}" for suffix in self.suffixes]
        return [f"{name}{suffix}" for name in self.names for suffix in self.suffixes]

    def columns(self) -> list[str]:
        """List the columns.

        Raises:
            InputError: names of series of a wide table collide with other columns.
        """
        cutoff = ["cutoff"] if self.backtest else []
        target = ["y"] if self.backtest else []
        flag = [] if self.trained is None else [RECURSIVE]
        if not self.wide:
            return ["unique_id", "ds", *cutoff, *target, *self.estimates(), *flag]
        suffixes = [*(f"-{name}" for name in target), *self.suffixes]
        own = [f"{name}{suffix}" for name in self.names for suffix in suffixes]
        taken = [name for name in own if name in TAKEN]
        if taken or len(set(own)) < len(own):
            raise InputError(f"--wide: the series' names collide with the table's own columns ({listed(taken or own)})")
        return ["ds", *cutoff, *own, *flag]

    def table(self, own: History, values: np.ndarray) -> pd.DataFrame:
        """Build the table of a record.

        Args:
            own: the predicted record.
            values: one entry per suffix, (windows, suffixes, outputs, steps), in the file's units.
        """
        steps = values.shape[-1]
        rows = np.array(own.ends)[:, None] + np.arange(steps)  # (windows, steps)
        cutoff = np.array(own.ends)[:, None] - 1 + np.zeros(steps, dtype=np.int64)
        actual = own.actual(rows) if self.backtest else None
        own.drawn = {"values": values[-1], "rows": rows[-1], "actual": None if actual is None else actual[:, -1]}
        return (self._wide if self.wide else self._long)(own, values, rows, cutoff, actual)

    def _long(
        self, own: History, values: np.ndarray, rows: np.ndarray, cutoff: np.ndarray, actual: np.ndarray | None
    ) -> pd.DataFrame:
        windows, steps = values.shape[0], values.shape[3]
        dates = written_dates(own)
        absent = [name for name in own.reasons if name not in own.names]
        names = [*own.names, *absent]
        data: dict[str, Any] = {
            "unique_id": np.repeat(np.array(names, dtype=object), windows * steps),
            "ds": dates[np.tile(rows.ravel(), len(names))],
        }
        rest = len(absent) * windows * steps
        if actual is not None:
            data["cutoff"] = dates[np.tile(cutoff.ravel(), len(names))]
            data["y"] = np.concatenate([actual.ravel(), *(own.actual_of(name, rows).ravel() for name in absent)])
        for index, suffix in enumerate(self.suffixes):
            data[f"yhat{suffix}"] = np.append(values[:, index].transpose(1, 0, 2).ravel(), np.full(rest, np.nan))
        if self.trained is not None:
            data[RECURSIVE] = np.tile(np.arange(steps) >= self.trained, len(names) * windows)
        table = pd.DataFrame(data)
        reason = table["unique_id"].map(lambda name: own.reasons.get(name, ""))
        blind = table["yhat"].isna() & (reason == "")  # backtest windows without any value in the look-back
        reason[blind] = f"no value in the preceding {self.lookback} rows"
        if (reason != "").any():
            table["status"] = np.where(reason != "", Status.FAILED, Status.OK)
            table["reason"] = reason
        return table

    def _wide(
        self, own: History, values: np.ndarray, rows: np.ndarray, cutoff: np.ndarray, actual: np.ndarray | None
    ) -> pd.DataFrame:
        dates = written_dates(own)
        data: dict[str, Any] = {"ds": dates[rows.ravel()]}
        if self.backtest:
            data["cutoff"] = dates[cutoff.ravel()]
        for position, name in enumerate(own.names):
            if actual is not None:
                data[f"{name}-y"] = actual[position].ravel()
            for index, suffix in enumerate(self.suffixes):
                data[f"{name}{suffix}"] = values[:, index, position].ravel()
        if self.trained is not None:
            data[RECURSIVE] = np.tile(np.arange(values.shape[-1]) >= self.trained, len(values))
        table = pd.DataFrame(data)
        if own.reasons:
            table["status"] = Status.FAILED.value
            table["reason"] = "; ".join(f"{name}: {reason}" for name, reason in own.reasons.items())
        return table


def written_dates(own: History) -> Any:
    """Format dates, or row numbers, for the output."""
    if own.series.dates is None:
        return own.when
    if own.series.numbered:
        return numbers_of(own.when)
    return zones.written(own.when, own.series.zone, own.series.utc)
