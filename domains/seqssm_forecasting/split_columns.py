"""Columns of a table that hold splits: words, flags such as ``is_test``, or small integers; they are not series."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.notation import is_number
from seqssm.files.numbers import MISSING, numbers
from seqssm.files.splits import split_of_cell, split_of_flag
from seqssm.files.tables import Table
from seqssm_forecasting.series import shown

BY_TIME = "series are split by time (--data.split, --data.val_from)"
_NAME = re.compile(
    r"(?:data_?|train_(?:val_|valid_)?test_)?(?:splits?|set|subset|partition)(?:_?(?:id|no|nr|num|number|index))?"
)
MOST = 10
"""Maximum number of integers that number splits; columns with more are series."""


@dataclass(frozen=True)
class SplitColumn:
    """A column that holds splits.

    Attributes:
        name: the column.
        cells: its cells as text, (rows,), ``""`` where one is missing.
        splits: split of each row, None where its cell says none; for numbered splits, the integers as text.
        numeric: whether the cells are numbers, so that the column could be a series.
    """

    name: str
    cells: list[str]
    splits: list[str | None]
    numeric: bool

    @property
    def wrong(self) -> int | None:
        """Position of the first cell that is neither missing nor a split, or None."""
        rows = enumerate(zip(self.cells, self.splits))
        return next((row for row, (cell, split) in rows if cell and split is None), None)

    @property
    def example(self) -> str:
        """The first cell that is not missing."""
        return next(cell for cell in self.cells if cell)

    def ordered(self, rows: Sequence[int]) -> SplitColumn:
        """Return the column with its rows in another order.

        Args:
            rows: positions of the rows, in the new order.
        """
        return replace(self, cells=[self.cells[row] for row in rows], splits=[self.splits[row] for row in rows])

    def begins(self) -> tuple[int | None, int | None]:
        """Return the rows at which validation and test begin; None for one that the order of the cells leaves open."""
        rows = [row for row, split in enumerate(self.splits) if split is not None]
        starts = rows[:1] + [row for before, row in pairwise(rows) if self.splits[before] != self.splits[row]]
        found = [str(self.splits[row]) for row in starts]
        if self.wrong is None and (found == ["train", "val", "test"] or found in (["0", "1", "2"], ["1", "2", "3"])):
            return starts[1], starts[2]
        return None, starts[1] if self.wrong is None and found == ["train", "test"] else None


def split_columns(table: Table, names: Sequence[str]) -> list[SplitColumn]:
    """Return the columns that hold splits.

    Words for splits count in a column of any name if they are of several splits, and in a column with a usual name
    (``split``, ``set``, ``is_test``) also if they are of one. One word in two may be misspelt. Numbers count only in a
    column with a usual name: 0 and 1 in ``is_test``, integers without gaps from 0 or 1 in ``split``.

    Args:
        table: the table.
        names: columns to look at.
    """
    found = (_numbered(table, name) if _is_number(table.frame[name]) else _worded(table, name) for name in names)
    return [column for column in found if column is not None]


def refuse_splits(table: Table, columns: Sequence[SplitColumn], dates: Sequence[str], series: bool = True) -> None:
    """Refuse a column of splits, and name the dates at which they begin.

    Args:
        table: the table.
        columns: columns of splits that would be series, or be ignored.
        dates: dates of the rows as the user types them.
        series: whether the columns would be series.

    Raises:
        InputError: there is such a column.
    """
    if not columns:
        return
    column = columns[0]
    options = " ".join(
        f"--data.{option} {'DATE' if row is None else shlex.quote(dates[row])}"
        for option, row in zip(("val_from", "test_from"), column.begins())
    )
    if column.numeric:
        some = ", ".join(list(dict.fromkeys(cell for cell in column.cells if cell))[:MOST])
        what = f"column {column.name} seems to hold splits ({some})" + ", not a series" * series
    else:
        what = f"column {column.name} holds splits ({column.example})" + ", not numbers" * series
    if column.numeric and series:
        way_out = f"--data.columns lists the series to read, with or without {column.name}"
    else:
        way_out = "--data.text_columns drop leaves the column out"
    place = table.header
    if column.wrong is not None:
        what = f"{shown(column.cells[column.wrong])} is not a split (train, val, test), as the column holds them"
        place = table.place(column.wrong, column.name)
    message = f"{what}; rows are split by time: {options} split at dates, {way_out}"
    raise InputError(message, file=table.path, place=place)


def note_splits(table: Table, columns: Sequence[SplitColumn], trained: bool) -> None:
    """Report that columns of splits are not used.

    Args:
        table: the table, whose notes are extended.
        columns: columns of splits that are not series.
        trained: whether the table is read for a trained model, which has no use for splits.
    """
    for column in columns:
        table.notes.append(f"column {column.name} holds splits and is not used" + ("" if trained else f"; {BY_TIME}"))


def _is_number(cells: pd.Series) -> bool:
    """Whether the first cell that is not missing is a number."""
    if pd.api.types.is_numeric_dtype(cells):
        return True
    for part in (cells.iloc[:100], cells):
        for cell in part:
            if isinstance(cell, str) and cell.strip().lower() not in MISSING:
                return is_number(cell.strip())
    return True


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]+", "_", name.strip().casefold())


def _worded(table: Table, name: str) -> SplitColumn | None:
    cells = ["" if (text := str(cell).strip()).lower() in MISSING else text for cell in table.frame[name]]
    plain = _plain(name)
    known = {cell: split_of_cell(cell, plain) for cell in dict.fromkeys(cells) if cell}
    splits = {split for split in known.values() if split is not None}
    few = len(splits) < (1 if _NAME.fullmatch(plain) or split_of_flag(plain) else 2)
    if few or 2 * sum(split is not None for split in known.values()) < len(known):
        return None
    return SplitColumn(name, cells, [known.get(cell) for cell in cells], False)


def _numbered(table: Table, name: str) -> SplitColumn | None:
    plain = _plain(name)
    flag = split_of_flag(plain)
    if flag is None and not _NAME.fullmatch(plain):
        return None
    try:
        values = numbers(table, [name])[0][:, 0]
    except InputError:
        return None  # the reader of the series names the cell
    measured = values[~np.isnan(values)]
    if not len(measured) or (measured != np.floor(measured)).any() or (measured < 0).any():
        return None
    distinct = np.unique(measured).astype(np.int64).tolist()
    cells = ["" if np.isnan(value) else str(int(value)) for value in values]
    if flag is not None and set(distinct) <= {0, 1}:
        return SplitColumn(name, cells, [split_of_cell(cell, plain) if cell else None for cell in cells], True)
    if flag is not None or not 2 <= len(distinct) <= MOST or distinct[0] > 1:
        return None
    if distinct != list(range(distinct[0], distinct[0] + len(distinct))):
        return None
    return SplitColumn(name, cells, [cell or None for cell in cells], True)
