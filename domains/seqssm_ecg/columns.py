"""Columns of a manifest with a fixed meaning: their other names, and those of splits, folds and patients."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from seqssm.errors import InputError, no_column
from seqssm.files.folds import FoldColumn, fold_columns, held_out, is_fold_column, read_folds, several_columns
from seqssm.files.numbers import MISSING
from seqssm.files.splits import NO_COLUMN, is_patient_column, patient_column, split_column, split_of_cell
from seqssm.files.tables import Table

COLUMNS = ("path", "labels", "patient", "fold", "split", "source", "age", "sex", "rate_hz")
"""Columns of a manifest with a fixed meaning; all other columns are classes."""
ALIASES = {
    "path": ("file", "filename", "file_name", "filepath", "file_path", "record", "record_name", "recording"),
    "labels": ("label", "dx", "diagnosis", "diagnoses"),
    "split": ("subset", "partition"),
}
"""Other names of these columns; those of patients and folds are in `seqssm.files.splits`."""
OTHER_FOLD = f"; --data.split_column names another column of folds, or {NO_COLUMN} for a random split"
UNKNOWN = MISSING - {"-", "--", "---", "none"}
"""Cells whose label is unknown; a dash or "none" may stand for a negative result, and is refused in a class column."""


def choose_split(table: Table, name: str) -> None:
    """Make a column of splits or folds the column ``split`` or ``fold``, in place of those that the table has.

    Args:
        table: the table, which is changed.
        name: the column, or `NO_COLUMN` for none.

    Raises:
        InputError: there is no such column, or a cell is neither a split nor a fold.
    """
    chosen = name != NO_COLUMN
    if chosen and name not in table.columns:
        raise no_column(name, table.columns, option="--data.split_column", file=table.path, place=table.header)
    cells = [str(cell).strip() for cell in table.frame[name]] if chosen else []
    usual = ("split", "fold", *ALIASES["split"])
    dropped = [one for one in table.columns if plain_name(one) in usual or is_fold_column(one)]
    table.frame = table.frame.drop(columns=list(dict.fromkeys([*dropped, *([name] if chosen else [])])))
    others = [one for one in dropped if one != name]
    if others:
        table.notes.append(f"not used, as --data.split_column is {name}: {', '.join(others)}")
    if not chosen:
        return
    cells = ["" if cell.lower() in UNKNOWN else cell for cell in cells]
    splits = [split_of_cell(cell, name) if cell else "" for cell in cells]
    if None not in splits:
        table.frame["split"] = splits
        return
    folds = read_folds(name, cells)
    if folds is None or folds.damaged is not None:
        wrong = splits.index(None) if folds is None or folds.damaged is None else folds.damaged[0]
        message = f"{cells[wrong]!r} (--data.split_column) is not train, val or test, nor the number of a fold"
        message += held_out(cells[wrong]) if folds is not None else ""
        raise InputError(message, file=table.path, place=table.place(wrong, name))
    table.frame["fold"] = cells


def rename(table: Table, classes: Sequence[str]) -> None:
    """Rename columns with a fixed meaning, and report it: ``Patient ID`` becomes ``patient``.

    Args:
        table: the table, which is changed.
        classes: columns that the user chose as classes.

    Raises:
        InputError: columns of patients differ, or a column of splits has numbers.
    """
    plain = {name: plain_name(name) for name in table.columns if name not in classes}
    patient = patient_column(table, list(plain))
    same = [name for name in plain if is_patient_column(name) and name != patient]
    if same:
        table.frame = table.frame.drop(columns=same)
        table.notes.append(f"the same patients as in the column {patient}, not used: {', '.join(same)}")
    alike = {wanted: [name for name in plain if plain[name] in (wanted, *others)] for wanted, others in ALIASES.items()}
    others = [name for name in table.columns if plain.get(name, "split") not in ("split", *ALIASES["split"])]
    folds = fold_columns(table.frame[others])
    alike["fold"] = ["fold"] if "fold" in plain else [name for name, one in folds.items() if not one.numbers_splits]
    for name in alike["split"]:
        numbered = read_folds(name, table.frame[name])
        if numbered is not None and numbered.numbers_splits:
            raise InputError(_numbered(numbered), file=table.path, place=table.header)
    for wanted, found in {**alike, "patient": [] if patient is None else [patient]}.items():
        if len(found) == 1 and found[0] != wanted:
            table.frame = table.frame.rename(columns={found[0]: wanted})
            table.notes.append(f"column {found[0]} read as {wanted}")


def number_folds(table: Table) -> list[str]:
    """Replace the names of folds (``fold1``, ``A``) by their numbers, and return the name of each row's fold.

    Args:
        table: the table, whose column ``fold`` is changed.

    Raises:
        InputError: a cell is damaged.
    """
    if "fold" not in table.columns:
        return [""] * len(table)
    folds = read_folds("fold", table.frame["fold"])
    if folds is None:
        return [str(cell) for cell in table.frame["fold"]]
    if folds.damaged is not None:
        row, cell = folds.damaged
        first = folds.cells[min(folds.cells)]
        message = f"{cell!r} is not a fold such as {first}{OTHER_FOLD}{held_out(cell)}"
        raise InputError(message, file=table.path, place=table.place(row, "fold"))
    table.frame["fold"] = ["" if number is None else str(number) for number in folds.numbers]
    return ["" if number is None else folds.cells[number] for number in folds.numbers]


def ignored_split(table: Table, ignored: Sequence[str]) -> str:
    """Message on a column of splits that is not read, if no other column has splits or folds; else ``""``.

    Args:
        table: the table.
        ignored: columns without a meaning.
    """
    if {"split", "fold"} & set(table.columns):
        return ""
    folds = fold_columns(table.frame[ignored])
    if len(folds) > 1:
        return several_columns(folds, next(iter(folds.values())).cells.values())
    if folds:
        return _numbered(next(iter(folds.values())))
    name = split_column(table, ignored)
    if name is None:
        return ""
    return (
        f"column {name} may say in which split a record is: --data.split_column {shlex.quote(name)} splits by it, "
        f"--data.split_column {NO_COLUMN} at random"
    )


def _numbered(column: FoldColumn) -> str:
    """Message on a column whose numbers may be splits or folds."""
    advice = (
        f"--data.split_column {shlex.quote(column.name)} uses them; --data.split_column {NO_COLUMN} splits at random"
    )
    return f"column {column.name}: {column.for_folds(advice)}"


def plain_name(column: str) -> str:
    """Return a name in lower case, with underscores between its words.

    Args:
        column: name of a column.
    """
    return re.sub(r"[\s-]+", "_", column.lower())
