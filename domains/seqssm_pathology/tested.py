"""The predictions of a test, read back from the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seqssm.metrics.columns import ID, find_test_records
from seqssm.metrics.records import TestRecords
from seqssm_pathology import outcomes
from seqssm_pathology.metrics import Classified
from seqssm_pathology.pooled import read_back


def test_records(run: Path, entry: dict[str, Any]) -> TestRecords | None:
    """Read `figures/test_records.csv` of a run; None without the file.

    Scores that need the training cases (the Brier score of survival) cannot be computed from the file.

    Args:
        run: the run folder.
        entry: the checkpoint's entry.
    """
    if find_test_records(run) is None:
        return None
    frame, collected = read_back(run, entry["data"])
    ids = frame[ID].tolist()
    pairs = {}
    if len(collected) == 1 and isinstance(collected[0][2], Classified):
        head, _, one = collected[0]
        pairs = {name: (one.truth == k, one.probabilities[:, k]) for k, name in enumerate(head.outputs)}
    return TestRecords(ids, lambda index: outcomes.scores(collected, "interval", index), pairs)


test_records.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest
