"""Windows over a multivariate series: the benchmarks' borders, train scaler, calendar marks, batches gathered whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import Dataset

from seqssm.data import DataModule
from seqssm.errors import InputError
from seqssm_forecasting import calendar
from seqssm_forecasting.files import Series, read, suffix_of

Split = Literal["ett_hour", "ett_minute", "70/10/20", "60/20/20"]


def borders(rows: int, lookback: int, split: Split) -> dict[str, tuple[int, int]]:
    """First row and end row of each part, as the public benchmarks draw them.

    The validation and test parts start `lookback` rows early, so that their first forecast follows the part before
    at once; those of ``60/20/20`` (PEMS) do not overlap. ``ett_*`` are 12, 4 and 4 months of 30 days; later rows stay
    unused. ``70/10/20`` rounds the first and the last share down.
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
        train, test = int(rows * 0.7), rows
        val = rows - int(rows * 0.2)
    return {"train": (0, train), "val": (train - lookback, val), "test": (val - lookback, test)}


class Windows(Dataset):
    """All windows of a part at stride 1; window k looks back from row ``first + k + lookback``.

    A batch is gathered in one step (`__getitems__`): ``index (B,)``, ``x (B, N, L)``, ``y (B, N, T)`` and, where there
    are calendar marks, ``marks (B, M, L)``; variates come before time, because they are the tokens. With
    ``history`` > ``lookback`` there is ``past (B, N, history)`` too, which a seasonal forecast reads.

    Args:
        values: (rows, N), float32, scaled; the whole series.
        marks: (rows, M), float32; M may be 0.
        rows: first and end row of the part.
        lookback, horizon: L and T, steps.
        history: steps before the forecast that ``past`` holds; 0 leaves it out.
    """

    def __init__(
        self, values: Tensor, marks: Tensor, rows: tuple[int, int], lookback: int, horizon: int, history: int = 0
    ) -> None:
        self.first, self.end = rows
        self.lookback, self.horizon, self.history = lookback, horizon, history
        self.count = max(0, self.end - self.first - lookback - horizon + 1)
        # windows are views: (places, variates, steps); the copy is made when a batch indexes them
        self.windows = _unfold(values, lookback + horizon)
        self.marks = _unfold(marks, lookback) if marks.shape[1] else None
        self.past = _unfold(values, history) if history > lookback else None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        index = torch.tensor(indices, dtype=torch.int64)
        place = index + self.first
        window = self.windows[place]
        batch = {"index": index, "x": window[..., : self.lookback], "y": window[..., self.lookback :]}
        if self.marks is not None:
            batch["marks"] = self.marks[place]
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


class ForecastingData(DataModule):
    """One multivariate series, cut into windows.

    Args:
        file: the user's own file: wide CSV (date first), Solar text or PEMS npz.
        dataset: a public data set by name instead (``seqssm data list``), found in `root` or the usual places.
        lookback: steps that the model sees.
        horizon: steps that it forecasts.
        split: how rows are parted into train, validation and test.
        freq: pandas alias of the step between rows; by default it is read off the dates, which must be regular.
        irregular_dates: ``"keep"`` takes repeated and missing dates as they are and says how many.
        marks: calendar marks: by the frequency (auto), none, or those of a given frequency.
        target: name of the variate that is moved to the last place (the scan follows the order of variates).
        season: period of the seasonal naive baseline, steps; by default a day, week or year by the frequency.
        batch_size: windows a batch and process.
        num_workers: loader processes; gathering is quick, 0 is best.
        seed: of shuffling; the run's seed when not given.
        root: folder that holds the data set, instead of the usual places.
    """

    drop_last_train = True  # as published: the last partial batch of an epoch is left out
    collate = staticmethod(whole_batch)

    def __init__(
        self,
        file: str | None = None,
        dataset: str | None = None,
        lookback: int = 96,
        horizon: int = 96,
        split: Split = "70/10/20",
        freq: str | None = None,
        irregular_dates: Literal["error", "keep"] = "error",
        marks: calendar.MarkKind = "auto",
        target: str | None = None,
        season: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
        root: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, root=root)
        for name, value in (("lookback", lookback), ("horizon", horizon), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"--data.{name} {value}: must be at least 1")
        if season is not None and season < 1:
            raise InputError(f"--data.season {season}: must be at least 1")
        if (file is None) == (dataset is None):
            raise InputError("give either --data.file FILE or --data.dataset NAME (seqssm data list)")
        self.file, self.dataset, self.lookback, self.horizon, self.split = file, dataset, lookback, horizon, split
        self.freq, self.irregular_dates, self.marks, self.target = freq, irregular_dates, marks, target
        self.season, self.season_left_out = season, None
        self.series: Series | None = None

    # -- reading -----------------------------------------------------------------------------------------------------

    def find(self) -> Path:
        """The file: the user's own, or that of the public data set.

        Raises:
            InputError: it is not there, or no data set has this name.
        """
        if self.file is not None:
            return Path(self.file)
        from seqssm.datasets import locate
        from seqssm_forecasting import DOMAIN

        paths = {data_set.name: data_set.path for data_set in DOMAIN.data_sets}
        if self.dataset not in paths:
            from seqssm.cli.options import nearest

            raise InputError(f"--data.dataset {self.dataset}: no such data set{nearest(str(self.dataset), paths)}")
        return locate(DOMAIN.name, paths[self.dataset], self.root)

    def setup(self, stage: str | None = None) -> None:
        """Reads the file, fits the scaler on the train rows and makes the three sets; once."""
        if self.series is not None:
            return
        series = read(self.find())
        if self.target is not None:
            series = self._target_last(series)
        self._read_dates(series)
        parts = borders(len(series), self.lookback, self.split)
        self._require_windows(series, parts)
        train = series.values[slice(*parts["train"])]
        self.mean = torch.from_numpy(np.nanmean(train, axis=0))
        deviation = np.nanstd(train, axis=0)
        self.constant = [name for name, value in zip(series.columns, deviation) if value == 0]
        self.std = torch.from_numpy(np.where(deviation == 0, 1.0, deviation))
        scaled = scale(series.values, self.mean, self.std)
        self.filled = 0
        if suffix_of(series.path) == ".npz":
            scaled, self.filled = fill(scaled, series.path)
        values = torch.from_numpy(scaled.astype(np.float32))
        marks = torch.from_numpy(self.calendar_marks(series))
        history = max(self.season or 0, self.lookback)
        if parts["val"][0] + self.lookback < history:  # too little before the first forecast of a short file
            self.season, history, self.season_left_out = None, self.lookback, self.season
        sets = {}
        for name, rows in parts.items():
            reach = history if name != "train" else 0
            sets[name] = Windows(values, marks, rows, self.lookback, self.horizon, reach)
        self.train_set, self.val_set, self.test_set = sets["train"], sets["val"], sets["test"]
        self.series = series
        if stage == "fit":
            self._say()

    def _target_last(self, series: Series) -> Series:
        if self.target not in series.columns:
            raise InputError(f"has no column {self.target} (--data.target)", file=series.path, place="line 1")
        return series.reordered([name for name in series.columns if name != self.target] + [str(self.target)])

    def _read_dates(self, series: Series) -> None:
        self.kind = "none"
        if series.dates is None:
            if self.marks not in ("auto", "none"):
                raise InputError(f"has no dates, so --data.marks {self.marks} cannot be made", file=series.path)
            return
        self.freq = calendar.frequency(series, self.freq, self.irregular_dates)
        self.kind = calendar.mark_kind(self.freq) if self.marks == "auto" else self.marks
        if self.season is None:
            self.season = calendar.season(self.freq)

    def calendar_marks(self, series: Series) -> np.ndarray:
        """(rows, M) marks of a series, by what `setup` found."""
        if series.dates is None:
            return np.empty((len(series), 0), dtype=np.float32)
        return calendar.marks(series.dates, self.kind)

    def _require_windows(self, series: Series, parts: dict[str, tuple[int, int]]) -> None:
        need = self.lookback + self.horizon
        short = {name: end - first for name, (first, end) in parts.items() if first < 0 or end - first < need}
        if not short:
            return
        least = next(
            (
                rows
                for rows in range(need, 200_000 + 20 * need)
                if all(a >= 0 and b - a >= need for a, b in borders(rows, self.lookback, self.split).values())
            ),
            None,
        )
        raise InputError(
            f"{len(series)} rows are too few: with --data.lookback {self.lookback}, --data.horizon {self.horizon} and "
            f"--data.split {self.split} the {' and '.join(short)} part holds no window; {least} rows are the least",
            file=series.path,
        )

    @rank_zero_only
    def _say(self) -> None:
        """What was read and what was done to it, in two or three lines."""
        series = self.series
        assert series is not None
        every = f", every {calendar.describe(self.freq)}" if self.freq else ", without dates"
        print(f"{series.path}: {len(series)} rows, {len(series.columns)} variates{every}")
        parts = (("train", self.train_set), ("validation", self.val_set), ("test", self.test_set))
        print(f"windows of {self.lookback} + {self.horizon}: " + ", ".join(f"{len(s)} {name}" for name, s in parts))
        if series.dates is not None and self.irregular_dates == "keep" and self.freq:
            repeated, gaps = calendar.irregularities(series, self.freq)
            print(f"dates kept as they are: {repeated} repeated, {gaps} gaps")
        if self.filled:
            print(f"{self.filled} missing cells filled with the value before (else after) them")
        if self.season_left_out:
            print(f"no seasonal baseline: less history than its period of {self.season_left_out} steps")
        if self.constant:
            print(f"constant in the train part, scaled by 1: {', '.join(self.constant)}")

    # -- for prediction and for the test -------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Everything that a prediction from a new file needs."""
        assert self.series is not None
        return {
            "columns": list(self.series.columns),
            "mean": self.mean.clone(),
            "std": self.std.clone(),
            "lookback": self.lookback,
            "horizon": self.horizon,
            "freq": self.freq,
            "marks": self.kind,
            "irregular_dates": self.irregular_dates,
            "dated": self.series.dates is not None,
        }


def scale(values: np.ndarray, mean: Tensor, std: Tensor) -> np.ndarray:
    """(values - mean) / std by variate, float64; `std` is the population deviation of the train rows."""
    return (values - mean.numpy()) / std.numpy()


def fill(values: np.ndarray, path: Path) -> tuple[np.ndarray, int]:
    """Gaps filled with the value before them, those at the start with the first one after; and how many there were.

    Raises:
        InputError: a variate has no value at all.
    """
    gaps = np.isnan(values)
    if not gaps.any():
        return values, 0
    if gaps.all(0).any():
        raise InputError(f"column_{int(gaps.all(0).argmax()) + 1} holds no value at all", file=path)
    rows = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(gaps, -1, rows), axis=0)
    after = np.minimum.accumulate(np.where(gaps, len(values), rows)[::-1], axis=0)[::-1]
    source = np.where(before >= 0, before, after)
    return np.take_along_axis(values, source, axis=0), int(gaps.sum())
