"""Dates written as periods: quarters, half-years, months by number or name, weeks, and dates without separators.

Every reader takes the distinct cells of a column and returns a `Period`, or None unless all cells have its form. Does
not import torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

MONTHS = (
    "january januar januari janvier enero gennaio janeiro",
    "february februar februari fevrier febrero febbraio fevereiro",
    "march maerz marz mrz mars marts marzo maart mrt marco",
    "april avril abril aprile",
    "may mai maj mayo maggio mei maio",
    "june juni juin junio giugno junho",
    "july juli juillet julio luglio julho",
    "august aout agosto augustus augusti",
    "september septembre septiembre settembre setembro",
    "october oktober octobre octubre ottobre outubro",
    "november novembre noviembre novembro",
    "december dezember decembre desember diciembre dicembre dezembro",
)
"""Names of the months in English, German, French, Spanish, Italian, Portuguese, Dutch and the Nordic languages."""
YEARS = (1900, 2100)
"""Years of dates without separators, which are otherwise numbers."""
WORD = r"(?P<n>[^\W\d_]{3,10})\.?"
QUARTER = "(?:Q|T|quarter|quartal|trimestre)"
PARTS = {2: "half-years", 3: "thirds of a year", 4: "quarters"}
"""Names of the parts of a year, by their number."""
WEEK = "(?:W|WK|KW|CW|week|woche)"


@dataclass
class Period:
    """Dates of a column.

    Attributes:
        values: datetime64[us], one per cell.
        form: name of the form, for a note.
        offset: whether the dates are in UTC.
    """

    values: np.ndarray
    form: str
    offset: bool = False


def read(cells: list[str], months: int | None = None, weeks: bool = False) -> Period | None:
    """Read cells in the first form that all of them have; None if there is none.

    A few numbered dates such as ``2024-1`` do not show whether they are months, quarters or weeks.

    Args:
        cells: the distinct cells of a column.
        months: months per step, if known from elsewhere.
        weeks: whether the steps are known to be weeks.
    """
    found = _numbered(cells, 12 // months) if months in (3, 4, 6) else _months(cells, True) if months == 1 else None
    found = _numbered_weeks(cells, True) if weeks else found
    return found or next((found for reader in READERS if (found := reader(cells)) is not None), None)


def odd_one_out(cells: list[str]) -> int | None:
    """Return the index of the first cell that lacks the form of at least half of the cells; None if there is no form.

    Args:
        cells: the distinct cells of a column.
    """
    sample = cells[:2000]
    for reader in READERS:
        good = [reader([cell]) is not None for cell in sample]
        if not all(good) and 2 * sum(good) >= len(good):
            return good.index(False)
    return None


def month_of(word: str) -> int | None:
    """Return the number of a month, 0 to 11, from its name or an abbreviation of at least three letters.

    Args:
        word: a name in one of the languages of `MONTHS`, in any case; accents may be missing.
    """
    plain = unicodedata.normalize("NFKD", word.casefold())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    found = [k for k, names in enumerate(MONTHS) if any(name.startswith(plain) for name in names.split())]
    return found[0] if len(found) == 1 and len(plain) >= 3 else None


def _of_months(months: list[int], form: str) -> Period:
    """Return the first days of months counted from January of year 0."""
    first = (np.array(months, dtype=np.int64) - 1970 * 12).astype("datetime64[M]")
    return Period(first.astype("datetime64[us]"), form)


def _matched(
    cells: list[str], patterns: tuple[str, ...], month: Callable[[re.Match], int | None], form: str
) -> Period | None:
    for pattern in patterns:
        months = []
        for cell in cells:
            match = re.fullmatch(pattern, cell, re.IGNORECASE)
            found = None if match is None else month(match)
            if found is None:
                break
            months.append(found)
        else:
            return _of_months(months, form)
    return None


def _year(match: re.Match) -> int | None:
    """Return the year of a match; None for two digits that may belong to either century."""
    year = int(match["y"])
    if len(match["y"]) == 4:
        return year
    return None if 40 <= year < 70 else year + (2000 if year < 40 else 1900)


def _quarters(cells: list[str]) -> Period | None:
    def month(match: re.Match) -> int | None:
        year = _year(match)
        return None if year is None else year * 12 + 3 * (int(match["n"]) - 1)

    patterns = (
        rf"(?P<y>\d{{4}})[-/ .]?{QUARTER}[- .]?(?P<n>[1-4])",
        rf"{QUARTER}[- .]?(?P<n>[1-4])[-/ .']*(?P<y>\d{{4}})",
        rf"(?P<n>[1-4])\.? ?{QUARTER}[-/ .']*(?P<y>\d{{4}})",
        r"Q(?P<n>[1-4])[-/ .']*(?P<y>\d{2})",
        r"(?P<n>[1-4])Q[-/ .']*(?P<y>\d{2})",
    )
    return _matched(cells, patterns, month, "quarters")


def _numbered(cells: list[str], known: int | None = None) -> Period | None:
    """``3-1960``, ``1960-3`` and ``19603`` with 1 to 4 only: quarters; with 1 to 3 or 1 and 2: thirds or half-years.

    The last part of a year must be followed by the first one of the next year, unless the parts are known.

    Args:
        cells: the distinct cells of a column.
        known: number of parts per year, if known from elsewhere.
    """
    for pattern in (
        r"(?P<n>[1-4])[-/ .](?P<y>\d{4})",
        r"(?P<y>\d{4})[-/ .](?P<n>[1-4])",
        r"(?P<y>(?:1[789]|20)\d\d)(?P<n>[1-4])",
    ):
        if not re.fullmatch(pattern, cells[0]):
            continue
        matches = [match for match in (re.fullmatch(pattern, cell) for cell in cells) if match is not None]
        numbers = {int(match["n"]) for match in matches}
        parts = known or max(numbers)
        if len(matches) < len(cells) or parts == 1 or max(numbers) > parts:
            continue
        count = np.array([int(match["y"]) * parts + int(match["n"]) - 1 for match in matches])
        follow = len(cells) > 4 and numbers == set(range(1, parts + 1)) and (np.diff(np.sort(count)) == 1).mean() > 0.5
        if known or follow:
            return _of_months([12 // parts * int(one) for one in count], PARTS[parts])
    return None


def _decimal_years(cells: list[str]) -> Period | None:
    """``1990.0``, ``1990.5``: half-years; with ``.25`` and ``.75``: quarters."""
    matches = [match for cell in cells if (match := re.fullmatch(r"(?P<y>\d{4})(?:\.(?P<f>0+|25|50?|75))?", cell))]
    if len(matches) < len(cells) or len(cells) < 2:
        return None
    quarters = np.array([4 * int(match["y"]) + round(4 * float(f"0.{match['f'] or 0}")) for match in matches])
    step = 2 if (quarters % 2 == 0).all() else 1
    if (quarters % 4 == 0).all() or not (np.diff(np.sort(quarters)) == step).mean() > 0.5:
        return None
    return _of_months([3 * int(one) for one in quarters], PARTS[4 // step])


def _halves(cells: list[str]) -> Period | None:
    patterns = (r"(?P<y>\d{4})[-/ .]?[HS](?P<n>[12])", r"[HS](?P<n>[12])[-/ .']*(?P<y>\d{4})")
    return _matched(cells, patterns, lambda m: int(m["y"]) * 12 + 6 * (int(m["n"]) - 1), "half-years")


def _months(cells: list[str], known: bool = False) -> Period | None:
    def number(match: re.Match) -> int | None:
        month = int(match["n"])
        return int(match["y"]) * 12 + month - 1 if 1 <= month <= 12 else None

    def named(match: re.Match) -> int | None:
        month = month_of(match["n"])
        return None if month is None else int(match["y"]) * 12 + month

    found = _matched(_with_zeros(cells), (r"(?P<y>\d{4})[-/.M ]+(?P<n>\d{1,2})",), number, "months")
    numbers = [int(re.split(r"[-/. ]", cell)[0]) for cell in cells if re.fullmatch(r"\d{1,2}[-/. ]\d{4}", cell)]
    if found is None and (known or any(number > 4 for number in numbers)):
        found = _matched(cells, (r"(?P<n>\d{1,2})[-/. ](?P<y>\d{4})",), number, "months")
    if found is None:
        words = (rf"{WORD}[-/. ]*(?P<y>\d{{4}})", rf"(?P<y>\d{{4}})[-/. ]*{WORD}")
        found = _matched(cells, words, named, "months")
    return found or _short_years(cells)


def _with_zeros(cells: list[str]) -> list[str]:
    """Complete ``2024.1`` beside ``2024.01``: October, whose last zero a program dropped that read numbers."""
    if not any(re.fullmatch(r"\d{4}\.0\d", cell) for cell in cells):
        return cells
    return [f"{cell}0" if re.fullmatch(r"\d{4}\.\d", cell) else cell for cell in cells]


def _short_years(cells: list[str]) -> Period | None:
    """``Jan-00`` and ``00-Jan``, as Excel shows months, if the two digits must be years.

    They are years if one of them is no day of a month, or if the months of a year follow each other in the order of
    the file. Years 40 to 69 may belong to either century.
    """
    for pattern in (rf"{WORD}[-/. ']+(?P<y>\d{{2}})", rf"(?P<y>\d{{2}})[-/. ]+{WORD}"):
        matches = [match for match in (re.fullmatch(pattern, cell) for cell in cells) if match is not None]
        months = [month_of(match["n"]) for match in matches]
        if len(matches) < len(cells) or None in months:
            continue
        short = np.array([int(match["y"]) for match in matches])
        count = np.where(short < 40, 2000, 1900) + short
        count = count * 12 + np.array(months, dtype=np.int64)
        steps = np.diff(count)
        in_order = len(steps) > 0 and (steps > 0).all() and steps.min() < 12
        if ((short > 31) | (short == 0)).any() or in_order:
            if ((short >= 40) & (short < 70)).any():
                return None
            return _of_months([int(one) for one in count], f"months of {count[0] // 12}")
    return None


def _weeks(cells: list[str]) -> Period | None:
    patterns = (
        rf"(?P<y>\d{{4}})[-/ .]?{WEEK}[-. ]?(?P<n>\d{{1,2}})(?:[-.](?P<d>[1-7]))?",
        rf"{WEEK}[-. ]?(?P<n>\d{{1,2}})[-/ .']+(?P<y>\d{{4}})(?P<d>)",
    )
    for pattern in patterns:
        if not re.fullmatch(pattern, cells[0], re.IGNORECASE):
            continue
        matches = [match for cell in cells if (match := re.fullmatch(pattern, cell, re.IGNORECASE))]
        days = _mondays(matches) if len(matches) == len(cells) else None
        if days is not None:
            single = any(match["d"] for match in matches)
            return Period(days, f"ISO {'days of weeks' if single else 'weeks, from their Monday'}")
    return None


def _numbered_weeks(cells: list[str], known: bool = False) -> Period | None:
    """``2024-37``, ``202437`` and ``37/2024`` with numbers above 12 that follow each other, or known ones: weeks."""
    for pattern in (r"(?P<y>(?:19|20)\d\d)[-/ .]?(?P<n>\d{2})(?P<d>)", r"(?P<n>\d{1,2})[-/ .](?P<y>\d{4})(?P<d>)"):
        if not re.fullmatch(pattern, cells[0]):
            continue
        matches = [match for cell in cells if (match := re.fullmatch(pattern, cell))]
        if len(matches) < len(cells) or (max(int(match["n"]) for match in matches) <= 12 and not known):
            continue
        days = _mondays(matches)
        if days is not None and (
            known or len(days) == 1 or (np.diff(np.sort(days)) == np.timedelta64(7, "D")).mean() > 0.5
        ):
            return Period(days, "ISO weeks, from their Monday")
    return None


def _mondays(matches: list[re.Match]) -> np.ndarray | None:
    """Return the dates of ISO weeks; None if a year has no such week."""
    days = []
    for match in matches:
        try:
            day = pd.Timestamp.fromisocalendar(int(match["y"]), int(match["n"]), int(match["d"] or 1))
        except ValueError:
            return None
        days.append(day.to_datetime64())
    return np.array(days).astype("datetime64[us]")


def _compact(cells: list[str]) -> Period | None:
    """Dates without separators: ``20240131``, ``202401``, ``2024031`` (day of the year), ``20240131T1800Z``."""
    forms = ((8, "%Y%m%d"), (6, "%Y%m"), (7, "%Y%j"), (10, "%Y%m%d%H"), (12, "%Y%m%d%H%M"), (14, "%Y%m%d%H%M%S"))
    clock = re.compile(r"(\d{8})T(\d{4}(?:\d{2})?)Z?")
    offset = all(cell.endswith("Z") for cell in cells)
    plain = [clock.sub(r"\1\2", cell) if clock.fullmatch(cell) else cell for cell in cells]
    low, high = (1700, 2300) if len(plain[0]) in (6, 8) else YEARS
    for digits, form in forms:
        if all(len(cell) == digits and cell.isdecimal() and low <= int(cell[:4]) <= high for cell in plain):
            parsed = pd.to_datetime(pd.Series(plain, dtype="str"), format=form, errors="coerce")
            if not parsed.isna().any():
                return Period(parsed.to_numpy("datetime64[us]"), form, offset)
    return None


def _spans(cells: list[str]) -> Period | None:
    """``2024-01-01/2024-01-07``, ISO 8601 intervals of days, as pandas writes weekly periods: from their first day."""
    pairs = [cell.split("/") for cell in cells]
    if not all(len(pair) == 2 and all(re.fullmatch(r"\d{4}-\d\d-\d\d", day) for day in pair) for pair in pairs):
        return None
    first, last = (pd.to_datetime(pd.Series(days), format="%Y-%m-%d", errors="coerce") for days in zip(*pairs))
    if (first.isna() | last.isna() | (last < first)).any():
        return None
    return Period(first.to_numpy("datetime64[us]"), "spans of days, from their first day")


READERS = (_quarters, _halves, _weeks, _numbered, _decimal_years, _months, _compact, _numbered_weeks, _spans)
