"""The predictions of a test of labelled sequences, read back from the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from seqssm.metrics.columns import ID, read_test_records
from seqssm.metrics.metric import evaluate
from seqssm.metrics.records import TestRecords
from seqssm_dna import metrics
from seqssm_dna.predict import output_columns


def test_records(run: Path, entry: dict[str, Any]) -> TestRecords | None:
    """Read `figures/test_records.csv` of a run; None without the file (a language model keeps none).

    Args:
        run: the run folder.
        entry: the checkpoint's entry, which holds the classes and the kind of target.
    """
    if "classes" not in entry["hparams"]:
        return None
    outputs = output_columns(entry["hparams"])
    frame = read_test_records(run, [outputs])
    if frame is None:
        return None
    names, target = outputs.names, outputs.kind
    truth, values = outputs.read(frame)
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    found: metrics.Classified | metrics.MultiLabelled | metrics.Regressed
    if target == "class":
        found = metrics.Classified(truth, values)
        pairs = {name: (found.truth == k, values[:, k]) for k, name in enumerate(names)}
    else:
        found = metrics.MultiLabelled(truth, values) if target == "labels" else metrics.Regressed(truth, values)
        if target == "labels":
            pairs = {name: (truth[:, k] > 0, values[:, k]) for k, name in enumerate(names)}
    table = metrics.REGRESSION if target == "value" else metrics.CLASSES
    return TestRecords(frame[ID].tolist(), lambda index: evaluate(table, found.rows(index), "test"), pairs)


test_records.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest
