"""Look-backs far outside of the values of the training: a file in another unit, or of another level.

A forecast that does not depend on the level of its window (window normalisation, without a DLinear beside the network)
is not affected, nor are unseen series, which are scaled by their look-back.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from seqssm_forecasting.blend import Blend
from seqssm_forecasting.history import History
from seqssm_forecasting.limits import Limits
from seqssm_forecasting.series import Series, listed

FAR = 10.0  # distance from the mean of the training of nine tenths of a look-back, standard deviations of the training
WIDE = 100.0  # distance between the first and last tenth of a look-back, likewise
CLOSE = 3.0  # standard deviations between 0 and the mean, from which on a look-back may be too small
SMALL = 0.01  # largest magnitude of such a look-back, as a fraction of the mean
SHOWN = 6  # series named in the warning


def warning(model: nn.Module, own: History, series: Series, limits: Limits, lookback: int) -> str:
    """Name the series with a look-back far outside of the values of the training.

    Args:
        model: the network, or a blend.
        own: the history, with the scaler of the training.
        series: its variates in the units of the model, before scaling.
        limits: transformation of the values.
        lookback: number of input steps.

    Returns:
        A line for the user; empty if there is no such series.
    """
    alone = not isinstance(model, Blend) or model.linear is None
    if alone and getattr(model, "use_norm", False):
        return ""
    values = series.values if own.observed is None else np.where(own.observed, series.values, np.nan)
    found = np.stack([outside(values[end - lookback : end], own.mean, own.std) for end in own.ends])
    found[:, [name in own.reasons for name in series.columns]] = False
    told = []
    for position in np.flatnonzero(found.any(0)):
        ends = np.array(own.ends)[found[:, position]]
        rows = np.unique((ends[:, None] - np.arange(1, lookback + 1)).ravel())
        seen = limits.to_units(values[rows, position])
        mean, std = own.mean[position], own.std[position]
        low, high = (f"{float(limits.to_units(mean + side * std)):.4g}" for side in (-1, 1))
        count = f" in {len(ends)} of {len(own.ends)} windows" if len(own.ends) > 1 else ""
        told.append(
            f"{series.columns[position]} ({np.nanmin(seen):.4g} to {np.nanmax(seen):.4g}{count}; training: mean ± "
            f"standard deviation {low} to {high})"
        )
    if not told:
        return ""
    return (
        f"warning: look-back far outside of the values of the training, probably another unit or level; forecasts are "
        f"unreliable: {listed(told, SHOWN)}"
    )


def outside(window: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return which series (N,) are far outside of the values of the training.

    Args:
        window: look-back, (L, N), in the units of the scaler; NaN where a value is missing.
        mean: mean of the training values, (N,); NaN for unseen series.
        std: their standard deviation, (N,); 1 for constant series.
    """
    ordered = np.sort(window, axis=0)  # NaN last
    last = (~np.isnan(window)).sum(0) - 1
    tenth = (last + 1) // 10
    least, low, high, most = (
        np.take_along_axis(ordered, np.maximum(row, 0)[None], 0)[0] for row in (0 * last, tenth, last - tenth, last)
    )
    constant = std == 1.0
    away = np.maximum(low - mean, mean - high) > np.where(constant, np.maximum(FAR, np.abs(mean)), FAR * std)
    wide = ~constant & (high - low > WIDE * std)
    largest = np.maximum(np.abs(least), np.abs(most))
    small = (np.abs(mean) > CLOSE * std) & (largest < SMALL * np.abs(mean)) & (largest > 0)
    return away | wide | small
