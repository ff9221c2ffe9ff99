"""The predictions of a test, read back from the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.metrics.records import TestRecords
from seqssm_ecg.metrics import Predictions, known, summary


def test_records(run: Path, entry: dict[str, Any]) -> TestRecords | None:
    """Read `figures/test_records.csv` of a run, with the thresholds in its `metrics.json`; None without the file.

    Args:
        run: the run folder.
        entry: the checkpoint's entry, which holds the classes.
    """
    path = run / "figures" / "test_records.csv"
    if not path.is_file():
        return None
    classes = entry["hparams"]["classes"]
    frame = pd.read_csv(path, dtype={"id": str})
    truth = frame[[f"{name}_truth" for name in classes]].to_numpy(dtype=float)  # an empty cell: unknown
    scores = frame[list(classes)].to_numpy()
    tables = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]["tables"]
    rows = next(one["rows"] for one in tables if one["title"].startswith("By class"))
    thresholds = {row["class"]: row["threshold"] for row in rows}
    limits = np.array([thresholds[name] for name in classes])
    found = Predictions(truth, scores, (scores >= limits).astype(int))
    pairs: Any = dict(zip(classes, map(known, truth.T, scores.T)))
    return TestRecords(frame["id"].tolist(), lambda index: summary(found.rows(index)), pairs)


test_records.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest
