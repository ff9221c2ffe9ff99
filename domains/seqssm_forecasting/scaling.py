"""Standardisation by the training rows, and the error of the naive forecast on them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqssm.errors import InputError
from seqssm_forecasting.series import Series, listed


def scaler(train: np.ndarray, series: Series) -> tuple[Tensor, Tensor, list[str]]:
    """Fit mean and population standard deviation per variate, float64; return the constant variates too.

    Args:
        train: training values, (rows, N); NaN where a value is missing.
        series: the series, for the names.

    Raises:
        InputError: a variate has no value in the training rows.
    """
    empty = [name for name, none in zip(series.columns, np.isnan(train).all(0)) if none]
    if empty:
        raise InputError(f"no value in the training split for: {listed(empty)}", file=series.path)
    mean, std = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    flat = std <= 1e-12 * np.abs(mean)  # rounding errors of a constant, in any unit
    constant = [name for name, value in zip(series.columns, flat) if value]
    return torch.from_numpy(mean), torch.from_numpy(np.where(flat, 1.0, std)), constant


def scale(values: np.ndarray, mean: Tensor, std: Tensor) -> np.ndarray:
    """Compute (values - mean) / std per variate, float64."""
    return (values - mean.numpy()) / std.numpy()


def naive_error(train: np.ndarray, season: int | None) -> Tensor:
    """Return the (N,) scaled mean absolute error of the seasonal naive forecast on the training rows, for MASE.

    Args:
        train: training values, (rows, N), scaled; NaN where a value is missing.
        season: period, steps; None for the last-value forecast.
    """
    lag = season if season is not None and season < len(train) else 1
    difference = np.abs(train[lag:] - train[:-lag])
    count = (~np.isnan(difference)).sum(0)
    error = np.nansum(difference, 0) / np.maximum(count, 1)
    return torch.from_numpy(np.where((count > 0) & (error > 0), error, np.nan))


def without_windows(observed: np.ndarray, lookback: int, horizon: int) -> np.ndarray:
    """Return (N,) bool, True for variates without a window that has values in both look-back and horizon.

    Args:
        observed: observed values of a split, (rows, N).
        lookback: number of input steps.
        horizon: number of forecast steps.
    """
    sums = np.concatenate([np.zeros((1, observed.shape[1]), dtype=np.int64), observed.cumsum(0)])
    count = len(observed) - lookback - horizon + 1
    if count < 1:
        return np.ones(observed.shape[1], dtype=bool)
    seen = sums[lookback : lookback + count] > sums[:count]
    ahead = sums[lookback + horizon : lookback + horizon + count] > sums[lookback : lookback + count]
    return ~(seen & ahead).any(0)


def of_windows(raw: np.ndarray, seen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each look-back, (windows, N, 1); the latter is 1 if it is constant.

    Args:
        raw: values, (windows, N, L).
        seen: mask of the observed ones, of the same shape; None for all.
    """
    mask = np.ones_like(raw, dtype=bool) if seen is None else seen
    count = np.maximum(mask.sum(-1, keepdims=True), 1)
    mean = np.where(mask, raw, 0).sum(-1, keepdims=True) / count
    std = np.sqrt((np.where(mask, raw - mean, 0) ** 2).sum(-1, keepdims=True) / count)
    return mean, np.where(std > 0, std, 1.0)
