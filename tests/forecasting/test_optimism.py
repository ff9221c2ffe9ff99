"""Backtests of rows that the model was trained or validated on; commands that are printed after a fit."""

from __future__ import annotations

import shlex
import shutil

import pandas as pd
import pytest
from seqssm_forecasting import simulate

import seqssm
from seqssm.cli.main import main

FLAGS = ["--data.lookback", "12", "--data.horizon", "3", "--model.d_model", "8", "--model.blend", "false"]
FLAGS += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--model.threads", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimism")
    simulate.walks(200, 2, seed=1).to_csv(folder / "walks.csv", index=False)
    words = [
        "--data.file",
        str(folder / "walks.csv"),
        "--data.val_from",
        "2018-05-21",
        "--data.test_from",
        "2018-06-10",
    ]
    assert main(["forecasting", "fit", "--config", "smamba", *FLAGS, *words, "--output", str(folder / "run")]) == 0
    return folder / "run"


def backtest(run, file, windows, capsys, *more) -> str:
    capsys.readouterr()
    words = ["--backtest", str(windows), "--output", str(run.parent / "b.csv"), "--overwrite", *more]
    assert main(["predict", str(run), str(file), *words]) == 0
    return capsys.readouterr().err


def test_windows_of_the_training_are_reported(run, capsys):
    """Nothing was said: the scores of such windows are those of the fit."""
    file = run.parent / "walks.csv"
    tested = 40 - 3 + 1  # windows of the test rows
    assert "warning" not in backtest(run, file, tested, capsys)
    error = backtest(run, file, tested + 4, capsys)
    line = "warning: the model was validated on rows of 4 of the 42 backtest windows; their scores are too good"
    assert error.count(line) == 1
    error = backtest(run, file, 30, capsys, "--step", "5")
    split = pd.read_csv(run / "split.csv").groupby("split")["id"].count()
    assert split["train"] == 140
    assert "trained on rows of 18 and validated on rows of 4 of the 30 backtest windows" in error


def test_other_series_and_other_values_are_not(run, tmp_path, capsys):
    simulate.walks(200, 2, seed=2).to_csv(tmp_path / "other.csv", index=False)
    assert "warning" not in backtest(run, tmp_path / "other.csv", 60, capsys)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run / "best.ckpt", alone / "best.ckpt")
    assert "warning" not in backtest(alone / "best.ckpt", run.parent / "walks.csv", 60, capsys)
    table = pd.read_csv(run.parent / "walks.csv")
    seqssm.load(run).predict(table, backtest=60)
    assert "backtest windows; their scores are too good" in capsys.readouterr().err


def printed_commands(text: str) -> list[list[str]]:
    """Return the commands of the lines after ``next:``, without the name of the program."""
    lines = text[text.index("next: ") + len("next: ") :].strip().splitlines()
    return [shlex.split(line)[1:] for line in lines]


@pytest.mark.parametrize("later", [0, 2, 3])
def test_the_printed_commands_run_with_future_covariates(later, tmp_path, capsys, monkeypatch):
    """The printed prediction was refused: it needs the covariates of rows after the file."""
    monkeypatch.chdir(tmp_path)
    table = simulate.walks(200, 2, seed=1).assign(price=lambda f: f.index % 7)
    if later:
        table.loc[200 - later :, ["walk_0", "walk_1"]] = None
    table.to_csv("prices.csv", index=False)
    words = ["--data.file", "prices.csv", "--data.future_columns", "price", "--output", "run"]
    assert main(["forecasting", "fit", "--config", "smamba", *FLAGS, *words]) == 0
    commands = printed_commands(capsys.readouterr().out)
    assert [words[0] for words in commands] == ["forecasting", "predict"]
    assert ("--backtest" in commands[1]) == (later < 3)
    for command in commands:
        assert main(command) == 0, capsys.readouterr().err
    assert pd.read_csv("predictions.csv")["yhat"].notna().all()
