"""Parsing of date columns: year-first dates, epoch seconds, integers, a given format, and the forms of `periods`.

All cells of a column must have the same form. Forms other than ordinary dates are reported. Does not import torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.tables import Table
from seqssm_forecasting import epochs, periods, steps
from seqssm_forecasting.formats import EXCEL, suggestion
from seqssm_forecasting.series import shown

YEAR_FIRST = (
    r"^(?P<year>\d{4})(?P<one>[-/.])(?P<month>\d{1,2})(?P<two>[-/.])(?P<day>\d{1,2})"
    r"(?:[ Tt](?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"(?P<hours>[+-]\d{2})?)? ?(?P<offset>Z|z|UTC|GMT|[+-]\d{2}:?\d{2})?$"
)
WHOLE = re.compile(r"-?\d+(\.0*)?")
SERIALS = (20_000, 80_000)  # 1954 to 2119


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


def read_dates(
    table: Table,
    column: str,
    form: str | None = None,
    hint: str | None = None,
    step: str | None = None,
    axis: str | None = None,
) -> Dates:
    """Read a column as dates.

    Args:
        table: the table.
        column: name of the column.
        form: strptime format of dates that are not year first; ``excel`` for serial numbers of spreadsheets.
        hint: hint for messages, instead of the default one.
        step: name of the step between the dates (`seqssm_forecasting.steps`), if known; a few cells such as ``2024-1``
            do not show it.
        axis: ``"numbers"`` or ``"dates"`` where that is known; integers such as 2000 may be either.

    Raises:
        InputError: a cell is not a date, or only some cells have an offset from UTC; the message has the line.
    """
    cells = table.frame[column]
    if pd.api.types.is_datetime64_any_dtype(cells):
        return _typed(table, column)
    if pd.api.types.is_numeric_dtype(cells):
        numbers = cells.to_numpy(dtype=np.float64, na_value=np.nan)
        plain = [f"{n:.0f}" if n == np.floor(n) else "" if n != n else repr(float(n)) for n in numbers]
        cells = pd.Series(plain, dtype="str")
    if form is None and (stamps := _iso(cells)) is not None:
        return Dates(stamps)
    codes, words = pd.factorize(cells)
    unique = pd.Series(words, dtype="str")
    starts = _starts(unique)
    reader = _Reader(table, column, unique if starts is None else starts, codes, hint, step, axis)
    found = reader.serial() if form == EXCEL else reader.by_format(form) if form else reader.read()
    if starts is not None:
        found.notes.append(f"intervals such as {unique[0]} read as their start")
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


def _starts(cells: pd.Series) -> pd.Series | None:
    """Return the first dates of intervals such as ``2024-01-01 00:00 - 2024-01-01 01:00``; None for other cells."""
    pattern = r"(\d\S*(?: \d\S*)?)(?: \([A-Z]+\))? [-–] \d\S*(?: \d\S*)?(?: \([A-Z]+\))?"
    if not len(cells) or not re.fullmatch(pattern, cells.iloc[0]):
        return None
    found = [re.fullmatch(pattern, cell) for cell in cells]
    return pd.Series([match[1] for match in found if match], dtype="str") if all(found) else None


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

    def __init__(
        self,
        table: Table,
        column: str,
        cells: pd.Series,
        codes: np.ndarray,
        hint: str | None,
        step: str | None,
        axis: str | None,
    ) -> None:
        self.table, self.column, self.cells, self.codes, self.hint = table, column, cells, codes, hint
        self.step, self.axis = None if step is None else steps.parse(step), axis

    def error(self, code: int, message: str) -> InputError:
        """Return an error for the first row whose cell has the code `code`."""
        row = int((self.codes == code).argmax())
        return InputError(message, file=self.table.path, place=self.table.place(row, self.column))

    def not_a_date(self, code: int, form: str | None = None) -> InputError:
        text = self.cells[code]
        if not text:
            return self.error(code, "no date")
        row = int((self.codes == code).argmax())
        hint = self.hint
        if hint is None and not any(character.isdigit() for character in text) and row:
            text_file = self.table.dialect.kind == "text"
            hint = f"--data.skip_rows [{self.table.lines[row]}] leaves the line out" if text_file else "delete the row"
        elif hint is None and epochs.ROUNDED.fullmatch(text):
            hint = epochs.WRITE
        elif hint is None and form:
            hint = f"expected the form {form}"
        elif hint is None:
            hint = "expected year-first dates such as 2016-07-31 18:00:00; set --data.date_format for other forms"
            hint += suggestion(text, self.cells)
        return self.error(code, f"{shown(text)} is not a date; {hint}")

    def serial(self) -> Dates:
        """Parse serial numbers of spreadsheets: days since 1899-12-30, to the second."""
        numbers = pd.to_numeric(self.cells.str.replace(",", "."), errors="coerce").to_numpy(dtype=np.float64)
        bad = ~((numbers >= 1) & (numbers < 2_958_466))
        if bad.any():
            code = int(bad.argmax())
            text = f"{shown(self.cells[code])} is not the serial number of a date" if self.cells[code] else "no date"
            raise self.error(code, f"{text} (--data.date_format {EXCEL})")
        seconds = np.round(numbers * 86_400).astype("timedelta64[s]")
        return Dates((np.datetime64("1899-12-30", "s") + seconds).astype("datetime64[us]"))

    def by_format(self, form: str) -> Dates:
        """Parse cells of a given format."""
        offset = bool(re.search(r"%z", form))
        late = self.cells.str.contains(r"(?<!\d)24:00(?::00)?(?!\d)") & ("%H:%M" in form)
        cells = self.cells.where(~late, self.cells.str.replace("24:00", "00:00"))
        try:
            parsed = pd.to_datetime(cells, format=form, errors="coerce", utc=offset)
        except (ValueError, TypeError) as error:
            raise InputError(f"--data.date_format {form}: {' '.join(str(error).split())[:100]}") from None
        if parsed.isna().any():
            raise self.not_a_date(int(parsed.isna().to_numpy().argmax()), form)
        plain = parsed.dt.tz_localize(None) if offset else parsed
        plain = plain + pd.to_timedelta(late.astype(int), unit="D")
        return Dates(plain.to_numpy("datetime64[us]"), offset, notes=_midnights(late.to_numpy()))

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
            odd = self._odd_one_out() if bad.mean() > 0.5 else None
            raise self.not_a_date(int(bad.argmax()) if odd is None else odd)
        return self._year_first({one.name: fields.field(one.name) for one in fields.type})

    def _odd_one_out(self) -> int | None:
        """Return the code of the first cell that lacks the form of at least half of the cells, or None."""
        cells = list(self.cells)
        found = periods.odd_one_out(cells)
        for is_number in (lambda cell: epochs.read([cell]) is not None, WHOLE.fullmatch):
            good = [bool(is_number(cell)) for cell in cells] if found is None else []
            if not all(good) and 2 * sum(good) >= len(good):
                found = good.index(False)
        return found

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
        bad = (month < 1) | (month > 12) | (day < 1) | (day > length) | (hour > 24) | (minute > 59) | (second > 59)
        bad |= np.array([one != two for one, two in zip(fields["one"].to_pylist(), fields["two"].to_pylist())])
        late = hour == 24  # the end of the day, as in ISO 8601
        signs = [two or one for one, two in zip(fields["hours"].to_pylist(), fields["offset"].to_pylist())]
        shift = np.array([_minutes(sign) for sign in signs])
        bad |= np.abs(shift) >= 24 * 60
        if bad.any():
            raise self.not_a_date(int(bad.argmax()))
        fraction = np.array([int((text or "").ljust(6, "0")[:6]) for text in fields["fraction"].to_pylist()])
        if (bad := late & (minute + second + fraction > 0)).any():
            raise self.not_a_date(int(bad.argmax()))
        seconds = (hour * 60 + minute - shift) * 60 + second
        values = (first.astype("datetime64[D]") + day - 1).astype("datetime64[us]")
        values = values + (seconds * 1_000_000 + fraction).astype("timedelta64[us]")
        has = np.array([bool(sign) for sign in signs])
        if has.any() and not has.all():
            code = int((has != has[self.codes[0]]).argmax())
            what = "an offset from UTC" if has[code] else "no offset from UTC"
            raise self.error(code, f"{shown(self.cells[code])} has {what}, unlike the preceding dates")
        return Dates(values, bool(has.all()) and len(has) > 0, notes=_midnights(late))

    def _period(self) -> Dates | None:
        """Parse quarters, months, weeks, half-years, years, epoch seconds or integers; None for anything else."""
        cells = list(self.cells)
        months = self.step.count if isinstance(self.step, steps.Months) else None
        weeks = isinstance(self.step, steps.Fixed) and self.step.length % steps.WEEK == 0
        whole = all(WHOLE.fullmatch(cell) for cell in cells)
        found = None if whole and self.axis == "numbers" else periods.read(cells, months, weeks)
        if found is not None:
            return Dates(found.values, found.offset, notes=[f"dates such as {cells[0]} read as {found.form}"])
        try:
            since = epochs.read(cells)  # also beside an axis of numbers, whose integers are smaller
        except epochs.FineError as fine:
            what = f"{shown(cells[fine.index])} differs from another row only below the resolution of 1 microsecond"
            raise self.error(fine.index, f"{what}; number the rows 0, 1, 2, ... instead") from None
        if since is not None:
            return Dates(since[0], True, notes=[f"dates such as {cells[0]} read as {since[1]} since 1970, UTC"])
        return self._integers() if whole else None

    def _integers(self) -> Dates:
        numbers = np.array([int(cell.split(".")[0]) for cell in self.cells], dtype=object)
        low, high = min(numbers), max(numbers)
        usual = self.axis == "dates" or (low >= 1700 and high <= 2300 and self.axis is None)
        if usual and low > 0 and all(len(cell.split(".")[0]) == 4 for cell in self.cells):
            years = (np.array(numbers, dtype=np.int64) - 1970).astype("datetime64[Y]")
            return Dates(years.astype("datetime64[us]"), notes=[f"dates such as {self.cells[0]} read as years"])
        if max(abs(low), abs(high)) > epochs.SMALLEST:
            raise self.error(
                int(np.argmax([abs(number) for number in numbers])),
                f"the time axis contains integers from {low} to {high}: too large for steps, and not of one unit since "
                "1970; write dates such as 2016-07-31 18:00:00, or smaller integers",
            )
        values = np.array(numbers, dtype=np.int64).astype("datetime64[D]").astype("datetime64[us]")
        note = "the time axis contains integers, not dates"
        if low >= SERIALS[0] and high < SERIALS[1]:
            note += f"; if they are serial numbers of a spreadsheet, --data.date_format {EXCEL}"
        return Dates(values, numbered=True, notes=[note])


def _midnights(late: np.ndarray) -> list[str]:
    """Return the note about times 24:00."""
    return [f"24:00 read as 00:00 of the next day, in {int(late.sum())} of the dates"] if late.any() else []


def _minutes(sign: str | None) -> int:
    """Convert an offset from UTC to minutes."""
    if not sign or sign[0] not in "+-":  # Z, UTC, GMT
        return 0
    digits = sign[1:].replace(":", "").ljust(4, "0")
    return (1 if sign[0] == "+" else -1) * (int(digits[:2]) * 60 + int(digits[2:]))
