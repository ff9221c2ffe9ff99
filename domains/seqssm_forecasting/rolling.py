"""Rolling-origin cross-validation of data frames: fit before each cutoff, forecast the horizon after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

import seqssm
from seqssm.domain import Domain
from seqssm.errors import InputError, nearest, require_type
from seqssm.files.frames import as_pandas, is_frame
from seqssm.training.kfold import require_choices
from seqssm.training.lists import plain_options
from seqssm_forecasting.intervals import parse_levels

KEYS = ["unique_id", "ds", "cutoff"]


def cross_validation(
    frame: Any,
    windows: int = 5,
    refit: bool | int = True,
    *,
    step: int | None = None,
    models: Sequence[str] | None = None,
    level: Sequence[float] = (),
    preset: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Forecast the last windows of the series, each with a model that was fitted on the rows before it.

    The cutoffs are positions of the common time axis; the last window ends with the last row. The rows before a cutoff
    are divided into train and validation in the proportion of the option ``split``.

    Args:
        frame: data frame (pandas, polars, pyarrow) or file of the series, as for `seqssm.fit`.
        windows: number of windows.
        refit: True fits before each window, False only before the first; n fits before every n-th.
        step: steps between the cutoffs; by default the horizon.
        models: names of ``kfold --models`` to fit (``["blend", "dlinear"]``); by default the model of the preset.
        level: levels of prediction intervals, percent.
        preset: preset or YAML file; by default the one for the user's own files.
        data: options of the data module (``{"horizon": 24}``).
        model: options of the task.
        trainer: options of Lightning's Trainer, as for `seqssm.fit`.

    Returns:
        Columns ``unique_id, ds, cutoff, y`` and per model ``<Model>``, ``<Model>-lo-80``, ``<Model>-hi-80``, ..., where
        ``<Model>`` is the class of the network (``Blend``, ``SMamba``, ``DLinear``). Without a forecast, or an actual
        value, the cell is NaN. If there is no forecast of a series, for example because its values before a cutoff are
        too few to train on, a last column ``reason`` says why.

    Raises:
        InputError: as `seqssm.fit`; an unknown model, or too few rows for the windows.
    """
    data, model = plain_options("data", data or {}), plain_options("model", model or {})
    require_type("windows", windows, Integral, "a number of windows")
    require_type("refit", refit, (bool, Integral), "True, False or a number")
    require_type("models", models, (list, tuple), "a list of names")
    require_type("level", level, (list, tuple, np.ndarray), "a list of levels, as in [80]")
    if windows < 1 or int(refit) < 0:
        raise InputError(f"windows {windows}, refit {refit}: expected at least 1 window, and True, False or a number")
    parse_levels(level)  # before anything is trained
    for name in models or ():
        _options(name)
    given = [word for key, value in model.items() for word in (f"--model.{key}", str(value))]
    require_choices(_domain(), list(models or ()), given)
    source = as_pandas(frame) if is_frame(frame) else frame
    every = windows if refit is False else int(refit) or windows
    table: pd.DataFrame | None = None
    for name in models or [None]:
        parts, column = [], ""
        for first in range(0, windows, every):
            options = {**data, "file": source, "windows": windows, "window": first, "window_step": step}
            sections = {**_options(name), **model}
            fitted = seqssm.fit("forecasting", preset=preset, data=options, model=sections, trainer=trainer)
            found = _forecasts(fitted, source, windows - first, step, list(level))
            wanted = sorted(found["cutoff"].unique())[:every]
            parts.append(found[found["cutoff"].isin(wanted)])
            column = type(fitted.network).__name__
        own = pd.concat(parts, ignore_index=True)
        if table is not None and column in table:
            column = str(name)  # two variants of a network
        own = own.rename(columns={old: old.replace("yhat", column, 1) for old in own.columns if old[:4] == "yhat"})
        own = own.rename(columns={"reason": f"reason {column}"})
        table = own if table is None else table.merge(own.drop(columns="y"), on=KEYS, how="outer", sort=False)
    assert table is not None
    told = [name for name in table if name.startswith("reason ")]
    reasons = table[told].replace("", np.nan).bfill(axis=1).iloc[:, 0]
    table = table.drop(columns=told)
    return table.assign(reason=reasons.fillna("")) if reasons.notna().any() else table


def _forecasts(fitted: Any, source: Any, windows: int, step: int | None, level: list[float]) -> pd.DataFrame:
    """Return the forecasts of the last windows, without the columns of the record."""
    every = fitted.summary["horizon"] if step is None else step
    found = fitted.predict(source, backtest=windows, step=every, level=level or None)
    bands = [name for name in found.columns if name.startswith("yhat")]
    return found[[*KEYS, "y", *bands, "reason"]]


def _options(name: str | None) -> dict[str, Any]:
    """Return the options of the task for a name of ``kfold --models``."""
    if name is None:
        return {}
    known = _domain().models
    if name not in known:
        hint = nearest(name, known) or f"; there are {', '.join(known)}"
        raise InputError(f"models: no such model: {name}{hint}")
    words = known[name]
    return {flag.removeprefix("--model."): yaml.safe_load(value) for flag, value in list(pairwise(words))[::2]}


def _domain() -> Domain:
    from seqssm_forecasting import DOMAIN

    return DOMAIN
