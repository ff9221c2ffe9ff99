"""From the bytes of a text table to rows of cells, numbers and dates: encoding, separator, decimal mark, time zone.

What is not given is found from the file itself, and only where one reading is possible; else an `InputError` names the
option that settles it. Needs no torch.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from seqssm.errors import InputError

MISSING = {"", "nan", "na", "n/a", "null", "none", "-", "?"}  # what people write where a value is missing
DATE = re.compile(
    r"(\d{4})([-/])(\d{1,2})\2(\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)?"
    r" ?(Z|UTC|[+-]\d{2}:?\d{2})?",
    re.ASCII,
)
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
WORDS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
BOMS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"))  # fmt: skip
SAMPLE = 200  # rows that separator and decimal mark are judged by


@dataclass(frozen=True)
class Reading:
    """How a file is to be read; None and "auto": found from the file.

    Attributes:
        layout: ``"wide"`` (the date, then one column a series), ``"long"`` (one row a series and date), ``"auto"``.
        id_column, time_column, value_column: names in the long layout; `time_column` also that of a wide file's dates.
        separator: ``comma``, ``semicolon``, ``tab``, ``bar`` or the sign itself.
        decimal: ``"point"``, ``"comma"``, ``"auto"``.
        encoding: a name that Python knows; by default UTF-8, or what a byte-order mark says.
        date_format: of dates that are not year first, as strptime takes it: ``%d.%m.%Y %H:%M``.
        timezone: of the dates (``Europe/Berlin``): those without an offset are local times in it, those with one are
            converted to it. Without it dates with an offset are brought to UTC.
        future: names of the columns whose values are known beforehand (a plan, a holiday).
    """

    layout: str = "auto"
    id_column: str | None = None
    time_column: str | None = None
    value_column: str | None = None
    separator: str | None = None
    decimal: str = "auto"
    encoding: str | None = None
    date_format: str | None = None
    timezone: str | None = None
    future: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
                "".encode(self.encoding)
            except (LookupError, UnicodeError, TypeError):
                raise InputError(f"--data.encoding {self.encoding}: no encoding that Python knows") from None
        if self.separator is not None and len(WORDS.get(self.separator, self.separator)) != 1:
            raise InputError(f"--data.separator {self.separator}: one of {', '.join(WORDS)}, or a single sign")
        if self.separator is not None and WORDS.get(self.separator, self.separator) in '"\r\n\0 ':
            raise InputError("--data.separator: this sign cannot part columns")
        if self.timezone is not None:
            from zoneinfo import ZoneInfo

            try:
                ZoneInfo(self.timezone)
            except (ValueError, OSError, KeyError):
                raise InputError(f"--data.timezone {self.timezone}: no such time zone (Europe/Berlin, UTC)") from None


@dataclass
class Table:
    """The rows of a text file as cells, with what was found out about it.

    Attributes:
        header: cells of the first row, stripped; None when none was asked for.
        header_line: its line.
        rows: (line, cells); every row has as many cells as the header.
        decimal_comma: numbers are written with one.
        notes: what was found and is worth saying.
    """

    path: Path
    header: list[str]
    header_line: int
    rows: list[tuple[int, list[str]]]
    decimal_comma: bool = False
    notes: list[str] = field(default_factory=list)

    def numbers(self, line: int, cells: list[str], columns: list[str]) -> np.ndarray:
        """A row's numbers; NaN where a value is missing, an error where there is text or an infinite number."""
        if not self.decimal_comma:
            try:
                row = np.array([float(cell) for cell in cells])
                # Python reads 1_000 as a number, people do not write it; "nan" and "inf" go the slow way
                if np.isfinite(row).all() and not any("_" in cell for cell in cells):
                    return row
            except ValueError:
                pass
        row = np.empty(len(cells))
        for position, cell in enumerate(cells):
            row[position] = self.number(line, cell, columns[position])
        return row

    def number(self, line: int, cell: str, column: str) -> float:
        """One cell's number; NaN where it is missing."""
        text = cell.strip()
        if text.lower() in MISSING:
            return np.nan
        plain = text.replace(",", ".") if self.decimal_comma and text.count(",") == 1 and "." not in text else text
        try:
            if "_" in plain:
                raise ValueError
            value = float(plain)
        except ValueError:
            mark = "a decimal comma" if self.decimal_comma else "a decimal point"
            raise InputError(
                f"{shown(cell)} is not a number ({mark}, no unit, no thousands mark)",
                file=self.path,
                place=f"line {line}, column {column}",
            ) from None
        if np.isinf(value):
            raise InputError("is infinite or too large", file=self.path, place=f"line {line}, column {column}")
        return value


def table(path: Path, reading: Reading, header: bool = True) -> Table:
    """Reads a text table, plain or ``.gz``.

    Args:
        path: the file.
        reading: what is known of it.
        header: whether the first row holds the names.

    Raises:
        InputError: not text, no rows, unequal rows, or two readings are possible.
    """
    text, notes = _decoded(path, reading.encoding)
    separator = _separator(path, text, reading.separator, header)
    if header and separator != ",":
        notes.append(f"columns separated by {NAMES.get(separator, repr(separator))}")
    rows = list(_rows(path, text, separator))
    if not rows:
        raise InputError("is empty; expected a header: date, then one column a variate" if header else "is empty",
                         file=path)  # fmt: skip
    names = [name.strip() for name in rows[0][1]] if header else []
    found = Table(path, names, rows[0][0], rows[1:] if header else rows, notes=notes)
    width, first = len(rows[0][1]), "the header" if header else "the first line"
    for line, cells in found.rows:
        if len(cells) != width:
            raise InputError(f"{len(cells)} cells where {first} has {width}", file=path, place=f"line {line}")
    found.decimal_comma = reading.decimal == "comma"
    if reading.decimal == "auto" and separator != ",":
        found.decimal_comma = _decimal_comma(found)
    if found.decimal_comma:
        notes.append("numbers with a decimal comma")
    return found


def _decimal_comma(found: Table) -> bool:
    """Whether numbers are written with a decimal comma; only asked where the comma does not part columns."""
    pattern = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
    cells = [(line, cell.strip()) for line, row in found.rows[:SAMPLE] for cell in row[1:]]
    with_comma = [(line, cell) for line, cell in cells if pattern.fullmatch(cell)]
    if not with_comma or any(re.fullmatch(r"[+-]?\d+\.\d+(?:[eE][+-]?\d+)?", cell) for _, cell in cells):
        return False
    if all(re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", cell) for _, cell in with_comma):
        line, cell = with_comma[0]
        raise InputError(
            f"{shown(cell)} may be a decimal comma or a thousands mark; --data.decimal comma, or write it plainly",
            file=found.path,
            place=f"line {line}",
        )
    return True


def _separator(path: Path, text: str, given: str | None, header: bool) -> str:
    if given is not None:
        return WORDS.get(given, given)
    first = text.lstrip("\r\n").split("\n", 1)[0].split("\r", 1)[0]
    if not header and "," not in first and len(first.split()) > 1 and not any(mark in first for mark in ";\t|"):
        return " "
    outside = re.sub(r'"[^"]*"', "", first)
    counts = {mark: outside.count(mark) for mark in NAMES}
    best = max(counts, key=lambda mark: counts[mark])
    if counts[best] and sorted(counts.values())[-2] == counts[best]:
        both = " or ".join(NAMES[mark] for mark in NAMES if counts[mark] == counts[best])
        raise InputError(f"its columns may be separated by {both}; give --data.separator", file=path, place="line 1")
    return best if counts[best] else ","


def _rows(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        for cells in reader:
            if cells and cells != [""]:
                yield reader.line_num, cells
    except csv.Error as error:
        raise InputError(f"is not a CSV row ({error})", file=path, place=f"line {reader.line_num}") from None


def _decoded(path: Path, encoding: str | None) -> tuple[str, list[str]]:
    data = content(path)
    marked = next((name for mark, name in BOMS if data.startswith(mark)), None)
    name = encoding or marked or "utf-8"
    notes = [f"read as {name}"] if encoding or marked not in (None, "utf-8-sig") else []
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        hint = "give --data.encoding (cp1252, latin-1, ...), or save it as UTF-8"
        raise InputError(
            f"is not {name.removesuffix('-sig').upper()} text; {hint}", file=path, place=f"line {line}"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError("holds a zero byte, so it is no text table", file=path, place=f"line {line}")
    return text.removeprefix("\ufeff"), notes


def content(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is named ``.gz``.

    Raises:
        InputError: missing, a folder, not readable, or not a whole gzip file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except IsADirectoryError:
        raise InputError("is a folder; give the file", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    if path.suffix.lower() == ".gz":
        try:
            return gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            raise InputError("is not a complete gzip file", file=path) from None
    return data


# -- dates -----------------------------------------------------------------------------------------------------------


class Dates:
    """Reads a column of dates, one cell after another; all must carry an offset, or none.

    Args:
        path, column: for error messages.
        reading: `date_format` and `timezone`.
        hint: what an error says instead of the usual hint.
    """

    def __init__(self, path: Path, column: str, reading: Reading, hint: str | None = None) -> None:
        self.path, self.column, self.reading, self.hint = path, column, reading, hint
        self.values: list[datetime] = []
        self.offset: bool | None = None

    def add(self, text: str, place: str) -> None:
        """Takes a cell.

        Raises:
            InputError: not a date, or the first one with (or without) an offset.
        """
        found = self._given_format(text) if self.reading.date_format else _year_first(text)
        if found is None:
            form = self.reading.date_format
            hint = self.hint or (
                f"expected the form {form}"
                if form
                else "dates are year first, as 2016-07-31 18:00:00, or in the form that --data.date_format gives"
            )
            raise InputError(
                f"{shown(text)} is not a date; {hint}", file=self.path, place=f"{place}, column {self.column}"
            )
        if self.offset is None:
            self.offset = found.tzinfo is not None
        elif self.offset != (found.tzinfo is not None):
            has = "no offset from UTC" if self.offset else "an offset from UTC"
            raise InputError(
                f"{shown(text)} has {has}, unlike the dates before",
                file=self.path,
                place=f"{place}, column {self.column}",
            )
        self.values.append(found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found)

    def _given_format(self, text: str) -> datetime | None:
        try:
            return datetime.strptime(text.strip(), str(self.reading.date_format))
        except (ValueError, re.error):
            return None


def _year_first(text: str) -> datetime | None:
    found = DATE.fullmatch(text.strip())
    if found is None:
        return None
    year, _, month, day, hour, minute, second, fraction, offset = found.groups()
    zone = None
    if offset in ("Z", "UTC"):
        zone = UTC
    elif offset:
        digits = offset[1:].replace(":", "")
        minutes = int(digits[:2]) * 60 + int(digits[2:])
        if minutes >= 24 * 60:
            return None
        zone = timezone(timedelta(minutes=minutes if offset[0] == "+" else -minutes))
    try:
        moment = datetime(
            int(year),
            int(month),
            int(day),
            int(hour or 0),
            int(minute or 0),
            int(second or 0),
            int((fraction or "").ljust(6, "0")[:6]),
            zone,
        )
        return moment.astimezone(UTC) if zone else moment
    except (ValueError, OverflowError):
        return None  # month 13 or the like: no date


def shown(text: str) -> str:
    """A cell as an error shows it: quoted, one line, not too long."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def listed(names: list[str], most: int = 12) -> str:
    """Names as a list in an error, the first `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
