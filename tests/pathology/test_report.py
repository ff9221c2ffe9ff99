"""The report of a run: predictions read back give the scores of the test."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from seqssm_pathology.tested import test_records as read_records

from seqssm.cli.main import main
from seqssm.training.checkpoint import read_checkpoint


def test_predictions_are_read_back(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    assert main(["pathology", "test", str(copy)]) == 0
    scores = json.loads((copy / "metrics.json").read_text())["test"]["metrics"]
    found = read_records(copy, read_checkpoint(copy)["seqssm"])
    again = found.scores(np.arange(len(found.ids)))
    assert again
    assert all(value == pytest.approx(scores[name], nan_ok=True) for name, value in again.items())
    assert main(["report", str(copy)]) == 0
    text = (copy / "report.html").read_text()
    assert '<h2 id="calibration">' in text
    assert text.count("<img ") == text.count('<img alt="') >= 2
