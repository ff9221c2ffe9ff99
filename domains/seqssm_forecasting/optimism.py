"""Backtest windows whose rows the model was trained or validated on: their scores are too good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqssm.errors import InputError
from seqssm.training.external import overlapping, read_split
from seqssm.training.run_folder import RunFolder
from seqssm_forecasting.series import Series


def warning(summary: Mapping[str, Any], series: Series, ends: Sequence[int], horizon: int) -> str:
    """Count the windows whose forecast rows are in `split.csv` beside the checkpoint, with equal dates and values.

    Args:
        summary: summary in the checkpoint, with the path of its file.
        series: the variates as the model was trained on them.
        ends: first forecast row of each window.
        horizon: number of forecast rows of each window.

    Returns:
        A line for the user; empty if there are no such windows, or the rows of the training are unknown.
    """
    file = getattr(summary, "file", None)
    try:
        split = None if file is None else read_split(RunFolder(Path(file).parent))
    except InputError:  # not of a run
        split = None
    if not split:
        return ""
    rows = series.identities(min(ends), min(max(ends) + horizon, len(series)))
    split_of = {id: name for name, ids in overlapping(rows, split).items() for id in ids}
    found = [split_of.get(row["id"], "") for row in rows]
    first = min(ends)
    windows = [set(found[end - first : end - first + horizon]) for end in ends]
    trained = sum("train" in one for one in windows)
    validated = sum("val" in one and "train" not in one for one in windows)
    counts = {"trained": trained, "validated": validated}
    words = " and ".join(f"{what} on rows of {count}" for what, count in counts.items() if count)
    if not words:
        return ""
    return f"warning: the model was {words} of the {len(ends)} backtest windows; their scores are too good"
