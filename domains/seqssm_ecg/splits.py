"""Splits into training, validation and test records: from the user's table, or at random by patient."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from seqssm.errors import InputError
from seqssm.files.folds import FoldColumn, held_out
from seqssm.files.splits import other_spellings
from seqssm_ecg.sources import LabelledRecord

NAMES = ("train", "val", "test")
FRACTIONS = (("test", 0.1), ("val", 0.1), ("train", 1.0))
LISTED = 5  # maximum number of lines listed in a message


@dataclass(frozen=True)
class SplitOptions:
    """Split options of the data module.

    Attributes:
        val_fold: validation fold, a value of the table's fold column.
        test_fold: test fold, a value of the table's fold column.
        fold: index of the cross-validation fold, from 0.
        folds: number of cross-validation folds.
        column: column of splits of the table, for messages.
    """

    val_fold: int | None = None
    test_fold: int | None = None
    fold: int | None = None
    folds: int | None = None
    column: str = "split"


def split_records(records: list[LabelledRecord], options: SplitOptions, file: str) -> tuple[dict[str, list[int]], str]:
    """Split records into train, val and test; return the indices, and a description of the method.

    A group is never divided. In order of precedence: cross-validation (fold k is the test set, the next one the
    validation set); the table's `split`, whose validation records are taken from train if it has none; the table's
    `fold` with `val_fold` and `test_fold` (by default the last two); 80, 10 and 10 % by a hash of the group.

    Args:
        records: records in the order of the table.
        options: split options.
        file: path for error messages.

    Raises:
        InputError: a split or fold is missing or contradicts the options, or a patient is in two splits.
    """
    records = _joined(records)
    has_split = any(record.split is not None for record in records)
    has_fold = any(record.fold is not None for record in records)
    if options.folds is not None and options.fold is not None:
        if has_split:
            message = (
                f"the column {options.column} is incompatible with cross-validation; pass --data.split_column none, or "
                "run fit"
            )
            raise InputError(message, file=file)
        how = f"fold {options.fold} of {options.folds}, "
        if has_fold:
            made, folds = _cross(records, options, file)
            how += f"{folds} of the table"
        else:
            made = _hashed_cross(records, options)
            how += f"at random by {_unit(records)}"
    elif has_split:
        _require_all(records, "split", lambda record: record.split, file)
        for name in ("val_fold", "test_fold"):
            if getattr(options, name) is not None:
                message = f"--data.{name} conflicts with the column {options.column}; remove one of them"
                raise InputError(message, file=file)
        made = {name: [k for k, record in enumerate(records) if record.split == name] for name in NAMES}
        how = f"by the column {options.column}" + (" (the column fold is not used)" if has_fold else "")
        if made["train"] and not made["val"]:
            made["val"] = _validation(records, made["train"])
            made["train"] = sorted(set(made["train"]) - set(made["val"]))
            how += f", which has no validation records: 10 % of the training records at random by {_unit(records)}"
    elif has_fold:
        made, how = _by_fold(records, options, file)
    else:
        for name in ("val_fold", "test_fold"):
            if getattr(options, name) is not None:
                raise InputError(f"--data.{name}: the table has no folds", file=file)
        made = _random(records)
        how = f"at random by {_unit(records)} (80, 10 and 10 %)"
    _require_whole_groups(records, made, file)
    return made, how


def require_folds(records: list[LabelledRecord], options: SplitOptions, file: str, folds: Sequence[int]) -> None:
    """Raise InputError if one of `folds` leaves a split of cross-validation without records.

    Args:
        records: records in the order of the table.
        options: split options.
        file: path for error messages.
        folds: indices of the folds.
    """
    for fold in folds:
        made, _ = split_records(records, replace(options, fold=fold), file)
        empty = [name for name in NAMES if not made[name]]
        if empty:
            groups = len({record.group for record in records})
            raise InputError(
                f"--data.folds {options.folds}: the {empty[0]} split of fold {fold} is empty ({len(records)} records, "
                f"{groups} groups, assigned at random by {_unit(records)}); pass fewer folds",
                file=file,
            )


def _joined(records: list[LabelledRecord]) -> list[LabelledRecord]:
    """Give the records of a patient one group, also under another spelling of the name."""
    alike, _ = other_spellings(record.patient for record in records)
    groups = {record.patient: record.group for record in records}
    return [replace(one, group=groups[alike[one.patient]]) if one.patient in alike else one for one in records]


def _unit(records: list[LabelledRecord]) -> str:
    """What a random split keeps together."""
    if any(record.patient for record in records):
        return "patient"
    if len({record.group for record in records}) == len(records):
        return "record, as there are no patients"
    return "source, age, sex and labels, as there are no patients"


def _by_fold(records: list[LabelledRecord], options: SplitOptions, file: str) -> tuple[dict[str, list[int]], str]:
    _require_all(records, "fold", lambda record: record.fold, file)
    names = _fold_names(records)
    numbers = sorted(names)
    for name in ("val_fold", "test_fold"):
        value = getattr(options, name)
        if value is not None and value not in numbers:
            known = ", ".join(_shown(names, number) for number in numbers)
            raise InputError(f"--data.{name} {value}: expected one of the folds {known}", file=file)
    if len(numbers) < 3:
        raise InputError(
            f"has {len(numbers)} folds, at least three are required; alternatively, add a column split, or pass "
            "--data.split_column none for a random split",
            file=file,
        )
    test = options.test_fold
    if test is None:
        test = [n for n in numbers if n != options.val_fold][-1]
    val = [n for n in numbers if n != test][-1] if options.val_fold is None else options.val_fold
    if val == test:
        raise InputError(f"--data.val_fold and --data.test_fold are both {val}", file=file)
    made: dict[str, list[int]] = {name: [] for name in NAMES}
    for place, record in enumerate(records):
        made["test" if record.fold == test else "val" if record.fold == val else "train"].append(place)
    return made, f"validation fold {_shown(names, val)}, test fold {_shown(names, test)}"


def _fold_names(records: list[LabelledRecord]) -> dict[int, str]:
    """Names of the folds of the table by number."""
    return {one.fold: one.fold_name or str(one.fold) for one in reversed(records) if one.fold is not None}


def _shown(names: Mapping[int, str], number: int) -> str:
    """Number of a fold, as in the options, and its name if that is another one."""
    return names[number] if names[number] == str(number) else f"{number} ({names[number]})"


def _cross(records: list[LabelledRecord], options: SplitOptions, file: str) -> tuple[dict[str, list[int]], str]:
    """Make K folds from the folds of the table, whose number must be a multiple of K.

    Returns:
        (split of fold k, names of the folds that are its test and validation set).
    """
    _require_all(records, "fold", lambda record: record.fold, file)
    assert options.folds is not None
    assert options.fold is not None
    own = [record.fold for record in records if record.fold is not None]
    names = _fold_names(records)
    column = FoldColumn("fold", list(own), names, [names[number] for number in own])
    ranks = column.merged(options.folds, file, least=3)
    _require_whole_groups(
        records,
        {f"fold {n}": [k for k, number in enumerate(own) if number == n] for n in sorted(set(own))},
        file,
    )
    test, val = (column.names_of(rank % options.folds, options.folds) for rank in (options.fold, options.fold + 1))
    return _rotated([ranks[number] for number in own], options), f"test {test} and validation {val}"


def _hashed_cross(records: list[LabelledRecord], options: SplitOptions) -> dict[str, list[int]]:
    assert options.folds is not None
    return _rotated([_number_of(record.group) % options.folds for record in records], options)


def _rotated(ranks: list[int], options: SplitOptions) -> dict[str, list[int]]:
    """Return the split with fold k as test set and the next fold as validation set."""
    assert options.fold is not None
    assert options.folds is not None
    if options.folds < 3:
        raise InputError(f"--data.folds {options.folds}: at least 3 are needed for train, val and test")
    made: dict[str, list[int]] = {name: [] for name in NAMES}
    following = (options.fold + 1) % options.folds
    for place, rank in enumerate(ranks):
        made["test" if rank == options.fold else "val" if rank == following else "train"].append(place)
    return made


def _random(records: list[LabelledRecord]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault(record.group, []).append(place)
    made: dict[str, list[int]] = {name: [] for name in NAMES}
    for group in sorted(groups, key=_number_of):
        for name, fraction in FRACTIONS:
            if len(made[name]) < fraction * len(records):
                made[name] += groups[group]
                break
    return {name: sorted(places) for name, places in made.items()}


def _validation(records: list[LabelledRecord], train: list[int]) -> list[int]:
    """Take a tenth of the training records, whole groups and at least one, unless there is only one group."""
    groups: dict[str, list[int]] = {}
    for place in train:
        groups.setdefault(records[place].group, []).append(place)
    taken: list[int] = []
    for group in sorted(groups, key=_number_of)[:-1]:
        if len(taken) >= 0.1 * len(train):
            break
        taken += groups[group]
    return sorted(taken)


def _require_all(
    records: list[LabelledRecord], column: str, value: Callable[[LabelledRecord], object], file: str
) -> None:
    """Raise InputError if only some records have a value in the column."""
    lacking = [record.place or record.id for record in records if value(record) is None]
    if lacking:
        named = ", ".join(lacking[:LISTED]) + (", ..." if len(lacking) > LISTED else "")
        raise InputError(
            f"no {column}, but {len(records) - len(lacking)} other rows have one; fill it in, or pass "
            f"--data.split_column none for a random split{held_out('') if column == 'fold' else ''}",
            file=file,
            place=named,
        )


def _require_whole_groups(records: list[LabelledRecord], made: dict[str, list[int]], file: str) -> None:
    """Raise InputError if a group is divided between splits, also under names that differ only in case or spaces."""
    seen: dict[str, tuple[str, LabelledRecord]] = {}
    for name, places in made.items():
        for place in places:
            record = records[place]
            key = " ".join(record.patient.split()).casefold() or record.group
            part, first = seen.setdefault(key, (name, record))
            if part != name:
                what = f"the patient {record.patient}" if record.patient else f"the record {record.id}"
                if first.patient != record.patient:
                    what += f", which is probably {first.patient},"
                raise InputError(
                    f"{what} is in both {part} ({first.place or first.id}) and {name} ({record.place or record.id}): "
                    "the scores would be biased; assign all records of a patient to one split",
                    file=file,
                )


def _number_of(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")
