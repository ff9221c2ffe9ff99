"""The demo: simulated series with known parameters, a trained model, and its errors next to the lowest possible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.tools.page import Section, read_test_table
from seqssm_forecasting import simulate

ROWS, LOOKBACK, HORIZON, SEED = 10_000, 48, 24, 7
LEVELS = ["80", "95"]  # coverage of the prediction intervals, percent


def demo(folder: Path) -> list[Section]:
    """Simulate series, train, test and predict with the commands that a user types; about half a minute on two cores.

    Args:
        folder: folder for all files.
    """
    from seqssm.cli.main import run

    truth = simulate.Network()
    whole = simulate.series(ROWS, SEED, truth)
    history, future = whole.iloc[:-HORIZON], whole.iloc[-HORIZON:]
    known, later = folder / "made.csv", folder / "made_and_next_day.csv"
    history.to_csv(known, index=False, lineterminator="\n")
    whole.to_csv(later, index=False, lineterminator="\n")
    run_folder, table = folder / "run", folder / "forecast.csv"
    fit = ["--config", "smamba", "--data.file", str(known), "--data.lookback", str(LOOKBACK)]
    fit += ["--data.horizon", str(HORIZON), "--model.d_model", "64"]
    fit += ["--model.learning_rate", "2e-3", "--model.schedule", "cosine"]
    fit += ["--model.use_norm", "false", "--trainer.max_epochs", "5", "--trainer.accelerator", "cpu"]
    run(["forecasting", "fit", *fit, "--seed_everything", str(SEED), "--output", str(run_folder)])
    run(["forecasting", "test", str(run_folder)])
    figures = folder / "figures"
    predict = ["predict", str(run_folder / "best.ckpt"), "--accelerator", "cpu", "--level", *LEVELS]
    run([*predict, "--output", str(table), "--", str(known)])
    backtest = [*predict, "--backtest", "1", "--output", str(folder / "backtest.csv"), "--figures", str(figures)]
    run([*backtest, "--", str(later)])
    return [
        _errors(run_folder, history, truth),
        _forecast(table, future, figures),
    ]


def _errors(run_folder: Path, history: pd.DataFrame, truth: simulate.Network) -> Section:
    """Return the table of `test` with an additional row: the lowest possible error."""
    models = read_test_table(run_folder, "Test, scaled")
    train = history.iloc[: int(0.7 * len(history)), 1:].to_numpy()
    floor = (truth.floor(HORIZON) / train.var(axis=0)[:, None]).mean()
    own, others = models["mse"].iloc[0], models["mse"].iloc[1:]
    headline = f"Mean squared error {own:.3f}; best of the others {others.min():.3f}, lowest possible {floor:.3f}."
    models.loc[len(models)] = {"model": "best possible (from the simulation)", "mse": floor, "mae": np.nan}
    lags = ", ".join(str(lag) for lag in truth.lags)
    text = (
        f"{len(truth.names)} simulated series of {len(history)} hours: daily and weekly cycles, and a random component "
        f"that appears in the first series {lags} hours earlier than in the others. S-Mamba reads all series together "
        "and can use this; DLinear and the naive forecasts treat each series separately and cannot. The errors are "
        "means over all windows of the last fifth of the data, which was not used for training, on series scaled to "
        "standard deviation 1. S-Mamba was trained for 5 epochs without window normalisation, because the level of "
        "these series does not drift. The last row of the first table is the exact lower bound: the variance of noise "
        "and random component that cannot be predicted.\n\n"
        "These series are constructed so that reading them together helps. On real data sets with few series it often "
        "does not: see the measurements in the README of the domain."
    )
    steps = [("Mean squared error by step ahead, scaled", read_test_table(run_folder, "Mean squared error by step"))]
    return Section(
        "Forecasting: series that predict each other",
        text,
        [("Test, scaled", models), *steps],
        [run_folder / "figures" / "error_by_step.png"],
        headline=headline,
    )


def _forecast(table: Path, future: pd.DataFrame, figures: Path) -> Section:
    """Compare the forecast beyond the end of the file with the actual values."""
    forecast = pd.read_csv(table)
    came = future.melt(id_vars="date", var_name="unique_id", value_name="actual")
    came["ds"] = came["date"].astype(str)
    joined = forecast.merge(came[["unique_id", "ds", "actual"]], on=["unique_id", "ds"], how="left", validate="1:1")
    shown = joined[joined["ds"].isin(joined["ds"].unique()[[0, 5, 11, 23]])]
    numbers = [name for name in forecast.columns if name.startswith("yhat")]
    text = (
        f"`seqssm predict` forecasts the {HORIZON} hours after the end of the file, with dates and in the file's "
        "units. These hours were held back before training; the column 'actual' has their values. `--level 80 95` adds "
        "prediction intervals, calibrated on the validation split: 80 % and 95 % of the actual values should be inside "
        "them.\n\n"
        "The figures are drawn by `--figures` in a backtest (`--backtest 1`) of the file with these hours: history, "
        "forecast, intervals, and the actual values as a dotted line."
    )
    return Section(
        "Forecasting: the day after the end of the file",
        text,
        [("Forecast, 4 of 24 hours", shown[["unique_id", "ds", *numbers, "actual", "status"]])],
        [path for path in sorted(figures.glob("*.png")) if "overview" not in path.name],
    )
