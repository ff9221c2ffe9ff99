"""From what a file holds to one regular table: order, repeated dates, gaps, missing values, series of unequal spans.

Each irregularity has a policy; the default is an error that names the place and the policies. What a policy did is
counted and said. Needs no torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm_forecasting import calendar
from seqssm_forecasting.files import Series
from seqssm_forecasting.text import listed

CHOICES: dict[str, tuple[str, ...]] = {
    "unsorted": ("error", "sort"),
    "duplicates": ("error", "equal", "first", "last", "mean"),
    "gaps": ("error", "fill"),
    "missing": ("error", "mask", "forward", "linear"),
    "ragged": ("error", "mask", "intersect"),
    "irregular_dates": ("error", "keep"),
}
SUSPECTS = (-9999.0, -999.0, -99.0, -9999.9, -999.9, -99.9, 9999.0, 99999.0, 999999.0, -99999.0, -32768.0, 1e20, -1e20)
"""Numbers that instruments write where they have none."""
MOST_ROWS = 5_000_000  # of a filled grid: more is a wrong frequency or a wrong date, not a series


@dataclass(frozen=True)
class Policies:
    """What is done about irregular data.

    Attributes:
        unsorted: ``sort`` brings rows into the order of their dates.
        duplicates: of rows with the same date: ``equal`` keeps one of those that agree in every value (others stay an
            error), ``first`` and ``last`` keep that row, ``mean`` takes the mean by series.
        gaps: ``fill`` puts a row without values where a date is missing.
        missing: of cells without value: ``mask`` leaves them out of window normalisation, loss and errors; ``forward``
            takes the value before (at the start the first one after); ``linear`` draws a line between the neighbours
            (which reads the future; at the ends as ``forward``).
        ragged: of series with different first or last dates: ``mask`` takes all dates, ``intersect`` the common ones.
        irregular_dates: ``keep`` takes repeated and missing dates as they are, as the public benchmarks do.
        sentinels: numbers that stand for a missing value.
    """

    unsorted: str = "error"
    duplicates: str = "error"
    gaps: str = "error"
    missing: str = "error"
    ragged: str = "error"
    irregular_dates: str = "error"
    sentinels: tuple[float, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As plain Python, for a checkpoint."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**own, "sentinels": list(self.sentinels)}

    @staticmethod
    def of(plain: dict[str, Any]) -> Policies:
        """From `plain` (names that are not there have their default)."""
        own = {one.name: plain[one.name] for one in fields(Policies) if one.name in plain}
        return Policies(**{**own, "sentinels": tuple(own.get("sentinels", ()))})


@dataclass
class Tidy:
    """A regular table and how it came to be.

    Attributes:
        series: dates regular (unless kept as they are); values may be NaN where the policy is ``mask``.
        freq: the frequency; None without dates.
        evidence: what the frequency was read off.
        notes: what was done, counted.
        future: rows after the history in which only the columns known beforehand have values, or None.
        gaps: (rows, variates of the whole file), True where a value was missing before it was filled; None: none was.
    """

    series: Series
    freq: str | None = None
    evidence: str = ""
    notes: list[str] = field(default_factory=list)
    future: Series | None = None
    gaps: pd.DataFrame | None = None

    def was_there(self, series: Series) -> np.ndarray:
        """(rows, variates of `series`), False where a value was missing; `series` holds some of the columns."""
        if self.gaps is None:
            return np.ones(series.values.shape, dtype=bool)
        return ~self.gaps[series.columns].to_numpy()


def tidy(pieces: Sequence[Series], policies: Policies, freq: str | None = None) -> Tidy:
    """One regular table of what a file holds.

    Args:
        pieces: of `files.read`: one table, or one for each id of a long file.
        policies: what is done about what.
        freq: pandas alias; by default it is read off the dates.

    Raises:
        InputError: something irregular whose policy is an error; names the place and the policies.
    """
    notes = [note for piece in pieces for note in piece.notes]
    cleaned = []
    for piece in pieces:
        piece = _without_sentinels(piece, policies.sentinels, notes)
        if piece.dates is not None:
            piece = _sorted(piece, policies, notes)
            piece = _single(piece, policies, notes)
        cleaned.append(piece)
    series = _joined(cleaned, policies, notes) if len(cleaned) > 1 else cleaned[0]
    found = Tidy(series, notes=_merged(notes))
    if series.dates is not None:
        found.freq, found.evidence = calendar.frequency(series, freq, policies.irregular_dates, policies.gaps == "fill")
        if policies.irregular_dates == "keep":
            repeated, gaps = calendar.irregularities(series, found.freq)
            found.notes.append(f"dates kept as they are: {repeated} repeated, {gaps} gaps")
        else:
            found.series = _on_grid(series, found.freq, found.notes)
    found.series, found.future = _future_rows(found.series)
    gaps = np.isnan(found.series.values)
    found.gaps = pd.DataFrame(gaps, columns=found.series.columns) if gaps.any() else None
    found.series = _complete(found.series, policies, found.notes)
    _suspect(found.series, policies, found.notes)
    return found


def _merged(notes: list[str]) -> list[str]:
    """Notes of the many series of a long file, equal ones once."""
    return list(dict.fromkeys(notes))


def _without_sentinels(piece: Series, sentinels: tuple[float, ...], notes: list[str]) -> Series:
    if not sentinels:
        return piece
    hit = np.isin(piece.values, np.array(sentinels, dtype=np.float64))
    if not hit.any():
        return piece
    by_column = [f"{name} {int(n)}" for name, n in zip(piece.columns, hit.sum(0)) if n]
    told = ", ".join(f"{value:g}" for value in sentinels)
    notes.append(f"cells of {told} taken as missing: {int(hit.sum())} ({listed(by_column)})")
    return replace(piece, values=np.where(hit, np.nan, piece.values))


def _sorted(piece: Series, policies: Policies, notes: list[str]) -> Series:
    assert piece.dates is not None
    back = np.flatnonzero(np.diff(piece.dates.to_numpy()) < np.timedelta64(0))
    if not len(back):
        return piece
    if policies.unsorted == "sort":
        what = f" of {piece.columns[0]}" if piece.future == piece.columns[1:] and len(piece.columns) == 1 else ""
        notes.append(f"rows{what} sorted by date ({_count(len(back), 'step')} back in time)")
        return piece.rows(np.argsort(piece.dates.to_numpy(), kind="stable"))
    row = int(back[0]) + 1
    raise InputError(
        f"{piece.dates[row]} comes after {piece.dates[row - 1]} ({_count(len(back), 'step')} back); sort the file by "
        "date, or --data.unsorted sort",
        file=piece.path,
        place=piece.place(row, "1" if piece.lines is not None else None),
    )


def _single(piece: Series, policies: Policies, notes: list[str]) -> Series:
    """One row a date; the dates are ascending already."""
    assert piece.dates is not None
    if policies.irregular_dates == "keep":
        return piece
    stamps = piece.dates.to_numpy()
    again = np.flatnonzero(stamps[1:] == stamps[:-1]) + 1
    if not len(again):
        return piece
    same = (piece.values[again] == piece.values[again - 1]) | (
        np.isnan(piece.values[again]) & np.isnan(piece.values[again - 1])
    )
    conflicts = again[~same.all(1)]
    policy = policies.duplicates
    if policy == "error" or (policy == "equal" and len(conflicts)):
        row = int(conflicts[0] if policy == "equal" else again[0])
        other = f"line {piece.lines[row - 1]}" if piece.lines is not None else "the row before"
        agree = f", {len(conflicts)} of them with other values" if len(conflicts) else ", with equal values"
        raise InputError(
            f"the date {piece.dates[row]} is also on {other} ({_count(len(again), 'repeated date')}{agree}); keep one "
            "row a date, or --data.duplicates equal, first, last or mean",
            file=piece.path,
            place=piece.place(row, "1" if piece.lines is not None else None),
        )
    series = f"{piece.columns[0]}: " if len(piece.columns) == 1 + len(piece.future) else ""
    how = {"equal": "one kept", "first": "first kept", "last": "last kept", "mean": "mean taken"}[policy]
    conflict = f", {len(conflicts)} with other values" if len(conflicts) else ""
    notes.append(f"{series}{_count(len(again), 'repeated date')}{conflict}: {how}")
    begins = np.append(True, stamps[1:] != stamps[:-1])
    if policy == "mean":
        group = np.cumsum(begins) - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no value is none
            means = pd.DataFrame(piece.values).groupby(group).mean().to_numpy()
        return replace(piece.rows(begins), values=means)
    return piece.rows(np.append(stamps[1:] != stamps[:-1], True) if policy == "last" else begins)


def _joined(pieces: list[Series], policies: Policies, notes: list[str]) -> Series:
    """The series of a long file over one time axis."""
    first = pieces[0]
    spans = {}
    for piece in pieces:
        assert piece.dates is not None
        whole = piece.rows(~np.isnan(piece.values[:, 0])) if piece.future else piece  # rows of a plan do not count
        dates = whole.dates if whole.dates is not None and len(whole.dates) else piece.dates
        spans[piece.columns[0]] = (dates[0], dates[-1])
    lows, highs = [a for a, _ in spans.values()], [b for _, b in spans.values()]
    unequal = len(set(spans.values())) > 1
    if unequal and policies.ragged == "error":
        told = [f"{name} {low} to {high}" for name, (low, high) in spans.items()]
        raise InputError(
            f"its series have different spans ({listed(told, 6)}); --data.ragged mask takes all dates, intersect the "
            "common ones",
            file=first.path,
        )
    values = {}
    for piece in pieces:
        for position, name in enumerate(piece.columns):
            values[name] = pd.Series(piece.values[:, position], index=piece.dates)
    table = pd.DataFrame(values).sort_index()
    if unequal and policies.ragged == "intersect":
        low, high = max(lows), min(highs)
        if low >= high:
            raise InputError("its series have no common span (--data.ragged intersect)", file=first.path)
        before = len(table)
        planned = table.index > max(highs)  # rows of a plan after the last history are no history to cut
        table = table[((table.index >= low) & (table.index <= high)) | (planned & bool(high == max(highs)))]
        notes.append(
            f"series cut to their common span, {low} to {high}: {before - len(table)} of {before} dates left out"
        )
    elif unequal:
        outside = sum(int(((table.index < a) | (table.index > b)).sum()) for a, b in spans.values())
        notes.append(f"series of different spans joined, {min(lows)} to {max(highs)}: {outside} cells without value")
    future = [name for piece in pieces for name in piece.future]
    table, future = _shared(table, [piece.columns[0] for piece in pieces], future)
    return Series(
        first.path,
        table.to_numpy(dtype=np.float64),
        list(table.columns),
        pd.DatetimeIndex(table.index),
        None,
        first.zone,
        first.utc,
        future,
    )


def _shared(table: pd.DataFrame, ids: list[str], future: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Columns known beforehand that say the same for every series become one (a holiday), the others stay (a price)."""
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


def _on_grid(series: Series, freq: str, notes: list[str]) -> Series:
    """With a row for every step; `calendar.frequency` has allowed the gaps."""
    assert series.dates is not None
    grid = calendar.grid(series.dates[0], series.dates[-1], freq, MOST_ROWS)
    if grid is None:
        raise InputError(
            f"from {series.dates[0]} to {series.dates[-1]} there are more than {MOST_ROWS} steps of "
            f"{calendar.describe(freq)}: a date or the frequency is wrong",
            file=series.path,
        )
    if len(grid) == len(series):
        return series
    place = grid.get_indexer(series.dates)
    values = np.full((len(grid), len(series.columns)), np.nan)
    values[place] = series.values
    runs = int((np.diff(place) > 1).sum())
    notes.append(f"{len(grid) - len(series)} missing dates in {_count(runs, 'place')} put in, without values")
    return replace(series, values=values, dates=grid, lines=None)


def _future_rows(series: Series) -> tuple[Series, Series | None]:
    """(history, rows after it in which no series has a value, but a column known beforehand has)."""
    if not series.future:
        return series, None
    plan = [series.columns.index(name) for name in series.future]
    own = [place for place in range(len(series.columns)) if place not in plan]
    seen = np.flatnonzero(~np.isnan(series.values[:, own]).all(1))
    end = int(seen[-1]) + 1 if len(seen) else 0
    rest = series.rows(np.arange(end, len(series)))
    if np.isnan(rest.values[:, plan]).all():
        return series, None
    return series.rows(np.arange(end)), rest


def _complete(series: Series, policies: Policies, notes: list[str]) -> Series:
    gaps = np.isnan(series.values)
    plan = [series.columns.index(name) for name in series.future]
    if plan and gaps[:, plan].any():
        row, column = (int(place) for place in np.argwhere(gaps[:, plan])[0])
        raise InputError(
            f"no value, in a column that is known beforehand ({int(gaps[:, plan].sum())} such cells)",
            file=series.path,
            place=series.place(row, series.future[column]),
        )
    if not gaps.any():
        return series
    empty = [name for name, none in zip(series.columns, gaps.all(0)) if none]
    if empty:
        raise InputError(f"the column {listed(empty)} holds no value at all", file=series.path)
    total, columns = int(gaps.sum()), int(gaps.any(0).sum())
    if policies.missing == "error":
        row, column = (int(place) for place in np.argwhere(gaps)[0])
        more = f" ({total} such cells in {columns} of the columns)" if total > 1 else ""
        raise InputError(
            f"no value{more}; --data.missing mask leaves such cells out, forward takes the value before, linear "
            "draws a line",
            file=series.path,
            place=series.place(row, series.columns[column]),
        )
    told = [f"{name} {int(n)}" for name, n in zip(series.columns, gaps.sum(0)) if n]
    how = {
        "mask": "left out of normalisation, loss and errors",
        "forward": "filled with the value before (else after) them",
        "linear": "filled along a line between their neighbours",
    }[policies.missing]
    notes.append(f"{total} missing cells {how} ({listed(told)})")
    if policies.missing == "mask":
        return series
    return replace(series, values=filled(series.values, series.path, policies.missing))


def filled(values: np.ndarray, path: Path, how: str = "forward") -> np.ndarray:
    """Gaps filled with the value before them, those at the start with the first one after; or along a line.

    Args:
        values: (rows, variates), NaN where there is none.
        path: for error messages.
        how: ``"forward"`` or ``"linear"``.

    Raises:
        InputError: a variate has no value at all.
    """
    gaps = np.isnan(values)
    if not gaps.any():
        return values
    if gaps.all(0).any():
        raise InputError(f"column {int(gaps.all(0).argmax()) + 1} holds no value at all", file=path)
    if how == "linear":
        rows = np.arange(len(values))
        columns = [np.interp(rows, rows[~gap], column[~gap]) for column, gap in zip(values.T, gaps.T)]
        return np.stack(columns, axis=1)
    rows = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(gaps, -1, rows), axis=0)
    after = np.minimum.accumulate(np.where(gaps, len(values), rows)[::-1], axis=0)[::-1]
    return np.take_along_axis(values, np.where(before >= 0, before, after), axis=0)


def _suspect(series: Series, policies: Policies, notes: list[str]) -> None:
    """Says where a number looks like one that stands for a missing value."""
    seen = [value for value in SUSPECTS if value not in policies.sentinels]
    for name, column in zip(series.columns, series.values.T):
        hit = np.isin(column, seen)
        if not hit.any():
            continue
        rest = column[~hit & ~np.isnan(column)]
        if len(rest) < 3:
            continue
        low, middle, high = np.percentile(rest, (1, 50, 99))
        reach = 3 * (high - low) + 1e-9
        for value in np.unique(column[hit]):
            if abs(value - middle) > reach:
                notes.append(
                    f"{name} holds {value:g} {int((column == value).sum())} times, far from the rest: if it stands for "
                    f"a missing value, --data.sentinels {value:g}"
                )


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"
