"""Columns of classes and numbers: one declaration, written, read back, and read from tables of earlier versions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from seqssm.errors import InputError
from seqssm.metrics.columns import ID, PATIENT, OutputColumns, read_test_records, write_test_records

NAMES = ("status", "NA")  # names of other columns, and what pandas takes for missing
P = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
CLASSES = OutputColumns(NAMES)
LABELS = OutputColumns(NAMES, "labels")
NUMBER = OutputColumns(("size",), "value")
NUMBERS = OutputColumns(("a", "b"), "value")
KNOWN = np.array([[1, 0], [np.nan, 1], [0, 0]])
OF_LABELS = ["label_status", "label_NA", "p_status", "p_NA", "positive_status", "positive_NA"]
CASES = [  # target, truth, estimates, columns
    (CLASSES, np.array([0, 1, 1]), P, ["label", "p_status", "p_NA", "prediction"]),
    (LABELS, KNOWN, P, OF_LABELS),
    (OutputColumns(NAMES, "labels", "t."), KNOWN, P, [f"t.{name}" for name in OF_LABELS]),
    (NUMBER, np.array([[1.5], [2], [1e-9]]), P[:, :1], ["label", "prediction"]),
    (NUMBERS, 2 * P, P, ["label_a", "label_b", "prediction_a", "prediction_b"]),
]


@pytest.mark.parametrize(("outputs", "truth", "values", "columns"), CASES)
def test_what_is_written_is_read_back(outputs, truth, values, columns, tmp_path):
    table = outputs.table(truth, values)
    assert list(table) == columns
    assert outputs.columns == [name for name in columns if name not in outputs.labels]
    write_test_records(tmp_path, pd.concat([pd.DataFrame({ID: ["1", "02", "NA"]}), table], axis=1))
    found = read_test_records(tmp_path, [outputs])
    assert found[ID].tolist() == ["1", "02", "NA"]
    for own, expected in zip(outputs.read(found), (truth, values)):
        np.testing.assert_allclose(own, expected)
    row = outputs.row(values[0])
    assert list(row) == outputs.columns
    assert [row[name] for name in outputs.decisions] == [table[name][0] for name in outputs.decisions]


def test_decisions_follow_from_thresholds():
    row = LABELS.row([0.4, 0.6], [0.3, 0.7])
    assert row == {"p_status": 0.4, "p_NA": 0.6, "positive_status": 1, "positive_NA": 0}
    assert CLASSES.decide({"p_status": 0.2, "p_NA": 0.8}) == {"prediction": "NA"}
    assert CLASSES.decide({"p_status": 0.2}) == LABELS.decide({"p_status": 0.2, "p_NA": np.nan}) == {}
    assert CLASSES.decided({"prediction": "NA"}) == [False, True]
    assert LABELS.table(np.ones((3, 2)), P, [0.5, 0.3])["positive_NA"].tolist() == [0, 1, 1]


XY, HALF = ("x", "y"), [[0.8, 0.2], [0.3, 0.7]]
BOTH = {"x": [0.8, 0.3], "y": [0.2, 0.7]}
ONE_HOT = {"x_truth": [1, 0], "y_truth": [0, 1]}
NAMED = {"truth": ["label", "y"], "label": [0.8, 0.3], "y": [0.2, 0.7]}  # a class has the name of a column
CASE = {"Y": ["x", "y"], "Y_hat": ["x", "y"], "p_x": [0.8, 0.3], "p_y": [0.2, 0.7]}
IDS, LARGE = ["a", "b"], ["A", "B"]
EARLIER = [  # columns, target, truth, estimates
    ({"id": IDS, **BOTH, **ONE_HOT}, OutputColumns(XY, "labels"), [[1, 0], [0, 1]], HALF),
    ({"id": IDS, **BOTH, **ONE_HOT}, OutputColumns(XY), [0, 1], HALF),
    ({"id": IDS, "truth": ["x", "y"], **BOTH}, OutputColumns(XY), [0, 1], HALF),
    ({"id": IDS, **NAMED}, OutputColumns(("label", "y")), [0, 1], HALF),
    ({"id": IDS, "x_truth": [3, 4], "x": [5, 6]}, OutputColumns(("x",), "value"), [[3], [4]], [[5], [6]]),
    ({"case_id": IDS, **CASE}, OutputColumns(XY), [0, 1], HALF),
    (
        {"slide_id": IDS, "case_id": LARGE, "t.Y_x": [1, 0], "t.p_x": [0.8, 0.3]},
        OutputColumns(("x",), "labels", "t."),
        [[1], [0]],
        [[0.8], [0.3]],
    ),
    (
        {"case_id": IDS, "patient": LARGE, "size_true": [1, 2], "size_predicted": [3, 4]},
        OutputColumns(("size",), "value", "size."),
        [[1], [2]],
        [[3], [4]],
    ),
]


@pytest.mark.parametrize(("columns", "outputs", "truth", "values"), EARLIER)
def test_tables_of_earlier_versions(columns, outputs, truth, values, tmp_path):
    (tmp_path / "figures").mkdir()
    name = "test_records.csv" if "id" in columns else "predictions.csv"
    pd.DataFrame(columns).to_csv(tmp_path / "figures" / name, index=False)
    found = read_test_records(tmp_path, [outputs])
    assert found[ID].tolist() == IDS
    if PATIENT in found:
        assert found[PATIENT].tolist() == LARGE
    assert (PATIENT in found) == bool({"patient", "slide_id"} & set(columns))
    for own, wanted in zip(outputs.read(found), (truth, values)):
        np.testing.assert_array_equal(own, wanted)


def test_no_table_and_a_foreign_one(tmp_path):
    assert read_test_records(tmp_path, [CLASSES]) is None
    write_test_records(tmp_path, pd.DataFrame({ID: ["a"], "label": ["status"]}))
    with pytest.raises(InputError, match=r"test_records.csv: has no column p_status; repeat seqssm test"):
        read_test_records(tmp_path, [CLASSES])
