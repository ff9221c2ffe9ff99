"""Readers for Excel workbooks and Parquet files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.content import DAMAGED, read_bytes
from seqssm.files.dialect import Dialect, TableOptions, require_header, require_names
from seqssm.files.frames import with_index

Read = tuple[pd.DataFrame, np.ndarray, Dialect, list[str]]


def read_workbook(path: Path, options: TableOptions) -> Read:
    """Read one sheet of a workbook: values, not formulas. Rows without cells are dropped.

    Args:
        path: the file.
        options: `sheet`, `skip_rows` and `header` are used.

    Returns:
        (columns of Python objects, row numbers, dialect, notes to report).

    Raises:
        InputError: openpyxl is missing, the workbook is corrupt or empty, or it has no such sheet.
    """
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise InputError(
            "reading .xlsx needs openpyxl: pip install 'seqssm[excel]', or save the sheet as CSV", file=path
        ) from None
    data = read_bytes(path)
    try:
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        sheets = {name: book[name] for name in book.sheetnames if hasattr(book[name], "iter_rows")}
        rows, name = _cells(sheets, options, path)
    except (InvalidFileException, OSError, *DAMAGED) as error:
        if isinstance(error, InputError):
            raise
        why = " ".join(str(error).split())[:80]
        message = f"is not a readable Excel workbook ({why}); save the table again as .xlsx or as CSV"
        raise InputError(message, file=path) from None
    notes = [f"sheet {name!r} of {len(sheets)} read"] if len(sheets) > 1 else []
    skip = options.skip_rows
    listed = range(1, skip + 1) if isinstance(skip, int) else skip
    numbered = [(n, row) for n, row in enumerate(rows, 1) if n not in listed and any(c is not None for c in row)]
    if not numbered:
        raise InputError("is empty; expected a header row with the column names", file=path)
    width = max(len(row) for _, row in numbered)
    grid = [list(row) + [None] * (width - len(row)) for _, row in numbered]
    used = [k for k in range(width) if any(row[k] is not None for row in grid)]
    if options.header:
        heads = ["" if grid[0][k] is None else str(_as_text(grid[0][k])).strip() for k in used]
        names = [head or f"Unnamed: {k}" for k, head in enumerate(heads)]
        require_header(names, path, f"row {numbered[0][0]}")
        grid, numbered, header_line = grid[1:], numbered[1:], numbered[0][0]
    else:
        names, header_line = [f"column_{k}" for k in range(1, len(used) + 1)], numbered[0][0]
    require_names(names, path, f"row {header_line}")
    frame = pd.DataFrame([[row[k] for k in used] for row in grid], columns=names, dtype=object)
    lines = np.array([number for number, _ in numbered], dtype=np.int64)
    return frame, lines, Dialect("xlsx", "", header_line=header_line), notes


def _cells(sheets: dict[str, Any], options: TableOptions, path: Path) -> tuple[list[tuple], str]:
    """Return (rows, name) of the requested sheet; by default the first one that is not empty."""
    if options.sheet is not None and options.sheet not in sheets:
        raise InputError(f"has no sheet {options.sheet}; it has {', '.join(sheets)}", file=path)
    rows: list[tuple] = []
    name = ""
    for name in [options.sheet] if options.sheet is not None else sheets:
        sheets[name].reset_dimensions()
        rows = list(sheets[name].iter_rows(values_only=True))
        if any(cell is not None for row in rows for cell in row):
            break
    return rows, name


def read_parquet(path: Path, options: TableOptions) -> Read:
    """Read a Parquet file; its index becomes columns, unless it numbers the rows.

    Args:
        path: the file.
        options: unused; the caller selects the columns.

    Returns:
        (typed columns, row numbers, dialect, notes to report).

    Raises:
        InputError: not a Parquet file, or duplicate column names.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        frame = pq.read_table(io.BytesIO(read_bytes(path))).to_pandas()
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"is not a readable Parquet file ({' '.join(str(error).split())[:80]})", file=path) from None
    frame = with_index(frame, path)
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    require_names(list(frame.columns), path)
    return frame, np.arange(1, len(frame) + 1), Dialect("parquet", ""), []


def typed(frame: pd.DataFrame, text: bool) -> pd.DataFrame:
    """Convert columns other than numbers and dates to text; with `text`, all columns.

    Args:
        frame: columns of any type, with rows numbered from 0.
        text: whether to convert typed cells to text.
    """
    columns = {}
    for position, name in enumerate(frame.columns):
        column = frame.iloc[:, position]
        if column.dtype == object:
            column = column.where(column.notna(), None).infer_objects()
        if isinstance(column.dtype, pd.CategoricalDtype):
            column = column.astype(column.cat.categories.dtype)
        keep = pd.api.types.is_datetime64_any_dtype(column) or (
            pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        )
        if keep and not text:
            columns[name] = column
        elif isinstance(column.dtype, pd.StringDtype):
            columns[name] = column.fillna("").astype("str").str.strip()
        else:
            columns[name] = pd.Series([_as_text(value) for value in column], dtype="str")
    return pd.DataFrame(columns)


def _as_text(value: Any) -> str:
    """Format a typed cell as a user would write it; arrays, as in list columns of Parquet, as lists, bytes as UTF-8."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if value is None or value is pd.NaT or value is pd.NA or value != value:
        return ""
    if isinstance(value, float | np.floating):
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return str(value).strip()
