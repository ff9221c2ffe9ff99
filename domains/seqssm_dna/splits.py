"""Splits for files without splits: by contigs or blocks of a genome, and of labelled sequences."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from seqssm.errors import InputError
from seqssm.files.folds import several_columns, unused_folds
from seqssm.training.sizes import require_count
from seqssm_dna.genome import Genome
from seqssm_dna.intervals import Interval, whole_contigs
from seqssm_dna.labelled import Labelled

FEWEST = 8  # minimum number of sequences of a class to be split into three parts


def by_contig(genome: Genome, val: Sequence[str], test: Sequence[str]) -> list[Interval]:
    """Split a genome by whole contigs.

    Args:
        genome: the genome.
        val: contigs of the validation split.
        test: contigs of the test split.

    Raises:
        InputError: a contig is unknown or in two splits.
    """
    chosen: dict[int, str] = {}
    for split, names in (("val", val), ("test", test)):
        for name in names:
            number = genome.find(name)
            if chosen.setdefault(number, split) != split:
                raise InputError(f"contig {name} is in --data.val_contigs and in --data.test_contigs", file=genome.path)
    return [replace(one, split=chosen.get(one.contig, "train")) for one in whole_contigs(genome)]


def by_block(genome: Genome, val: float, test: float, gap: int) -> tuple[list[Interval], int]:
    """Split every contig into consecutive blocks for training, validation and test, separated by gaps.

    Args:
        genome: the genome.
        val: fraction of each contig for validation.
        test: fraction of each contig for the test, at its end.
        gap: letters between two splits; contigs whose blocks are not longer than four gaps are used for training only.

    Returns:
        (intervals, number of contigs used for training only).
    """
    found: list[Interval] = []
    whole = 0
    for one in whole_contigs(genome):
        length = len(one)
        first, second = length - round(length * (val + test)), length - round(length * test)
        parts = {"train": (0, first), "val": (first, second), "test": (second, length)}
        wanted = {split: place for split, place in parts.items() if place[1] > place[0]}
        if min(end - start for start, end in wanted.values()) <= 4 * gap or len(wanted) == 1:
            found.append(replace(one, split="train"))
            whole += 1
            continue
        for split, (start, end) in wanted.items():
            found.append(replace(one, start=start + (gap if start else 0), end=end, split=split))
    return found, whole


def strata(found: Labelled) -> np.ndarray:
    """Return the strata of a random split, (n,) integers: the classes, or a single stratum.

    Args:
        found: labelled sequences.
    """
    if found.target == "classification" and found.truth is not None:
        return found.truth
    return np.zeros(len(found), dtype=np.int64)


def families(found: Labelled) -> np.ndarray:
    """Return the family of each row, (n,) integers: rows of one group, or with equal sequences, stay together.

    Args:
        found: labelled sequences.
    """
    keys = found.groups or [one.upper().decode("ascii", "replace") for one in found.sequences]
    return np.unique(np.array(keys), return_inverse=True)[1]


def dealt(found: Labelled, rows: np.ndarray, parts: int, seed: int) -> np.ndarray:
    """Assign a part to each of `rows`: families are distributed in turn, class by class, in random order.

    Args:
        found: labelled sequences.
        rows: indices of the rows.
        parts: number of parts.
        seed: random seed of the order.
    """
    family, stratum = families(found)[rows], strata(found)[rows]
    random = np.random.default_rng(seed)
    _, first, member = np.unique(family, return_index=True, return_inverse=True)
    part = np.zeros(len(first), dtype=np.int64)
    turn = 0
    for own in np.unique(stratum[first]):
        chosen = random.permutation(np.flatnonzero(stratum[first] == own))
        part[chosen] = (turn + np.arange(len(chosen))) % parts
        turn += len(chosen)
    return part[member]


def own_folds(found: Labelled, count: int) -> np.ndarray:
    """Return the fold of each row by the column of the file, (n,) integers from 0 to `count` - 1.

    Args:
        found: labelled sequences with folds.
        count: number of folds.

    Raises:
        InputError: the file has folds of another number, rows without one, or a group in two folds.
    """
    assert found.folds is not None
    numbers = found.folds.require(found.places.__getitem__, found.path)
    first: dict[str, int] = {}
    for row, group in enumerate(found.groups or []):
        other = first.setdefault(group, row)
        if numbers[other] != numbers[row]:
            cells = [found.folds.cells[numbers[one]] for one in (other, row)]
            message = f"group {group!r} is in fold {cells[0]} ({found.places[other]}) and in {cells[1]}"
            raise InputError(message, file=found.path, place=found.places[row])
    ranks = found.folds.merged(count, found.path)
    return np.array([ranks[number] for number in numbers])


def require_folds(found: Labelled, count: int) -> None:
    """Check that the sequences can be divided into `count` folds.

    Args:
        found: labelled sequences.
        count: number of folds.

    Raises:
        InputError: they cannot.
    """
    if found.folds is not None:
        own_folds(found, count)
    else:
        bound = "the number of " + ("groups" if found.groups else "different sequences")
        require_count("--data.folds", count, 2, len(np.unique(families(found))), bound)


def held_out(found: Labelled, rows: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Select a random subset stratified by class, with families kept together; return a mask, (rows,) bool.

    Args:
        found: labelled sequences.
        rows: indices of the rows.
        fraction: approximate fraction of the rows to select.
        seed: random seed.
    """
    if not fraction or not len(rows):
        return np.zeros(len(rows), dtype=bool)
    family, stratum = families(found)[rows], strata(found)[rows]
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(rows), dtype=bool)
    _, first, member = np.unique(family, return_index=True, return_inverse=True)
    sizes = np.bincount(member)
    for own in np.unique(stratum[first]):
        order = random.permutation(np.flatnonzero(stratum[first] == own))
        wanted = max(1, round(fraction * sizes[order].sum())) if len(order) > 1 else 0
        taken = order[np.cumsum(sizes[order]) - sizes[order] < wanted]
        chosen |= np.isin(member, taken)
    return chosen


def split_labelled(
    found: Labelled,
    val: float,
    test: float,
    seed: int,
    fold: int | None = None,
    folds: int | None = None,
    recorded: bool = False,
) -> str:
    """Set the splits in place: folds, the column of the file, or random splits.

    Args:
        found: labelled sequences; existing `splits` are kept, and a missing validation split is taken from train.
        val: fraction of the training rows for validation, if there is no validation split.
        test: fraction of the rows for the test, without folds and splits.
        seed: seed of random splits.
        fold: index of the test fold.
        folds: number of folds, which replace splits of the file; they are those of the file if it has folds.
        recorded: whether a run has this split, which is kept: folds and splits that no option uses are reported.

    Returns:
        Description of the split, for the user.

    Raises:
        InputError: the file has folds of another number, or rows without one; or folds or splits that no option uses.
    """
    count = len(found)
    if folds is None and found.splits is None and not recorded:
        _require_no_split(found)
    if folds is None and found.folds is not None:
        advice = "kfold --folds {count} uses it" + (" with --data.split_column {column}" if found.folds.others else "")
        if found.folds.divides or found.folds.others:
            found.notes += unused_folds([found.folds], advice)
        else:
            advice = f"if it holds folds, {advice.format(count=found.folds.count)}"
            found.notes.append(f"column {found.folds.name} is not used for the split; {advice}")
    if found.unread:
        why = "there are folds" if folds is not None else "the run has a random split"
        found.notes.append(f"column {found.unread} holds splits and is not used, as {why}")
    splits = np.array(found.splits if found.splits is not None else ["train"] * count, dtype=object)
    if folds is not None:
        part = dealt(found, np.arange(count), folds, seed) if found.folds is None else own_folds(found, folds)
        splits = np.where(part == fold, "test", "train").astype(object)
        how = f"test fold {fold} of {folds}, at random"
        if found.folds is not None and fold is not None:
            how = f"test fold {fold} of {folds}, {found.folds.names_of(fold, folds)} in the column {found.folds.name}"
        how += "" if found.splits is None else ", in place of the splits of the table"
    elif found.splits is None:
        splits[held_out(found, np.arange(count), test, seed)] = "test"
        how = f"random, {test:.0%} test"
    else:
        how = "as in the file"
    if not (splits == "val").any():
        rows = np.flatnonzero(splits == "train")
        splits[rows[held_out(found, rows, val, seed + 1)]] = "val"
        how += f", {val:.0%} of the rest validation"
    found.splits = [str(one) for one in splits]
    if folds is not None or "random" in how or "rest" in how:
        together = "groups" if found.groups else "equal sequences"
        how += f" ({together} stay together)"
    return how


def _require_no_split(found: Labelled) -> None:
    """Raise InputError if a column says how to split the rows, which would be split at random."""
    at_random = "--data.split_column none for a random split"
    own = found.folds
    if own is not None and not (own.divides or own.decides):
        own = None
    if own is not None and own.others:
        raise InputError(several_columns([own.name, *own.others], own.cells.values()), file=found.path)
    if own is not None:
        named = f" --data.split_column {shlex.quote(own.name)}" if own.numbers_splits and not own.decides else ""
        advice = f"run kfold --folds {own.count}{named}, or pass --data.folds {own.count} --data.fold K{named}, "
        message = f"column {own.name} holds folds ({own.span()}): {own.for_folds(advice + 'or ' + at_random)}"
        raise InputError(message, file=found.path)
    if found.unread:
        message = (
            f"column {found.unread} holds splits: pass --data.split_column {shlex.quote(found.unread)}, or {at_random}"
        )
        raise InputError(message, file=found.path)


def by_position(found: Labelled, val: int, test: int) -> None:
    """Set the splits of records named ``chrom:start-end`` by their start, in place.

    Args:
        found: labelled sequences.
        val: first start of the validation split.
        test: first start of the test split.

    Raises:
        InputError: a name has another form.
    """
    splits = []
    for name, place in zip(found.ids, found.places):
        start = name.rpartition(":")[2].partition("-")[0]
        if not start.isdigit():
            raise InputError(f"record {name!r} is not named chrom:start-end", file=found.path, place=place)
        splits.append("train" if int(start) < val else "val" if int(start) < test else "test")
    found.splits = splits
