"""The report and figures of `test`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from torch import Tensor

from seqssm.files.disk import atomic
from seqssm.metrics.report import Report
from seqssm_forecasting import figures, metrics
from seqssm_forecasting.metrics import Errors, IntervalScores

if TYPE_CHECKING:
    from seqssm_forecasting.data import ForecastingData

LARGEST_TABLE = 30  # maximum number of variates printed; figures/errors.csv has all of them


def make(
    errors: dict[str, Errors],
    interval_scores: IntervalScores | None,
    data: ForecastingData,
    probabilities: list[float],
) -> Report:
    """Make the report of a test.

    Args:
        errors: errors of each model over all processes, the trained network first.
        interval_scores: coverage and pinball losses of the network, over all processes; None without intervals.
        data: the data module.
        probabilities: probabilities of the quantiles that the network was trained for.
    """
    own = next(iter(errors.values()))
    logged = ", after log(1 + value)" if data.output_limits.inverse is not None else ""
    setting = f"look-back {data.lookback}, horizon {data.horizon}, {own.count} windows"
    tables = [(f"Test, scaled by the training rows{logged} ({setting})", _models(errors, interval_scores, data))]
    if interval_scores is not None:
        how = "quantiles of the model" if probabilities else "conformal, calibrated on the validation split"
        title = f"Intervals on the test split ({how}); level and coverage in %, width scaled"
        tables.append((title, interval_scores.table()))
        losses = pd.DataFrame(interval_scores.losses().items(), columns=["probability", "pinball"])
        if probabilities:
            tables.append(("Pinball loss by quantile, scaled", losses))
    variates = metrics.by_variate(own, data.outputs_names)
    title = "By variate (mse, mae scaled; rmse_units, mae_units in the file's units)"
    if len(variates) > LARGEST_TABLE:
        variates = variates.nlargest(LARGEST_TABLE, "mse")
        title += f", the {LARGEST_TABLE} with the largest mse"
    tables.append((title, variates))
    tables.append(
        ("Mean squared error by step ahead, scaled", metrics.by_step(errors, metrics.some_steps(data.horizon)))
    )
    return Report({"mse": own.mse, "mae": own.mae}, tables)


def _models(errors: dict[str, Errors], interval_scores: IntervalScores | None, data: ForecastingData) -> pd.DataFrame:
    """Return one row per model: ``mse, mae, crps`` scaled, ``mase``, ``smape`` and ``wape`` in percent.

    The CRPS of a point forecast is its mean absolute error.
    """
    naive = data.naive_error.numpy()
    rows = []
    for index, (name, one) in enumerate(errors.items()):
        crps = interval_scores.crps if index == 0 and interval_scores is not None else one.mae
        rows.append(
            {
                "model": name,
                "mse": one.mse,
                "mae": one.mae,
                "mase": one.mase(naive),
                "smape": one.smape,
                "wape": one.wape,
                "crps": crps,
            }
        )
    return pd.DataFrame(rows)


def blend_weights(weights: Tensor, names: list[str]) -> tuple[str, pd.DataFrame]:
    """Return the table of the weights of a blend, one row per step ahead.

    Args:
        weights: weights of the members, (M, T).
        names: names of the members.
    """
    table: dict[str, object] = {"step": metrics.some_steps(weights.shape[1])}
    for name, own in zip(names, weights.tolist()):
        table[name] = [own[step - 1] for step in metrics.some_steps(weights.shape[1])]
    return "Weights of the blend by step ahead, fitted on the validation split", pd.DataFrame(table)


def write(errors: dict[str, Errors], first: np.ndarray | None, data: ForecastingData, folder: Path) -> None:
    """Write `errors.csv` (every variate and step), `error_by_step.png` and `residuals.png`.

    Args:
        errors: as in `make`.
        first: one-step-ahead errors of consecutive windows, (windows, N), scaled.
        data: the data module.
        folder: folder for the files.
    """
    own = next(iter(errors.values()))
    table = metrics.by_cell(own, data.outputs_names)
    with atomic(folder / "errors.csv", "w") as file:
        table.to_csv(file, index=False, lineterminator="\n")
    lines = {name: np.nanmean(one.cells()[0], axis=0) for name, one in errors.items()}
    figures.error_by_step(lines, folder / "error_by_step.png")
    if first is not None:
        figures.residuals(folder / "residuals.png", own.bias(), first)
