"""Class labels of sequences: their order, their numbers, and lists of several labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from seqssm.errors import InputError, nearest
from seqssm.files.tables import Table

MANY = 100  # classes; more are probably numbers or identifiers
RARE = 3  # rows; a class with fewer cannot be learned, validated and tested


def order_classes(names: Iterable[str]) -> list[str]:
    """Distinct class names: whole numbers by value, others alphabetically.

    Args:
        names: labels.
    """
    known = set(names)
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in known):
        return sorted(known, key=int)
    return sorted(known)


def class_numbers(labels: Sequence[str], classes: Sequence[str], path: Path, places: Sequence[str]) -> np.ndarray:
    """(n,) int64 number of the class of each label.

    Args:
        labels: of the rows.
        classes: names in order.
        path: for messages.
        places: of the rows, for messages.

    Raises:
        InputError: a label that is not a class.
    """
    known = {name: number for number, name in enumerate(classes)}
    for row, label in enumerate(labels):
        if label not in known:
            message = f"class {label!r} is unknown to the model, which has {', '.join(classes[:12])}"
            raise InputError(f"{message}{nearest(label, known)}", file=path, place=places[row])
    return np.array([known[label] for label in labels], dtype=np.int64)


def label_lists(
    cells: Sequence[str], classes: Sequence[str] | None, table: Table, column: str
) -> tuple[np.ndarray, list[str]]:
    """Truth of cells that hold several labels, separated by ``;`` or ``|``; ``none`` and ``-`` hold no label.

    Args:
        cells: of the rows.
        classes: names in order; None takes those that occur.
        table: for messages.
        column: for messages.

    Returns:
        ((n, m) float32 of zeros and ones, classes).

    Raises:
        InputError: a label that is not a class.
    """
    lists = [[part.strip() for part in re.split(r"[;|]", cell)] for cell in cells]
    lists = [[part for part in own if part and part.lower() not in ("none", "-")] for own in lists]
    names = list(classes) if classes is not None else order_classes(part for own in lists for part in own)
    if not names:
        raise InputError("no row has a label", file=table.path, place=f"column {column}")
    truth = np.zeros((len(cells), len(names)), dtype=np.float32)
    for row, own in enumerate(lists):
        places = [table.place(row, column)] * len(own)
        truth[row, class_numbers(own, names, table.path, places)] = 1
    return truth, names


def require_classes(classes: Sequence[str], truth: np.ndarray, path: Path) -> list[str]:
    """Check that a set can be learned: two classes, most of which are not numbers with decimals.

    Args:
        classes: names in order.
        truth: (n,) class numbers.
        path: for messages.

    Returns:
        Warnings to report.

    Raises:
        InputError: one class only, or labels that are numbers.
    """
    if len(classes) < 2:
        raise InputError(f"has one class only ({classes[0]}); two are needed", file=path)
    decimals = sum(bool(re.fullmatch(r"[+-]?\d*\.\d+([eE][+-]?\d+)?", name)) for name in classes)
    if decimals > len(classes) / 2:
        message = f"labels are numbers such as {classes[-1]}, not classes; numbers need target regression"
        raise InputError(message, file=path)
    notes = []
    if len(classes) > MANY:
        notes.append(f"warning: {len(classes)} classes; is the label column a number or an identifier?")
    counts = Counter(int(number) for number in truth)
    rare = [name for number, name in enumerate(classes) if counts[number] < RARE]
    if rare:
        notes.append(f"warning: fewer than {RARE} rows of {len(rare)} classes (first: {rare[0]})")
    return notes
