"""The commands printed after a fit of own series, run as printed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import simulate

import seqssm
from seqssm.cli.main import main
from tests.forecasting.conftest import SMALL
from tests.printed import commands, run_printed


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path, one_thread):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # removes variables that a command sets


@pytest.fixture
def wide():
    """400 hours of 4 series and a plan, with a column of text."""
    frame = simulate.series(400, 3).rename(columns={"date": "when"})
    return frame.assign(plan=np.sin(np.arange(400) / 5).round(3), remark="none of it")


def fit(*words):
    argv = ["forecasting", "fit", "--config", "smamba", "--data.file", "own.csv", "--output", "run", *SMALL]
    assert main([*argv, "--data.time_column", "when", *words]) == 0


def test_a_wide_file_with_own_columns_is_predicted(wide, capsys):
    wide.to_csv("own.csv", index=False, sep=";", decimal=",")
    fit("--data.text_columns", "drop", "--data.hist_columns", "[driver]", "--data.decimal", "comma")
    assert set(run_printed(capsys.readouterr().out)["unique_id"]) == set(wide.columns[2:-1])


def test_a_long_file_with_own_columns_and_properties_is_predicted(wide, capsys):
    names = list(wide.columns[1:5])
    long = wide.melt(id_vars="when", value_vars=names, var_name="shop", value_name="sold")
    long.to_csv("own.csv", index=False)
    pd.DataFrame({"shop": names, "size": range(4)}).to_csv("static.csv", index=False)
    layout = ["--data.layout", "long", "--data.id_column", "shop", "--data.value_column", "sold"]
    fit(*layout, "--data.static_file", "static.csv")
    assert set(run_printed(capsys.readouterr().out)["unique_id"]) == set(names)


def test_a_fit_of_a_frame_with_a_plan_prints_a_backtest(wide, capsys):
    """Predict needs the plan of the hours after the file, which the file of the frame does not have either."""
    wide = wide.drop(columns="remark")
    data = {"file": wide, "time_column": "when", "future_columns": ["plan"], "lookback": 24, "horizon": 6}
    small = {"d_model": 16, "d_state": 4, "blend": False}
    seqssm.fit("forecasting", data=data, model=small, trainer={"max_epochs": 1, "accelerator": "cpu"}, output="run")
    printed = capsys.readouterr().out
    assert [words[0] for words in commands(printed)] == ["predict"], "no command can read the test rows"
    wide.to_csv("own.csv", index=False)
    assert run_printed(printed, "own.csv")["y"].notna().all()
