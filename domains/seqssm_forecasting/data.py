"""The data module: reads a file, makes it regular, scales it by its train rows and cuts it into windows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from seqssm.errors import InputError, nearest
from seqssm.training.data import DataModule, whole_batch
from seqssm_forecasting import calendar, describe, statics, steps, zones
from seqssm_forecasting.files import read, suffix_of
from seqssm_forecasting.intervals import ENOUGH
from seqssm_forecasting.panel import split_future
from seqssm_forecasting.reading import Reading, names_of
from seqssm_forecasting.scaling import naive_error, scale, scaler, without_windows
from seqssm_forecasting.series import Series
from seqssm_forecasting.tidy import Policies, Tidy, filled, tidy
from seqssm_forecasting.windows import (
    FIXED,
    Windows,
    borders,
    borders_by_date,
    percentages,
    require_windows,
)

SOURCES = "give either --data.file FILE or --data.dataset NAME (seqssm data list)"


class ForecastingData(DataModule):
    """Several series over one time axis, cut into windows.

    Args:
        file: the user's own file (wide or long CSV, Excel or Parquet, Solar text, PEMS npz), or a data frame.
        dataset: name of a public data set instead (``seqssm data list``), found in `root` or the usual places.
        lookback: steps that the model sees.
        horizon: steps that it forecasts.
        features: ``M``: all series from all; ``S``: the target from itself alone; ``MS``: the target from all.
        split: percentages of the rows for train, validation and test (``70/10/20``), or the borders of a benchmark.
        val_from: date at which the validation split begins; with `test_from`, instead of `split`.
        test_from: date at which the test split begins.
        freq: pandas alias of the step between rows; by default it is found from the dates.
        calendar: ``observed``: time runs through the times of the week that have rows (trading hours).
        layout: ``wide``: the date, then one column per series; ``long``: one row per series and date; ``auto`` decides
            by the column names.
        id_column: name of the long layout's series names (unique_id, item_id, series_id, id).
        time_column: name of the dates (ds, timestamp, date, datetime, time); by default a wide file's first column.
        value_column: name of the long layout's values (y, target, value).
        columns: names of the columns of a wide file to use; all by default.
        text_columns: ``drop`` leaves out columns without numbers.
        skip_rows: number of leading lines to skip, or the numbers of the lines to skip (``[2]``: a row of units).
        comment: character that begins a comment (#).
        separator: between columns: comma, semicolon, tab, bar, space or a character; by default found from the rows.
        decimal: ``point`` or ``comma``; by default found from the numbers.
        encoding: of the text; UTF-8 by default, or what a byte-order mark says.
        date_format: of dates that are not year first, as strptime takes it (``%d.%m.%Y %H:%M``).
        timezone: of the dates (``Europe/Berlin``).
        unsorted: ``sort`` sorts rows by date.
        duplicates: of rows with the same date: ``equal`` keeps one of those that agree; ``first``, ``last``, ``mean``.
        gaps: ``fill`` inserts a row without values where a date is missing.
        missing: of cells without a value: ``mask`` leaves them out of normalisation, loss and errors; ``forward`` takes
            the value before; ``linear`` interpolates.
        ragged: of series with different spans: ``mask`` uses all dates, ``intersect`` the common ones.
        sentinels: numbers that stand for a missing value (-9999).
        irregular_dates: ``keep`` accepts duplicate and missing dates and counts them.
        future_missing: of future covariates without a value: ``forward`` takes the value before, ``zero`` takes 0.
        marks: calendar marks: by the frequency (auto), none, or those of a given frequency.
        target: name of the variate that is moved to the last position (the scan follows the order of variates); the one
            that is forecast with `features` S and MS, the last one by default.
        future_columns: names of the future covariates, whose future values are given (a plan, a holiday).
        static_file: CSV of static properties: the series' names, then one column per property.
        season: period of the seasonal naive baseline, steps; by default a day, week or year by the frequency.
        batch_size: windows per batch; in training the processes share a batch evenly.
        num_workers: loader processes; gathering is quick, 0 is best.
        seed: of shuffling; the run's seed by default.
        root: folder of the data set, instead of the usual places.
    """

    drop_last_train = True  # as published: the last partial batch of an epoch is left out
    collate = staticmethod(whole_batch)
    sources: ClassVar = (("file",), ("dataset",))
    split_options: ClassVar = ("split", "val_from", "test_from")
    fixed: ClassVar = ("lookback", "horizon", "features", "marks", "target", "future_columns")

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
        calendar: Literal["regular", "observed"] = "regular",
        layout: Literal["auto", "wide", "long"] = "auto",
        id_column: str | None = None,
        time_column: str | None = None,
        value_column: str | None = None,
        columns: str | list[str] | None = None,
        text_columns: Literal["error", "drop"] = "error",
        skip_rows: int | list[int] = 0,
        comment: str | None = None,
        separator: str | None = None,
        decimal: Literal["auto", "point", "comma"] = "auto",
        encoding: str | None = None,
        date_format: str | None = None,
        timezone: str | None = None,
        unsorted: Literal["error", "sort"] = "error",
        duplicates: Literal["error", "equal", "first", "last", "mean"] = "error",
        gaps: Literal["error", "fill"] = "error",
        missing: Literal["error", "mask", "forward", "linear"] = "error",
        ragged: Literal["error", "mask", "intersect"] = "mask",
        sentinels: float | list[float] | None = None,
        irregular_dates: Literal["error", "keep"] = "error",
        future_missing: Literal["error", "forward", "zero"] = "error",
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
        self.frame = file if isinstance(file, pd.DataFrame) else None
        if self.frame is not None:  # a checkpoint holds plain values only
            self.hparams["file"] = None
        for name, value in (("lookback", lookback), ("horizon", horizon), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"--data.{name} {value}: must be at least 1")
        if season is not None and season < 1:
            raise InputError(f"--data.season {season}: must be at least 1")
        if file is not None and dataset is not None:
            raise InputError(SOURCES)
        if (val_from is None) != (test_from is None):
            raise InputError("--data.val_from and --data.test_from go together")
        if split not in FIXED:
            percentages(split)
        if freq is not None:
            steps.parse(freq)
        self.file, self.dataset, self.lookback, self.horizon, self.split = file, dataset, lookback, horizon, split
        self.features, self.val_from, self.test_from = features, val_from, test_from
        self.freq, self.irregular_dates, self.marks, self.target = freq, irregular_dates, marks, target
        self.future_columns = list(names_of(future_columns))
        self.reading = Reading.of({**self.hparams, "future": self.future_columns})
        self.policies = Policies.of(self.hparams)
        self.static_file = static_file
        self.season, self.season_left_out = season, None
        self.series: Series | None = None
        self.left_out: dict[str, str] = {}
        self.fitted: Mapping[str, Any] | None = None
        self.external = False
        self._reference: ForecastingData | None = None

    # -- reading -----------------------------------------------------------------------------------------------------

    def find(self) -> Path:
        """The file: the user's own, or that of the public data set.

        Raises:
            InputError: it is missing, or no data set has this name.
        """
        if self.frame is not None:
            return Path("DataFrame")
        if self.file is not None:
            return Path(self.file)
        if self.dataset is None:
            raise InputError(SOURCES)
        from seqssm.files.datasets import locate
        from seqssm_forecasting import DOMAIN

        paths = {data_set.name: data_set.path for data_set in DOMAIN.data_sets}
        if self.dataset not in paths:
            raise InputError(f"--data.dataset {self.dataset}: no such data set{nearest(str(self.dataset), paths)}")
        return locate(DOMAIN.name, paths[self.dataset], self.root)

    def predict_words(self) -> list[str]:
        return [] if self.frame is not None else [str(self.find())]

    def setup(self, stage: str | None = None) -> None:
        """Read the file, fit the scaler on the train rows and make the three sets; once."""
        if self.series is not None:
            return
        path = self.find()
        pieces = read(path if self.frame is None else self.frame, self.reading)
        observed = self.reading.calendar == "observed"
        found = tidy(pieces, _policies(self.policies, path), self.freq, observed)
        series, plan = split_future(found.series)
        self._require_target(series)
        splits = self._splits(series)
        self._require_windows(series, splits)
        series = self._chosen(self._trainable(series, found, splits))
        found.series = series
        self._read_dates(found)
        train = slice(*splits["train"])
        measured, seen = found.measured_in(series), found.observed_in(series)
        self._scale(np.where(measured, series.values, np.nan)[train], plan, train, series)
        scaled = scale(series.values, self.mean, self.std)
        self._read_statics(series)
        whole = filled(scaled, series.path)
        self.naive_error = self._naive_error(whole[train], found.inside(series)[train])
        values = torch.from_numpy(whole.astype(np.float32))
        marks = torch.from_numpy(self.calendar_marks(series))
        mask = None if seen.all() else torch.from_numpy(seen.copy())
        history = self._history(splits)
        sets = {}
        for name, rows in splits.items():
            reach = history if name != "train" else 0
            sets[name] = Windows(
                values, marks, rows, self.lookback, self.horizon, reach, self.outputs, self.futr_exog, mask
            )
        self.train_set, self.val_set, self.test_set = sets["train"], sets["val"], sets["test"]
        # a file with fewer windows than a batch is trained on in one partial batch per epoch
        self.drop_last_train = len(self.train_set) >= self.batch_size  # type: ignore[misc]
        self.series, self.splits = series, splits
        if stage == "fit" or self.external:
            self._report(found)

    def _history(self, splits: dict[str, tuple[int, int]]) -> int:
        """Steps before each forecast that the baselines read; a season longer than the history has no baseline."""
        history = max(self.season or 0, self.lookback)
        first = splits["test"][0] if self.external else splits["val"][0]
        if first + self.lookback < history:
            self.season, history, self.season_left_out = None, self.lookback, self.season
        return history

    def _trainable(self, series: Series, found: Tidy, splits: dict[str, tuple[int, int]]) -> Series:
        """Without the series that cannot be trained on, which are reported and never take the others down."""
        self.left_out = dict.fromkeys(found.empty, "no value in the file")
        if self.fitted is not None:
            return self._as_trained(series)
        bare = without_windows(found.observed_in(series)[slice(*splits["train"])], self.lookback, self.horizon)
        if not bare.any():
            return series
        for name in np.array(series.columns)[bare]:
            self.left_out[str(name)] = "no window with values in the train split"
        kept = [name for name in series.columns if name not in self.left_out]
        if not kept:
            words = "no series has a window with values in the train split; a lower --data.lookback needs fewer values"
            raise InputError(words, file=series.path)
        if self.target in self.left_out:
            raise InputError(f"the target {self.target} has no window with values in the train split", file=series.path)
        return series.only(kept)

    def _as_trained(self, series: Series) -> Series:
        """The variates that the checkpoint was trained on, in its order; others are left out."""
        assert self.fitted is not None
        names = list(self.fitted["columns"])
        for name in series.columns:
            if name not in names:
                self.left_out[name] = "not known to the model"
        return series.only([name for name in series.columns if name in names]).reordered(names)

    def _require_target(self, series: Series) -> None:
        if self.target is not None and self.target not in series.columns:
            words = f"has no column {self.target} (--data.target){nearest(self.target, series.columns)}"
            raise InputError(words, file=series.path, place=f"{series.row} 1")

    def _chosen(self, series: Series) -> Series:
        """The variates of the mode, the target last."""
        names = list(series.columns)
        if self.target is not None and self.target not in names:
            raise InputError(f"has no column {self.target} (--data.target){nearest(self.target, names)}",
                             file=series.path, place=f"{series.row} 1")  # fmt: skip
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
        self.step, self.evidence = found.step, found.evidence
        self.freq = self.freq if found.step is None else found.step.name
        if found.step is None or series.numbered:
            if self.marks not in ("auto", "none"):
                raise InputError(f"has no dates, so --data.marks {self.marks} cannot be made", file=series.path)
            return
        self.kind = calendar.mark_kind(found.step) if self.marks == "auto" else self.marks
        if self.season is None:
            self.season = calendar.season(found.step)
        if self.fitted is not None:
            self.kind = self.fitted["marks"]
            kept = self.fitted["freq"]
            if kept is not None and steps.parse(kept) != found.step:
                words = f"its step is {found.step.words()}; the model was trained on {steps.parse(kept).words()}"
                raise InputError(words, file=series.path)

    def calendar_marks(self, series: Series) -> np.ndarray:
        """(rows, M) marks of a series, by what `setup` found."""
        if series.dates is None or self.kind == "none":
            return np.empty((len(series), 0), dtype=np.float32)
        return calendar.marks(zones.local(series.dates, series.zone, series.utc), self.kind)

    def _splits(self, series: Series) -> dict[str, tuple[int, int]]:
        if self.external:
            return {"train": (0, 0), "val": (0, 0), "test": (0, len(series))}
        if self.val_from is not None and self.test_from is not None:
            return borders_by_date(series, self.lookback, self.val_from, self.test_from)
        return borders(len(series), self.lookback, self.split)

    def _require_windows(self, series: Series, splits: dict[str, tuple[int, int]]) -> None:
        dates = (
            None if self.val_from is None else f"--data.val_from {self.val_from} and --data.test_from {self.test_from}"
        )
        sizes = self.lookback, self.horizon
        if self.external:
            require_windows(series.path, len(series), {"test": splits["test"]}, *sizes)
        else:
            require_windows(series.path, len(series), splits, *sizes, dates, self.split)

    # -- fitted values -----------------------------------------------------------------------------------------------

    def _scale(self, train: np.ndarray, plan: Series | None, rows: slice, series: Series) -> None:
        """Mean and standard deviation of the variates and of the future covariates, which are scaled here."""
        self.futr_exog: Tensor | None = None
        self.future_names = [] if plan is None else list(plan.columns)
        kept = None if self.fitted is None else self.fitted
        if kept is None:
            self.mean, self.std, self.constant = scaler(train, series)
        else:
            self.mean, self.std, self.constant = kept["mean"], kept["std"], []
        if plan is None:
            return
        if kept is None:
            self.future_mean, self.future_std, flat = scaler(plan.values[rows], plan)
            self.constant = self.constant + flat
        else:
            plan = plan.reordered(list(kept["known"]["columns"]))
            self.future_names = list(plan.columns)
            self.future_mean, self.future_std = kept["known"]["mean"], kept["known"]["std"]
        self.futr_exog = torch.from_numpy(scale(plan.values, self.future_mean, self.future_std).astype(np.float32))

    def _naive_error(self, train: np.ndarray, inside: np.ndarray) -> Tensor:
        if self.fitted is None:
            own = np.where(inside, train, np.nan)  # outside of its span a series has no errors
            return naive_error(own[:, -self.outputs :], self.season)
        kept = self.fitted.get("naive_error")
        return torch.full((self.outputs,), torch.nan, dtype=torch.float64) if kept is None else kept

    def _read_statics(self, series: Series) -> None:
        self.static: Tensor | None = None
        self.static_rules: list[dict[str, Any]] = []
        if self.static_file is None:
            return
        frame = statics.read(self.static_file, series.columns)
        kept = None if self.fitted is None else self.fitted.get("static")
        self.static_rules = kept["rules"] if kept else statics.learn(frame)
        self.static = statics.features(frame, self.static_rules, self.static_file)

    def static_width(self) -> int:
        """Number of static features per series."""
        return 0 if self.static is None else self.static.shape[1]

    def use_frame(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def use_summary(self, summary: Mapping[str, Any], external: bool) -> None:
        self.fitted, self.external = summary if external else None, external

    def reference(self) -> ForecastingData | None:
        """The data that the model was trained on: this, or in an external test the run's own, where it can be read."""
        if self.trained_with is None:
            return self
        if self._reference is None:
            try:
                own = ForecastingData(**self.trained_with)
                own.setup()
            except InputError as error:
                print(f"DLinear is left out, because the run's own data cannot be read: {error}")
                return None
            self._reference = own
        return self._reference

    def identities(self, split: str) -> list[dict[str, str]]:
        """One row per date; dates with equal values in all series are the same record."""
        assert self.series is not None
        first, end = self.splits[split]
        first += self.lookback if split != "train" and not self.external else 0  # the look-back is the split before
        return self.series.identities(first, end)

    # -- report and summary ------------------------------------------------------------------------------------------

    @rank_zero_only
    def _report(self, found: Tidy) -> None:
        """Print what was read and what was done to it."""
        for line in describe.lines(self, found):
            print(line)

    def pooled(self) -> list[str]:
        """Series with too few validation windows for prediction intervals of their own."""
        counts = self.val_set.targets()
        return [name for name, count in zip(self.outputs_names, counts) if count < ENOUGH]

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
            "numbered": self.series.numbered,
            "outputs": self.outputs,
            "season": self.season,
            "naive_error": self.naive_error.clone(),
            "left_out": dict(self.left_out),
            "reading": self.reading.to_dict(),
            "policies": self.policies.to_dict(),
        }
        if self.futr_exog is not None:
            kept["known"] = {
                "columns": list(self.future_names),
                "mean": self.future_mean.clone(),
                "std": self.future_std.clone(),
            }
        if self.static is not None:
            kept["static"] = {"rules": self.static_rules, "features": self.static.clone()}
        return kept


def _policies(policies: Policies, path: Path) -> Policies:
    """Those of a PEMS archive fill its gaps, as the benchmark does, where nothing else is asked for."""
    if suffix_of(path) == ".npz" and policies.missing == "error":
        return Policies.of({**policies.to_dict(), "missing": "forward"})
    return policies
