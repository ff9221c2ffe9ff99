"""Time zones: interpretation of a file's dates, arithmetic on them, and formatting for the output.

Hours and shorter steps are counted in UTC, which has no missing or repeated hours; daily and longer steps are counted
in local dates, because a local day is not always 24 hours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.errors import InputError

DAY, HOUR = np.timedelta64(1, "D"), np.timedelta64(1, "h")


def settle(
    dates: pd.DatetimeIndex, offset: bool, zone: str | None, path: Path, clock: bool = False
) -> tuple[pd.DatetimeIndex, str | None, bool, list[str]]:
    """Return (dates without zone, name of the zone or None, whether the dates are in UTC, messages to report).

    Local times that are repeated when the clocks go back are resolved by the order of the rows: the first of two rows
    is the first of the two hours, and a single row is the hour one step after the preceding row. A local time that does
    not exist, because the clocks went forward, is read as the following hour.

    Args:
        dates: dates in UTC if the file has an `offset`, else as written.
        offset: whether the file's dates have an offset from UTC.
        zone: time zone selected by the user.
        path: path used in error messages.
        clock: keep local times (for calendars of observed hours).

    Raises:
        InputError: dates are out of the range of the time zone.
    """
    if not offset and zone is None:
        return dates, None, False, []
    name = zone or "UTC"
    notes: list[str] = []
    if offset:
        utc = dates
        local = dates.tz_localize("UTC").tz_convert(name).tz_localize(None)
    else:
        local = dates
    days = local if clock else _days(local, name)
    if days is not None:
        return days, name, False, notes
    if not offset:
        utc = _to_utc(local, name, path, notes)
    return utc, name, True, notes


def _days(local: pd.DatetimeIndex, zone: str) -> pd.DatetimeIndex | None:
    """Return the local dates of steps of a day or longer; None for shorter ones.

    A day that has no midnight, because the clocks went forward then, begins at 01:00 in the files of others; here all
    days begin at midnight.
    """
    shortest = _shortest(local)
    if shortest is not None and DAY - HOUR <= shortest < DAY:
        midnight = local.normalize()
        first = midnight.tz_localize(zone, ambiguous=np.ones(len(local), bool), nonexistent="shift_forward")
        local = local.where(first.tz_localize(None) != local, midnight)
        shortest = _shortest(local)
    return local if shortest is not None and shortest >= DAY else None


def _shortest(dates: pd.DatetimeIndex) -> np.timedelta64 | None:
    steps = np.diff(np.unique(dates.to_numpy()))
    return steps.min() if len(steps) else None


def _to_utc(local: pd.DatetimeIndex, zone: str, path: Path, notes: list[str]) -> pd.DatetimeIndex:
    """Convert local times to UTC."""
    size = len(local)
    try:
        early, late = (
            local.tz_localize(zone, ambiguous=np.full(size, first), nonexistent="NaT")
            .tz_convert("UTC")
            .tz_localize(None)
            .to_numpy("datetime64[us]")
            .copy()
            for first in (True, False)
        )
    except (ValueError, OverflowError):
        raise InputError(f"dates are out of the range of the time zone {zone}", file=path) from None
    stamps = early.copy()
    absent = np.isnat(stamps)
    if absent.any():
        stamps[absent] = _shifted(local[absent], zone)
        late[absent] = stamps[absent]
        notes.append(
            f"local times that do not exist in {zone} (the clocks went forward), read as the following hour: "
            f"{int(absent.sum())} (first: {local[int(absent.argmax())]})"
        )
    twice = np.flatnonzero(stamps != late)
    if len(twice):
        _tell_apart(stamps, late, twice, local, zone, path, notes)
    return pd.DatetimeIndex(stamps)


def _shifted(local: pd.DatetimeIndex, zone: str) -> np.ndarray:
    """Convert times inside a spring gap with the offset that applied before it."""
    before = (local - pd.Timedelta(hours=3)).tz_localize(zone, ambiguous=np.zeros(len(local), dtype=bool))
    found = before.tz_convert("UTC").tz_localize(None) + pd.Timedelta(hours=3)
    return found.to_numpy("datetime64[us]")


def _tell_apart(
    stamps: np.ndarray,
    late: np.ndarray,
    twice: np.ndarray,
    local: pd.DatetimeIndex,
    zone: str,
    path: Path,
    notes: list[str],
) -> None:
    """Resolve repeated local times: set `stamps` in place to the first or the second of the two hours."""
    rest = np.delete(stamps, twice)
    if (np.diff(rest) >= np.timedelta64(0)).all():  # rows in order: each hour follows the preceding row
        lengths = np.diff(rest)
        step = np.min(lengths[lengths > np.timedelta64(0)], initial=np.timedelta64(1, "h"))
        for row in twice:
            before = stamps[row - 1] if row else None
            after = stamps[row + 1] if row + 1 < len(stamps) and stamps[row + 1] == late[row + 1] else None
            if before is None:
                use_late = after is not None and after - late[row] == step
            else:
                use_late = stamps[row] <= before
            if use_late:
                stamps[row] = late[row]
    else:  # rows in any order: the first of two equal local times is the first hour
        seen: dict[np.datetime64, int] = {}
        for row in twice:
            seen[stamps[row]] = seen.get(stamps[row], 0) + 1
            if seen[stamps[row]] == 2:
                stamps[row] = late[row]
    whole = local.to_numpy("datetime64[us]")[twice]
    values, counts = np.unique(whole, return_counts=True)
    single = [int(index) for index in np.flatnonzero(counts == 1)]
    if single:
        first = pd.Timestamp(values[single[0]])
        notes.append(
            f"times in repeated hours of {zone} that appear once, read as the hour that follows the preceding row: "
            f"{len(single)} (first: {first})"
        )


def local(dates: pd.DatetimeIndex, zone: str | None, utc: bool) -> pd.DatetimeIndex:
    """Convert dates to local times without zone, for calendar marks and figures."""
    if zone is None or not utc:
        return dates
    return dates.tz_localize("UTC").tz_convert(zone).tz_localize(None)


def written(dates: pd.DatetimeIndex, zone: str | None, utc: bool) -> pd.DatetimeIndex:
    """Return the dates for the output, with their offset from UTC if a zone is known."""
    if zone is None:
        return dates
    if utc:
        return dates.tz_localize("UTC").tz_convert(zone)
    return dates.tz_localize(zone, ambiguous=np.ones(len(dates), dtype=bool), nonexistent="shift_forward")
