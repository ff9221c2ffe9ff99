"""Combination of the series of a long file over a common time axis. Does not import torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm_forecasting.series import Series, listed

Spans = dict[str, tuple[pd.Timestamp, pd.Timestamp]]


def joined(pieces: list[Series], ragged: str, notes: list[str]) -> tuple[Series, Spans]:
    """Combine the series of a long file over the union (or intersection) of their dates.

    Args:
        pieces: one per id, each sorted by date; a single one is returned unchanged.
        ragged: policy for series with different spans: ``error``, ``mask``, ``intersect``.
        notes: list to which messages are appended.

    Returns:
        (series, first and last date of each variate that does not span all dates).

    Raises:
        InputError: the spans differ and `ragged` is ``error``, or there is no common span.
    """
    if len(pieces) == 1:
        return pieces[0], {}
    first = pieces[0]
    if len({piece.numbered for piece in pieces}) > 1 or len({piece.utc for piece in pieces}) > 1:
        raise InputError("its series have dates of different kinds", file=first.path)
    spans = {piece.columns[0]: _span(piece) for piece in pieces}
    lows, highs = [a for a, _ in spans.values()], [b for _, b in spans.values()]
    unequal = len(set(spans.values())) > 1
    if unequal and ragged == "error":
        told = [f"{name} {first.label_of(a)} to {first.label_of(b)}" for name, (a, b) in spans.items()]
        raise InputError(
            f"its series have different spans ({listed(told, 6)}); --data.ragged mask uses all dates, intersect the "
            "common ones",
            file=first.path,
        )
    table = _union(pieces)
    if unequal and ragged == "intersect":
        low, high = max(lows), min(highs)
        if low >= high:
            raise InputError("its series have no common span (--data.ragged intersect)", file=first.path)
        before = len(table)
        planned = table.index > max(highs)  # planned rows after the end of the history are not cut
        table = table[((table.index >= low) & (table.index <= high)) | (planned & bool(high == max(highs)))]
        notes.append(
            f"series cut to their common span, {first.label_of(low)} to {first.label_of(high)}: "
            f"{before - len(table)} of {before} dates dropped"
        )
        spans = {}
    elif unequal:
        outside = sum(int(((table.index < a) | (table.index > b)).sum()) for a, b in spans.values())
        notes.append(
            f"series of different spans, {first.label_of(min(lows))} to {first.label_of(max(highs))}: "
            f"{outside} cells outside the span of their series excluded from normalisation, loss and errors "
            f"({listed(_ragged(spans, min(lows), max(highs), first), 6)})"
        )
    else:
        spans = {}
    future = [name for piece in pieces for name in piece.future]
    table, future = _shared(table, [piece.columns[0] for piece in pieces], future)
    series = Series(
        first.path,
        table.to_numpy(dtype=np.float64),
        list(table.columns),
        pd.DatetimeIndex(table.index),
        None,
        first.zone,
        first.utc,
        future,
        numbered=first.numbered,
        row=first.row,
    )
    return series, spans


def split_future(series: Series) -> tuple[Series, Series | None]:
    """Split into (variates, future covariates or None).

    Raises:
        InputError: there are only future covariates.
    """
    if not series.future:
        return series, None
    if not series.own:
        raise InputError("has no columns other than future covariates", file=series.path)
    return series.only(series.own), series.only(series.future)


def _span(piece: Series) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Return the first and last date of a series, ignoring planned rows without a value of the series."""
    assert piece.dates is not None
    dates = piece.dates
    if piece.future:
        seen = np.flatnonzero(~np.isnan(piece.values[:, 0]))
        if len(seen):
            return dates[seen[0]], dates[seen[-1]]
    return dates[0], dates[-1]


def _ragged(spans: Spans, low: pd.Timestamp, high: pd.Timestamp, series: Series) -> list[str]:
    told = []
    for name, (first, last) in spans.items():
        late = f" from {series.label_of(first)}" if first > low else ""
        early = f" to {series.label_of(last)}" if last < high else ""
        if late or early:
            told.append(f"{name}{late}{early}")
    return told


def _union(pieces: list[Series]) -> pd.DataFrame:
    """Return all variates over the union of their dates; the last value wins for duplicate dates."""
    stamps = [piece.dates.to_numpy("datetime64[us]") for piece in pieces if piece.dates is not None]
    if all(len(one) == len(stamps[0]) and (one == stamps[0]).all() for one in stamps[1:]):
        union = stamps[0]
        values = np.concatenate([piece.values for piece in pieces], axis=1)
    else:
        union = np.unique(np.concatenate(stamps))
        values = np.full((len(union), sum(len(piece.columns) for piece in pieces)), np.nan)
        position = 0
        for piece, own in zip(pieces, stamps):
            width = len(piece.columns)
            values[np.searchsorted(union, own), position : position + width] = piece.values
            position += width
    return pd.DataFrame(values, pd.DatetimeIndex(union), [name for piece in pieces for name in piece.columns])


def _shared(table: pd.DataFrame, ids: list[str], future: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Merge future covariates that are equal for all series (a holiday); keep the others per series (a price)."""
    kept = []
    for name in dict.fromkeys(column.rsplit("[", 1)[0] for column in future):
        own = [f"{name}[{key}]" for key in ids]
        some = table[own].bfill(axis=1).iloc[:, 0]
        if all(((table[column] == some) | table[column].isna()).all() for column in own):
            table = table.drop(columns=own).assign(**{name: some})
            kept.append(name)
        else:
            kept += own
    return table[[*ids, *kept]], kept
