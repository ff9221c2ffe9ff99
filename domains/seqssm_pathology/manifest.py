"""The table of slides, cases and targets.

Slide tables have one row per slide (``slide_id``, ``case_id``, and ``label`` or a time and a flag); tables without
slides have one row per case. The slides of a case form one record; if the targets differ between slides of a case, each
slide is a record. Records of one patient are never in two splits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seqssm.errors import InputError, nearest, no_column
from seqssm.files.dialect import TableOptions
from seqssm.files.folds import is_fold_column, is_set_column
from seqssm.files.labels import require_one_class
from seqssm.files.numbers import Decimal
from seqssm.files.splits import NO_COLUMN, other_spellings, split_column, split_of_flag
from seqssm.files.tables import Table
from seqssm.files.tables import read_table as read_any_table
from seqssm.metrics.classes import RARE, class_list, rare_classes
from seqssm_pathology.answers import (
    LABELS,
    MISSING,
    Columns,
    Target,
    order_classes,
    plain_label,
    read_answers,
    require_classes,
)
from seqssm_pathology.files import Invalid, say, slide_id
from seqssm_pathology.patients import as_cases, as_slides, barcode_of, patients_of

Level = Literal["auto", "case", "slide"]
SUSPICIOUS = (
    0.35  # minimum fraction of (event, censored) pairs with the censored time longer; below it the flag may be inverted
)
DIFFERING, DIFFERING_FRACTION = (
    3,
    0.2,
)  # minimum number and fraction of cases with differing slide labels for which slides are the records
UNNAMED = "unnamed first column"  # a note of the table reader that is of no use to users


@dataclass
class Case:
    """A record: a case with its slides, or a slide, and its targets.

    Attributes:
        id: id as written by the user.
        slides: slide ids.
        patient: patient of the record; records of one patient stay in one split.
        label: class label.
        time: survival time.
        censored: censoring flag: 1 censored, 0 event observed.
        covariate: value of the covariate, for a baseline.
        value: number to predict.
        labels: 1 present, 0 absent, None unknown, for each label.
        targets: several targets by name: class, number, (time, censored) or labels; None if unknown.
    """

    id: str
    slides: list[str]
    patient: str = ""
    label: str | None = None
    time: float | None = None
    censored: int | None = None
    covariate: float | None = None
    value: float | None = None
    labels: tuple[float | None, ...] | None = None
    targets: dict[str, Any] = field(default_factory=dict)


@dataclass
class Manifest:
    """Records in file order.

    Attributes:
        cases: records by id.
        path: path of the file.
        level: whether a record is a case or a slide.
        barcodes: whether patients are determined from barcodes, because case ids do not group them.
        classes: class names in order.
        names: class names of each class among several targets, by column.
        alike: the name that is used for a patient, by its other spellings: ``P0`` by ``p0``.
        marks: distinct cells of each record in columns of splits or folds, by column.
    """

    cases: dict[str, Case]
    path: Path
    level: Literal["case", "slide"] = "case"
    barcodes: bool = False
    classes: list[str] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    alike: dict[str, str] = field(default_factory=dict)
    marks: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def kept_with(self, record: str) -> str:
        """Return the patient that a random split keeps a record with."""
        patient = self.cases[record].patient
        return self.alike.get(patient, patient)

    def records_of(self) -> dict[str, list[str]]:
        """Map the name of a record, slide or patient to record ids; the most specific meaning of a name wins."""
        found: dict[str, list[str]] = {}
        for case in self.cases.values():
            found.setdefault(case.patient, []).append(case.id)
        found |= {name: [name] for name in self.cases}
        return found | {slide: [case.id] for case in self.cases.values() for slide in case.slides}


def read_table(path: Path, keep_unnamed: bool = False) -> Table:
    """Read a manifest or split file with text cells, and report the notes of the table reader.

    Args:
        path: path of the file.
        keep_unnamed: whether to keep columns without a name, which pandas writes for its index.

    Raises:
        InputError: the file is not a table, or is corrupt.
    """
    table = read_any_table(path, TableOptions(pad_rows=True))
    if not keep_unnamed:
        unnamed = [name for name in table.columns if re.fullmatch(r"Unnamed: \d+", name)]
        table.frame = table.frame.drop(columns=unnamed)
    for note in table.notes:
        if not note.startswith((UNNAMED, "columns separated by")):
            say(f"{path}: {note}")
    return table


def read_manifest(
    source: Path | Table,
    target: Target | None,
    columns: Columns | None = None,
    invalid: Invalid = "error",
    classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    level: Level = "auto",
    decimal: Decimal = "auto",
) -> Manifest:
    """Read a manifest.

    Args:
        source: path of a CSV file in any dialect or ``.xlsx``, or a table in memory with text cells.
        target: prediction target whose columns are required; None for prediction.
        columns: names of the columns.
        invalid: treatment of rows without a usable target: ``"error"``, or ``"drop"`` (counted and reported).
        classes: classes of a trained model, in order (for several targets, by column); other labels are rejected.
        level: whether a record is a case or a slide; ``"auto"``: a slide if labels of many cases differ between slides.
        decimal: decimal mark of times and covariates.

    Raises:
        InputError: not a table, a missing column, an invalid value, or contradicting rows.
    """
    columns = columns or Columns()
    table = source if isinstance(source, Table) else read_table(source)
    path = table.path
    as_slides(table, columns)
    as_cases(table, columns)
    _require_columns(table, target, columns)
    for name in (columns.slide, columns.case):
        cells = table.frame.get(name, [])
        empty = [row for row, cell in enumerate(cells) if not cell or cell.lower() in MISSING]
        if empty:
            raise InputError(f"empty {name}", file=path, place=table.place(empty[0]))
    answers = read_answers(table, target, columns, decimal)
    for note in answers.notes:
        say(f"{path}: {note}")
    rows = _usable(table, answers.rows, columns, invalid)
    manifest = _collect(table, rows, columns, "case" if target is None and level == "auto" else level)
    if target is not None:  # patients are needed for splits only
        _find_patients(manifest, patients_of(table, [row.position for row in rows], columns), rows)
        _join_spellings(manifest)
        manifest.marks = _marks(table, rows, columns, manifest.level)
    if target == "classification":
        manifest.classes = _classes(manifest, table, columns.label, lambda case: case.label, classes)
    for name, kind in columns.several if target == "several" else ():
        if kind == "classification":
            known = classes[name] if isinstance(classes, Mapping) else None
            manifest.names[name] = _classes(manifest, table, name, lambda case, name=name: case.targets[name], known)
    if target == "survival":
        _warn_of_values(manifest)
    return manifest


def _require_columns(table: Table, target: Target | None, columns: Columns) -> None:
    """Reject a manifest without a required or named column; report slides without cases."""
    options = {"label_column": columns.label, "time_column": columns.time, "censor_column": columns.censored}
    options |= {"event_column": columns.event, "covariate_column": columns.covariate}
    path = table.path
    if columns.slide not in table.frame and columns.case not in table.frame:
        how = "" if target is None else "--data.slide_column and --data.case_column set other names"
        raise no_column(f"{columns.slide} or {columns.case}", table.columns, advice=how, file=path)
    needed: list[str] = []
    if target is not None:
        censored = "event_column" if columns.event is not None else "censor_column"
        needed = {
            "classification": ["label_column"],
            "regression": ["label_column"],
            "survival": ["time_column", censored],
        }.get(target, [])
        _require_several(table, target, columns)
    if columns.covariate is not None:
        needed.append("covariate_column")
    for option in needed:
        if options[option] not in table.frame:
            how = f"--data.{option} sets another name"
            if option == "censor_column":
                how += " (1 = censored), --data.event_column one with 1 = event"
            raise no_column(options[option], table.columns, advice=how, file=path)
    for option, name, usual in (
        ("slide_column", columns.slide, Columns.slide),
        ("case_column", columns.case, Columns.case),
    ):
        if name not in table.frame and name != usual:  # a typo here would put slides of one patient in two splits
            whose = "in the model's training" if target is None else f"--data.{option}"
            raise no_column(name, table.columns, option=whose, file=path)
    if target is not None and columns.split not in (None, NO_COLUMN, *table.frame):
        raise no_column(str(columns.split), table.columns, option="--data.split_column", file=path)
    if target is not None and columns.split in columns.used:
        raise InputError(f"--data.split_column {columns.split}: the column has another meaning", file=path)
    if columns.case not in table.frame:
        say(f"{path}: no column {columns.case}: every slide is treated as a separate case")


def _require_several(table: Table, target: Target, columns: Columns) -> None:
    """Reject a manifest without one of the columns of several targets, and one named like the group of labels."""
    names = list(columns.labels) if target == "labels" else []
    if target == "several":
        names = [name for name, _ in columns.several]
        names += [columns.flag] if any(kind == "survival" for _, kind in columns.several) else []
        kinds = dict(columns.several)
        if "label" in kinds.values() and kinds.get(LABELS, "label") != "label":
            message = f"--data.targets {LABELS}: this is the name of the targets of kind label; rename the column"
            raise InputError(message, file=table.path)
    for name in names:
        if name not in table.frame:
            option = "label_columns" if target == "labels" else "targets"
            raise no_column(name, table.columns, option=f"--data.{option}", file=table.path)


@dataclass
class _Row:
    """A usable row: position in the table, ids and targets."""

    position: int
    slide: str
    case: str
    answer: dict[str, Any]


def _usable(table: Table, answers: list[dict[str, Any] | str], columns: Columns, invalid: Invalid) -> list[_Row]:
    """Select the rows with a usable target; others raise InputError, or are dropped and counted."""
    bad = [(position, answer) for position, answer in enumerate(answers) if isinstance(answer, str)]
    if bad and (invalid == "error" or len(bad) == len(answers)):
        position, reason = bad[0]
        hint = f"; --data.invalid drop drops {len(bad)} of {len(answers)} rows"
        if len(bad) == len(answers):
            hint = "; no row is usable"
        raise InputError(f"{reason}{hint}", file=table.path, place=table.place(position))
    if bad:
        say(f"{table.path}: {len(bad)} rows without a usable answer dropped ({table.place(bad[0][0])}: {bad[0][1]})")
    slides = table.frame.get(columns.slide)
    cases = table.frame.get(columns.case)
    rows = []
    for position, answer in enumerate(answers):
        if isinstance(answer, dict):
            raw_case = None if cases is None else str(cases.iloc[position])
            raw_slide = raw_case if slides is None else str(slides.iloc[position])
            slide = slide_id(str(raw_slide))
            rows.append(_Row(position, slide, slide if raw_case is None else slide_id(raw_case), answer))
    return rows


def _collect(table: Table, rows: list[_Row], columns: Columns, level: Level) -> Manifest:
    """Join the rows of each record."""
    by_slide: dict[str, _Row] = {}
    by_case: dict[str, list[_Row]] = {}
    repeated = 0
    for row in rows:
        known = by_slide.setdefault(row.slide, row)
        if known is row:
            by_case.setdefault(row.case, []).append(row)
            continue
        if known.case != row.case:
            raise InputError(f"slide {row.slide} belongs to two cases, {known.case} and {row.case}", file=table.path)
        if known.answer != row.answer:
            raise _two_values(table, known, row, f"slide {row.slide}")
        repeated += 1
    if repeated:
        say(f"{table.path}: {repeated} repeated rows merged")
    found = _level(table, by_case, columns, level)
    cases: dict[str, Case] = {}
    for case, own in by_case.items():
        if found == "slide":
            cases |= {row.slide: Case(row.slide, [row.slide], case, **row.answer) for row in own}
        else:
            cases[case] = Case(case, [row.slide for row in own], case, **own[0].answer)
    return Manifest(cases, table.path, found)


def _two_values(table: Table, a: _Row, b: _Row, what: str, hint: str = "") -> InputError:
    name = next(name for name in a.answer if a.answer[name] != b.answer[name])
    lines = f"lines {table.lines[a.position]} and {table.lines[b.position]}"
    message = f"{what} has two values of {name}: {a.answer[name]}, {b.answer[name]}{hint}"
    return InputError(message, file=table.path, place=lines)


def _level(table: Table, by_case: dict[str, list[_Row]], columns: Columns, level: Level) -> Literal["case", "slide"]:
    """Decide whether a record is a case or a slide."""
    if level == "slide":
        return "slide"
    several = [own for own in by_case.values() if len(own) > 1]
    differing = [own for own in several if any(row.answer != own[0].answer for row in own)]
    if not differing:
        return "case"
    of_slides = all(set(row.answer) <= {"label", "covariate", "value", "labels"} for own in differing for row in own)
    if level == "auto" and of_slides and len(differing) >= max(DIFFERING, DIFFERING_FRACTION * len(several)):
        say(
            f"{table.path}: {columns.label} differs between the slides of {len(differing)} of {len(several)} cases: "
            "every slide is a separate record, the slides of a case stay in one split (--data.level case: refused)"
        )
        return "slide"
    own = differing[0]
    other = next(row for row in own if row.answer != own[0].answer)
    hint = "; --data.level slide makes every slide a separate record" if of_slides else ""
    raise _two_values(table, own[0], other, f"case {own[0].case}", hint)


def _marks(table: Table, rows: list[_Row], columns: Columns, level: str) -> dict[str, dict[str, list[str]]]:
    """Return the distinct cells of each record in the columns of splits, by column."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in table.columns:
        named = name == columns.split or is_fold_column(name) or is_set_column(name) or split_of_flag(name)
        if name in columns.used or not (named or split_column(table, [name])):
            continue
        own = found.setdefault(name, {})
        for row in rows:
            cells = own.setdefault(row.slide if level == "slide" else row.case, [])
            cell = str(table.frame[name].iloc[row.position]).strip()
            cells += [cell] if cell not in cells else []
    return found


def _find_patients(manifest: Manifest, given: dict[int, str], rows: list[_Row]) -> None:
    """Set the patients of the records: those of a column, else by barcodes of one patient; report them.

    Args:
        manifest: records, whose patients are their cases.
        given: patient of each row of the table with one, by position.
        rows: the usable rows.
    """
    found: dict[str, str] = {}  # patient of each case
    for row in rows:
        if row.position in given:
            patient = found.setdefault(row.case, given[row.position])
            if patient != given[row.position]:
                message = f"case {row.case} has two patients: {patient} and {given[row.position]}"
                raise InputError(message, file=manifest.path)
    names: dict[str, set[str]] = {}
    for case in manifest.cases.values():
        name = found.get(case.patient) or barcode_of(case.patient)
        if name is not None:
            names.setdefault(name, set()).add(case.patient)
    shared = [name for name, cases in names.items() if len(cases) > 1]
    if not shared:
        return
    for case in manifest.cases.values():
        case.patient = found.get(case.patient) or barcode_of(case.patient) or case.patient
    manifest.barcodes = not found
    several = f"{len(shared)} patients have several cases"
    how = f"{several} (first: {shared[0]})" if found else f"warning: {several} by their barcodes (first: {shared[0]})"
    say(f"{manifest.path}: {how}; the cases of a patient are kept in one split")


def _join_spellings(manifest: Manifest) -> None:
    """Find patients whose names are probably spellings of one, and report it."""
    manifest.alike, notes = other_spellings(case.patient for case in manifest.cases.values())
    for note in notes:
        say(f"{manifest.path}: {note}")


# -- classes and warnings ----------------------------------------------------------------------------------------------


def _classes(
    manifest: Manifest,
    table: Table,
    column: str,
    label_of: Callable[[Case], str | None],
    known: Sequence[str] | Mapping[str, Sequence[str]] | None,
) -> list[str]:
    """Return the classes of a column: those of its labels, or `known` ones, which must include all labels."""
    advice = "Several labels per case: one 0/1 column per label (--data.target labels --data.label_columns)"
    require_one_class(list(table.frame[column]), manifest.path, lambda row: table.place(row, column), advice)
    labels = [label for case in manifest.cases.values() if (label := label_of(case)) is not None]
    if known is None:
        counts = Counter(labels)
        warning = require_classes(labels, table, column)
        rare = (
            rare_classes(counts) if max(counts.values(), default=0) >= RARE else ""
        )  # if no class reaches this count, all are rare
        if warning is not None or rare:
            say(f"{manifest.path}: {warning or f'warning: {rare}'}")
        return order_classes(set(labels))
    other = list(dict.fromkeys(label for label in labels if label not in known))
    if other:
        count = sum(label in other for label in labels)
        row = next(row for row, cell in enumerate(table.frame[column]) if cell and plain_label(cell) in other)
        names = class_list(other[:5])
        message = f"{count} cases have classes unknown to the model: {names}; known: {class_list(known)}"
        raise InputError(f"{message}{nearest(other[0], known)}", file=manifest.path, place=table.place(row))
    return list(known)


def _warn_of_values(manifest: Manifest) -> None:
    """Warn if censored times are much shorter than event times: censored patients usually have as long a follow-up."""
    times = np.array([case.time for case in manifest.cases.values()])
    censored = np.array([case.censored for case in manifest.cases.values()], dtype=bool)
    if censored.sum() < 5 or (~censored).sum() < 5:
        return
    gaps = times[censored][:, None] - times[~censored][None]
    longer = (gaps > 0).mean() + (gaps == 0).mean() / 2
    if longer < SUSPICIOUS:
        say(
            f"{manifest.path}: warning: censored cases have far shorter times than those with an event; is the flag "
            "inverted? 1 must mean censored (--data.event_column names a column in which 1 means event)"
        )
