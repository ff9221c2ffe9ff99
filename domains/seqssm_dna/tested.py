"""The predictions of a test of labelled sequences, read back from the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.metrics.metric import evaluate
from seqssm.metrics.records import TestRecords
from seqssm_dna import metrics


def test_records(run: Path, entry: dict[str, Any]) -> TestRecords | None:
    """Read `figures/test_records.csv` of a run; None without the file (a language model keeps none).

    Args:
        run: the run folder.
        entry: the checkpoint's entry, which holds the classes and the kind of target.
    """
    path = run / "figures" / "test_records.csv"
    if not path.is_file() or "classes" not in entry["hparams"]:
        return None
    names, target = entry["hparams"]["classes"], entry["hparams"].get("target") or "class"
    frame = pd.read_csv(path, dtype={"id": str, "truth": str}, keep_default_na=False)
    values = frame[list(names)].to_numpy(float)
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    found: metrics.Classified | metrics.MultiLabelled | metrics.Regressed
    if target == "class":
        numbers = {name: number for number, name in enumerate(names)}
        found = metrics.Classified(np.array([numbers[name] for name in frame["truth"]]), values)
        pairs = {name: (found.truth == k, values[:, k]) for k, name in enumerate(names)}
    else:
        truth = frame[[f"{name}_truth" for name in names]].to_numpy(float)
        found = metrics.MultiLabelled(truth, values) if target == "labels" else metrics.Regressed(truth, values)
        if target == "labels":
            pairs = {name: (truth[:, k] > 0, values[:, k]) for k, name in enumerate(names)}
    table = metrics.REGRESSION if target == "value" else metrics.CLASSES
    return TestRecords(frame["id"].tolist(), lambda index: evaluate(table, found.rows(index), "test"), pairs)


test_records.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest
