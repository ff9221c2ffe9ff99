"""The description of the data printed by `fit`, and by `test` on other data."""

from __future__ import annotations

from seqssm.training.data import DataModule
from seqssm_forecasting import statics
from seqssm_forecasting.intervals import ENOUGH
from seqssm_forecasting.series import listed
from seqssm_forecasting.tidy import Tidy


def lines(data: DataModule, found: Tidy) -> list[str]:
    """Describe the data and how it was processed.

    Args:
        data: a `ForecastingData`, already set up.
        found: its regularised table.
    """
    series = data.series
    assert series is not None
    every = ", without dates"
    if found.step is not None:
        words = "numbered by 1" if series.numbered else f"every {found.step.words()}"
        every = f", {words} ({found.evidence})"
    zone = f", dates of {series.zone}" if series.zone else ""
    told = [f"{series.path}: {len(series)} rows, {len(series.columns)} variates{every}{zone}", *found.notes]
    told += [f"not used: {name} ({reason})" for name, reason in data.left_out.items()]
    if data.external:
        return [
            *told,
            f"{len(data.test_set)} windows of {data.lookback} + {data.horizon}, scaled as the run's own data",
        ]
    sets = (("train", data.train_set), ("validation", data.val_set), ("test", data.test_set))
    told.append(f"windows of {data.lookback} + {data.horizon}: " + ", ".join(f"{len(s)} {name}" for name, s in sets))
    if data.features != "M":
        inputs = f" from {len(series.columns)} series" if data.features == "MS" else ""
        told.append(f"target: {series.columns[-1]}{inputs} (--data.features {data.features})")
    if data.hist_columns:
        told.append(f"historical covariates, read but not forecast: {listed(data.hist_columns)}")
    if data.output_limits.inverse is not None:
        told.append("log(1 + value) is scaled, read and forecast (--data.values log1p)")
    if data.future_names:
        told.append(f"future covariates: {listed(data.future_names)}")
    if data.static is not None:
        told.append(f"static features: {listed(statics.names(data.static_rules))}")
    if data.season_left_out:
        told.append(f"no seasonal baseline: the history is shorter than the period of {data.season_left_out} steps")
    if data.constant:
        told.append(f"constant in the train split, scaled by 1: {', '.join(data.constant)}")
    few = data.pooled()
    if few and len(few) < data.outputs:
        told.append(f"fewer than {ENOUGH} validation windows, prediction intervals pooled over series: {listed(few)}")
    return told
