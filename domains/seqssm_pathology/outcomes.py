"""Predictions of test records by target: input of the metrics, scores, and the table of all records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from seqssm.metrics.metric import evaluate
from seqssm_pathology.fitting import KINDS
from seqssm_pathology.heads import ClassHead, Head, LabelsHead, NumberHead, SurvivalHead, curves_of
from seqssm_pathology.metrics import ORDERED, TABLES, Classified, Labelled, Measured, class_ranks
from seqssm_pathology.survival import Followed, median_time

Collected = Classified | Followed | Measured | Labelled


def known_rows(head: Head, found: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mask of the records whose target is known, (n,) bool.

    Args:
        head: the target.
        found: truth tensors of all records, by name.
    """
    if isinstance(head, ClassHead):
        return found[head.key("label")] >= 0
    if isinstance(head, SurvivalHead):
        return found[head.key("bin")] >= 0
    if isinstance(head, LabelsHead):
        return np.isfinite(found[head.key("labels")]).any(1)
    return np.isfinite(found[head.key("value")])


def collect(
    head: Head, logits: np.ndarray, found: Mapping[str, np.ndarray], follow_up: tuple[np.ndarray, np.ndarray] | None
) -> Collected:
    """Return predictions and truth as input of the metrics.

    Args:
        head: the target.
        logits: logits of the head, (n, size).
        found: truth tensors of the same records, by name.
        follow_up: (times, censored) for the censoring distribution, for survival.
    """
    z = torch.from_numpy(np.ascontiguousarray(logits))
    if isinstance(head, ClassHead):
        return Classified(found[head.key("label")], z.softmax(1).numpy(), class_ranks(head.classes))
    if isinstance(head, SurvivalHead):
        assert follow_up is not None
        time, censored = found[head.key("time")], found[head.key("censored")]
        return Followed(time, censored, curves_of(z).numpy(), list(head.edges), follow_up)
    if isinstance(head, LabelsHead):
        return Labelled(found[head.key("labels")].astype(np.float64), torch.sigmoid(z.double()).numpy())
    assert isinstance(head, NumberHead)
    return Measured(found[head.key("value")], head.values(z).numpy())


def table_of(head: Head) -> tuple[Any, ...]:
    """Metrics of a target."""
    ordered = isinstance(head, ClassHead) and class_ranks(head.classes) is not None
    return TABLES[KINDS[type(head)]] + (ORDERED if ordered else ())


def scores(
    collected: Sequence[tuple[Head, np.ndarray, Collected]], where: str, index: np.ndarray | None = None
) -> dict[str, float]:
    """Compute the scores of all targets, by name; names start with the target if there are several.

    Args:
        collected: head, rows with a known target (numbers of records), and their predictions, for each target.
        where: an entry of `Metric.shown`.
        index: numbers of the records to score, with repetitions; by default all.
    """
    found: dict[str, float] = {}
    for head, rows, one in collected:
        if index is not None:
            place = np.full(max(int(index.max()), int(rows.max(initial=0))) + 1, -1)
            place[rows] = np.arange(len(rows))
            one = one.rows(place[index][place[index] >= 0])
        if where == "interval" and _size(one) == 0:
            continue
        found |= {f"{head.tag}{name}": value for name, value in evaluate(table_of(head), one, where).items()}
    return found


def _size(one: Collected) -> int:
    return len(one.time) if isinstance(one, Followed) else len(one.truth)


def axis(head: Head) -> str:
    """Label of an axis of survival time."""
    unit = head.unit if isinstance(head, SurvivalHead) else None
    return head.name if unit is None or unit in head.name else f"{head.name}, {unit}"


def as_table(head: Head, one: Collected) -> pd.DataFrame:
    """Return labels and predictions of a target as a table, as in ``figures/test_records.csv``."""
    if isinstance(head, SurvivalHead):
        assert isinstance(one, Followed)
        table: dict[str, Any] = {
            f"{head.tag}time": one.time,
            f"{head.tag}censored": one.censored,
            f"{head.tag}risk": one.risk,
        }
        table |= {name: one.curves[:, k] for k, name in enumerate(head.curve)}
        table[head.median_column] = median_time(one.curves, head.edges)
        return pd.DataFrame(table)
    assert head.written is not None
    if isinstance(one, Measured):
        return head.written.table(one.truth[:, None], one.values[:, None])
    assert isinstance(one, Classified | Labelled)
    return head.written.table(one.truth, one.probabilities)


def of_table(head: Head, table: pd.DataFrame) -> Collected:
    """Read back what `as_table` wrote, for the metrics that need no training data.

    Args:
        head: the target.
        table: rows with a known target.
    """
    if isinstance(head, SurvivalHead):
        tag = head.tag
        time, censored = table[f"{tag}time"].to_numpy(np.float64), table[f"{tag}censored"].to_numpy(np.int64)
        curves = table[head.curve].to_numpy(np.float64)
        return Followed(time, censored, curves, list(head.edges), (time, censored))
    assert head.written is not None
    truth, values = head.written.read(table)
    if isinstance(head, ClassHead):
        return Classified(truth, values, class_ranks(head.classes))
    return Labelled(truth, values) if isinstance(head, LabelsHead) else Measured(truth[:, 0], values[:, 0])


def first_column(head: Head) -> str:
    """Column of `as_table` that is empty where the target is unknown."""
    if head.written is None:
        return f"{head.tag}time"
    return head.written.estimates[0] if isinstance(head, LabelsHead) else head.written.labels[0]
