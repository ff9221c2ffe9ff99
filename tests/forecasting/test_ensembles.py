"""Ensembles of forecasters: means and standard deviations, intervals, figures, Python and the command."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import seqssm
from seqssm.cli.main import main
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
