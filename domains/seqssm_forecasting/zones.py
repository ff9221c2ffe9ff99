"""Time zones: what a file's dates mean, how they are counted through, and how they are written again.

Dates are counted in UTC, where no hour is missing or twice there; daily and longer steps are counted in local dates,
because a local day is not always 24 hours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from seqssm.errors import InputError

if TYPE_CHECKING:
    from seqssm_forecasting.files import Series

DAY = np.timedelta64(1, "D")


def settle(
    dates: pd.DatetimeIndex, offset: bool, zone: str | None, series: Series
) -> tuple[pd.DatetimeIndex, str | None, bool]:
    """(dates without zone, the zone's name or None, whether the dates are in UTC).

    Args:
        dates: in UTC where the file gave an `offset`, else as written.
        offset: whether they were written with an offset.
        zone: of the user's choice.
        series: for error messages.

    Raises:
        InputError: a local time that does not exist in `zone`, or is there twice and cannot be told apart.
    """
    if not offset and zone is None:
        return dates, None, False
    name = zone or "UTC"
    try:
        aware = dates.tz_localize("UTC") if offset else dates.tz_localize(name, ambiguous="infer")
        local = aware.tz_convert(name).tz_localize(None)
        utc = aware.tz_convert("UTC").tz_localize(None)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"its dates are no local times of {name}: {' '.join(str(error).split())[:120]}; write them with their "
            "offset from UTC",
            file=series.path,
        ) from None
    steps = np.diff(np.unique(local.to_numpy()))
    if len(steps) and steps.min() >= DAY:
        return local, name, False
    return utc, name, True


def local(dates: pd.DatetimeIndex, zone: str | None, utc: bool) -> pd.DatetimeIndex:
    """The dates as a clock on the wall shows them, without zone; calendar marks are made of these."""
    if zone is None or not utc:
        return dates
    return dates.tz_localize("UTC").tz_convert(zone).tz_localize(None)


def written(dates: pd.DatetimeIndex, zone: str | None, utc: bool) -> pd.DatetimeIndex:
    """The dates for the output: with their offset where a zone is known."""
    if zone is None:
        return dates
    if utc:
        return dates.tz_localize("UTC").tz_convert(zone)
    return dates.tz_localize(zone, ambiguous=np.ones(len(dates), dtype=bool), nonexistent="shift_forward")
