"""Regularisation of tables: order, duplicate dates, gaps, missing values.

Each irregularity has a policy; the default is an error with the location and the available policies. The effect of a
policy is counted and reported. Does not import torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.numbers import LARGEST
from seqssm_forecasting import calendar
from seqssm_forecasting.panel import joined
from seqssm_forecasting.series import Series, listed
from seqssm_forecasting.steps import Step

CHOICES: dict[str, tuple[str, ...]] = {
    "unsorted": ("error", "sort"),
    "duplicates": ("error", "equal", "first", "last", "mean"),
    "gaps": ("error", "fill"),
    "missing": ("error", "mask", "forward", "linear"),
    "ragged": ("error", "mask", "intersect"),
    "irregular_dates": ("error", "keep"),
    "future_missing": ("error", "forward", "zero"),
}
SUSPECTS = (-9999.0, -999.0, -99.0, -9999.9, -999.9, -99.9, 9999.0, 99999.0, 999999.0, -99999.0, -32768.0, 1e20, -1e20)
"""Sentinel values that instruments write for missing readings."""


@dataclass(frozen=True)
class Policies:
    """Policies for irregular data; the default of most is an error.

    Attributes:
        unsorted: rows out of order: ``sort`` sorts them by date.
        duplicates: rows with the same date: ``equal`` keeps one if all values agree (otherwise it is an error),
            ``first`` and ``last`` keep that row, ``mean`` averages per series.
        gaps: missing dates: ``fill`` inserts rows without values.
        missing: missing values: ``mask`` excludes them from window normalisation, loss and errors; ``forward`` repeats
            the previous value (at the start the next one); ``linear`` interpolates between the neighbours, which uses
            future values (``forward`` at the ends).
        ragged: series with different first or last dates: ``mask`` uses all dates and excludes cells outside the span
            of a series from normalisation, loss and errors; ``intersect`` uses the common dates.
        irregular_dates: ``keep`` accepts duplicate and missing dates, as the public benchmarks do.
        sentinels: numbers that encode missing values.
        future_missing: missing future covariates, including those in inserted rows: ``forward`` repeats the previous
            value, ``zero`` inserts 0.
    """

    unsorted: str = "error"
    duplicates: str = "error"
    gaps: str = "error"
    missing: str = "error"
    ragged: str = "mask"
    irregular_dates: str = "error"
    sentinels: tuple[float, ...] = ()
    future_missing: str = "error"

    def for_suffix(self, suffix: str) -> Policies:
        """Return the policies for a file; gaps of a PEMS archive (.npz) are filled, as in the benchmark."""
        return replace(self, missing="forward") if suffix == ".npz" and self.missing == "error" else self

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain Python, for a checkpoint."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**own, "sentinels": list(self.sentinels)}

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Policies:
        """Create from `to_dict` or from options of the data module; absent names have their defaults."""
        own = {one.name: plain[one.name] for one in fields(Policies) if one.name in plain}
        numbers = own.get("sentinels") or ()
        many = [numbers] if isinstance(numbers, int | float) else numbers
        return Policies(**{**own, "sentinels": tuple(float(number) for number in many)})


@dataclass
class Tidy:
    """A regular table and its provenance.

    Attributes:
        series: the series, with regular dates (unless irregular ones are kept) and NaN for masked values.
        step: the step between rows; None without dates.
        evidence: evidence for the step.
        notes: messages about applied policies, with counts.
        future: rows after the history in which only future covariates have values, or None.
        measured: mask of the file, (rows, variates), False for values missing in the file.
        observed: observation mask, (rows, variates), False for masked values.
        empty: names of series without any value, which are dropped.
        outside: mask, (rows, variates), True before the first and after the last date of a series of a long file.
        covered: names of future covariates whose values outside of their series' span were filled.
    """

    series: Series
    step: Step | None = None
    evidence: str = ""
    notes: list[str] = field(default_factory=list)
    future: Series | None = None
    measured: pd.DataFrame = field(default_factory=pd.DataFrame)
    observed: pd.DataFrame = field(default_factory=pd.DataFrame)
    outside: pd.DataFrame = field(default_factory=pd.DataFrame)
    empty: list[str] = field(default_factory=list)
    covered: list[str] = field(default_factory=list)

    @property
    def freq(self) -> str | None:
        """Name of the step."""
        return None if self.step is None else self.step.name

    def measured_in(self, series: Series) -> np.ndarray:
        """Return (rows, variates of `series`), False for values missing in the file."""
        return self.measured[series.columns].to_numpy()

    def inside(self, series: Series) -> np.ndarray:
        """Return (rows, variates of `series`), True within the span of each series."""
        return ~self.outside[series.columns].to_numpy()

    def observed_in(self, series: Series) -> np.ndarray:
        """Return (rows, variates of `series`), False for masked values."""
        return self.observed[series.columns].to_numpy()


def tidy(pieces: Sequence[Series], policies: Policies, freq: str | None = None, observed: bool = False) -> Tidy:
    """Regularise the content of a file.

    Args:
        pieces: result of `files.read_series`: one table, or one per id of a long file.
        policies: policies for irregular data.
        freq: pandas alias; by default inferred from the dates.
        observed: whether the time axis consists of the times of the week that have rows.

    Raises:
        InputError: an irregularity whose policy is an error; the message has the location and the policies.
    """
    notes = [note for piece in pieces for note in piece.notes]
    cleaned = []
    for piece in pieces:
        piece = _without_sentinels(piece, policies.sentinels, notes)
        _require_moderate(piece)
        if piece.dates is not None:
            name = f" of {piece.columns[0]}" if len(pieces) > 1 else ""
            piece = _sorted(piece, policies, notes, name)
            piece = without_duplicates(piece, policies, notes, name)
        cleaned.append(piece)
    series, spans = joined(cleaned, policies.ragged, notes)
    found = Tidy(series, notes=list(dict.fromkeys(notes)))
    if series.dates is not None:
        kept, fill = policies.irregular_dates, policies.gaps == "fill"
        found.step, found.evidence = calendar.frequency(series, freq, kept, fill, observed)
        if kept == "keep":
            repeated, gaps = calendar.irregularities(series, found.step)
            found.notes.append(f"irregular dates kept: {repeated} duplicate, {gaps} gaps")
        else:
            found.series = _on_grid(series, found.step, found.notes)
    found.series, found.future = _future_rows(found.series)
    _drop_empty(found)
    outside = _outside(found.series, spans)
    found.outside = pd.DataFrame(outside, columns=found.series.columns)
    found.measured = pd.DataFrame(~np.isnan(found.series.values), columns=found.series.columns)
    found.series = _covariates(found, outside, policies)
    found.series = _complete(found, outside, policies)
    _suspect(found.series, policies, found.notes)
    return found


def _without_sentinels(piece: Series, sentinels: tuple[float, ...], notes: list[str]) -> Series:
    if not sentinels:
        return piece
    hit = np.isin(piece.values, np.array(sentinels, dtype=np.float64))
    if not hit.any():
        return piece
    by_column = [f"{name} {int(n)}" for name, n in zip(piece.columns, hit.sum(0)) if n]
    told = ", ".join(f"{value:g}" for value in sentinels)
    notes.append(f"{int(hit.sum())} cells of {told} read as missing ({listed(by_column)})")
    return replace(piece, values=np.where(hit, np.nan, piece.values))


def _require_moderate(piece: Series) -> None:
    """Reject values whose variance would overflow; instruments and databases write them where they have none."""
    with np.errstate(invalid="ignore"):
        large = np.argwhere(np.abs(piece.values) > LARGEST)
    if len(large):
        row, column = (int(one) for one in large[0])
        value = piece.values[row, column]
        raise calendar.at(
            piece,
            row,
            f"{piece.columns[column]} is {value:g}, above {LARGEST:g} in magnitude; --data.sentinels {float(value)!r} "
            f"reads it as missing",
        )


def _sorted(piece: Series, policies: Policies, notes: list[str], name: str) -> Series:
    assert piece.dates is not None
    back = np.flatnonzero(np.diff(piece.dates.to_numpy()) < np.timedelta64(0))
    if not len(back):
        return piece
    if policies.unsorted == "sort":
        notes.append(f"rows{name} sorted by date ({_count(len(back), 'step')} back in time)")
        return piece.rows(np.argsort(piece.dates.to_numpy(), kind="stable"))
    row = int(back[0]) + 1
    raise calendar.at(
        piece,
        row,
        f"{piece.label(row)}{name} comes after {piece.label(row - 1)} ({_count(len(back), 'step')} back); sort the "
        f"file by date, or --data.unsorted sort{calendar.clock_hint(piece, row)}",
    )


def without_duplicates(piece: Series, policies: Policies, notes: list[str], name: str = "") -> Series:
    """Merge rows with the same date by the policy.

    Args:
        piece: a series whose dates are sorted.
        policies: policies for irregular data.
        notes: list to which messages are appended.
        name: words for the error after the date, " of a".

    Raises:
        InputError: a date appears twice, and the policy is an error.
    """
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
        other = f"{piece.row} {piece.lines[row - 1]}" if piece.lines is not None else "the row before"
        agree = f", {len(conflicts)} of them with other values" if len(conflicts) else ", with equal values"
        raise calendar.at(
            piece,
            row,
            f"the date {piece.label(row)}{name} is also on {other} ({_count(len(again), 'duplicate date')}{agree}); "
            f"keep one row per date, or --data.duplicates equal, first, last or mean{calendar.clock_hint(piece, row)}",
        )
    series = f"{piece.columns[0]}: " if len(piece.columns) == 1 + len(piece.future) else ""
    how = {"equal": "one kept", "first": "first kept", "last": "last kept", "mean": "mean taken"}[policy]
    conflict = f", {len(conflicts)} with other values" if len(conflicts) else ""
    notes.append(f"{series}{_count(len(again), 'duplicate date')}{conflict}: {how}")
    begins = np.append(True, stamps[1:] != stamps[:-1])
    if policy == "mean":
        group = np.cumsum(begins) - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no values is NaN
            means = pd.DataFrame(piece.values).groupby(group).mean().to_numpy()
        return replace(piece.rows(begins), values=means)
    return piece.rows(np.append(stamps[1:] != stamps[:-1], True) if policy == "last" else begins)


def _on_grid(series: Series, step: Step, notes: list[str]) -> Series:
    """Insert a row for every missing step; `calendar.frequency` has allowed the gaps."""
    assert series.dates is not None
    grid = calendar.grid(series, step)
    if len(grid) == len(series):
        return series
    positions = step.positions(series.dates.to_numpy("datetime64[us]"), grid[0])
    values = np.full((len(grid), len(series.columns)), np.nan)
    values[positions] = series.values
    lines = None
    if series.lines is not None:
        lines = np.zeros(len(grid), dtype=np.int64)
        lines[positions] = series.lines
    runs = int((np.diff(positions) > 1).sum())
    notes.append(f"{_count(len(grid) - len(series), 'missing date')} in {_count(runs, 'place')} filled with empty rows")
    return replace(series, values=values, dates=pd.DatetimeIndex(grid), lines=None)


def _future_rows(series: Series) -> tuple[Series, Series | None]:
    """Split into (history, later rows in which only future covariates have values)."""
    if not series.future:
        return series, None
    plan = [series.columns.index(name) for name in series.future]
    own = [index for index in range(len(series.columns)) if index not in plan]
    seen = np.flatnonzero(~np.isnan(series.values[:, own]).all(1))
    end = int(seen[-1]) + 1 if len(seen) else 0
    rest = series.rows(np.arange(end, len(series)))
    if np.isnan(rest.values[:, plan]).all():
        return series, None
    return series.rows(np.arange(end)), rest


def _drop_empty(found: Tidy) -> None:
    """Drop series without any value."""
    series = found.series
    empty = [name for name in series.own if np.isnan(series.values[:, series.columns.index(name)]).all()]
    if not empty:
        return
    if len(empty) == len(series.own):
        raise InputError(f"the {'columns' if len(empty) > 1 else 'column'} {listed(empty)} contain no values",
                         file=series.path)  # fmt: skip
    found.empty = empty
    gone = [*empty, *(name for name in series.future if any(name.endswith(f"[{own}]") for own in empty))]
    found.series = series.only([name for name in series.columns if name not in gone])
    if found.future is not None:
        found.future = found.future.only(found.series.columns)
    found.notes.append(f"series without any value dropped: {listed(empty)}")


def _outside(series: Series, spans: dict[str, tuple[pd.Timestamp, pd.Timestamp]]) -> np.ndarray:
    """Return (rows, variates), True before the first and after the last date of a series of a long file."""
    outside = np.zeros(series.values.shape, dtype=bool)
    if series.dates is None or not spans:
        return outside
    for position, name in enumerate(series.columns):
        key = name if name in spans else name.rsplit("[", 1)[-1].removesuffix("]") if name in series.future else ""
        if key in spans:
            low, high = spans[key]
            outside[:, position] = (series.dates < low) | (series.dates > high)
    return outside


def _covariates(found: Tidy, outside: np.ndarray, policies: Policies) -> Series:
    """Fill future covariates by their policy; outside the span of their series by the nearest value."""
    series = found.series
    plan = [series.columns.index(name) for name in series.future]
    gaps = np.isnan(series.values[:, plan])
    if not plan or not gaps.any():
        return series
    inside = gaps & ~outside[:, plan]
    if inside.any() and policies.future_missing == "error":
        row, column = (int(index) for index in np.argwhere(inside)[0])
        cells = _count(int(inside.sum()), "such cell")
        raise InputError(
            f"missing future covariate ({cells}); --data.future_missing forward repeats the last value, zero inserts 0",
            file=series.path,
            place=series.place(row, series.future[column]),
        )
    values = series.values.copy()
    own = values[:, plan]
    if inside.any():
        how = {"forward": "filled with the previous (else next) value", "zero": "set to 0"}[policies.future_missing]
        found.notes.append(f"{_count(int(inside.sum()), 'missing cell')} of future covariates {how}")
        if policies.future_missing == "zero":
            own[inside] = 0.0
    found.covered = [name for name, any_ in zip(series.future, (gaps & ~inside).any(0)) if any_]
    empty = np.isnan(own).all(0)
    own[:, empty] = 0.0
    values[:, plan] = filled(own, series.path)
    return replace(series, values=values)


def _complete(found: Tidy, outside: np.ndarray, policies: Policies) -> Series:
    """Handle missing values by their policy, and set `observed`."""
    series = found.series
    own = np.array([name not in series.future for name in series.columns])
    gaps = np.isnan(series.values) & own
    inside = gaps & ~outside
    masked = gaps & outside
    if inside.any():
        if policies.missing == "error":
            row, column = (int(index) for index in np.argwhere(inside)[0])
            total, columns = int(inside.sum()), int(inside.any(0).sum())
            more = f" ({total} such cells in {columns} of the columns)" if total > 1 else ""
            raise InputError(
                f"no value{more}; --data.missing mask excludes such cells, forward repeats the previous value, linear "
                "interpolates",
                file=series.path,
                place=series.place(row, series.columns[column]),
            )
        told = [f"{name} {int(n)}" for name, n in zip(series.columns, inside.sum(0)) if n]
        how = {
            "mask": "excluded from normalisation, loss and errors",
            "forward": "filled with the previous (else next) value",
            "linear": "interpolated between their neighbours",
        }[policies.missing]
        found.notes.append(f"{_count(int(inside.sum()), 'missing cell')} {how} ({listed(told)})")
    if policies.missing == "mask":
        masked = gaps
    found.observed = pd.DataFrame(~masked, columns=series.columns)
    if policies.missing in ("mask", "error") or not inside.any():
        return series
    whole = filled(series.values, series.path, policies.missing)
    return replace(series, values=np.where(inside, whole, series.values))


def filled(values: np.ndarray, path: Path, how: str = "forward") -> np.ndarray:
    """Fill gaps with the previous value (at the start with the next one), or by linear interpolation.

    Args:
        values: table of values, (rows, variates), NaN if missing.
        path: path used in error messages.
        how: ``"forward"`` or ``"linear"``.

    Raises:
        InputError: a variate has no values.
    """
    gaps = np.isnan(values)
    if not gaps.any():
        return values
    if gaps.all(0).any():
        raise InputError(f"column {int(gaps.all(0).argmax()) + 1} contains no values", file=path)
    if how == "linear":
        rows = np.arange(len(values))
        columns = [np.interp(rows, rows[~gap], column[~gap]) for column, gap in zip(values.T, gaps.T)]
        return np.stack(columns, axis=1)
    rows = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(gaps, -1, rows), axis=0)
    after = np.minimum.accumulate(np.where(gaps, len(values), rows)[::-1], axis=0)[::-1]
    return np.take_along_axis(values, np.where(before >= 0, before, after), axis=0)


def _suspect(series: Series, policies: Policies, notes: list[str]) -> None:
    """Report numbers that may be sentinels."""
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
                    f"{name} contains {value:g} {int((column == value).sum())} times, far from all others: if it "
                    f"encodes a missing value, --data.sentinels {value:g}"
                )


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"
