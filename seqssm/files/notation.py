"""Signs around numbers in text columns: currencies, percent, negative numbers in brackets or with a trailing minus.

Spreadsheets and accounting systems write -1234.5 as ``(1,234.50)``, ``1,234.50-`` or ``($1,234.50)``. What is removed
is counted and reported; columns that mix currencies, or percent with other numbers, are refused. Does not import torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

SYMBOLS = "$€£¥₹₽₩₪₫₺₴₱฿"
CODES = ("USD", "EUR", "GBP", "JPY", "CHF", "CNY", "INR", "CAD", "AUD", "NZD", "SEK", "NOK", "DKK", "PLN", "CZK", "BRL",
         "KRW", "MXN", "ZAR", "TRY")  # fmt: skip
"""Currencies by ISO 4217 code, before or after a number."""
WORDS = ("US$", "R$", "A$", "C$", "HK$", "NZ$", "S$", "kr", "zł", "Kč", "Ft", "lei", "лв", "руб", "грн")
"""Abbreviations of currencies, also with a full stop."""
DASHES = "\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d"
"""Dashes and hyphens in place of a minus."""

# patterns for Python's re and for RE2, whose \s does not include these blanks
_BLANKS = "\\s\u00a0\u202f\u2009"
_BLANK = f"[{_BLANKS}]*"
_WORDS = "|".join(WORDS).replace("$", r"\$")
_CURRENCY = rf"(?P<currency>{_WORDS}|[{SYMBOLS}]|{'|'.join(CODES)})\.?"
_BEFORE = rf"^(?P<sign>[(+\-−]?){_BLANK}{_CURRENCY}{_BLANK}"
_AFTER = rf"{_BLANK}{_CURRENCY}(?P<sign>[)\-−]?)$"
_PERCENT = rf"^([^%a-zA-Z]*\d[^%a-zA-Z]*?){_BLANK}%([)\-−]?)$"
_BRACKETS = rf"^\({_BLANK}([^()+\-−]*\d[^()+\-−]*?){_BLANK}\)$"
_TRAILING = rf"^([\d.,][^()+\-−]*?){_BLANK}[\-−]$"
_NUMBER = re.compile(rf"[+\-−]?[\d.,'’٬{_BLANKS}]*\d[\d.,'’٬{_BLANKS}]*([eE][+\-]?\d+)?")


@dataclass
class Plain:
    """A column of numbers without the signs around them.

    Attributes:
        cells: pyarrow strings; null if a value is missing.
        notes: what was removed.
        mixed: (row, reason) of a cell that contradicts the others, or None.
    """

    cells: Any
    notes: list[str] = field(default_factory=list)
    mixed: tuple[int, str] | None = None


def without_signs(cells: Any) -> Plain:
    """Remove the signs around numbers.

    Args:
        cells: pyarrow strings; null if a value is missing.
    """
    import pyarrow.compute as pc

    found = Plain(pc.replace_substring_regex(cells, f"[{DASHES}]", "-"))
    if not pc.any(pc.match_substring_regex(found.cells, f"[(%\\-−{SYMBOLS}]|[A-Z]{{3}}|{_WORDS}")).as_py():
        return found
    used: dict[str, int] = {}
    count = 0
    for pattern, sign in ((_BEFORE, r"\1"), (_AFTER, r"\2")):
        hit = pc.match_substring_regex(found.cells, pattern)
        if pc.any(hit).as_py():
            count += pc.sum(hit).as_py()
            names = pc.struct_field(pc.extract_regex(found.cells, pattern), "currency")
            for name in pc.unique(pc.drop_null(names)).to_pylist():
                used.setdefault(name, pc.index(names, name).as_py())
            found.cells = pc.replace_substring_regex(found.cells, pattern, sign)
    if len(used) > 1:
        (one, _), (other, row) = sorted(used.items(), key=lambda item: item[1])[:2]
        found.mixed = (row, f"is in {other}, other cells of the column in {one}; convert them to one currency")
    if used:
        found.notes.append(f"currency {', '.join(used)} removed from {_count(count)}")
    percent = pc.fill_null(pc.match_substring_regex(found.cells, _PERCENT), True)
    count = pc.sum(pc.match_substring_regex(found.cells, _PERCENT)).as_py()
    if count:
        if not pc.all(percent).as_py():
            row = pc.index(percent, False).as_py()
            found.mixed = (row, "has no percent sign, unlike other cells of the column")
        found.cells = pc.replace_substring_regex(found.cells, _PERCENT, r"\1\2")
        found.notes.append(f"percent sign removed from {_count(count)}, values are in percent")
    count = 0
    for pattern in (_BRACKETS, _TRAILING):
        count += pc.sum(pc.match_substring_regex(found.cells, pattern)).as_py() or 0
        found.cells = pc.replace_substring_regex(found.cells, pattern, r"-\1")
    if count:
        found.notes.append(f"brackets or a trailing minus read as negative in {_count(count)}")
    return found


def is_number(cell: str) -> bool:
    """Whether a cell has the form of a number in some locale, with or without signs around it.

    Args:
        cell: text of a cell, not a missing value.
    """
    cell = re.sub(f"[{DASHES}]", "-", cell)
    for pattern, sign in (
        (_BEFORE, r"\g<sign>"),
        (_AFTER, r"\g<sign>"),
        (_PERCENT, r"\1\2"),
        (_BRACKETS, r"-\1"),
        (_TRAILING, r"-\1"),
    ):
        cell = re.sub(pattern, sign, cell)
    return bool(_NUMBER.fullmatch(cell))


def _count(cells: int) -> str:
    return f"{cells} cell{'s' if cells != 1 else ''}"
