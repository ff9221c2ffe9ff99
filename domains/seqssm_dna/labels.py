"""Class labels of sequences: their order and indices, and cells with several labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from seqssm.errors import InputError, nearest
from seqssm.files.cells import split_names
from seqssm.files.labels import read_label_cells
from seqssm.files.tables import Table
from seqssm.metrics.classes import class_list, class_name, unknown_classes

MANY = 100  # classes; more indicate numbers or identifiers
FEW = 10  # classes; with more, numbers with commas are decimals
MOST = 8  # maximum number of class names in a message
RARE = 3  # rows; a class with fewer cannot be in all three splits


def order_classes(names: Iterable[str]) -> list[str]:
    """Return the distinct class names, integers sorted by value, others alphabetically.

    Args:
        names: labels.
    """
    known = set(names)
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in known):
        return sorted(known, key=int)
    return sorted(known)


def class_numbers(labels: Sequence[str], classes: Sequence[str], path: Path, places: Sequence[str]) -> np.ndarray:
    """Return the class index of each label, (n,) int64.

    Args:
        labels: labels of the rows.
        classes: names of the classes, in order.
        path: path used in error messages.
        places: locations of the rows, for messages.

    Raises:
        InputError: a label is not a class.
    """
    known = {name: number for number, name in enumerate(classes)}
    for row, label in enumerate(labels):
        if label not in known:
            message = f"class {label!r} is unknown to the model, which has {class_list(classes[:12])}"
            raise InputError(f"{message}{nearest(label, known)}", file=path, place=places[row])
    return np.array([known[label] for label in labels], dtype=np.int64)


def label_lists(classes: Sequence[str] | None, table: Table, column: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Parse cells with several labels, separated by ``;``, ``|`` or ``,``; ``none`` and ``-`` mean no label.

    Commas separate only in files without ``;`` and ``|``; lists and dicts are those of `seqssm.files.labels`.

    Args:
        classes: names of the classes, in order; by default those that occur.
        table: the table.
        column: column of the labels.

    Returns:
        (Zeros and ones, (n, m) float32; classes; remarks for the user).

    Raises:
        InputError: a label is not a class, or the cells are vectors of numbers.
    """
    cells = list(table.frame[column])
    distinct = {str(cell).strip() for cell in cells}
    strong = r"[;|\n；、]"
    marks = strong if any(len(split_names(cell, strong)) > 1 for cell in distinct) else ","
    lists, notes = read_label_cells(table, column, marks, set(classes or ()))
    if marks == "," and any(len(split_names(cell, ",")) > 1 for cell in distinct):
        notes.append("labels separated by commas")
    lists = [[part for part in own if part and part.lower() not in ("none", "-")] for own in lists]
    names = list(classes) if classes is not None else order_classes(part for own in lists for part in own)
    if not names:
        raise InputError("no row has a label", file=table.path, place=f"column {column}")
    notes += unknown_note(names)
    truth = np.zeros((len(cells), len(names)), dtype=np.float32)
    for row, own in enumerate(lists):
        places = [table.place(row, column)] * len(own)
        truth[row, class_numbers(own, names, table.path, places)] = 1
    return truth, names, notes


def unknown_note(classes: Sequence[str]) -> list[str]:
    """Warn of classes whose names say that the label is unknown.

    Args:
        classes: names of the classes.
    """
    found = unknown_classes(classes)
    what = "warning: read as a class: {}; if it means that the label is unknown, leave these cells empty and pass "
    return [what.format(class_list(found)) + "--data.invalid drop"] if found else []


def absent_classes(classes: Sequence[str], truths: Mapping[str, np.ndarray]) -> list[str]:
    """Warn of classes that no record of a split has, in one line per set of splits.

    Args:
        classes: names of the classes or labels.
        truths: class indices, (n,), or zeros and ones, (n, m), by split.

    Returns:
        Warnings to report.
    """
    absent: dict[str, list[str]] = {}
    for split, truth in truths.items():
        known = np.bincount(truth, minlength=len(classes)) if truth.ndim == 1 else truth.sum(0)
        for name, count in zip(classes, known.tolist()):
            if not count and len(truth):
                absent.setdefault(name, []).append(split)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, splits in absent.items():
        groups.setdefault(tuple(splits), []).append(name)
    notes = []
    for splits, names in groups.items():
        listed = class_list(names[:MOST]) + (", ..." if len(names) > MOST else "")
        where = " or ".join([", ".join(splits[:-1]), splits[-1]] if splits[1:] else splits)
        what = "never learned" if "train" in splits else "not validated" if splits == ("val",) else "not tested"
        if splits == ("val", "test"):
            what = "neither validated nor tested"
        notes.append(f"warning: no {where} record of class {listed}: {what}")
    return notes


def require_variety(names: Sequence[str], truth: np.ndarray, path: Path) -> list[str]:
    """Check that the targets of the training records differ.

    Args:
        names: names of the classes, labels or numbers.
        truth: class indices, (n,) int; zeros and ones, (n, m) float32; numbers, (n, t) float64.
        path: path used in error messages.

    Returns:
        Warnings to report: labels that every record has.

    Raises:
        InputError: all records have the same class, or the same number.
    """
    notes = []
    if truth.ndim == 1:
        if len(truth) and (truth == truth[0]).all():
            raise InputError(
                f"every training record is of class {class_name(names[int(truth[0])])}: nothing to learn", file=path
            )
        return notes
    for name, column in zip(names, truth.T):
        first = float(column[0]) if len(column) else 0.0
        if not len(column) or np.ptp(column) > 1e-9 * max(1.0, abs(first)):
            continue
        if truth.dtype != np.float32:
            raise InputError(
                f"every training record has the same {class_name(name)} ({first:g}): nothing to learn", file=path
            )
        if first:
            notes.append(f"warning: every training record has the label {class_name(name)}: nothing to learn about it")
    return notes


def require_classes(classes: Sequence[str], truth: np.ndarray, path: Path) -> list[str]:
    """Check that there are at least two classes, and that they are not numbers with decimals.

    Args:
        classes: names of the classes, in order.
        truth: class indices, (n,).
        path: path used in error messages.

    Returns:
        Warnings to report.

    Raises:
        InputError: there is only one class, or the labels are numbers.
    """
    if len(classes) < 2:
        raise InputError(f"has only one class ({classes[0]}); at least two are required", file=path)
    marks = "[.,]" if len(classes) > FEW else "[.]"  # few classes such as 0,1 may be combined ones
    decimals = sum(bool(re.fullmatch(rf"[+-]?\d*{marks}\d+([eE][+-]?\d+)?", name)) for name in classes)
    if decimals > len(classes) / 2:
        message = (
            f"labels are numbers such as {classes[-1]}, not classes; numbers need --data.target value, and numbered "
            "classes are written without decimals: 0, 1"
        )
        raise InputError(message, file=path)
    notes = []
    folded = Counter(name.casefold() for name in classes)
    alike = [name for name in classes if folded[name.casefold()] > 1]
    if alike:
        notes.append(f"warning: classes that differ in case only: {class_list(alike[:MOST])}")
    values = {name: float(name) for name in classes if re.fullmatch(r"[+-]?\d{1,15}(\.0*)?", name)}
    same = [name for name in values if list(values.values()).count(values[name]) > 1] if decimals else []
    if same:
        notes.append(f"warning: classes that are the same number: {class_list(same[:MOST])}")
    parts = {name: {part.strip() for part in re.split("[;|]", name)} for name in classes}
    shared = Counter(part for own in parts.values() for part in own)
    joined = [name for name in classes if (len(parts[name]) > 1 and any(shared[part] > 1 for part in parts[name]))
              or ("," in name and {part.strip() for part in re.split("[;|,]", name)} <= set(classes))]  # fmt: skip
    if joined:
        notes.append(
            f"warning: class {class_list(joined[:1])} combines other classes: if a sequence can have several labels, "
            "--data.target labels"
        )
    notes += unknown_note(classes)
    if len(classes) > MANY:
        notes.append(f"warning: {len(classes)} classes; is the label column a number or an identifier?")
    counts = Counter(int(number) for number in truth)
    rare = [name for number, name in enumerate(classes) if counts[number] < RARE]
    if rare:
        near = nearest(rare[0], [name for name in classes if name not in rare])
        some = f"{len(rare)} class{'es' if len(rare) > 1 else ''}"
        notes.append(f"warning: {some} with fewer than {RARE} rows (first: {class_name(rare[0])}{near})")
    return notes
