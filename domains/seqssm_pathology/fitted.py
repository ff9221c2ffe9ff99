"""Values fitted on the training split only: feature scaling, and time bins of survival; ranges are in `ranges`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqssm.errors import InputError


class Scaler:
    """Scale features to mean 0 and standard deviation 1 on the training instances; constant columns become 0.

    Args:
        mean: mean per feature, (D,) float64.
        scale: standard deviation per feature, (D,) float64; 1 for constant columns.
        clip: largest magnitude after scaling, or None.
        clip_before: largest magnitude before scaling, or None.
    """

    def __init__(self, mean: Tensor, scale: Tensor, clip: float | None, clip_before: float | None) -> None:
        self.mean, self.scale, self.clip, self.clip_before = mean, scale, clip, clip_before

    @classmethod
    def of_summary(cls, summary: dict[str, Any]) -> Scaler:
        """Restore the scaler of a checkpoint; version 0.1.0 called `scale` ``deviation``."""
        return cls(**{"scale" if name == "deviation" else name: value for name, value in summary.items()})

    @classmethod
    def fit(cls, bags: Iterable[np.ndarray], clip: float | None, clip_before: float | None) -> Scaler:
        """Fit on an iterable of (N, D) arrays in one pass, with sums about the mean of the first bag in float64."""
        count, shift, total, squares = 0, None, None, None
        for features in bags:
            x = features.astype(np.float64)
            if clip_before is not None:
                x = x.clip(-clip_before, clip_before)
            if shift is None:
                shift = x.mean(0)
                total, squares = np.zeros_like(shift), np.zeros_like(shift)
            x = x - shift
            count, total, squares = count + len(x), total + x.sum(0), squares + (x * x).sum(0)
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0)
        scale = np.sqrt(variance)
        scale[scale <= 1e-8 * np.maximum(1, np.abs(shift))] = 1.0
        return cls(torch.from_numpy(mean + shift), torch.from_numpy(scale), clip, clip_before)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        x = features
        if self.clip_before is not None:
            x = x.clip(-self.clip_before, self.clip_before)
        x = (x - self.mean.numpy().astype(np.float32)) / self.scale.numpy().astype(np.float32)
        return x if self.clip is None else x.clip(-self.clip, self.clip)

    def summary(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "scale": self.scale,
            "clip": self.clip,
            "clip_before": self.clip_before,
        }


def cut(times: list[tuple[float | None, int | None]], bins: int, path: Path) -> list[float]:
    """Compute the edges of the time bins: quantiles of the event times, with outer edges beyond all times.

    Bin k contains times with ``edges[k] <= time < edges[k + 1]``.

    Raises:
        InputError: no events, or too few distinct times.
    """
    events = np.array([time for time, censored in times if not censored], dtype=np.float64)
    every = np.array([time for time, _ in times], dtype=np.float64)
    if len(events) == 0:
        raise InputError("no event in the training split (all are censored): survival cannot be learned", file=path)
    inner = np.quantile(events, np.linspace(0, 1, bins + 1)[1:-1])
    edges = [float(every.min()) - 1e-6, *inner.tolist(), float(every.max()) + 1e-6]
    if len(set(edges)) < len(edges) or sorted(edges) != edges:
        raise InputError(
            f"{len(set(events))} distinct event times are too few for {bins} bins: lower --data.bins", file=path
        )
    return edges


def bin_of(time: float, edges: list[float]) -> int:
    """Return the bin of a time; times out of range belong to the first or last bin."""
    return int(np.clip(np.searchsorted(edges, time, side="right") - 1, 0, len(edges) - 2))
