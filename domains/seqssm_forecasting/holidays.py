"""Holidays as a future covariate: from a table of dates, or from the package `holidays` by country or exchange.

The covariate ``holiday`` of a row is the number of holidays from its date to before the next one, in local dates: 0 or
1 for steps of a day or less, where every row of a holiday counts. Dates of a table are stored in the checkpoint.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError, nearest
from seqssm_forecasting.calendar import future
from seqssm_forecasting.reading import Reading
from seqssm_forecasting.series import Series
from seqssm_forecasting.steps import Step

NAME = "holiday"
"""Name of the covariate."""


def learn(source: str, reading: Reading | None = None) -> dict[str, Any]:
    """Return the checkpoint's entry for holidays, plain Python.

    Args:
        source: path of a table whose first column has dates; or the code of a country, of a subdivision (``DE-BY``) or
            of an exchange (``XNYS``) of the package `holidays`.
        reading: options for reading the series, whose format of dates a table may have too.

    Returns:
        ``source`` and, for a table, ``dates`` (ISO, sorted).

    Raises:
        InputError: the table has a cell that is not a date, or there is no such file, country or package.
    """
    path = Path(source)
    if not path.suffix and not path.is_file():
        _of_package(source, [2024])
        return {"source": source, "dates": None}
    from seqssm.files.tables import read_table
    from seqssm_forecasting.dates import read_dates

    table = read_table(path)
    cells = table.frame[table.columns[0]].astype(str)
    form = None if reading is None else reading.date_format
    if form is not None and pd.to_datetime(cells, format=form, errors="coerce").isna().any():
        form = None  # the table is year first, unlike the series
    if form is None and len(cells) and cells.str.fullmatch(r"\d{1,2}\.\d{1,2}\.\d{4}").all():
        form = "%d.%m.%Y"
    hint = "expected dates such as 2024-12-25 or 25.12.2024, or of the form of --data.date_format"
    found = read_dates(table, table.columns[0], form, hint=hint)
    days = np.unique(found.values.astype("datetime64[D]"))
    if not len(days):
        raise InputError("has no dates of holidays", file=path)
    return {"source": source, "dates": [str(day) for day in days]}


def covariate(kept: dict[str, Any], dates: pd.DatetimeIndex, step: Step, zone: str | None, utc: bool) -> np.ndarray:
    """Compute the covariate, (rows,) float64.

    Args:
        kept: what `learn` returned.
        dates: dates of the rows, ascending.
        step: step between rows.
        zone: time zone of the dates, or None.
        utc: whether the dates are in UTC.
    """
    ends = dates[1:].append(future(dates[-1], step, 1))
    first, last = (_days(one, zone, utc) for one in (dates, ends))
    if kept["dates"] is None:
        days = _of_package(kept["source"], list(range(_year(first[0]), _year(last[-1]) + 1)))
    else:
        days = np.array(kept["dates"], dtype="datetime64[D]")
    last = np.maximum(last, first + 1)  # rows within a day count the day itself
    return (np.searchsorted(days, last) - np.searchsorted(days, first)).astype(np.float64)


def last_known(kept: dict[str, Any]) -> np.datetime64 | None:
    """Return the last date of a table of holidays; None for a package, which knows every year."""
    return None if kept["dates"] is None else np.datetime64(kept["dates"][-1], "D")


def with_holidays(plan: Series | None, series: Series, step: Step | None, kept: dict[str, Any]) -> Series:
    """Add the covariate to the future covariates of a series.

    Args:
        plan: the other future covariates, or None.
        series: the series, with dates.
        step: step between rows.
        kept: what `learn` returned.

    Raises:
        InputError: the series has no dates, or a column of this name.
    """
    if series.dates is None or series.numbered or step is None:
        raise InputError("has no dates, which --data.holidays requires", file=series.path)
    if NAME in [*series.columns, *([] if plan is None else plan.columns)]:
        raise InputError(f"has a column {NAME} already; --data.holidays adds one", file=series.path)
    column = covariate(kept, series.dates, step, series.zone, series.utc)[:, None]
    if plan is None:
        return Series(
            series.path, column, [NAME], series.dates, series.lines, series.zone, series.utc, [NAME], row=series.row
        )
    plan.values, plan.columns = np.hstack([plan.values, column]), [*plan.columns, NAME]
    plan.future = [*plan.future, NAME]
    return plan


def _days(dates: pd.DatetimeIndex, zone: str | None, utc: bool) -> np.ndarray:
    from seqssm_forecasting.zones import local

    return local(dates, zone, utc).to_numpy("datetime64[us]").astype("datetime64[D]")


def _year(day: np.datetime64) -> int:
    return int(day.astype("datetime64[Y]").astype(np.int64)) + 1970


def _of_package(source: str, years: list[int]) -> np.ndarray:
    """Return the holidays of a country or exchange in some years, sorted datetime64[D]."""
    try:
        import holidays
    except ImportError:
        message = f"--data.holidays {source}: no such file; codes of countries need pip install 'seqssm[holidays]'"
        raise InputError(message) from None
    country, _, part = source.partition("-")
    countries, markets = holidays.list_supported_countries(), holidays.list_supported_financial()
    if source in markets:
        found = holidays.financial_holidays(source, years=years)
    elif country not in countries or (part and part not in countries[country]):
        known = [f"{country}-{one}" for one in countries[country]] if country in countries else [*countries, *markets]
        hint = nearest(source, known) if re.fullmatch(r"[A-Za-z0-9-]{2,12}", source) else ""
        raise InputError(f"--data.holidays {source}: no such file, country, subdivision or exchange{hint}")
    else:
        found = holidays.country_holidays(country, subdiv=part or None, years=years)
    return np.unique(np.array([str(day) for day in found], dtype="datetime64[D]"))
