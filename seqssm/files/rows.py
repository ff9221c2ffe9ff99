"""Rows of a text table: pyarrow's parser, with a row-by-row reader as fallback."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.dialect import Start, TableOptions, after_quote, line_list, lines_of

CHUNK_ROWS = 50_000  # rows per chunk of the row-by-row reader, to bound the memory of its Python strings


def read_rows(
    data: bytes,
    start: Start,
    names: list[str],
    path: Path,
    options: TableOptions,
    flags: Mapping[str, str] | None,
) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Read all rows after the header.

    Args:
        data: the text, UTF-8, ``\\n`` line ends.
        start: start of the rows.
        names: column names.
        path: path used in error messages.
        options: reading options of the table.
        flags: the option names that users type.

    Returns:
        (text columns, line of each row, notes to report).

    Raises:
        InputError: a row with too many or too few cells, or invalid quoting; the message has the line.
    """
    found = _fast(data, start, names, options)
    return _slow(data, start, names, path, options, flags) if found is None else found


def _fast(
    data: bytes, start: Start, names: list[str], options: TableOptions
) -> tuple[pd.DataFrame, np.ndarray, list[str]] | None:
    """Parse the rows with pyarrow; None if the row-by-row reader is needed."""
    import pyarrow as pa
    import pyarrow.csv as arrow

    separator = start.dialect.separator
    if not _quotes_are_plain(data, start.offset, separator):
        return None
    body: bytes | memoryview = memoryview(data)[start.offset :]
    convert = arrow.ConvertOptions(
        column_types=dict.fromkeys(names, pa.large_string()),
        include_columns=_used(names, options),
        strings_can_be_null=False,
    )
    parsing = arrow.ParseOptions(delimiter=separator, ignore_empty_lines=True)

    def parsed(body: bytes | memoryview, rows: int) -> Any:
        """Return the parsed table if it has as many rows as there are lines."""
        size = max(1 << 20, min(4 * (len(body) // max(1, rows)), 1 << 30))
        reading = arrow.ReadOptions(column_names=names, use_threads=False, block_size=size)
        try:
            table = arrow.read_csv(pa.BufferReader(body), reading, parsing, convert)
        except (pa.ArrowException, ValueError):
            return None
        return table if table.num_rows == rows else None

    if not _drops_lines(data, start, options):
        count = data.count(b"\n", start.offset) + (len(body) > 0 and not data.endswith(b"\n"))
        table = parsed(body, count) if count else None
        if table is not None:
            return _stripped(table), start.line + np.arange(count), []
    notes: list[str] = []
    body, lines = _wanted_lines(data, start, options, notes)
    if not len(lines):
        return pd.DataFrame({name: pd.Series([], dtype="str") for name in names}), lines, notes
    table = parsed(body, len(lines))
    return None if table is None else (_stripped(table), lines, notes)


def _drops_lines(data: bytes, start: Start, options: TableOptions) -> bool:
    """Whether there may be skipped lines or comments below the header."""
    mark, skip = start.dialect.comment, options.skip_rows
    skips = skip >= start.line if isinstance(skip, int) else max(skip, default=0) >= start.line
    return skips or (mark is not None and data.find(mark.encode(), start.offset) >= 0)


def _stripped(table: Any) -> pd.DataFrame:
    """Convert to a pandas frame of text columns without surrounding blanks."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {}
    for name in table.column_names:
        columns[name] = pc.utf8_trim_whitespace(table.column(name))
        table = table.drop_columns([name])  # frees its memory before the next column is converted
    return pa.table(columns).to_pandas(split_blocks=True, self_destruct=True).astype("str")


def _used(names: list[str], options: TableOptions) -> list[str] | None:
    if options.columns is None or any(name not in names for name in options.columns):
        return None  # unknown names are reported later
    return [name for name in names if name in options.columns]


def _quotes_are_plain(data: bytes, offset: int, separator: str) -> bool:
    """Whether every quote is at the border of a cell or doubled, and no cell contains a line break.

    Other quoting is left to the row-by-row reader, which reports errors.
    """
    if data.find(b'"', offset) < 0:
        return True
    sign = re.escape(separator.encode())
    if re.search(sign + rb'[ \t]+"', data) or re.search(rb'(?m)^[ \t]+"', data):
        return False  # pyarrow would keep blanks and quotes
    cells = np.frombuffer(data, np.uint8, offset=offset)
    quotes = np.flatnonzero(cells == ord('"'))
    ends = np.flatnonzero(cells == ord("\n"))
    if len(quotes) % 2 or (np.searchsorted(quotes, ends) % 2).any():
        return False
    border = np.zeros(256, dtype=bool)
    border[[ord('"'), ord("\n"), *separator.encode()]] = True
    before = (quotes == 0) | border[cells[quotes - 1]]
    after = (quotes == len(cells) - 1) | border[cells[np.minimum(quotes + 1, len(cells) - 1)]]
    return bool((before | after).all())


def _wanted_lines(
    data: bytes, start: Start, options: TableOptions, notes: list[str]
) -> tuple[bytes | memoryview, np.ndarray]:
    """Return (bytes, line numbers) of the rows without blank lines, comments and skipped lines."""
    body: bytes | memoryview = memoryview(data)[start.offset :]
    mark = start.dialect.comment
    cells = np.frombuffer(data, np.uint8, offset=start.offset)
    begins, ends = _lines(cells)
    numbers = start.line + np.arange(len(begins))
    drop = begins == ends
    if len(begins) and start.dialect.separator != "\t":
        for row in np.flatnonzero(np.isin(cells[begins % len(cells)], (ord(" "), ord("\t")))):
            drop[row] = not bytes(body[begins[row] : ends[row]]).strip(b" \t")
    skipped = _skipped(numbers, options) & ~drop
    if skipped.any():
        notes.append(f"{line_list(numbers[skipped])} skipped as requested")
    drop = drop | skipped
    if mark is not None and data.find(mark.encode(), start.offset) >= 0:
        body = _without_comments(bytes(body), begins, ends, drop, mark, options.comment is not None, notes)
        cells = np.frombuffer(body, np.uint8)
    if not drop.any():
        return body, numbers
    keep = np.repeat(~drop, np.diff(np.append(begins, len(cells))))
    return cells[keep].tobytes(), numbers[~drop]


def _lines(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the (start, end without line break) offsets of every line."""
    ends = np.flatnonzero(cells == ord("\n"))
    if len(cells) and (not len(ends) or ends[-1] != len(cells) - 1):
        ends = np.append(ends, len(cells))
    return np.append(0, ends[:-1] + 1)[: len(ends)], ends


def _skipped(lines: np.ndarray, options: TableOptions) -> np.ndarray:
    skip = options.skip_rows
    return lines <= skip if isinstance(skip, int) else np.isin(lines, np.array(skip, dtype=np.int64))


def _without_comments(
    body: bytes, begins: np.ndarray, ends: np.ndarray, drop: np.ndarray, mark: str, inline: bool, notes: list[str]
) -> bytes:
    """Blank out comments at the end of lines; mark lines that are comments in `drop`."""
    sign, comments, cut, position = mark.encode(), 0, 0, body.find(mark.encode())
    changed = bytearray(body)
    while position >= 0:
        row = int(np.searchsorted(begins, position, side="right")) - 1
        before = body[begins[row] : position]
        if before.strip() and (not inline or before.count(b'"') % 2):
            position = body.find(sign, position + 1)
            continue
        if before.strip():
            changed[position : ends[row]] = b" " * (int(ends[row]) - position)
            cut += 1
        elif not drop[row]:
            drop[row] = True
            comments += 1
        position = body.find(sign, int(ends[row]))
    if comments:
        notes.append(_comments(comments, mark))
    if cut:
        notes.append(f"{cut} {'comments' if cut > 1 else 'comment'} ({mark}) at the end of lines ignored")
    return bytes(changed) if cut else body


def _slow(
    data: bytes,
    start: Start,
    names: list[str],
    path: Path,
    options: TableOptions,
    flags: Mapping[str, str] | None,
) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Read rows one by one: cells that span lines, rows with too many or too few cells, and errors."""
    notes: list[str] = []
    width, used = len(names), _used(names, options) or names
    kept = [position for position, name in enumerate(names) if name in used]
    parts: list[pd.DataFrame] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    padded: list[int] = []
    cut: list[int] = []
    for line, cells in _records(data, start, path, options, notes):
        if len(cells) != width:
            if len(cells) > width and not any(cell.strip() for cell in cells[width:]):
                cut.append(line)
                cells = cells[:width]
            elif len(cells) < width and options.pad_rows:
                padded.append(line)
                cells = cells + [""] * (width - len(cells))
            else:
                first = "the header" if options.header else "the first line"
                hint = f"; {flags['skip_rows']} skips lines" if flags and "skip_rows" in flags else ""
                some = f"{len(cells)} cell{'s' if len(cells) > 1 else ''}"
                raise InputError(f"{some} where {first} has {width}{hint}", file=path, place=f"line {line}")
        rows.append([cells[position].strip() for position in kept])
        lines.append(line)
        if len(rows) == CHUNK_ROWS:
            parts.append(_block(rows, kept, names))
            rows = []
    parts.append(_block(rows, kept, names))
    if padded:
        notes.append(f"{len(padded)} short rows filled with empty cells ({line_list(padded)})")
    if cut:
        notes.append(f"{len(cut)} rows with trailing separators: empty cells dropped ({line_list(cut)})")
    return pd.concat(parts, ignore_index=True), np.array(lines, dtype=np.int64), notes


def _block(rows: list[list[str]], kept: list[int], names: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[names[position] for position in kept], dtype="str")


def _records(
    data: bytes, start: Start, path: Path, options: TableOptions, notes: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of every row."""
    lines = _Lines(data, start, options)
    reader = csv.reader(lines, delimiter=start.dialect.separator, strict=True, skipinitialspace=True)
    while True:
        first = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            wrong = "unclosed quote" if "unexpected end" in str(error) else str(error)
            raise InputError(f"is not a CSV row ({wrong})", file=path, place=f"line {first}") from None
        if any(cell.strip() for cell in cells) or len(cells) > 1:
            yield first, cells
    if lines.skipped:
        notes.append(f"{line_list(lines.skipped)} skipped as requested")
    if lines.comments:
        notes.append(_comments(lines.comments, str(lines.mark)))


class _Lines:
    """The lines of a table without skipped lines and comments, and the number of the last one.

    Args:
        data: the text, UTF-8.
        start: start of the rows.
        options: reading options of the table.
    """

    def __init__(self, data: bytes, start: Start, options: TableOptions) -> None:
        self.lines, self.number, self.options = lines_of(data, start.offset), start.line - 1, options
        self.mark, self.inline = start.dialect.comment, options.comment is not None
        self.blanks = after_quote(start.dialect.separator)
        self.skipped: list[int] = []
        self.comments = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = next(self.lines)
        self.number += 1
        if _skipped(np.array([self.number]), self.options)[0]:
            self.skipped.append(self.number)
            return "\n"
        if self.mark is not None and self.mark in text:
            plain = text.partition(self.mark)[0]
            if not plain.strip():
                self.comments += 1
                return "\n"
            if self.inline and not plain.count('"') % 2:
                text = f"{plain.rstrip()}\n"
        return self.blanks.sub('"', text) if '"' in text else text


def _comments(count: int, mark: str) -> str:
    return f"{count} comment {'lines' if count > 1 else 'line'} ({mark}) below the header ignored"
