"""Panels through the commands: statuses of series, intervals, coverage, tests on other files, data frames."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting.predict import measured_coverage

import seqssm
from seqssm.cli.main import main

from .conftest import SMALL
from .test_cases import panel

SPANS = {"A": (0, 300), "B $x$\n" + 200 * "b": (0, 300), "C_ended": (0, 190), "D": (60, 300), "E_new": (240, 300)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a panel of five series, tested, and the file."""
    folder = tmp_path_factory.mktemp("panel")
    path = folder / "panel.csv"
    panel(**SPANS).to_csv(path, index=False)
    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(path), "--output", str(folder / "run")]
    assert main([*command, *SMALL, "--trainer.max_epochs", "1"]) == 0
    assert main(["forecasting", "test", str(folder / "run")]) == 0
    return folder / "run", path


def predict(run, path, *words):
    output = run.parent / "forecast.csv"
    code = main(["predict", str(run / "best.ckpt"), str(path), "--output", str(output), "--overwrite", *words])
    return code, pd.read_csv(output)


def test_every_series_has_its_rows_and_status(run, capsys):
    code, table = predict(*run, "--level", "80", "--figures", str(run[0].parent / "figures"))
    assert code == 3, "some rows are not ok"
    names = [*(name for name in SPANS if name != "E_new"), "E_new"]
    assert list(table["unique_id"].unique()) == names
    assert (table.groupby("unique_id").size() == 6).all()
    assert table.groupby("unique_id")["ds"].unique().map(tuple).nunique() == 1, "a panel shares its dates"
    bad = table[table["status"] == "failed"]
    assert set(bad["unique_id"]) == {"C_ended", "E_new"}
    assert bad[["yhat", "yhat-lo-80", "yhat-hi-80"]].isna().all().all()
    reasons = bad.groupby("unique_id")["reason"].first()
    assert reasons["C_ended"] == "no value in the last 24 rows (last value: 2021-07-09)"
    assert reasons["E_new"] == "not trained on: no window with values in the train split"
    assert table[table["status"] == "ok"][["yhat", "yhat-lo-80"]].notna().all().all()
    error = capsys.readouterr().err
    assert "5 series: 3 ok, 2 failed" in error
    assert "no forecast of C_ended: no value in the last 24 rows" in error
    assert len(list((run[0].parent / "figures").glob("*.png"))) == 3 + 1, "series with unusual names are drawn too"


def test_a_series_missing_from_the_file_does_not_stop_the_others(run, tmp_path):
    path = tmp_path / "other.csv"
    panel(A=(0, 300), D=(60, 300), F=(0, 300)).to_csv(path, index=False)
    code, table = predict(run[0], path)
    assert code == 3
    status = table.groupby("unique_id")["status"].first()
    assert (status["A"], status["D"]) == ("ok", "ok")
    reasons = table.groupby("unique_id")["reason"].first()
    assert reasons["C_ended"] == "not in the file"
    assert reasons["F"] == "the model was not trained on this series"


def test_statuses_in_wide_output(run, capsys):
    code, table = predict(*run, "--wide")
    assert code == 3
    assert "4 series: 3 ok, 1 failed" in capsys.readouterr().err
    assert table["A"].notna().all()
    assert table["C_ended"].isna().all()
    assert table["reason"].str.contains("C_ended: no value in the last 24 rows").all()


def test_intervals_are_pooled_only_where_necessary(run, capsys):
    predict(*run, "--level", "80")
    error = capsys.readouterr().err
    assert "80 % intervals from the pooled errors of all series" in error


def test_a_coverage_far_from_nominal_gives_a_warning(run, capsys):
    folder, path = run
    coverage = measured_coverage(folder / "best.ckpt")
    assert set(coverage) == {80, 90, 95}
    kept = (folder / "metrics.json").read_text()
    content = json.loads(kept)
    (table,) = [table for table in content["test"]["tables"] if table["title"].startswith("Intervals")]
    try:
        table["rows"][0]["coverage"] = 68.5
        (folder / "metrics.json").write_text(json.dumps(content))
        capsys.readouterr()
        predict(folder, path, "--level", "80")
        words = "warning: on the test split the 80 % intervals of this model contained 68.5 % of the values"
        assert words in capsys.readouterr().err
        table["rows"][0]["coverage"] = 78.0
        (folder / "metrics.json").write_text(json.dumps(content))
        predict(folder, path, "--level", "80")
        assert "warning: on the test split" not in capsys.readouterr().err
    finally:
        (folder / "metrics.json").write_text(kept)


def test_another_file_is_tested_with_the_scaler_of_the_checkpoint(run, tmp_path, capsys):
    """All its windows are tested, into a separate folder; the figures of the run are kept."""
    folder, path = run
    before = (folder / "metrics.json").read_text()
    own = panel(**{name: (0, 300) for name in SPANS if name != "E_new"})
    own["y"] = 2 * own["y"] + 7
    other = tmp_path / "other.csv"
    own.to_csv(other, index=False)
    output = tmp_path / "out"
    assert main(["forecasting", "test", str(folder), "--data.file", str(other), "--output", str(output)]) == 0
    assert (folder / "metrics.json").read_text() == before
    printed = capsys.readouterr()
    assert "none of the 300 tested records is in the run's training data" in printed.err
    report = json.loads((output / "metrics.json").read_text())["test"]
    assert f"{300 - 30 + 1} windows" in report["tables"][0]["title"]
    model = seqssm.load(folder, accelerator="cpu")
    back = model.predict(other, backtest=271)
    std = dict(zip(model.summary["columns"], model.summary["std"].tolist()))
    error = (back["y"] - back["yhat"]) / back["unique_id"].map(std)
    assert (error**2).mean() == pytest.approx(report["metrics"]["mse"], rel=1e-4)
    assert main(["forecasting", "test", str(folder), "--data.file", str(path), "--data.lookback", "12"]) == 2
    assert main(["forecasting", "test", str(folder), "--data.file", str(other), "--data.split", "50/25/25"]) == 2


def test_frames_are_predicted_as_files_are(run):
    folder, path = run
    model = seqssm.load(folder, accelerator="cpu")
    frame = pd.read_csv(path)
    one, other = model.predict(frame, level=80), model.predict(path, level=["80"])
    np.testing.assert_array_equal(one["yhat"], other["yhat"])
    assert list(one["status"]) == list(other["status"])
    assert set(one["id"]) == {"DataFrame"}
    embedded = model.embed(path)
    assert len(embedded) == 1
    assert embedded["e0"].notna().all()
    longer = model.embed(path, horizon=2 * model.summary["horizon"])
    pd.testing.assert_frame_equal(longer, embedded, obj="features of the window, not of a recursive step")
    with pytest.raises(seqssm.InputError, match="backtest: embeddings are those of the last window"):
        model.embed(path, backtest=5)
