"""The predictions of a test, read back from the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.metrics.metric import evaluate
from seqssm.metrics.records import TestRecords
from seqssm_pathology.metrics import CLASSIFICATION, Classified, c_index


def test_records(run: Path, entry: dict[str, Any]) -> TestRecords | None:
    """Read `figures/predictions.csv` of a run; None without the file.

    For survival, only the C-index can be computed from the file: the other scores need the training cases.

    Args:
        run: the run folder.
        entry: the checkpoint's entry.
    """
    path = run / "figures" / "predictions.csv"
    if not path.is_file():
        return None
    frame = pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys(("slide_id", "case_id", "Y", "Y_hat"), str))
    ids = frame[frame.columns[0]].tolist()
    if "risk" in frame:
        time, censored, risk = (frame[name].to_numpy(float) for name in ("time", "censored", "risk"))
        return TestRecords(ids, lambda index: {"c_index": c_index(time[index], censored[index], risk[index])})
    names = [name[2:] for name in frame.columns if name.startswith("p_")]
    numbers = {name: number for number, name in enumerate(names)}
    truth = np.array([numbers[name] for name in frame["Y"]])
    p = frame[[f"p_{name}" for name in names]].to_numpy(float)
    pairs = {name: (truth == k, p[:, k]) for k, name in enumerate(names)}
    return TestRecords(ids, lambda index: evaluate(CLASSIFICATION, Classified(truth[index], p[index]), "test"), pairs)


test_records.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest
