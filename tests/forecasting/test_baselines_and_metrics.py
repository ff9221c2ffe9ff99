"""Naive forecasts and DLinear by hand; errors by variate and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from seqssm_forecasting import baselines, metrics, simulate
from seqssm_forecasting.data import ForecastingData
from seqssm_forecasting.metrics import Errors

from seqssm.errors import InputError


def test_naive_forecasts():
    past = torch.arange(12.0).reshape(1, 1, 12)
    assert baselines.last_value(past, 3).tolist() == [[[11, 11, 11]]]
    assert baselines.seasonal_naive(past, 7, 5).tolist() == [[[7, 8, 9, 10, 11, 7, 8]]]
    assert list(baselines.naive(None)) == ["last value"]


def test_seasonal_reads_more_than_the_look_back(my_csv):
    data = ForecastingData(file=str(my_csv), lookback=10, horizon=6)
    data.setup()
    found = baselines.test_seasonal_naive(data)
    values = ((data.series.values - data.mean.numpy()) / data.std.numpy()).T
    starts = range(320, 400 - 5)
    errors = np.stack([values[:, t : t + 6] - values[:, t - 24 : t - 18] for t in starts])
    assert found["mse"] == pytest.approx((errors**2).mean(), rel=1e-5)
    assert found["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    data.season = None
    with pytest.raises(InputError, match=r"--data\.season"):
        baselines.test_seasonal_naive(data)


def test_dlinear_is_deterministic_and_beats_the_naive_forecasts(my_csv):
    data = ForecastingData(file=str(my_csv), lookback=24, horizon=6)
    data.setup()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = baselines.fit_dlinear(data.train_set, data.val_set, 5)
    assert torch.equal(before, torch.get_rng_state()), "the global random state is unchanged"
    other = baselines.fit_dlinear(data.train_set, data.val_set, 5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    assert not torch.equal(one.trend.weight, baselines.fit_dlinear(data.train_set, data.val_set, 6).trend.weight)
    errors = Errors()
    with torch.no_grad():
        for batch in baselines.batches(data.test_set, 7):
            errors.update(one(batch["x"]), batch["y"])
    assert errors.count == len(data.test_set)
    assert errors.mse < min(baselines.test_last_value(data)["mse"], baselines.test_seasonal_naive(data)["mse"])
    assert baselines.mean_squared(one, data.test_set, "cpu") == pytest.approx(errors.mse, rel=1e-5)


def test_errors_by_variate_and_step():
    forecast, truth = torch.randn(9, 3, 4), torch.randn(9, 3, 4)
    parts = Errors()
    parts.update(forecast[:5], truth[:5])
    parts.update(forecast[5:], truth[5:])
    difference = (forecast - truth).double().numpy()
    squared, absolute = parts.cells()
    np.testing.assert_allclose(squared, (difference**2).mean(0), rtol=1e-6)
    np.testing.assert_allclose(absolute, np.abs(difference).mean(0), rtol=1e-6)
    assert parts.mse == pytest.approx((difference**2).mean())
    std = np.array([1.0, 10.0, 0.1])
    parts = Errors(torch.zeros(3), torch.from_numpy(std))
    parts.update(forecast, truth)
    table = metrics.by_variate(parts, ["a", "b", "c"])
    units = difference * std[:, None]
    np.testing.assert_allclose(table["rmse_units"], np.sqrt((units**2).mean((0, 2))), rtol=1e-6)
    np.testing.assert_allclose(table["mae_units"], np.abs(units).mean((0, 2)), rtol=1e-6)
    cells = metrics.by_cell(parts, ["a", "b", "c"])
    assert list(cells["unique_id"]) == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    np.testing.assert_allclose(cells["rmse_units"], np.sqrt((units**2).mean(0)).ravel(), rtol=1e-6)
    steps = metrics.by_step({"m": parts}, [1, 4])
    np.testing.assert_allclose(steps["m"], (difference**2).mean((0, 1))[[0, 3]], rtol=1e-6)


def test_errors_of_two_processes_are_those_of_one():
    forecast, truth = torch.randn(6, 2, 3), torch.zeros(6, 2, 3)
    whole, idle, busy = Errors(), Errors(), Errors()
    whole.update(forecast, truth)
    busy.update(forecast, truth)
    empty = torch.zeros(metrics.SUMS, 2, 3, dtype=torch.float64)
    other = {6: busy.sums, 3: torch.tensor(6.0)}  # what the other process adds, by the tensor's rank and kind
    total = idle.reduce(lambda tensor: tensor + (other[6] if tensor.ndim == 3 else other[3]), empty)
    assert (total.mse, total.count) == (whole.mse, 6)


def test_some_steps():
    assert metrics.some_steps(3) == [1, 2, 3]
    assert metrics.some_steps(1) == [1]
    chosen = metrics.some_steps(720)
    assert (chosen[0], chosen[-1], len(chosen)) == (1, 720, 8)


def test_the_floor_of_the_simulated_series_is_reached_by_the_truth():
    """Forecasts from the true random walk have the errors that `Network.floor` states."""
    truth = simulate.Network(daily=0.0, weekly=0.0)
    frame = simulate.series(60_000, 4, truth)
    levels = 20.0 + 5 * np.arange(4)
    values = frame.iloc[:, 1:].to_numpy() - levels
    wander, floor = values[:, 0], truth.floor(30)
    origins = np.arange(100, 59_900)
    for step in (1, 6, 7, 24, 30):
        forecast = truth.memory**step * wander[origins]
        errors = values[origins + step, 0] - forecast
        assert np.mean(errors**2) == pytest.approx(floor[0, step - 1], rel=0.1)
        for number, lag in enumerate(truth.lags, 1):
            known = wander[origins + step - lag] if step <= lag else truth.memory ** (step - lag) * wander[origins]
            errors = values[origins + step, number] - known
            assert np.mean(errors**2) == pytest.approx(floor[number, step - 1], rel=0.1)
    assert frame.equals(simulate.series(60_000, 4, truth))
