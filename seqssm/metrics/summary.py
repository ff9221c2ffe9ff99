"""The table of a study: means of the scores over folds and seeds, and differences from the first model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from seqssm.metrics.metric import Metric, direction

if TYPE_CHECKING:
    import pandas as pd


def summarise(rows: list[dict[str, Any]], metrics: Sequence[Metric] = ()) -> pd.DataFrame:
    """Summarise scores: one row per metric and model.

    Args:
        rows: rows of `folds.csv`; a score may be None.
        metrics: the declared scores. Wins are counted only for those with a direction of improvement.

    Returns:
        Columns ``metric, model, runs, mean, std`` (sample standard deviation, empty for one run) and, compared
        with the first model over their common runs, ``difference`` (mean), ``difference_std`` (sample standard
        deviation), ``wins`` ("2 of 3").
    """
    import pandas as pd

    models = list(dict.fromkeys(row["model"] for row in rows))
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in ("fold", "seed", "model")]
    table = []
    for metric in names:
        values = {
            model: {
                (row["fold"], row["seed"]): float(row[metric])
                for row in rows
                if row["model"] == model and row.get(metric) is not None and math.isfinite(row[metric])
            }
            for model in models
        }
        for model in models:
            own, first = values[model], values[models[0]]
            line: dict[str, Any] = {"metric": metric, "model": model, "runs": len(own)}
            line |= dict(zip(("mean", "std"), mean_and_std(list(own.values()))))
            if model != models[0]:
                differences = [own[pair] - first[pair] for pair in own if pair in first]
                line |= dict(zip(("difference", "difference_std"), mean_and_std(differences)))
                better = direction(metrics, metric)
                if better is not None:
                    won = sum(d > 0 if better == "max" else d < 0 for d in differences)
                    line["wins"] = f"{won} of {len(differences)}"
            table.append(line)
    frame = pd.DataFrame(table)
    return frame.fillna({"wins": ""}) if "wins" in frame else frame


def mean_and_std(values: list[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; NaN for too few values."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan
