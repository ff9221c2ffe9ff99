"""Dates of the output have the form of the user's file: days without a time of day, hours with it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import steps

import seqssm
from seqssm.cli.main import main
from seqssm.prediction.loop import outcomes

ALIASES = [("D", True), ("2D", True), ("7D", True), ("B", True), ("MS", True), ("ME", True), ("QS-JAN", True)]
ALIASES += [("YS-JAN", True), ("SME", True), ("MS@15", True), ("observed:86400,172800", True), ("bh", False)]
ALIASES += [("h", False), ("36h", False), ("15min", False), ("s", False), ("observed:32400,36000", False)]


@pytest.mark.parametrize(("alias", "whole"), ALIASES)
def test_steps_of_whole_days(alias, whole):
    assert steps.parse(alias).whole_days() == whole


def days(clock: str = "") -> pd.DataFrame:
    dates = pd.date_range(f"2024-01-01 {clock}", periods=150, freq="D")
    return pd.DataFrame({"date": dates, "a": np.sin(np.arange(150) / 3), "b": np.arange(150.0) % 7})


@pytest.fixture(scope="module")
def daily(tmp_path_factory):
    """A model of daily series, and its file."""
    folder = tmp_path_factory.mktemp("daily")
    days().to_csv(folder / "my.csv", index=False)
    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(folder / "my.csv"), "--data.lookback"]
    command += ["14", "--data.horizon", "3", "--model.network", "dlinear", "--model.blend", "false"]
    command += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--output", str(folder / "run")]
    assert main(command) == 0
    return folder


@pytest.mark.parametrize("flags", [[], ["--backtest", "2"], ["--wide"], ["--quantiles", "0.1", "--horizon", "7"]])
def test_days_are_written_as_dates(daily, tmp_path, flags):
    output = tmp_path / "out.csv"
    assert main(["predict", str(daily / "run"), str(daily / "my.csv"), "--output", str(output), *flags]) == 0
    table = pd.read_csv(output, dtype=str)
    for name in {"ds", "cutoff"} & set(table):
        assert table[name].str.fullmatch(r"2024-0\d-\d\d").all(), table[name].iloc[0]
    frame = seqssm.load(daily / "run").predict(daily / "my.csv")
    assert frame["ds"].dtype.kind == "M"
    if not flags:
        assert list(pd.to_datetime(table["ds"])) == list(frame["ds"])


def test_a_time_of_day_in_one_file_is_kept_in_the_table(daily, tmp_path):
    days("06:00").to_csv(tmp_path / "noon.csv", index=False)
    output = tmp_path / "out.csv"
    command = [
        "predict",
        str(daily / "run"),
        str(daily / "my.csv"),
        str(tmp_path / "noon.csv"),
        "--output",
        str(output),
    ]
    assert main(command) == 0
    assert set(pd.read_csv(output)["ds"].str[10:]) == {" 00:00:00", " 06:00:00"}


def test_an_interrupted_prediction_is_resumed_with_dates(daily, tmp_path, monkeypatch):
    """The form is chosen when the parts are merged, so that parts of earlier versions follow it too."""

    def stop(*given):
        yield next(iter(outcomes(*given)))
        raise KeyboardInterrupt

    for name in "ab":
        days().to_csv(tmp_path / f"{name}.csv", index=False)
    output = tmp_path / "out.csv"
    command = ["predict", str(daily / "run"), str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--output", str(output)]
    command += ["--batch-size", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("seqssm.prediction.job.outcomes", stop)
        assert main(command) == 130
    assert main([*command, "--resume"]) == 0
    assert pd.read_csv(output)["ds"].str.len().eq(10).all()


def test_hours_that_happen_to_be_midnight_keep_their_time(daily, tmp_path):
    dates = pd.date_range("2024-01-01", periods=24 * 7 + 1, freq="h")[:-1]
    pd.DataFrame({"date": dates, "a": np.sin(np.arange(len(dates)) / 4)}).to_csv(tmp_path / "hours.csv", index=False)
    command = [
        "forecasting",
        "fit",
        "--config",
        "smamba",
        "--data.file",
        str(tmp_path / "hours.csv"),
        "--data.lookback",
    ]
    command += ["12", "--data.horizon", "1", "--model.network", "dlinear", "--model.blend", "false"]
    command += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--output", str(tmp_path / "run")]
    assert main(command) == 0
    output = tmp_path / "out.csv"
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "hours.csv"), "--output", str(output)]) == 0
    assert pd.read_csv(output)["ds"].tolist() == ["2024-01-08 00:00:00"]


def test_messages_of_predict_name_its_own_options(daily, tmp_path, capsys):
    (tmp_path / "other.csv").write_text("date,a,b\n01.02.2024,1,2\nx,1,2\n")
    assert main(["predict", str(daily / "run"), str(tmp_path / "other.csv"), "--output", str(tmp_path / "o.csv")]) == 2
    error = capsys.readouterr().err
    assert "--date-format" in error
    assert "date_format" not in error
