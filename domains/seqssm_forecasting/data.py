"""The data module: a file read, brought into order, scaled by its train rows and cut into windows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from seqssm.errors import InputError
from seqssm.training.data import DataModule
from seqssm_forecasting import calendar, statics, zones
from seqssm_forecasting.files import Series, read, suffix_of
from seqssm_forecasting.text import Reading, listed
from seqssm_forecasting.tidy import Policies, Tidy, filled, tidy
from seqssm_forecasting.windows import FIXED, Windows, borders, borders_by_date, shares, whole_batch


class ForecastingData(DataModule):
    """One multivariate series, cut into windows.

    Args:
        file: the user's own file: wide or long CSV or Parquet, Solar text or PEMS npz.
        dataset: a public data set by name instead (``seqssm data list``), found in `root` or the usual places.
        lookback: steps that the model sees.
        horizon: steps that it forecasts.
        features: ``M``: all series from all; ``S``: the target from itself alone; ``MS``: the target from all.
        split: percentages of the rows for train, validation and test (``70/10/20``), or the borders of a benchmark.
        val_from: date at which the validation part begins; with `test_from`, instead of `split`.
        test_from: date at which the test part begins.
        freq: pandas alias of the step between rows; by default it is read off the dates.
        layout: ``wide``: the date, then one column a series; ``long``: one row a series and date; ``auto``: by names.
        id_column: name of the long layout's series names (unique_id, item_id, series_id, id).
        time_column: name of the dates (ds, timestamp, date, datetime, time); of a wide file: not the first column.
        value_column: name of the long layout's values (y, target, value).
        separator: between columns: comma, semicolon, tab, bar or a sign; by default seen from the first line.
        decimal: ``point`` or ``comma``; by default seen from the numbers.
        encoding: of the text; UTF-8 by default, or what a byte-order mark says.
        date_format: of dates that are not year first, as strptime takes it (``%d.%m.%Y %H:%M``).
        timezone: of the dates (``Europe/Berlin``).
        unsorted: ``sort`` brings rows into the order of their dates.
        duplicates: of rows with the same date: ``equal`` keeps one of those that agree; ``first``, ``last``, ``mean``.
        gaps: ``fill`` puts in a row without values where a date is missing.
        missing: of cells without value: ``mask`` leaves them out of normalisation, loss and errors; ``forward`` takes
            the value before; ``linear`` draws a line.
        ragged: of series with different spans: ``mask`` takes all dates, ``intersect`` the common ones.
        sentinels: numbers that stand for a missing value (-9999).
        irregular_dates: ``"keep"`` takes repeated and missing dates as they are and says how many.
        marks: calendar marks: by the frequency (auto), none, or those of a given frequency.
        target: name of the variate that is moved to the last place (the scan follows the order of variates); the one
            that is forecast with `features` S and MS, the last one by default.
        future_columns: columns whose values are known beforehand (a plan, a holiday), also for the future.
        static_file: CSV of properties that do not change: the series' names, then one column a property.
        season: period of the seasonal naive baseline, steps; by default a day, week or year by the frequency.
        batch_size: windows per batch; in training the processes share a batch evenly.
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
        features: Literal["M", "S", "MS"] = "M",
        split: str = "70/10/20",
        val_from: str | None = None,
        test_from: str | None = None,
        freq: str | None = None,
        layout: Literal["auto", "wide", "long"] = "auto",
        id_column: str | None = None,
        time_column: str | None = None,
        value_column: str | None = None,
        separator: str | None = None,
        decimal: Literal["auto", "point", "comma"] = "auto",
        encoding: str | None = None,
        date_format: str | None = None,
        timezone: str | None = None,
        unsorted: Literal["error", "sort"] = "error",
        duplicates: Literal["error", "equal", "first", "last", "mean"] = "error",
        gaps: Literal["error", "fill"] = "error",
        missing: Literal["error", "mask", "forward", "linear"] = "error",
        ragged: Literal["error", "mask", "intersect"] = "error",
        sentinels: float | list[float] | None = None,
        irregular_dates: Literal["error", "keep"] = "error",
        marks: calendar.MarkKind = "auto",
        target: str | None = None,
        future_columns: str | list[str] | None = None,
        static_file: str | None = None,
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
        if (val_from is None) != (test_from is None):
            raise InputError("--data.val_from and --data.test_from go together")
        if split not in FIXED:
            shares(split)
        self.file, self.dataset, self.lookback, self.horizon, self.split = file, dataset, lookback, horizon, split
        self.features, self.val_from, self.test_from = features, val_from, test_from
        self.freq, self.irregular_dates, self.marks, self.target = freq, irregular_dates, marks, target
        self.future_columns = [future_columns] if isinstance(future_columns, str) else list(future_columns or [])
        self.reading = Reading(
            layout,
            id_column,
            time_column,
            value_column,
            separator,
            decimal,
            encoding,
            date_format,
            timezone,
            tuple(self.future_columns),
        )
        numbers = [sentinels] if isinstance(sentinels, int | float) else list(sentinels or [])
        self.policies = Policies(
            unsorted, duplicates, gaps, missing, ragged, irregular_dates, tuple(float(number) for number in numbers)
        )
        self.static_file = static_file
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
        from seqssm.files.datasets import locate
        from seqssm_forecasting import DOMAIN

        paths = {data_set.name: data_set.path for data_set in DOMAIN.data_sets}
        if self.dataset not in paths:
            from seqssm.errors import nearest

            raise InputError(f"--data.dataset {self.dataset}: no such data set{nearest(str(self.dataset), paths)}")
        return locate(DOMAIN.name, paths[self.dataset], self.root)

    def setup(self, stage: str | None = None) -> None:
        """Reads the file, fits the scaler on the train rows and makes the three sets; once."""
        if self.series is not None:
            return
        found = tidy(read(self.find(), self.reading), _policies(self.policies, self.find()), self.freq)
        series, plan = parted(found.series)
        series = self._chosen(series)
        found.series = series
        self._read_dates(found)
        parts = self._parts(series)
        self._require_windows(series, parts)
        train = slice(*parts["train"])
        there = found.was_there(series)
        self.mean, self.std, self.constant = scaler(np.where(there, series.values, np.nan)[train], series)
        scaled = filled(scale(series.values, self.mean, self.std), series.path)
        masked = self.policies.missing == "mask" and not there.all()
        values = torch.from_numpy(scaled.astype(np.float32))
        marks = torch.from_numpy(self.calendar_marks(series))
        self.known: Tensor | None = None
        if plan is not None:
            self.known_mean, self.known_std, flat = scaler(plan.values[train], plan)
            self.constant = self.constant + flat
            self.known = torch.from_numpy(scale(plan.values, self.known_mean, self.known_std).astype(np.float32))
        self.future_names = [] if plan is None else list(plan.columns)
        self._read_statics(series)
        self.naive_error = self._naive_error(scaled[train][:, -self.outputs :])
        history = max(self.season or 0, self.lookback)
        if parts["val"][0] + self.lookback < history:  # too little before the first forecast of a short file
            self.season, history, self.season_left_out = None, self.lookback, self.season
        sets = {}
        for name, rows in parts.items():
            reach = history if name != "train" else 0
            mask = torch.from_numpy(there) if masked else None
            sets[name] = Windows(
                values, marks, rows, self.lookback, self.horizon, reach, self.outputs, self.known, mask
            )
        self.train_set, self.val_set, self.test_set = sets["train"], sets["val"], sets["test"]
        self.series = series
        if stage == "fit":
            self._say(found)

    def _chosen(self, series: Series) -> Series:
        """The variates of the mode, the target last."""
        names = list(series.columns)
        if self.target is not None and self.target not in names:
            raise InputError(f"has no column {self.target} (--data.target)", file=series.path, place="line 1")
        target = self.target or names[-1]
        if self.target is not None or self.features != "M":
            names = [name for name in names if name != target] + [target]
        if self.features == "S":
            names = [target]
        self.outputs = len(names) if self.features == "M" else 1
        return series if names == series.columns else series.only(names)

    @property
    def outputs_names(self) -> list[str]:
        """The variates that are forecast."""
        assert self.series is not None
        return self.series.columns[-self.outputs :]

    def _read_dates(self, found: Tidy) -> None:
        self.kind, series = "none", found.series
        self.evidence = found.evidence
        if series.dates is None:
            if self.marks not in ("auto", "none"):
                raise InputError(f"has no dates, so --data.marks {self.marks} cannot be made", file=series.path)
            return
        assert found.freq is not None
        self.freq = found.freq
        self.kind = calendar.mark_kind(self.freq) if self.marks == "auto" else self.marks
        if self.season is None:
            self.season = calendar.season(self.freq)

    def calendar_marks(self, series: Series) -> np.ndarray:
        """(rows, M) marks of a series, by what `setup` found."""
        if series.dates is None:
            return np.empty((len(series), 0), dtype=np.float32)
        return calendar.marks(zones.local(series.dates, series.zone, series.utc), self.kind)

    def _parts(self, series: Series) -> dict[str, tuple[int, int]]:
        if self.val_from is not None and self.test_from is not None:
            return borders_by_date(series, self.lookback, self.val_from, self.test_from)
        return borders(len(series), self.lookback, self.split)

    def _require_windows(self, series: Series, parts: dict[str, tuple[int, int]]) -> None:
        need = self.lookback + self.horizon
        short = {name: end - first for name, (first, end) in parts.items() if first < 0 or end - first < need}
        if not short:
            return
        setting = f"--data.lookback {self.lookback}, --data.horizon {self.horizon}"
        which = " and ".join(short)
        if self.val_from is not None:
            raise InputError(
                f"with {setting}, --data.val_from {self.val_from} and --data.test_from {self.test_from} the {which} "
                "part holds no window",
                file=series.path,
            )
        least = next(
            (
                rows
                for rows in range(need, 200_000 + 20 * need)
                if all(a >= 0 and b - a >= need for a, b in borders(rows, self.lookback, self.split).values())
            ),
            None,
        )
        raise InputError(
            f"{len(series)} rows are too few: with {setting} and --data.split {self.split} the {which} part holds no "
            f"window; {least} rows are the least",
            file=series.path,
        )

    def _read_statics(self, series: Series) -> None:
        self.static: Tensor | None = None
        self.static_rules: list[dict[str, Any]] = []
        if self.static_file is not None:
            frame = statics.read(self.static_file, series.columns)
            self.static_rules = statics.learn(frame)
            self.static = statics.features(frame, self.static_rules, self.static_file)

    def _naive_error(self, train: np.ndarray) -> Tensor:
        """(outputs,) mean absolute error of the seasonal naive forecast on the train rows, scaled; for MASE."""
        lag = self.season if self.season is not None and self.season < len(train) else 1
        error = np.abs(train[lag:] - train[:-lag]).mean(0)
        return torch.from_numpy(np.where(error > 0, error, np.nan))

    @rank_zero_only
    def _say(self, found: Tidy) -> None:
        """What was read and what was done to it, in a few lines."""
        series = self.series
        assert series is not None
        every = (
            f", every {calendar.describe(self.freq)} ({self.evidence})"
            if self.freq and series.dates is not None
            else ""
        )
        every = every or ", without dates"
        zone = f", dates of {series.zone}" if series.zone else ""
        print(f"{series.path}: {len(series)} rows, {len(series.columns)} variates{every}{zone}")
        for note in found.notes:
            print(note)
        parts = (("train", self.train_set), ("validation", self.val_set), ("test", self.test_set))
        print(f"windows of {self.lookback} + {self.horizon}: " + ", ".join(f"{len(s)} {name}" for name, s in parts))
        if self.features != "M":
            inputs = f" from {len(series.columns)} series" if self.features == "MS" else ""
            print(f"forecast: {series.columns[-1]} alone{inputs} (--data.features {self.features})")
        if self.future_names:
            print(f"known beforehand: {listed(self.future_names)}")
        if self.static is not None:
            print(f"static features: {listed(statics.names(self.static_rules))}")
        if self.season_left_out:
            print(f"no seasonal baseline: less history than its period of {self.season_left_out} steps")
        if self.constant:
            print(f"constant in the train part, scaled by 1: {', '.join(self.constant)}")

    # -- for prediction and for the test -------------------------------------------------------------------------------

    def static_width(self) -> int:
        """Number of static features a series; reads the file where `setup` has not."""
        return 0 if self.static is None else self.static.shape[1]

    def summary(self) -> dict[str, Any]:
        """Everything that a prediction from a new file needs."""
        assert self.series is not None
        kept: dict[str, Any] = {
            "columns": list(self.series.columns),
            "mean": self.mean.clone(),
            "std": self.std.clone(),
            "lookback": self.lookback,
            "horizon": self.horizon,
            "freq": self.freq,
            "marks": self.kind,
            "irregular_dates": self.irregular_dates,
            "dated": self.series.dates is not None,
            "outputs": self.outputs,
            "season": self.season,
            "reading": {**asdict(self.reading), "future": list(self.reading.future)},
            "policies": self.policies.plain(),
        }
        if self.known is not None:
            kept["known"] = {
                "columns": list(self.future_names),
                "mean": self.known_mean.clone(),
                "std": self.known_std.clone(),
            }
        if self.static is not None:
            kept["static"] = {"rules": self.static_rules, "features": self.static.clone()}
        return kept


def _policies(policies: Policies, path: Path) -> Policies:
    """Those of a PEMS archive fill its gaps, as the benchmark does, where nothing else is asked for."""
    if suffix_of(path) == ".npz" and policies.missing == "error":
        return Policies.of({**policies.plain(), "missing": "forward"})
    return policies


def parted(series: Series) -> tuple[Series, Series | None]:
    """(the variates, the columns that are known beforehand or None)."""
    if not series.future:
        return series, None
    own = [name for name in series.columns if name not in series.future]
    if not own:
        raise InputError("has no column beside those that are known beforehand", file=series.path)
    return series.only(own), series.only(series.future)


def scaler(train: np.ndarray, series: Series) -> tuple[Tensor, Tensor, list[str]]:
    """Mean and population deviation of the train rows by variate, float64, and which variates are constant.

    Args:
        train: (rows, N); NaN where a value is missing.
        series: for names.

    Raises:
        InputError: a variate has no value in the train rows.
    """
    empty = [name for name, none in zip(series.columns, np.isnan(train).all(0)) if none]
    if empty:
        raise InputError(f"the column {listed(empty)} holds no value in the train part", file=series.path)
    deviation = np.nanstd(train, axis=0)
    # a deviation of rounding errors alone is that of a constant
    flat = deviation <= 1e-12 * np.maximum(1.0, np.abs(np.nanmean(train, axis=0)))
    constant = [name for name, value in zip(series.columns, flat) if value]
    return (
        torch.from_numpy(np.nanmean(train, axis=0)),
        torch.from_numpy(np.where(flat, 1.0, deviation)),
        constant,
    )


def scale(values: np.ndarray, mean: Tensor, std: Tensor) -> np.ndarray:
    """(values - mean) / std by variate, float64; `std` is the population deviation of the train rows."""
    return (values - mean.numpy()) / std.numpy()
