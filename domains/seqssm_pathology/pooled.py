"""Intervals of a k-fold study: bootstrap over the patients of all folds, seeds and models together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.metrics.bootstrap import LEVEL, Part, bootstrap, ends, mean
from seqssm.metrics.columns import ID, PATIENT, find_test_records, read_test_records
from seqssm.training.checkpoint import find_checkpoint, read_checkpoint
from seqssm.training.kfold import Cell
from seqssm_pathology import outcomes
from seqssm_pathology.heads import Head, heads_of
from seqssm_pathology.outcomes import Collected

DRAWS = 200
LOW, HIGH = (f"{(100 - LEVEL) / 2:g} %", f"{(100 + LEVEL) / 2:g} %")


def read_back(run: Path, summary: Mapping[str, Any]) -> tuple[pd.DataFrame, list[tuple[Head, np.ndarray, Collected]]]:
    """Read the test records of a run: the table, and for each target its head, rows and predictions.

    Args:
        run: the run folder.
        summary: description of the data in the checkpoint.
    """
    heads = heads_of(summary)
    table = read_test_records(run, [head.written for head in heads if head.written is not None])
    if table is None:
        raise InputError("has no test records; run seqssm pathology test", file=run)
    collected = []
    for head in heads:
        known = table[outcomes.first_column(head)].notna().to_numpy()
        collected.append((head, np.flatnonzero(known), outcomes.of_table(head, table[known])))
    return table, collected


def part_of(run: Path) -> Part | None:
    """Read the test predictions of a run; None if it has none (a baseline).

    Args:
        run: the run folder, with ``best.ckpt`` and ``figures/test_records.csv``.
    """
    if find_test_records(run) is None:
        return None
    table, collected = read_back(run, read_checkpoint(find_checkpoint(run))["seqssm"]["data"])
    patients = table[PATIENT if PATIENT in table else ID]
    return Part(patients.tolist(), lambda index: outcomes.scores(collected, "interval", index))


def intervals(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, pd.DataFrame]]:
    """Compute intervals of the mean over the folds and seeds, and of the differences from the first model.

    Args:
        folder: folder of the study.
        rows: rows of its `folds.csv`.

    Returns:
        (title, table) pairs: one row per metric and model; none if no model has predictions.
    """
    parts: dict[str, list[Part]] = {}
    for row in rows:
        part = part_of(folder / Cell(row["model"], row["fold"], row["seed"]).place())
        if part is not None:
            parts.setdefault(row["model"], []).append(part)
    if not parts:
        return []
    draws = {model: bootstrap(own, DRAWS) for model, own in parts.items()}
    first = next(iter(draws))
    table = []
    for metric in dict.fromkeys(name for own in draws.values() for name in own):
        for model, own in draws.items():
            values = own.get(metric, np.empty(0))
            mean_of_runs = mean([float(row[metric]) for row in rows if row["model"] == model and _finite(row, metric)])
            line: dict[str, Any] = {"metric": metric, "model": model, "mean": mean_of_runs}
            line |= dict(zip((LOW, HIGH), ends(values)))
            if model != first and metric in draws[first]:
                line |= dict(zip((f"difference {LOW}", f"difference {HIGH}"), ends(values - draws[first][metric])))
            table.append(line)
    patients = len({patient for own in parts.values() for part in own for patient in part.clusters})
    title = (
        f"{LEVEL:g} % intervals of the mean over the runs, bootstrap over {patients} patients; difference from {first}"
    )
    return [(title, pd.DataFrame(table))]


def _finite(row: Mapping[str, Any], metric: str) -> bool:
    return row.get(metric) is not None and bool(np.isfinite(row[metric]))
