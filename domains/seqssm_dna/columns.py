"""Columns of users' tables of sequences: found by their names, with the rows that have no usable cell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence

from seqssm.errors import InputError, no_column
from seqssm.files.folds import FoldColumn, chosen_folds, is_fold_column
from seqssm.files.labels import is_missing, lacks_value
from seqssm.files.numbers import MISSING, NO_WORD
from seqssm.files.splits import (
    BY_FILE,
    NO_COLUMN,
    SPLIT_NAMES,
    is_patient_column,
    split_column,
    split_of_cell,
    split_of_flag,
)
from seqssm.files.tables import Table
from seqssm_dna.letters import first_foreign, what_is

SURELY_MISSING = re.compile(r"\s*(n/a|#n/a|nan|<na>)\s*([;|]\s*(n/a|#n/a|nan|<na>)\s*)+", re.IGNORECASE)
"""Several missing labels; ``null|null`` and ``-;-`` can be names of classes."""
ROW = "number of the row"  # column of a data frame in memory, added so that rows without a cell are kept


def find_column(
    table: Table,
    name: str | None,
    usual: Sequence[str],
    what: str,
    flags: Mapping[str, str] | None,
    needed: bool = True,
) -> str | None:
    """Return the column of a name, or the first column with a usual name.

    Args:
        table: the table.
        name: name that the user gave; None searches the usual names.
        usual: usual names, in any case.
        what: content of the column, for messages.
        flags: command-line names of the options, for messages.
        needed: whether the column is required.

    Raises:
        InputError: no such column.
    """
    option = (flags or {}).get(what)
    if name is not None:
        if name not in table.frame:
            raise no_column(name, _named(table), option=option or what, file=table.path)
        return name
    lower = {column.lower(): column for column in reversed(table.columns)}
    found = next((lower[one.lower()] for one in usual if one.lower() in lower), None)
    if found is None and needed:
        advice = f"set {option}" if option else ""
        raise no_column(" or ".join(usual[:3]), _named(table), option=what, advice=advice, file=table.path)
    return found


def find_trained_column(
    table: Table,
    name: str | None,
    usual: Sequence[str],
    what: str,
    flags: Mapping[str, str] | None,
    needed: bool = True,
) -> str | None:
    """Return the column that a model was trained on if the table has it, else the first with a usual name.

    Args:
        table: the table.
        name: name of the column in training; None for one of the usual names.
        usual: usual names.
        what: content of the column, for messages.
        flags: command-line names of the options, for messages.
        needed: whether a column is required.

    Raises:
        InputError: no such column.
    """
    if name is not None and name in table.frame:
        return name
    return find_column(table, None, usual if name is None else (name, *usual), what, flags, needed)


def _named(table: Table) -> list[str]:
    return [column for column in table.columns if column != ROW]


def read_folds(table: Table, name: str | None) -> FoldColumn | None:
    """Return the column of folds; None without one. A column ``fold`` with other cells is reported.

    Args:
        table: the table.
        name: column of the splits or folds; `NO_COLUMN` or `BY_FILE` for none; by default the one with a usual
            name of folds.
    """
    if name in (NO_COLUMN, BY_FILE) or (name is not None and (name not in table.frame or split_of_flag(name))):
        return None
    found = chosen_folds(table.frame, name) or chosen_folds(table.frame, None)
    for column in _named(table) if found is None else ():
        if is_fold_column(column) and "fold" in column.casefold() and split_column(table, [column]) is None:
            table.notes.append(f"column {column} is not used: its cells are no folds")
    return found


def read_splits(
    table: Table, name: str | None, folds: FoldColumn | None, flags: Mapping[str, str] | None, used: Collection[str]
) -> tuple[list[str] | None, str]:
    """Return the split of each row, None if no column holds it, and another column of splits, which is not read.

    A column of which it is uncertain whether it holds splits is reported, and any if the files are the splits.

    Args:
        table: the table.
        name: column of the splits, `NO_COLUMN` for none, `BY_FILE` for files that are the splits; by default ``split``.
        folds: the column of folds.
        flags: command-line names of the options, for messages.
        used: columns with another meaning.

    Raises:
        InputError: no such column, or a cell is not a split.
    """
    option = (flags or {}).get("split", "split_column")
    if name == NO_COLUMN:
        return None, ""
    if name == BY_FILE:
        marked = [one for one in _named(table) if one not in used and _divides(table, one)]
        table.notes += [f"column {one} holds splits and is not used, as every file is a split" for one in marked]
        return None, ""
    column = find_column(table, name, ("split",), "split", flags, needed=False)
    if folds is not None and folds.decides and column == folds.name:
        return None, ""
    if column is None:
        others = [one for one in _named(table) if one not in used and (folds is None or one != folds.name)]
        divides = next((one for one in others if _divides(table, one)), None)
        other = split_column(table, others)
        named = [one for one in others if one.lower() in ("set", "subset", "partition") or split_of_flag(one)]
        if divides is not None:
            return None, divides
        if other is not None:
            chosen = f"{option} {shlex.quote(other)}"
            table.notes.append(f"column {other} may hold splits and is not used; {chosen} uses it in fit, not in kfold")
        elif named:
            how = "its flags are used by" if split_of_flag(named[0]) else "if it has train, valid and test,"
            table.notes.append(
                f"column {named[0]} is not used; {how} {option} {shlex.quote(named[0])} in fit, not in kfold"
            )
        return None, ""
    found = []
    for row, cell in enumerate(table.frame[column]):
        split = split_of_cell(cell, column)
        if split is None:
            message = (
                f"split {cell!r}: expected train, valid or test; {option} names another column, or {NO_COLUMN} for a "
                "random split"
            )
            raise InputError(message, file=table.path, place=table.place(row, column))
        found.append(split)
    return found, ""


def _divides(table: Table, column: str) -> bool:
    """Whether a column convinces as the split: words or flags of train and another one; ``test`` may be a result."""
    cells = {str(cell).strip().lower() for cell in table.frame[column]} - MISSING
    splits = {split_of_cell(cell, column) for cell in cells}
    explicit = column.strip().lower() not in SPLIT_NAMES or cells <= set(SPLIT_NAMES)
    return explicit and None not in splits and "train" in splits and len(splits) > 1


def patients_note(table: Table, flags: Mapping[str, str] | None) -> list[str]:
    """Describe a column that may hold the patients of several rows each, which no option names.

    Args:
        table: the table.
        flags: command-line names of the options, for messages.
    """
    option = (flags or {}).get("group", "group_column")
    for name in filter(is_patient_column, _named(table)):
        if 2 < table.frame[name].nunique() < len(table):
            return [f"column {name} is not used; {option} {shlex.quote(name)} keeps the rows of a {name} in one split"]
    return []


def invalid_rows(table: Table, sequence: str, labels: list[str], several: bool) -> dict[int, tuple[str, str]]:
    """Return row -> (column, reason) of the rows without a usable sequence or label.

    Args:
        table: the table.
        sequence: column of the sequences.
        labels: columns of the labels.
        several: whether a record may have several labels, so that cells may be dicts.
    """
    bad: dict[int, tuple[str, str]] = {}
    for row, cell in enumerate(table.frame[sequence]):
        if not cell:
            bad[row] = (sequence, "the sequence is empty")
            continue
        letters = cell.encode("utf-8", "backslashreplace")
        wrong = first_foreign(letters)
        if wrong is not None:
            bad[row] = (sequence, f"{what_is(letters[wrong])} (position {wrong + 1})")
    for name in labels:
        for row, cell in enumerate(map(str, table.frame[name])):
            if row in bad:
                continue
            listed = cell[:1] in ("[", "{") or SURELY_MISSING.fullmatch(cell)
            if cell.lower() in NO_WORD or (listed and is_missing(cell)):
                bad[row] = (name, "the label is missing")
            elif several and lacks_value(cell):
                bad[row] = (name, "a value of the dict is missing: leave its name out if the label is absent")
    return bad
