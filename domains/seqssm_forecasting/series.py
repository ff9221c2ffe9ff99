"""Several variates with a common time axis, as read from a file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.errors import InputError


@dataclass
class Series:
    """Several variates with a common time axis.

    Attributes:
        path: the file.
        values: table of values, (rows, variates), float64, in the file's units; NaN where a value is missing, never
            infinite.
        columns: names of the variates, in file order.
        dates: dates, (rows,), or None for formats without dates; without time zone (see `zone`), as written, not
            validated. For an integer axis, integer n is represented by n days after 1970-01-01.
        lines: line numbers in the file, (rows,), from 1, for messages; None if there are no lines.
        zone: time zone of the dates, or None if unknown.
        utc: whether the dates are in UTC; otherwise they are local times.
        future: names of the future covariates; they are among `columns`.
        notes: messages of the reader.
        numbered: whether the time axis contains integers instead of dates.
        row: term for a row in messages: ``line`` for text files, else ``row``.
        axis: name of the column of dates, for messages.
    """

    path: Path
    values: np.ndarray
    columns: list[str]
    dates: pd.DatetimeIndex | None = None
    lines: np.ndarray | None = None
    zone: str | None = None
    utc: bool = False
    future: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbered: bool = False
    row: str = "line"
    axis: str = "1"

    def __len__(self) -> int:
        return len(self.values)

    @property
    def own(self) -> list[str]:
        """Names of the variates that are not future covariates."""
        return [name for name in self.columns if name not in self.future]

    def label(self, row: int) -> str:
        """Format the date (or integer) of a row."""
        assert self.dates is not None
        return self.label_of(self.dates[row])

    def label_of(self, date: pd.Timestamp) -> str:
        """Format a date, without a time of day if all dates are days; or the integer that it represents."""
        assert self.dates is not None
        if self.numbered:
            return str(int(date.to_datetime64().astype("datetime64[D]").astype(np.int64)))
        return str(date)[:10] if whole_days(self.dates) else str(date)

    def place(self, row: int, column: str | None = None) -> str:
        """Format the location of a row for a message: its line, else its date, else its number."""
        where = f"{self.row} {self.lines[row]}" if self.lines is not None else f"row {row + 1}"
        if self.lines is None and self.dates is not None:
            where = self.label(row)
        return where if column is None else f"{where}, column {column}"

    def identities(self, first: int, end: int) -> list[dict[str, str]]:
        """Return one identity per date from row `first` to `end`; equal dates with equal values are the same record."""
        rows = self.rows(slice(first, end))
        frame = pd.DataFrame(rows.values, columns=rows.columns)[sorted(rows.columns)]
        marks = pd.util.hash_pandas_object(frame, index=False)
        names = range(first, end) if rows.dates is None else rows.dates if not self.numbered else numbers_of(rows.dates)
        return [{"id": f"{name} {mark:016x}"} for name, mark in zip(names, marks)]

    def rows(self, which: np.ndarray | slice) -> Series:
        """Select rows (positions, a mask or a slice), in the given order."""
        dates = None if self.dates is None else self.dates[which]
        lines = None if self.lines is None else self.lines[which]
        return replace(self, values=self.values[which], dates=dates, lines=lines)

    def reordered(self, columns: list[str]) -> Series:
        """Reorder the variates as in `columns`.

        Raises:
            InputError: a variate is missing, or there is an additional one.
        """
        missing = [name for name in columns if name not in self.columns]
        extra = [name for name in self.columns if name not in columns]
        if missing or extra:
            parts = [f"missing: {listed(missing)}"] if missing else []
            parts += [f"unknown: {listed(extra)}"] if extra else []
            raise InputError(
                f"columns differ from the model's ({'; '.join(parts)}); expected, in any order: {listed(columns)}",
                file=self.path,
                place="line 1" if self.row == "line" else None,
            )
        return self.only(columns)

    def only(self, columns: list[str]) -> Series:
        """Select existing variates, in the given order."""
        order = [self.columns.index(name) for name in columns]
        future = [name for name in self.future if name in columns]
        return replace(self, values=self.values[:, order], columns=list(columns), future=future)


def whole_days(dates: pd.DatetimeIndex) -> bool:
    """Whether all dates are days, without a time of day."""
    return bool((dates.to_numpy("datetime64[us]").astype(np.int64) % 86_400_000_000 == 0).all())


def days_of(dates: pd.DatetimeIndex) -> list[str]:
    """Format dates, without a time of day if all of them are days."""
    return [str(date)[:10] for date in dates] if whole_days(dates) else [str(date) for date in dates]


def numbers_of(dates: pd.DatetimeIndex) -> np.ndarray:
    """Return the integers of an integer time axis."""
    return dates.to_numpy("datetime64[D]").astype(np.int64)


def shown(text: str) -> str:
    """Format a cell for an error message: quoted, on one line, shortened."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def listed(names: list[str], most: int = 12) -> str:
    """Format the first `most` names as a list for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(" ".join(str(name).split()) for name in names[:most]) + more
