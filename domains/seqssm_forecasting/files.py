"""Readers of time-series files: wide and long CSV, Parquet, Solar text, PEMS npz.

Every bad file is one `InputError` with its place. What is irregular (order, repeated dates, gaps, missing values) is
read as it is and judged in `tidy`. Needs no torch.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm_forecasting.text import Dates, Reading, Table, content, listed, shown, table

DATELESS = (".txt", ".npz")
"""Suffixes of the formats that have no dates."""
IDS = ("unique_id", "item_id", "series_id", "id")
TIMES = ("ds", "timestamp", "date", "datetime", "time")
VALUES = ("y", "target", "value")
PARQUET = (".parquet", ".pq")


@dataclass
class Series:
    """Several variates over one time axis.

    Attributes:
        path: where it was read from.
        values: (rows, variates), float64, in the file's units; NaN where a value is missing, never infinite.
        columns: the variates' names, in file order.
        dates: (rows,) or None for formats without dates; without time zone (see `zone`), as written, not yet judged.
        lines: (rows,) the line of each row in the file, from 1, for error messages; None where rows have no line.
        zone: name of the dates' time zone, or None where the file says nothing of one.
        utc: the dates are in UTC; else they are local times.
        future: names of the columns that are known beforehand; they are among `columns`.
        notes: what the reader found and is worth saying.
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

    def __len__(self) -> int:
        return len(self.values)

    def place(self, row: int, column: str | None = None) -> str:
        """Where a row is, for an error: its line, else its date, else its number."""
        where = f"line {self.lines[row]}" if self.lines is not None else f"row {row + 1}"
        if self.lines is None and self.dates is not None:
            where = str(self.dates[row])
        return where if column is None else f"{where}, column {column}"

    def rows(self, which: np.ndarray) -> Series:
        """The same series with only these rows, in this order (positions or a mask)."""
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
                place="line 1",
            )
        return self.only(columns)

    def only(self, columns: list[str]) -> Series:
        """The same series with these variates, all of which it has, in this order."""
        order = [self.columns.index(name) for name in columns]
        future = [name for name in self.future if name in columns]
        return replace(self, values=self.values[:, order], columns=list(columns), future=future)


def read(path: str | Path, reading: Reading | None = None) -> list[Series]:
    """Reads a file by its suffix: ``.csv`` and ``.parquet`` (wide or long), ``.txt`` (Solar), ``.npz`` (PEMS).

    Text may be packed (``.gz``).

    Returns:
        One `Series`; of the long layout one for each id.

    Raises:
        InputError: the file is missing, unreadable or not in its format; names line and column.
    """
    path, reading = Path(path), reading or Reading()
    suffix = suffix_of(path)
    if suffix in (".csv", ".tsv"):
        return read_csv(path, reading)
    if suffix in PARQUET:
        return read_parquet(path, reading)
    if suffix == ".txt":
        return [read_plain_text(path, reading)]
    if suffix == ".npz":
        return [read_pems(path)]
    known = ".csv, .tsv, .parquet, .txt, .npz"
    raise InputError(f"unknown file type {suffix or '(no suffix)'}; known are {known}", file=path)


def suffix_of(path: str | Path) -> str:
    """The suffix that names the format, in lower case, without ``.gz``."""
    name = Path(path).name.lower()
    return Path(name.removesuffix(".gz")).suffix


# -- CSV -------------------------------------------------------------------------------------------------------------


def read_csv(path: Path, reading: Reading) -> list[Series]:
    """Reads a CSV, wide or long.

    Dates are year first (``2016-07-01 00:00:00``, ``2016-07-01``, ``2016/7/1 0:00``, with ``T``, fractions and an
    offset from UTC where there is one), because day and month of others could be mixed up; or of the form that
    `Reading.date_format` gives.

    Raises:
        InputError: unequal rows, cells without a number, dates that are none, names that are missing or twice there.
    """
    found = table(path, reading)
    names = found.header
    _check_header(path, names, found.header_line)
    if not found.rows:
        raise InputError("has a header but no rows", file=path)
    long = long_names(path, names, reading)
    if long is None:
        return [_wide_csv(found, reading)]
    return _long_csv(found, long, reading)


def _check_header(path: Path, names: list[str], line: int) -> None:
    place = f"line {line}"
    if len(names) < 2:
        raise InputError("has one column; expected the date, then one column a variate", file=path, place=place)
    for number, name in enumerate(names, 1):
        if not name:
            raise InputError(f"column {number} has no name", file=path, place=place)
        if names.index(name) != number - 1:
            raise InputError(
                f"the column name {shown(name)} is there twice (columns {names.index(name) + 1} and {number})",
                file=path,
                place=place,
            )


def long_names(path: Path, names: list[str], reading: Reading) -> tuple[str, str, str] | None:
    """The columns of id, date and value of a long table; None for a wide one.

    Raises:
        InputError: a column that was named is not there, or the long layout is asked for and its columns are not seen.
    """
    given = (reading.id_column, reading.time_column, reading.value_column)
    wanted = reading.layout == "long" or reading.id_column is not None or reading.value_column is not None
    if reading.layout == "wide":
        return None
    found: list[str] = []
    for flag, name, usual in zip(("id", "time", "value"), given, (IDS, TIMES, VALUES)):
        if name is not None and name not in names:
            raise InputError(f"has no column {name} (--data.{flag}_column); it has {listed(names)}", file=path)
        here = name or next((one for one in usual if one in names), None)
        if here is None:
            if wanted:
                raise InputError(
                    f"has no column named {' or '.join(usual)}; give --data.{flag}_column", file=path, place="line 1"
                )
            return None
        found.append(here)
    if len(set(found)) < 3:
        raise InputError("id, date and value must be three columns", file=path, place="line 1")
    return found[0], found[1], found[2]


def _wide_csv(found: Table, reading: Reading) -> Series:
    names, path = found.header, found.path
    when = names[0] if reading.time_column is None else reading.time_column
    if when not in names:
        raise InputError(f"has no column {when} (--data.time_column)", file=path, place="line 1")
    position = names.index(when)
    columns = [name for name in names if name != when]
    dates = Dates(path, when, reading)
    values = np.empty((len(found.rows), len(columns)))
    for row, (line, cells) in enumerate(found.rows):
        dates.add(cells[position], f"line {line}")
        values[row] = found.numbers(line, cells[:position] + cells[position + 1 :], columns)
    lines = np.array([line for line, _ in found.rows])
    return _dated(Series(path, values, columns, None, lines, notes=found.notes), dates, reading)


def _long_csv(found: Table, names: tuple[str, str, str], reading: Reading) -> list[Series]:
    path, header = found.path, found.header
    extra = _future_columns(path, header, names, reading)
    positions = [header.index(name) for name in names]
    others = [header.index(name) for name in extra]
    columns = [names[2], *extra]
    groups: dict[str, tuple[Dates, list[np.ndarray], list[int]]] = {}
    for line, cells in found.rows:
        key = cells[positions[0]].strip()
        if not key:
            raise InputError("no id", file=path, place=f"line {line}, column {names[0]}")
        dates, values, lines = groups.setdefault(key, (Dates(path, names[1], reading), [], []))
        dates.add(cells[positions[1]], f"line {line}")
        values.append(found.numbers(line, [cells[place] for place in (positions[2], *others)], columns))
        lines.append(line)
    notes = [*found.notes, f"long layout: {len(groups)} series ({', '.join(names)})"]
    left = [name for name in header if name not in (*names, *extra)]
    notes += [f"columns left out: {listed(left)}"] if left else []
    _require_one_kind(path, [dates for dates, _, _ in groups.values()])
    made = []
    for key, (dates, values, lines) in groups.items():
        own = [key, *(f"{name}[{key}]" for name in extra)]
        series = Series(path, np.stack(values), own, None, np.array(lines), future=own[1:], notes=notes)
        made.append(_dated(series, dates, reading))
        notes = []
    return made


def _future_columns(path: Path, header: list[str], names: tuple[str, str, str], reading: Reading) -> list[str]:
    absent = [name for name in reading.future if name not in header or name in names]
    if absent:
        raise InputError(f"has no column {listed(absent)} (--data.future_columns)", file=path, place="line 1")
    return list(reading.future)


def _require_one_kind(path: Path, dates: list[Dates]) -> None:
    if len({one.offset for one in dates}) > 1:
        raise InputError("some of its dates have an offset from UTC, others have none", file=path)


def _dated(series: Series, dates: Dates, reading: Reading) -> Series:
    """`series` with its dates, and the columns that are known beforehand marked."""
    from seqssm_forecasting import zones

    offset = bool(dates.offset)
    # one resolution for all files: microseconds hold every date that a file can name
    index = pd.DatetimeIndex(np.array(dates.values, dtype="datetime64[us]"))
    index, zone, utc = zones.settle(index, offset, reading.timezone, series)
    notes = list(series.notes)
    if offset and reading.timezone is None and notes is not None:
        notes.append("dates with an offset from UTC brought to UTC (--data.timezone gives another zone)")
    future = series.future
    if reading.future and not future:
        absent = [name for name in reading.future if name not in series.columns]
        if absent:
            raise InputError(
                f"has no column {listed(absent)} (--data.future_columns)", file=series.path, place="line 1"
            )
        future = list(reading.future)
    return replace(series, dates=index, zone=zone, utc=utc, future=future, notes=notes)


# -- Parquet -----------------------------------------------------------------------------------------------------------


def read_parquet(path: Path, reading: Reading) -> list[Series]:
    """Reads a Parquet table, wide or long, with the rules of `read_csv`; an index of dates counts as the first column.

    Raises:
        InputError: not a Parquet file, or columns without numbers.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        frame = pq.read_table(io.BytesIO(content(path))).to_pandas()
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"is not a readable Parquet file ({' '.join(str(error).split())[:80]})", file=path) from None
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    frame.columns = [str(name).strip() for name in frame.columns]
    names = list(frame.columns)
    _check_header(path, names, 1)
    if not len(frame):
        raise InputError("has no rows", file=path)
    long = long_names(path, names, reading)
    if long is None:
        when = reading.time_column or names[0]
        if when not in names:
            raise InputError(f"has no column {when} (--data.time_column)", file=path)
        return [_of_frame(path, frame, when, [name for name in names if name != when], reading)]
    extra = _future_columns(path, names, long, reading)
    if frame[long[0]].isna().any():
        raise InputError("a row has no id", file=path, place=f"column {long[0]}")
    made = []
    notes = [f"long layout: {frame[long[0]].nunique()} series ({', '.join(long)})"]
    for key, group in frame.groupby(frame[long[0]].astype(str), sort=False):
        own = [str(key), *(f"{name}[{key}]" for name in extra)]
        renamed = group[[long[1], long[2], *extra]].rename(columns=dict(zip((long[2], *extra), own)))
        made.append(_of_frame(path, renamed, long[1], own, replace(reading, future=tuple(own[1:]))))
        made[-1].notes[:0] = notes
        notes = []
    return made


def _of_frame(path: Path, frame: pd.DataFrame, when: str, columns: list[str], reading: Reading) -> Series:
    values = np.empty((len(frame), len(columns)))
    for position, name in enumerate(columns):
        column = frame[name]
        if not (pd.api.types.is_numeric_dtype(column) or column.isna().all()):
            raise InputError(f"holds {column.dtype}, not numbers", file=path, place=f"column {name}")
        values[:, position] = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(values).any():
        row, position = (int(place) for place in np.argwhere(np.isinf(values))[0])
        raise InputError("is infinite or too large", file=path, place=f"row {row + 1}, column {columns[position]}")
    dates, stamps = Dates(path, when, reading), frame[when]
    if stamps.isna().any():
        raise InputError("no date", file=path, place=f"row {int(stamps.isna().argmax()) + 1}, column {when}")
    if pd.api.types.is_datetime64_any_dtype(stamps):
        zone = stamps.dt.tz
        plain = stamps if zone is None else stamps.dt.tz_convert("UTC").dt.tz_localize(None)
        dates.values, dates.offset = list(plain.to_numpy("datetime64[us]").astype(object)), zone is not None
        if zone is not None and reading.timezone is None and getattr(zone, "key", None):
            reading = replace(reading, timezone=zone.key)
    else:
        for row, stamp in enumerate(stamps):
            dates.add(str(stamp), f"row {row + 1}")
    return _dated(Series(path, values, columns), dates, reading)


# -- formats without dates -------------------------------------------------------------------------------------------


def read_plain_text(path: str | Path, reading: Reading | None = None) -> Series:
    """Reads the Solar layout: numbers, no header, no dates; variates get the names column_1, ...

    Numbers are parted by commas (or semicolons, tabs, single spaces).

    Raises:
        InputError: unequal rows or cells that hold no number.
    """
    path = Path(path)
    found = table(path, reading or Reading(), header=False)
    columns = [f"column_{number}" for number in range(1, len(found.rows[0][1]) + 1)]
    values = np.stack([found.numbers(line, cells, columns) for line, cells in found.rows])
    return Series(path, values, columns, None, np.array([line for line, _ in found.rows]))


def read_pems(path: str | Path) -> Series:
    """Reads a PEMS archive: key ``data``, (rows, sensors, features); the first feature is the flow.

    Variates get the names column_1, ...; gaps stay NaN.

    Raises:
        InputError: no such archive, key or shape.
    """
    path = Path(path)
    try:
        with np.load(io.BytesIO(content(path)), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or "data" not in archive:
                raise InputError("has no array named 'data'", file=path)
            data = archive["data"]
    except (
        zipfile.BadZipFile,
        ValueError,
        OSError,
        EOFError,
        zlib.error,
        KeyError,
        AttributeError,
        NotImplementedError,
        RuntimeError,
    ) as error:
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
