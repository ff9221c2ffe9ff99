"""Targets in a manifest: class labels, survival times and event flags in the notations of users and cohort portals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from seqssm.errors import InputError
from seqssm.files.notation import is_number
from seqssm.files.numbers import LARGEST, Decimal, numbers
from seqssm.files.numbers import MISSING as NO_NUMBER
from seqssm.files.tables import Table
from seqssm.metrics.classes import UNKNOWN, unknown_classes

Target = Literal["classification", "survival", "regression", "labels", "several"]
Kind = Literal["classification", "survival", "regression", "label"]
LABELS = "labels"  # name of the labels among several targets

MISSING = {"nan", "na", "n/a", "null"}
"""Missing labels and ids, as R and others write them; "none" can be a class."""
NOT_KNOWN = re.compile(r"\[[\w ]+\]|'--|not (reported|available|applicable)", re.IGNORECASE)
"""Missing values as the TCGA and GDC portals write them."""

# flags with a meaning independent of the column
EVENT = {"dead", "deceased", "died", "death", "event", "recurred", "recurrence", "relapsed", "relapse", "progressed",
         "progression", "uncensored"}  # fmt: skip
CENSORED = {"alive", "living", "survived", "censored", "no event", "no death", "not dead", "not deceased", "not died",
            "non-event", "nonevent", "without event", "event free", "event-free", "disease free", "disease-free",
            "diseasefree", "no relapse", "no recurrence", "no progression",
            "not relapsed", "not recurred", "not progressed", "lost to follow-up",
            "progression free", "progression-free"}  # fmt: skip
# flags whose meaning depends on the column
YES, NO = {"1", "true", "t", "yes", "y"}, {"0", "false", "f", "no", "n"}
PRESENT = YES | {"positive", "pos", "+", "present", "mutated", "mutant", "mut", "amplified"}
ABSENT = NO | {"negative", "neg", "-", "absent", "wildtype", "wild type", "wild-type", "wt"}
FLAGS = "0 and 1, true and false, yes and no, dead and alive, 1:DECEASED and 0:LIVING"
LONGEST = 4e9  # survival times may have any unit, and a human life has fewer seconds
LISTED = 8  # maximum number of distinct values in a message


@dataclass(frozen=True)
class Columns:
    """Names of the manifest's columns.

    Attributes:
        slide: slide ids; may be absent, then every row is a case.
        case: case ids; may be absent, then every slide is a case.
        label: column of class labels, text or numbers; for regression, of the numbers.
        time: column of survival times, in any unit.
        censored: column of censoring flags (1 = censored, 0 = event observed).
        event: column of event flags (1 = event observed), instead of `censored`.
        covariate: numeric column, such as the age, for a baseline.
        labels: columns of labels that are present or absent, for target ``labels``.
        several: (column, kind) of each target, for target ``several``.
        split: column of splits or folds that the user chose, or ``none``.
    """

    slide: str = "slide_id"
    case: str = "case_id"
    label: str = "label"
    time: str = "survival_months"
    censored: str = "censorship"
    event: str | None = None
    covariate: str | None = None
    labels: tuple[str, ...] = ()
    several: tuple[tuple[str, Kind], ...] = ()
    split: str | None = None

    @property
    def flag(self) -> str:
        """Column of event or censoring flags."""
        return self.event or self.censored

    @property
    def used(self) -> set[str]:
        """All names of columns with a meaning."""
        own = (self.slide, self.case, self.label, self.time, self.flag, self.covariate or self.case)
        return {*own, *self.labels, *(name for name, _ in self.several)}


@dataclass
class Answers:
    """Targets of a table by row.

    Attributes:
        rows: fields of `manifest.Case` per row, or the reason why the row is unusable.
        notes: remarks for the user on how values were interpreted.
    """

    rows: list[dict[str, Any] | str]
    notes: list[str]


def read_answers(table: Table, target: Target | None, columns: Columns, decimal: Decimal = "auto") -> Answers:
    """Read the columns that a target requires.

    Args:
        table: manifest with text columns.
        target: prediction target; None requires no columns.
        columns: names of the columns.
        decimal: decimal mark of times and covariates.

    Raises:
        InputError: the decimal mark is ambiguous, or no flag can be interpreted.
    """
    rows: list[dict[str, Any] | str] = [{} for _ in range(len(table))]
    notes: list[str] = []
    if target == "classification":
        _merge(rows, [_label_of(cell, columns.label) for cell in table.frame[columns.label]])
    elif target == "survival":
        times, more = _numbers(table, columns.time, decimal)
        notes += more
        _merge(rows, [_time_of(value, columns.time) for value in times])
        flags, more = _flags(table, columns)
        notes += more
        _merge(rows, flags)
    elif target == "regression":
        values, more = _numbers(table, columns.label, decimal)
        notes += more
        _merge(rows, [value if isinstance(value, str) else {"value": value} for value in values])
    elif target == "labels":
        _merge(rows, [one if isinstance(one, str) else {"labels": one} for one in _labels(table, columns.labels)])
    elif target == "several":
        found, notes = _several(table, columns, decimal)
        _merge(rows, found)
    if columns.covariate is not None:
        values, more = _numbers(table, columns.covariate, decimal)
        notes += more
        _merge(rows, [value if isinstance(value, str) else {"covariate": value} for value in values])
    return Answers(rows, notes)


def _merge(rows: list[dict[str, Any] | str], found: Sequence[dict[str, Any] | str]) -> None:
    """Add fields to the rows; the first reason is kept."""
    for position, one in enumerate(found):
        known = rows[position]
        if isinstance(known, dict):
            rows[position] = one if isinstance(one, str) else known | one


# -- labels ------------------------------------------------------------------------------------------------------------


def plain_label(cell: str) -> str:
    """Normalise a label: ``1.0``, written by tools for integer columns with gaps, is class ``1``."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", cell)


def _label_of(cell: str, name: str) -> dict[str, Any] | str:
    if not cell:
        return f"empty {name}"
    if cell.lower() in MISSING or NOT_KNOWN.fullmatch(cell):
        return f"{name} is {cell}, a placeholder for a missing value"
    return {"label": plain_label(cell)}


def _is_missing(cell: str) -> bool:
    return not cell or cell.lower() in MISSING or cell.lower() in NO_NUMBER or bool(NOT_KNOWN.fullmatch(cell))


def _signed(cells: list[str]) -> list[str]:
    """Spell out the ``-`` of a column whose only other mark is ``+``, where it is not a missing value."""
    marks = {cell for cell in cells if cell == "-" or not _is_missing(cell)}
    return ["negative" if cell == "-" else cell for cell in cells] if marks == {"+", "-"} else cells


def _labels(table: Table, names: Sequence[str]) -> list[tuple[float | None, ...] | str]:
    """Return per row 1 (present), 0 (absent) or None (unknown) for each label, or the reason why it is unusable."""
    found: list[tuple[float | None, ...] | str] = []
    columns = [_signed([str(cell).strip() for cell in table.frame[name]]) for name in names]
    for cells in zip(*columns):
        row: list[float | None] = []
        reason = ""
        for name, cell in zip(names, cells):
            text = re.sub(r"^([01])[.,]0+$", r"\1", cell.lower())
            if _is_missing(cell) or text in UNKNOWN:
                row.append(None)
            elif text in PRESENT or text in ABSENT:
                row.append(float(text in PRESENT))
            else:
                reason = reason or f"{name} is {cell!r}; expected 1 or 0, yes or no, positive or negative, or empty"
        if all(one is None for one in row):
            reason = reason or f"none of {', '.join(names)} is known"
        found.append(reason or tuple(row))
    return found


def _several(table: Table, columns: Columns, decimal: Decimal) -> tuple[list[dict[str, Any] | str], list[str]]:
    """Read several targets; an empty cell is an unknown target (None), a row needs at least one known target."""
    notes: list[str] = []
    parts: dict[str, list[Any]] = {}  # values, None or reasons by target
    for name, kind in columns.several:
        cells = [str(cell) for cell in table.frame[name]]
        missing = [_is_missing(cell) for cell in _signed(cells)]
        if kind == "classification":
            found: list[Any] = [plain_label(cell) for cell in cells]
        elif kind in ("regression", "survival"):
            found, more = _numbers(table, name, decimal)
            notes += more
        else:
            continue
        if kind == "survival":
            flags, more = _flags(table, columns)
            notes += more
            missing = [m or _kind(str(cell)) == "missing" for m, cell in zip(missing, table.frame[columns.flag])]
            found = [_followed(_time_of(time, name), flag) for time, flag in zip(found, flags)]
        parts[name] = [None if m else value for m, value in zip(missing, found)]
        wrong = [isinstance(value, str) and kind != "classification" for value in parts[name]]
        parts[name] = [_Reason(value) if w else value for w, value in zip(wrong, parts[name])]
    labels = [name for name, kind in columns.several if kind == "label"]
    if labels:
        read = _labels(table, labels)
        none = f"none of {', '.join(labels)} is known"
        parts[LABELS] = [None if one == none else _Reason(one) if isinstance(one, str) else one for one in read]
    rows: list[dict[str, Any] | str] = []
    for values in zip(*parts.values()):
        reason = next((str(value) for value in values if isinstance(value, _Reason)), "")
        if all(value is None for value in values):
            reason = f"none of {', '.join(name for name, _ in columns.several)} is known"
        rows.append(reason or {"targets": dict(zip(parts, values))})
    return rows, notes


class _Reason(str):
    """Why a row is unusable."""


def _followed(time: dict[str, Any] | str, flag: dict[str, Any] | str) -> Any:
    if isinstance(time, str):
        return time
    return flag if isinstance(flag, str) else (time["time"], flag["censored"])


def order_classes(labels: set[str]) -> list[str]:
    """Sort class names, numerically if all are numbers."""
    numeric = all(re.fullmatch(r"-?\d+(\.0+)?", label) for label in labels)
    return sorted(labels, key=float) if numeric else sorted(labels)


def require_classes(labels: Sequence[str], table: Table, name: str) -> str | None:
    """Check that a label column holds classes.

    Args:
        labels: labels of the cases.
        table: the manifest.
        name: name of the column.

    Returns:
        Warning text, or None.

    Raises:
        InputError: the column holds a measured quantity.
    """
    classes, count = set(labels), len(labels)
    numeric = all(re.fullmatch(r"[+-]?\d*[.,]?\d+(e[+-]?\d+)?", one, re.IGNORECASE) for one in classes)
    if len(classes) > 10 and numeric and any(re.search(r"[.,e]", one, re.IGNORECASE) for one in classes):
        raise InputError(
            f"{name} has {len(classes)} different numbers in {count} cases: this is a regression target; pass "
            "--data.target regression, group the numbers into classes, or choose another column with "
            "--data.label_column",
            file=table.path,
        )
    for mark in ";|":
        parts = {one: [part.strip() for part in one.split(mark)] for one in classes}
        pieces = Counter(part for one in parts.values() for part in set(one))
        if any(len(one) > 1 for one in parts.values()) and len(pieces) < len(classes) and min(pieces.values()) > 1:
            joined = next(one for one in sorted(classes) if mark in one)
            return (
                f"warning: {name} seems to contain several labels per case ({joined!r}); each of the {len(classes)} "
                f"combinations is treated as a separate class. To learn {', '.join(sorted(pieces))} separately, make a "
                "yes/no column of each (--data.target labels --data.label_columns)"
            )
    placeholders = unknown_classes(sorted(classes))
    if placeholders:
        cases = sum(one in placeholders for one in labels)
        return (
            f"warning: {name} is {placeholders[0]!r} in {cases} cases, which is a class of its own; if it means that "
            "the label is missing, leave these cells empty and pass --data.invalid drop"
        )
    if len(classes) > max(2, count / 2):
        return f"warning: {len(classes)} classes in {count} cases; check that {name} is a class label"
    return None


# -- numbers -----------------------------------------------------------------------------------------------------------


def _numbers(table: Table, name: str, decimal: Decimal) -> tuple[list[float | str], list[str]]:
    """Return (a finite number or the reason why it is missing, per row; notes)."""
    cells = [str(cell) for cell in table.frame[name]]
    found: list[float | str] = [""] * len(cells)
    good = np.zeros(len(cells), dtype=bool)
    for position, cell in enumerate(cells):
        if cell.lower() in NO_NUMBER or NOT_KNOWN.fullmatch(cell):
            found[position] = f"empty {name}" if not cell else f"{name} is {cell}, a placeholder for a missing value"
        elif not is_number(cell):
            found[position] = f"{name} is {cell!r}, not a number"
        elif re.search(r"[eE]\+?0*[1-9]\d{2,}$", cell):
            found[position] = f"{name} is {cell}: above {LARGEST:g} in magnitude"
        else:
            good[position] = True
    if not good.any():
        return found, []
    values, notes = numbers(table.rows(good), [name], decimal, {"decimal": "--data.decimal"})
    for position, value in zip(np.flatnonzero(good), values[:, 0]):
        found[position] = float(value) if abs(value) <= LARGEST else f"{name} is above {LARGEST:g} in magnitude"
    return found, [f"{name}: {note}" for note in notes]


def _time_of(value: float | str, name: str) -> dict[str, Any] | str:
    if isinstance(value, str):
        return value
    if value > LONGEST:
        return f"{name} is {value:g}, longer than a human life in seconds ({LONGEST:g}); give times in months or days"
    return {"time": value} if value > 0 else f"{name} is {value:g}; times must be greater than 0"


# -- event flags -------------------------------------------------------------------------------------------------------


def _kind(cell: str) -> Literal["event", "censored", "yes", "no", "missing", "other"]:
    """Classify a flag."""
    text = cell.strip().lower()
    if not text or text in NO_NUMBER or text in UNKNOWN or NOT_KNOWN.fullmatch(text):
        return "missing"
    portal = re.fullmatch(r"([01])\s*:\s*\S.*", text)  # cBioPortal: 1:DECEASED, 0:DiseaseFree
    if portal:
        return "event" if portal[1] == "1" else "censored"
    if text in EVENT:
        return "event"
    if text in CENSORED:
        return "censored"
    text = re.sub(r"^([01])[.,]0+$", r"\1", text)
    return "yes" if text in YES else "no" if text in NO else "other"


def _flags(table: Table, columns: Columns) -> tuple[list[dict[str, Any] | str], list[str]]:
    """Return (``censored``, 0 or 1, or a reason, per row; the mapping as a note unless flags are 0 and 1)."""
    name = columns.flag
    cells = [str(cell) for cell in table.frame[name]]
    counts = Counter(cells)
    kinds = {cell: _kind(cell) for cell in counts}
    used = set(kinds.values()) - {"missing", "other"}
    if {"event", "censored"} & used and {"yes", "no"} & used:
        raise InputError(f"{name} mixes words and flags ({_listed(counts)}); use one kind", file=table.path)
    if not used:
        raise InputError(f"{name} has no known flag ({_listed(counts)}); expected {FLAGS}", file=table.path)
    unknown = [cell for cell in counts if kinds[cell] == "other"]
    if unknown and not (
        {"event", "yes"} & used and {"censored", "no"} & used
    ):  # without these rows, events or censored cases would be missing
        raise InputError(
            f"{name} is {unknown[0]!r} in {sum(counts[cell] for cell in unknown)} rows; expected {FLAGS}, the "
            f"column has {_listed(counts)}",
            file=table.path,
        )
    yes = "event" if columns.event is not None else "censored"
    no = "censored" if columns.event is not None else "event"
    meaning = {cell: yes if kind == "yes" else no if kind == "no" else kind for cell, kind in kinds.items()}
    rows: list[dict[str, Any] | str] = []
    for cell in cells:
        if meaning[cell] == "missing":
            rows.append(f"empty {name}" if not cell else f"{name} is {cell}, a placeholder for a missing value")
        elif meaning[cell] == "other":
            rows.append(f"{name} is {cell!r}; expected {FLAGS}, the column has {_listed(counts)}")
        else:
            rows.append({"censored": int(meaning[cell] == "censored")})
    read = [f"{cell} = {meaning[cell]} ({counts[cell]})" for cell in counts if kinds[cell] not in ("missing", "other")]
    plain = all(re.fullmatch(r"[01]([.,]0+)?", cell) for cell in counts if kinds[cell] not in ("missing", "other"))
    notes = [] if plain else [f"{name} read as: {', '.join(sorted(read))}"]
    return rows, notes + (_name_warning(columns) if {"yes", "no"} & used else [])


def _name_warning(columns: Columns) -> list[str]:
    """A column whose name contradicts how 1, true and yes are read; words such as "dead" need no column."""
    name = columns.flag
    looks_censored = "cens" in name.lower()
    looks_event = bool(re.search(r"event|death|dead|died|status|vital|relapse|recurrence|progress", name.lower()))
    if columns.event is None and looks_event and not looks_censored:
        meaning = "suggests 1 = event, but 1, true and yes are read as censored"
        return [f"warning: column name {name} {meaning}; --data.event_column {name} reads it as events"]
    if columns.event is not None and looks_censored:
        meaning = "suggests 1 = censored, but 1, true and yes are read as an event"
        return [f"warning: column name {name} {meaning}; --data.censor_column {name} reads it as censoring"]
    return []


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{cell or 'empty'} ({count})" for cell, count in Counter(counts).most_common(LISTED)]
    return ", ".join(shown) + (f" and {len(counts) - LISTED} more" if len(counts) > LISTED else "")
