"""The predictions of a test, read back from the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.metrics.columns import ID, OutputColumns, read_test_records
from seqssm.metrics.records import TestRecords
from seqssm_ecg.metrics import Predictions, summary


def test_records(run: Path, entry: dict[str, Any]) -> TestRecords | None:
    """Read `figures/test_records.csv` of a run, with the thresholds in its `metrics.json`; None without the file.

    Args:
        run: the run folder.
        entry: the checkpoint's entry, which holds the classes.
    """
    outputs = output_columns(entry["hparams"])
    frame = read_test_records(run, [outputs])
    if frame is None:
        return None
    classes = outputs.names
    truth, scores = outputs.read(frame)  # unknown labels are NaN
    if outputs.kind == "class":
        one_hot = np.eye(len(classes))
        truth, decisions = one_hot[truth], one_hot[scores.argmax(1)].astype(int)
        found = Predictions(truth, scores, decisions)
        return _records(frame, classes, found)
    tables = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]["tables"]
    rows = next(one["rows"] for one in tables if one["title"].startswith("By class"))
    thresholds = {row["class"]: row["threshold"] for row in rows}
    limits = np.array([thresholds[name] for name in classes])
    return _records(frame, classes, Predictions(truth, scores, (scores >= limits).astype(int)))


def output_columns(hparams: Mapping[str, Any]) -> OutputColumns:
    """Return the columns of a classifier.

    Args:
        hparams: arguments of the task.
    """
    exclusive = hparams.get("loss") == "cross_entropy"
    return OutputColumns(tuple(hparams["classes"]), "class" if exclusive else "labels")


def _records(frame: pd.DataFrame, classes: Sequence[str], found: Predictions) -> TestRecords:
    pairs = dict(zip(classes, zip(found.truth.T, found.scores.T)))
    return TestRecords(frame[ID].tolist(), lambda index: summary(found.rows(index)), pairs)


test_records.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest
