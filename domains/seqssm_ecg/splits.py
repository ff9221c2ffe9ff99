"""Training, validation and test records: as the user's table says, or at random by patient. Nothing in between."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from seqssm.errors import InputError
from seqssm_ecg.sources import LabelledRecord

NAMES = ("train", "val", "test")
FRACTIONS = (("test", 0.1), ("val", 0.1), ("train", 1.0))
LISTED = 5  # lines named in a message


@dataclass(frozen=True)
class SplitOptions:
    """What the user asked for.

    Attributes:
        val_fold: fold of the table for validation.
        test_fold: fold of the table for the test.
        fold: number of this fold of a cross-validation, from 0.
        folds: number of folds of a cross-validation.
    """

    val_fold: int | None = None
    test_fold: int | None = None
    fold: int | None = None
    folds: int | None = None


def split_records(records: list[LabelledRecord], options: SplitOptions, file: str) -> tuple[dict[str, list[int]], str]:
    """Positions of the train, val and test records, and how they were chosen; no group is in two of them.

    In this order: fold k of `folds` (fold k tests, the next one validates); the table's `split`; the table's `fold`
    with `val_fold` and `test_fold` (by default the last two); else 80, 10 and 10 %, by a hash of the group.

    Args:
        records: in the order of the table.
        options: what the user asked for.
        file: name for messages.

    Raises:
        InputError: a split or fold is missing or contradicts the options, or a patient is in two parts.
    """
    has_split = any(record.split is not None for record in records)
    has_fold = any(record.fold is not None for record in records)
    if options.folds is not None and options.fold is not None:
        if has_split:
            raise InputError("the column split is incompatible with cross-validation: remove it, or run fit", file=file)
        made = _cross(records, options, file) if has_fold else _hashed_cross(records, options)
        how = f"fold {options.fold} of {options.folds}" + (
            ", folds of the table" if has_fold else f", at random by {_unit(records)}"
        )
    elif has_split:
        _require_all(records, "split", lambda record: record.split, file)
        for name in ("val_fold", "test_fold"):
            if getattr(options, name) is not None:
                raise InputError(f"--data.{name} conflicts with the column split; remove one of them", file=file)
        made = {name: [k for k, record in enumerate(records) if record.split == name] for name in NAMES}
        how = "by the column split" + (" (the column fold is not used)" if has_fold else "")
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


def _unit(records: list[LabelledRecord]) -> str:
    """What a random split keeps together."""
    if any(record.patient for record in records):
        return "patient"
    if len({record.group for record in records}) == len(records):
        return "record, as there are no patients"
    return "source, age, sex and labels, as there are no patients"


def _by_fold(records: list[LabelledRecord], options: SplitOptions, file: str) -> tuple[dict[str, list[int]], str]:
    _require_all(records, "fold", lambda record: record.fold, file)
    numbers = sorted({record.fold for record in records if record.fold is not None})
    for name in ("val_fold", "test_fold"):
        value = getattr(options, name)
        if value is not None and value not in numbers:
            raise InputError(
                f"--data.{name} {value}: expected one of the folds {', '.join(map(str, numbers))}", file=file
            )
    if len(numbers) < 3:
        raise InputError(
            f"has {len(numbers)} folds, at least three are required; alternatively, add a column split",
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
    return made, f"fold {val} validates, fold {test} tests"


def _cross(records: list[LabelledRecord], options: SplitOptions, file: str) -> dict[str, list[int]]:
    """Fold k of K from the folds of the table; several of its folds make one where K divides their number."""
    _require_all(records, "fold", lambda record: record.fold, file)
    numbers = sorted({record.fold for record in records if record.fold is not None})
    assert options.folds is not None
    if len(numbers) % options.folds:
        raise InputError(
            f"has {len(numbers)} folds, not {options.folds}: use --folds {len(numbers)}, or remove the column fold",
            file=file,
        )
    ranks = {number: rank % options.folds for rank, number in enumerate(numbers)}
    _require_whole_groups(
        records,
        {f"fold {n}": [k for k, record in enumerate(records) if record.fold == n] for n in numbers},
        file,
    )
    return _rotated([ranks[record.fold] for record in records if record.fold is not None], options)


def _hashed_cross(records: list[LabelledRecord], options: SplitOptions) -> dict[str, list[int]]:
    assert options.folds is not None
    return _rotated([_number_of(record.group) % options.folds for record in records], options)


def _rotated(ranks: list[int], options: SplitOptions) -> dict[str, list[int]]:
    """Fold k tests, the next one validates."""
    assert options.fold is not None
    assert options.folds is not None
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


def _require_all(
    records: list[LabelledRecord], column: str, value: Callable[[LabelledRecord], object], file: str
) -> None:
    """Raise InputError where some records have a value in the column and others have none."""
    lacking = [record.place or record.id for record in records if value(record) is None]
    if lacking:
        named = ", ".join(lacking[:LISTED]) + (", ..." if len(lacking) > LISTED else "")
        raise InputError(
            f"no {column}, which {len(records) - len(lacking)} other rows have: fill it in, or remove the column "
            f"{column} for a random split",
            file=file,
            place=named,
        )


def _require_whole_groups(records: list[LabelledRecord], made: dict[str, list[int]], file: str) -> None:
    """Raise InputError where a group is in two parts."""
    seen: dict[str, tuple[str, LabelledRecord]] = {}
    for name, places in made.items():
        for place in places:
            record = records[place]
            part, first = seen.setdefault(record.group, (name, record))
            if part != name:
                what = f"the patient {record.patient}" if record.patient else f"the record {record.id}"
                raise InputError(
                    f"{what} is in both {part} ({first.place or first.id}) and {name} ({record.place or record.id}): "
                    "scores would be biased; assign all records of a patient to one split",
                    file=file,
                )


def _number_of(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")
