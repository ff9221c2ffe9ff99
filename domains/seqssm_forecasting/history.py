"""Preparation of a series file for a trained network: checks against the checkpoint, and a status per series."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from seqssm.errors import InputError
from seqssm.files.notes import note
from seqssm_forecasting import calendar, covariates, holidays, statics, steps, zones
from seqssm_forecasting.files import read_for_model, read_series, suffix_of
from seqssm_forecasting.panel import split_future
from seqssm_forecasting.reading import Reading
from seqssm_forecasting.series import Series, listed
from seqssm_forecasting.tidy import Policies, Tidy, filled, tidy


@dataclass
class History:
    """A series file prepared for the network.

    Attributes:
        series: the variates in the order of the network, with missing values filled.
        observed: observation mask, (rows, N), False for masked values; None if there are none.
        marks: calendar features of history and horizon, (rows + T, M), float32.
        futr_exog: scaled future covariates, (rows + T, K), or None.
        static: static features, (N, F), or None.
        mean: mean of the scaler, (N,); NaN for unseen series.
        std: standard deviation of the scaler, (N,); NaN for unseen series.
        outputs: number of variates to forecast; they are the last ones.
        when: dates, or row numbers for a file without dates, (rows + T,).
        ends: first forecast row of each window.
        scores: index of each output among those of the training; -1 for unseen series.
        reasons: reason for each series that cannot be forecast, including series that are not among the variates.
        step: step between rows; None without dates.
        drawn: forecast of the last window, for the figures.
        others: observed values of the series of the file that are not among the variates, (rows,); NaN where missing.
    """

    series: Series
    observed: np.ndarray | None
    marks: np.ndarray
    futr_exog: np.ndarray | None
    static: Tensor | None
    mean: np.ndarray
    std: np.ndarray
    outputs: int
    when: Any
    ends: list[int]
    scores: list[int]
    reasons: dict[str, str] = field(default_factory=dict)
    step: steps.Step | None = None
    drawn: dict[str, Any] = field(default_factory=dict)
    others: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the variates to forecast."""
        return self.series.columns[-self.outputs :]

    def actual(self, rows: np.ndarray) -> np.ndarray:
        """Return the observed values of the outputs at rows ``rows (windows, steps)``; NaN where there is none.

        Returns:
            (outputs, windows, steps), in the file's units.
        """
        history = self.series.values[:, -self.outputs :]
        if self.observed is not None:
            history = np.where(self.observed[:, -self.outputs :], history, np.nan)
        return history[np.minimum(rows, len(history) - 1)].transpose(2, 0, 1)

    def actual_of(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return the observed values (windows, steps) of a series that is not among the variates, likewise."""
        history = self.others.get(name, np.full(len(self.series), np.nan))
        return history[np.minimum(rows, len(history) - 1)]


def with_own_options(text: str) -> str:
    """Replace options of the data module by those of `predict`: ``--data.skip_rows`` becomes ``--skip-rows``."""
    return re.sub(r"--data\.(\w+)", lambda found: "--" + found[1].replace("_", "-"), text)


class Reporter:
    """Prints each line once, although files are read twice: to count the records, and to predict."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def __call__(self, line: str) -> None:
        line = with_own_options(line)
        if line not in self.told:
            self.told.add(line)
            note(line, sys.stderr)


@dataclass
class Request:
    """The task of a prediction, from the checkpoint's summary and the user's options.

    Attributes:
        summary: summary in the checkpoint.
        reading: options for reading files.
        policies: policies for irregular data.
        horizon: number of steps to forecast.
        backtest: number of windows, or None for the future.
        step: steps between the windows of a backtest.
        unseen: whether to forecast series that the model was not trained on.
        future: source of future covariates, or None.
        static: source of static properties, or None.
        fill_future: policy for missing future covariates of future steps.
        normalised: whether the network normalises each window.
        report: called with each message.
        holidays: holidays that replace those of the checkpoint, or None.
    """

    summary: Mapping[str, Any]
    reading: Reading
    policies: Policies
    horizon: int
    backtest: int | None
    step: int
    unseen: bool
    future: Any
    static: Any
    fill_future: str
    normalised: bool
    report: Reporter
    holidays: Mapping[str, Any] | None = None

    @property
    def ahead(self) -> int:
        """Number of steps after the history that are needed: those of the network, or more."""
        return max(self.horizon, self.summary["horizon"])


def prepare(source: Path | pd.DataFrame, request: Request) -> History:
    """Read a file and check it against the checkpoint: names of variates, frequency, number of rows.

    A series that cannot be forecast (not in the file, unknown to the model, without recent values) gets a reason; the
    others are not affected.

    Args:
        source: the file or data frame.
        request: the task of the prediction.

    Raises:
        InputError: the file does not fit, or no series can be forecast.
    """
    summary = request.summary
    path = Path("DataFrame") if isinstance(source, pd.DataFrame) else source
    pieces = read_for_model(source, _fitting(source, request), summary)
    policies = request.policies.for_suffix(suffix_of(path))
    found = tidy(pieces, policies, summary["freq"])
    for line in found.notes:
        request.report(f"{path}: {line}")
    return _ready(path, found, request, policies, long=len(pieces) > 1)


def _fitting(source: Any, request: Request) -> Reading:
    """Read the history; it may lack covariates that are given in a separate file."""
    if request.future is not None and request.reading.future:
        try:
            read_series(source, request.reading)
        except InputError as error:
            if "future_columns" in error.message:
                return replace(request.reading, future=())
    return request.reading


def _ready(path: Path, found: Tidy, request: Request, policies: Policies, long: bool) -> History:
    summary, lookback, horizon = request.summary, request.summary["lookback"], request.ahead
    series, plan = split_future(found.series)
    rows = len(series)
    if rows < lookback:
        raise InputError(f"has {rows} rows of history; the model needs {lookback}", file=path)
    ends = _ends(rows, path, request)
    reasons = dict.fromkeys(found.empty, "no value in the file")
    observed = pd.DataFrame(found.observed_in(series), columns=series.columns)
    read = pd.DataFrame(series.values, columns=series.columns).where(observed)
    series, mean, std, scores = _variates(series, request, reasons, long)
    for name in series.columns:  # variates missing in the file are masked
        if name not in observed:
            observed[name] = False
    seen = observed[series.columns].to_numpy()
    names = series.columns[-len(scores) :]
    if request.backtest is None:
        reasons |= _silent(series, seen, [name for name in names if name not in reasons], lookback)
    if all(name in reasons for name in names):
        told = [f"{name}: {reason}" for name, reason in reasons.items()]
        raise InputError(f"no series can be forecast ({'; '.join(told[:6])})", file=path)
    gone = [name for name, none in zip(series.columns, np.isnan(series.values).all(0)) if none]
    values = series.values.copy()
    for name in gone:
        values[:, series.columns.index(name)] = 0.0
    series = replace(series, values=filled(values, path))
    when, marks = _dates(series, found, request)
    futr_exog = None
    if summary.get("known"):
        need = 0 if request.backtest is not None else horizon
        source = covariates.Plan(
            plan, found.future, request.future, policies, request.fill_future, tuple(found.covered),
            _computed(series, found, when, request), None if plan is None else found.measured_in(plan),
        )  # fmt: skip
        futr_exog, lacking, notes = covariates.gather(
            dict(summary["known"]), source, when, rows, need, request.reading, series
        )
        for line in notes:
            request.report(f"{path}: {line}")
        reasons |= {name: reason for name, reason in lacking.items() if name in names and name not in reasons}
    for name, reason in reasons.items():
        request.report(f"{path}: no forecast of {name}: {reason}")
    return History(
        series,
        None if seen.all() else seen,
        marks,
        futr_exog,
        _static(series, path, request),
        mean,
        std,
        len(scores),
        when,
        ends,
        scores,
        reasons,
        found.step,
        others={name: read[name].to_numpy() for name in read if name not in series.columns},
    )


def _silent(series: Series, seen: np.ndarray, names: Sequence[str], lookback: int) -> dict[str, str]:
    """Find the series without an observed value in the look-back window, with reasons."""
    reasons = {}
    for name in names:
        column = seen[:, series.columns.index(name)]
        if not column[-lookback:].any():
            last = np.flatnonzero(column)
            dated = len(last) and series.dates is not None
            when = f" (last value: {series.label(int(last[-1]))})" if dated else ""
            reasons[name] = f"no value in the last {lookback} rows{when}"
    return reasons


def _dates(series: Series, found: Tidy, request: Request) -> tuple[Any, np.ndarray]:
    """Return (dates or row numbers of history and horizon, their calendar marks)."""
    horizon, rows = request.ahead, len(series)
    if series.dates is None or found.step is None:
        return np.arange(rows + horizon), np.empty((rows + horizon, 0), dtype=np.float32)
    try:
        when = series.dates.append(calendar.future(series.dates[-1], found.step, horizon))
    except (OverflowError, ValueError):
        raise InputError("dates are out of range", file=series.path) from None
    if request.summary["marks"] == "none":
        return when, np.empty((rows + horizon, 0), dtype=np.float32)
    return when, calendar.marks(zones.local(when, series.zone, series.utc), request.summary["marks"])


def _computed(series: Series, found: Tidy, when: pd.DatetimeIndex, request: Request) -> dict[str, np.ndarray]:
    """Compute the covariates that follow from the dates: holidays."""
    kept = request.holidays or request.summary.get("holidays")
    if not kept:
        return {}
    assert found.step is not None
    known = holidays.last_known(kept)
    if known is not None and when[-1].to_datetime64() > known + 1:
        words = f"the table of holidays ends on {known}; later dates count as no holidays (--holidays replaces it)"
        request.report(f"{series.path}: {words}")
    return {holidays.NAME: holidays.covariate(kept, when, found.step, series.zone, series.utc)}


def _variates(
    series: Series, request: Request, reasons: dict[str, str], long: bool
) -> tuple[Series, np.ndarray, np.ndarray, list[int]]:
    """Return (variates, mean and standard deviation, indices of the outputs among those of the training)."""
    summary = request.summary
    columns = list(summary["columns"])
    mean, std = summary["mean"].numpy(), summary["std"].numpy()
    outputs = list(range(summary.get("outputs", len(columns))))
    if request.unseen:
        unknown = [name for name in series.columns if name not in columns]
        if unknown:
            request.report(f"{series.path}: unseen series, scaled by their look-back: {listed(unknown)}")
        indices = [columns.index(name) if name in columns else -1 for name in series.columns]
        mean = np.array([mean[index] if index >= 0 else np.nan for index in indices])
        std = np.array([std[index] if index >= 0 else np.nan for index in indices])
        return series, mean, std, indices
    if len(columns) == 1 and columns[0] in series.columns:  # single target: the file may have other columns
        left = [name for name in series.columns if name != columns[0]]
        if left:
            request.report(f"{series.path}: columns ignored: {listed(left)}")
        return series.only(columns), mean, std, outputs
    if series.columns == columns:
        return series, mean, std, outputs
    hint = "; pass --unseen to forecast series that the model was not trained on" if request.normalised else ""
    left_out = summary.get("left_out") or {}
    try:
        if long or reasons:
            return _panel(series, columns, left_out, reasons), mean, std, outputs
        for name in [name for name in series.columns if name in left_out]:
            reasons[name] = f"not trained on: {left_out[name]}"
        series = series.only([name for name in series.columns if name not in reasons])
        if series.columns == columns:
            return series, mean, std, outputs
        series = series.reordered(columns)
    except InputError as error:
        raise InputError(f"{error.message}{hint}", file=error.file, place=error.place) from None
    request.report(f"{series.path}: columns reordered as in the checkpoint")
    return series, mean, std, outputs


def _panel(series: Series, columns: list[str], left_out: Mapping[str, str], reasons: dict[str, str]) -> Series:
    """Order the variates as in the checkpoint; missing or unknown series of a long file get a reason."""
    known = [name for name in columns if name in series.columns]
    if not known:
        return series.reordered(columns)  # raises an error that lists both
    for name in series.columns:
        if name not in columns:
            reasons[name] = (
                f"not trained on: {left_out[name]}" if name in left_out else "the model was not trained on this series"
            )
    for name in columns:
        if name not in series.columns:
            reasons.setdefault(name, "not in the file")
    values = np.full((len(series), len(columns)), np.nan)
    for position, name in enumerate(columns):
        if name in series.columns:
            values[:, position] = series.values[:, series.columns.index(name)]
    return replace(series, values=values, columns=list(columns))


def _ends(rows: int, path: Path, request: Request) -> list[int]:
    lookback = request.summary["lookback"]
    if request.backtest is None:
        return [rows]
    ahead = request.ahead if request.summary.get("known") else request.horizon
    first = rows - ahead - request.step * (request.backtest - 1)
    if first < lookback:
        most = max(0, (rows - ahead - lookback) // request.step + 1)
        raise InputError(
            f"has {rows} rows; --backtest {request.backtest} needs {rows + lookback - first} (look-back {lookback}, "
            f"horizon {ahead}); at most {most} windows are possible",
            file=path,
        )
    return [first + request.step * k for k in range(request.backtest)]


def _static(series: Series, path: Path, request: Request) -> Tensor | None:
    kept = request.summary.get("static")
    if not kept:
        return None
    if request.static is not None:
        frame = statics.read_static_features(request.static, series.columns, kept["rules"])
        return statics.features(frame, kept["rules"], request.static)
    if series.columns != list(request.summary["columns"]):
        raise InputError("contains unseen series, whose properties are required: --static FILE", file=path)
    return kept["features"]


def merged(items: Sequence[History]) -> History:
    """Average what several models forecast in the last window; a series needs the forecasts of all of them.

    Args:
        items: the history as each model has read and forecast it, ``drawn``, the series in any order.
    """
    first, reasons = items[0], {}
    for item in reversed(items):
        reasons |= dict.fromkeys(
            (name for name in first.names if name not in item.names), "not a series of every model"
        )
        reasons |= item.reasons
    places = [[item.names.index(name) if name in item.names else 0 for name in first.names] for item in items]
    values = np.mean([item.drawn["values"][:, place] for item, place in zip(items, places)], 0)
    values[:, [name in reasons for name in first.names]] = np.nan
    return replace(first, drawn={**first.drawn, "values": values}, reasons=reasons)
