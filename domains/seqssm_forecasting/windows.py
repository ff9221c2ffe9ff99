"""Windows over a multivariate series, and the boundaries of its splits."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from seqssm.errors import InputError
from seqssm_forecasting import epochs, periods, zones
from seqssm_forecasting.series import Series

FIXED = ("ett_hour", "ett_minute", "70/10/20", "60/20/20")
MOST_ROWS = 100_000  # upper limit of the search for the smallest sufficient number of rows


def borders(rows: int, lookback: int, split: str) -> dict[str, tuple[int, int]]:
    """Return first and end row of each split, as in the public benchmarks.

    Validation and test start `lookback` rows early, so that their first forecast directly follows the preceding split;
    those of ``60/20/20`` (PEMS) do not overlap. ``ett_*`` are 12, 4 and 4 months of 30 days; later rows are unused.
    ``A/B/C`` are percentages of the rows; the first and the last are rounded down.
    """
    if split in ("ett_hour", "ett_minute"):
        month = 30 * 24 * (1 if split == "ett_hour" else 4)
        train, val, test = 12 * month, 16 * month, 20 * month
        if rows < test:
            return {"train": (0, min(train, rows)), "val": (0, 0), "test": (0, 0)}
    elif split == "60/20/20":
        train, val = int(0.6 * rows), int(0.8 * rows)
        return {"train": (0, train), "val": (train, val), "test": (val, rows)}
    else:
        first, _, last = percentages(split)
        train, test = int(rows * (first / 100)), rows
        val = rows - int(rows * (last / 100))
    return {"train": (0, train), "val": (train - lookback, val), "test": (val - lookback, test)}


def percentages(split: str) -> tuple[float, float, float]:
    """Parse the percentages of ``A/B/C``.

    Raises:
        InputError: not three numbers that sum to 100, none of them 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", split)
    parts = tuple(float(part) for part in found.groups()) if found else ()
    if len(parts) != 3 or abs(sum(parts) - 100) > 1e-6 or min(parts) <= 0:
        raise InputError(
            f"--data.split {split}: expected three percentages with sum 100 such as 70/10/20, or ett_hour, ett_minute"
        )
    return parts[0], parts[1], parts[2]


def _moment(text: str) -> pd.Timestamp:
    """Parse a year-first date, the start of a period, or seconds or milliseconds since 1970.

    pandas would read ``10.02.2024`` as 2 October.

    Raises:
        ValueError: none of these.
    """
    found = re.fullmatch(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})((?:[ T].*)?)", text.strip())
    if found:
        year, month, day, clock = found.groups()
        return pd.Timestamp(f"{date(int(year), int(month), int(day))}{clock}")
    period = periods.read([text.strip()])
    if period is not None:
        return pd.Timestamp(period.values[0])
    if re.fullmatch(r"\d{4}", text.strip()):
        return pd.Timestamp(int(text), 1, 1)
    since = epochs.read([text.strip()])
    if since is not None:
        return pd.Timestamp(since[0][0], tz="UTC")
    raise ValueError(text)


def borders_by_date(series: Series, lookback: int, val_from: str, test_from: str) -> dict[str, tuple[int, int]]:
    """Split at dates: train before `val_from`, validation before `test_from`, then test.

    Raises:
        InputError: there are no dates, or the dates are not in this order within the file.
    """
    if series.dates is None or series.numbered:
        raise InputError("has no dates, which --data.val_from and --data.test_from require", file=series.path)
    starts = []
    clock = zones.local(series.dates, series.zone, series.utc)
    for flag, text in (("val_from", val_from), ("test_from", test_from)):
        try:
            moment = _moment(str(text))
            if moment.tzinfo is not None:
                moment = moment.tz_convert(series.zone or "UTC").tz_localize(None)
        except (ValueError, TypeError):
            what = "not a year-first date (2024-01-31, 2024-01-31 18:00) or seconds since 1970 (1700000000)"
            if epochs.ROUNDED.fullmatch(str(text).strip()):
                what = f"not a date; {epochs.WRITE}"
            raise InputError(f"--data.{flag} {text}: {what}") from None
        starts.append(int(np.flatnonzero(clock >= moment)[0]) if (clock >= moment).any() else len(series))
    train, val = starts
    if not 0 < train < val < len(series):
        raise InputError(
            f"--data.val_from {val_from} and --data.test_from {test_from} must lie inside {series.label(0)} to "
            f"{series.label(-1)}, in this order",
            file=series.path,
        )
    return {"train": (0, train), "val": (train - lookback, val), "test": (val - lookback, len(series))}


def fewest_rows(lookback: int, horizon: int, split: str) -> int | None:
    """Return the smallest number of rows that gives each split a window; None beyond `MOST_ROWS`."""
    need = lookback + horizon

    def enough(rows: int) -> bool:
        return all(first >= 0 and end - first >= need for first, end in borders(rows, lookback, split).values())

    low, high, most = need, need, MOST_ROWS + 20 * need
    while not enough(high):  # exponential search, to be fast even for absurd horizons
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    # the sizes of the splits are rounded, so a slightly smaller number may also be enough
    return next(rows for rows in range(max(need, high - 100), high + 1) if enough(rows))


def require_windows(
    path: Path,
    rows: int,
    splits: dict[str, tuple[int, int]],
    lookback: int,
    horizon: int,
    dates: str | None = None,
    split: str | None = None,
) -> None:
    """Check that every split has a window.

    Args:
        path: path used in error messages.
        rows: number of rows of the file.
        splits: first and end row of each split.
        lookback: number of input steps.
        horizon: number of forecast steps.
        dates: the options that split by date, as typed on the command line.
        split: value of ``--data.split``; None for a file that is not split.

    Raises:
        InputError: a split has no window; the message names the options and the sufficient number of rows.
    """
    need = lookback + horizon
    short = [name for name, (first, end) in splits.items() if first < 0 or end - first < need]
    if not short:
        return
    setting = f"--data.lookback {lookback}, --data.horizon {horizon}"
    which = f"the {' and '.join(short)} split has no window"
    if dates is not None:
        raise InputError(f"with {setting}, {dates} {which}", file=path)
    few = f"{rows} rows are too few"
    if split is None:
        raise InputError(f"{few}: a window with {setting} needs {need}", file=path)
    fewest = fewest_rows(lookback, horizon, split)
    raise InputError(
        f"{few}: with {setting} and --data.split {split} {which}; at least {fewest} rows are needed, or a shorter "
        "look-back and horizon",
        file=path,
    )


class Windows(Dataset):
    """All windows of a split at stride 1; window k looks back from row ``first + k + lookback``.

    A batch is gathered in one step (`__getitems__`): ``index (B,)``, ``x (B, N, L)``, ``y (B, outputs, T)`` and, where
    there are any, calendar marks ``marks (B, M, L)``, future covariates ``futr_exog (B, K, L + T)``, and masks:
    ``observed_mask (B, N, L)`` and ``target_mask (B, outputs, T)``, False where a value is missing. The targets of a
    variate without any value in the look-back are masked too, because there is nothing to forecast from. Variates come
    before time, because they are the tokens; the last `outputs` of them are forecast. With ``history`` > ``lookback``,
    there is also ``past (B, N, history)``, for seasonal forecasts.

    Args:
        values: table of values, (rows, N), float32, scaled; the whole series, missing values filled.
        marks: calendar features, (rows, M), float32; M may be 0.
        rows: first and end row of the split.
        lookback: L, number of input steps.
        horizon: T, number of forecast steps.
        history: length of ``past``, steps; 0 omits it.
        outputs: number of trailing variates to forecast; None for all.
        futr_exog: future covariates, (rows, K), float32, scaled; None for none.
        observed: observation mask, (rows, N) bool, False for masked values; None if there are none.
    """

    def __init__(
        self,
        values: Tensor,
        marks: Tensor,
        rows: tuple[int, int],
        lookback: int,
        horizon: int,
        history: int = 0,
        outputs: int | None = None,
        futr_exog: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> None:
        self.first, self.end = rows
        self.lookback, self.horizon, self.history = lookback, horizon, history
        self.outputs = values.shape[1] if outputs is None else outputs
        self.count = max(0, self.end - self.first - lookback - horizon + 1)
        # windows are views: (first rows, variates, steps); the copy is made when a batch indexes them
        self.windows = _unfold(values, lookback + horizon)
        self.marks = _unfold(marks, lookback) if marks.shape[1] else None
        self.futr_exog = _unfold(futr_exog, lookback + horizon) if futr_exog is not None else None
        self.observed = _unfold(observed, lookback + horizon) if observed is not None else None
        self.past = _unfold(values, history) if history > lookback else None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        index = torch.tensor(indices, dtype=torch.int64)
        row = index + self.first
        window = self.windows[row]
        batch = {"index": index, "x": window[..., : self.lookback], "y": window[:, -self.outputs :, self.lookback :]}
        if self.marks is not None:
            batch["marks"] = self.marks[row]
        if self.futr_exog is not None:
            batch["futr_exog"] = self.futr_exog[row]
        if self.observed is not None:
            observed = self.observed[row]
            observed_mask = observed[..., : self.lookback]
            target_mask = observed[:, -self.outputs :, self.lookback :]
            batch["observed_mask"] = observed_mask
            batch["target_mask"] = target_mask & observed_mask[:, -self.outputs :].any(-1, keepdim=True)
        if self.past is not None:
            batch["past"] = self.past[row + self.lookback - self.history]
        return batch

    def targets(self) -> np.ndarray:
        """Return the number of windows with a target, the minimum over the forecast steps, (outputs,)."""
        if self.observed is None:
            return np.full(self.outputs, self.count)
        counts = torch.zeros(self.outputs, self.horizon, dtype=torch.int64)
        for start in range(0, self.count, 1024):
            rows = self.first + torch.arange(start, min(start + 1024, self.count))
            observed = self.observed[rows]
            seen = observed[:, -self.outputs :, : self.lookback].any(-1, keepdim=True)
            counts += (observed[:, -self.outputs :, self.lookback :] & seen).sum(0)
        return counts.min(1).values.numpy()


def _unfold(table: Tensor, length: int) -> Tensor:
    if table.shape[0] < length:
        return table.new_empty(0, table.shape[1], length)
    return table.unfold(0, length, 1)
