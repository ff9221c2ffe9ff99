"""Tables of text as people have them: Excel's encodings and separators, ragged rows; every row keeps its line."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path

import pandas as pd

from seqssm.errors import InputError

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SEPARATORS = (",", ";", "\t")
MISSING = {"nan", "na", "n/a", "null"}  # what R and others write into an empty cell; "none" can be a class


def read_text(path: Path) -> str:
    """The text of a file: UTF-8 with or without a mark, UTF-16 with one, else Windows-1252.

    Raises:
        InputError: missing, or no text.
    """
    if not path.is_file():
        raise InputError("is a folder, not a CSV" if path.is_dir() else "no such file", file=path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from None
    text = None
    for encoding in ("utf-16",) if raw.startswith(UTF_16) else ("utf-8-sig", "cp1252"):
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    if text is None or "\0" in text:
        raise InputError("is not a CSV but something binary; save the table as CSV", file=path)
    return text


def separator(text: str) -> str:
    """What parts the columns: the one of comma, semicolon and tab that the first line has most of."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(SEPARATORS, key=header.count)  # the comma where there is none at all


def read_table(path: Path) -> pd.DataFrame:
    """A CSV as text: stripped cells, None where one is empty, each row's line in the file as its index.

    Columns without a name, as pandas writes its index, are left out.

    Raises:
        InputError: no CSV, no rows, a column twice, a row with more cells than the header.
    """
    text = read_text(path)
    # strict: a quote that is never closed would swallow the rows behind it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator(text), skipinitialspace=True, strict=True)
    header: list[str] = []
    rows, lines = [], []
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            if not any(row):
                continue
            if not header:
                header = row
                continue
            if any(row[len(header) :]):
                message = f"has {len(row)} cells, the header {len(header)}"
                raise InputError(message, file=path, place=f"line {reader.line_num}")
            padded = row[: len(header)] + [""] * (len(header) - len(row))
            rows.append([cell or None for cell in padded])
            lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"is not a CSV ({error})", file=path, place=f"line {reader.line_num}") from None
    if not rows:
        raise InputError("has no rows" if header else "is empty", file=path)
    kept = [place for place, name in enumerate(header) if name and not re.fullmatch(r"Unnamed: \d+", name)]
    names = [header[place] for place in kept]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"the column {twice[0]} is there twice", file=path)
    return pd.DataFrame([[row[place] for place in kept] for row in rows], columns=names, index=lines, dtype=object)
