"""Numbers in text columns: decimal points and commas, thousands separators of any locale, missing values, and the signs
of `seqssm.files.notation`.

Whether a mark is a decimal mark or a thousands separator is decided by the cells of the column, then by the other
columns; if both leave it open, the table is rejected. ``1.010`` in a German table is therefore 1010 or an error, never
1.01. Does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.notation import without_signs
from seqssm.files.tables import Table

Decimal = Literal["auto", "point", "comma"]

LARGEST = 1e100
"""Magnitude of a measured value; the square of a far larger one, as in a variance, overflows."""
MISSING = {"", "nan", "na", "n/a", "n.a.", "n.d.", "null", "none", "missing", "<na>", "np.nan", "pd.na", "nat", "-",
           "--", "---", "?", ".", "..", "...", "–", "—", "#n/a", "#na", "#n/d", "#nv", "#value!", "#wert!",
           "#div/0!", "#ref!", "#num!", "#name?", "#null!"}  # fmt: skip
"""Lower-case placeholders for missing numbers, including Excel's error values."""
NO_WORD = MISSING - {"none"}
"""Those for missing words: ``none`` can be a category."""
MARKS = {".": "point", ",": "comma"}
GROUPS = "'’  \u00a0\u202f\u2009٬"
"""Marks that can only separate thousands: apostrophes, blanks, the Arabic thousands separator."""

_SIGN, _EXPONENT = r"^[+\-−]?", r"([eE][+\-]?\d+)?$"
_GROUPED = r"\d{1,3}(?:M\d{3})+|\d{1,2}(?:M\d{2})+M\d{3}"  # thousands, or lakhs and crores
_SAMPLE = 2000


@dataclass
class _Column:
    """Evidence in the cells of a column.

    Attributes:
        cells: pyarrow strings without currency, percent or brackets; null if a value is missing.
        written: the same cells as written.
        decimal: mark -> a row in which it must be a decimal mark.
        thousands: mark -> a row in which it must be a thousands separator.
        either: mark -> an ambiguous row such as ``1.010``.
        short: whether there are integers, none of them with more than three digits.
    """

    cells: Any
    written: Any
    decimal: dict[str, int] = field(default_factory=dict)
    thousands: dict[str, int] = field(default_factory=dict)
    either: dict[str, int] = field(default_factory=dict)
    short: bool = False


def real_array(values: Any) -> np.ndarray:
    """Convert values in memory to float64; NumPy would drop imaginary parts and read flags and dates as numbers.

    Args:
        values: an array, a list of numbers or of arrays.

    Raises:
        ValueError: they are not real numbers, or of different lengths.
    """
    detach = getattr(values, "detach", None)  # a tensor with gradients
    table = np.asarray(values if detach is None else detach())
    if table.dtype.kind in "cbmM":
        raise ValueError(f"holds {table.dtype}, not real numbers")
    try:
        return table.astype(np.float64)
    except TypeError as error:
        raise ValueError(f"holds {table.dtype}, not real numbers") from error


def numbers(
    table: Table,
    columns: Sequence[str],
    decimal: Decimal = "auto",
    flags: Mapping[str, str] | None = None,
    truth: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """Convert columns of a table to numbers.

    Args:
        table: a table from `seqssm.files.tables`.
        columns: column names.
        decimal: decimal mark; ``"auto"`` infers it from the cells.
        flags: the name that users type for the option ``decimal``, for messages.
        truth: whether columns of true and false, in any case, are read as 1 and 0.

    Returns:
        ((rows, columns) float64 with NaN for missing values, notes to report).

    Raises:
        InputError: text, an infinite number, or ambiguous marks; the message has line and column.
    """
    values = np.empty((len(table), len(columns)), order="F")
    open_: dict[str, _Column] = {}
    notes: list[str] = []
    point = False  # whether an unambiguous column has a decimal point
    for position, name in enumerate(columns):
        column = table.frame[name]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
            values[:, position] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        elif not isinstance(column.dtype, pd.StringDtype):
            raise InputError(f"contains {column.dtype}, not numbers", file=table.path, place=f"column {name}")
        else:
            cells, plain = _plain(column)
            shown = plain is not None and _has_point(cells)
            if plain is not None and not (shown and _ambiguous(cells, decimal)):
                values[:, position] = plain
                point = point or shown
            elif truth and plain is None and holds_truth(column[cells.is_valid().to_numpy(zero_copy_only=False)]):
                words = column.str.strip().str.lower()
                values[:, position] = np.select([words == "true", words == "false"], [1.0, 0.0], np.nan)
                notes.append(f"{name}: true and false read as 1 and 0")
            else:
                open_[name] = _Column(cells, cells)
                notes += _remove_signs(table, name, open_[name]) if plain is None else []
    if open_:
        reader = _Reader(table, open_, decimal, flags or {}, point)
        for name in open_:
            values[:, list(columns).index(name)] = reader.read(name)
        notes += reader.notes()
    if np.isinf(values).any():
        row, position = (int(index) for index in np.argwhere(np.isinf(values))[0])
        raise InputError("is infinite or too large", file=table.path, place=table.place(row, columns[position]))
    return values, notes


def _plain(column: pd.Series) -> tuple[Any, np.ndarray | None]:
    """Return (cells with null for missing values, the numbers if all are integers or have a decimal point)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = pa.array(column)
    if isinstance(cells, pa.ChunkedArray):
        cells = cells.combine_chunks()
    cells = cells.cast(pa.large_string())
    try:
        return cells, pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        missing = pc.is_in(pc.utf8_lower(cells), pa.array(sorted(MISSING), pa.large_string()))
        cells = pc.if_else(missing, pa.scalar(None, pa.large_string()), cells)
    try:
        return cells, pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return cells, None


def holds_truth(cells: pd.Series) -> bool:
    """Whether a column holds true and false, in any case, and nothing else.

    Args:
        cells: text cells that are not missing.
    """
    return len(cells) > 0 and bool(cells.str.strip().str.lower().isin(["true", "false"]).all())


def _remove_signs(table: Table, name: str, column: _Column) -> list[str]:
    """Remove the signs around the numbers of a column; return notes to report."""
    found = without_signs(column.cells)
    if found.mixed is not None:
        row, reason = found.mixed
        text = _shown(column.written[row].as_py())
        raise InputError(f"{text} {reason}", file=table.path, place=table.place(row, name))
    column.cells = found.cells
    return [f"{name}: {note}" for note in found.notes]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _has_point(cells: Any) -> bool:
    import pyarrow.compute as pc

    return any(pc.any(pc.match_substring(part, ".")).as_py() for part in (cells.slice(0, _SAMPLE), cells))


def _ambiguous(cells: Any, decimal: Decimal) -> bool:
    """Whether points in a column of plain numbers may separate thousands, because no cell proves them decimal."""
    if decimal != "auto":
        return decimal == "comma"
    return all(_first(part, _decimal_pattern(".")) is None for part in (cells.slice(0, _SAMPLE), cells))


def _first(cells: Any, pattern: str) -> int | None:
    """Return the first row whose cell matches, or None."""
    import pyarrow.compute as pc

    row = pc.index(pc.match_substring_regex(cells, pattern), True).as_py()
    return None if row < 0 else row


def _decimal_pattern(mark: str) -> str:
    """Pattern of cells in which a single `mark` must be a decimal mark: it is not followed by exactly three digits, or
    follows a zero or more than three digits, or there is an exponent."""
    m = re.escape(mark)
    tail = rf"(\d*{m}(\d{{0,2}}|\d{{4,}})([eE][+\-]?\d+)?|\d*{m}\d{{3}}[eE][+\-]?\d+|(0\d*|\d{{4,}}|){m}\d{{3}})$"
    groups = f"[{GROUPS}{',' if mark == '.' else '.'}]"
    return rf"{_SIGN}(\d{{1,3}}({groups}\d{{2,3}})*{groups}\d{{3}}{m}\d*$|{tail})"


class _Reader:
    """Infers the marks of columns and converts the columns."""

    def __init__(
        self, table: Table, columns: dict[str, _Column], decimal: Decimal, flags: Mapping[str, str], point: bool
    ) -> None:
        self.table, self.columns, self.decimal, self.flags = table, columns, decimal, flags
        self.seen = {"."} if point else set()
        self.comma: list[str] = []
        self.grouped: dict[str, int] = {}
        self.presumed: list[str] = []
        for column in columns.values():
            self._look(column)

    def _look(self, column: _Column) -> None:
        for mark in MARKS:
            m, other = re.escape(mark), re.escape("," if mark == "." else ".")
            row = _first(column.cells, _decimal_pattern(mark))
            if row is not None:
                column.decimal[mark] = row
            repeated = rf"{_SIGN}(\d{{1,3}}({m}\d{{3}}){{2,}}|\d{{1,2}}({m}\d{{2}})+{m}\d{{3}})({other}\d*)?$"
            row = _first(column.cells, repeated)
            if row is None:
                row = _first(column.cells, rf"{_SIGN}\d{{1,3}}{m}\d{{3}}{other}\d*$")
            if row is not None:
                column.thousands[mark] = row
            row = _first(column.cells, rf"{_SIGN}[1-9]\d{{0,2}}{m}\d{{3}}$")
            if row is not None:
                column.either[mark] = row
        short, long = (_first(column.cells, rf"{_SIGN}\d{{{n}}}$") for n in ("1,3", "4,"))
        column.short = short is not None and long is None

    def read(self, name: str) -> np.ndarray:
        """Convert a column."""
        import pyarrow as pa
        import pyarrow.compute as pc

        mark = self._mark(name)
        other = "," if mark == "." else "."
        m, groups = re.escape(mark), f"[{GROUPS}{other}]"
        whole = _GROUPED.replace("M", groups)
        pattern = rf"{_SIGN}((\d+|{whole})({m}\d*)?|{m}\d+){_EXPONENT}"
        cells = self.columns[name].cells
        good = pc.match_substring_regex(cells, pattern)
        if not pc.all(good).as_py():
            raise self._not_a_number(name, pc.index(good, False).as_py(), mark)
        grouped = pc.match_substring_regex(cells, groups)
        count = pc.sum(grouped).as_py() or 0
        if count:
            row = pc.index(grouped, True).as_py()
            used = next(sign for sign in cells[row].as_py() if sign in GROUPS or sign == other)
            self.grouped[used] = self.grouped.get(used, 0) + count
            cells = pc.replace_substring_regex(cells, groups, "")
        if mark == ",":
            cells = pc.replace_substring(cells, ",", ".")
        cells = pc.replace_substring(pc.replace_substring_regex(cells, r"^\+", ""), "−", "-")
        return pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)

    def _mark(self, name: str) -> str:
        """Infer the decimal mark of a column."""
        column, table = self.columns[name], self.table
        if self.decimal != "auto":
            mark = "," if self.decimal == "comma" else "."
            if mark == "," and "." in column.decimal:
                raise self._not_a_number(name, column.decimal["."], mark)
            if mark == ",":
                self.comma.append(name)
            return mark
        shown = dict(column.decimal)
        for mark, row in column.thousands.items():
            shown.setdefault("," if mark == "." else ".", row)
        if len(shown) > 1:
            rows = sorted(shown.values())
            raise InputError(
                f"{self._cell(name, rows[1])} contradicts {self._cell(name, rows[0])} in {table.place(rows[0])}: the "
                "column mixes decimal points and decimal commas",
                file=table.path,
                place=table.place(rows[1], name),
            )
        mark = next(iter(shown)) if shown else self._by_others(name)
        if mark == ",":
            self.comma.append(name)
        return mark

    def _by_others(self, name: str) -> str:
        """Infer the decimal mark of an ambiguous column from the other columns or the separator."""
        column = self.columns[name]
        if not column.either:
            return "."
        if len(column.either) > 1:
            raise self._two_ways(name, max(column.either, key=lambda mark: column.either[mark]))
        (mark,) = column.either
        other = "," if mark == "." else "."
        seen = self.seen | {sign for one in self.columns.values() for sign in one.decimal}
        seen |= {"," if sign == "." else "." for one in self.columns.values() for sign in one.thousands}
        if seen == {other}:
            return other  # the file's decimal mark is the other one, so this one separates thousands
        separator = self.table.dialect.separator
        if mark == "," and separator == "," and not seen - {"."}:
            return "."  # quoted in a comma-separated file
        if mark == "." and not column.short and separator in (",", "\t", "|", " ", "") and not seen - {"."}:
            self.presumed.append(name)
            return "."
        if seen == {mark} and not column.short:
            return mark
        raise self._two_ways(name, mark)

    def _cell(self, name: str, row: int) -> str:
        return _shown(self.columns[name].written[row].as_py())

    def _two_ways(self, name: str, mark: str) -> InputError:
        row, what = self.columns[name].either[mark], MARKS[mark]
        flag = self.flags.get("decimal")
        fix = f"give {flag} point or comma" if flag else "write the numbers without thousands separators"
        return InputError(
            f"{self._cell(name, row)} is ambiguous: decimal {what} or thousands separator; {fix}",
            file=self.table.path,
            place=self.table.place(row, name),
        )

    def _not_a_number(self, name: str, row: int, mark: str) -> InputError:
        text = self.columns[name].written[row].as_py()
        place = self.table.place(row, name)
        if re.fullmatch(r"[+-]?inf(inity)?", text, re.IGNORECASE):
            return InputError("is infinite or too large", file=self.table.path, place=place)
        hint = f"a decimal {MARKS[mark]}, thousands in groups of three, no unit"
        return InputError(f"{self._cell(name, row)} is not a number ({hint})", file=self.table.path, place=place)

    def notes(self) -> list[str]:
        """Describe the decisions to report."""
        found = ["decimal comma in numbers"] if self.comma else []
        if self.comma and len(self.comma) < len(self.columns) and self.decimal == "auto":
            found = [f"decimal comma in numbers of: {', '.join(self.comma[:12])}"]
        for mark, count in self.grouped.items():
            kind = {".": "point", ",": "comma"}.get(mark, "blank" if mark.isspace() else "apostrophe")
            found.append(f"thousands separators removed from {count} {'cells' if count > 1 else 'cell'} ({kind})")
        if self.presumed:
            flag = self.flags.get("decimal")
            fix = f"; with {flag} comma it separates thousands" if flag else ""
            cell = self._cell(self.presumed[0], self.columns[self.presumed[0]].either["."])
            found.append(f"{cell} read with a decimal point, in: {', '.join(self.presumed[:12])}{fix}")
        return found
