"""Parsing of date columns: year-first dates, periods (2024-Q1, 2024-W05), epoch seconds, integers, a given format.

All cells of a column must have the same form. Forms other than ordinary dates are reported. Does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.tables import Table
from seqssm_forecasting.series import shown

YEAR_FIRST = (
    r"^(?P<year>\d{4})(?P<one>[-/])(?P<month>\d{1,2})(?P<two>[-/])(?P<day>\d{1,2})"
    r"(?:[ T](?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r" ?(?P<offset>Z|UTC|[+-]\d{2}:?\d{2})?$"
)
TOTALS = {"total", "totals", "sum", "mean", "average", "avg", "min", "max", "count", "gesamt", "summe", "mittelwert",
          "somme", "moyenne", "totale", "media", "suma", "promedio", "totaal"}  # fmt: skip
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
EPOCHS = (  # smallest and largest number, units of a second, name
    (10**8, 10**11, 1, "seconds"),
    (10**11, 10**14, 10**3, "milliseconds"),
    (10**14, 10**17, 10**6, "microseconds"),
    (10**17, 10**19, 10**9, "nanoseconds"),
)


@dataclass
class Dates:
    """A column of dates.

    Attributes:
        values: datetime64[us]; in UTC if the cells have an offset. For an integer axis, days since 1970.
        offset: whether the cells have an offset from UTC.
        numbered: whether the cells are plain integers.
        zone: name of the time zone of a typed column, or None.
        notes: messages to report.
    """

    values: np.ndarray
    offset: bool = False
    numbered: bool = False
    zone: str | None = None
    notes: list[str] = field(default_factory=list)


def read_dates(table: Table, column: str, form: str | None = None, hint: str | None = None) -> Dates:
    """Read a column as dates.

    Args:
        table: the table.
        column: name of the column.
        form: strptime format of dates that are not year first.
        hint: hint for messages, instead of the default one.

    Raises:
        InputError: a cell is not a date, or only some cells have an offset from UTC; the message has the line.
    """
    cells = table.frame[column]
    if pd.api.types.is_datetime64_any_dtype(cells):
        return _typed(table, column)
    if pd.api.types.is_numeric_dtype(cells):
        numbers = cells.to_numpy(dtype=np.float64, na_value=np.nan)
        cells = pd.Series([f"{n:.0f}" if n == np.floor(n) else "" if n != n else repr(n) for n in numbers], dtype="str")
    if form is None and (plain := _iso(cells)) is not None:
        return Dates(plain)
    codes, words = pd.factorize(cells)
    unique = pd.Series(words, dtype="str")
    reader = _Reader(table, column, unique, codes, hint)
    found = reader.by_format(form) if form else reader.read()
    found.values = found.values[codes]
    return found


def _iso(cells: pd.Series) -> np.ndarray | None:
    """Parse ISO 8601 dates without offset; None for anything else."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        found = pc.cast(pa.array(cells).cast(pa.large_string()), pa.timestamp("us"))
    except pa.ArrowInvalid:
        return None
    return np.asarray(found).astype("datetime64[us]")


def _typed(table: Table, column: str) -> Dates:
    stamps = table.frame[column]
    if stamps.isna().any():
        row = int(stamps.isna().to_numpy().argmax())
        raise InputError("no date", file=table.path, place=table.place(row, column))
    zone = stamps.dt.tz
    plain = stamps if zone is None else stamps.dt.tz_convert("UTC").dt.tz_localize(None)
    return Dates(plain.to_numpy("datetime64[us]"), zone is not None, False, getattr(zone, "key", None))


class _Reader:
    """Parses the distinct cells of a column."""

    def __init__(self, table: Table, column: str, cells: pd.Series, codes: np.ndarray, hint: str | None) -> None:
        self.table, self.column, self.cells, self.codes, self.hint = table, column, cells, codes, hint

    def error(self, code: int, message: str) -> InputError:
        """Return an error for the first row whose cell has the code `code`."""
        row = int((self.codes == code).argmax())
        return InputError(message, file=self.table.path, place=self.table.place(row, self.column))

    def not_a_date(self, code: int, form: str | None = None) -> InputError:
        text = self.cells[code]
        if not text:
            return self.error(code, "no date")
        hint = self.hint
        if hint is None and form:
            hint = f"expected the form {form}"
        elif hint is None:
            hint = "expected year-first dates such as 2016-07-31 18:00:00; set --data.date_format for other forms"
            hint += _suggestion(text)
        return self.error(code, f"{shown(text)} is not a date; {hint}")

    def by_format(self, form: str) -> Dates:
        """Parse cells of a given format."""
        offset = bool(re.search(r"%z", form))
        try:
            parsed = pd.to_datetime(self.cells, format=form, errors="coerce", utc=offset)
        except (ValueError, TypeError) as error:
            raise InputError(f"--data.date_format {form}: {' '.join(str(error).split())[:100]}") from None
        if parsed.isna().any():
            raise self.not_a_date(int(parsed.isna().to_numpy().argmax()), form)
        plain = parsed.dt.tz_localize(None) if offset else parsed
        return Dates(plain.to_numpy("datetime64[us]"), offset)

    def read(self) -> Dates:
        """Parse cells in one of the known forms."""
        import pyarrow as pa
        import pyarrow.compute as pc

        cells = pa.array(self.cells, pa.large_string())
        fields = pc.extract_regex(cells, YEAR_FIRST)
        bad = fields.is_null().to_numpy(zero_copy_only=False)
        if bad.mean() > 0.5 and (found := self._period()) is not None:
            return found
        if bad.any():
            raise self.not_a_date(int(bad.argmax()))
        return self._year_first({one.name: fields.field(one.name) for one in fields.type})

    def _year_first(self, fields: dict) -> Dates:
        def number(name: str) -> np.ndarray:
            import pyarrow as pa
            import pyarrow.compute as pc

            text = pc.if_else(pc.equal(fields[name], ""), "0", fields[name])
            return pc.cast(text, pa.int64()).to_numpy(zero_copy_only=False)

        year, month, day, hour, minute, second = (
            number(name) for name in ("year", "month", "day", "hour", "minute", "second")
        )
        first = (year - 1970).astype("datetime64[Y]").astype("datetime64[M]") + np.clip(month - 1, 0, 11)
        length = ((first + 1).astype("datetime64[D]") - first.astype("datetime64[D]")).astype(np.int64)
        bad = (month < 1) | (month > 12) | (day < 1) | (day > length) | (hour > 23) | (minute > 59) | (second > 59)
        bad |= np.array([one != two for one, two in zip(fields["one"].to_pylist(), fields["two"].to_pylist())])
        signs = fields["offset"].to_pylist()
        shift = np.array([_minutes(sign) for sign in signs])
        bad |= np.abs(shift) >= 24 * 60
        if bad.any():
            raise self.not_a_date(int(bad.argmax()))
        fraction = np.array([int((text or "").ljust(6, "0")[:6]) for text in fields["fraction"].to_pylist()])
        seconds = (hour * 60 + minute - shift) * 60 + second
        values = (first.astype("datetime64[D]") + day - 1).astype("datetime64[us]")
        values = values + (seconds * 1_000_000 + fraction).astype("timedelta64[us]")
        has = np.array([bool(sign) for sign in signs])
        if has.any() and not has.all():
            code = int((has != has[self.codes[0]]).argmax())
            what = "an offset from UTC" if has[code] else "no offset from UTC"
            raise self.error(code, f"{shown(self.cells[code])} has {what}, unlike the preceding dates")
        return Dates(values, bool(has.all()) and len(has) > 0)

    def _period(self) -> Dates | None:
        """Parse quarters, months, weeks, half-years, years, epoch seconds or integers; None for anything else."""
        cells = list(self.cells)
        for reader in (_quarters, _halves, _weeks, _months, _compact):
            found = reader(cells)
            if found is not None:
                return found
        if all(re.fullmatch(r"[1-4][-/ .]\d{4}", cell) for cell in cells):
            return self._quarters_or_months()
        if all(re.fullmatch(r"-?\d+", cell) for cell in cells):
            return self._integers()
        return None

    def _quarters_or_months(self) -> Dates | None:
        """Parse ``3-1960`` with 1 to 4 only: quarters if a 4 is followed by the 1 of the next year."""
        parts = np.array([[int(cell[2:]), int(cell[0])] for cell in self.cells])
        order = np.lexsort((parts[:, 1], parts[:, 0]))
        steps = np.diff(parts[order, 0] * 4 + parts[order, 1])
        if len(parts) < 5 or not (steps == 1).mean() > 0.5 or set(parts[:, 1]) != {1, 2, 3, 4}:
            return None
        return _of_months(parts[:, 0] * 12 + 3 * (parts[:, 1] - 1), f"dates such as {self.cells[0]} read as quarters")

    def _integers(self) -> Dates:
        numbers = np.array([int(cell) for cell in self.cells], dtype=object)
        low, high = min(numbers), max(numbers)
        for smallest, largest, unit, name in EPOCHS:
            if smallest <= low and high < largest:
                values = np.array([number * 1_000_000 // unit for number in numbers], dtype=np.int64)
                note = f"dates such as {self.cells[0]} read as {name} since 1970, UTC"
                return Dates(values.astype("datetime64[us]"), True, notes=[note])
        if low >= 1700 and high <= 2300 and all(len(cell) == 4 for cell in self.cells):
            years = np.array([number * 12 for number in numbers], dtype=np.int64)
            return _of_months(years, f"dates such as {self.cells[0]} read as years")
        if max(abs(low), abs(high)) > 10**8:
            raise self.not_a_date(int(np.argmax([abs(number) for number in numbers])))
        values = np.array(numbers, dtype=np.int64).astype("datetime64[D]").astype("datetime64[us]")
        return Dates(values, numbered=True, notes=["the time axis contains integers, not dates"])


def _suggestion(text: str) -> str:
    """Suggest a format for common forms, ``, perhaps '%d.%m.%Y'``."""
    clock = r"(?P<clock>[ T]\d{1,2}:\d{2}(?P<seconds>:\d{2})?)?"
    for pattern, form in ((r"\d{1,2}\.\d{1,2}\.\d{4}", "%d.%m.%Y"), (r"\d{1,2}/\d{1,2}/\d{4}", "%d/%m/%Y|%m/%d/%Y"),
                          (r"\d{1,2}-\d{1,2}-\d{4}", "%d-%m-%Y|%m-%d-%Y"), (r"\d{1,2}\.\d{1,2}\.\d{2}", "%d.%m.%y"),
                          (r"\d{1,2}[- ][A-Za-z]{3}[- ]\d{4}", "%d-%b-%Y")):  # fmt: skip
        found = re.fullmatch(pattern + clock, text.strip())
        if found:
            tail = "" if not found["clock"] else " %H:%M" + (":%S" if found["seconds"] else "")
            return ", perhaps " + " or ".join(f"'{one}{tail}'" for one in form.split("|"))
    if re.fullmatch(r"[A-Za-z]{3,9}[-/. ']+\d{2}|\d{2}[-/. ]+[A-Za-z]{3,9}", text.strip()):
        return "; the two digits may be a day or a year of either century, write four"
    return ""


def _minutes(sign: str | None) -> int:
    """Convert an offset from UTC to minutes."""
    if not sign or sign in ("Z", "UTC"):
        return 0
    digits = sign[1:].replace(":", "")
    return (1 if sign[0] == "+" else -1) * (int(digits[:2]) * 60 + int(digits[2:]))


def _of_months(months: np.ndarray, note: str) -> Dates:
    """Return the first days of months counted from January of year 0."""
    first = (np.asarray(months, dtype=np.int64) - 1970 * 12).astype("datetime64[M]")
    return Dates(first.astype("datetime64[us]"), notes=[note])


def _matched(
    cells: list[str], patterns: tuple[str, ...], month: Callable[[re.Match], int | None], what: str
) -> Dates | None:
    for pattern in patterns:
        matches = [re.fullmatch(pattern, cell, re.IGNORECASE) for cell in cells]
        if all(matches):
            months = [month(match) for match in matches if match is not None]
            if all(one is not None for one in months):
                return _of_months(np.array(months), f"dates such as {cells[0]} read as {what}")
    return None


def _quarters(cells: list[str]) -> Dates | None:
    patterns = (
        r"(?P<y>\d{4})[-/ .]?Q(?P<n>[1-4])",
        r"Q(?P<n>[1-4])[-/ .']*(?P<y>\d{4})",
        r"(?P<n>[1-4])Q[-/ .']*(?P<y>\d{4})",
    )
    return _matched(cells, patterns, lambda m: int(m["y"]) * 12 + 3 * (int(m["n"]) - 1), "quarters")


def _halves(cells: list[str]) -> Dates | None:
    patterns = (r"(?P<y>\d{4})[-/ .]?[HS](?P<n>[12])", r"[HS](?P<n>[12])[-/ .']*(?P<y>\d{4})")
    return _matched(cells, patterns, lambda m: int(m["y"]) * 12 + 6 * (int(m["n"]) - 1), "half-years")


def _months(cells: list[str]) -> Dates | None:
    def number(match: re.Match) -> int | None:
        month = int(match["n"])
        return int(match["y"]) * 12 + month - 1 if 1 <= month <= 12 else None

    def named(match: re.Match) -> int | None:
        word = match["n"].lower()[:3]
        return int(match["y"]) * 12 + MONTHS.index(word) if word in MONTHS else None

    found = _matched(cells, (r"(?P<y>\d{4})[-/.M ]+(?P<n>\d{1,2})",), number, "months")
    if found is None and any(int(re.split(r"[-/. ]", cell)[0]) > 4 for cell in cells
                             if re.fullmatch(r"\d{1,2}[-/. ]\d{4}", cell)):  # fmt: skip
        found = _matched(cells, (r"(?P<n>\d{1,2})[-/. ](?P<y>\d{4})",), number, "months")
    if found is None:
        words = (r"(?P<n>[A-Za-z]{3,9})[-/. ]+(?P<y>\d{4})", r"(?P<y>\d{4})[-/. ]+(?P<n>[A-Za-z]{3,9})")
        found = _matched(cells, words, named, "months")
    return found or _short_years(cells)


def _short_years(cells: list[str]) -> Dates | None:
    """``Jan-00`` and ``00-Jan``, as Excel shows months, if the two digits must be years.

    They are years if one of them is no day of a month, or if the months of a year follow each other in the order of
    the file. Years 40 to 69 may belong to either century.
    """
    for pattern in (r"(?P<n>[A-Za-z]{3,9})[-/. ']+(?P<y>\d{2})", r"(?P<y>\d{2})[-/. ]+(?P<n>[A-Za-z]{3,9})"):
        matches = [match for match in (re.fullmatch(pattern, cell) for cell in cells) if match is not None]
        months = [match["n"].lower()[:3] for match in matches]
        if len(matches) < len(cells) or not set(months) <= set(MONTHS):
            continue
        short = np.array([int(match["y"]) for match in matches])
        count = np.where(short < 40, 2000, 1900) + short
        count = count * 12 + [MONTHS.index(month) for month in months]
        steps = np.diff(count)
        in_order = len(steps) > 0 and (steps > 0).all() and steps.min() < 12
        if ((short > 31) | (short == 0)).any() or in_order:
            if ((short >= 40) & (short < 70)).any():
                return None
            return _of_months(count, f"dates such as {cells[0]} read as months of {count[0] // 12}")
    return None


def _weeks(cells: list[str]) -> Dates | None:
    matches = [re.fullmatch(r"(\d{4})[-/ .]?W(\d{1,2})(?:[-.]([1-7]))?", cell, re.IGNORECASE) for cell in cells]
    if not all(matches):
        return None
    days = []
    for match in matches:
        assert match is not None
        try:
            day = pd.Timestamp.fromisocalendar(int(match[1]), int(match[2]), int(match[3] or 1))
        except ValueError:
            return None
        days.append(day.to_datetime64())
    kind = "weeks, from their Monday" if not any(match[3] for match in matches if match) else "days of weeks"
    values = np.array(days).astype("datetime64[us]")
    return Dates(values, notes=[f"dates such as {cells[0]} read as ISO {kind}"])


def _compact(cells: list[str]) -> Dates | None:
    """``20240131`` and ``202401``."""
    for form, digits in (("%Y%m%d", 8), ("%Y%m", 6)):
        if all(len(cell) == digits and cell.isdecimal() and 1700 <= int(cell[:4]) <= 2300 for cell in cells):
            parsed = pd.to_datetime(pd.Series(cells, dtype="str"), format=form, errors="coerce")
            if not parsed.isna().any():
                return Dates(parsed.to_numpy("datetime64[us]"), notes=[f"dates such as {cells[0]} read as {form}"])
    return None
