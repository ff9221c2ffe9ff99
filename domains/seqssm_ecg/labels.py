"""Labels: PTB-XL's tasks, the challenges' scored classes with their equivalents, and columns of a manifest."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seqssm.errors import InputError

PTBXL_TASKS = ("superclass", "subclass", "diagnostic", "form", "rhythm", "all")
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
"""Codes that the scorers count as one class: CRBBB = RBBB, PAC = SVPB, PVC = VPB; from 2021 on CLBBB = LBBB too."""
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


@dataclass
class Classes:
    """The classes of a task, in order.

    Attributes:
        names: for people and for columns of tables.
        codes: of each class, all those that count as it; the first one stands for it in the challenge's files.
        weights: (m, m) of the challenge's score, or None.
        year: of the challenge, or None.
        other: names of codes that records have and no class counts, with their number, filled while reading.
    """

    names: list[str]
    codes: list[tuple[str, ...]]
    weights: np.ndarray | None = None
    year: int | None = None
    other: dict[str, int] = field(default_factory=dict)

    def vector(self, codes: Iterable[str]) -> np.ndarray:
        """(m,) float32 of zeros and ones: a class counts when any of its codes is there."""
        given = set(codes)
        known = {code for group in self.codes for code in group}
        for code in given - known:
            self.other[code] = self.other.get(code, 0) + 1
        return np.array([bool(given & set(group)) for group in self.codes], dtype=np.float32)


# -- challenges ------------------------------------------------------------------------------------------------------


def read_weights(path: Path) -> Classes:
    """The classes and weights of a challenge's ``weights.csv``: of 2021 as it is, that of 2020 with equivalents merged.

    A name ``a|b`` stands for equivalent codes. In the table of 2020 the first code of each pair keeps its row.

    Raises:
        InputError: no square table of numbers with equal row and column names.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    except UnicodeDecodeError:
        raise InputError("is no text file", file=path) from None
    names = [cell.strip() for cell in rows[0][1:]] if rows else []
    try:
        table = np.array([[float(cell) for cell in row[1:]] for row in rows[1:]])
    except ValueError as error:
        raise InputError(f"is no table of weights: {error}", file=path) from None
    if not names or table.shape != (len(names), len(names)) or [row[0].strip() for row in rows[1:]] != names:
        raise InputError("is no table of weights: rows and columns must have the same names", file=path)
    codes = [tuple(name.split("|")) for name in names]
    year = 2021
    if all(len(group) == 1 for group in codes):
        year = 2020
        codes, table = _merge_2020(codes, table)
    return Classes([_class_name(group) for group in codes], codes, table, year)


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
    """``scp_statements.csv``: statement -> its columns.

    Raises:
        InputError: it is not that table.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = {row.pop("", row.pop("Unnamed: 0", None)): row for row in csv.DictReader(file)}
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    for column in ("diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"):
        if not rows or column not in next(iter(rows.values())):
            raise InputError(f"has no column {column}", file=path, place="line 1")
    return {str(name): row for name, row in rows.items()}


def ptbxl_classes(statements: dict[str, dict[str, str]], task: str) -> Classes:
    """The classes of a PTB-XL task, with the statements that count as each: 71, 44, 23, 5, 19 or 12 classes."""

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


def parse_scp_codes(text: str, file: Path, line: int) -> list[str]:
    """The statements of a PTB-XL row; each counts whatever its likelihood, also 0.

    Raises:
        InputError: it is no dict as PTB-XL writes it.
    """
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"scp_codes {text[:40]!r} is no dict", file=file, place=f"line {line}")
    return [str(name) for name in found]


def frequent(vectors: Sequence[np.ndarray], classes: Classes, least: int) -> Classes:
    """The classes with at least `least` positives."""
    counts = np.sum(vectors, axis=0) if len(vectors) else np.zeros(len(classes.names))
    keep = [place for place, count in enumerate(counts) if count >= least]
    weights = None if classes.weights is None else classes.weights[np.ix_(keep, keep)]
    return Classes([classes.names[i] for i in keep], [classes.codes[i] for i in keep], weights, classes.year)
