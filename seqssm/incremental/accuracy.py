"""Accuracy on old and new classes by session, and forgetting: averages over classes, not over records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

METHODS = ("model", "nearest mean", "linear probe")


@dataclass
class Judged:
    """Decisions on labelled records.

    Attributes:
        truth: class indices, (n,).
        before: decisions of the model without the new classes, and of the controls, by method; (n,) each.
        after: decisions with the new classes.
    """

    truth: Tensor
    before: dict[str, Tensor]
    after: dict[str, Tensor]

    @staticmethod
    def joined(parts: Sequence[Judged]) -> Judged:
        """Concatenate parts, at least one."""
        return Judged(
            torch.cat([one.truth for one in parts]),
            {name: torch.cat([one.before[name] for one in parts]) for name in parts[0].before},
            {name: torch.cat([one.after[name] for one in parts]) for name in parts[0].after},
        )


@dataclass(frozen=True)
class Row:
    """Accuracy on the classes of a session.

    Attributes:
        title: what the row is about.
        classes: number of classes with records.
        records: number of records.
        before: accuracy without the new classes, by method; NaN for classes that did not exist.
        after: accuracy with them.
        error: standard error of the model's accuracy after the extension.
    """

    title: str
    classes: int
    records: int
    before: dict[str, float]
    after: dict[str, float]
    error: float


def of_classes(truth: Tensor, decisions: Tensor, classes: Sequence[int]) -> tuple[float, float]:
    """Return the accuracy averaged over classes, and its standard error from binomial variances; NaN without records.

    Args:
        truth: class indices, (n,).
        decisions: predicted ones, (n,).
        classes: the classes to average over; those without records are omitted.
    """
    values, variance = [], 0.0
    for label in classes:
        own = truth == label
        count = int(own.sum())
        if count:
            rate = float((decisions[own] == label).double().mean())
            values.append(rate)
            variance += rate * (1 - rate) / count
    if not values:
        return math.nan, math.nan
    return sum(values) / len(values), math.sqrt(variance) / len(values)


def table(judged: Judged, sessions: Sequence[Sequence[int]], old: int) -> list[Row]:
    """Return one row per session with records, then rows for the old, the new and all classes.

    Args:
        judged: the decisions.
        sessions: class indices of each session.
        old: number of old classes.
    """
    total = sum(len(one) for one in sessions)
    groups = [(f"session {number}", list(one)) for number, one in enumerate(sessions)]
    groups += [("old classes", list(range(old))), ("new classes", list(range(old, total))), ("all", list(range(total)))]
    rows = []
    for title, classes in groups:
        known = [label for label in classes if bool((judged.truth == label).any())]
        if not known:
            continue
        records = sum(int((judged.truth == label).sum()) for label in known)
        existed = all(label < old for label in known)
        before = {
            name: of_classes(judged.truth, one, known)[0] if existed else math.nan
            for name, one in judged.before.items()
        }
        after = {name: of_classes(judged.truth, one, known) for name, one in judged.after.items()}
        rows.append(
            Row(title, len(known), records, before, {name: one[0] for name, one in after.items()}, after["model"][1])
        )
    return rows


def forgetting(rows: Sequence[Row]) -> dict[str, float]:
    """Return the accuracy lost on the old classes from that of the model before; empty without records of them.

    Args:
        rows: result of `table`.

    Returns:
        By method. The controls replace the head of the same frozen model: all start from the model's accuracy, not from
        that of a control that knows only the old class means.
    """
    own = next((row for row in rows if row.title == "old classes"), None)
    return {} if own is None else {name: own.before["model"] - value for name, value in own.after.items()}


def percent(value: float) -> str:
    """Format a fraction for a table."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def text(rows: Sequence[Row]) -> str:
    """Format the rows: percent before and after, the controls, the standard error."""
    head = ("accuracy, %", "classes", "records", "before", "after", "std. error", "nearest mean", "linear probe")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        cells = [row.title, str(row.classes), str(row.records), percent(row.before["model"])]
        cells += [percent(row.after["model"]), percent(row.error)]
        lines.append((*cells, *(percent(row.after[name]) for name in METHODS[1:])))
    lost = forgetting(rows)
    if lost:
        cells = ["forgetting", "", "", "", percent(lost["model"]), ""]
        lines.append((*cells, *(percent(lost[name]) for name in METHODS[1:])))
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
