"""Detection of a text table's dialect from its first rows: comment lines, separator and header."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm.files.content import require_encoding

NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "blanks"}
WORDS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}
SAMPLE_ROWS, SAMPLE_BYTES = 200, 1 << 18
VALUE = r"(?=.*\d)[+-]?[\d\s.,:/'TZ+-]+(?:[eE][+-]?\d+)?"  # a number, date or time
COMMENT = "#"  # recognised above the header without an option
csv.field_size_limit(1 << 28)


@dataclass(frozen=True)
class TableOptions:
    """How to read a table; options that are None are detected.

    Attributes:
        separator: ``comma``, ``semicolon``, ``tab``, ``bar``, ``space`` (runs of blanks) or a single character.
        encoding: encoding of the text; by default that of a byte-order mark, UTF-8, or else Windows-1252 (reported).
        comment: character that starts a comment up to the end of the line. By default, lines that start with
            ``#`` are comments if there are any above the header.
        skip_rows: number of leading lines to skip, or a list of line numbers to skip (from 1).
        columns: names of the columns to use; None for all.
        sheet: name of the workbook sheet; None for the first one that is not empty.
        header: whether the first row has the column names; otherwise they are column_1, column_2, ...
        pad_rows: whether to pad rows with fewer cells than the header (reported); otherwise they are an error.
    """

    separator: str | None = None
    encoding: str | None = None
    comment: str | None = None
    skip_rows: int | tuple[int, ...] = 0
    columns: tuple[str, ...] | None = None
    sheet: str | None = None
    header: bool = True
    pad_rows: bool = False

    def check(self, flags: Mapping[str, str] | None = None) -> None:
        """Check the values.

        Args:
            flags: the option names that users type, for messages.

        Raises:
            InputError: an invalid value.
        """
        flags = flags or {}
        name = flags.get("separator", "separator")
        if self.encoding is not None:
            require_encoding(self.encoding, flags.get("encoding", "encoding"))
        if self.separator is not None:
            mark = WORDS.get(self.separator, self.separator)
            if len(mark) != 1 or mark in '"\r\n\0' or mark.isalnum() or not mark.isascii():
                raise InputError(f"{name} {self.separator}: expected {', '.join(WORDS)} or a single character")
        if self.comment is not None and (len(self.comment) != 1 or self.comment in '"\r\n\0 '):
            raise InputError(f"{flags.get('comment', 'comment')} {self.comment}: expected a single character, e.g. #")
        rows = (self.skip_rows,) if isinstance(self.skip_rows, int) else self.skip_rows
        if any(row < (0 if isinstance(self.skip_rows, int) else 1) for row in rows):
            label = flags.get("skip_rows", "skip_rows")
            raise InputError(f"{label} {self.skip_rows}: expected a number of leading lines, or line numbers from 1")


@dataclass(frozen=True)
class Dialect:
    """The detected format of a table.

    Attributes:
        kind: ``text``, ``xlsx``, ``parquet`` or ``frame``.
        separator: character between cells; empty if the table is not text.
        encoding: encoding of the text.
        comment: character that starts a comment, or None.
        header_line: line number of the header.
    """

    kind: str = "text"
    separator: str = ","
    encoding: str = "utf-8"
    comment: str | None = None
    header_line: int = 1


@dataclass
class Start:
    """Start of the rows of a text table.

    Attributes:
        dialect: the detected dialect.
        header: column names; empty without a header row.
        width: cells per row.
        offset: byte offset of the first row after the header.
        line: line number of that row, from 1.
        notes: messages to report.
    """

    dialect: Dialect
    header: list[str]
    width: int
    offset: int
    line: int
    notes: list[str]


def after_quote(separator: str) -> re.Pattern[str]:
    """Pattern of blanks between a closing quote and the separator, which the csv module does not allow.

    Args:
        separator: character between cells.
    """
    return re.compile(rf'"[ \t]+(?={re.escape(separator)}|\n|$)' if separator not in " \t" else r'"(?!)')


def line_list(numbers: Sequence[int] | np.ndarray, most: int = 12) -> str:
    """Format line numbers for a message: ``line 3``, or ``lines 3, 8 and 2 more``.

    Args:
        numbers: line numbers.
        most: maximum number of lines to list.
    """
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"{'lines' if len(numbers) > 1 else 'line'} {', '.join(str(one) for one in numbers[:most])}{more}"


def require_names(names: Sequence[str], path: Path, place: str | None = None) -> None:
    """Check that column names are unique.

    Args:
        names: column names.
        path: file named in the message.
        place: location of the header, for the message.

    Raises:
        InputError: a duplicate.
    """
    if len(set(names)) == len(names):
        return
    first: dict[str, int] = {}
    for position, name in enumerate(names, 1):
        if first.setdefault(name, position) != position:
            shown = name if len(name) <= 40 else f"{name[:37]}..."
            message = f"duplicate column name {shown!r} (columns {first[name]} and {position})"
            raise InputError(message, file=path, place=place)


def require_header(names: Sequence[str], path: Path, place: str | None = None) -> None:
    """Check that a header consists of names, so that a first row of dates and numbers is not lost as a header.

    Names that count the columns (``0``, ``1``, ``2``, as pandas writes them) are accepted, and so are numbers if
    there is at least one name.

    Args:
        names: column names.
        path: file named in the message.
        place: location of the header, for the message.

    Raises:
        InputError: every name is a date or a number.
    """
    if not names or not all(re.fullmatch(VALUE, name) for name in names):
        return
    if all(name.isdecimal() for name in names) and {int(b) - int(a) for a, b in pairwise(names)} <= {1}:
        return
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    raise InputError(f"the first row contains values ({shown}), not column names; add a header", file=path, place=place)


def lines_of(data: bytes, start: int = 0) -> Iterator[str]:
    """Yield the lines of UTF-8 bytes, line ends included, starting at an offset."""
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end].decode("utf-8")
        start = end


def find(data: bytes, path: Path, options: TableOptions, encoding: str, flags: Mapping[str, str] | None) -> Start:
    """Detect the dialect of a table from its first rows.

    Args:
        data: the text, UTF-8.
        path: path used in error messages.
        options: options given by the user.
        encoding: original encoding of the file.
        flags: the option names that users type.

    Raises:
        InputError: the file is empty, or the separator is ambiguous.
    """
    offset, line, comment, notes, mark = _preamble(data, options)
    if offset >= len(data):
        what = "is empty; expected a header row with the column names" if options.header else "is empty"
        raise InputError(what, file=path)
    separator = mark or _separator(data, offset, line, path, options, flags)
    if separator != "," and options.header:
        notes.append(f"columns separated by {NAMES.get(separator, repr(separator))}")
    blanks = after_quote(separator)
    lines = (blanks.sub('"', text) for text in lines_of(data, offset))
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    try:
        first = [cell.strip() for cell in next(reader)]
    except csv.Error as error:
        raise InputError(f"is not a CSV row ({error})", file=path, place=f"line {line}") from None
    if comment is not None and options.comment is None and first and first[0].startswith(comment):
        first[0] = first[0].lstrip(comment).strip()  # "# date,a,b" is a header
    dialect = Dialect("text", separator, encoding, comment, line)
    if not options.header:
        return Start(dialect, [], len(first), offset, line, notes)
    end = offset
    for _ in range(reader.line_num):
        end = data.find(b"\n", end) + 1 or len(data)
    return Start(dialect, first, len(first), end, line + reader.line_num, notes)


def _preamble(data: bytes, options: TableOptions) -> tuple[int, int, str | None, list[str], str | None]:
    """Return (offset and line of the header, comment mark, notes, separator from Excel's line ``sep=;``)."""
    skip = options.skip_rows
    offset, line, comments, skipped = 0, 1, 0, 0
    mark, last = None, (0, 1)  # last comment line; may be the header
    for text in lines_of(data):
        plain = text.strip()
        listed = line <= skip if isinstance(skip, int) else line in skip
        excel = re.fullmatch(r'"?sep=(.)"?', plain) if line == 1 else None
        if excel and options.separator is None:
            mark = excel[1]
        elif not listed and plain:
            if not plain.startswith(options.comment or COMMENT):
                break
            comments, last = comments + 1, (offset, line)
        skipped += bool(listed)
        offset, line = offset + len(text.encode("utf-8")), line + 1
    notes = [f"{skipped} lines skipped as requested"] if skipped else []
    comment = options.comment
    if comments and comment is None:
        comment = COMMENT
        if options.header and _is_header(data, last[0], offset, mark or options.separator):
            offset, line, comments = *last, comments - 1
    if comments:
        notes.append(f"{comments} comment {'lines' if comments > 1 else 'line'} ({comment}) above the header")
    return offset, line, comment, notes, mark


def _is_header(data: bytes, comment: int, rows: int, separator: str | None) -> bool:
    """Whether the last comment line is the header: it has as many cells as the row below, which contains a number."""
    above, below = next(lines_of(data, comment)), next(lines_of(data, rows), "")
    for mark in [WORDS.get(separator, separator)] if separator else list(NAMES)[:4]:
        cells, names = below.strip().split(mark), above.strip().split(mark)
        if len(cells) == len(names) > 1:
            return any(re.fullmatch(r"\s*[+-]?[\d.,]+\s*", cell) for cell in cells[1:])
    return False


def _separator(
    data: bytes, offset: int, line: int, path: Path, options: TableOptions, flags: Mapping[str, str] | None
) -> str:
    """Choose the separator that gives the same number of cells (more than one) in the most sample rows."""
    if options.separator is not None:
        return WORDS.get(options.separator, options.separator)
    sample = data[offset : offset + SAMPLE_BYTES]
    if len(sample) == SAMPLE_BYTES and b"\n" in sample:
        sample = sample[: sample.rindex(b"\n") + 1]
    text = sample.decode("utf-8", errors="ignore")
    found: dict[str, tuple[float, int]] = {}
    for mark in list(NAMES)[:4]:
        widths = _widths(text, mark)
        if widths and widths[0] > 1:  # it separates the names too
            found[mark] = (round(sum(width == widths[0] for width in widths) / len(widths), 1), widths[0])
    if not found:
        first = text.split("\n", 1)[0]
        return " " if not options.header and len(first.split()) > 1 else ","
    best = max(found.values())
    marks = [mark for mark in found if found[mark] == best]
    if len(marks) > 1:
        both = " or ".join(NAMES[mark] for mark in marks)
        how = f"; give {flags['separator']}" if flags and "separator" in flags else "; quote one of them"
        raise InputError(f"ambiguous separator: {both}{how}", file=path, place=f"line {line}")
    return marks[0]


def _widths(text: str, mark: str) -> list[int]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)
    try:
        return [len(cells) for cells in islice(reader, SAMPLE_ROWS) if cells]
    except csv.Error:
        first = re.sub(r'"[^"]*"', "", text.split("\n", 1)[0])
        return [first.count(mark) + 1]
