"""Predictions of a test read back: each kind of target gives its scores, and probabilities where there are any."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from seqssm_dna.metrics import Classified, MultiLabelled, Regressed, accuracy, auroc, rmse
from seqssm_dna.tested import test_records as read_records

NAMES = ["a", "b"]


def written(folder, **columns):
    (folder / "figures").mkdir()
    frame = pd.DataFrame({"id": [f"r{k}" for k in range(len(next(iter(columns.values()))))], **columns})
    frame.to_csv(folder / "figures" / "test_records.csv", index=False)
    return folder


def entry(target):
    return {"hparams": {"classes": NAMES, "target": target}}


def test_classes(tmp_path):
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    run = written(tmp_path, truth=["a", "b", "b"], a=p[:, 0], b=p[:, 1])
    found = read_records(run, entry(None))
    assert found.scores(np.arange(3))["accuracy"] == accuracy(Classified(np.array([0, 1, 1]), p)) == 2 / 3
    assert found.scores(np.array([0, 1, 1]))["accuracy"] == 1
    truth, probabilities = found.probabilities["b"]
    assert truth.tolist() == [False, True, True]
    assert probabilities.tolist() == [0.1, 0.6, 0.3]


def test_labels(tmp_path):
    y, p = np.array([[1, 0], [0, 1], [1, 1], [0, 0]]), np.array([[0.9, 0.2], [0.1, 0.4], [0.3, 0.8], [0.2, 0.1]])
    run = written(tmp_path, a_truth=y[:, 0], a=p[:, 0], b_truth=y[:, 1], b=p[:, 1])
    found = read_records(run, entry("labels"))
    assert found.scores(np.arange(4))["auroc"] == pytest.approx(auroc(MultiLabelled(y, p)))
    assert set(found.probabilities) == {"a", "b"}


def test_numbers(tmp_path):
    y, p = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.5, 2.0], [3.0, 5.0]])
    run = written(tmp_path, a_truth=y[:, 0], a=p[:, 0], b_truth=y[:, 1], b=p[:, 1])
    found = read_records(run, entry("value"))
    assert found.scores(np.arange(2))["rmse"] == pytest.approx(rmse(Regressed(y, p)))
    assert found.probabilities == {}


def test_nothing_to_read(tmp_path):
    assert read_records(tmp_path, entry("class")) is None
    assert read_records(written(tmp_path, a=[0.1]), {"hparams": {}}) is None
