"""Words for splits, names of columns of patients, and folders of split files, one per fold, as CLAM writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seqssm.errors import InputError

if TYPE_CHECKING:  # help pages import this module, and must not import pandas
    from seqssm.files.tables import Table

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val",
    "tune": "val", "tuning": "val",
    "test": "test", "testing": "test", "holdout": "test", "hold_out": "test",
}  # fmt: skip
"""Words for splits in the users' files, in lower case, and the split that each one means."""
_FLAG = re.compile(rf"(?:is|in)?_?({'|'.join(SPLIT_NAMES)})(?:_?(?:set|split))?")


def split_of_flag(column: str) -> str | None:
    """Return the split of a column of flags by its name, ``train`` for ``is_train``; None for another name.

    Args:
        column: name of the column.
    """
    found = _FLAG.fullmatch(column.strip().casefold())
    return SPLIT_NAMES[found[1]] if found else None


TRUE = {"true", "t", "1", "1.0", "yes", "y"}
FLAGS = TRUE | {"false", "f", "0", "0.0", "no", "n"}


def split_of_cell(cell: str, column: str) -> str | None:
    """Return the split of a cell: a word for a split, or a flag in a column such as ``is_train``; None for other text.

    Records without the flag are test records for ``is_train``, and training records for ``is_test`` and ``is_val``.

    Args:
        cell: the cell.
        column: name of its column.
    """
    word, flag = cell.strip().lower(), split_of_flag(column)
    if word in SPLIT_NAMES or flag is None or word not in FLAGS:
        return SPLIT_NAMES.get(word)
    return flag if word in TRUE else "test" if flag == "train" else "train"


def require_fold(fold: int | None, folds: int | None) -> None:
    """Check the index of the test fold.

    Args:
        fold: index of the test fold, or None.
        folds: number of folds, or None for other splits.

    Raises:
        InputError: there are folds, and no such test fold.
    """
    if folds is None:
        return
    if fold is None:
        raise InputError(f"--data.folds {folds} requires --data.fold, the test fold, from 0 to {folds - 1}")
    if not 0 <= fold < folds:
        raise InputError(f"--data.fold {fold}: must be between 0 and {folds - 1}")


def split_column(table: Table, names: Sequence[str]) -> str | None:
    """Return the first column that holds splits: words for two or more splits, or the flags of a column ``is_train``.

    Args:
        table: table with text columns.
        names: columns to look at.
    """
    from seqssm.files.numbers import MISSING

    for name in names:
        cells = {str(cell).strip() for cell in table.frame[name]}
        splits = {split_of_cell(cell, name) for cell in cells if cell.lower() not in MISSING}
        if splits and None not in splits and (len(splits) > 1 or split_of_flag(name)):
            return name
    return None


NO_COLUMN = "none"
"""Value of the options ``split_column``: a split that no column of the table determines."""
BY_FILE = "\0"
"""In place of a column of splits: every file is one split."""


_PATIENT = re.compile(
    r"(patient|subject|participant|person|individual|donor)_?(id|no|nr|num|number|code|name|uid)?|mrn"
)


def is_patient_column(column: str) -> bool:
    """Whether the name of a column says that it holds patients: ``Patient ID``, ``participant``, ``subject_id``.

    Args:
        column: name of the column.
    """
    return _PATIENT.fullmatch(re.sub(r"[\s_.-]+", "_", column.strip().casefold())) is not None


def patient_column(table: Table, names: Sequence[str]) -> str | None:
    """Return the column of patients, the first one if several group the rows in the same way; None if there is none.

    Args:
        table: table with text columns.
        names: columns without another meaning.

    Raises:
        InputError: several columns group the rows in different ways.
    """
    from seqssm.files.numbers import MISSING

    named = [name for name in names if is_patient_column(name)]
    found = [name for name in named if not table.frame[name].astype(str).str.strip().str.lower().isin(MISSING).all()]
    groups = {name: table.frame[name].factorize()[0].tolist() for name in found}
    other = next((name for name in found if groups[name] != groups[found[0]]), None)
    if other is not None:
        message = f"the columns {found[0]} and {other} may both be patients, and differ; rename or remove one"
        raise InputError(message, file=table.path)
    return found[0] if found else None


def other_spellings(names: Iterable[str], what: str = "patient") -> tuple[dict[str, str], list[str]]:
    """Map names that are probably an earlier one to it: ``p0`` to ``P0``, and ``007`` and ``7.0`` to ``7``.

    Such names differ only in case, spaces, leading zeros of a number, or the ``.0`` of a column with empty cells.

    Args:
        names: names of patients or groups; empty ones are left out.
        what: what they are names of, for the note.

    Returns:
        (the earlier name of each such name, a note for the user if there are any).
    """
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        key = " ".join(name.split()).casefold()
        number = re.fullmatch(r"0*(\d+)(?:\.0+)?", key)
        known = first.setdefault(number[1] if number else key, name) if key else name
        if known != name:
            found[name] = known
    if not found:
        return found, []
    more = f" (and {len(found) - 1} more such names)" if len(found) > 1 else ""
    other, name = next(iter(found.items()))
    return found, [f"warning: {other} is probably the {what} {name}{more}; random splits keep their records together"]


def split_files(folder: Path) -> dict[int, Path]:
    """Find the split files of a folder by fold, the number at the end of their names (``splits_0.csv``, ...).

    Files named by two numbers (``splits_<repeat>_<fold>.csv``) are folds 0, 1, ... in numerical order. CLAM writes each
    split a second time with one row per slide, ``splits_0_bool.csv``; these are taken where there are no others. Files
    with other endings (``splits_0_descriptor.csv``) are ignored.

    Args:
        folder: an existing folder.

    Raises:
        InputError: there are no split files, files of several name patterns, or duplicate numbers or contents.
    """
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    found = _numbered(folder, files, "") or _numbered(folder, files, "_bool")
    if not found:
        if any(file.name.endswith("_descriptor.csv") for file in files):
            message = "contains only CLAM's descriptors, the numbers of slides per class; copy the splits_*.csv too"
            raise InputError(message, file=folder)
        raise InputError("contains no split files *_0.csv, *_1.csv, ...", file=folder)
    ordered = [found[numbers] for numbers in sorted(found)]
    if any(len(numbers) > 1 for numbers in found):
        return dict(enumerate(ordered))
    return {numbers[0]: file for numbers, file in sorted(found.items())}


def _numbered(folder: Path, files: list[Path], ending: str) -> dict[tuple[int, ...], Path]:
    """Split files whose names are numbers and the ending, by numbers."""
    found: dict[tuple[int, ...], Path] = {}
    stems: dict[str, Path] = {}
    contents: dict[bytes, Path] = {}
    for file in files:
        match = re.fullmatch(rf"(.*?)((?:(?:^|_)\d+)+){ending}\.csv", file.name)
        if not match:
            continue
        numbers = tuple(int(number) for number in match[2].strip("_").split("_"))
        same = {"number": found.setdefault(numbers, file), "content": contents.setdefault(file.read_bytes(), file)}
        for what, other in same.items():
            if other != file:
                raise InputError(
                    f"has the {what} of {other.name}: the fold would be counted twice; remove one", file=file
                )
        stems.setdefault(match[1], file)
    if len(stems) > 1:
        names = " and ".join(file.name for file in list(stems.values())[:2])
        raise InputError(
            f"contains files of several name patterns: {names}; keep only one set of split files", file=folder
        )
    return found
