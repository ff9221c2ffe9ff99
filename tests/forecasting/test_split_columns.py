"""Columns that hold splits: named as such, in files and data frames, and never a series without a word."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import files
from seqssm_forecasting.data import ForecastingData
from seqssm_forecasting.reading import Reading

from seqssm.errors import InputError

ROWS = 60
WORDS = [("train", "val", "test")[min(2, 3 * k // ROWS)] for k in range(ROWS)]
NUMBERS = [("train", "val", "test").index(word) for word in WORDS]
NOTE = "column {name} holds splits and is not used; series are split by time (--data.split, --data.val_from)"


@pytest.fixture
def frame():
    """60 days of two series."""
    days = pd.date_range("2024-01-01", periods=ROWS)
    return pd.DataFrame({"date": days, "s0": np.arange(ROWS) + 0.25, "s1": 100.5 - np.arange(ROWS)})


@pytest.fixture
def read(tmp_path):
    """Write a frame as CSV and read it."""

    def go(frame, **reading):
        path = tmp_path / "x.csv"
        frame.to_csv(path, index=False)
        return files.read_series(path, Reading(**reading))[0]

    return go


@pytest.mark.parametrize("order", [("train", "valid", "test"), ("test", "val", "train")])
def test_words_are_named(frame, read, order):
    """A cell was "not a number"; in the long layout the column was ignored among others."""
    frame["role"] = [order[min(2, 3 * k // ROWS)] for k in range(ROWS)]
    begin = ["2024-01-21", "2024-02-10"] if order[0] == "train" else ["DATE", "DATE"]
    advice = rf"--data.val_from {begin[0]} --data.test_from {begin[1]} split at dates"
    words = rf"column role holds splits \({order[0]}\), not numbers; .*: {advice}, .* drop"
    with pytest.raises(InputError, match=rf"x.csv: line 1: {words}"):
        read(frame)
    with pytest.raises(InputError, match=rf"^DataFrame: {words}"):  # dates without 00:00:00, and no line
        files.read_series(frame)
    note = NOTE.format(name="role")
    assert note in read(frame, text_columns="drop").notes
    assert note not in read(frame, columns=("s0",)).notes
    rows = [(name, *row) for name in "ab" for row in zip(frame["date"], range(ROWS), frame["role"])]
    long = pd.DataFrame(rows, columns=["unique_id", "ds", "y", "role"])
    with pytest.raises(InputError, match=rf"column role holds splits \({order[0]}\); .*: {advice}, .* drop"):
        read(long)  # were ignored with a note, and the rows split by percentages
    assert note in read(long, text_columns="drop").notes
    assert note in read(long, by_date=True).notes  # as the message advises
    assert note in read(frame, by_date=True).notes
    trained = {"dated": True, "numbered": False, "freq": "D", "columns": ["a", "b"]}
    assert "column role holds splits and is not used" in files.read_for_model(long, Reading(), trained)[0].notes


@pytest.mark.parametrize(
    ("name", "cells", "values", "begin"),
    [
        ("is_test", [int(word == "test") for word in WORDS], "0, 1", ("DATE", "2024-02-10")),
        ("In Train", [1.0 if word == "train" else None for word in WORDS], "1", ("DATE", "DATE")),
        ("split", NUMBERS, "0, 1, 2", ("2024-01-21", "2024-02-10")),
        ("Data-Set", [k + 1 for k in NUMBERS], "1, 2, 3", ("2024-01-21", "2024-02-10")),
        ("partition_no", [2 - k for k in NUMBERS], "2, 1, 0", ("DATE", "DATE")),
    ],
)
def test_numbers_in_columns_of_splits_are_no_series(frame, read, name, cells, values, begin):
    """They were a series of the model."""
    frame[name] = cells
    advice = rf"--data.val_from {begin[0]} --data.test_from {begin[1]} split at dates, --data.columns lists the series"
    with pytest.raises(InputError, match=rf"column {name} seems to hold splits \({values}\), .*: {advice}"):
        read(frame)
    assert NOTE.format(name=name) in read(frame, text_columns="drop").notes
    assert read(frame, columns=("s0", name)).columns == ["s0", name]
    assert read(frame, future=(name,)).future == [name]
    data = ForecastingData(file=frame, hist_columns=name)
    assert name in files.read_series(frame, data.reading)[0].columns
    rows = [(one, *row) for one in "ab" for row in zip(frame["date"], range(ROWS), cells)]
    long = pd.DataFrame(rows, columns=["unique_id", "ds", "y", name])
    if begin == ("DATE", "DATE"):  # integers that do not follow the time may be anything
        assert NOTE.format(name=name) in files.read_series(long)[0].notes
    else:
        with pytest.raises(InputError, match=rf"column {name} seems to hold splits \({values}\); .* drop leaves"):
            files.read_series(long)
    assert NOTE.format(name=name) in files.read_series(long, Reading(text_columns="drop"))[0].notes


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("set", [20 + k % 3 for k in range(ROWS)]),  # set points
        ("set", [k % 3 + 0.5 for k in range(ROWS)]),
        ("split", [k % 20 for k in range(ROWS)]),
        ("split", [0, 5] * (ROWS // 2)),
        ("test", [k % 4 for k in range(ROWS)]),  # tests per day
        ("testing_rate", [k % 2 for k in range(ROWS)]),
        ("offset", [k % 2 for k in range(ROWS)]),
    ],
)
def test_measurements_with_such_names_are_series(frame, read, name, cells):
    frame[name] = cells
    assert read(frame).columns == ["s0", "s1", name]


def test_a_trained_model_keeps_its_series(frame):
    """A model that was trained with a column of that name predicts as before."""
    frame["is_test"] = NUMBERS
    frame["is_test"] //= 2
    summary = {"dated": True, "numbered": False, "freq": "D", "columns": ["s0", "s1", "is_test"]}
    assert files.read_for_model(frame, Reading(), summary)[0].columns == summary["columns"]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([*WORDS[:50], "tset", *WORDS[51:]], "line 52, column split: 'tset' is not a split"),
        (["trian" if word == "train" else word for word in WORDS], "line 2, column split: 'trian' is not a split"),
        (["train"] * ROWS, r"line 1: column split holds splits \(train\)"),
        ([None] * 30 + WORDS[30:], r"line 1: column split holds splits \(val\)"),
        ([None, *WORDS[1:40], "n/a", *WORDS[41:]], "--data.val_from 2024-01-21 --data.test_from 2024-02-11 split"),
    ],
)
def test_misspelt_and_missing_words_are_named(frame, read, cells, words):
    """These were "not a number"."""
    frame["split"] = cells
    with pytest.raises(InputError, match=words):
        read(frame)


def test_words_after_many_empty_cells(read):
    days = pd.date_range("2024-01-01", periods=300)
    frame = pd.DataFrame({"date": days, "s0": np.arange(300), "role": [None] * 150 + ["val"] * 75 + ["test"] * 75})
    with pytest.raises(InputError, match=r"column role holds splits \(val\)"):
        read(frame)


def test_errors_of_data_frames_name_no_line(frame):
    for reading in (Reading(columns=("s7",)), Reading(time_column="when"), Reading(future=("plan",))):
        with pytest.raises(InputError, match=r"^DataFrame: has no column"):
            files.read_series(frame, reading)


def test_row_numbers_are_not_advised_as_dates():
    rows = [(name, k, 0.5 * k, word) for name in "ab" for k, word in enumerate(WORDS)]
    long = pd.DataFrame(rows, columns=["unique_id", "ds", "y", "split"])
    assert NOTE.format(name="split") in files.read_series(long)[0].notes


def test_dates_of_the_data_module_answer_a_column_of_splits(frame):
    data = ForecastingData(file=frame, val_from="2024-01-21", test_from="2024-02-10")
    assert data.reading.by_date
    assert not ForecastingData(file=frame).reading.by_date
