"""Values fitted on the training split only: feature scaling, ranges of features, and time bins of survival."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


class Ranges:
    """Ranges of the mean features of the training bags: bags of another encoder or in other units are outside many.

    The range of a feature is widened by `WIDER` + `WIDER_BY` / n of its width on either side, for n training bags. A
    bag is unusual if more than `FRACTION` + `FRACTION_BY` / n of its features, and more than `FEW`, are outside. The
    limits were set on held-out bags of four cohorts and training splits of 8 to 512 bags. Features near 0 are inside of
    ranges around 0; a bag is also unusual if its size, the mean of the magnitudes of its features relative to the
    largest ones of the training, is below `SMALL` times the smallest size of a training bag.

    Args:
        low: smallest mean of a training bag, (D,) float64.
        high: largest mean, (D,) float64.
        bags: number of training bags.
        size: smallest size of a training bag; None in checkpoints that lack it.
    """

    FEWEST = 8  # bags; fewer have no ranges
    WIDER, WIDER_BY = 0.1, 4.0
    FRACTION, FRACTION_BY, FEW = 0.052, 2.0, 2
    SMALL = 0.2

    def __init__(self, low: Tensor, high: Tensor, bags: int, size: float | None = None) -> None:
        self.low, self.high, self.bags, self.size = low, high, bags, size
        self._largest = torch.maximum(low.abs(), high.abs()).numpy()
        margin = (self.WIDER + self.WIDER_BY / bags) * (high - low)
        margin += 1e-6 * torch.maximum(low.abs(), high.abs()).clamp(min=1e-30)  # a constant that was rounded
        self._low, self._high = (low - margin).numpy(), (high + margin).numpy()

    @classmethod
    def fit(cls, means: Sequence[np.ndarray]) -> Ranges | None:
        """Fit to the mean features of the training bags, (D,) each; None for fewer than `FEWEST` bags."""
        if len(means) < cls.FEWEST:
            return None
        low, high = (torch.from_numpy(np.asarray(of(means, 0), np.float64)) for of in (np.min, np.max))
        found = cls(low, high, len(means))
        found.size = min(map(found.size_of, means))
        return found

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any] | None) -> Ranges | None:
        """Restore the ranges of a checkpoint; None if it has none."""
        return None if summary is None else cls(**summary)

    def outside(self, means: np.ndarray) -> float:
        """Return the fraction of features whose mean is outside its range.

        Args:
            means: mean features of a bag, (D,).
        """
        return float(((means < self._low) | (means > self._high)).mean())

    def size_of(self, means: np.ndarray) -> float:
        """Return the mean magnitude of the features, each relative to its largest one in the training.

        Args:
            means: mean features of a bag, (D,).
        """
        used = self._largest > 0
        return float((np.abs(means[used]) / self._largest[used]).mean()) if used.any() else 0.0

    @property
    def limit(self) -> float:
        """Largest fraction of features outside of a usual bag."""
        return max(self.FRACTION + self.FRACTION_BY / self.bags, self.FEW / len(self.low) + 1e-6)

    def remark(self, means: np.ndarray) -> str:
        """Describe an unusual bag; "" for a usual one.

        Args:
            means: mean features of a bag, (D,).
        """
        outside = self.outside(means)
        if outside > self.limit:
            return f"{100 * outside:.0f} % of the features are outside the range of the training bags"
        if self.size is not None and self.size_of(means) < self.SMALL * self.size:
            return "all features are 0" if not means.any() else "features far smaller than those of the training bags"
        return ""

    def summary(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "bags": self.bags, "size": self.size}


UNUSUAL = "features unlike those of the training; another encoder, normalisation or unit?"
"""What may be wrong with unusual bags."""


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
