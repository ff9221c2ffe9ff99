"""Rolling-origin cross-validation: splits, the Python function, `kfold --windows`, frames of other libraries."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from seqssm_forecasting import cross_validation, simulate
from seqssm_forecasting.series import Series
from seqssm_forecasting.splits import SplitRule

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError

from .conftest import SMALL

DATA = {"lookback": 24, "horizon": 6, "batch_size": 16}
MODEL = {"d_model": 8, "d_state": 2, "layers": 1, "blend": False}
TRAINER = {"max_epochs": 1, "accelerator": "cpu"}


def a_series(rows: int) -> Series:
    return Series(Path("x.csv"), np.zeros((rows, 2)), ["a", "b"])


def test_the_test_is_the_horizon_after_each_cutoff():
    rules = [SplitRule(24, 6, "70/10/20", windows=3, window=window) for window in range(3)]
    found = [rule.rows(a_series(200)) for rule in rules]
    assert [one["test"] for one in found] == [(158, 188), (164, 194), (170, 200)]
    cutoff = 182
    assert found[0]["train"] == (0, cutoff - int(cutoff * 10 / 80))
    assert found[0]["val"] == (found[0]["train"][1] - 24, cutoff)
    closer = SplitRule(24, 6, "ett_hour", windows=3, window=0, window_step=1).rows(a_series(200))
    assert closer["test"] == (168, 198)
    assert closer["train"] == (0, 192 - 48)
    rule = SplitRule(24, 6, "70/10/20", windows=9, window=0)
    splits = rule.rows(a_series(90))
    with pytest.raises(InputError, match="0 the val split has no window"):
        rule.require_windows(a_series(90), splits)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"windows": 3}, "--data.windows and --data.window must be given together"),
        ({"windows": 3, "window": 3}, "an index from 0 to the number of windows minus 1"),
        ({"windows": 3, "window": 0, "window_step": 0}, "at least 1 window and 1 step"),
        ({"windows": 3, "window": 0, "val_from": "2024", "test_from": "2025"}, "exclude each other"),
    ],
)
def test_options_that_contradict_each_other(options, words):
    with pytest.raises(InputError, match=words):
        SplitRule(24, 6, "70/10/20", **options)


@pytest.fixture(scope="module")
def frame():
    return simulate.series(260, 3)


def test_every_window_is_forecast_by_a_model_that_has_not_seen_it(frame):
    """Values after a cutoff do not change its forecasts; the columns are those of neuralforecast."""
    given = {"data": DATA, "model": MODEL, "trainer": TRAINER, "level": [80]}
    table = cross_validation(frame, windows=2, **given)
    assert list(table.columns) == ["unique_id", "ds", "cutoff", "y", "SMamba", "SMamba-lo-80", "SMamba-hi-80"]
    assert len(table) == 2 * 6 * 4
    dates = pd.to_datetime(frame["date"])
    assert list(pd.to_datetime(table["cutoff"]).unique()) == [dates[247], dates[253]]
    actual = frame.melt("date", var_name="unique_id").set_index(["unique_id", "date"])["value"]
    ids = zip(table["unique_id"], pd.to_datetime(table["ds"]))
    np.testing.assert_allclose(table["y"], [actual[one] for one in ids])
    spoilt = frame.copy()
    spoilt.iloc[254:, 1:] = 1000.0
    spoilt.iloc[248:254, 2:] += 50.0
    other = cross_validation(spoilt, windows=2, **given)
    first = table["cutoff"] == table["cutoff"].iloc[0]
    np.testing.assert_array_equal(table[first]["SMamba"], other[first]["SMamba"])
    assert not np.allclose(table[~first]["SMamba"], other[~first]["SMamba"])


def test_a_series_that_a_window_cannot_train_keeps_its_truth(frame):
    """Its column `y` was empty in these windows."""
    late = frame.copy()
    late.iloc[:244, 1] = np.nan
    given = {"data": {**DATA, "missing": "mask"}, "model": MODEL, "trainer": TRAINER}
    table = cross_validation(late, windows=2, models=["smamba", "dlinear"], **{**given, "model": {}})
    own = table[table["unique_id"] == frame.columns[1]]
    assert own[["SMamba", "DLinear"]].isna().all().all()
    np.testing.assert_allclose(own["y"], frame.iloc[248:, 1])
    assert own["reason"].str.contains("no window with values in the train split").all()
    rest = table[table["unique_id"] != frame.columns[1]]
    assert rest.drop(columns="reason").notna().all().all()
    assert (rest["reason"] == "").all()


def test_without_refit_one_fit_forecasts_all_windows(frame, monkeypatch):
    fits = []
    fit = seqssm.fit
    monkeypatch.setattr(seqssm, "fit", lambda *a, **k: fits.append(k["data"]["window"]) or fit(*a, **k))
    given = {"data": DATA, "model": MODEL, "trainer": TRAINER, "models": ["smamba", "dlinear"]}
    small = {**given, "model": {}}
    table = cross_validation(pa.Table.from_pandas(frame), windows=3, refit=False, step=2, **small)
    assert fits == [0, 0]
    assert list(table.columns) == ["unique_id", "ds", "cutoff", "y", "SMamba", "DLinear"]
    assert table.notna().all().all()
    cutoffs = pd.to_datetime(table["cutoff"]).unique()
    assert list(cutoffs) == list(pd.to_datetime(frame["date"])[[249, 251, 253]])
    with pytest.raises(InputError, match="no such model: smambo"):
        cross_validation(frame, models=["smambo"])
    with pytest.raises(InputError, match="contradicts --models smamba"):
        cross_validation(frame, models=["smamba", "dlinear"], model={"network": "dlinear"})
    with pytest.raises(InputError, match="levels are percentages"):
        cross_validation(frame, level=[0.8])
    assert fits == [0, 0], "refused before anything is trained"


@pytest.mark.long
def test_kfold_windows(my_csv, tmp_path, capsys):
    study = tmp_path / "study"
    command = ["forecasting", "kfold", "--config", "smamba", "--data.file", str(my_csv), *SMALL]
    command += ["--trainer.max_epochs", "1", "--models", "smamba,last_value", "--output", str(study)]
    assert main([*command, "--windows", "2"]) == 0
    rows = list(csv.DictReader((study / "folds.csv").read_text().splitlines()))
    assert [(row["fold"], row["model"]) for row in rows] == [(f, m) for f in "01" for m in ("smamba", "last_value")]
    frame = pd.read_csv(my_csv).iloc[:, 1:]
    scaled = (frame - frame.iloc[: 394 - int(394 / 8)].mean()) / frame.iloc[: 394 - int(394 / 8)].std(ddof=0)
    expected = ((scaled.iloc[394:] - scaled.iloc[393]) ** 2).mean().mean()
    assert float(rows[3]["mse"]) == pytest.approx(expected, rel=1e-4)
    assert (study / "smamba" / "window-1_seed-1" / "best.ckpt").is_file()
    capsys.readouterr()
    assert main([*command, "--windows", "2", "--folds", "2", "--overwrite"]) == 2
    assert main([*command, "--windows", "two", "--overwrite"]) == 2
    assert "--windows two: expected a number" in capsys.readouterr().err


def test_frames_of_other_libraries(trained, my_csv):
    frame = pd.read_csv(my_csv, parse_dates=["date"])
    model = seqssm.load(trained)
    expected = model.predict(frame)["yhat"]
    np.testing.assert_array_equal(model.predict(pa.Table.from_pandas(frame))["yhat"], expected)
    polars = pytest.importorskip("polars", reason="polars is not installed: pip install 'seqssm[dev]'")
    np.testing.assert_array_equal(model.predict(polars.from_pandas(frame))["yhat"], expected)
    with pytest.raises(InputError, match="cannot be converted to a pandas DataFrame"):
        model.predict(pa.chunked_array([[1.0, 2.0]]))
