"""Labelled sequences: a table with a sequence and a label column, or one FASTA file per class.

Labels are classes (one or several per sequence) or numbers. `Labelled.notes` has warnings about the data set:
contradictory labels, sequences in two splits, letter case or length that reveals the class.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.dialect import TableOptions
from seqssm.files.folds import FoldColumn
from seqssm.files.labels import require_one_class
from seqssm.files.numbers import LARGEST, Decimal, numbers
from seqssm.files.splits import other_spellings
from seqssm.files.tables import Table, read_table, table_of_frame
from seqssm.metrics.classes import class_list
from seqssm_dna.columns import find_column, find_trained_column, invalid_rows, patients_note, read_folds, read_splits
from seqssm_dna.genome import Genome
from seqssm_dna.intervals import Interval
from seqssm_dna.labels import class_numbers, label_lists, order_classes, require_classes
from seqssm_dna.letters import Findings, reverse_complement
from seqssm_dna.records import read_records

Target = Literal["classification", "multilabel", "regression"]
Invalid = Literal["error", "drop", "keep"]

SEQUENCE = ("sequence", "seq", "dna", "dna_sequence", "sequences", "nucleotides")
LABEL = ("label", "labels", "class", "target", "y", "expression", "value", "activity")
ID = ("id", "name", "sequence_id", "seq_id", "record")
SEVERAL = "Several labels per sequence: --data.target labels"
LOWER = string.ascii_lowercase.encode()
EXCEL_CELL = 32_767  # maximum number of letters in a cell of a workbook


@dataclass(frozen=True)
class LabelColumns:
    """Names of columns; None is detected by its usual names.

    Attributes:
        sequence: column of the sequences.
        label: column of the classes, of several classes separated by ``;`` or ``|``, or of numbers.
        labels: several columns instead of `label`, of 0 and 1 (multilabel) or of numbers (regression).
        split: column with ``train``, ``valid`` or ``test``.
        group: column of groups (a gene, a family); rows of one group belong to one split.
        id: column of identifiers.
    """

    sequence: str | None = None
    label: str | None = None
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None
    id: str | None = None


@dataclass
class Labelled:
    """Labelled sequences, in file order.

    Attributes:
        path: the file, or the files' names.
        target: kind of the labels; None without labels.
        ids: identifiers of the rows; not necessarily unique.
        sequences: letters as in the file.
        truth: class indices, (n,) int64; zeros and ones, (n, m) float32; numbers, (n, t) float64; None without labels.
        classes: names of the classes, or of the columns of numbers.
        splits: split of each row; None if the file has none.
        groups: group of each row; None if there are none.
        places: location of each row, for messages.
        notes: messages to report.
        problems: row -> why its letters cannot be used; the row's sequence is empty.
        numbered: whether the ids are the numbers of the lines.
        folds: the column of folds; None if the file has none.
        unread: another column of splits than ``split``, which no option names; empty if there is none.
    """

    path: Path
    target: Target | None
    ids: list[str]
    sequences: list[bytes]
    truth: np.ndarray | None
    classes: list[str]
    splits: list[str] | None = None
    groups: list[str] | None = None
    places: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    numbered: bool = False
    folds: FoldColumn | None = None
    unread: str = ""

    def __len__(self) -> int:
        return len(self.sequences)

    def rows(self, which: np.ndarray) -> Labelled:
        """Select rows.

        Args:
            which: mask or indices of the rows.
        """
        chosen = np.flatnonzero(which) if which.dtype == bool else which

        def of(values: list | None) -> Any:
            return None if values is None else [values[row] for row in chosen]

        truth = None if self.truth is None else self.truth[chosen]
        return Labelled(
            self.path, self.target, of(self.ids), of(self.sequences), truth, self.classes, of(self.splits),
            of(self.groups), of(self.places), self.notes, numbered=self.numbered,
            folds=None if self.folds is None else self.folds.rows(chosen.tolist()), unread=self.unread,
        )  # fmt: skip

    def of_split(self, split: str) -> Labelled:
        """Select the rows of a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
        """
        return self.rows(np.array([one == split for one in self.splits or []], dtype=bool))


def read_labelled(
    source: str | Path | pd.DataFrame | Mapping[str, str | Path | Sequence[str | Path]],
    target: Target | None = "classification",
    columns: LabelColumns | None = None,
    classes: Sequence[str] | None = None,
    invalid: Invalid = "error",
    options: TableOptions | None = None,
    decimal: Decimal = "auto",
    flags: Mapping[str, str] | None = None,
) -> Labelled:
    """Read labelled sequences.

    Args:
        source: CSV, TSV, Excel or Parquet file or a data frame; or a mapping from classes to one or more FASTA files.
        target: kind of the labels; None reads the sequences only.
        columns: names of the columns of a table.
        classes: classes of a trained model, in order; other labels are errors.
        invalid: policy for rows with an empty or invalid sequence or without a label: ``"error"``, ``"drop"``
            (counted), or ``"keep"`` for prediction, which lists them in `Labelled.problems`, ignores a column split,
            and searches the usual names for a column that the table lacks.
        options: options for reading a table.
        decimal: decimal mark of numbers.
        flags: command-line names of the table options, for messages.

    Raises:
        InputError: no table, a missing column, an invalid row, only one class, or a group in two splits; the message
            has the line.
    """
    if isinstance(source, Mapping):
        found = _by_class(source, target, classes)
    else:
        table = (
            table_of_frame(source, options, text=True)
            if isinstance(source, pd.DataFrame)
            else read_table(source, options, flags=flags)
        )
        found = _of_table(table, target, columns or LabelColumns(), classes, invalid, decimal, flags)
    if found.target == "classification" and classes is None:
        assert found.truth is not None
        found.notes += require_classes(found.classes, found.truth, found.path)
    if invalid != "keep":
        found.notes += _remarks(found)
    _check_groups(found)
    return found


def labels_of(source: str | Path, column: str | None = None, flags: Mapping[str, str] | None = None) -> list[str]:
    """Read the non-empty cells of the label column of a table.

    Args:
        source: CSV, TSV, Excel or Parquet file.
        column: name of the column; by default one of the usual names.
        flags: command-line names of the table options, for messages.

    Raises:
        InputError: no table, or no such column.
    """
    table = read_table(source, flags=flags)
    name = find_column(table, column, LABEL, "label", flags)
    assert name is not None
    return [cell for cell in table.frame[name] if cell]


# -- one FASTA file per class ------------------------------------------------------------------------------------------


def _by_class(source: Mapping[str, Any], target: Target | None, classes: Sequence[str] | None) -> Labelled:
    if target not in (None, "classification"):
        raise InputError(f"one FASTA file per class requires target classification, not {target}")
    names = order_classes(str(name) for name in source)
    found = Labelled(Path(), target, [], [], None, list(classes or names))
    labels: list[str] = []
    seen: dict[Path, str] = {}
    for name in names:
        given = source[name]
        for path in [Path(given)] if isinstance(given, str | Path) else [Path(one) for one in given]:
            if seen.setdefault(path.resolve(), name) != name:
                raise InputError(f"is given for two classes, {seen[path.resolve()]} and {name}", file=path)
            findings = Findings()
            for record in read_records(path, findings):
                place = f"record {record.index + 1} {record.name!r}"
                if not record.sequence:
                    raise InputError("the record is empty; remove it", file=path, place=place)
                labels.append(name)
                found.ids.append(record.name)
                found.sequences.append(record.sequence)
                found.places.append(f"{path.name}, {place}")
            found.notes += [f"{path.name}: {note}" for note in findings.report()]
    found.path = Path(", ".join(path.name for path in seen))
    if target is not None:
        found.truth = class_numbers(labels, found.classes, found.path, found.places)
    return found


def labelled_intervals(
    intervals: Sequence[Interval], genome: Genome, path: str | Path, classes: Sequence[str] | None = None
) -> Labelled:
    """Read the labelled sequences of a BED file whose header line has a column ``label`` (classes).

    Args:
        intervals: result of `seqssm_dna.intervals.read_bed` with this genome.
        genome: genome of the intervals.
        path: path of the BED file, used in error messages.
        classes: classes of a trained model, in order; other labels are errors.

    Raises:
        InputError: an interval has no label, or there is only one class; the message has the line.
    """
    places = [f"line {one.line}" for one in intervals]
    labels = []
    for one, place in zip(intervals, places):
        if one.label is None or not one.label:
            message = "no label; expected a header line chrom start end label"
            raise InputError(message, file=path, place=place)
        labels.append(one.label)
    require_one_class(labels, Path(path), places.__getitem__, "Several labels per sequence need a table")
    known = list(classes) if classes is not None else order_classes(labels)
    splits = [one.split for one in intervals]
    found = Labelled(
        Path(path),
        "classification",
        [one.name or f"{one.chrom}:{one.start}-{one.end}" for one in intervals],
        [one.sequence(genome) for one in intervals],
        class_numbers(labels, known, Path(path), places),
        known,
        None if None in splits else [str(split) for split in splits],
        places=places,
    )
    if classes is None and found.truth is not None:
        found.notes += require_classes(known, found.truth, found.path)
    found.notes += _remarks(found)
    return found


# -- tables ------------------------------------------------------------------------------------------------------------


def _of_table(
    table: Table,
    target: Target | None,
    columns: LabelColumns,
    classes: Sequence[str] | None,
    invalid: Invalid,
    decimal: Decimal,
    flags: Mapping[str, str] | None,
) -> Labelled:
    find = find_trained_column if invalid == "keep" else find_column
    sequence = find(table, columns.sequence, SEQUENCE, "sequence", flags)
    assert sequence is not None
    labels = list(columns.labels)
    if target is not None and not labels:
        labels = [find_column(table, columns.label, LABEL, "label", flags) or ""]
    for name in labels:
        find_column(table, name, (), "label", flags)
    bad = invalid_rows(table, sequence, labels, target == "multilabel")
    problems: dict[int, str] = {}
    if invalid == "keep" and len(bad) < len(table):
        damaged = [(row, place, why) for row, (place, why) in bad.items() if table.frame[sequence][row]]
        problems = {row: f"{table.place(row, place)}: {why}" for row, place, why in damaged}
    elif bad:
        row, (column, reason) = next(iter(bad.items()))
        if invalid == "error" or len(bad) == len(table):
            option = f"{flags['invalid']} drop" if flags and "invalid" in flags else "invalid='drop'"
            hint = f"; {option} drops such rows" if invalid == "error" and len(bad) < len(table) else ""
            raise InputError(f"{reason}{hint}", file=table.path, place=table.place(row, column))
        table.notes.append(f"{len(bad)} rows dropped ({table.place(row)}: {reason})")
        table = table.rows(np.array([row not in bad for row in range(len(table))]))
    ids = find(table, columns.id, ID, "id", flags, needed=False)
    places = [table.place(row) for row in range(len(table))]
    folds, splits, unread = None, None, ""
    if invalid != "keep":
        folds = read_folds(table, columns.split)
        used = {sequence, ids, columns.group, *labels} - {None}
        if columns.split in {sequence, *labels}:
            raise InputError(f"--data.split_column {columns.split}: the column has another meaning", file=table.path)
        splits, unread = read_splits(table, columns.split, folds, flags, used)
        table.notes += [] if columns.group else patients_note(table, flags)
    notes = [note for note in table.notes if not note.startswith("columns separated by")]
    cells = table.frame[sequence]
    found = Labelled(
        table.path,
        target,
        list(table.frame[ids]) if ids else [str(line) for line in table.lines],
        [b"" if row in problems else cell.encode("utf-8", "backslashreplace") for row, cell in enumerate(cells)],
        None,
        list(classes or []),
        splits,
        list(table.frame[columns.group])
        if find_column(table, columns.group, (), "group", flags, needed=False)
        else None,
        places,
        notes,
        problems,
        ids is None,
        folds,
        unread,
    )
    if table.dialect.kind == "xlsx" and (cells.str.len() == EXCEL_CELL).any():
        message = f"a sequence of {EXCEL_CELL} letters, the limit of Excel cells; save the table as CSV or Parquet"
        row = int((cells.str.len() == EXCEL_CELL).to_numpy().argmax())
        raise InputError(message, file=table.path, place=table.place(row, sequence))
    if target is not None:
        _label(found, table, target, labels, classes, decimal, flags)
    return found


def _label(
    found: Labelled,
    table: Table,
    target: Target,
    labels: list[str],
    classes: Sequence[str] | None,
    decimal: Decimal,
    flags: Mapping[str, str] | None,
) -> None:
    """Set the labels and the classes."""
    if target == "regression" or (target == "multilabel" and len(labels) > 1):
        values, notes = numbers(table, labels, decimal, flags)
        found.notes += notes
        found.classes = labels
        if target == "multilabel":
            wrong = np.argwhere((values != 0) & (values != 1))
            if len(wrong):
                row, column = (int(one) for one in wrong[0])
                message = f"{values[row, column]:g} is neither 0 nor 1"
                raise InputError(message, file=table.path, place=table.place(row, labels[column]))
        large = np.argwhere(np.abs(values) > LARGEST)
        if len(large):
            row, column = (int(one) for one in large[0])
            message = f"{values[row, column]:g} is above {LARGEST:g} in magnitude"
            raise InputError(message, file=table.path, place=table.place(row, labels[column]))
        if classes is not None and list(classes) != labels:
            message = f"columns {class_list(labels)}, but the model was trained on {class_list(classes)}"
            raise InputError(message, file=table.path)
        found.truth = values.astype(np.float32) if target == "multilabel" else values
        return
    if target == "multilabel":
        found.truth, found.classes, notes = label_lists(classes, table, labels[0])
        found.notes += notes
        return
    cells = list(table.frame[labels[0]])
    require_one_class(cells, table.path, lambda row: table.place(row, labels[0]), SEVERAL)
    found.classes = list(classes) if classes is not None else order_classes(cells)
    places = [table.place(row, labels[0]) for row in range(len(table))]
    found.truth = class_numbers(cells, found.classes, table.path, places)


# -- checks ------------------------------------------------------------------------------------------------------------


def _remarks(found: Labelled) -> list[str]:
    """Return warnings about duplicates, duplicates in two splits, and case or length that reveals the class."""
    upper = pd.Series([one.decode().upper() for one in found.sequences], dtype="str")
    codes, _ = pd.factorize(upper)
    notes = []
    repeated = len(codes) - len(np.unique(codes))
    if repeated:
        notes.append(f"{repeated} duplicate sequences")
    if found.truth is not None and repeated and found.target != "regression":
        _, labels = np.unique(found.truth.reshape(len(found), -1), axis=0, return_inverse=True)
        pairs = np.unique(np.stack([codes, labels.ravel()]), axis=1)
        mixed = int((np.bincount(pairs[0]) > 1).sum())
        if mixed:
            notes.append(f"warning: {mixed} sequences occur with different labels")
    notes += shared_sequences(found)
    if found.truth is None or found.target != "classification":
        return notes
    lower = np.array([1 - len(one.translate(None, LOWER)) / len(one) for one in found.sequences])
    means = [float(lower[found.truth == k].mean()) for k in range(len(found.classes)) if (found.truth == k).any()]
    if max(means) - min(means) > 0.02:
        notes.append("warning: the fraction of lower-case letters differs between classes; read them in upper case")
    sizes = [{len(found.sequences[row]) for row in np.flatnonzero(found.truth == k)} for k in range(len(found.classes))]
    sizes = [one for one in sizes if one]
    if len(sizes) > 1 and sum(map(len, sizes)) == len(set.union(*sizes)):
        notes.append("warning: no length occurs in two classes: the length reveals the class")
    return notes


def shared_sequences(found: Labelled) -> list[str]:
    """Return warnings about test (or validation) sequences that are also in the training split, on either strand.

    Args:
        found: the sequences; without splits there are no warnings.
    """
    if found.splits is None:
        return []
    upper = pd.Series([one.decode().upper() for one in found.sequences], dtype="str")
    splits = np.array(found.splits)
    train = set(upper[splits == "train"])
    notes = []
    for split in ("val", "test"):
        own = list(upper[splits == split])
        both = sum(one in train for one in own)
        if both:
            notes.append(f"warning: {both} of {len(own)} {split} sequences also occur in train")
        turned = {reverse_complement(one.encode()).decode() for one in train}
        mirrored = sum(one in turned and one not in train for one in own)
        if mirrored:
            notes.append(
                f"warning: {mirrored} of {len(own)} {split} sequences are reverse complements of training sequences"
            )
    return notes


def _check_groups(found: Labelled) -> None:
    """Use one spelling of the name of a group for random splits, and reject groups with rows in two given splits."""
    if found.groups is None:
        return
    alike, notes = other_spellings(found.groups, "group")
    found.notes += notes
    splits = found.splits or []
    found.groups = found.groups if splits else [alike.get(name, name) for name in found.groups]
    first: dict[str, int] = {}
    for row, (group, split) in enumerate(zip(found.groups, splits)):
        other = first.setdefault(group, row)
        if splits[other] != split:
            message = f"group {group!r} is in {splits[other]} ({found.places[other]}) and in {split}"
            raise InputError(
                f"{message}; all rows of a group must be in one split", file=found.path, place=found.places[row]
            )
