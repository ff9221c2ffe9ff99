"""Errors of forecasts: by variate and by step, on scaled data and in the file's units; coverage of intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from seqssm.metrics.metric import Metric

METRICS = (Metric("mse", better="min", shown=("test",)), Metric("mae", better="min"))
SUMS = 8
"""Number of sums: squared error, absolute error, count, |target| in units, symmetric percentage error, signed error,
squared and absolute error in units."""


class Errors:
    """Sums of errors over windows, per variate and step.

    As in the benchmarks, MSE and MAE are means over windows, variates and steps of data scaled by the training rows;
    every window counts once, and missing values are ignored. WAPE and sMAPE are in the file's units:
    ``sum |y - f| / sum |y|`` and the mean of ``2 |y - f| / (|y| + |f|)`` (0 where both are 0). Sums are float64
    (float32 where the device has no other).

    Args:
        mean: mean of the scaler, (N,), for metrics in the file's units; 0 by default.
        std: standard deviation of the scaler, (N,); 1 by default.
        inverse: function from unscaled values to the file's units, if the model's are transformed.
    """

    def __init__(
        self,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        inverse: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.mean, self.std, self.inverse = mean, std, inverse
        self.sums: Tensor | None = None  # (SUMS, N, T)
        self.count = 0

    def update(self, forecast: Tensor, target: Tensor, target_mask: Tensor | None = None) -> None:
        """Add a batch, both (B, N, T) and scaled; `target_mask` is False for missing targets."""
        precise = torch.float32 if forecast.device.type == "mps" else torch.float64
        forecast = forecast.detach()
        difference = forecast - target
        units, level = target.to(precise), forecast.to(precise)
        if self.mean is not None and self.std is not None:
            shift, scale = (value.to(target.device, precise)[:, None] for value in (self.mean, self.std))
            units, level = units * scale + shift, level * scale + shift
        if self.inverse is not None:
            units, level = self.inverse(units), self.inverse(level)
        size, missed = units.abs() + level.abs(), units - level
        percent = torch.where(size > 0, 2 * missed.abs() / size.clamp(min=1e-300), 0.0)
        parts = [difference.square(), difference.abs(), torch.ones_like(difference), units.abs(), percent, difference]
        parts += [missed.square(), missed.abs()]
        if target_mask is not None:
            parts = [part * target_mask for part in parts]
        sums = torch.stack([part.sum(0, dtype=precise) for part in parts])
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += len(target)

    def reduce(self, add: Callable[[Tensor], Tensor], like: Tensor) -> Errors:
        """Sum over all processes; `add` sums a tensor over them, `like` is an empty one for processes without data."""
        sums = like if self.sums is None else self.sums
        total = Errors(self.mean, self.std, self.inverse)
        total.sums = add(sums)
        total.count = int(add(torch.tensor(float(self.count), device=sums.device)))
        return total

    def _sums(self) -> np.ndarray:
        assert self.sums is not None
        return self.sums.double().cpu().numpy()

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the scaled (MSE, MAE) by variate and step, (N, T) each; NaN without targets."""
        squared, absolute, count, *_ = self._sums()
        with np.errstate(invalid="ignore"):
            return squared / count, absolute / count

    def variates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the scaled (MSE, MAE) by variate, (N,) each."""
        squared, absolute, count, *_ = self._sums().sum(2)
        with np.errstate(invalid="ignore"):
            return squared / count, absolute / count

    def units(self, by_step: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return (RMSE, MAE) in the file's units by variate, (N,), or by variate and step, (N, T)."""
        sums = self._sums() if by_step else self._sums().sum(2)
        with np.errstate(invalid="ignore"):
            return np.sqrt(sums[6] / sums[2]), sums[7] / sums[2]

    def bias(self) -> np.ndarray:
        """Return the scaled mean error (forecast - target) by step ahead, (T,)."""
        sums = self._sums().sum(1)
        with np.errstate(invalid="ignore"):
            return sums[5] / sums[2]

    @property
    def mse(self) -> float:
        sums = self._sums()
        return float(sums[0].sum() / sums[2].sum())

    @property
    def mae(self) -> float:
        sums = self._sums()
        return float(sums[1].sum() / sums[2].sum())

    @property
    def smape(self) -> float:
        """Return the symmetric mean absolute percentage error, 0 to 200 %."""
        sums = self._sums()
        return float(100 * sums[4].sum() / sums[2].sum())

    @property
    def wape(self) -> float:
        """Return the sum of absolute errors over the sum of absolute values, percent, averaged over variates."""
        sums = self._sums().sum(2)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = sums[7] / sums[3]
        ratios = ratios[np.isfinite(ratios)]
        return float(100 * ratios.mean()) if len(ratios) else float("nan")

    def mase(self, naive: np.ndarray) -> float:
        """Return the mean over variates of MAE / `naive` (Hyndman and Koehler 2006); below 1 beats the naive error.

        Args:
            naive: mean absolute error of the seasonal naive forecast on the training rows, (N,), scaled; NaN to skip.
        """
        ratios = self.variates()[1] / naive
        ratios = ratios[np.isfinite(ratios)]
        return float(ratios.mean()) if len(ratios) else float("nan")


class IntervalScores:
    """Coverage and width of intervals, and the pinball losses behind the CRPS.

    Args:
        levels: levels of the intervals, 0 to 1.
        probabilities: probabilities of the quantiles; the CRPS is twice the mean of their pinball losses.
    """

    def __init__(self, levels: list[float], probabilities: list[float]) -> None:
        self.levels, self.probabilities = levels, probabilities
        self.sums = torch.zeros(2 * len(levels) + len(probabilities) + 1, dtype=torch.float64)
        self.by_variate: Tensor | None = None  # (levels + 1, N): targets inside the intervals, and their number

    def update(
        self,
        limits: list[tuple[Tensor, Tensor]],
        losses: list[Tensor],
        target: Tensor,
        target_mask: Tensor | None,
    ) -> None:
        """Add a batch.

        Args:
            limits: scaled (low, high) of each level, (B, N, T).
            losses: pinball loss of each probability, (B, N, T).
            target: actual values, (B, N, T).
            target_mask: mask, (B, N, T) bool, False for missing targets.
        """
        precise = torch.float32 if target.device.type == "mps" else torch.float64
        weight = torch.ones_like(target) if target_mask is None else target_mask.to(target.dtype)
        inside = [((target >= low) & (target <= high)) * weight for low, high in limits]
        width = [(high - low) * weight for low, high in limits]
        parts = [*inside, *width, *(loss * weight for loss in losses), weight]
        self.sums = self.sums + torch.stack([part.sum(dtype=precise) for part in parts]).double().cpu()
        variates = torch.stack([part.sum((0, 2), dtype=precise) for part in [*inside, weight]]).double().cpu()
        self.by_variate = variates if self.by_variate is None else self.by_variate + variates

    def reduce(self, add: Callable[[Tensor], Tensor], variates: int, device: torch.device) -> None:
        """Sum over all processes, in place."""
        own = self.by_variate
        if own is None:
            own = torch.zeros(len(self.levels) + 1, variates, dtype=torch.float64)
        precise = torch.float32 if device.type == "mps" else torch.float64
        self.sums = add(self.sums.to(device, precise)).double().cpu()
        self.by_variate = add(own.to(device, precise)).double().cpu()

    def table(self) -> pd.DataFrame:
        """Return one row per level: ``level, coverage`` (%), scaled ``width``, range of coverage over the variates."""
        assert self.by_variate is not None
        count, total = len(self.levels), float(self.sums[-1])
        own = (self.by_variate[:-1] / self.by_variate[-1]).numpy()
        return pd.DataFrame(
            {
                "level": [100 * level for level in self.levels],
                "coverage": [100 * float(value) / total for value in self.sums[:count]],
                "width": [float(value) / total for value in self.sums[count : 2 * count]],
                "least of a variate": [100 * float(np.nanmin(row)) for row in own],
                "largest": [100 * float(np.nanmax(row)) for row in own],
            }
        )

    def losses(self) -> dict[float, float]:
        """Return the mean scaled pinball loss of each probability."""
        start, total = 2 * len(self.levels), float(self.sums[-1])
        return {p: float(self.sums[start + k]) / total for k, p in enumerate(self.probabilities)}

    @property
    def crps(self) -> float:
        """Return the continuous ranked probability score over the quantiles: twice the mean pinball loss."""
        losses = self.losses()
        return 2 * sum(losses.values()) / len(losses)


def by_variate(errors: Errors, columns: list[str]) -> pd.DataFrame:
    """Return one row per variate: ``mse, mae`` scaled; ``rmse_units, mae_units`` in the file's units.

    Args:
        errors: errors of the model.
        columns: names of the variates.
    """
    squared, absolute = errors.variates()
    rmse, mae = errors.units()
    return pd.DataFrame(
        {
            "unique_id": columns,
            "mse": squared,
            "mae": absolute,
            "rmse_units": rmse,
            "mae_units": mae,
        }
    )


def by_step(errors: dict[str, Errors], steps: list[int]) -> pd.DataFrame:
    """Return one row per step ahead (from 1): scaled mean squared error over the variates, one column per model."""
    table: dict[str, object] = {"step": steps}
    for name, one in errors.items():
        squared = np.nanmean(one.cells()[0], axis=0)
        table[name] = [float(squared[step - 1]) for step in steps]
    return pd.DataFrame(table)


def by_cell(errors: Errors, columns: list[str]) -> pd.DataFrame:
    """Return one row per variate and step: ``unique_id, step, mse, mae, rmse_units, mae_units``."""
    squared, absolute = errors.cells()
    rmse, mae = errors.units(by_step=True)
    variates, steps = squared.shape
    return pd.DataFrame(
        {
            "unique_id": np.repeat(columns, steps),
            "step": np.tile(np.arange(1, steps + 1), variates),
            "mse": squared.ravel(),
            "mae": absolute.ravel(),
            "rmse_units": rmse.ravel(),
            "mae_units": mae.ravel(),
        }
    )


def some_steps(horizon: int, most: int = 8) -> list[int]:
    """Return at most `most` evenly spaced steps, including the first and the last."""
    return sorted({round(step) for step in np.linspace(1, horizon, min(most, horizon))})
