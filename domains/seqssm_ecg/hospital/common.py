"""Helpers of the readers: errors of damaged files, units, ages, base64."""

from __future__ import annotations

import base64
import binascii
import datetime
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.headers import UNITS
from seqssm_ecg.leads import Matched

Group = TypeVar("Group", bound="LeadGroup")
YEAR_DAYS = 365.2425
SUCCESSIVE = "leads recorded one after the other"
GAP_S = 1.0
SAME_S = 0.02  # largest difference of the starts of groups that were recorded at the same time
LOWEST = -(2**15)
AGE_UNITS = {"y": 1.0, "m": 1 / 12, "w": 7 / YEAR_DAYS, "d": 1 / YEAR_DAYS, "h": 1 / YEAR_DAYS / 24}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Turn any error of a parser into an InputError without its text, which may quote a patient's data.

    Args:
        path: the file.
        what: name of the format.
    """
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # pydicom logs the values that it rejects
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except PermissionError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    except Exception as error:
        raise InputError(f"is corrupt, or not a valid {what} file ({type(error).__name__})", file=path) from None
    finally:
        logging.disable(level)


def required(package: str, path: Path) -> Any:
    """Import a package that a format needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise InputError(
            f"reading this file requires the package {package}: pip install 'seqssm[ecg]'", file=path
        ) from None


def factor_of(unit: str, path: Path, place: str) -> float:
    """Return millivolts per unit.

    Args:
        unit: unit as written: uV, MICROVOLTS, mV, ...
        path: path for error messages.
        place: location for error messages, e.g. the lead.

    Raises:
        InputError: the unit is unknown.
    """
    key = unit.strip().casefold()
    key = re.sub(r"^(?:milli|m)v(?:olts?)?$", "mv", re.sub(r"^(?:micro|u|µ|μ)v(?:olts?)?$", "uv", key))
    key = re.sub(r"^volts?$", "v", key)
    if key not in UNITS:
        raise InputError(f"unit {unit[:20]!r}: expected mV, uV or V", file=path, place=place)
    return UNITS[key]


def number(text: str, path: Path, place: str) -> float:
    """Parse a finite number.

    Raises:
        InputError: the text is not a finite number.
    """
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError("is not a number", file=path, place=place)
    return value


def known(values: np.ndarray) -> np.ndarray:
    """Return stored samples as float64, with NaN for the lowest 16-bit integer, which recorders write without a signal.

    Args:
        values: samples before scaling, integers or numbers read from text. Integers of another width are not changed.
            The lowest of 16 bits is beyond any amplifier: -160 mV at the usual 5 microvolts.
    """
    wide = values.dtype.kind in "iu" and values.dtype.itemsize != 2
    samples = values.astype(np.float64)
    samples[(samples == LOWEST) & (not wide)] = np.nan
    return samples


def decode_base64(text: str, path: Path, place: str) -> bytes:
    """Decode base64 with any white space.

    Raises:
        InputError: the text is not base64.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("samples are not valid base64: the file is corrupt", file=path, place=place) from None


def age_in(value: str, unit: str = "years") -> float | None:
    """Convert an age in years, months, weeks, days or hours (by first letter) to years; None if it is not a number."""
    factor = AGE_UNITS.get(unit.strip()[:1].casefold())
    try:
        age = float(value)
    except ValueError:
        return None
    return age * factor if factor is not None and 0 <= age < 1000 else None


def age_at(birth: str, when: str) -> float | None:
    """Return the age in whole years between two dates, or None if either is missing or impossible.

    Args:
        birth: date as ``19510502``, ``1951-05-02``, ``05-02-1951`` (month first), ``02-MAY-1951``.
        when: date, or date and time.
    """
    born, then = parse_date(birth), parse_date(when)
    if born is None or then is None or then < born:
        return None
    return float(then.year - born.year - ((then.month, then.day) < (born.month, born.day)))


def parse_date(text: str) -> datetime.date | None:
    """Parse a date (see `age_at`); text after it is ignored."""
    text = text.strip()
    patterns = (
        (r"(\d{4})-?(\d{2})-?(\d{2})", (0, 1, 2)),
        (r"(\d{1,2})[-/](\d{1,2})[-/](\d{4})", (2, 0, 1)),
        (r"(\d{1,2})-([A-Za-z]{3})-(\d{4})", (2, 1, 0)),
    )
    for pattern, order in patterns:
        found = re.match(pattern, text)
        if found is None:
            continue
        year, month, day = (found.groups()[k] for k in order)
        if month.casefold() in MONTHS:
            month = str(MONTHS.index(month.casefold()) + 1)
        try:
            return datetime.date(int(year), int(month), int(day))
        except ValueError:
            return None
    return None


def identity(patient_id: str = "", names: Sequence[str] = (), birth_date: str = "") -> dict[str, str]:
    """Return the known entries of `Recording.identity`."""
    found = {
        "patient_id": patient_id.strip(),
        "patient_name": " ".join(part.strip() for part in names if part.strip()),
        "birth_date": birth_date.strip(),
    }
    return {name: value for name, value in found.items() if value}


class LeadGroup(Protocol):
    """Leads of a file that were recorded at the same time.

    Attributes:
        found: its signals that are standard leads.
        rate_hz: sampling rate.
        samples: samples per lead.
        start: time of the first sample, seconds.
    """

    @property
    def found(self) -> Matched: ...
    @property
    def rate_hz(self) -> float: ...
    @property
    def samples(self) -> int: ...
    @property
    def start(self) -> float: ...


def matching(group_of: Callable[[Any], Group], items: Sequence[Any]) -> list[Group]:
    """Return the groups of leads of a file, without those that have no standard lead.

    Args:
        group_of: makes the group of an item; raises InputError.
        items: at least one part of the file.

    Raises:
        InputError: no part has one: that of the first part.
    """
    groups, errors = [], []
    for item in items:
        try:
            groups.append(group_of(item))
        except InputError as error:
            errors.append(error)
    if not groups:
        raise errors[0]
    return groups


def joined(groups: Sequence[Group]) -> list[Group]:
    """Return the groups of one recording: the first with the most leads and seconds, and those with other leads.

    A group belongs to it if it was recorded at the same time as another one, or before or after it with a gap of at
    most `GAP_S`. Only one recorded at the same time may repeat leads, which are those of the first group.

    Args:
        groups: groups of leads. Those with another sampling rate or length are not used.
    """

    def seconds(group: Group) -> float:
        return group.samples / group.rate_hz if group.rate_hz > 0 else 0.0

    first = max(groups, key=lambda group: (len(group.found.leads), seconds(group)))
    used, leads, starts = [first], set(first.found.leads), {first.start}
    for group in sorted(groups, key=lambda group: abs(group.start - first.start)):
        own = set(group.found.leads)
        alike = (group.rate_hz, group.samples) == (first.rate_hz, first.samples)
        next_to = any(abs(abs(group.start - start) - seconds(first)) <= GAP_S for start in starts)
        same = any(abs(group.start - start) <= SAME_S for start in starts)
        if alike and ((same and own - leads) or (next_to and own.isdisjoint(leads))):
            used.append(group)
            leads |= own
            starts.add(group.start)
    return used


def by_time(groups: Sequence[LeadGroup]) -> tuple[tuple[str, ...], ...]:
    """Return the leads of a recording by the time at which they were recorded; empty if there is one time only.

    Args:
        groups: groups of a recording; of a lead in several of them, the first is read.
    """
    found: dict[float, list[str]] = {}
    read: set[str] = set()
    for group in groups:
        start = next((one for one in found if abs(one - group.start) <= SAME_S), group.start)
        found.setdefault(start, []).extend(lead for lead in group.found.leads if lead not in read)
        read.update(group.found.leads)
    return tuple(map(tuple, found.values())) if len(found) > 1 else ()


def stacked(rows: Sequence[np.ndarray], leads: Sequence[str], path: Path) -> np.ndarray:
    """Stack the leads of a recording, (leads, n) float32.

    Raises:
        InputError: the leads differ in length, or are empty.
    """
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1 or lengths == [0]:
        shown = ", ".join(f"{lead} {len(row)}" for lead, row in zip(leads, rows))
        raise InputError(f"is corrupt: leads differ in length or are empty ({shown})", file=path)
    with np.errstate(over="ignore"):
        table = np.stack(rows).astype(np.float32)
    return np.where(np.isfinite(table), table, np.float32(np.nan))
