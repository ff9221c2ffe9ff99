"""Prediction intervals by split conformal prediction, from the errors on the validation split.

The score of a forecast is its absolute error divided by the standard deviation of its window's look-back, as in the
window normalisation, so intervals are wide after a volatile look-back and narrow after a calm one. The interval at
level c is ``forecast +- std * q``, q the ceil((n + 1) c) / n quantile of the scores of n validation windows, per series
and step (Lei et al. 2018, "Distribution-free predictive inference for regression", sections 2.2 and 5.2). A series with
fewer than `ENOUGH` validation windows takes the quantiles of the pooled scores of all series, which are comparable
because of the division.

The standard deviation of a constant look-back is 0: one such window would count as an error of hundreds of standard
deviations. Windows are therefore calibrated in two groups (Vovk et al. 2003, "Mondrian confidence machine"). Constant
ones are excluded from the quantiles above and have intervals of their own, from the undivided errors of all constant
windows, in standard deviations of the training split; if there are fewer than `ENOUGH`, from those of all windows.

Windows with overlapping targets are dependent. The h-step errors of two windows k steps apart share h - k of their h
shocks: their correlation is about r = 1 - k / h, exactly that for a random walk. The quantile counts scores below a
limit; for Gaussian errors the correlation of these counts is at most r^2 (their Hermite expansion has even terms only),
so n windows of stride s are worth at least ``m = n / (1 + 2 sum_k (1 - k s / h)^2)`` independent ones, about
3 n s / (2 h). The expected coverage of the j-th smallest of m scores is j / (m + 1): the quantile is at
``min(1, c (m + 1) / m)``. Errors are dependent beyond the overlap: no coverage is guaranteed, `test` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqssm.errors import InputError
from seqssm.metrics.gather import gathered

FLOOR = 1e-5  # added to the variance, as in the window normalisation
CALM = 0.01  # standard deviation of a window, scaled, below which it counts as constant
POWER = 2  # of the correlation of two windows in the number of independent ones; checkpoints without it used 1
ENOUGH = 30
"""Minimum number of validation windows for intervals from a series' own errors."""
PATHS, FEWEST_PATHS, PATH_NUMBERS = 200, 20, 1_000_000
"""Limits of the errors of whole windows that are kept for sample paths: most, fewest, and largest number of values."""
WINDOWS, SCORES = 4000, 30_000_000  # maximum number kept of the validation split, evenly spaced, to bound memory
KNOTS = 201  # calibration quantiles kept per series and step: at 0, 0.5 %, ..., 100 %
CRPS_LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Probabilities over which the pinball loss is averaged for the CRPS."""


def window_std(x: Tensor, observed: Tensor | None = None) -> Tensor:
    """Return the (B, N) standard deviation of the look-back ``x (B, N, L)`` over its observed steps."""
    if observed is None:
        return torch.sqrt(x.var(-1, correction=0) + FLOOR)
    weight = observed.to(x.dtype)
    count = weight.sum(-1, keepdim=True).clamp(min=1)
    mean = (x * weight).sum(-1, keepdim=True) / count
    return torch.sqrt(((x - mean).square() * weight).sum(-1) / count[..., 0] + FLOOR)


def stride(windows: int, outputs: int, horizon: int) -> int:
    """Return the interval at which windows are kept."""
    most = max(100, min(WINDOWS, SCORES // (outputs * horizon)))
    return max(1, -(-windows // most))


def quantiles(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores at `KNOTS` evenly spaced ranks, ``(knots, N, T)`` float32, and their number ``(N, T)``.

    Args:
        scores: conformity scores, (windows, N, T); NaN if unknown.
    """
    # NaN last; Tensor.sort takes ten times as long
    ordered = torch.from_numpy(np.sort(scores.float().numpy(), axis=0))
    count = (~ordered.isnan()).sum(0)  # (N, T)
    rank = torch.linspace(0, 1, min(KNOTS, max(2, scores.shape[0])))[:, None, None]
    position = rank * (count - 1).clamp(min=0)
    low = position.floor().long()
    high = (low + 1).minimum((count - 1).clamp(min=0)[None])
    a, b = ordered.gather(0, low), ordered.gather(0, high)
    found = a + (b - a) * (position - low)
    return torch.where(count > 0, found, torch.nan), count


class Calibration:
    """Collects scores over a validation pass.

    Args:
        windows: number of validation windows.
        outputs: number of forecast variates.
        horizon: number of forecast steps.
        members: number of forecasts per window, whose weights are known at the end only.
    """

    def __init__(self, windows: int, outputs: int, horizon: int, members: int = 1) -> None:
        self.outputs, self.horizon = outputs, horizon
        self.stride = stride(windows, outputs * members, horizon)
        self.batches: list[dict[str, Tensor]] = []

    def update(self, forecasts: Tensor | list[Tensor], batch: dict[str, Tensor]) -> None:
        """Add the scaled forecasts, (B, outputs, T) per member, of a batch of `Windows`."""
        keep = batch["index"] % self.stride == 0
        if not keep.any():
            return
        y = batch["y"]
        observed = batch["observed_mask"][:, -y.shape[1] :] if "observed_mask" in batch else None
        scale = window_std(batch["x"][:, -y.shape[1] :], observed)[..., None]
        members = [forecasts] if isinstance(forecasts, Tensor) else forecasts
        score = torch.stack([(forecast.detach().float() - y) / scale for forecast in members], 1)
        if "target_mask" in batch:
            score = score.masked_fill(~batch["target_mask"][:, None], torch.nan)
        scores = {"index": batch["index"], "scores": score, "scale": scale}
        self.batches.append({name: values[keep].cpu() for name, values in scores.items()})

    def result(self, world_size: int = 1, weights: Tensor | None = None) -> dict[str, Any]:
        """Return the checkpoint entry.

        It has the entries ``knots (K, N, T)``, ``counts (N,)``, ``pooled_knots (K, T)``, ``pooled_count``,
        ``stride``, the number of steps between the windows, and ``power``, that of their correlation; for constant
        look-backs ``constant_knots (K, T)`` and ``constant_count``.

        Args:
            weights: weights of the members, (M, T), with sum 1; by default there is one.
            world_size: number of processes; if there are several, all of them must call this and get the result over
                all windows, each counted once.

        Returns:
            The entry; empty without windows.
        """
        found = gathered(self.batches, world_size)
        if not found:
            return {}
        signed, scale = torch.from_numpy(found["scores"]), torch.from_numpy(found["scale"])  # (windows, members, N, T)
        signed = signed[:, 0] if weights is None else (signed * weights[:, None]).sum(1)
        scores = signed.abs()
        calm, errors = scale < CALM, scores * scale
        varied = scores.masked_fill(calm, torch.nan)
        if varied.isnan().all():
            varied = scores
        knots, counts = quantiles(varied)
        pooled, total = quantiles(varied.flatten(0, 1)[:, None])
        constant, number = quantiles(errors.masked_fill(~calm, torch.nan).flatten(0, 1)[:, None])
        if number.min() < ENOUGH:
            constant, number = quantiles(errors.flatten(0, 1)[:, None])
        return {
            "knots": knots,
            "count": int(counts.min()),
            "counts": counts.min(1).values,
            "pooled_knots": pooled[:, 0],
            "pooled_count": int(total.min()),
            "stride": self.stride,
            "power": POWER,
            "constant_knots": constant[:, 0],
            "constant_count": int(number.min()),
            **paths(signed.masked_fill(calm, torch.nan)),
        }


def paths(errors: Tensor) -> dict[str, Tensor]:
    """Choose errors of whole windows for sample paths.

    Args:
        errors: (forecast - actual value) / scale of consecutive windows, (windows, N, T); NaN if unknown.

    Returns:
        ``{"paths": (K, N, T)}``, actual value minus forecast, of K evenly spaced windows without unknown errors; empty
        if there are too few.
    """
    whole = errors[~errors.isnan().flatten(1).any(1)]
    most = min(PATHS, PATH_NUMBERS // errors[0].numel())
    if min(most, len(whole)) < FEWEST_PATHS:
        return {}
    chosen = torch.linspace(0, len(whole) - 1, min(most, len(whole))).round().long()
    return {"paths": -whole[chosen].float()}


def why_no_paths(kept: Mapping[str, Any]) -> str:
    """Return the reason why a checkpoint has no errors of whole windows, and what to do.

    Args:
        kept: entry from `Calibration.result` without ``paths``; empty if the checkpoint has none.
    """
    if not kept:
        return "this checkpoint has no errors of validation windows; train the model again, with a validation split"
    _, series, steps = kept["knots"].shape
    if PATH_NUMBERS // (series * steps) < FEWEST_PATHS:
        most = PATH_NUMBERS // FEWEST_PATHS
        return (
            f"no paths are kept for more than {most} values per window ({series} series, {steps} steps); train with "
            "fewer series or steps"
        )
    remedy = "train with more rows, or a larger validation split (--data.split, --data.val_from)"
    count = int(_counts(kept).min())
    if count < FEWEST_PATHS:
        windows = "the validation split has" if len(_counts(kept)) == 1 else "a series of the validation split has"
        return f"{windows} {count} windows with values that vary, and paths need {FEWEST_PATHS}; {remedy}"
    need = f"{FEWEST_PATHS} validation windows in which every series has all values and none is constant"
    return f"paths need {need}; {remedy}"


def own_series(kept: dict[str, Any], level: float = 0.0) -> Tensor:
    """Whether the interval of each series (N,) is based on its own errors rather than the pooled errors.

    Args:
        kept: entry from `Calibration.result`, or from an old checkpoint without pooled errors.
        level: level of the interval (0 to 1); a high one may need more windows than a series has.
    """
    counts = _counts(kept)
    if "pooled_knots" not in kept or len(counts) == 1:
        return torch.ones(len(counts), dtype=torch.bool)
    return (counts >= ENOUGH) & ((counts + 1) * level <= counts)


def _counts(kept: dict[str, Any]) -> Tensor:
    return kept.get("counts", torch.full((kept["knots"].shape[1],), kept["count"]))


def largest_level(kept: dict[str, Any]) -> float:
    """Return the largest level (0 to 1) that the validation windows allow for every series."""
    counts = _counts(kept)
    count = kept["pooled_count"] if "pooled_knots" in kept and len(counts) > 1 else int(counts.min())
    return count / (count + 1)


def at_largest(kept: dict[str, Any], level: float) -> dict[int, float]:
    """Return the steps ahead at which intervals end at the largest error, each with the level that windows allow.

    m independent windows allow at most the level m / (m + 1); overlapping windows are worth fewer the further ahead.

    Args:
        kept: entry from `Calibration.result`.
        level: level of the interval, 0 to 1.
    """
    own = own_series(kept, level)
    counts = _counts(kept)[own].tolist() + ([] if own.all() else [kept["pooled_count"]])
    independent = min(counts) * _independent(kept)
    allowed = independent / (independent + 1)
    return {step: float(most) for step, most in enumerate(allowed, start=1) if most < level - 1e-9}


def half_width(kept: dict[str, Any], level: float) -> Tensor:
    """Return the (N, T) half-width of the interval at `level` (0 to 1), in standard deviations of the look-back.

    Args:
        kept: entry from `Calibration.result`.
        level: level of the interval, 0 to 1.

    Raises:
        InputError: there are too few validation windows for this level.
    """
    own, counts = own_series(kept, level), _counts(kept)
    apart = _independent(kept)
    found = torch.empty(kept["knots"].shape[1:])
    if own.any():
        found[own] = _quantile(kept["knots"][:, own], counts[own], level, apart)
    if not own.all():
        found[~own] = _quantile(kept["pooled_knots"], torch.tensor(kept["pooled_count"]), level, apart)
    return found


def margins(kept: dict[str, Any], level: float, scale: Tensor, half: Tensor) -> Tensor:
    """Return the half-width of the intervals of windows, (B, N, T), scaled.

    Args:
        kept: entry from `Calibration.result`, or from an old checkpoint without constant look-backs.
        level: level of the interval, 0 to 1. If there are too few constant look-backs for it, their largest error is
            taken.
        scale: standard deviation of each look-back, (B, N).
        half: what `half_width` returned for the N series, (N, T) or (B, N, T).
    """
    half = half.to(scale.device, scale.dtype)
    found = scale[..., None] * half
    count = kept.get("constant_count", 0)
    if not count:
        return found
    level = min(level, count / (count + 1))
    constant = _quantile(kept["constant_knots"], torch.tensor(count), level, _independent(kept))
    constant = constant[: half.shape[-1]].to(scale.device, scale.dtype)
    return torch.where(scale[..., None] < CALM, constant, found)


def _independent(kept: dict[str, Any]) -> Tensor:
    """Return the number of independent windows per window at each step, (T,) float64, at most 1.

    1 at every step for checkpoints from before overlaps were taken into account.
    """
    steps = torch.arange(1, kept["knots"].shape[-1] + 1, dtype=torch.float64)
    if "stride" not in kept:
        return torch.ones_like(steps)
    ratio = kept["stride"] / steps
    shared = torch.ceil(1 / ratio - 1e-9) - 1  # later windows that overlap with one
    correlation = shared - ratio * shared * (shared + 1) / 2  # sum of 1 - k ratio over them
    if kept.get("power", 1) == POWER:
        correlation += ratio**2 * shared * (shared + 1) * (2 * shared + 1) / 6 - ratio * shared * (shared + 1) / 2
    return 1 / (1 + 2 * correlation)


def _quantile(knots: Tensor, counts: Tensor, level: float, independent: Tensor) -> Tensor:
    """Return the quantiles (..., T) of ``knots (K, ..., T)`` at `level`, with the correction for n windows.

    Args:
        knots: scores at evenly spaced ranks.
        counts: numbers of windows, (...,) or a scalar for all.
        level: level of the interval, 0 to 1.
        independent: number of independent windows per window, (T,).
    """
    fewest = int(counts.min())
    if math.ceil((fewest + 1) * level) > fewest:
        raise InputError(
            f"--level {100 * level:g}: {fewest} validation windows allow at most a level of "
            f"{100 * fewest / (fewest + 1):.1f} %"
        )
    count = counts.double()[..., None]
    effective = count * independent
    rank = torch.ceil(count * (effective + 1) * level / effective - 1e-9).minimum(count)
    position = ((rank - 1) / (count - 1).clamp(min=1) * (len(knots) - 1)).expand(knots.shape[1:])
    low = position.long()
    high = (low + 1).clamp(max=len(knots) - 1)
    a, b = (knots.gather(0, edge[None])[0] for edge in (low, high))
    return a + (b - a) * (position - low).to(knots.dtype)


def parse_levels(words: Sequence[Any]) -> list[float]:
    """Parse percentages: ``["80", "90"]`` to ``[80.0, 90.0]``, sorted, without duplicates.

    Raises:
        InputError: not a number from 1 to below 100; fractions (0.8) are refused, because they would be taken as 0.8 %.
    """
    found = set()
    for word in words:
        try:
            level = float(word)
        except (TypeError, ValueError):
            level = math.nan
        if not 0 < level < 100:
            raise InputError(f"--level {word}: expected a percentage between 0 and 100")
        if level < 1:
            raise InputError(f"--level {word}: levels are percentages of at least 1; write {100 * level:g}")
        found.add(level)
    return sorted(found)


def pinball(forecast: Tensor, target: Tensor, probability: float) -> Tensor:
    """Return the elementwise quantile loss ``max(p d, (p - 1) d)`` with ``d = target - forecast``."""
    difference = target - forecast
    return torch.maximum(probability * difference, (probability - 1) * difference)
