"""Which values a prediction has beside the forecast: interval bounds, quantiles and sample paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seqssm.errors import InputError
from seqssm_forecasting import intervals


class Spread:
    """The parts of a forecast, in the order forecast, bounds, quantiles, samples.

    Quantiles of a model with conformal intervals are the bounds of the interval of level ``|2 p - 1|``, quantiles of a
    quantile model its own. A sample path is the forecast plus the errors of one validation window, scaled by the
    look-back. All series take the same window, which keeps the dependence between steps and between series.

    Args:
        summary: of the checkpoint.
        levels: levels of the intervals, percent.
        probabilities: probabilities of the requested quantiles, or None.
        samples: number of sample paths, or None.
        seed: seed of the paths.

    Raises:
        InputError: a probability or a number is out of range, or the checkpoint does not support it.
    """

    def __init__(
        self,
        summary: Mapping[str, Any],
        levels: list[float],
        probabilities: Sequence[float] | None = None,
        samples: int | None = None,
        seed: int = 0,
    ) -> None:
        self.kept: dict[str, Any] = dict(summary.get("intervals") or {})
        self.own = list(summary.get("quantiles") or [])
        self.levels, self.samples = levels, samples or 0
        self.probabilities = sorted({round(float(p), 6) for p in probabilities or ()})
        for p in self.probabilities:
            self._require_quantile(p)
        if samples is not None and samples < 1:
            raise InputError(f"--samples {samples}: must be at least 1")
        if self.samples and self.own:
            raise InputError("--samples: a model of quantiles has no sample paths (--model.quantiles)")
        if self.samples and "paths" not in self.kept:
            raise InputError(f"--samples: {intervals.why_no_paths(self.kept)}")
        self.seed = seed

    def draws(self, block: int) -> list[int]:
        """Return the validation window of each path; they differ between the blocks of a recursive forecast."""
        generator = torch.Generator().manual_seed(self.seed + block)
        return torch.randint(len(self.kept.get("paths", [0])), (self.samples,), generator=generator).tolist()

    def _require_quantile(self, p: float) -> None:
        if not 0 < p < 1:
            raise InputError(f"--quantiles {p:g}: expected a probability between 0 and 1")
        if self.own:
            if p not in self.own:
                known = ", ".join(f"{one:g}" for one in self.own)
                raise InputError(f"--quantiles {p:g}: not a quantile of the model; it has {known}")
        elif not self.kept:
            raise InputError("--quantiles: this checkpoint has no calibration quantiles; train the model again")
        elif p != 0.5:
            intervals.half_width(self.kept, abs(2 * p - 1))

    def suffixes(self) -> list[str]:
        """Return the suffixes of the columns, the first of which is empty."""
        bands = [f"-{side}-{level:g}" for level in self.levels for side in ("lo", "hi")]
        quantiles = [f"-q{p:g}" for p in self.probabilities]
        return ["", *bands, *quantiles, *(f"-sample-{number}" for number in range(1, self.samples + 1))]

    def sides(self) -> list[int]:
        """Return -1 for lower bounds and quantiles below the median, 1 for those above, 0 for forecasts and samples."""
        quantiles = [(p > 0.5) - (p < 0.5) for p in self.probabilities]
        return [0, *[-1, 1] * len(self.levels), *quantiles, *[0] * self.samples]

    def parts(self, y: Tensor, scale: Tensor, scores: Tensor, block: int = 0) -> list[Tensor]:
        """Return the scaled parts, (windows, outputs, steps) each.

        Args:
            y: output of the model, (windows, outputs, steps) or with a last axis of quantiles.
            scale: standard deviation of the look-back, (windows, outputs).
            scores: index of each output among those of the training, (windows, outputs); -1 for unseen series.
            block: number of the block of a recursive forecast.
        """
        if self.own:
            place = self.own.index
            wanted = [round(0.5 + side * level / 200, 6) for level in self.levels for side in (-1, 1)]
            return [y[..., place(p)] for p in (0.5, *wanted, *self.probabilities)]
        wanted = [side * level / 100 for level in self.levels for side in (-1, 1)]
        parts = [y]
        for signed in (*wanted, *(2 * p - 1 for p in self.probabilities)):
            parts.append(y + math.copysign(1, signed) * self._half(abs(signed), y, scale, scores))
        for number in self.draws(block):
            path = self.kept["paths"][number].double()[:, : y.shape[-1]]
            parts.append(y + scale[..., None] * path[scores % len(path)])
        return parts

    def _half(self, level: float, y: Tensor, scale: Tensor, scores: Tensor) -> Tensor:
        if round(level, 6) == 0:
            return torch.zeros_like(y)
        half = intervals.half_width(self.kept, round(level, 6)).double()[:, : y.shape[-1]]
        # an unseen series takes the mean over the series of the training
        half = torch.cat([half, half.nanmean(0, keepdim=True)])
        return intervals.margins(self.kept, round(level, 6), scale, half[scores])
