"""The commands with options of users: modes, splits, covariates, masks, intervals, quantiles, backtests."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from seqssm_forecasting import simulate
from seqssm_forecasting.data import ForecastingData
from seqssm_forecasting.model import SMamba

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.training import checkpoint

from .conftest import SMALL


@pytest.fixture
def frame():
    return simulate.series(400, 3)


@pytest.fixture
def fit(tmp_path):
    """Fit and test on a frame or file; return the run folder."""

    def run(frame, *words, test=True):
        path = tmp_path / "x.csv"
        if isinstance(frame, pd.DataFrame):
            frame.to_csv(path, index=False)
        folder = tmp_path / "run"
        command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(path), "--output", str(folder)]
        assert main([*command, "--overwrite", *SMALL, "--trainer.max_epochs", "1", *words]) == 0
        if test:
            assert main(["forecasting", "test", str(folder)]) == 0
        return folder

    return run


def tables(folder):
    found = json.loads((folder / "metrics.json").read_text())["test"]["tables"]
    return {table["title"].split(" ")[0]: pd.DataFrame(table["rows"]) for table in found}


# -- horizon, wide, intervals, backtest: on the run that all tests share -----------------------------------------------


def test_a_shorter_horizon_is_the_beginning_of_the_longer(trained, my_csv):
    model = seqssm.load(trained / "best.ckpt", accelerator="cpu")
    whole, short = model.predict(my_csv), model.predict(my_csv, horizon=2, level=["90"])
    assert len(short) == 4 * 2
    for name, own in short.groupby("unique_id"):
        np.testing.assert_array_equal(own["yhat"], whole[whole["unique_id"] == name]["yhat"][:2])
    with pytest.raises(InputError, match=r"must be in \[1, "):
        model.predict(my_csv, horizon=0)


def test_intervals_from_the_checkpoint(trained, my_csv, capsys):
    model = seqssm.load(trained / "best.ckpt", accelerator="cpu")
    table = model.predict(my_csv, level=["80", "90"])
    assert list(table.columns[4:9]) == ["yhat", "yhat-lo-80", "yhat-hi-80", "yhat-lo-90", "yhat-hi-90"]
    wide = table["yhat-hi-90"] - table["yhat-lo-90"]
    assert (wide >= table["yhat-hi-80"] - table["yhat-lo-80"]).all()
    np.testing.assert_allclose((table["yhat-hi-80"] + table["yhat-lo-80"]) / 2, table["yhat"], rtol=1e-6)
    kept = checkpoint.read_checkpoint(trained)["seqssm"]["data"]["intervals"]
    assert kept["counts"].tolist() == [35] * 4, "windows of the validation split"
    assert kept["pooled_count"] == 140
    capsys.readouterr()
    assert model.predict(my_csv, level=99)["yhat-hi-99"].notna().all()
    assert "99 % intervals from the pooled errors of all series" in capsys.readouterr().err
    with pytest.raises(InputError, match="140 validation windows allow at most a level of"):
        model.predict(my_csv, level=99.9)
    with pytest.raises(InputError, match="percentage"):
        model.predict(my_csv, level=["190"])


def test_the_printed_coverage_is_that_of_the_backtest(trained, my_csv):
    """`test` and a backtest over the same 75 windows, one from the data module, one from the file."""
    model = seqssm.load(trained / "best.ckpt", accelerator="cpu")
    table = model.predict(my_csv, backtest=75, level=["80", "90"])
    printed = tables(trained)["Intervals"].set_index("level")
    for level in (80, 90):
        inside = (table["y"] >= table[f"yhat-lo-{level}"]) & (table["y"] <= table[f"yhat-hi-{level}"])
        assert 100 * inside.mean() == pytest.approx(printed.loc[level, "coverage"], abs=0.12)
    std = checkpoint.read_checkpoint(trained)["seqssm"]["data"]["std"].numpy()
    scale = dict(zip(simulate.Network().names, std))
    error = (table["y"] - table["yhat"]) / table["unique_id"].map(scale)
    own = json.loads((trained / "metrics.json").read_text())["test"]["metrics"]
    assert (error**2).mean() == pytest.approx(own["mse"], rel=1e-4)
    assert error.abs().mean() == pytest.approx(own["mae"], rel=1e-4)


def test_a_backtest_equals_single_predictions(trained, my_csv, frame, tmp_path):
    model = seqssm.load(trained / "best.ckpt", accelerator="cpu")
    table = model.predict(my_csv, backtest=40, step=2, level=["80"])
    assert table["cutoff"].nunique() == 40
    assert table["cutoff"].max() == frame["date"].iloc[-7], "the last cutoff leaves the horizon to compare with"
    path = tmp_path / "cut.csv"
    for row in (315, 333, 393):
        frame.iloc[: row + 1].to_csv(path, index=False)
        one, many = model.predict(path, level=["80"]), table[table["cutoff"] == frame["date"][row]]
        for name in ("yhat", "yhat-lo-80", "yhat-hi-80"):
            np.testing.assert_allclose(one[name], many[name], atol=1e-5)
        assert list(one["ds"]) == list(many["ds"])
        truth = frame.iloc[row + 1 : row + 7, 1:].to_numpy().T.ravel()
        np.testing.assert_allclose(many["y"], truth)
    with pytest.raises(InputError, match=r"--backtest 400 needs 429 .*at most 371 windows"):
        model.predict(my_csv, backtest=400)
    for wrong in ({"backtest": 0}, {"step": 2}, {"backtest": 3, "step": 0}):
        with pytest.raises(InputError):
            model.predict(my_csv, **wrong)


def test_wide_output(trained, my_csv, tmp_path):
    words = ["predict", str(trained / "best.ckpt"), str(my_csv), "--accelerator", "cpu", "--level", "90"]
    assert main([*words, "--wide", "--output", str(tmp_path / "w.parquet")]) == 0
    assert main([*words, "--output", str(tmp_path / "l.parquet")]) == 0
    wide, long = pd.read_parquet(tmp_path / "w.parquet"), pd.read_parquet(tmp_path / "l.parquet")
    assert list(wide.columns[:5]) == ["index", "id", "ds", "driver", "driver-lo-90"]
    assert list(wide.columns[-2:]) == ["status", "reason"]
    for name in simulate.Network().names:
        own = long[long["unique_id"] == name]
        np.testing.assert_array_equal(wide[name], own["yhat"])
        np.testing.assert_array_equal(wide[f"{name}-hi-90"], own["yhat-hi-90"])
    both = seqssm.load(trained, accelerator="cpu").predict(my_csv, wide=True, backtest=3)
    assert {"cutoff", "driver-y", "driver"} <= set(both.columns)
    assert len(both) == 3 * 6


def test_series_never_seen_are_scaled_by_their_look_back(trained, frame, tmp_path):
    """Units and level do not matter: the forecast of a*y + b is a*forecast + b. Nothing in the checkpoint changes."""
    path = tmp_path / "new.csv"
    own = frame.rename(columns={"driver": "new", "follower_6h": "other"})
    own.to_csv(path, index=False)
    model = seqssm.load(trained / "best.ckpt", accelerator="cpu")
    with pytest.raises(InputError, match=r"unknown: new, other.*pass --unseen"):
        model.predict(path)
    plain = model.predict(path, unseen=True, level=["80"])
    known = model.predict(_saved(frame, tmp_path / "known.csv"), level=["80"])
    np.testing.assert_allclose(plain["yhat"], known["yhat"], rtol=2e-3)
    _saved(own.assign(new=1000 * own["new"] - 7), path)
    moved = model.predict(path, unseen=True, level=["80"])
    first = plain["unique_id"] == "new"
    for name in ("yhat", "yhat-lo-80"):
        np.testing.assert_allclose(moved[name][first], 1000 * plain[name][first] - 7, rtol=1e-4)
        np.testing.assert_allclose(moved[name][~first], plain[name][~first], rtol=1e-4)
    few = model.predict(_saved(own[["date", "other"]], path), unseen=True)
    assert set(few["unique_id"]) == {"other"}
    with pytest.raises(InputError, match="--wide"):
        model.predict(path, unseen=True, wide=True)


def _saved(frame, path):
    frame.to_csv(path, index=False)
    return path


def test_figures_of_a_backtest_with_intervals(trained, my_csv, tmp_path):
    model = seqssm.load(trained / "best.ckpt", accelerator="cpu")
    model.predict(my_csv, backtest=5, level=["80", "90"], figures=tmp_path / "figs")
    assert len(list((tmp_path / "figs").glob("*.png"))) == 5
    assert (tmp_path / "figs" / "000_my_overview.png").stat().st_size > 20_000


# -- modes and splits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "inputs"), [("S", 1), ("MS", 4)])
def test_one_target(fit, frame, tmp_path, mode, inputs):
    folder = fit(frame, "--data.features", mode, "--data.target", "follower_12h")
    kept = checkpoint.read_checkpoint(folder)["seqssm"]["data"]
    assert (len(kept["columns"]), kept["outputs"], kept["columns"][-1]) == (inputs, 1, "follower_12h")
    assert list(tables(folder)["By"]["unique_id"]) == ["follower_12h"]
    table = seqssm.load(folder, accelerator="cpu").predict(tmp_path / "x.csv", level=["80"], backtest=4)
    assert set(table["unique_id"]) == {"follower_12h"}
    np.testing.assert_allclose(table["y"][:6], frame["follower_12h"][391:397])
    assert abs(table["yhat"] - frame["follower_12h"].mean()).max() < 8


def test_splits_by_date_and_fraction(frame, tmp_path):
    path = _saved(frame, tmp_path / "x.csv")
    small = {"file": str(path), "lookback": 24, "horizon": 6}
    dates = {"val_from": "2024-01-11", "test_from": "2024-01-13 12:00"}
    data = ForecastingData(**small, **dates)
    data.setup()
    train = frame["date"] < "2024-01-11"
    np.testing.assert_allclose(data.mean.numpy(), frame[train].iloc[:, 1:].mean())
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [240 - 29, 60 - 5, 100 - 5]
    data = ForecastingData(**small, split="50/25/25")
    data.setup()
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [200 - 29, 100 - 5, 100 - 5]
    for given, words in (
        ({"split": "50/50"}, "three percentages"),
        ({"split": "80/30/10"}, "three percentages"),
        ({"val_from": "2024-01-11"}, "must be given together"),
        ({"val_from": "soon", "test_from": "2024-01-12"}, "not a year-first date"),
        ({"val_from": "2024-01-12", "test_from": "2024-01-11"}, "in this order"),
        ({"val_from": "2024-01-01 02:00", "test_from": "2024-01-11"}, "the train and val split has no window"),
    ):
        with pytest.raises(InputError, match=words):
            ForecastingData(**small, **given).setup()


# -- missing values ----------------------------------------------------------------------------------------------------


def test_masked_values_change_nothing():
    """Values at masked positions change neither the forecast nor the gradients."""
    net = SMamba(20, 4, d_model=16, d_state=4, dropout=0.0, engine="reference")
    x, seen = torch.randn(3, 5, 20), torch.rand(3, 5, 20) > 0.3
    one, other = net(x, observed_mask=seen), net(x.masked_fill(~seen, 1e4), observed_mask=seen)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net(x, observed_mask=torch.ones_like(seen)), net(x))
    x.requires_grad_()
    net(x, observed_mask=seen).sum().backward()
    assert (x.grad[~seen] == 0).all()


def test_training_and_prediction_with_missing_values(fit, frame, tmp_path):
    generator = np.random.default_rng(5)
    holes = frame.mask(generator.random(frame.shape) < 0.1).assign(date=frame["date"])
    folder = fit(holes, "--data.missing", "mask")
    shown = tables(folder)
    assert np.isfinite(shown["Test,"].drop(columns="model").to_numpy(dtype=float)).all()
    model = seqssm.load(folder, accelerator="cpu")
    table = model.predict(tmp_path / "x.csv", level=["80"], backtest=20)
    assert table["yhat"].notna().all()
    assert 0.02 < table["y"].isna().mean() < 0.2, "missing actual values stay missing"
    blind = _saved(holes.assign(driver=holes["driver"].where(holes.index < 370)), tmp_path / "blind.csv")
    table = model.predict(blind)
    failed = table[table["status"] == "failed"]
    assert set(failed["unique_id"]) == {"driver"}
    assert set(failed["reason"]) == {"no value in the last 24 rows (last value: 2024-01-16 09:00:00)"}
    assert failed["yhat"].isna().all()
    assert len(failed) == 6
    assert table[table["status"] == "ok"]["yhat"].notna().all()
    assert model.predict(blind, missing="forward")["yhat"].notna().all()
    back = model.predict(blind, backtest=20)
    blind_rows = back[(back["unique_id"] == "driver") & back["yhat"].isna()]
    assert len(blind_rows), "no forecast from nothing"
    assert set(blind_rows["status"]) == {"failed"}
    assert set(blind_rows["reason"]) == {"no value in the preceding 24 rows"}


# -- covariates and static properties ----------------------------------------------------------------------------------


def planned(frame):
    """A planned covariate that moves the first series six hours later."""
    plan = (frame["date"].dt.hour % 5 == 0).astype(float)
    return frame.assign(plan=plan, driver=frame["driver"] + 3 * plan)


def test_future_covariates(fit, frame, tmp_path, capsys):
    table = planned(frame)
    folder = fit(table, "--data.future_columns", "plan")
    assert "future covariates: plan" in capsys.readouterr().out
    model = seqssm.load(folder, accelerator="cpu")
    dates = pd.date_range(frame["date"].iloc[-1], periods=7, freq="h")[1:]
    with pytest.raises(InputError) as caught:
        model.predict(tmp_path / "x.csv")
    assert all(f"{date} (plan)" in caught.value.message for date in dates), "every missing row is named"
    assert "future covariates are missing in 6 future rows" in caught.value.message
    future = pd.DataFrame({"date": dates, "plan": [1.0, 0, 0, 0, 0, 1]})
    own = _saved(future, tmp_path / "future.csv")
    plain = model.predict(tmp_path / "x.csv", future=own)
    np.testing.assert_array_equal(plain, model.predict(tmp_path / "x.csv", future=pa.table(future)))
    both = _saved(pd.concat([table, future]), tmp_path / "both.csv")
    np.testing.assert_array_equal(plain["yhat"], model.predict(both)["yhat"])
    assert list(plain["ds"][:6]) == list(dates), "the history ends where the series end"
    other = model.predict(tmp_path / "x.csv", future=_saved(future.assign(plan=0.0), own))
    assert not np.array_equal(plain["yhat"], other["yhat"]), "the covariate has an effect"
    with pytest.raises(InputError, match=r"missing in 1 future rows: 2024-01-17 18:00:00 \(plan\)"):
        model.predict(tmp_path / "x.csv", future=_saved(future.drop(index=2), own))
    assert len(model.predict(tmp_path / "x.csv", backtest=5)) == 5 * 6 * 4
    with pytest.raises(InputError, match="no column plans"):
        ForecastingData(file=str(tmp_path / "x.csv"), future_columns="plans", lookback=24, horizon=6).setup()


def test_future_covariates_in_long_files(fit, frame, tmp_path):
    table = planned(frame)
    long = table.melt(id_vars=["date", "plan"], var_name="unique_id", value_name="y").rename(columns={"date": "ds"})
    folder = fit(long, "--data.future_columns", "plan", test=False)
    model = seqssm.load(folder, accelerator="cpu")
    dates = pd.date_range(frame["date"].iloc[-1], periods=7, freq="h")[1:]
    wide = _saved(pd.DataFrame({"ds": dates, "plan": 1.0}), tmp_path / "wide.csv")
    names = frame.columns[1:]
    rows = pd.DataFrame({"unique_id": np.repeat(names, 6), "ds": list(dates) * 4, "plan": 1.0})
    one = model.predict(tmp_path / "x.csv", future=wide)
    np.testing.assert_array_equal(one["yhat"], model.predict(tmp_path / "x.csv", future=_saved(rows, wide))["yhat"])


def test_static_properties(fit, frame, tmp_path, capsys):
    statics = pd.DataFrame({"unique_id": frame.columns[1:], "region": ["n", "s", "s", "n"], "size": [1.0, 2, 3, 4]})
    path = _saved(statics, tmp_path / "static.csv")
    folder = fit(frame, "--data.static_file", str(path))
    assert "static features: region=n, region=s, size" in capsys.readouterr().out
    assert checkpoint.read_checkpoint(folder)["seqssm"]["hparams"]["static"] == 3
    model = seqssm.load(folder, accelerator="cpu")
    plain = model.predict(tmp_path / "x.csv")
    other = model.predict(tmp_path / "x.csv", static=_saved(statics.assign(region="n"), tmp_path / "other.csv"))
    assert not np.allclose(plain["yhat"], other["yhat"]), "the properties have an effect"
    for change, words in (
        (statics.iloc[:2], "no row for the series follower_12h, follower_24h"),
        (statics.assign(region="w"), "unknown words in region"),
        (statics.drop(columns="size"), "no column size"),
    ):
        with pytest.raises(InputError, match=words):
            model.predict(tmp_path / "x.csv", static=_saved(change, tmp_path / "other.csv"))


# -- quantiles ---------------------------------------------------------------------------------------------------------


def test_quantiles_instead_of_the_mean(fit, frame, tmp_path):
    folder = fit(frame, "--model.quantiles", "[0.1,0.5,0.9]", "--model.use_norm", "false")
    shown = tables(folder)
    assert list(shown["Intervals"]["level"]) == [80]
    assert list(shown["Pinball"]["probability"]) == [0.1, 0.5, 0.9]
    model = seqssm.load(folder, accelerator="cpu")
    table = model.predict(tmp_path / "x.csv", level=["80"])
    assert (table["yhat-lo-80"] <= table["yhat"]).all()
    assert (table["yhat"] <= table["yhat-hi-80"]).all()
    with pytest.raises(InputError, match="not an interval between two quantiles of the model; it has 80"):
        model.predict(tmp_path / "x.csv", level=["90"])
    with pytest.raises(InputError, match="without window normalisation"):
        model.predict(tmp_path / "x.csv", unseen=True)


def test_prediction_uses_the_policies_of_the_fit_unless_changed(fit, frame, tmp_path, capsys):
    folder = fit(frame.drop(index=[50, 51]), "--data.gaps", "fill", "--data.missing", "linear", test=False)
    model = seqssm.load(folder, accelerator="cpu")
    hole = _saved(frame.drop(index=[390]), tmp_path / "hole.csv")
    assert model.predict(hole)["yhat"].notna().all()
    assert "1 missing date in 1 place filled with" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"1 row is missing; --gaps fill"):
        model.predict(hole, gaps="error")
    semicolons = tmp_path / "semicolons.csv"
    frame.to_csv(semicolons, index=False, sep=";", decimal=",")
    whole = model.predict(_saved(frame, tmp_path / "whole.csv"))
    np.testing.assert_array_equal(model.predict(semicolons)["yhat"], whole["yhat"])


def test_hints_of_predict_name_its_own_options(trained, my_csv, tmp_path, capsys):
    table = pd.read_csv(my_csv)
    name = table.columns[1]
    table.loc[[380, 385, 390], name] = -9999
    table.to_csv(tmp_path / "sentinel.csv", index=False)
    seqssm.load(trained / "best.ckpt", accelerator="cpu").predict(tmp_path / "sentinel.csv")
    message = capsys.readouterr().err
    assert "missing value, --sentinels -9999" in message
    assert "--data." not in message


def test_a_run_whose_file_has_changed(fit, frame, tmp_path, capsys):
    """The scaler was fitted anew, training rows were tested, and other values were compared as the same records."""
    run, path = fit(frame), tmp_path / "x.csv"
    before = json.loads((run / "metrics.json").read_text())["test"]
    assert "changed" not in before
    values = frame.columns[1:]
    frame.assign(**{name: 2 * frame[name] for name in values}).to_csv(path, index=False)
    shutil.copytree(run, tmp_path / "other")
    capsys.readouterr()
    assert main(["forecasting", "test", str(run)]) == 0
    assert "warning: the data have changed since the training: " in capsys.readouterr().err
    after = json.loads((run / "metrics.json").read_text())["test"]
    shutil.copy(path, tmp_path / "copy.csv")
    assert main(["forecasting", "test", str(run), "--data.file", str(tmp_path / "copy.csv")]) == 0
    external = json.loads((run / f"test-{tmp_path.name}-copy" / "metrics.json").read_text())["test"]
    assert after["metrics"]["mse"] > 2 * before["metrics"]["mse"], "the scale of the training"
    assert external["metrics"]["mse"] == pytest.approx(after["metrics"]["mse"], rel=1)
    assert "are gone or changed" in after["changed"]
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "other"), str(run)]) == 0
    assert "the test records of run have changed since its training" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert "The data have changed since the training" in (run / "report.html").read_text()
    frame[:250].to_csv(path, index=False)
    assert main(["forecasting", "test", str(run)]) == 2
    error = capsys.readouterr().err
    assert "the run was trained on 50 of the present test records" in error
    assert "test RUN --data.file COPY" in error
    assert main(["forecasting", "validate", str(run)]) == 2
    assert "of the present validation records" in capsys.readouterr().err
    assert json.loads((run / "metrics.json").read_text())["test"] == after
    path.write_text(frame.to_csv(index=False))
    more = pd.concat([frame, simulate.series(420, 3)[400:]])
    more.to_csv(path, index=False)
    assert main(["forecasting", "test", str(run)]) == 0, "new rows move the test part, which has no training row"


def test_tests_of_other_data_are_compared_in_equal_units(fit, frame, tmp_path, capsys):
    new = simulate.series(420, 8)
    new.to_csv(tmp_path / "new.csv", index=False)
    runs = []
    for name, rows in (
        ("one", frame),
        ("two", frame),
        ("larger", frame.set_index(frame.columns[0]).mul(2).reset_index()),
    ):
        runs.append(fit(rows, test=False).rename(tmp_path / name))
        assert main(["forecasting", "test", str(runs[-1]), "--data.file", str(tmp_path / "new.csv")]) == 0
    first, second, larger = (str(next(run.glob("test-*"))) for run in runs)
    capsys.readouterr()
    assert main(["compare", first, second]) == 0
    assert "on the same 420 records" in capsys.readouterr().out
    assert main(["compare", first, larger]) == 0
    assert "scores in other units (mean of its training data differs)" in capsys.readouterr().out
