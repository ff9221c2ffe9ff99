"""Future covariates in prediction: values over the history and for every future step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError, nearest, no_column
from seqssm_forecasting.files import read_series
from seqssm_forecasting.reading import Reading
from seqssm_forecasting.series import Series, listed
from seqssm_forecasting.tidy import Policies, without_duplicates


@dataclass
class Plan:
    """Sources of the values of future covariates.

    Attributes:
        history: covariate values over the history, or None.
        ahead: rows after the history in the same file, or None.
        file: file with further values, which may include missing history; or None.
        policies: policies for missing values of the history and for duplicate dates of `file`.
        fill_future: policy for missing values of future steps.
        covered: names of covariates whose gaps belong to a series that has ended.
        computed: covariates that follow from the dates, (rows + T,) each, by name.
        measured: mask of `history`, False for values that its file lacks; None for all.
    """

    history: Series | None
    ahead: Series | None
    file: str | Path | pd.DataFrame | None
    policies: Policies = field(default_factory=Policies)
    fill_future: str = "error"
    covered: tuple[str, ...] = ()
    computed: Mapping[str, np.ndarray] = field(default_factory=dict)
    measured: np.ndarray | None = None


def historical(wanted: list[str], names: list[str], target: str) -> list[str]:
    """Return the series that are read but not forecast, which come first among the variates.

    Args:
        wanted: value of ``--data.hist_columns``.
        names: names of all series.
        target: the target, which is forecast in any case.

    Raises:
        InputError: there is no such series, or none is left to forecast.
    """
    absent = [name for name in wanted if name not in names]
    if absent:
        known = f"; the series are {listed(names)} (in a long file, each has rows of its own)"
        raise InputError(f"--data.hist_columns {absent[0]}: no such series{nearest(absent[0], names) or known}")
    if target in wanted or len(wanted) == len(names):
        raise InputError(f"--data.hist_columns {listed(wanted)}: no series is left to forecast, or not the target")
    return wanted


def gather(
    kept: dict[str, Any],
    plan: Plan,
    when: pd.DatetimeIndex,
    rows: int,
    horizon: int,
    reading: Reading,
    series: Series,
) -> tuple[np.ndarray, dict[str, str], list[str]]:
    """Return the scaled future covariates over history and horizon.

    Args:
        kept: entry of the checkpoint: ``columns, mean, std``.
        plan: sources of the values.
        when: dates of history and horizon, (rows + T,).
        rows: number of rows of the history.
        horizon: number of future steps.
        reading: options for reading a further file.
        series: the history, for messages.

    Returns:
        ((rows + T, K) values, NaN after the horizon; series -> reason why it cannot be forecast; notes).

    Raises:
        InputError: a value needed by all series is missing; the message lists the rows.
    """
    columns = kept["columns"]
    table = pd.DataFrame(np.nan, index=when, columns=columns).assign(**plan.computed)
    for known in (plan.history, plan.ahead):
        if known is not None:
            _put(table, pd.DataFrame(known.values, index=known.dates, columns=known.columns))
    reasons: dict[str, str] = {}
    notes: list[str] = []
    if plan.file is not None:
        wanted = [name for name in columns if name not in plan.computed]
        more = _of_file(plan, wanted, reading, series, notes)
        written = table[wanted].copy()
        if plan.history is not None and plan.measured is not None:
            gaps = pd.DataFrame(~plan.measured, index=plan.history.dates, columns=plan.history.columns)
            gaps = gaps[~gaps.index.duplicated(keep="last")]
            written = written.mask(gaps.reindex(index=when, columns=wanted, fill_value=False))
        notes += _contradictions(written, more, plan, series)
        _put(table, more)
    for first, end, fill in ((0, rows, plan.policies.future_missing), (rows, rows + horizon, plan.fill_future)):
        span = table.iloc[:end]
        gaps = int(span.iloc[first:].isna().to_numpy().sum())
        if fill != "error" and gaps:
            filled = span.ffill().bfill() if fill == "forward" else span.fillna(0.0)
            table.iloc[first:end] = filled.iloc[first:]
            how = "filled with the previous value" if fill == "forward" else "set to 0"
            notes.append(f"future covariates without a value {how}: {gaps} cells of {end - first} rows")
    need = table.iloc[: rows + horizon]
    for name in columns:  # a missing value of one series does not affect the others
        gap = need[name].isna()
        owner = name.rsplit("[", 1)[-1].removesuffix("]") if name.endswith("]") else None
        if not gap.any() or owner is None:
            continue
        if name not in plan.covered:
            dates = ", ".join(series.label_of(date) for date in need.index[gap][:3])
            reasons[owner] = f"{name} has no value for {int(gap.sum())} rows (first: {dates})"
        column = need[name].ffill().bfill().fillna(0.0)
        table.iloc[: rows + horizon, columns.index(name)] = column
    need = table.iloc[: rows + horizon]
    empty = need.isna()
    if empty.to_numpy().any():
        raise _missing(need, empty, when, rows, plan, series)
    return (table.to_numpy() - kept["mean"].numpy()) / kept["std"].numpy(), reasons, notes


def _missing(
    need: pd.DataFrame, empty: pd.DataFrame, when: pd.DatetimeIndex, rows: int, plan: Plan, series: Series
) -> InputError:
    missing = need.index[empty.any(axis=1)]
    told = [f"{series.label_of(date)} ({listed(list(empty.columns[empty.loc[date]]))})" for date in missing]
    past = int((missing < when[rows]).sum()) if rows < len(when) else len(missing)
    kind = f"{len(missing) - past} future rows" + (f" and {past} of the history" if past else "")
    return InputError(
        f"future covariates are missing in {kind}: {', '.join(told)}; append them to the history file, "
        "or pass --future FILE, or --future-missing forward or zero",
        file=plan.file if isinstance(plan.file, str | Path) else series.path,
    )


def _put(table: pd.DataFrame, more: pd.DataFrame) -> None:
    """Fill empty cells of `table` by date and name; other dates and names are ignored."""
    more = more[~more.index.duplicated(keep="last")]
    for name in table.columns:
        if name in more.columns:
            table[name] = table[name].fillna(more[name].reindex(table.index))


def _contradictions(written: pd.DataFrame, more: pd.DataFrame, plan: Plan, series: Series) -> list[str]:
    """Return a note per covariate of which `Plan.file` has other values than the history file."""
    more = more[~more.index.duplicated(keep="last")]
    source = f" {plan.file}" if isinstance(plan.file, str | Path) else ""
    notes = []
    for name in written.columns:
        if name not in more.columns:
            continue
        own, other = written[name].to_numpy(), more[name].reindex(written.index).to_numpy()
        differs = np.flatnonzero(~np.isclose(own, other, rtol=1e-9, atol=0) & ~np.isnan(own) & ~np.isnan(other))
        if len(differs):
            first = differs[0]
            dates = "1 date" if len(differs) == 1 else f"{len(differs)} dates"
            day = series.label_of(written.index[first])
            notes.append(
                f"--future{source} has other values of {name} on {dates} (first: {day}, "
                f"{other[first]:g} instead of {own[first]:g}); the values of the history file are used"
            )
    return notes


def _of_file(plan: Plan, columns: list[str], reading: Reading, series: Series, notes: list[str]) -> pd.DataFrame:
    """Read future covariates from a wide file (dates, columns) or a long one (ids, dates, columns)."""
    source = plan.file
    assert source is not None
    bases = list(dict.fromkeys(name.rsplit("[", 1)[0] if name.endswith("]") else name for name in columns))
    plain = replace(reading, future=(), layout="wide", id_column=None, value_column=None, columns=(), skip_rows=0)
    try:
        long = replace(
            plain, layout="long", id_column=reading.id_column, value_column=bases[0], future=tuple(bases[1:])
        )
        pieces = read_series(source, long)
    except InputError as error:
        if "_column" not in error.message or any(name.endswith("]") for name in columns):
            raise
        piece = read_series(source, replace(plain, text_columns="drop"))[0]
        absent = [name for name in columns if name not in piece.columns]
        if absent:
            raise no_column(listed(absent), piece.columns, option="future covariate", file=piece.path) from None
        return _dated(piece.only(columns), columns, "", plan, series, notes)
    tables = []
    for piece in pieces:
        key = piece.columns[0]
        tables.append(_dated(piece, [f"{base}[{key}]" for base in bases], f" of {key}", plan, series, notes))
    table = pd.concat(tables, axis=1)
    for base in bases:
        if base in columns:  # the same for all series
            table[base] = (
                table[[name for name in table.columns if name.startswith(f"{base}[")]].bfill(axis=1).iloc[:, 0]
            )
    return table


def _dated(piece: Series, columns: list[str], name: str, plan: Plan, series: Series, notes: list[str]) -> pd.DataFrame:
    """Return the values by date, in the clock of the history; duplicate dates have the policy of the history."""
    if piece.dates is not None:
        found: list[str] = []
        ordered = piece.rows(np.argsort(piece.dates.to_numpy(), kind="stable"))
        piece = without_duplicates(ordered, plan.policies, found, name)
        notes += [f"{piece.path}: {line}" for line in found]
    table = pd.DataFrame(piece.values, index=piece.dates, columns=columns)
    return _in_clock(table[~table.index.duplicated(keep="last")], piece, series)


def _in_clock(table: pd.DataFrame, piece: Series, series: Series) -> pd.DataFrame:
    """Convert the dates to the time zone of the history."""
    if (piece.zone is None) != (series.zone is None):
        raise InputError("either its dates or those of the history have a time zone, but not both", file=piece.path)
    if piece.utc != series.utc and piece.zone is not None:
        index = table.index
        index = (
            index.tz_localize("UTC").tz_convert(series.zone).tz_localize(None)
            if piece.utc
            else index.tz_localize(series.zone, ambiguous=np.ones(len(index), dtype=bool), nonexistent="shift_forward")
            .tz_convert("UTC")
            .tz_localize(None)
        )
        table = table.set_axis(index, axis=0)
    return table
