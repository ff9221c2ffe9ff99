"""The data module: reads a file, regularises it, scales it by its training rows and cuts it into windows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from seqssm.errors import InputError, nearest, no_column
from seqssm.files.fingerprint import of_parts
from seqssm.files.notes import note
from seqssm.training.data import IN_MEMORY, DataModule, whole_batch
from seqssm_forecasting import LINES, SENTINELS, STEPS, calendar, describe, holidays, statics, steps, zones
from seqssm_forecasting.covariates import historical
from seqssm_forecasting.files import read_for_model, suffix_of
from seqssm_forecasting.intervals import ENOUGH
from seqssm_forecasting.limits import Kind, Limits
from seqssm_forecasting.panel import split_future
from seqssm_forecasting.reading import Reading, names_of
from seqssm_forecasting.scaling import naive_error, scale, scaler, without_windows
from seqssm_forecasting.series import Series
from seqssm_forecasting.splits import SplitRule
from seqssm_forecasting.tidy import Policies, Tidy, filled, tidy
from seqssm_forecasting.windows import Windows, require_windows

SOURCES = "give either --data.file FILE or --data.dataset NAME (seqssm data list)"


class ForecastingData(DataModule):
    """Windows over one or more series with a common time axis.

    Args:
        file: the user's own file (wide or long CSV, Excel or Parquet, Solar text, PEMS npz), or a data frame.
        dataset: name of a public data set (``seqssm data list``), as an alternative to `file`.
        lookback: number of input steps.
        horizon: number of steps to forecast.
        features: ``M``: all series from all series; ``S``: the target from itself; ``MS``: the target from all series.
        split: percentages of the rows for train, validation and test (``70/10/20``), or ``ett_hour``, ``ett_minute``.
        val_from: first date of the validation split; with `test_from`, replaces `split`.
        test_from: first date of the test split.
        windows: number of windows of rolling-origin cross-validation, the last of which ends with the rows; replaces
            the test split.
        window: index of the window to test, from 0; the model is trained on the rows before it.
        window_step: steps between the windows; by default the horizon.
        freq: pandas alias of the step between rows; by default inferred from the dates.
        calendar: ``observed``: time runs through the times of the week that have rows (trading hours).
        layout: ``wide``: the date, then one column per series; ``long``: one row per series and date; ``auto`` decides
            by the column names.
        id_column: column of series names in the long layout (default unique_id, item_id, series_id or id).
        time_column: column of dates (default ds, timestamp, date, datetime or time; first column of a wide file).
        value_column: column of values in the long layout (default y, target or value).
        columns: names of the columns of a wide file to use; all by default.
        text_columns: columns without numbers, or of splits: ``drop`` ignores them; by default they are an error.
        skip_rows: number of leading lines to skip, or a list of line numbers (``[2]``: a row of units).
        comment: character that starts a comment (#).
        separator: column separator: comma, semicolon, tab, bar, space or a character; by default detected.
        decimal: decimal mark: ``point`` or ``comma``; by default detected.
        encoding: text encoding; by default that of a byte-order mark, UTF-8, or else Windows-1252.
        date_format: strptime format of dates that are not year first (``%d.%m.%Y``); ``excel``: spreadsheet serials.
        timezone: time zone of the dates (``Europe/Berlin``).
        unsorted: rows out of order: ``sort`` sorts them by date; by default they are an error.
        duplicates: rows with the same date: ``equal`` keeps one if they agree; ``first``, ``last`` or ``mean``.
        gaps: missing dates: ``fill`` inserts rows without values; by default they are an error.
        missing: missing values: ``mask`` excludes them from normalisation, loss and errors; ``forward`` repeats the
            previous value; ``linear`` interpolates.
        ragged: series with different spans: ``mask`` uses all dates, ``intersect`` the common ones.
        sentinels: numbers that encode missing values (-9999).
        irregular_dates: ``keep`` accepts duplicate and missing dates and reports how many there are.
        future_missing: missing future covariates: ``forward`` repeats the previous value, ``zero`` inserts 0.
        marks: kind of calendar marks: by the frequency (auto), none, or those of a given frequency.
        target: variate to forecast if `features` is S or MS; by default the last one. It is moved to the last position,
            which matters because the scan follows the order of variates.
        hist_columns: names of series that are read but not forecast (historical covariates).
        values: kind of the forecasts: ``real``; ``nonnegative``; ``integer`` for counts; ``log1p``: non-negative, and
            the model reads and forecasts log(1 + value).
        clip: bounds of forecasts, ``LOW:HIGH`` for all series or ``NAME=LOW:HIGH``; either may be empty (``0:``).
        future_columns: names of the future covariates, whose future values are known (a plan, a holiday).
        holidays: table of dates, or country (``DE``, ``DE-BY``) or exchange (``XNYS``) of the package holidays, for the
            future covariate ``holiday``.
        static_file: CSV file of static properties: series names, then one column per property.
        season: period of the seasonal naive baseline, steps; by default a day, week or year, by the frequency.
        batch_size: windows per batch; in training, the processes share a batch evenly.
        num_workers: number of loader processes; 0 is usually fastest.
        seed: seed of shuffling; by default the run's seed.
        root: folder to search for the data set instead of the default ones.
    """

    drop_last_train = True  # as published: the last partial batch of an epoch is dropped
    collate = staticmethod(whole_batch)
    paths: ClassVar = (*DataModule.paths, "file", "static_file", "holidays")
    sources: ClassVar = (("file",), ("dataset",))
    split_options: ClassVar = ("split", "val_from", "test_from", "windows", "window", "window_step")
    fixed: ClassVar = (
        "lookback",
        "horizon",
        "features",
        "marks",
        "target",
        "future_columns",
        "hist_columns",
        "holidays",
        "values",
    )
    limits: ClassVar = {
        "lookback": STEPS,
        "horizon": STEPS,
        "season": STEPS,
        "windows": STEPS,
        "window": LINES,
        "window_step": STEPS,
        "skip_rows": LINES,
        "sentinels": SENTINELS,
    }

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
        windows: int | None = None,
        window: int | None = None,
        window_step: int | None = None,
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
        hist_columns: str | list[str] | None = None,
        values: Kind = "real",
        clip: str | list[str] | None = None,
        future_columns: str | list[str] | None = None,
        holidays: str | None = None,
        static_file: str | None = None,
        season: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
        root: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, root=root)
        self.frame = file if isinstance(file, pd.DataFrame) else None
        if self.frame is not None:  # checkpoints contain plain values only
            self.hparams["file"] = None
        if file is not None and dataset is not None:
            raise InputError(SOURCES)
        self.rule = SplitRule(lookback, horizon, split, val_from, test_from, windows, window, window_step)
        if freq is not None:
            steps.parse(freq)
        self.file, self.dataset, self.lookback, self.horizon, self.features = file, dataset, lookback, horizon, features
        self.freq, self.irregular_dates, self.marks, self.target = freq, irregular_dates, marks, target
        self.hist_columns, self.output_limits = list(names_of(hist_columns)), Limits.of({"values": values}, clip or [])
        self.future_columns, self.holidays = list(names_of(future_columns)), holidays
        named = {"future": self.future_columns, "named": [*self.hist_columns, *names_of(target)]}
        self.reading, self.policies = Reading.of({**self.hparams, **named}), Policies.of(self.hparams)
        self.static_file, self.season, self.season_left_out, self.series = static_file, season, None, None
        self.left_out: dict[str, str] = {}

    # -- reading -----------------------------------------------------------------------------------------------------

    def find(self) -> Path:
        """Return the user's own file, or that of the public data set.

        Raises:
            InputError: the file is missing, or there is no such data set.
        """
        if self.frame is not None:
            return Path("DataFrame")
        if self.file is not None:
            return Path(self.file)
        if self.dataset is None:
            raise InputError(SOURCES)
        from seqssm.files.datasets import find_data_set
        from seqssm_forecasting import DOMAIN

        paths = {data_set.name: data_set.path for data_set in DOMAIN.data_sets}
        if self.dataset not in paths:
            raise InputError(f"--data.dataset {self.dataset}: no such data set{nearest(str(self.dataset), paths)}")
        return find_data_set(DOMAIN.name, paths[self.dataset], self.root)

    def predict_words(self) -> list[str]:
        planned = not self.future_columns or len(self.later) >= self.horizon  # predict needs them after the history
        return [str(self.find()) if self.frame is None else IN_MEMORY, *([] if planned else ["--backtest", "1"])]

    def setup(self, stage: str | None = None) -> None:
        """Read the file, fit the scaler on the training rows and make the three data sets; only once."""
        if self.series is not None:
            return
        path = self.find()
        pieces = read_for_model(path if self.frame is None else self.frame, self.reading, self.fitted)
        found = tidy(pieces, self.policies.for_suffix(suffix_of(path)), self.freq, self.reading.calendar == "observed")
        series, plan = split_future(found.series)
        self._require_target(series)
        if self.external:
            splits = {"train": (0, 0), "val": (0, 0), "test": (0, len(series))}
            require_windows(series.path, len(series), {"test": splits["test"]}, self.lookback, self.horizon)
        else:
            splits = self.rule.rows(series)
            self.rule.require_windows(series, splits)
        series = self.output_limits.transformed(self._chosen(self._trainable(series, found, splits)))
        found.series = series
        self._read_dates(found)
        if self.holidays is not None:
            self.holidays_kept = (self.fitted or {}).get("holidays") or holidays.learn(self.holidays, self.reading)
            plan = holidays.with_holidays(plan, series, found.step, self.holidays_kept)
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
        self.series, self.splits, self.later = series, splits, found.future or ()
        if stage == "fit" or self.external:
            self._report(found)

    def _history(self, splits: dict[str, tuple[int, int]]) -> int:
        """Return the number of past steps that the baselines read."""
        history = max(self.season or 0, self.lookback)
        first = splits["test"][0] if self.external else splits["val"][0]
        if first + self.lookback < history:
            self.season, history, self.season_left_out = None, self.lookback, self.season
        return history

    def _trainable(self, series: Series, found: Tidy, splits: dict[str, tuple[int, int]]) -> Series:
        """Drop and report the series that cannot be trained on."""
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
        """Select the variates that the checkpoint was trained on, in its order."""
        assert self.fitted is not None
        names = list(self.fitted["columns"])
        for name in series.columns:
            if name not in names:
                self.left_out[name] = "not known to the model"
        return series.only([name for name in series.columns if name in names]).reordered(names)

    def _require_target(self, series: Series) -> None:
        if self.target is not None and self.target not in series.columns:
            place = f"{series.row} 1"
            raise no_column(self.target, series.columns, option="--data.target", file=series.path, place=place)

    def _chosen(self, series: Series) -> Series:
        """Select the variates for `features`, with the target last."""
        names = list(series.columns)
        self._require_target(series)
        target = self.target or next((name for name in names[::-1] if name not in self.hist_columns), names[-1])
        if self.target is not None or self.features != "M":
            names = [name for name in names if name != target] + [target]
        past = historical(self.hist_columns, names, target)
        names = past + ([target] if self.features == "S" else [name for name in names if name not in past])
        self.outputs = len(names) - len(past) if self.features == "M" else 1
        self.output_limits.bounds(names[-self.outputs :])
        return series if names == series.columns else series.only(names)

    @property
    def outputs_names(self) -> list[str]:
        """Names of the variates to forecast."""
        assert self.series is not None
        return self.series.columns[-self.outputs :]

    def _read_dates(self, found: Tidy) -> None:
        self.kind, series = "none", found.series
        self.step, self.evidence = found.step, found.evidence
        self.freq = self.freq if found.step is None else found.step.name
        if found.step is None or series.numbered:
            if self.marks not in ("auto", "none"):
                raise InputError(f"has no dates, which --data.marks {self.marks} requires", file=series.path)
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
        """Compute the calendar marks (rows, M) of a series."""
        if series.dates is None or self.kind == "none":
            return np.empty((len(series), 0), dtype=np.float32)
        return calendar.marks(zones.local(series.dates, series.zone, series.utc), self.kind)

    # -- fitted values -----------------------------------------------------------------------------------------------

    def _scale(self, train: np.ndarray, plan: Series | None, rows: slice, series: Series) -> None:
        """Fit the scaler of the variates, and scale the future covariates."""
        self.plan, self.futr_exog = plan, None
        self.future_names = [] if plan is None else list(plan.columns)
        kept = self.fitted
        found = (kept["mean"], kept["std"], []) if kept is not None and self.external else scaler(train, series)
        self.mean, self.std, self.constant = found if kept is None else (kept["mean"], kept["std"], [])
        self.own_scale = torch.cat(found[:2]).tolist()  # tells whether the training rows are those of the run
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
        kept = None if self.fitted is None else self.fitted.get("naive_error")
        if kept is not None:
            return kept
        own = np.where(inside, train, np.nan)[:, -self.outputs :]  # no errors outside the span of a series
        unknown = torch.full((self.outputs,), torch.nan, dtype=torch.float64)
        return unknown if self.external else naive_error(own, self.season)

    def _read_statics(self, series: Series) -> None:
        self.static, self.static_text, self.static_rules = None, "", []
        if self.static_file is None:
            return
        frame = statics.read_static_features(self.static_file, series.columns)
        self.static_text = frame.to_csv()
        kept = None if self.fitted is None else self.fitted.get("static")
        self.static_rules = kept["rules"] if kept else statics.learn(frame)
        self.static = statics.features(frame, self.static_rules, self.static_file)

    def static_width(self) -> int:
        """Number of static features per series."""
        return 0 if self.static is None else self.static.shape[1]

    def use_frame(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def use_summary(self, summary: Mapping[str, Any], external: bool) -> None:
        self.fitted, self.external = summary, external

    def identities(self, split: str) -> list[dict[str, str]]:
        """Return one identity per date; dates with equal values in all series are the same record."""
        assert self.series is not None
        first, end = self.splits[split]
        first += 0 if split == "train" or self.external else self.lookback  # which belongs to the preceding split
        return self.series.identities(first, end)

    def inputs(self, split: str) -> str:
        """Return a digest of the scale of the training rows, of the future covariates and of the static features."""
        scales = [f"{value:.6g}" for value in self.own_scale]
        plan = [] if self.plan is None else [*self.plan.columns, self.plan.values[slice(*self.splits[split])]]
        return of_parts([*scales, *plan, self.static_text])

    # -- report and summary ------------------------------------------------------------------------------------------

    @rank_zero_only
    def _report(self, found: Tidy) -> None:
        """Print a description of the data."""
        for line in describe.lines(self, found):
            note(line)

    def pooled(self) -> list[str]:
        """List the series with too few validation windows for their own prediction intervals."""
        counts = self.val_set.targets()
        return [name for name, count in zip(self.outputs_names, counts) if count < ENOUGH]

    def summary(self) -> dict[str, Any]:
        """Return everything needed to predict from a new file."""
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
            "limits": self.output_limits.to_dict(),
        }
        if self.holidays is not None:
            kept["holidays"] = dict(self.holidays_kept)
        if self.futr_exog is not None:
            kept["known"] = {
                "columns": list(self.future_names),
                "mean": self.future_mean.clone(),
                "std": self.future_std.clone(),
            }
        if self.static is not None:
            kept["static"] = {"rules": self.static_rules, "features": self.static.clone()}
        return kept
