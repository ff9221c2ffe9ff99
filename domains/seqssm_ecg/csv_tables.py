"""Text tables of samples (`.csv`): separators, names and units of the columns, and the header blocks of watches."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm.files.content import encoding_of
from seqssm.files.numbers import MISSING
from seqssm_ecg.clock import places_of
from seqssm_ecg.leads import canonical, split_unit

SEPARATORS = (",", ";", "\t", "|")
LINES = 60  # lines in which the first samples are searched for
SAMPLED = 1000  # lines in which a decimal comma is searched for
SEARCHED = 200_000  # lines in which a cell with text is searched for
MANY = 3  # empty lines, below which it is not asked whether every second line is empty
NO_NUMBERS = sorted({form for word in MISSING for form in (word, word.upper(), word.capitalize())})
_HERTZ = re.compile(r"([\d.,]+)\s*(?:hertz|hz)", re.I)
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:[.,]\d*)?)")
_DECIMAL_COMMA = re.compile(
    r"[-+]?(?:\d*,(?:\d\d?|\d{4,})|0*,\d{3}|\d{4,},\d{3})(?:e[-+]?\d+)?", re.I
)  # not of thousands
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
_PAIR = re.compile(r'\s*"?[^\W\d_][^,;\t]*[,;\t].*\S')  # a key and a value
_SINGLE = re.compile(r'"?[-+]?\d*[.,]?\d+(?:e[-+]?\d+)?"?', re.I)
_LEAD = ("lead", "ableitung", "dérivation", "derivación", "derivazione", "derivação", "afleiding")
_UNIT = ("unit", "einheit", "unité", "unidad", "unità", "unidade", "eenheid")
MANY = 6  # columns, whose numbers 0, 1, ... are hardly a sample of integers


@dataclass(frozen=True)
class Head:
    """The lines before the samples.

    Attributes:
        lines: number of these lines.
        separator: separator of the columns.
        decimal: decimal mark.
        quote: quotation mark.
        names: names of the columns, with their units as in ``II (mV)``; None if the file has none.
        rate_hz: sampling rate, or None if the file does not give it.
        clocks: columns of times written as ``0:00.004``, and all columns of dates with times.
        dates: columns of dates with times.
        numbered: whether a column without a name, of the numbers of the rows, is before the others, as R writes it.
        single: whether the file has one column, in which an empty line is a missing sample.
        trailing: whether the first sample's line ends with a separator.
        encoding: encoding of the text.
        counted: whether the last of these lines numbers the columns, as pandas writes it.
    """

    lines: int
    separator: str
    decimal: str
    quote: str
    names: tuple[str, ...] | None
    rate_hz: float | None = None
    clocks: tuple[int, ...] = ()
    dates: tuple[int, ...] = ()
    numbered: bool = False
    single: bool = False
    trailing: bool = False
    encoding: str = "utf-8-sig"
    counted: bool = False

    def cells(self, line: str) -> list[str]:
        """Split a line."""
        rows = csv.reader([line], delimiter=self.separator, quotechar=self.quote, skipinitialspace=True)
        return [cell.strip().strip(self.quote).strip() for cell in next(rows) or [""]]


def read_head(path: Path) -> Head:
    """Read the lines before the samples.

    Args:
        path: the file.

    Raises:
        InputError: a header block has an invalid unit, the file has no samples, or its commas are ambiguous.
    """
    encoding = encoding_of(path)
    head = replace(_head(path, encoding), encoding=encoding)
    if head.decimal == ",":
        _check_thousands(path, head)
    return head


def _head(path: Path, encoding: str) -> Head:
    """Read the lines before the samples (`read_head`)."""
    with open(path, encoding=encoding, errors="replace") as file:
        lines = list(islice(file, LINES))
        block = _block(lines, file, path)
        if block is not None:
            return block
        further = list(islice(file, SAMPLED))
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if not filled:
        raise InputError("is empty", file=path)
    places = (*filled, len(lines), len(lines))[:3]
    first, second, third = (lines[n] if n < len(lines) else "" for n in places)
    quote = "'" if first.lstrip().startswith("'") else '"'
    separator = max(SEPARATORS, key=re.sub(f"{quote}[^{quote}]*{quote}", "", first).count)
    head = Head(places[0], separator, ".", quote, None)
    names = head.cells(first)
    rest = [line.strip() for line in (*lines[places[0] + 1 :], *further) if line.strip()]
    decimal = "," if _has_decimal_commas(head, rest) else "."
    head = replace(head, decimal=decimal)
    if places[1] < len(lines) and _numbers_columns(names, [head.cells(line) for line in (second, third)], decimal):
        return replace(head, lines=places[1], counted=True)
    if all(_is_number(name) for name in names):
        return replace(head, single=len(names) == 1 and _has_gaps(lines[places[0] :]))
    lines_before, units = places[1], head.cells(second)
    if len(units) == len(names) and any(split_unit(f" ({unit})")[1] for unit in units):  # as PhysioNet writes them
        units = ["s" if "mm:ss" in unit else unit for unit in units]
        names = [f"{name} ({unit})" if unit else name for name, unit in zip(names, units)]
        lines_before, second = places[2], third
    if lines_before == len(lines):
        raise InputError("no samples follow the names of the columns", file=path, place=f"line {lines_before}")
    samples = head.cells(second)
    dates = tuple(place for place, cell in enumerate(samples) if _is_date(cell))
    times = {place for place in places_of(names) if place < len(samples) and ":" in samples[place]}
    clocks = tuple(sorted(times.union(dates)))
    rows = [head.cells(lines[number]) for number in filled if number >= lines_before]
    numbered = all(len(row) == len(names) + 1 for row in rows) and _counts([row[0] for row in rows])
    single = len(names) == len(samples) == 1 and _has_gaps(lines[lines_before:])
    clocks, dates = ((), ()) if numbered else (clocks, dates)
    trailing = len(samples) > 1 and not samples[-1]
    return Head(lines_before, separator, decimal, quote, tuple(names), None, clocks, dates, numbered, single, trailing)


def _has_decimal_commas(head: Head, lines: Sequence[str]) -> bool:
    """Whether commas are decimal marks: any outside of times, or in quotes if commas separate the columns too."""
    if head.separator == "," and not any(head.quote in line for line in lines):
        return False
    cells = (cell for line in lines if "," in line for cell in head.cells(line) if "," in cell and ":" not in cell)
    return any(head.separator != "," or _DECIMAL_COMMA.fullmatch(cell) for cell in cells)


def _check_thousands(path: Path, head: Head) -> None:
    """Refuse a column whose commas are all before three digits, as in ``1,014``, which may be 1014 or 1.014.

    Columns of times are left out: their rate in its range is the same. A table without names, which may have a line
    per lead, is judged as one column.

    Args:
        path: the file.
        head: its head, with decimal commas.

    Raises:
        InputError: the commas of a column are decimal marks or thousands separators.
    """
    decimal = {place + head.numbered for place in places_of(head.names)}  # columns that are known to have decimals
    unclear: dict[int, int] = {}
    with open(path, encoding=head.encoding, errors="replace") as file:
        for number, line in enumerate(islice(file, head.lines, None), head.lines + 1):
            if "," not in line:
                continue
            cells = head.cells(line) if head.quote in line else line.strip().split(head.separator)
            for place, cell in enumerate(cells):
                column = 0 if head.names is None else place
                if "," not in cell or column in decimal:
                    continue
                if _THOUSANDS.fullmatch(cell.strip()):
                    unclear.setdefault(column, number)
                else:
                    decimal.add(column)
            if len(decimal) >= (1 if head.names is None else len(cells)):
                return
    lines = [number for column, number in unclear.items() if column not in decimal]
    if lines:
        message = (
            "the comma before three digits is a decimal mark or a thousands separator; save the numbers without "
            "thousands separators and with decimal points"
        )
        raise InputError(message, file=path, place=f"line {min(lines)}")


def _block(lines: Sequence[str], rest: Iterator[str], path: Path) -> Head | None:
    """Read a block of keys and values before the samples of one lead; None if the file starts otherwise.

    Only the sampling rate, the lead and the unit are used, in the languages of `_LEAD` and `_UNIT`.

    Args:
        lines: the first lines.
        rest: the lines after them.
        path: path for error messages.
    """
    filled = [number for number, line in enumerate(lines) if line.strip()]
    numbers = (one for one, after in pairwise((*filled, filled[-1])) if not _PAIR.match(lines[after])) if filled else ()
    start = next((number for number in numbers if _SINGLE.fullmatch(lines[number].strip())), 0)
    values: dict[str, str] = {}
    for line in lines[:start]:
        key, _, value = line.partition(max(",;\t", key=line.count))
        values[key.strip().strip('"').casefold()] = value.strip().strip('"').strip()
    rate = next((found for value in values.values() if (found := _HERTZ.fullmatch(value))), None)
    if rate is None:
        return None
    lead, unit = (next((values[key] for key in keys if key in values), "") for keys in (_LEAD, _UNIT))
    if unit and not split_unit(f" ({unit})")[1]:
        raise InputError("the unit in the header block is not mV, uV or V", file=path)
    name = canonical(lead) or canonical(lead.split(" ")[-1]) or "ECG"
    comma = any("," in line for line in (*lines[start:], *islice(rest, SAMPLED)))
    rate_hz, single = float(rate[1].replace(",", ".")), _has_gaps(lines[start:])
    return Head(start, ";", "," if comma else ".", '"', (f"{name} ({unit})" if unit else name,), rate_hz, single=single)


def _has_gaps(lines: Sequence[str]) -> bool:
    """Whether empty lines of one column are missing samples, and not every second line, as of doubled line ends."""
    filled = [number for number, line in enumerate(lines) if line.strip()]
    empty = filled[-1] + 1 - filled[0] - len(filled) if filled else 0
    return empty < MANY or empty < len(filled) - 1


def _counts(cells: Sequence[str]) -> bool:
    """Whether cells are successive integers."""
    try:
        numbers = [int(cell) for cell in cells]
    except ValueError:
        return False
    return bool(numbers) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _numbers_columns(cells: Sequence[str], following: Sequence[Sequence[str]], decimal: str) -> bool:
    """Whether the first line numbers its columns from 0 or 1, and is not a sample.

    Args:
        cells: cells of the line.
        following: cells of the lines after it, which are not all integers if there are few columns.
        decimal: decimal mark of the file.
    """
    if len(cells) < 2 or cells[0] not in ("0", "1") or not _counts(cells):
        return False
    rows = [row for row in following if any(row)]
    fractions = bool(rows) and all(all(decimal in cell for cell in row if cell) for row in rows)
    return fractions or (len(cells) >= MANY and not _counts([cells[0], *(row[0] for row in rows)]))


def _is_number(text: str, decimal: str = "") -> bool:
    """Whether a cell is a number with this decimal mark, or with any."""
    if decimal == "," and "." in text:
        return False
    try:
        float(text if decimal == "." else text.replace(",", "."))
    except ValueError:
        return False
    return True


def csv_blocks(path: Path, head: Head, size: int) -> Iterator[np.ndarray]:
    """Yield (columns, lines) blocks of the samples.

    Args:
        path: the file.
        head: its head.
        size: lines per block.
    """
    import pandas as pd

    numbers: dict[str, object] = {"dtype": np.float64}
    if head.clocks and head.names is not None:
        rest = {column: np.float64 for column in range(len(head.names)) if column not in head.clocks}
        numbers = {"dtype": rest, "converters": dict.fromkeys(head.clocks, _seconds)}
    rows: dict[str, object] = {}
    if head.single:
        rows = {"skip_blank_lines": False, "nrows": max(0, _last_line(path, head) - head.lines)}
    reader = pd.read_csv(
        path,
        sep=head.separator,
        decimal=head.decimal,
        quotechar=head.quote,
        header=None,
        skiprows=head.lines,
        na_values=NO_NUMBERS,
        chunksize=size,
        encoding=head.encoding,
        encoding_errors="replace",
        skipinitialspace=True,
        **numbers,
        **rows,
    )
    with reader:
        for frame in reader:
            yield frame.to_numpy().T[int(head.numbered) :]


def _last_line(path: Path, head: Head) -> int:
    """Return the number of lines up to the last one that is not empty."""
    with open(path, encoding=head.encoding, errors="replace") as file:
        return max((number for number, line in enumerate(file, 1) if line.strip()), default=0)


def _seconds(cell: str) -> float:
    """Convert ``1:02:03.5``, ``2:03.5``, seconds, or a date and time of ISO 8601; NaN for anything else."""
    text = cell.strip().replace(",", ".")
    if found := _TIME.fullmatch(text):
        return sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1)))
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return np.nan
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _is_date(cell: str) -> bool:
    """Whether a cell is a date with a time."""
    return ":" in cell and not _TIME.fullmatch(cell.replace(",", ".")) and not np.isnan(_seconds(cell))


def text_line(path: Path, head: Head) -> int | None:
    """Return the line, from 1, of the first cell that is not a number; None if there is none in `SEARCHED` lines.

    The cell itself may be a person's name.

    Args:
        path: the file.
        head: its head.
    """
    with open(path, encoding=head.encoding, errors="replace") as file:
        for number, line in enumerate(islice(file, head.lines, head.lines + SEARCHED), head.lines + 1):
            cells = head.cells(line)
            if not all(
                cell in NO_NUMBERS
                or _is_number(cell, head.decimal)
                or (place in head.clocks and not np.isnan(_seconds(cell)))
                for place, cell in enumerate(cells)
            ):
                return number
    return None
