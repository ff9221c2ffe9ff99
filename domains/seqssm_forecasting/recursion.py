"""Forecasts beyond the trained horizon: the network reads its own forecasts, and the uncertainty of blocks adds up.

A block is one forecast of T steps. The next one starts at step T, and the last one so that it ends at the requested
step. A block that starts after s steps has the error of step s, from which it starts, and its own. If the two are
independent, their variances add: with w(h) the half-width h steps after the start, the half-width s + h steps ahead is
``sqrt(w_before(s)^2 + w(h)^2)``. This is exact for a random walk, and too wide for series that return to a mean. A
sample path continues with the errors of another validation window, added to its error at step s.
"""

from __future__ import annotations

import numpy as np


def starts(horizon: int, trained: int) -> list[int]:
    """Return the first step of each block, from 0.

    Args:
        horizon: number of steps to forecast.
        trained: number of steps of a block.
    """
    if horizon <= trained:
        return [0]
    return [*range(0, horizon - trained, trained), horizon - trained]


def joined(found: np.ndarray, block: np.ndarray, start: int, samples: int) -> np.ndarray:
    """Append a block to a forecast, with its uncertainty added to that of the step before it.

    Args:
        found: the forecast up to now, (windows, parts, outputs, steps): forecast, bounds and quantiles, sample paths.
        block: the block, (windows, parts, outputs, T).
        start: first step of the block, at most the number of steps of `found`.
        samples: number of sample paths, the last parts.

    Returns:
        (windows, parts, outputs, start + T).
    """
    before = (found[:, 1:] - found[:, :1])[..., start - 1 : start]
    own = block[:, 1:] - block[:, :1]
    count = own.shape[1] - samples
    side = np.where(own[:, :count] != 0, np.sign(own[:, :count]), np.sign(before[:, :count]))
    wide = side * np.sqrt(own[:, :count] ** 2 + before[:, :count] ** 2)
    paths = own[:, count:] + before[:, count:]
    whole = np.concatenate([block[:, :1], block[:, :1] + wide, block[:, :1] + paths], axis=1)
    return np.concatenate([found, whole[..., found.shape[-1] - start :]], axis=-1)
