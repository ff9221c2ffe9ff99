"""Formats of dates that are not year first, suggested for ``--data.date_format``. Does not import torch."""

from __future__ import annotations

import re

import pandas as pd

EXCEL = "excel"
"""Value of ``date_format`` for serial numbers of spreadsheets, days since 1899-12-30."""
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
SAMPLE = 1000  # cells that decide between two formats
_CLOCK = r"(?P<clock>[ T]\d{1,2}:\d{2}(?P<seconds>:\d{2})?(?P<half> ?[AaPp][Mm])?)?"
_NUMBERS = re.compile(r"\d{1,2}(?P<one>[-/. ])\d{1,2}(?P<two>[-/. ])(?P<year>\d{4}|\d{2})" + _CLOCK)
_DAY_FIRST = re.compile(
    r"\d{1,2}(?P<one>\.? |[-/.]|)(?P<month>[A-Za-z]{3,9})(?P<two>[-/., ]*)(?P<year>\d{4}|\d{2})" + _CLOCK
)
_MONTH_FIRST = re.compile(
    r"(?P<month>[A-Za-z]{3,9})(?P<one>[-/. ])\d{1,2}(?P<two>,? |[-/])(?P<year>\d{4}|\d{2})" + _CLOCK
)
_WEEKDAY = re.compile(r"(?P<day>[A-Z][a-z]{2,8})(?P<mark>,? )(?=\w)")
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def suggestion(text: str, cells: pd.Series) -> str:
    """Suggest a format for common forms of dates: ``, perhaps '%d.%m.%Y'``.

    Args:
        text: a cell that is not a year-first date.
        cells: the cells of the column, which decide whether the day or the month comes first.

    Returns:
        The end of a message; "" if the form is unknown.
    """
    text = text.strip()
    if re.fullmatch(r"\d{5}[.,]\d+", text):
        return f"; for serial numbers of a spreadsheet --data.date_format {EXCEL}"
    forms = _forms(text)
    fitting = [form for form in forms if _fits(cells, form)] if len(forms) > 1 else forms
    if forms:
        return ", perhaps " + " or ".join(f"'{form}'" for form in fitting or forms)
    if re.fullmatch(r"[A-Za-z]{3,9}[-/. ']+\d{2}|\d{2}[-/. ]+[A-Za-z]{3,9}", text):
        return "; the two digits may be a day or a year of either century, write four"
    return ""


def _fits(cells: pd.Series, form: str) -> bool:
    return not pd.to_datetime(cells.iloc[:SAMPLE], format=form, errors="coerce").isna().any()


def _forms(text: str) -> list[str]:
    """Return the formats that a cell may have."""
    weekday = _WEEKDAY.match(text)
    start = ""
    if weekday and (word := _name(weekday["day"], _DAYS, "aA")):
        text, start = text[weekday.end() :], word + weekday["mark"]
    if found := re.fullmatch(r"\d{8}" + _CLOCK, text):
        return [start + "%Y%m%d" + _clock(found)]
    if (found := _NUMBERS.fullmatch(text)) and found["one"] == found["two"]:
        mark, year = found["one"], _year(found)
        pairs = [("%d", "%m")] if mark in ". " else [("%d", "%m"), ("%m", "%d")]
        return [f"{start}{one}{mark}{two}{mark}{year}{_clock(found)}" for one, two in pairs]
    for pattern, day_first in ((_DAY_FIRST, True), (_MONTH_FIRST, False)):
        found = pattern.fullmatch(text)
        word = _name(found["month"], MONTHS, "bB") if found else None
        if found and word and (found["two"] or not found["one"]):
            first, second = ("%d", word) if day_first else (word, "%d")
            return [f"{start}{first}{found['one']}{second}{found['two']}{_year(found)}{_clock(found)}"]
    return []


def _name(word: str, names: list[str], codes: str) -> str | None:
    """Return the code of a name, abbreviated or in full; None for another word."""
    word = word.capitalize()
    if word in [name[:3] for name in names]:
        return f"%{codes[0]}"
    return f"%{codes[1]}" if word in names else None


def _year(found: re.Match) -> str:
    return "%Y" if len(found["year"]) == 4 else "%y"


def _clock(found: re.Match) -> str:
    """Return the format of the time of day."""
    if not found["clock"]:
        return ""
    hour, half = (" %I:%M", " %p") if found["half"] else (" %H:%M", "")
    return hour.replace(" ", found["clock"][0], 1) + (":%S" if found["seconds"] else "") + half
