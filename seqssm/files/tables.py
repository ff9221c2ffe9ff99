"""Reader for users' tables and manifests: CSV in any dialect, Excel workbooks, Parquet, data frames.

The dialect is detected from the first rows (`seqssm.files.dialect`); the rest of a text file goes through pyarrow's
parser. Files that it rejects (missing cells, an unclosed quote) are read again row by row, to report the line. Does not
import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.errors import InputError, no_column
from seqssm.files.content import as_utf8, read_bytes
from seqssm.files.dialect import Dialect, Start, TableOptions, find, line_list, require_header, require_names
from seqssm.files.frames import with_index
from seqssm.files.rows import read_rows
from seqssm.files.workbooks import read_parquet, read_workbook, typed

PARQUET, EXCEL = (".parquet", ".pq"), (".xlsx", ".xlsm")
OLD_EXCEL = (".xls", ".xlsb", ".ods", ".numbers")


@dataclass
class Table:
    """A table as read.

    Attributes:
        path: the file; ``DataFrame`` for a frame.
        frame: one text column per name, cells without surrounding blanks, empty cells ``""``; index 0, 1, ... Of
            workbooks, Parquet files and frames, columns of numbers and of dates keep their type unless `text` was set.
        lines: line numbers in the file, (rows,) int64, from 1; row number for Parquet files
            and frames.
        dialect: the detected dialect.
        notes: messages about detected, skipped or dropped content.
    """

    path: Path
    frame: pd.DataFrame
    lines: np.ndarray
    dialect: Dialect
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in file order."""
        return [str(name) for name in self.frame.columns]

    @property
    def header(self) -> str:
        """Location of the column names for a message, ``line 3``; empty for Parquet files and frames."""
        row = {"text": "line", "xlsx": "row"}.get(self.dialect.kind)
        return "" if row is None else f"{row} {self.dialect.header_line}"

    def place(self, row: int, column: str | None = None) -> str:
        """Format the location of a cell for a message: ``line 7, column OT``.

        Args:
            row: position in `frame`.
            column: column name, or None for the whole row.
        """
        where = f"{'line' if self.dialect.kind == 'text' else 'row'} {self.lines[row]}"
        return where if column is None else f"{where}, column {column}"

    def rows(self, which: np.ndarray) -> Table:
        """Select rows by a mask or positions."""
        frame = self.frame[which] if which.dtype == bool else self.frame.iloc[which]
        return Table(self.path, frame.reset_index(drop=True), self.lines[which], self.dialect, self.notes)


def suffix_of(path: str | Path) -> str:
    """Return the lower-case suffix of the format, ignoring ``.gz``."""
    return Path(Path(path).name.lower().removesuffix(".gz")).suffix


def read_table(
    path: str | Path,
    options: TableOptions | None = None,
    *,
    text: bool = True,
    flags: Mapping[str, str] | None = None,
) -> Table:
    """Read a table by its suffix: ``.xlsx``, ``.parquet``, everything else as text; ``.gz`` is decompressed.

    Empty rows, an empty column caused by trailing separators, and an unnamed first column of row numbers are dropped
    and reported in `Table.notes`. Other unnamed columns become ``Unnamed: 0``, ..., as in pandas.

    Args:
        path: the file.
        options: reading options of the file; by default everything is detected.
        text: whether to convert typed cells of workbooks and Parquet files to text (dates ``2024-01-31 18:00:00``,
            integers without a decimal point).
        flags: the names that users type for options of `TableOptions` (``{"separator": "--data.separator"}``); messages
            suggest only these.

    Raises:
        InputError: missing, corrupt or empty file, rows of unequal length, duplicate or unknown columns.
    """
    path, options = Path(path), options or TableOptions()
    options.check(flags)
    suffix = suffix_of(path)
    if suffix in OLD_EXCEL:
        raise InputError(f"{suffix} files are not supported; save the table as .xlsx or CSV", file=path)
    if suffix in PARQUET or suffix in EXCEL:
        read = read_parquet if suffix in PARQUET else read_workbook
        frame, lines, dialect, notes = read(path, options)
        table = Table(path, typed(frame, text), lines, dialect, notes)
    else:
        table = _text(path, options, flags)
    return _tidied(table, options, flags)


def table_of_frame(frame: pd.DataFrame, options: TableOptions | None = None, *, text: bool = False) -> Table:
    """Convert a data frame to a `Table` by the rules of `read_table`; a named or date index becomes a column.

    Args:
        frame: the user's frame; not modified.
        options: only `columns` is used.
        text: whether to convert typed cells to text.

    Raises:
        InputError: an empty frame, duplicate or unknown columns.
    """
    path = Path("DataFrame")
    frame = with_index(frame, path)
    frame = frame.set_axis([str(name).strip() for name in frame.columns], axis=1)
    require_names(list(frame.columns), path)
    table = Table(path, typed(frame, text), np.arange(1, len(frame) + 1), Dialect("frame", ""))
    return _tidied(table, options or TableOptions(), None)


# -- text --------------------------------------------------------------------------------------------------------------


def _text(path: Path, options: TableOptions, flags: Mapping[str, str] | None) -> Table:
    data, encoding, notes = as_utf8(read_bytes(path), path, options.encoding, flags)
    if options.separator in ("space", " "):
        data = re.sub(rb"[ \t]+", b" ", re.sub(rb"(?m)^[ \t]+|[ \t]+$", b"", data))
    start = find(data, path, options, encoding, flags)
    frame, lines, more = read_rows(data, start, _names(start, path), path, options, flags)
    return Table(path, frame, lines, replace(start.dialect, encoding=encoding), [*notes, *start.notes, *more])


def _names(start: Start, path: Path) -> list[str]:
    if not start.header:
        return [f"column_{number}" for number in range(1, start.width + 1)]
    names = [name or f"Unnamed: {position}" for position, name in enumerate(start.header)]
    place = f"line {start.dialect.header_line}"
    require_header(names, path, place)
    require_names(names, path, place)
    return names


# -- all formats -------------------------------------------------------------------------------------------------------


def _tidied(table: Table, options: TableOptions, flags: Mapping[str, str] | None) -> Table:
    """Drop empty rows, empty unnamed columns and a column of row numbers; select the requested columns."""
    frame = table.frame
    empty = _empty_rows(frame)
    if empty.any():
        which = line_list(table.lines[empty])
        count = int(empty.sum())
        table.notes.append(f"{count} empty {'rows' if count > 1 else 'row'} dropped ({which})")
        table = table.rows(~empty)
        frame = table.frame
    for name in [name for name in frame.columns if str(name).startswith("Unnamed: ")]:
        if _is_empty(frame[name]).all():
            table.notes.append("empty unnamed column dropped (trailing separators)")
        elif name == frame.columns[0] and _counts(frame[name]):
            table.notes.append("unnamed first column with row numbers dropped")
        else:
            continue
        frame = frame.drop(columns=[name])
    if options.columns is not None:
        label = flags.get("columns", "columns") if flags else "columns"
        names = [str(name) for name in frame.columns]
        for name in options.columns:
            if name not in names:
                raise no_column(name, names, option=label, file=table.path)
        frame = frame[[name for name in names if name in options.columns]]
    table.frame = frame
    if not len(table):
        raise InputError("has a header but no rows", file=table.path)
    return table


def _is_empty(column: pd.Series) -> np.ndarray:
    if isinstance(column.dtype, pd.StringDtype):
        return (column == "").to_numpy(dtype=bool)
    return column.isna().to_numpy(dtype=bool)


def _empty_rows(frame: pd.DataFrame) -> np.ndarray:
    empty = np.ones(len(frame), dtype=bool)
    for name in frame.columns:
        if not empty.any():
            break
        empty &= _is_empty(frame[name])
    return empty


def _counts(column: pd.Series) -> bool:
    """Return whether a column is 0, 1, 2, ... or 1, 2, 3, ..."""
    try:
        numbers = np.asarray(column.astype("float64"), dtype=np.float64)
    except (TypeError, ValueError):  # dates; text
        return False
    return bool(len(numbers) and numbers[0] in (0, 1) and (np.diff(numbers) == 1).all())
