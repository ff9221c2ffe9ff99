"""Files in another unit than the training, or of another level, are reported; ordinary drift is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import simulate
from seqssm_forecasting.unusual import outside

import seqssm
from seqssm.cli.main import main

from .conftest import SMALL

BLEND = [word for word in SMALL if word not in ("--model.blend", "false")]


@pytest.fixture(scope="module")
def table():
    frame = simulate.series(300, 3)
    return frame.assign(**{frame.columns[1]: frame.iloc[:, 1] + 20})


@pytest.fixture(scope="module")
def model(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unusual")
    table.to_csv(folder / "x.csv", index=False)
    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(folder / "x.csv"), *BLEND]
    assert main([*command, "--trainer.max_epochs", "1", "--output", str(folder / "run")]) == 0
    return seqssm.load(folder / "run", accelerator="cpu")


def reported(capsys, model, *given, **options) -> str:
    capsys.readouterr()
    found = model.predict(*given, **options)
    assert set(found["status"]) == {"ok"}
    return capsys.readouterr().err


@pytest.mark.parametrize("change", [lambda x: x + 1000, lambda x: x - 1000, lambda x: 1000 * x, lambda x: x / 1000])
def test_another_level_or_unit_of_one_series_is_reported(model, table, change, capsys):
    """Forecasts of 234 after values of 1008 had the status ok, without a remark."""
    name = table.columns[1]
    other = table.assign(**{name: change(table[name])})
    seen = other[name].tail(24)
    error = reported(capsys, model, other)
    words = "warning: look-back far outside of the values of the training, probably another unit or level"
    assert error.count(words) == 1
    assert f"{name} ({seen.min():.4g} to {seen.max():.4g}; training: mean ± standard deviation" in error
    assert not any(f"{left} (" in error for left in table.columns[2:])


def test_the_windows_of_a_backtest_are_counted(model, table, capsys):
    other = table.copy()
    other.loc[288:, table.columns[1]] += 1000  # a change of unit within the look-back
    assert "far outside" not in reported(capsys, model, other.iloc[:290])  # in less than a tenth of the rows
    assert " in 4 of 10 windows; training" in reported(capsys, model, other, backtest=10)


def test_drift_and_series_never_seen_are_not_reported(model, table, capsys):
    drift = table.copy()
    drift.iloc[:, 1:] += 5 * table.iloc[:, 1:].std()
    for given, options in ((table, {}), (drift, {}), (table, {"backtest": 60})):
        assert "far outside" not in reported(capsys, model, given, **options)
    unseen = table.rename(columns={name: f"new_{name}" for name in table.columns[1:]})
    unseen.iloc[:, 1:] += 1000
    assert "far outside" not in reported(capsys, model, unseen, unseen=True)


def test_a_network_that_normalises_its_windows_is_not_affected(trained, my_csv, capsys):
    frame = pd.read_csv(my_csv)
    frame.iloc[:, 1:] += 1000
    assert "far outside" not in reported(capsys, seqssm.load(trained, accelerator="cpu"), frame)


def test_rare_values_constants_and_gaps():
    mean, std = np.array([0.1, 5.0, 0.0, 50.0, np.nan]), np.array([0.5, 1.0, 1.0, 2.0, np.nan])
    window = np.tile([0.1, 5.0, 0.0, 50.0, 1e6], (40, 1))
    assert not outside(window, mean, std).any()
    window[:4, 0] = 900.0  # a storm, or a sentinel value, in a tenth of the rows
    window[:, 1] = 14.0  # a constant of the training has changed
    window[:39, 3] = np.nan
    assert not outside(window, mean, std).any()
    window[:, 1], window[:, 2], window[39, 3] = 5000.0, np.resize([-900.0, 900.0], 40), 0.05
    assert list(outside(window, mean, std)) == [False, True, False, True, False]
    assert outside(np.resize([-900.0, 900.0], (40, 1)), np.zeros(1), np.full(1, 1.1)).all()
    assert not outside(np.full((40, 2), np.nan), mean[:2], std[:2]).any()
    assert not outside(np.zeros((40, 1)), np.full(1, 50.0), np.full(1, 6.0)).any(), "a meter that is off"
