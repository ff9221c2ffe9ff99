"""Errors of point forecasts: by variate and by step, on scaled data and in the file's units."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor


class Errors:
    """Sums of squared and absolute errors over windows, one cell a variate and step.

    The benchmarks' MSE and MAE are means over windows, variates and steps of data scaled by the train rows; every
    window counts once. Sums are float64 (float32 where the device has no other).
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # (2, N, T)
        self.count = 0

    def update(self, forecast: Tensor, truth: Tensor) -> None:
        """Adds a batch: both (B, N, T), scaled."""
        difference = forecast.detach() - truth
        precise = torch.float32 if difference.device.type == "mps" else torch.float64
        sums = torch.stack([difference.square().sum(0, dtype=precise), difference.abs().sum(0, dtype=precise)])
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += len(truth)

    def reduce(self, add: Callable[[Tensor], Tensor], like: Tensor) -> Errors:
        """These sums over all processes; `add` sums a tensor over them, `like` is an empty (2, N, T) for the idle."""
        sums = like if self.sums is None else self.sums
        total = Errors()
        total.sums = add(sums)
        total.count = int(add(torch.tensor(float(self.count), device=sums.device)))
        return total

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean squared, mean absolute) error by variate and step, (N, T) each, scaled."""
        assert self.sums is not None
        squared, absolute = (self.sums.double().cpu() / self.count).numpy()
        return squared, absolute

    @property
    def mse(self) -> float:
        return float(self.cells()[0].mean())

    @property
    def mae(self) -> float:
        return float(self.cells()[1].mean())


def by_variate(errors: Errors, columns: list[str], std: np.ndarray) -> pd.DataFrame:
    """One row a variate: ``mse, mae`` scaled; ``rmse_units, mae_units`` in the file's units.

    Args:
        errors: of the model.
        columns: the variates' names.
        std: (N,) deviation that the scaler divides by.
    """
    squared, absolute = (cells.mean(1) for cells in errors.cells())
    return pd.DataFrame(
        {
            "unique_id": columns,
            "mse": squared,
            "mae": absolute,
            "rmse_units": np.sqrt(squared) * std,
            "mae_units": absolute * std,
        }
    )


def by_step(errors: dict[str, Errors], steps: list[int]) -> pd.DataFrame:
    """One row a step ahead (from 1): mean squared error over the variates, scaled, one column a model."""
    table: dict[str, object] = {"step": steps}
    for name, one in errors.items():
        squared = one.cells()[0].mean(0)
        table[name] = [float(squared[step - 1]) for step in steps]
    return pd.DataFrame(table)


def by_cell(errors: Errors, columns: list[str], std: np.ndarray) -> pd.DataFrame:
    """One row a variate and step: ``unique_id, step, mse, mae, rmse_units, mae_units``."""
    squared, absolute = errors.cells()
    variates, steps = squared.shape
    scale = np.repeat(std, steps)
    return pd.DataFrame(
        {
            "unique_id": np.repeat(columns, steps),
            "step": np.tile(np.arange(1, steps + 1), variates),
            "mse": squared.ravel(),
            "mae": absolute.ravel(),
            "rmse_units": np.sqrt(squared.ravel()) * scale,
            "mae_units": absolute.ravel() * scale,
        }
    )


def some_steps(horizon: int, most: int = 8) -> list[int]:
    """At most `most` steps, first and last among them, evenly spread."""
    return sorted({round(step) for step in np.linspace(1, horizon, min(most, horizon))})
