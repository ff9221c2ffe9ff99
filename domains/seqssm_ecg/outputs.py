"""Output files of the challenge, one CSV per record with codes, decisions and scores: writer and official reader."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm.files.disk import atomic

TRUE = ("1", "True", "true", "T", "t")


def write_output(
    path: Path, record: str, codes: Sequence[str], decisions: Sequence[int], scores: Sequence[float]
) -> Path:
    """Write the official file of a record: ``#id``, codes, decisions as 0 and 1, scores.

    Args:
        path: output path; its stem is the record name.
        record: record name.
        codes: one SNOMED code per class.
        decisions: 0 or 1 per class, in the order of `codes`.
        scores: probabilities, in the order of `codes`.
    """
    lines = [f"#{record}", ",".join(codes), ",".join(str(int(d)) for d in decisions)]
    lines.append(",".join(f"{score:.6f}" for score in scores))
    with atomic(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path


def read_output(path: Path, groups: Sequence[Sequence[str]], year: int) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Read decisions (m,) and scores (m,) of the scored classes, and a description of malformed content, if any.

    Classes may be in any order; a missing one gets 0. Equivalent codes are combined by logical or (decisions) and mean
    (scores). A score that is not a number counts as 0; by the rules of 2020 it is excluded from the mean. Positive
    values are ``1, True, true, T, t``, in 2021 also ``1.0``. A malformed file is negative for every class.

    Args:
        path: the output file.
        groups: equivalent codes of each class.
        year: 2020 or 2021.

    Raises:
        InputError: the file does not exist, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        raise InputError("no output file for a labelled record", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    rows = [row for row in rows if not row[0].startswith("#")]
    none = np.zeros(len(groups), dtype=bool), np.zeros(len(groups))
    if len(rows) != 3 or len({len(row) for row in rows}) != 1:
        return (
            *none,
            f"{path.name}: expected three lines of equal length below the record name; counted as all negative",
        )
    codes = [set(cell.split("|")) for cell in rows[0]]
    true = (*TRUE, "1.0") if year == 2021 else TRUE
    decisions, scores = none
    for k, group in enumerate(groups):
        places = [place for place, names in enumerate(codes) if names & set(group)]
        decisions[k] = any(rows[1][place] in true for place in places)
        found = [_score(rows[2][place]) for place in places]
        if year == 2020:
            found = [value for value in found if not math.isnan(value)]
        found = [0.0 if math.isnan(value) else value for value in found]
        scores[k] = float(np.mean(found)) if found else 0.0
    if not any(names & set(group) for names in codes for group in groups):
        return decisions, scores, f"{path.name}: contains none of the scored classes; counted as all negative"
    if not ((scores >= 0) & (scores <= 1)).all():
        return decisions, scores, f"{path.name}: scores outside [0, 1]; ranked as they are"
    return decisions, scores, None


def _score(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
