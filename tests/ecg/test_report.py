"""The report of a run: predictions read back give the scores of the test, and the calibration is drawn."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from seqssm_ecg.tested import test_records as read_records

from seqssm.cli.main import main
from seqssm.training.checkpoint import read_checkpoint


def test_predictions_are_read_back(trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["ecg", "test", str(run)]) == 0
    scores = json.loads((run / "metrics.json").read_text())["test"]["metrics"]
    found = read_records(run, read_checkpoint(run)["seqssm"])
    again = found.scores(np.arange(len(found.ids)))
    assert set(again) == set(scores)
    assert all(again[name] == pytest.approx(scores[name], abs=1e-3, nan_ok=True) for name in again)
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert '<h2 id="calibration">' in text
    assert "reliability" in text  # alternative text of the curves
    shutil.copytree(run, tmp_path / "twin")
    capsys.readouterr()
    assert main(["compare", str(run), str(tmp_path / "twin"), "--output", str(tmp_path / "t.csv")]) == 0
    rows = [line.split(",") for line in (tmp_path / "t.csv").read_text().splitlines()]
    assert rows[0][-3:] == ["difference", "2.5 %", "97.5 %"]
    twin = [row[-3:] for row in rows[1:] if row[-3]]
    assert len(twin) == len(scores)
    assert {float(cell) for row in twin for cell in row if cell} == {0.0}
