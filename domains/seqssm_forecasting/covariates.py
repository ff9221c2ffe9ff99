"""Values that are known beforehand, at prediction: those of the history, and those of every future step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm_forecasting.files import Series, read
from seqssm_forecasting.text import Reading, listed


def gather(
    kept: dict[str, Any],
    plan: Series | None,
    ahead: Series | None,
    when: pd.DatetimeIndex | np.ndarray,
    rows: int,
    horizon: int,
    file: str | Path | None,
    reading: Reading,
    series: Series,
) -> np.ndarray:
    """(rows + T, K) of the columns known beforehand, scaled; NaN after the steps that are needed.

    Args:
        kept: of the checkpoint: ``columns, mean, std``.
        plan: these columns over the history.
        ahead: rows after the history that the same file holds, or None.
        when: (rows + T,) dates of history and horizon.
        rows: of the history.
        horizon: future steps that are needed.
        file: a file of further values, history included where `plan` lacks it; or None.
        reading: how it is read.
        series: the history, for error messages.

    Raises:
        InputError: a value is missing; every missing row is named.
    """
    columns = kept["columns"]
    if not isinstance(when, pd.DatetimeIndex):
        raise InputError("has no dates, so nothing can be known beforehand", file=series.path)
    table = pd.DataFrame(np.nan, index=when, columns=columns)
    for part in (plan, ahead):
        if part is not None:
            _put(table, pd.DataFrame(part.values, index=part.dates, columns=part.columns))
    if file is not None:
        _put(table, _of_file(Path(file), columns, reading, series))
    need = table.iloc[: rows + horizon]
    empty = need.isna()
    if empty.to_numpy().any():
        missing = need.index[empty.any(axis=1)]
        told = [f"{date} ({listed(list(empty.columns[empty.loc[date]]))})" for date in missing]
        where = Path(file) if file is not None else series.path
        past = int((missing < when[rows]).sum()) if rows < len(when) else len(missing)
        kind = f"{len(missing) - past} future rows" + (f" and {past} of the history" if past else "")
        raise InputError(
            f"values that must be known beforehand are missing in {kind}: {', '.join(told)}; give them in the file "
            "after the history, or in one of their own (--future FILE)",
            file=where,
        )
    return (table.to_numpy() - kept["mean"].numpy()) / kept["std"].numpy()


def _put(table: pd.DataFrame, more: pd.DataFrame) -> None:
    """Fills cells of `table` that are empty, by date and name; other dates and names are nobody's."""
    more = more[~more.index.duplicated(keep="last")]
    for name in table.columns:
        if name in more.columns:
            table[name] = table[name].fillna(more[name].reindex(table.index))


def _of_file(path: Path, columns: list[str], reading: Reading, series: Series) -> pd.DataFrame:
    """The columns known beforehand, from a wide file of dates and columns, or a long one of ids, dates and columns."""
    bases = list(dict.fromkeys(name.rsplit("[", 1)[0] if name.endswith("]") else name for name in columns))
    plain = replace(reading, future=(), layout="wide", id_column=None, value_column=None)
    try:
        long = replace(reading, layout="long", value_column=bases[0], future=tuple(bases[1:]))
        pieces = read(path, long)
    except InputError as error:
        if "_column" not in error.message or any(name.endswith("]") for name in columns):
            raise
        pieces = read(path, plain)
        found = pd.DataFrame(pieces[0].values, index=pieces[0].dates, columns=pieces[0].columns)
        absent = [name for name in columns if name not in found]
        if absent:
            raise InputError(f"has no column {listed(absent)}, which must be known beforehand", file=path) from None
        return _clocked(found, pieces[0], series)
    parts = []
    for piece in pieces:
        key = piece.columns[0]
        own = pd.DataFrame(piece.values, index=piece.dates, columns=[f"{base}[{key}]" for base in bases])
        parts.append(_clocked(own[~own.index.duplicated(keep="last")], piece, series))
    table = pd.concat(parts, axis=1)
    for base in bases:
        if base in columns:  # the same for all series
            table[base] = (
                table[[name for name in table.columns if name.startswith(f"{base}[")]].bfill(axis=1).iloc[:, 0]
            )
    return table


def _clocked(table: pd.DataFrame, piece: Series, series: Series) -> pd.DataFrame:
    if (piece.zone is None) != (series.zone is None):
        raise InputError(
            "its dates have a time zone and those of the history have none, or the reverse", file=piece.path
        )
    if piece.utc != series.utc and piece.zone is not None:
        index = table.index
        index = (
            index.tz_localize("UTC").tz_convert(series.zone).tz_localize(None)
            if piece.utc
            else index.tz_localize(series.zone, ambiguous=np.ones(len(index), dtype=bool))
            .tz_convert("UTC")
            .tz_localize(None)
        )
        table = table.set_axis(index, axis=0)
    return table
