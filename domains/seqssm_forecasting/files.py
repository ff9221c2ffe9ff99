"""Readers of time-series files: wide and long tables (CSV, Excel, Parquet, data frames), Solar text, PEMS npz.

A bad file raises an `InputError` with the location. Irregularities (order, duplicate dates, gaps, missing values) are
read unchanged and handled in `tidy`. Does not import torch.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError, no_column
from seqssm.files.content import DAMAGED, read_bytes
from seqssm.files.folds import fold_columns, unused_folds
from seqssm.files.notation import is_number
from seqssm.files.numbers import MISSING, holds_truth, numbers
from seqssm.files.tables import Table, read_table, suffix_of, table_of_frame
from seqssm_forecasting import zones
from seqssm_forecasting.dates import Dates, read_dates
from seqssm_forecasting.periods import month_of
from seqssm_forecasting.reading import FLAGS, Reading
from seqssm_forecasting.series import Series, days_of, listed
from seqssm_forecasting.split_columns import BY_TIME, SplitColumn, note_splits, refuse_splits, split_columns

DATELESS = (".txt", ".npz")
"""Suffixes of formats without dates."""
TABLES = (".csv", ".tsv", ".parquet", ".pq", ".xlsx", ".xlsm")
IDS = ("unique_id", "item_id", "series_id", "id")
TIMES = ("ds", "timestamp", "date", "datetime", "time")
VALUES = ("y", "target", "value")
TOTAL = re.compile(
    r"((grand|sub)?[- ]?(totals?|totale?|totaal|totaux|sum|mean|average|avg|min|max|count|gesamt|summe|gesamtsumme|"
    r"insgesamt|mittelwert|somme|moyenne|ensemble|media|suma|promedio))( general| général)?( (19|20)\d\d)?",
    re.IGNORECASE,
)
"""Names of a row of totals."""
DATED = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})\b.*")
PARTS = {
    "time", "hour", "hours", "hour ending", "hr", "minute", "month", "day", "quarter", "week", "period", "uhrzeit",
    "stunde", "monat", "tag", "quartal", "woche", "heure", "mois", "jour", "trimestre", "semaine", "hora", "mes", "dia",
    "día", "semana", "ora", "mese", "giorno", "tijd", "uur", "maand",
}  # fmt: skip
"""Names of columns that complete the dates of another column."""


def read_series(source: str | Path | pd.DataFrame, reading: Reading | None = None) -> list[Series]:
    """Read a file by its suffix: a table (wide or long), ``.txt`` (Solar), ``.npz`` (PEMS); or a data frame.

    Text may be compressed (``.gz``).

    Args:
        source: the file or frame.
        reading: options for reading the file.

    Returns:
        One `Series`, or one per id for the long layout.

    Raises:
        InputError: the file is missing, unreadable or malformed; the message has line and column.
    """
    reading = reading or Reading()
    if isinstance(source, pd.DataFrame):
        return of_table(table_of_frame(source), reading)
    path = Path(source)
    suffix = suffix_of(path)
    if suffix in TABLES:
        return of_table(read_table(path, reading.table_options(), text=False, flags=FLAGS), reading)
    if suffix == ".txt":
        return [read_plain_text(path, reading)]
    if suffix == ".npz":
        return [read_pems(path)]
    known = ".csv, .tsv, .xlsx, .parquet, .txt, .npz"
    raise InputError(f"unknown file type {suffix or '(no suffix)'}; expected one of {known}", file=path)


def read_for_model(
    source: str | Path | pd.DataFrame, reading: Reading, summary: Mapping[str, Any] | None
) -> list[Series]:
    """Read a file as `read_series`, for a trained model: its time axis is read as that of the training.

    Args:
        source: the file or frame.
        reading: options for reading the file.
        summary: the summary of the data in the checkpoint; None to train.

    Raises:
        InputError: as `read_series`, or the time axis is of another kind.
    """
    if summary is None:
        return read_series(source, reading)
    path = Path("DataFrame" if isinstance(source, pd.DataFrame) else source)
    if summary["dated"] == (suffix_of(path) in DATELESS):
        raise InputError(
            f"the model was trained on series with{'' if summary['dated'] else 'out'} dates and requires the same here",
            file=path,
        )
    pieces = read_series(source, reading.for_model(summary))
    if bool(summary.get("numbered")) != pieces[0].numbered and summary["dated"]:
        kind = "numbers" if summary.get("numbered") else "dates"
        read = next((f": {note}" for note in pieces[0].notes if " read as " in note), "")
        here = "dates" if summary.get("numbered") else "numbers"
        raise InputError(f"the model was trained on a time axis of {kind}, and this one has {here}{read}", file=path)
    return pieces


# -- tables ------------------------------------------------------------------------------------------------------------


def of_table(table: Table, reading: Reading) -> list[Series]:
    """Read the series of a wide or long table.

    Args:
        table: a table with a header.
        reading: options for reading the file.

    Raises:
        InputError: missing or unnamed columns, or cells that are not numbers or dates; the message has line and column.
    """
    names, header = table.columns, table.header
    if len(names) < 2:
        raise InputError("has one column; expected the date, then the variates", file=table.path, place=header)
    unnamed = [position for position, name in enumerate(names, 1) if name.startswith("Unnamed: ")]
    if unnamed:
        above = "; --data.skip_rows skips lines above the header" * (len(unnamed) > 1)
        message = f"column {unnamed[0]} has no name; name it, or leave it out (pandas: to_csv(index=False)){above}"
        raise InputError(message, file=table.path, place=header)
    long = long_names(table, reading)
    table = _without_units(table, long[1] if long else reading.time_column or names[0])
    return [_wide(table, reading)] if long is None else _long(table, long, reading)


def long_names(table: Table, reading: Reading) -> tuple[str, str, str] | None:
    """Find the columns of id, date and value of a long table; None for a wide one.

    Raises:
        InputError: a column given by name does not exist, or the columns of the requested long layout are not found.
    """
    path, names, place = table.path, table.columns, table.header
    given = (reading.id_column, reading.time_column, reading.value_column)
    wanted = reading.layout == "long" or reading.id_column is not None or reading.value_column is not None
    if reading.layout == "wide":
        return None
    found: list[str] = []
    for flag, name, usual in zip(("id", "time", "value"), given, (IDS, TIMES, VALUES)):
        if name is not None and name not in names:
            raise no_column(name, names, option=f"--data.{flag}_column", file=path, place=place)
        by_case = {one.lower(): one for one in reversed(names)}
        here = name or next((by_case[one] for one in usual if one in by_case), None)
        if here is None:
            if wanted:
                words = f"has no column named {' or '.join(usual)}; give --data.{flag}_column"
                raise InputError(words, file=path, place=place)
            return None
        found.append(here)
    if len(set(found)) < 3:
        raise InputError("id, date and value must be three different columns", file=path, place=place)
    return found[0], found[1], found[2]


def _without_units(table: Table, when: str) -> Table:
    """Drop, and report, a row of units below the header and a row of totals at the end."""
    if when not in table.columns or not isinstance(table.frame[when].dtype, pd.StringDtype) or len(table) < 3:
        return table
    stamps, keep = table.frame[when], np.ones(len(table), dtype=bool)
    first, last = stamps.iloc[0], stamps.iloc[-1]
    cells = [str(cell) for name, cell in table.frame.iloc[0].items() if name != when]
    if not any(character.isdigit() for character in first) and not any(is_number(cell) for cell in cells):
        keep[0] = False
        units = ", ".join(cell for cell in cells if cell)
        table.notes.append(f"{table.place(0)} skipped: units or descriptions ({units[:60]})")
    if TOTAL.fullmatch(last.strip(" :")):
        keep[-1] = False
        table.notes.append(f"{table.place(len(table) - 1)} skipped: row of {last!r}")
    return table if keep.all() else table.rows(keep)


def _wide(table: Table, reading: Reading) -> Series:
    names, path = table.columns, table.path
    when = names[0] if reading.time_column is None else reading.time_column
    if when not in names:
        raise no_column(when, names, option="--data.time_column", file=path, place=table.header)
    columns = [name for name in names if name != when]
    asked = [*reading.columns, *(name for name in reading.future if reading.columns)]
    for name in asked:
        if name not in columns:
            raise no_column(name, columns, option="--data.columns", file=path, place=table.header)
    columns = [name for name in columns if name in asked] if asked else columns
    _require_date_column(table, when, reading)
    dates = _dates(table, when, reading)
    _require_whole_dates(table, when, dates, columns)
    named = [*asked, *reading.named, *reading.future]
    splits = [one for one in split_columns(table, columns) if not (one.numeric and one.name in named)]
    if reading.by_date and reading.text_columns != "drop":
        known = [one for one in splits if not one.numeric]  # integers could be a series
        note_splits(table, known, reading.axis is not None)
        splits = [one for one in splits if one.numeric]
        columns = [name for name in columns if name not in {one.name for one in known}]
    if reading.text_columns == "drop":
        note_splits(table, splits, reading.axis is not None)
        columns = _numeric(table, [name for name in columns if name not in {one.name for one in splits}])
    else:
        refuse_splits(table, splits, _as_typed(table, when, dates) if splits else [])
    values, notes = numbers(table, columns, reading.decimal, FLAGS, truth=True)
    if len(columns) == 12 and {month_of(name) for name in columns} == set(range(12)):
        notes.append(
            "one column per month: read as twelve yearly series; for one monthly series, write one row per month"
        )
    if not asked and reading.axis is None:
        advice = f"{BY_TIME}, and {{column}} is one of the series: --data.columns lists those to read"
        notes += unused_folds(fold_columns(table.frame[columns]).values(), advice)
    series = Series(path, values, columns, None, table.lines, notes=[*table.notes, *notes], row=_row(table), axis=when)
    return _dated(series, dates, reading)


def _require_date_column(table: Table, when: str, reading: Reading) -> None:
    """Refuse a first column that is not named like a date, if one of the others is, or has dates, and no numbers."""
    if reading.time_column is not None or when.lower() in TIMES or not len(table):
        return
    first = {name: str(table.frame[name].iloc[0]) for name in table.columns}
    for name in table.columns:
        cells = table.frame[name]
        if name.lower() not in TIMES and (DATED.fullmatch(first[when]) or not DATED.fullmatch(first[name])):
            continue
        dated = pd.api.types.is_datetime64_any_dtype(cells)
        if dated or (not pd.api.types.is_numeric_dtype(cells) and pd.to_numeric(cells, errors="coerce").isna().all()):
            raise InputError(
                f"the first column is {when}, not {name}; give --data.time_column {name}, and --data.id_column {when} "
                "if there is one row per series and date",
                file=table.path,
            )


def _require_whole_dates(table: Table, when: str, dates: Dates, columns: list[str]) -> None:
    """Refuse a wide table in which most dates repeat because another column holds their rest, or names the series."""
    repeated = len(table) - len(np.unique(dates.values))
    if 2 * repeated < len(table):
        return
    rest = [name for name in columns if name.lower() in PARTS]
    if rest:
        raise InputError(
            f"the date is in several columns: {listed([when, *rest])}; join them in one column", file=table.path
        )
    codes = {name: pd.factorize(table.frame[name])[0] for name in columns[:8]}
    few = [name for name in codes if 0 < codes[name].max() < len(table) // 2]
    for names in ((name,) for name in few), combinations(few, 2):
        for keys in names:
            if pd.DataFrame({"date": dates.values, **{key: codes[key] for key in keys}}).duplicated().any():
                continue
            one = "names" if len(keys) == 1 else "together name"
            how = (
                f"give --data.id_column {keys[0]}"
                if len(keys) == 1
                else "join them in one column, give it as --data.id_column"
            )
            raise InputError(
                f"each date is on several rows; if {' and '.join(keys)} {one} the series, {how}, "
                f"--data.time_column {when} and --data.value_column",
                file=table.path,
            )


def _dates(table: Table, when: str, reading: Reading) -> Dates:
    dates = read_dates(table, when, reading.date_format, step=reading.step, axis=reading.axis)
    if dates.offset and reading.timezone is None and dates.zone is None:
        dates.notes.append("dates with an offset from UTC converted to UTC (set --data.timezone for another zone)")
    return dates


def _as_typed(table: Table, when: str, dates: Dates) -> list[str]:
    """Format dates as a user types them: cells of text as written, others without a time of day if they are days."""
    if isinstance(table.frame[when].dtype, pd.StringDtype) or dates.numbered:
        return [str(cell) for cell in table.frame[when]]
    return days_of(pd.DatetimeIndex(dates.values))


def _row(table: Table) -> str:
    return "line" if table.dialect.kind == "text" else "row"


def _numeric(table: Table, columns: list[str]) -> list[str]:
    """Select the columns that contain numbers, and report the others."""
    kept = []
    for name in columns:
        cells = table.frame[name]
        if isinstance(cells.dtype, pd.StringDtype):
            cells = cells[~cells.str.lower().isin(MISSING)]
            if not any(is_number(cell) for cell in cells.iloc[:100]) and not holds_truth(cells):
                continue
        kept.append(name)
    left = [name for name in columns if name not in kept]
    if left:
        table.notes.append(f"text columns ignored: {listed(left)}")
    if not kept:
        raise InputError("has no numeric column", file=table.path)
    return kept


def _long(table: Table, names: tuple[str, str, str], reading: Reading) -> list[Series]:
    path, header = table.path, table.columns
    extra = _future_columns(path, header, names, reading, table.header)
    key, when, value = names
    codes, ids = pd.factorize(table.frame[key])
    if len(ids) == len(table) > 1 and reading.id_column is None:
        raise InputError(
            f"column {key} differs in every row, so that every series would have one value; if it numbers the rows, "
            f"give --data.layout wide, --data.time_column {when} and --data.columns {value}",
            file=path,
        )
    blank = [position for position, name in enumerate(ids) if not str(name).strip()]
    if blank or (codes < 0).any():
        row = int(((codes < 0) | np.isin(codes, blank)).argmax())
        raise InputError("no id", file=path, place=table.place(row, key))
    dates = _dates(table, when, reading)
    values, notes = numbers(table, [value, *extra], reading.decimal, FLAGS, truth=True)
    left = [name for name in header if name not in (*names, *extra)]
    splits = split_columns(table, left)
    _require_no_splits(table, splits, when, dates, reading)
    left = [name for name in left if name not in {one.name for one in splits}]
    notes = [*table.notes, *notes, f"long layout: {len(ids)} series ({', '.join(names)})"]
    notes += [f"columns ignored: {listed(left)}"] if left else []
    notes += unused_folds(fold_columns(table.frame[left]).values(), BY_TIME) if reading.axis is None else []
    order = np.argsort(codes, kind="stable") if (np.diff(codes) < 0).any() else np.arange(len(codes))
    ends = np.cumsum(np.bincount(codes, minlength=len(ids)))
    made = []
    for code, name in enumerate(ids):
        rows = order[ends[code - 1] if code else 0 : ends[code]]
        own = [_name(name), *(f"{one}[{_name(name)}]" for one in extra)]
        series = Series(path, values[rows], own, None, table.lines[rows], future=own[1:], row=_row(table), axis=when)
        series.notes = notes if not made else []
        made.append(
            _dated(series, replace(dates, values=dates.values[rows], notes=[] if made else dates.notes), reading)
        )
    return made


def _require_no_splits(table: Table, splits: list[SplitColumn], when: str, dates: Dates, reading: Reading) -> None:
    """Refuse columns of splits in a long table, unless it is predicted, they are to be dropped, or dates are given.

    Row numbers cannot be given as dates. Integers that do not follow the time may be anything.
    """
    trained = reading.axis is not None
    if not splits or trained or reading.by_date or reading.text_columns == "drop" or dates.numbered:
        note_splits(table, splits, trained)
        return
    typed = _as_typed(table, when, dates)
    if all(one.wrong is None for one in splits):  # in the order of time, whatever the series
        rows = np.argsort(dates.values, kind="stable").tolist()
        splits, typed = [one.ordered(rows) for one in splits], [typed[row] for row in rows]
    vague = [one for one in splits if one.numeric and one.begins() == (None, None)]
    note_splits(table, vague, trained)
    refuse_splits(table, [one for one in splits if one not in vague], typed, series=False)


def _name(value: object) -> str:
    """Format the name of a series; integers have no decimal point."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _future_columns(path: Path, header: list[str], names: tuple[str, ...], reading: Reading, place: str) -> list[str]:
    absent = [name for name in reading.future if name not in header or name in names]
    if absent:
        others = [name for name in header if name not in names]
        raise no_column(listed(absent), others, option="--data.future_columns", file=path, place=place)
    return list(reading.future)


def _dated(series: Series, dates: Dates, reading: Reading) -> Series:
    """Return `series` with its dates and future covariates set."""
    index = pd.DatetimeIndex(dates.values)
    zone = reading.timezone or dates.zone
    notes = [*series.notes, *dates.notes]
    utc = False
    if dates.numbered:
        zone = None
    else:
        index, zone, utc, more = zones.settle(index, dates.offset, zone, series.path, reading.calendar == "observed")
        notes += more
    future = series.future
    if reading.future and not future:
        place = "line 1" if series.row == "line" else ""
        future = _future_columns(series.path, series.columns, (), reading, place)
    return replace(series, dates=index, zone=zone, utc=utc, future=future, notes=notes, numbered=dates.numbered)


# -- formats without dates ---------------------------------------------------------------------------------------------


def read_plain_text(path: str | Path, reading: Reading | None = None) -> Series:
    """Read the Solar layout: numbers without header and dates; variates are named column_1, ...

    Numbers are separated by commas, semicolons, tabs or blanks.

    Args:
        path: the file.
        reading: options for reading the file.

    Raises:
        InputError: unequal rows or cells that are not numbers.
    """
    reading = reading or Reading()
    table = read_table(path, reading.table_options(header=False), flags=FLAGS)
    first = [str(cell) for cell in table.frame.iloc[0]] if len(table) else []
    if len(first) > 1 and not any(is_number(cell) for cell in first):
        words = (
            f"has a header ({listed(first, 3)}); .txt files are read as numbers without header and dates, name it .csv"
        )
        raise InputError(words, file=table.path, place=table.place(0))
    values, _ = numbers(table, table.columns, reading.decimal, FLAGS, truth=True)
    return Series(table.path, values, table.columns, None, table.lines)


def read_pems(path: str | Path) -> Series:
    """Read a PEMS archive: key ``data``, (rows, sensors, features); the first feature is the flow.

    Variates are named column_1, ...; gaps stay NaN.

    Args:
        path: the file.

    Raises:
        InputError: no such archive, key or shape.
    """
    path = Path(path)
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or "data" not in archive:
                raise InputError("has no array named 'data'", file=path)
            data = archive["data"]
    except (OSError, *DAMAGED) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("is not a readable npz archive of plain numbers", file=path) from None
    if data.ndim != 3 or 0 in data.shape or data.dtype.kind not in "fiu":
        raise InputError(
            f"its 'data' is {data.dtype} of shape {data.shape}; expected numbers (rows, sensors, features)", file=path
        )
    flow = data[:, :, 0].astype(np.float64)
    if np.isinf(flow).any():
        raise InputError("its 'data' contains infinite values", file=path)
    return Series(path, flow, [f"column_{number}" for number in range(1, flow.shape[1] + 1)])
