"""Ensembles of forecasters: means and standard deviations, intervals, figures, Python and the command."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.training import ensemble

from ..prediction.members import moved


@pytest.fixture(scope="module")
def members(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    return [trained, moved(trained, folder / "b", 1), moved(trained, folder / "c", 2)]


@pytest.fixture(scope="module")
def pair(members, tmp_path_factory):
    return ensemble.combine(members, tmp_path_factory.mktemp("ensemble") / "three.ckpt")


def test_forecasts_and_intervals_are_means(members, pair, my_csv):
    alone = [seqssm.load(one).predict(my_csv, level=80) for one in members]
    table = seqssm.load(pair).predict(my_csv, level=80)
    for name in ("yhat", "yhat-lo-80", "yhat-hi-80"):
        values = np.stack([one[name] for one in alone])
        np.testing.assert_allclose(table[name], values.mean(0))
        np.testing.assert_allclose(table[f"{name}_std"], values.std(0, ddof=1))
        assert (table[f"{name}_std"] > 0).all()
    assert (table["ds"] == alone[0]["ds"]).all()


def test_the_wide_table_the_backtest_and_the_figure(pair, my_csv, tmp_path, members):
    wide = seqssm.load(pair).predict(my_csv, wide=True)
    assert {"driver", "driver_std"} <= set(wide.columns)
    words = ["predict", str(pair), str(my_csv), "--output", str(tmp_path / "back.csv"), "--backtest", "3"]
    assert main([*words, "--figures", str(tmp_path / "figures"), "--accelerator", "cpu"]) == 0
    back = pd.read_csv(tmp_path / "back.csv")
    assert "y_std" not in back.columns, "actual values are not estimates"
    assert len(list((tmp_path / "figures").glob("*.png"))) == 5


SMALL = {"d_model": 16, "blend": False}
ROWS = 700


@pytest.fixture(scope="module")
def panel():
    """700 hours of three series of different levels."""
    rng = np.random.default_rng(0)
    hours = pd.date_range("2024-01-01", periods=ROWS, freq="h")
    values = {name: level + rng.normal(size=ROWS) for name, level in (("s0", 10.0), ("s1", 20.0), ("s2", 30.0))}
    return pd.DataFrame({"date": hours, **values})


def fitted(folder, frame, horizon=6):
    """A small model of a frame."""
    data = {"file": frame, "lookback": 24, "horizon": horizon}
    seqssm.fit("forecasting", preset="smamba", data=data, model=SMALL, trainer={"max_epochs": 1}, output=folder)
    return folder


def late(panel):
    """The panel as a long table, in which s0 begins after the training rows."""
    rows = panel.melt("date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})
    return rows[(rows["unique_id"] != "s0") | (rows["ds"] >= panel["date"][600])][["unique_id", "ds", "y"]]


@pytest.fixture(scope="module")
def others(panel, tmp_path_factory):
    """Models with the series in two orders, one without s0, one of another horizon."""
    folder = tmp_path_factory.mktemp("others")
    frames = {"a": panel, "b": panel[["date", "s2", "s0", "s1"]], "c": late(panel)}
    return [*(fitted(folder / name, frame) for name, frame in frames.items()), fitted(folder / "d", panel, 12)]


def test_series_are_matched_by_name(panel, others, tmp_path):
    """Rows were averaged by position: another series' forecasts, with status ok."""
    alone = [seqssm.load(one).predict(panel, level=80).set_index(["unique_id", "ds"]) for one in others[:2]]
    own = seqssm.load(ensemble.combine(others[:2], tmp_path / "two.ckpt"))
    table = own.predict(panel, level=80, figures=tmp_path / "figures").set_index(["unique_id", "ds"])
    assert list(dict.fromkeys(table.index.get_level_values(0))) == ["s0", "s1", "s2"]
    for name in ("yhat", "yhat-lo-80"):
        values = np.stack([one.loc[table.index, name] for one in alone])
        np.testing.assert_allclose(table[name], values.mean(0))
        np.testing.assert_allclose(table[f"{name}_std"], values.std(0, ddof=1))
    assert len(list((tmp_path / "figures").glob("*.png"))) == 4


def test_a_series_that_one_model_does_not_know_is_not_averaged(panel, others, tmp_path):
    path = ensemble.combine([others[0], others[2]], tmp_path / "two.ckpt", ["a", "b"])
    alone = [seqssm.load(one).predict(late(panel)).set_index(["unique_id", "ds"]) for one in (others[0], others[2])]
    table = seqssm.load(path).predict(late(panel)).set_index(["unique_id", "ds"])
    assert (table.loc["s0", "status"] == "failed").all()
    assert table.loc["s0", ["yhat", "yhat_std"]].isna().all(axis=None)
    assert table.loc["s0", "reason"].str.fullmatch("b: not trained on: no window with values in the train split").all()
    good = table.drop("s0")
    assert (good["status"] == "ok").all()
    np.testing.assert_allclose(good["yhat"], np.mean([one.loc[good.index, "yhat"] for one in alone], 0))


def test_models_of_other_horizons_are_refused(panel, others, tmp_path):
    """The reason of every row was an internal error."""
    path = ensemble.combine([others[0], others[3]], tmp_path / "two.ckpt", ["a", "b"])
    with pytest.raises(InputError, match=r"differ in their horizon \(a: 6; b: 12\)"):
        seqssm.load(path).predict(panel)
    assert len(seqssm.load(path).predict(panel, horizon=6)) == 18
    with pytest.raises(InputError, match=r"recursive step \(a: from 7 on; b: none\)"):
        seqssm.load(path).predict(panel, horizon=12)
    with pytest.raises(InputError, match="horizon of training"):
        seqssm.load(path).predict(panel, horizon=6, backtest=2)
