"""Prediction intervals by split conformal prediction, from the errors on the validation part.

The score of a forecast is its absolute error divided by the deviation of its window's look-back, the very number that
the window normalisation divides by: a volatile window gets a wide band, a calm one a narrow band. The band at level c
is ``forecast +- deviation * q``, q the ceil((n + 1) c) / n quantile of the scores of n validation windows, by series
and step (Lei et al. 2018, "Distribution-free predictive inference for regression", sections 2.2 and 5.2). Windows of
one series depend on each other, so the coverage is not guaranteed; `test` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from seqssm.errors import InputError

FLOOR = 1e-5  # added to the variance, as in the window normalisation
WINDOWS, SCORES = 4000, 30_000_000  # kept of the validation part, evenly spread; more would only cost memory
KNOTS = 201  # scores kept for each series and step: their quantiles at 0, 0.5 %, ... 100 %
CRPS_LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Probabilities at which the pinball loss is averaged for the CRPS."""


def deviation(x: Tensor, seen: Tensor | None = None) -> Tensor:
    """(B, N) deviation of the look-back ``x (B, N, L)``, of the steps that are there."""
    if seen is None:
        return torch.sqrt(x.var(-1, correction=0) + FLOOR)
    weight = seen.to(x.dtype)
    count = weight.sum(-1, keepdim=True).clamp(min=1)
    mean = (x * weight).sum(-1, keepdim=True) / count
    return torch.sqrt(((x - mean).square() * weight).sum(-1) / count[..., 0] + FLOOR)


def stride(windows: int, outputs: int, horizon: int) -> int:
    """Every how many windows one is kept."""
    most = max(100, min(WINDOWS, SCORES // (outputs * horizon)))
    return max(1, -(-windows // most))


def quantiles(scores: Tensor) -> tuple[Tensor, int]:
    """Sorted scores at `KNOTS` even ranks, ``(knots, N, T)`` float32, and how many windows they are of.

    Args:
        scores: (windows, N, T); NaN where nothing is known.
    """
    count = scores.shape[0]
    ordered = scores.float().sort(dim=0).values  # NaN last
    there = (~ordered.isnan()).sum(0)  # (N, T)
    share = torch.linspace(0, 1, min(KNOTS, max(2, count)))[:, None, None]
    position = share * (there - 1).clamp(min=0)
    low = position.floor().long()
    high = (low + 1).minimum((there - 1).clamp(min=0)[None])
    a, b = ordered.gather(0, low), ordered.gather(0, high)
    found = a + (b - a) * (position - low)
    return torch.where(there > 0, found, torch.nan), int(there.min())


def reach(knots: Tensor, count: int, level: float) -> Tensor:
    """(N, T) half-width in deviations of the band at `level` (0 to 1).

    Args:
        knots: of `quantiles`.
        count: of windows.
        level: of the band.

    Raises:
        InputError: so few windows cannot give this level.
    """
    rank = math.ceil((count + 1) * level)
    if rank > count:
        raise InputError(
            f"--level {100 * level:g}: {count} validation windows give no band wider than "
            f"{100 * count / (count + 1):.1f} %"
        )
    place = (rank - 1) / max(1, count - 1) * (len(knots) - 1)
    low = int(place)
    high = min(low + 1, len(knots) - 1)
    return knots[low] + (knots[high] - knots[low]) * (place - low)


class Calibration:
    """Gathers scores over a validation pass.

    Args:
        windows, outputs, horizon: of the part.
    """

    def __init__(self, windows: int, outputs: int, horizon: int) -> None:
        self.stride = stride(windows, outputs, horizon)
        self.scores: list[Tensor] = []

    def update(self, forecast: Tensor, batch: dict[str, Tensor]) -> None:
        """Takes ``forecast (B, outputs, T)``, scaled, of a batch of `Windows`."""
        keep = batch["index"] % self.stride == 0
        if not keep.any():
            return
        y = batch["y"]
        seen = batch["seen"][:, -y.shape[1] :] if "seen" in batch else None
        scale = deviation(batch["x"][:, -y.shape[1] :], seen)[..., None]
        score = (forecast.detach().float() - y).abs() / scale
        if "truth" in batch:
            score = score.masked_fill(~batch["truth"], torch.nan)
        self.scores.append(score[keep].cpu())

    def result(self, world_size: int = 1) -> dict[str, Any]:
        """What a checkpoint keeps: ``knots, count``; empty without windows.

        Args:
            world_size: number of processes; with more than one, all of them must call this, and every one gets the
                result over all windows.
        """
        scores = self.scores
        if world_size > 1:
            everyone: list[Any] = [None] * world_size
            torch.distributed.all_gather_object(everyone, scores)
            scores = [part for own in everyone for part in own]
        if not scores:
            return {}
        knots, count = quantiles(torch.cat(scores))
        return {"knots": knots, "count": count}


def band(kept: dict[str, Any], level: float, scale: Tensor) -> Tensor:
    """Half-width ``(B, N, T)``, in scaled units, for windows of deviation ``scale (B, N)``.

    Args:
        kept: of `Calibration.result`.
        level: 0 to 1.
        scale: of `deviation`.
    """
    half = reach(kept["knots"], kept["count"], level)
    return scale[..., None] * half.to(scale.device, scale.dtype)


def parse_levels(words: Sequence[Any]) -> list[float]:
    """Percentages as numbers: ``["80", "90"]`` to ``[80.0, 90.0]``, ascending, each once.

    Raises:
        InputError: not a number between 0 and 100.
    """
    found = set()
    for word in words:
        try:
            level = float(word)
        except (TypeError, ValueError):
            level = math.nan
        if not 0 < level < 100:
            raise InputError(f"--level {word}: a percentage between 0 and 100")
        found.add(level)
    return sorted(found)


def pinball(forecast: Tensor, truth: Tensor, probability: float) -> Tensor:
    """The quantile loss, element by element: ``max(p d, (p - 1) d)`` with ``d = truth - forecast``."""
    difference = truth - forecast
    return torch.maximum(probability * difference, (probability - 1) * difference)
