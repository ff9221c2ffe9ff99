"""Windows over a multivariate series, and the borders of its parts."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from seqssm.errors import InputError
from seqssm_forecasting.series import Series

FIXED = ("ett_hour", "ett_minute", "70/10/20", "60/20/20")


def borders(rows: int, lookback: int, split: str) -> dict[str, tuple[int, int]]:
    """First row and end row of each part, as the public benchmarks draw them.

    The validation and test parts start `lookback` rows early, so that their first forecast follows the part before
    at once; those of ``60/20/20`` (PEMS) do not overlap. ``ett_*`` are 12, 4 and 4 months of 30 days; later rows stay
    unused. ``A/B/C`` are percentages of the rows; the first and the last share are rounded down.
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
        first, _, last = shares(split)
        train, test = int(rows * (first / 100)), rows
        val = rows - int(rows * (last / 100))
    return {"train": (0, train), "val": (train - lookback, val), "test": (val - lookback, test)}


def shares(split: str) -> tuple[float, float, float]:
    """The percentages of ``A/B/C``.

    Raises:
        InputError: not three numbers that sum to 100, none of them 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)", split)
    parts = tuple(float(part) for part in found.groups()) if found else ()
    if len(parts) != 3 or abs(sum(parts) - 100) > 1e-6 or min(parts) <= 0:
        raise InputError(
            f"--data.split {split}: three percentages that sum to 100, as 70/10/20, or ett_hour, ett_minute"
        )
    return parts[0], parts[1], parts[2]


def borders_by_date(series: Series, lookback: int, val_from: str, test_from: str) -> dict[str, tuple[int, int]]:
    """Parts that begin at given dates: train before `val_from`, validation before `test_from`, then the test.

    Raises:
        InputError: no dates, or not in this order inside the file.
    """
    if series.dates is None:
        raise InputError(
            "has no dates, so it cannot be split by them (--data.val_from, --data.test_from)", file=series.path
        )
    places = []
    for flag, text in (("val_from", val_from), ("test_from", test_from)):
        try:
            moment = pd.Timestamp(text)
            if moment.tzinfo is not None:
                moment = moment.tz_convert(series.zone or "UTC").tz_localize(None)
        except (ValueError, TypeError):
            raise InputError(f"--data.{flag} {text}: not a date (2024-01-31, 2024-01-31 18:00)") from None
        from seqssm_forecasting import zones

        clock = zones.local(series.dates, series.zone, series.utc)
        places.append(int(np.flatnonzero(clock >= moment)[0]) if (clock >= moment).any() else len(series))
    train, val = places
    if not 0 < train < val < len(series):
        raise InputError(
            f"--data.val_from {val_from} and --data.test_from {test_from} must lie inside {series.dates[0]} to "
            f"{series.dates[-1]}, in this order",
            file=series.path,
        )
    return {"train": (0, train), "val": (train - lookback, val), "test": (val - lookback, len(series))}


class Windows(Dataset):
    """All windows of a part at stride 1; window k looks back from row ``first + k + lookback``.

    A batch is gathered in one step (`__getitems__`): ``index (B,)``, ``x (B, N, L)``, ``y (B, outputs, T)`` and, where
    there are such, calendar marks ``marks (B, M, L)``, values known beforehand ``known (B, K, L + T)``, and masks of
    what was there: ``seen (B, N, L)``, ``truth (B, outputs, T)``. Variates come before time, because they are the
    tokens; the last `outputs` of them are forecast. With ``history`` > ``lookback`` there is ``past (B, N, history)``
    too, which a seasonal forecast reads.

    Args:
        values: (rows, N), float32, scaled; the whole series, missing values filled.
        marks: (rows, M), float32; M may be 0.
        rows: first and end row of the part.
        lookback, horizon: L and T, steps.
        history: steps before the forecast that ``past`` holds; 0 leaves it out.
        outputs: how many of the last variates are forecast; None: all.
        known: (rows, K), float32, scaled; None for none.
        there: (rows, N), bool, False where a value was missing; None where none was.
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
        known: Tensor | None = None,
        there: Tensor | None = None,
    ) -> None:
        self.first, self.end = rows
        self.lookback, self.horizon, self.history = lookback, horizon, history
        self.outputs = values.shape[1] if outputs is None else outputs
        self.count = max(0, self.end - self.first - lookback - horizon + 1)
        # windows are views: (places, variates, steps); the copy is made when a batch indexes them
        self.windows = _unfold(values, lookback + horizon)
        self.marks = _unfold(marks, lookback) if marks.shape[1] else None
        self.known = _unfold(known, lookback + horizon) if known is not None else None
        self.there = _unfold(there, lookback + horizon) if there is not None else None
        self.past = _unfold(values, history) if history > lookback else None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        index = torch.tensor(indices, dtype=torch.int64)
        place = index + self.first
        window = self.windows[place]
        batch = {"index": index, "x": window[..., : self.lookback], "y": window[:, -self.outputs :, self.lookback :]}
        if self.marks is not None:
            batch["marks"] = self.marks[place]
        if self.known is not None:
            batch["known"] = self.known[place]
        if self.there is not None:
            there = self.there[place]
            batch["seen"], batch["truth"] = there[..., : self.lookback], there[:, -self.outputs :, self.lookback :]
        if self.past is not None:
            batch["past"] = self.past[place + self.lookback - self.history]
        return batch


def _unfold(table: Tensor, length: int) -> Tensor:
    if table.shape[0] < length:
        return table.new_empty(0, table.shape[1], length)
    return table.unfold(0, length, 1)


def whole_batch(items: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collation of a set that hands over whole batches: nothing is left to do."""
    return items
