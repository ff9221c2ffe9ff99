"""Readers of time-series files: wide CSV, Solar text, PEMS npz. Every bad file is one `InputError` with its place.

Needs no torch. Dates and their regularity are judged in `calendar`, where the frequency is known.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.errors import InputError

MISSING = {"", "nan", "na", "n/a", "null", "none", "-", "?"}  # what people write where a value is missing
DATE = re.compile(r"(\d{4})([-/])(\d{1,2})\2(\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,6}))?)?)?", re.ASCII)
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
DATELESS = (".txt", ".npz")
"""Suffixes of the formats that have no dates."""


@dataclass
class Series:
    """One file: several variates over one time axis.

    Attributes:
        path: where it was read from.
        values: (rows, variates), float64, in the file's units. Finite, except that a PEMS file may have gaps (NaN).
        columns: the variates' names, in file order.
        dates: (rows,) or None for formats without dates; as written, not yet judged.
        lines: (rows,) the line of each row in the file, from 1, for error messages; None for npz.
    """

    path: Path
    values: np.ndarray
    columns: list[str]
    dates: pd.DatetimeIndex | None = None
    lines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)

    def reordered(self, columns: list[str]) -> Series:
        """The same series with its variates in the order of `columns`.

        Raises:
            InputError: a variate is missing, or there is one more.
        """
        missing = [name for name in columns if name not in self.columns]
        extra = [name for name in self.columns if name not in columns]
        if missing or extra:
            parts = [f"missing: {_listed(missing)}"] if missing else []
            parts += [f"not known: {_listed(extra)}"] if extra else []
            raise InputError(
                f"its columns are not the model's ({'; '.join(parts)}); expected, in any order: {_listed(columns)}",
                file=self.path,
                place="line 1",
            )
        order = [self.columns.index(name) for name in columns]
        return Series(self.path, self.values[:, order], list(columns), self.dates, self.lines)


def read(path: str | Path) -> Series:
    """Reads a file by its suffix: ``.csv`` (wide), ``.txt`` (Solar), ``.npz`` (PEMS); the first two also with ``.gz``.

    Raises:
        InputError: the file is missing, unreadable or not in its format; names line and column.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if suffix == ".csv":
        return read_wide_csv(path)
    if suffix == ".txt":
        return read_plain_text(path)
    if suffix == ".npz":
        return read_pems(path)
    raise InputError(f"unknown file type {suffix or '(no suffix)'}; known are .csv, .txt, .npz", file=path)


def suffix_of(path: str | Path) -> str:
    """The suffix that names the format, in lower case, without ``.gz``."""
    name = Path(path).name.lower()
    return Path(name.removesuffix(".gz")).suffix


# -- wide CSV --------------------------------------------------------------------------------------------------------


def read_wide_csv(path: str | Path) -> Series:
    """Reads the benchmarks' layout: a header, the date in the first column, one column a variate.

    Commas, UTF-8 with or without a byte-order mark, LF or CRLF. Dates are year first (``2016-07-01 00:00:00``,
    ``2016-07-01``, ``2016/7/1 0:00``), because day and month of others could be mixed up.

    Raises:
        InputError: another separator or encoding, unequal rows, cells without a number, dates that are none.
    """
    path = Path(path)
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise InputError("is empty; expected a header: date, then one column a variate", file=path)
    header = [name.strip() for name in first[1]]
    _check_header(path, header, first[0])
    columns = header[1:]
    lines: list[int] = []
    dates: list[datetime] = []
    values: list[np.ndarray] = []
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{len(cells)} cells where the header has {len(header)}", file=path, place=f"line {line}")
        dates.append(_date(path, cells[0], line, header[0], header))
        values.append(_numbers(path, cells[1:], line, columns))
        lines.append(line)
    if not values:
        raise InputError("has a header but no rows", file=path)
    table = np.stack(values)
    _require_values(path, table, columns, np.asarray(lines))
    return Series(path, table, columns, pd.DatetimeIndex(dates), np.asarray(lines))


def _check_header(path: Path, header: list[str], line: int) -> None:
    place = f"line {line}"
    if len(header) < 2:
        for mark, name in SEPARATORS.items():
            if mark in header[0]:
                raise InputError(f"its columns are separated by {name}; write commas", file=path, place=place)
        raise InputError("has one column; expected the date, then one column a variate", file=path, place=place)
    for number, name in enumerate(header, 1):
        if not name:
            raise InputError(f"column {number} has no name", file=path, place=place)
        if header.index(name) != number - 1:
            raise InputError(
                f"the column name {name!r} is there twice (columns {header.index(name) + 1} and {number})",
                file=path,
                place=place,
            )


def _date(path: Path, text: str, line: int, column: str, header: list[str]) -> datetime:
    found = DATE.fullmatch(text.strip())
    if found is not None:
        year, _, month, day, hour, minute, second, fraction = found.groups()
        try:
            return datetime(
                int(year),
                int(month),
                int(day),
                int(hour or 0),
                int(minute or 0),
                int(second or 0),
                int((fraction or "").ljust(6, "0")),
            )
        except ValueError:
            pass  # month 13 or the like: no date
    hint = "dates are the first column, year first, without time zone, as 2016-07-31 18:00:00"
    if {"unique_id", "ds"} <= set(header):
        hint = "this is the long layout (one row a series and date); write one column a series, the date first"
    raise InputError(f"{_shown(text)} is not a date; {hint}", file=path, place=f"line {line}, column {column}")


def _numbers(path: Path, cells: list[str], line: int, columns: list[str]) -> np.ndarray:
    """A row's numbers; NaN where a value is missing (counted and refused later), an error where there is text."""
    try:
        row = np.array([float(cell) for cell in cells])
        if not any("_" in cell for cell in cells):  # Python reads 1_000 as a number; people do not write it
            return row
    except ValueError:
        pass
    row = np.empty(len(cells))
    for position, cell in enumerate(cells):
        text = cell.strip()
        if text.lower() in MISSING:
            row[position] = np.nan
            continue
        try:
            if "_" in text:
                raise ValueError
            row[position] = float(text)
        except ValueError:
            raise InputError(
                f"{_shown(cell)} is not a number (a decimal point, no unit, no thousands mark)",
                file=path,
                place=f"line {line}, column {columns[position]}",
            ) from None
    return row


def _require_values(path: Path, table: np.ndarray, columns: list[str], lines: np.ndarray) -> None:
    bad = ~np.isfinite(table)
    if not bad.any():
        return
    row, column = (int(position) for position in np.argwhere(bad)[0])
    total = int(bad.sum())
    what = "is infinite or too large" if np.isinf(table[row, column]) else "no value"
    more = f" ({total} such cells in {int(bad.any(0).sum())} of the columns)" if total > 1 else ""
    raise InputError(
        f"{what}{more}; fill the gaps before, every row needs every value",
        file=path,
        place=f"line {lines[row]}, column {columns[column]}",
    )


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        for cells in reader:
            if cells and cells != [""]:
                yield reader.line_num, cells
    except csv.Error as error:
        raise InputError(f"is not a CSV row ({error})", file=path, place=f"line {reader.line_num}") from None


def _text(path: Path) -> str:
    content = _content(path)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError("is UTF-16 text; save it as UTF-8", file=path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError("is not UTF-8 text; save it as UTF-8", file=path, place=f"line {line}") from None


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except IsADirectoryError:
        raise InputError("is a folder; give the file", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    if path.suffix.lower() == ".gz":
        try:
            return gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            raise InputError("is not a complete gzip file", file=path) from None
    return content


# -- formats without dates -------------------------------------------------------------------------------------------


def read_plain_text(path: str | Path) -> Series:
    """Reads the Solar layout: numbers separated by commas, no header, no dates; variates get the names column_1, ...

    Raises:
        InputError: unequal rows or cells that hold no number.
    """
    path = Path(path)
    columns: list[str] = []
    lines: list[int] = []
    values: list[np.ndarray] = []
    for line, cells in _rows(path):
        columns = columns or [f"column_{number}" for number in range(1, len(cells) + 1)]
        if len(cells) != len(columns):
            raise InputError(
                f"{len(cells)} cells where the first line has {len(columns)}", file=path, place=f"line {line}"
            )
        values.append(_numbers(path, cells, line, columns))
        lines.append(line)
    if not values:
        raise InputError("is empty", file=path)
    table = np.stack(values)
    _require_values(path, table, columns, np.asarray(lines))
    return Series(path, table, columns, None, np.asarray(lines))


def read_pems(path: str | Path) -> Series:
    """Reads a PEMS archive: key ``data``, (rows, sensors, features); the first feature is the flow.

    Variates get the names column_1, ...; gaps stay NaN.

    Raises:
        InputError: no such archive, key or shape.
    """
    path = Path(path)
    try:
        with np.load(io.BytesIO(_content(path)), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or "data" not in archive:
                raise InputError("has no array named 'data'", file=path)
            data = archive["data"]
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, zlib.error, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("is not a readable npz archive of plain numbers", file=path) from None
    if data.ndim != 3 or 0 in data.shape or data.dtype.kind not in "fiu":
        raise InputError(
            f"its 'data' is {data.dtype} of shape {data.shape}; expected numbers (rows, sensors, features)", file=path
        )
    flow = data[:, :, 0].astype(np.float64)
    if np.isinf(flow).any():
        raise InputError("its 'data' holds infinite values", file=path)
    return Series(path, flow, [f"column_{number}" for number in range(1, flow.shape[1] + 1)])


def _shown(text: str) -> str:
    """A cell as an error shows it: quoted, one line, not too long."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _listed(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
