"""Labels: tasks of PTB-XL, scored classes of the challenges with their equivalents, and columns of a manifest."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from seqssm.errors import InputError, no_column
from seqssm.files.tables import read_table
from seqssm.metrics.classes import class_counts, class_list

CINC_YEARS = {"cinc2020": 2020, "cinc2021": 2021}
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
SINUS = "426783006"
EQUIVALENT = {
    2020: (("713427006", "59118001"), ("284470004", "63593006"), ("427172004", "17338001")),
    2021: (
        ("733534002", "164909002"),
        ("713427006", "59118001"),
        ("284470004", "63593006"),
        ("427172004", "17338001"),
    ),
}
"""Codes that the official scorers treat as one class: CRBBB = RBBB, PAC = SVPB, PVC = VPB; from 2021 CLBBB = LBBB."""
ABBREVIATIONS = {
    "164889003": "AF",
    "164890007": "AFL",
    "6374002": "BBB",
    "426627000": "Brady",
    "733534002": "CLBBB",
    "713427006": "CRBBB",
    "270492004": "IAVB",
    "713426002": "IRBBB",
    "39732003": "LAD",
    "445118002": "LAnFB",
    "164909002": "LBBB",
    "251146004": "LQRSV",
    "698252002": "NSIVCB",
    "426783006": "NSR",
    "284470004": "PAC",
    "10370003": "PR",
    "365413008": "PRWP",
    "427172004": "PVC",
    "164947007": "LPR",
    "111975006": "LQT",
    "164917005": "QAb",
    "47665007": "RAD",
    "59118001": "RBBB",
    "427393009": "SA",
    "426177001": "SB",
    "427084000": "STach",
    "63593006": "SVPB",
    "164934002": "TAb",
    "59931005": "TInv",
    "17338001": "VPB",
}


OWN_CLASSES = "; the preset ecg_small takes the labels as classes"


@dataclass
class Classes:
    """The classes of a task, in order.

    Attributes:
        names: class names shown in tables.
        codes: equivalent codes of each class; the first one represents the class in the challenge's files.
        weights: weights of the challenge's score, (m, m), or None.
        year: year of the challenge, or None.
        other: counts of codes that do not belong to any class; updated by `vector`.
    """

    names: list[str]
    codes: list[tuple[str, ...]]
    weights: np.ndarray | None = None
    year: int | None = None
    other: dict[str, int] = field(default_factory=dict)

    @cached_property
    def known(self) -> frozenset[str]:
        """All codes of the classes."""
        return frozenset(code for group in self.codes for code in group)

    @cached_property
    def _first_codes(self) -> dict[str, str]:
        """First code by name of the class, part of the name, or all codes; without case."""
        return {
            part.casefold(): group[0]
            for name, group in zip(self.names, self.codes)
            for part in (name, *name.split("|"), "|".join(group))
        }

    def translated(self, labels: Iterable[str]) -> list[str]:
        """Replace the name of a class or a part of it (``PVC`` of ``PVC|VPB``), in any case, or all its codes, by the
        first code."""
        return [label if label in self.known else self._first_codes.get(label.casefold(), label) for label in labels]

    def without_columns(self, columns: Iterable[str]) -> list[str]:
        """Return the first code of each class that no column of labels names."""
        there = set(self.translated(columns))
        return [group[0] for group in self.codes if not there & set(group)]

    def unrecognised(self, labels: Iterable[str]) -> dict[str, int]:
        """Count the labels, after `translated`, that are neither codes of a class nor decimal codes."""
        return dict(Counter(label for label in labels if label not in self.known and not label.isdecimal()))

    def described(self, problem: str, advice: str = "") -> str:
        """Describe a problem with the labels: those that occur and belong to no class, and the classes."""
        if not self.other:
            return problem
        found, named = class_counts(dict(list(self.other.items())[:6])), class_list(self.names[:6])
        return f"{problem}: the labels are {found}, the classes {named}, ...{advice}"

    def vector(self, codes: Iterable[str], unknown: Iterable[str] = ()) -> np.ndarray:
        """Encode codes as (m,) float32: 1 for a class with a code that occurs, else 0, or NaN if it is unknown.

        Args:
            codes: codes that apply.
            unknown: codes of which it is not known whether they apply.
        """
        given, open_ = set(codes), set(unknown)
        for code in given - self.known:
            self.other[code] = self.other.get(code, 0) + 1
        found = [1.0 if given & set(group) else np.nan if open_ & set(group) else 0.0 for group in self.codes]
        return np.array(found, dtype=np.float32)

    def only(self, keep: Sequence[bool]) -> Classes:
        """Return some of the classes, with their part of the weights."""
        rows = [place for place, kept in enumerate(keep) if kept]
        weights = None if self.weights is None else self.weights[np.ix_(rows, rows)]
        return Classes([self.names[i] for i in rows], [self.codes[i] for i in rows], weights, self.year)


# -- challenges ------------------------------------------------------------------------------------------------------


def read_weights(path: Path) -> Classes:
    """Read classes and weights from a challenge's ``weights.csv``; in 2020's table equivalent codes are merged.

    A name ``a|b`` denotes equivalent codes. In the table of 2020, the first code of each pair keeps its row.

    Raises:
        InputError: the file is not a square table of numbers with equal row and column names.
    """
    table = read_table(path)
    names = table.columns[1:]
    try:
        weights = table.frame[names].to_numpy(dtype=np.float64)
    except ValueError as error:
        raise InputError(f"is not a weights table: {error}", file=path) from None
    if not names or weights.shape != (len(names), len(names)) or list(table.frame.iloc[:, 0]) != names:
        raise InputError("is not a weights table: rows and columns must have the same names", file=path)
    codes = [tuple(name.split("|")) for name in names]
    year = 2021
    if all(len(group) == 1 for group in codes):
        year = 2020
        codes, weights = _merge_2020(codes, weights)
    return Classes([_class_name(group) for group in codes], codes, weights, year)


def _merge_2020(codes: list[tuple[str, ...]], table: np.ndarray) -> tuple[list[tuple[str, ...]], np.ndarray]:
    dropped = {second: first for first, second in EQUIVALENT[2020]}
    present = {group[0] for group in codes}
    keep = [place for place, (code,) in enumerate(codes) if dropped.get(code) not in present]
    merged = []
    for place in keep:
        (code,) = codes[place]
        second = next((b for a, b in EQUIVALENT[2020] if a == code and b in present), None)
        merged.append((code,) if second is None else (code, second))
    return merged, table[np.ix_(keep, keep)]


def _class_name(codes: tuple[str, ...]) -> str:
    return "|".join(ABBREVIATIONS.get(code, code) for code in codes)


# -- PTB-XL ----------------------------------------------------------------------------------------------------------


def ptbxl_statements(path: Path) -> dict[str, dict[str, str]]:
    """Read ``scp_statements.csv`` as a mapping from statement to its columns.

    Raises:
        InputError: the file is not such a table.
    """
    table = read_table(path)
    for column in ("diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"):
        if column not in table.columns:
            raise no_column(column, table.columns, file=path, place=table.header)
    key = table.columns[0]
    return {row.pop(key): row for row in table.frame.to_dict("records")}


def ptbxl_classes(statements: dict[str, dict[str, str]], task: str) -> Classes:
    """Return the 71, 44, 23, 5, 19 or 12 classes of a PTB-XL task, with the statements of each class."""

    def flagged(column: str) -> list[str]:
        return [name for name, row in statements.items() if row[column] not in ("", "0", "0.0")]

    if task in ("superclass", "subclass"):
        column = "diagnostic_class" if task == "superclass" else "diagnostic_subclass"
        groups: dict[str, list[str]] = {}
        for name in flagged("diagnostic"):
            groups.setdefault(statements[name][column], []).append(name)
        order = SUPERCLASSES if task == "superclass" else sorted(groups)
        return Classes(list(order), [tuple(groups[name]) for name in order])
    names = sorted(statements) if task == "all" else sorted(flagged(task))
    return Classes(names, [(name,) for name in names])


def parse_scp_codes(text: str, file: Path, place: str) -> list[str]:
    """Parse the statements of a PTB-XL row; the likelihood of a statement, which may be 0, is ignored.

    Raises:
        InputError: the text is not a dict in PTB-XL's notation.
    """
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"scp_codes {text[:40]!r} is not a dict", file=file, place=place)
    return [str(name) for name in found]


def frequent(vectors: Sequence[np.ndarray], classes: Classes, min_positives: int) -> Classes:
    """Return the classes with at least `min_positives` positives."""
    counts = np.nansum(vectors, axis=0) if len(vectors) else np.zeros(len(classes.names))
    return classes.only([count >= min_positives for count in counts])
