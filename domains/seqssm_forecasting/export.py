"""The graph of a forecasting model for ``seqssm export``: scaled look-back windows in, scaled forecasts out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqssm.errors import InputError
from seqssm.tools.export import Graph, plain
from seqssm_forecasting.calendar import MARKS, SPAN

MARKED = (
    "; marks: (value - low) / (high - low) - 0.5 of each calendar mark of the look-back's dates, with low and high of "
    "calendar_ranges, (batch, calendar_marks, lookback); day_of_week is 0 on Monday, week is that of ISO 8601"
)
KNOWN = (
    "; future: (value - mean) / std of each future covariate, with mean and std of future, (batch, columns, lookback "
    "+ horizon)"
)


class Forecast(nn.Module):
    """Windows (B, N, L), and marks and future covariates where the model has them, to forecasts (B, N, T[, Q]).

    Args:
        model: the trained network.
        marks: whether there are calendar marks.
        future: whether there are future covariates.
    """

    def __init__(self, model: nn.Module, marks: bool, future: bool) -> None:
        super().__init__()
        self.model, self.marks, self.future = model, marks, future

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        rest = list(more)
        marks = rest.pop(0) if self.marks else None
        return self.model(x, marks, futr_exog=rest.pop(0)) if self.future else self.model(x, marks)


def export(task: Any, summary: dict[str, Any], streaming: bool) -> Graph:
    """Return the graph of a model; the number of series is its dynamic length.

    Args:
        task: the trained task.
        summary: description of the training data.
        streaming: not available.

    Raises:
        InputError: `streaming`, or a model with static properties of series.
    """
    if streaming:
        raise InputError("--streaming: a forecasting model reads whole windows")
    if summary.get("static"):
        raise InputError("a model with static properties of series cannot be exported")
    lookback, horizon, quantiles = int(summary["lookback"]), int(summary["horizon"]), task.hparams["quantiles"]
    kind = summary["marks"] if summary["dated"] else "none"
    marks, future = len(MARKS.get(kind, ())), len((summary.get("known") or {}).get("columns", []))

    def example(batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(length)
        found = {"x": torch.randn(batch, length, lookback, generator=generator)}
        if marks:
            found["marks"] = torch.rand(batch, marks, lookback, generator=generator) - 0.5
        if future:
            found["future"] = torch.randn(batch, future, lookback + horizon, generator=generator)
        return found

    axes = {"x": {0: "batch", 1: "series"}, "marks": {0: "batch"}, "future": {0: "batch"}}
    known = example(1, 1)
    metadata = {
        "columns": list(summary["columns"]),
        "outputs_columns": list(summary["columns"])[-int(summary["outputs"]) :],
        "mean": plain(summary["mean"]),
        "std": plain(summary["std"]),
        "future": plain(summary.get("known")),
        "values": str((summary.get("limits") or {}).get("values", "real")),
        "lookback": lookback,
        "horizon": horizon,
        "frequency": summary["freq"],
        "calendar_marks": list(MARKS.get(kind, ())),
        "calendar_ranges": {name: list(SPAN[name]) for name in MARKS.get(kind, ())},
        "quantiles": plain(quantiles),
        "inputs": "x: (value - mean) / std of each column, (batch, series, lookback), oldest first; "
        "log(1 + value) instead of value if values is log1p" + (MARKED if marks else "") + (KNOWN if future else ""),
        "outputs": "forecast: (batch, series, horizon), with a last axis of quantiles if there are any; "
        "value * std + mean gives the file's units, or log(1 + value) if values is log1p",
    }
    module = Forecast(task.model, bool(marks), bool(future))
    names = {name: axes[name] for name in known}
    count = len(summary["columns"])
    return Graph(module, example, names, ("forecast",), metadata, (count + 3, count, 2 * count + 9))
