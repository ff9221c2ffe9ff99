"""Splits of a manifest into train, val and test: CLAM split files (ids or flags), or generated folds by patient."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqssm.errors import InputError, no_column
from seqssm.files.folds import FoldColumn, chosen_folds, fold_columns, read_folds
from seqssm.files.splits import (
    FLAGS,
    NO_COLUMN,
    SPLIT_NAMES,
    TRUE,
    split_files,
    split_of_cell,
    split_of_flag,
)
from seqssm.files.tables import Table
from seqssm_pathology.answers import MISSING
from seqssm_pathology.files import say, slide_id
from seqssm_pathology.manifest import Case, Manifest, read_table

SPLITS = ("train", "val", "test")


def split_file(folder: Path, fold: int) -> Path:
    """The split file of a fold in a folder (`seqssm.files.splits.split_files`).

    Raises:
        InputError: no such folder, no split files, or no such fold.
    """
    if not folder.is_dir():
        raise InputError(
            "--data.folds: expected a number, a folder, or a column of splits of the manifest", file=folder
        )
    files = split_files(folder)
    if fold not in files:
        message = f"the folder contains the folds {', '.join(str(number) for number in list(files)[:20])}"
        raise InputError(f"--data.fold {fold}: {message}", file=folder)
    return files[fold]


def require_tested(parts: Mapping[str, Sequence[str]], folds: str, fold: int, path: Path) -> None:
    """Raise InputError unless fold `fold` of ``--data.folds`` has test records; `path` is that of the manifest."""
    if not parts["test"]:
        file = split_file(Path(folds), fold) if Path(folds).is_dir() else path
        raise InputError(f"fold {fold} has no test records", file=file)


def split_of(
    manifest: Manifest, folds: str, fold: int, seed: int, tell: Callable[[str], None], column: str | None = None
) -> dict[str, list[str]]:
    """Return the record ids of each split, by the options ``folds`` and ``split_column``.

    Args:
        manifest: manifest of the records.
        folds: number of folds, a folder of split files, or a column of splits of the manifest. Folds are those of the
            manifest if it has a column of folds, otherwise generated.
        fold: index of the test fold.
        seed: random seed of generated folds.
        tell: prints a line.
        column: column of splits or folds, `NO_COLUMN` for generated folds; by default the only column of folds.

    Raises:
        InputError: there is no such fold, folder or column, or the split is unusable.
    """
    if folds.isdigit():
        if column == NO_COLUMN:
            return make_split(manifest, int(folds), fold, seed)
        cells = {name: _cells(name, manifest) for name in manifest.marks}
        own = None if column is not None and split_of_flag(column) else chosen_folds(cells, column)
        if column is not None and own is None:
            return one_split(column, fold, manifest)
        _report_unused(manifest, tell, None if own is None else own.name)
        if own is not None:
            return own_folds(manifest, own, int(folds), fold, tell)
        return make_split(manifest, int(folds), fold, seed)
    if folds in manifest.marks and column is None and not Path(folds).is_dir():
        numbered = None if split_of_flag(folds) else read_folds(folds, _cells(folds, manifest))
        if numbered is not None:
            advice = numbered.for_folds(f"pass --data.folds {numbered.count} --data.split_column {shlex.quote(folds)}")
            raise InputError(
                f"--data.folds {folds}: the column holds folds ({numbered.span()}); {advice}", file=manifest.path
            )
        return one_split(folds, fold, manifest)
    if column is not None:
        message = f"--data.split_column {column} has no effect beside --data.folds {folds}; leave one of them out"
        raise InputError(message)
    file, parts = read_split_files(Path(folds), fold, manifest)
    if not parts["test"]:
        tell(f"{file}: no test split; its validation split is tested")
    return parts


def no_published(manifest: Manifest) -> str:
    """Message on a manifest of the user, which has no published folds: what to pass instead.

    Args:
        manifest: the manifest.
    """
    message = "--data.folds published is for public data sets only; pass "
    own = next(iter(fold_columns({name: _cells(name, manifest) for name in manifest.marks}).values()), None)
    if own is not None:
        return f"{message}--data.folds {own.count} for the folds of the column {own.name}, or a folder of split files"
    return f"{message}a number, --data.folds 5, or a folder of split files"


def one_split(column: str, fold: int, manifest: Manifest) -> dict[str, list[str]]:
    """Read the splits of a column of the manifest (`read_column`), which has no folds.

    Args:
        column: name of the column.
        fold: index of the test fold, which must be 0.
        manifest: manifest of the records.

    Raises:
        InputError: another fold, or a cell that is not a split.
    """
    if fold != 0:
        raise InputError(f"--data.fold {fold}: the column {column} has one split, --data.fold 0")
    return read_column(column, manifest)


def _cells(column: str, manifest: Manifest) -> list[str]:
    """The cells of a column of marks: the distinct ones of the first record, of the second one, ..."""
    return [cell for own in manifest.marks[column].values() for cell in own]


def _report_unused(manifest: Manifest, tell: Callable[[str], None], used: str | None) -> None:
    """Report the columns of splits of the manifest, of which at most the one of folds is used."""
    folds = fold_columns({name: _cells(name, manifest) for name in manifest.marks})
    others = [name for name in manifest.marks if name not in (used, *folds)]
    if others:
        usable = next((name for name in others if _holds_splits(name, manifest)), None)
        how = f"--data.split_column {shlex.quote(usable)} uses it" if usable else "it does not hold train, val and test"
        how += "" if usable else "; for given folds, --data.folds takes a folder of split files, one per fold"
        tell(f"{manifest.path}: warning: the column {' and '.join(others)} is not used; {how}")


def own_folds(
    manifest: Manifest, column: FoldColumn, count: int, fold: int, tell: Callable[[str], None]
) -> dict[str, list[str]]:
    """Make the split of a fold from the folds of the manifest: fold `fold` is the test set, the next one validation.

    Args:
        manifest: manifest of the records.
        column: column of folds, with the cells of all records.
        count: number of folds, at least 3.
        fold: index of the test fold.
        tell: prints a line.

    Raises:
        InputError: a record has no fold or several, a patient is in two folds, the column has folds of another number,
            or `fold` is out of range.
    """
    marks = manifest.marks[column.name]
    ids = [name for name, cells in marks.items() for _ in cells]

    def place(row: int) -> str:
        return f"{manifest.level} {ids[row]}"

    if column.damaged is None:  # an empty cell beside a fold of the same record does not count
        with_fold = {name for name, number in zip(ids, column.numbers) if number is not None}
        kept = [row for row, name in enumerate(ids) if column.numbers[row] is not None or name not in with_fold]
        column, ids = column.rows(kept), [ids[row] for row in kept]
    own: dict[str, int] = {}
    for name, number in zip(ids, column.require(place, manifest.path)):
        if own.setdefault(name, number) != number:
            message = f"{manifest.level} {name} is in several folds"
            raise InputError(message, file=manifest.path, place=f"column {column.name}")
    if count < 3:
        raise InputError(f"--data.folds {count}: at least 3 are needed for train, val and test")
    ranks = column.merged(count, manifest.path, least=3)
    if not 0 <= fold < count:
        raise InputError(f"--data.fold {fold}: there are 0 to {count - 1}")
    apart = {
        f"fold {column.cells[number]}": [name for name in own if own[name] == number] for number in sorted(column.cells)
    }
    patients = require_apart(apart, manifest, manifest.path)
    if patients:
        tell(f"{manifest.path}: warning: {patients}")
    tell(f"{manifest.path}: the folds are those of the column {column.name}; test {column.names_of(fold, count)}")
    return rotated({name: ranks[number] for name, number in own.items()}, fold, count)


def rotated(ranks: Mapping[str, int], fold: int, count: int) -> dict[str, list[str]]:
    """Return the records by split: those of fold `fold` are the test, those of the next one the validation.

    Args:
        ranks: fold of each record.
        fold: index of the test fold.
        count: number of folds.
    """
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, own in ranks.items():
        splits["test" if own == fold else "val" if own == (fold + 1) % count else "train"].append(name)
    return splits


def read_split_files(folder: Path, fold: int, manifest: Manifest) -> tuple[Path, dict[str, list[str]]]:
    """Read the split file of a fold, after checking those of all folds: a study must not stop at a later one.

    Returns path and record ids by split, as `read_split`; raises InputError if a split file is absent or unusable.
    """
    path = split_file(folder, fold)
    for other in split_files(folder).values():
        if other != path:
            read_split(other, manifest, quiet=True)
    return path, read_split(path, manifest)


def read_split(path: Path, manifest: Manifest, quiet: bool = False) -> dict[str, list[str]]:
    """Read the record ids of ``train``, ``val`` and ``test`` from a CLAM split file; absent or empty splits are [].

    The columns hold ids, or True and False beside a column of ids (CLAM's ``splits_0_bool.csv``). Ids may be those of
    slides, cases or patients. Records in no split are counted and reported.

    Args:
        path: path of the split file.
        manifest: manifest of the records.
        quiet: whether to report nothing.

    Raises:
        InputError: an id is not in the manifest, a record or patient is in two splits, or there is no training split.
    """
    table = read_table(path, keep_unnamed=True)  # CLAM writes the ids of flags into a column without name
    known = manifest.records_of()
    columns, ids = _columns(table, known)
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, column in columns.items():
        for row, cell in enumerate(table.frame[column]):
            if ids is not None:
                cell = table.frame[ids][row] if str(cell).strip().lower() in TRUE else ""
            plain, place = slide_id(cell), table.place(row)
            if plain not in known:
                if not plain or plain.lower() in MISSING:
                    continue
                raise InputError(f"{column} id {cell} is not in {manifest.path.name}", file=path, place=place)
            if plain in manifest.cases and known[plain] != [plain]:
                message = f"{column} id {cell} is a case and also a slide of case {known[plain][0]}"
                raise InputError(f"{message}; rename one in {manifest.path.name}", file=path, place=place)
            splits[split] += [name for name in known[plain] if name not in splits[split]]
    patients = require_apart(splits, manifest, path)
    if not splits["train"]:
        raise InputError("the training split is empty", file=path)
    if quiet:
        return splits
    if patients:
        say(f"{path}: warning: {patients}")
    used = {name for names in splits.values() for name in names}
    unused = [name for name in manifest.cases if name not in used]
    if unused:
        say(
            f"{path}: {len(unused)} {manifest.level}s of the manifest are in no split and not used (first: {unused[0]})"
        )
    return splits


def read_column(column: str, manifest: Manifest) -> dict[str, list[str]]:
    """Read the splits from a column of the manifest: ``train``, ``val`` and ``test``, or flags of one split.

    Args:
        column: name of the column.
        manifest: manifest of the records.

    Raises:
        InputError: a cell is neither a split nor a flag, a record or patient is in two splits, or there is no training
            split.
    """
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, cells in manifest.marks[column].items():
        found = set()
        for cell in (one for one in cells if one and one.lower() not in MISSING):
            split = split_of_cell(cell, column)
            if split is None:
                message = f"{manifest.level} {name}: {cell!r} is not train, val or test"
                raise InputError(message, file=manifest.path, place=f"column {column}")
            found.add(split)
        for split in found:
            splits[split].append(name)
    patients = require_apart(splits, manifest, manifest.path)
    if not splits["train"]:
        raise InputError("the training split is empty", file=manifest.path, place=f"column {column}")
    if patients:
        say(f"{manifest.path}: warning: {patients}")
    lost = len(manifest.cases) - sum(map(len, splits.values()))
    if lost:
        say(f"{manifest.path}: {lost} {manifest.level}s have no split in the column {column} and are not used")
    return splits


def _holds_splits(column: str, manifest: Manifest) -> bool:
    """Whether the cells of a column are splits or flags, and some are those of training."""
    cells = {cell for own in manifest.marks[column].values() for cell in own if cell.lower() not in {"", *MISSING}}
    found = {split_of_cell(cell, column) for cell in cells}
    return "train" in found and None not in found


def _columns(table: Table, known: Mapping[str, list[str]]) -> tuple[dict[str, str], str | None]:
    """Map splits to columns; also return the column of ids if the splits are flags, else None.

    Columns of other names that contain ids are rejected where the splits hold ids, because their ids would be lost.
    """
    found: dict[str, str] = {}
    others = []
    for column in table.columns:
        split = SPLIT_NAMES.get(column.lower().strip())
        if split is None:
            others.append(column)
            continue
        if split in found:
            raise InputError(f"the columns {found[split]} and {column} are the same split", file=table.path)
        found[split] = column
    if "train" not in found:
        raise no_column("train", table.columns, file=table.path)
    with_ids = [column for column in others if any(slide_id(cell) in known for cell in table.frame[column])]
    cells = {str(cell).strip().lower() for column in found.values() for cell in table.frame[column]} - {""}
    if cells and cells <= FLAGS and not cells <= set(known):
        if len(with_ids) != 1:
            what = "no column contains ids of the manifest" if not with_ids else f"{' and '.join(with_ids)} contain ids"
            raise InputError(f"its splits are flags ({', '.join(sorted(cells))}), but {what}", file=table.path)
        return found, with_ids[0]
    if cells and not cells & set(known) and others and all(re.fullmatch(r"\d+(\.0+)?", cell) for cell in cells):
        message = "holds numbers of slides per class (a descriptor of CLAM), not ids; give the split file beside it"
        raise InputError(message, file=table.path)
    with_ids = [column for column in with_ids if not column.startswith("Unnamed: ")]
    if with_ids:
        names = "train, val and test"
        raise InputError(f"column {with_ids[0]} contains ids, but {names} are the splits; rename it", file=table.path)
    return found, None


def require_apart(splits: Mapping[str, Sequence[str]], manifest: Manifest, path: Path) -> str | None:
    """Reject a record or patient in two splits, which would leak training data into the test.

    Returns:
        A warning if there are patients in two splits that are known from barcodes only; else None.

    Args:
        splits: record ids by split.
        manifest: manifest of the records.
        path: path of the split file, used in error messages.
    """
    seen: dict[str, str] = {}
    patients: dict[str, str] = {}
    shared: dict[str, str] = {}
    for split, names in splits.items():
        for name in names:
            if seen.setdefault(name, split) != split:
                message = f"{manifest.level} {name} is in {seen[name]} and in {split}; it belongs to one split"
                raise InputError(message, file=path)
            patient = manifest.cases[name].patient
            other = patients.setdefault(patient, split)
            if other != split:
                shared.setdefault(patient, f"{other} and {split}")
    if not shared:
        return None
    first, where = next(iter(shared.items()))
    if not manifest.barcodes:
        raise InputError(f"slides of case {first} are in {where}; a case belongs to one split", file=path)
    return f"{len(shared)} patients (barcodes) are in two splits (first: {first}, in {where})"


def make_split(manifest: Manifest, count: int, fold: int, seed: int) -> dict[str, list[str]]:
    """Make fold `fold` of `count`, by patient and stratified by class or event; the next fold is used for validation.

    Raises:
        InputError: fewer patients than folds, or `fold` out of range.
    """
    most = len({manifest.kept_with(name) for name in manifest.cases})
    if most < 3:
        raise InputError(f"has {most} patients; at least 3 are needed for train, val and test", file=manifest.path)
    if not 3 <= count <= most:
        raise InputError(f"--data.folds {count}: 3 to {most} are possible", file=manifest.path)
    if not 0 <= fold < count:
        raise InputError(f"--data.fold {fold}: there are 0 to {count - 1}")
    return rotated(deal(manifest, list(manifest.cases), count, seed), fold, count)


def inner_split(manifest: Manifest, cases: list[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Split `cases` into (train, val) by patient, stratified; val gets a `fraction`, each at least one patient."""
    count = max(2, round(1 / fraction))
    number = deal(manifest, cases, count, seed)
    return [case for case in cases if number[case] != 0], [case for case in cases if number[case] == 0]


def deal(manifest: Manifest, cases: list[str], count: int, seed: int) -> dict[str, int]:
    """Distribute patients over `count` folds round-robin within each stratum; fold sizes differ by at most one.

    The stratum of a patient is the most frequent `stratum` of its records.

    Returns:
        The fold index of each record.
    """
    patients: dict[str, list[str]] = {}
    for case in sorted(cases, key=lambda name: (manifest.kept_with(name), name)):  # independent of the row order
        patients.setdefault(manifest.kept_with(case), []).append(case)
    cuts = quartiles(manifest.cases[case] for case in cases)
    strata: dict[str, list[str]] = {}
    for patient, own in patients.items():
        records = [manifest.cases[case] for case in own]
        answers = Counter(stratum(one, cuts) for one in records)
        strata.setdefault(max(sorted(answers), key=answers.__getitem__), []).append(patient)
    generator = np.random.default_rng(seed)
    dealt: dict[str, int] = {}
    turn = 0
    for name in sorted(strata):
        for position in generator.permutation(len(strata[name])):
            for case in patients[strata[name][position]]:
                dealt[case] = turn % count
            turn += 1
    return dealt


def _main_target(case: Case) -> Any:
    """The target that folds are stratified by: the only one, or the first known one of several."""
    if case.targets:
        return next(one for one in case.targets.values() if one is not None)
    if case.value is not None or case.labels is not None:
        return case.value if case.labels is None else case.labels
    return case.label if case.label is not None else case.censored


def quartiles(cases: Iterable[Case]) -> np.ndarray:
    """Return the quartiles of the numbers among the targets that folds are stratified by."""
    values = [one for case in cases if isinstance(one := _main_target(case), float)]
    return np.quantile(values, [0.25, 0.5, 0.75]) if values else np.empty(0)


def stratum(case: Case, cuts: np.ndarray) -> str:
    """Return the stratum of a record: class, event flag, quartile of its number, or combination of labels.

    Args:
        case: the record.
        cuts: quartiles of the numbers.
    """
    target = _main_target(case)
    if isinstance(target, float):
        return str(int(np.searchsorted(cuts, target)))
    if isinstance(target, tuple) and len(target) == 2 and isinstance(target[1], int):
        return str(target[1])  # (time, censored)
    return str(target)
