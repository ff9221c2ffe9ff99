"""Columns of users' tables of sequences: found by their names, with the rows that have no usable cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seqssm.errors import InputError, no_column
from seqssm.files.numbers import MISSING
from seqssm.files.splits import NO_COLUMN, fold_columns, folds_of, split_of_cell, split_of_flag, unused_folds
from seqssm.files.tables import Table
from seqssm_dna.letters import first_foreign, what_is

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
        usual: usual names, in lower case.
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
    found = next((lower[one] for one in usual if one in lower), None)
    if found is None and needed:
        advice = f"set {option}" if option else ""
        raise no_column(" or ".join(usual[:3]), _named(table), option=what, advice=advice, file=table.path)
    return found


def _named(table: Table) -> list[str]:
    return [column for column in table.columns if column != ROW]


def read_splits(table: Table, name: str | None, flags: Mapping[str, str] | None) -> list[str] | None:
    """Return the split of each row; None if no column holds it. Columns that may hold it are reported.

    Args:
        table: the table.
        name: column of the splits, `NO_COLUMN` for none; by default ``split``.
        flags: command-line names of the options, for messages.

    Raises:
        InputError: no such column, or a cell is not a split.
    """
    option = (flags or {}).get("split", "split_column")
    if name == NO_COLUMN:
        return None
    column = find_column(table, name, ("split",), "split", flags, needed=False)
    if name is not None and _named_folds(table, name) is not None:
        return None  # `read_folds` reads them
    if column is None:
        advice = "kfold --folds {count} uses it"
        if len(fold_columns(table.frame)) > 1:
            advice += f" with {option} {{column}}"
        table.notes += unused_folds(table.frame, advice)
        words = ("set", "subset", "partition")
        other = next((one for one in table.columns if one.lower() in words or split_of_flag(one)), None)
        if other is not None:
            how = "its flags are used by" if split_of_flag(other) else "if it has train, valid and test,"
            table.notes.append(f"column {other} is not used; {how} {option} {other}")
        return None
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
    return found


def read_folds(table: Table, name: str | None) -> list[int | None] | None:
    """Return the fold of each row; None without a column of folds, or with several of which none is named.

    Args:
        table: the table.
        name: column of the splits or folds; `NO_COLUMN` for none; by default the one with a usual name of folds.
    """
    if name == NO_COLUMN:
        return None
    named = None if name is None else _named_folds(table, name)
    if named is not None:
        return named
    found = fold_columns(table.frame)
    return next(iter(found.values())) if len(found) == 1 else None


def _named_folds(table: Table, name: str) -> list[int | None] | None:
    """The folds of a column that the user named for the split; None if it holds splits or flags of one."""
    return None if split_of_flag(name) else folds_of(table.frame[name])


def invalid_rows(table: Table, sequence: str, labels: list[str]) -> dict[int, tuple[str, str]]:
    """Return row -> (column, reason) of the rows without a usable sequence or label.

    Args:
        table: the table.
        sequence: column of the sequences.
        labels: columns of the labels.
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
        for row, cell in enumerate(table.frame[name]):
            if row not in bad and str(cell).lower() in MISSING - {"none"}:
                bad[row] = (name, "the label is missing")
    return bad
