"""Several variates over one time axis, as read from a file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.errors import InputError


@dataclass
class Series:
    """Several variates over one time axis.

    Attributes:
        path: the file.
        values: (rows, variates), float64, in the file's units; NaN where a value is missing, never infinite.
        columns: names of the variates, in file order.
        dates: (rows,) or None for formats without dates; without time zone (see `zone`), as written, not yet judged.
            Of a numbered axis, number n is n days after 1970-01-01.
        lines: (rows,) line of each row in the file, from 1, for messages; None where rows have no line.
        zone: name of the dates' time zone, or None where the file does not tell one.
        utc: whether the dates are in UTC; else they are local times.
        future: names of the future covariates; they are among `columns`.
        notes: what the reader found and should report.
        numbered: whether the time axis holds integers instead of dates.
        row: what a row is called in messages: ``line`` of a text file, else ``row``.
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

    def __len__(self) -> int:
        return len(self.values)

    @property
    def own(self) -> list[str]:
        """Names of the variates that are not future covariates."""
        return [name for name in self.columns if name not in self.future]

    def label(self, row: int) -> str:
        """The date (or number) of a row, as text."""
        assert self.dates is not None
        return self.label_of(self.dates[row])

    def label_of(self, date: pd.Timestamp) -> str:
        """A date as text, without a time of day where all dates are days; or the number that it stands for."""
        assert self.dates is not None
        if self.numbered:
            return str((date - pd.Timestamp(0)).days)
        whole = (self.dates.to_numpy("datetime64[us]").astype(np.int64) % 86_400_000_000 == 0).all()
        return str(date)[:10] if whole else str(date)

    def place(self, row: int, column: str | None = None) -> str:
        """The position of a row for a message: its line, else its date, else its number."""
        where = f"{self.row} {self.lines[row]}" if self.lines is not None else f"row {row + 1}"
        if self.lines is None and self.dates is not None:
            where = self.label(row)
        return where if column is None else f"{where}, column {column}"

    def identities(self, first: int, end: int) -> list[dict[str, str]]:
        """One record per date from row `first` to `end`; equal dates with equal values are the same record."""
        rows = self.rows(slice(first, end))
        frame = pd.DataFrame(rows.values, columns=rows.columns)[sorted(rows.columns)]
        marks = pd.util.hash_pandas_object(frame, index=False)
        names = range(first, end) if rows.dates is None else rows.dates if not self.numbered else numbers_of(rows.dates)
        return [{"id": f"{name} {mark:016x}"} for name, mark in zip(names, marks)]

    def rows(self, which: np.ndarray | slice) -> Series:
        """The same series with these rows only, in this order (positions, a mask or a slice)."""
        dates = None if self.dates is None else self.dates[which]
        lines = None if self.lines is None else self.lines[which]
        return replace(self, values=self.values[which], dates=dates, lines=lines)

    def reordered(self, columns: list[str]) -> Series:
        """The same series with its variates in the order of `columns`.

        Raises:
            InputError: a variate is missing, or there is one more.
        """
        missing = [name for name in columns if name not in self.columns]
        extra = [name for name in self.columns if name not in columns]
        if missing or extra:
            parts = [f"missing: {listed(missing)}"] if missing else []
            parts += [f"not known: {listed(extra)}"] if extra else []
            raise InputError(
                f"its columns are not the model's ({'; '.join(parts)}); expected, in any order: {listed(columns)}",
                file=self.path,
                place=f"{self.row} 1",
            )
        return self.only(columns)

    def only(self, columns: list[str]) -> Series:
        """The same series with these variates, all of which it has, in this order."""
        order = [self.columns.index(name) for name in columns]
        future = [name for name in self.future if name in columns]
        return replace(self, values=self.values[:, order], columns=list(columns), future=future)


def numbers_of(dates: pd.DatetimeIndex) -> np.ndarray:
    """The integers of a numbered time axis."""
    return dates.to_numpy("datetime64[D]").astype(np.int64)


def shown(text: str) -> str:
    """A cell as an error shows it: quoted, on one line, not too long."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def listed(names: list[str], most: int = 12) -> str:
    """Names as a list for a message, the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(" ".join(str(name).split()) for name in names[:most]) + more
