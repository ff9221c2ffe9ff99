"""Simulated series with known parameters, for which the lowest possible error is exact.

Each variate is the sum of a level, a daily and a weekly cycle, and a shared component. The first variate, the driver,
contains an AR(1) process u; each follower repeats u some hours later, with independent noise. The driver therefore
predicts the followers, which a forecaster that reads each series separately cannot exploit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Network:
    """Parameters of the simulated series.

    Attributes:
        lags: lag of each follower behind the driver, hours.
        memory: AR coefficient per hour.
        shock: standard deviation of the hourly innovation.
        noise: standard deviation of the white noise of each follower.
        daily: amplitude of the daily cycle.
        weekly: amplitude of the weekly cycle.
    """

    lags: tuple[int, ...] = (6, 12, 24)
    memory: float = 0.9
    shock: float = 0.6
    noise: float = 0.3
    daily: float = 1.0
    weekly: float = 0.4
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", ("driver", *(f"follower_{lag}h" for lag in self.lags)))

    def wander(self, hours: int) -> float:
        """Return the unpredictable variance of the AR process `hours` ahead."""
        return self.shock**2 * (1 - self.memory ** (2 * hours)) / (1 - self.memory**2)

    def floor(self, horizon: int) -> np.ndarray:
        """Return the (variates, horizon) lowest possible mean squared error, given the parameters and the whole past.

        For the driver, it is the unpredictable variance of the process. For a follower, it is the variance of its noise
        up to its lag, and further ahead also the unpredictable variance of the driver.
        """
        table = np.empty((1 + len(self.lags), horizon))
        for step in range(1, horizon + 1):
            table[0, step - 1] = self.wander(step)
            for follower, lag in enumerate(self.lags, 1):
                table[follower, step - 1] = self.noise**2 + self.wander(max(0, step - lag))
        return table


def walks(rows: int, count: int, seed: int, drift: float = 0.02, start: str = "2018-01-01") -> pd.DataFrame:
    """Simulate a daily panel of random walks with correlated steps and different drifts, as prices have.

    No forecast is better than the last value plus the drift times the steps ahead; the mean squared error of the last
    value grows linearly with them.

    Args:
        rows: number of days.
        count: number of series.
        seed: seed of the steps.
        drift: largest drift, in standard deviations of a step per day; the drifts are spread evenly below and above 0.
        start: first day.
    """
    generator = np.random.default_rng(seed)
    steps = 0.6 * generator.normal(size=(rows, 1)) + 0.8 * generator.normal(size=(rows, count))
    drifts = np.linspace(-drift, drift, count)
    table: dict[str, object] = {"date": pd.date_range(start, periods=rows, freq="D")}
    for number, walk in enumerate((steps + drifts).cumsum(0).T):
        table[f"walk_{number}"] = np.round(100.0 + walk, 4)
    return pd.DataFrame(table)


def series(rows: int, seed: int, truth: Network | None = None, start: str = "2024-01-01") -> pd.DataFrame:
    """Simulate an hourly wide table: ``date`` and one column per variate.

    Args:
        rows: number of hours.
        seed: seed of the random components.
        truth: parameters of the series.
        start: first hour.
    """
    truth = truth or Network()
    generator = np.random.default_rng(seed)
    longest = max(truth.lags, default=0)
    shocks = generator.normal(0, truth.shock, rows + longest)
    wander = np.empty(rows + longest)
    wander[0] = shocks[0] / np.sqrt(1 - truth.memory**2)
    for step in range(1, rows + longest):
        wander[step] = truth.memory * wander[step - 1] + shocks[step]
    hours = np.arange(rows)
    table: dict[str, object] = {"date": pd.date_range(start, periods=rows, freq="h")}
    for index, (name, lag) in enumerate(zip(truth.names, (0, *truth.lags))):
        phase = 2 * np.pi * index / 7
        cycles = truth.daily * np.sin(2 * np.pi * hours / 24 + phase)
        cycles = cycles + truth.weekly * np.sin(2 * np.pi * hours / 168 + phase)
        own = generator.normal(0, truth.noise, rows) if lag else 0.0
        table[name] = np.round(20.0 + 5 * index + cycles + wander[longest - lag : longest - lag + rows] + own, 4)
    return pd.DataFrame(table)
