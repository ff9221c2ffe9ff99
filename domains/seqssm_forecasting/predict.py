"""From a checkpoint and series files to future rows, with real dates and in the file's units; and backtests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from seqssm.errors import InputError
from seqssm.prediction.predictor import Predictor, Record
from seqssm_forecasting import calendar, drawing, intervals, known, statics, zones
from seqssm_forecasting.data import parted
from seqssm_forecasting.files import DATELESS, Series, read, suffix_of
from seqssm_forecasting.task import quantile_levels
from seqssm_forecasting.text import Reading, listed
from seqssm_forecasting.tidy import Policies, Tidy, filled, tidy

HISTORY = 3  # look-backs of history that a figure shows
AT_ONCE = 256  # windows of a forward pass
READING = ("layout", "id_column", "time_column", "value_column", "separator", "decimal", "encoding", "date_format")
POLICIES = ("unsorted", "duplicates", "gaps", "missing", "ragged")


@dataclass
class History:
    """A series file, ready for the network.

    Attributes:
        series: its variates in the order of the network; missing values filled.
        there: (rows, N), False where a value was missing; None where the network is told of none.
        marks: (rows, M), float32.
        known: (rows + T, K), scaled, of the columns known beforehand; None without.
        static: (N, F) or None.
        mean, std: (N,) of the scaler; NaN for a series that the model does not know.
        outputs: how many of the last variates are forecast.
        when: (rows + T,) dates, or row numbers for a file without dates.
        ends: the rows right after each look-back; all are forecast.
        scores: position of each output among those that the model was trained on; -1 for none.
        drawn: what the last window gave, for the figures.
    """

    series: Series
    there: np.ndarray | None
    marks: np.ndarray
    known: np.ndarray | None
    static: Tensor | None
    mean: np.ndarray
    std: np.ndarray
    outputs: int
    when: Any
    ends: list[int]
    scores: list[int]
    drawn: dict[str, Any] = field(default_factory=dict)


class ForecastPredictor(Predictor):
    """One record a file; its rows are (variate, date) pairs, in the order of the file's variates, dates ascending.

    With ``backtest`` they are (variate, cutoff, date) triples of many windows; with ``wide``, dates.
    """

    def __init__(self, model: nn.Module, summary: dict[str, Any], options: dict[str, Any]) -> None:
        super().__init__(model, summary, options)
        self.told: set[str] = set()
        self.normalised = bool(getattr(model, "use_norm", False))
        columns = summary["columns"]
        self.names = columns[len(columns) - summary.get("outputs", len(columns)) :]
        self.probabilities = list(summary.get("quantiles") or [])
        self.horizon = self._horizon()
        self.levels = self._levels()
        self.backtest = options.get("backtest")
        self.step = 1 if options.get("step") is None else options["step"]
        if self.backtest is not None and self.backtest < 1:
            raise InputError(f"--backtest {self.backtest}: at least one window is needed")
        if self.step < 1:
            raise InputError(f"--step {self.step}: at least 1 is needed")
        if options.get("step") is not None and self.backtest is None:
            raise InputError("--step goes with --backtest N")
        if options.get("future") and not summary.get("known"):
            raise InputError("--future: the model was trained without columns that are known beforehand")
        if options.get("static") and not summary.get("static"):
            raise InputError("--static: the model was trained without static properties")
        self.reading, self.policies = self._reading(), self._policies()
        if options.get("unseen"):
            self._require_unseen()
        self.columns = self._columns()

    # -- options -----------------------------------------------------------------------------------------------------

    def _horizon(self) -> int:
        trained, asked = self.summary["horizon"], self.options.get("horizon")
        if asked is None:
            return trained
        if asked < 1:
            raise InputError(f"--horizon {asked}: at least 1 is needed")
        if asked > trained:
            raise InputError(
                f"--horizon {asked}: the model was trained for {trained} steps and cannot go further; fit one with "
                f"--data.horizon {asked}"
            )
        return asked

    def _levels(self) -> list[float]:
        levels = intervals.parse_levels(self.options.get("level") or [])
        if levels and self.probabilities:
            there = [round(100 * level, 4) for level in quantile_levels(self.probabilities)]
            wrong = [level for level in levels if round(level, 4) not in there]
            if wrong:
                has = f"it has {', '.join(f'{one:g}' for one in there)}" if there else "it has none"
                raise InputError(f"--level {wrong[0]:g}: the quantiles of the model give no such band; {has}")
        elif levels and not self.summary.get("intervals"):
            raise InputError("--level: this checkpoint keeps no errors of its validation part; fit it anew")
        elif levels:
            for level in levels:
                intervals.reach(self.summary["intervals"]["knots"], self.summary["intervals"]["count"], level / 100)
        return levels

    def _reading(self) -> Reading:
        kept = dict(self.summary.get("reading") or {})
        kept["future"] = tuple(kept.get("future", ()))
        given = {name: self.options[name] for name in READING if self.options.get(name) is not None}
        zone = self.options.get("timezone")
        return Reading(**{**kept, **given, **({"timezone": zone} if zone else {})})

    def _policies(self) -> Policies:
        kept = dict(self.summary.get("policies") or {"irregular_dates": self.summary["irregular_dates"]})
        given = {name: self.options[name] for name in POLICIES if self.options.get(name) is not None}
        if self.options.get("sentinels") is not None:
            given["sentinels"] = [float(number) for number in self.options["sentinels"]]
        return Policies.of({**kept, **given})

    def _require_unseen(self) -> None:
        if not self.normalised:
            raise InputError(
                "--unseen: the model was trained without window normalisation (--model.use_norm), so it knows only the "
                "levels of its own series"
            )
        if len(self.names) < len(self.summary["columns"]):
            raise InputError("--unseen: the model forecasts one target from the others, by their names")
        if self.options.get("wide"):
            raise InputError("--unseen does not go with --wide: its columns are the series that the model knows")

    def _columns(self) -> list[str]:
        bands = [f"-{side}-{level:g}" for level in self.levels for side in ("lo", "hi")]
        cutoff = ["cutoff"] if self.backtest is not None else []
        truth = ["y"] if self.backtest is not None else []
        if not self.options.get("wide"):
            return ["unique_id", "ds", *cutoff, *truth, "yhat", *(f"yhat{band}" for band in bands)]
        truth = [f"-{name}" for name in truth]
        own = [f"{name}{part}" for name in self.names for part in (*truth, "", *bands)]
        taken = [name for name in own if name in ("index", "id", "ds", "cutoff", "status", "reason")]
        if taken or len(set(own)) < len(own):
            raise InputError(f"--wide: the series' names collide with the table's own columns ({listed(taken or own)})")
        return ["ds", *cutoff, *own]

    # -- reading -----------------------------------------------------------------------------------------------------

    def records(self, inputs: list[Path]) -> Iterator[Record]:
        """One record a file. A single file is read at once: if it cannot be used, there is nothing to produce."""
        for path in inputs:
            if not path.exists():
                raise InputError("no such file", file=path)
        for index, path in enumerate(inputs):
            record = Record(index, path.name, path)
            yield self.prepare(record) if len(inputs) == 1 else record

    def prepare(self, record: Record) -> Record:
        if isinstance(record.item, Path):
            try:
                record.item = self.history(record.item)
            except InputError as error:  # the readers name the options of the data module; here they have no prefix
                raise InputError(error.message.replace("--data.", "--"), file=error.file, place=error.place) from None
        return record

    def _tell(self, line: str) -> None:
        """Says it once, although the files are gone through twice: to count the records, then to predict."""
        if line not in self.told:
            self.told.add(line)
            print(line, file=sys.stderr)

    def history(self, path: Path) -> History:
        """The file, checked against the checkpoint: the same variates by name, the same frequency, enough rows.

        Raises:
            InputError: it does not fit.
        """
        summary = self.summary
        if summary["dated"] == (suffix_of(path) in DATELESS):
            raise InputError(
                f"the model was trained on series with{'' if summary['dated'] else 'out'} dates; give such a file",
                file=path,
            )
        policies = self.policies
        if suffix_of(path) == ".npz" and policies.missing == "error":
            policies = replace(policies, missing="forward")
        found = tidy(read(path, self._fitting(path, self.reading)), policies, summary["freq"])
        for note in found.notes:
            self._tell(f"{path}: {note.replace('--data.', '--')}")  # the options of a prediction have no prefix
        return self._ready(path, found)

    def _fitting(self, path: Path, reading: Reading) -> Reading:
        """With a plan in a file of its own, the history need not hold the columns known beforehand."""
        if self.options.get("future") and reading.future:
            try:
                read(path, reading)
            except InputError as error:
                if "future_columns" in error.message:
                    return replace(reading, future=())
        return reading

    def _ready(self, path: Path, found: Tidy) -> History:
        summary, lookback, horizon = self.summary, self.summary["lookback"], self.summary["horizon"]
        series, plan = parted(found.series)
        series, mean, std, scores = self._chosen(series)
        rows = len(series)
        there = found.was_there(series) if self.policies.missing == "mask" and found.gaps is not None else None
        if rows < lookback:
            raise InputError(f"has {rows} rows of history; the model looks back over {lookback}", file=path)
        ends = self._ends(rows, path)
        if there is not None and self.backtest is None:
            blind = [name for name, some in zip(series.columns, there[-lookback:].any(0)) if not some]
            if blind:
                raise InputError(f"no value in the last {lookback} rows of {listed(blind)}", file=path)
        series = replace(series, values=filled(series.values, path))
        if series.dates is None:
            when: Any = np.arange(rows + horizon)
            marks = np.empty((rows, 0), dtype=np.float32)
        else:
            try:
                when = series.dates.append(calendar.future(series.dates[-1], summary["freq"], horizon))
            except (OverflowError, ValueError):
                raise InputError("its dates reach beyond what can be counted", file=path) from None
            marks = calendar.marks(zones.local(series.dates, series.zone, series.utc), summary["marks"])
        beforehand = None
        if summary.get("known"):
            need = 0 if self.backtest is not None else horizon
            beforehand = known.gather(
                summary["known"], plan, found.future, when, rows, need, self.options.get("future"), self.reading, series
            )
        outputs = len(series.columns) if len(scores) == len(series.columns) else len(scores)
        static = self._static(series, path)
        return History(series, there, marks, beforehand, static, mean, std, outputs, when, ends, scores)

    def _chosen(self, series: Series) -> tuple[Series, np.ndarray, np.ndarray, list[int]]:
        """(the network's variates, their mean and deviation, the positions of the outputs among the trained ones)."""
        columns = self.summary["columns"]
        mean, std = self.summary["mean"].numpy(), self.summary["std"].numpy()
        outputs = list(range(len(self.names)))
        if self.options.get("unseen"):
            unknown = [name for name in series.columns if name not in columns]
            if unknown:
                self._tell(f"{series.path}: not known to the model, scaled by their look-back: {listed(unknown)}")
            place = [columns.index(name) if name in columns else -1 for name in series.columns]
            mean = np.array([mean[one] if one >= 0 else np.nan for one in place])
            std = np.array([std[one] if one >= 0 else np.nan for one in place])
            return series, mean, std, place
        if len(columns) == 1 and columns[0] in series.columns:  # one target alone: the file may hold others
            left = [name for name in series.columns if name != columns[0]]
            if left:
                self._tell(f"{series.path}: columns left out: {listed(left)}")
            return series.only(columns), mean, std, outputs
        if series.columns != columns:
            try:
                series = series.reordered(columns)
            except InputError as error:
                hint = "; --unseen takes series that the model does not know" if self.normalised else ""
                raise InputError(f"{error.message}{hint}", file=error.file, place=error.place) from None
            self._tell(f"{series.path}: columns brought into the checkpoint's order")
        return series, mean, std, outputs

    def _ends(self, rows: int, path: Path) -> list[int]:
        lookback = self.summary["lookback"]
        if self.backtest is None:
            return [rows]
        ahead = self.summary["horizon"] if self.summary.get("known") else self.horizon
        ends = [rows - ahead - self.step * k for k in range(self.backtest)][::-1]
        if ends[0] < lookback:
            most = max(0, (rows - ahead - lookback) // self.step + 1)
            raise InputError(
                f"has {rows} rows; --backtest {self.backtest} needs {rows + lookback - ends[0]} (the model looks back "
                f"over {lookback} and {ahead} are forecast); it allows {most} windows",
                file=path,
            )
        return ends

    def _static(self, series: Series, path: Path) -> Tensor | None:
        kept = self.summary.get("static")
        if not kept:
            return None
        file = self.options.get("static")
        if file:
            return statics.features(statics.read(file, series.columns), kept["rules"], file)
        if series.columns != self.summary["columns"]:
            raise InputError("has series that the model does not know: give their properties, --static FILE", file=path)
        return kept["features"]

    # -- predicting ----------------------------------------------------------------------------------------------------

    def predict(self, records: list[Record]) -> list[list[dict[str, Any]] | pd.DataFrame]:
        found: dict[int, list[np.ndarray]] = {}
        # records of the same shape share forward passes; a file with series of its own goes alone
        groups: dict[tuple, list[int]] = {}
        for place, record in enumerate(records):
            own = record.item
            key = (
                own.series.values.shape[1],
                own.there is None,
                own.outputs,
                id(own.static) if own.static is not None else 0,
            )
            groups.setdefault(key, []).append(place)
        for places in groups.values():
            windows = [(place, end) for place in places for end in records[place].item.ends]
            for start in range(0, len(windows), AT_ONCE):
                chunk = windows[start : start + AT_ONCE]
                values = self._forward([(records[place].item, end) for place, end in chunk])
                for (place, _), value in zip(chunk, values):
                    found.setdefault(place, []).append(value)
        return [self._rows(record, np.stack(found[place])) for place, record in enumerate(records)]

    def _forward(self, windows: list[tuple[History, int]]) -> np.ndarray:
        """(windows, 1 + 2 levels, outputs, steps) in the file's units: the forecast, then low, high of each band."""
        lookback, horizon = self.summary["lookback"], self.summary["horizon"]
        first = windows[0][0]
        raw = np.stack([own.series.values[end - lookback : end].T for own, end in windows])
        seen = None
        if first.there is not None:
            seen = np.stack([own.there[end - lookback : end].T for own, end in windows])  # type: ignore[index]
        mean = np.stack([own.mean for own, _ in windows])[..., None]
        std = np.stack([own.std for own, _ in windows])[..., None]
        if np.isnan(mean).any():
            own_mean, own_std = _of_window(raw, seen)
            mean, std = np.where(np.isnan(mean), own_mean, mean), np.where(np.isnan(std), own_std, std)
        x = torch.from_numpy(((raw - mean) / std).astype(np.float32)).to(self.device)
        mask = None if seen is None else torch.from_numpy(seen).to(self.device)
        marks = np.stack([own.marks[end - lookback : end].T for own, end in windows])
        ahead = None
        if first.known is not None:
            ahead = np.stack([own.known[end - lookback : end + horizon].T for own, end in windows])  # type: ignore[index]
        y = self.model(
            x,
            torch.from_numpy(marks.copy()).to(self.device) if marks.shape[1] else None,
            seen=mask,
            known=None if ahead is None else torch.from_numpy(ahead.astype(np.float32)).to(self.device),
            static=None if first.static is None else first.static.to(self.device),
        )
        outputs = first.outputs
        y = y[:, -outputs:, : self.horizon].double().cpu()  # (windows, outputs, steps[, quantiles])
        parts = self._bands(
            y, x[:, -outputs:].double().cpu(), None if mask is None else mask[:, -outputs:].cpu(), windows
        )
        table = torch.stack(parts, 1).numpy() * std[:, None, -outputs:] + mean[:, None, -outputs:]
        if seen is not None:
            table[np.broadcast_to(~seen.any(-1)[:, None, -outputs:, None], table.shape)] = np.nan
        return table

    def _bands(self, y: Tensor, x: Tensor, seen: Tensor | None, windows: list[tuple[History, int]]) -> list[Tensor]:
        """The forecast, then low and high of each level, each (windows, outputs, steps), scaled."""
        if self.probabilities:
            place = self.probabilities.index
            parts = [y[..., place(0.5)]]
            for level in self.levels:
                parts += [y[..., place(round(0.5 + side * level / 200, 6))] for side in (-1, 1)]
            return parts
        parts = [y]
        if self.levels:
            kept, scale = self.summary["intervals"], intervals.deviation(x, seen)
            for level in self.levels:
                half = intervals.reach(kept["knots"], kept["count"], level / 100).double()[:, : self.horizon]
                # a series that the model does not know takes the mean over those that it does
                half = torch.cat([half, half.nanmean(0, keepdim=True)])
                width = scale[..., None] * torch.stack([half[own.scores] for own, _ in windows])
                parts += [y - width, y + width]
        return parts

    def _rows(self, record: Record, values: np.ndarray) -> list[dict[str, Any]] | pd.DataFrame:
        """The table of a record from (windows, 1 + 2 levels, outputs, steps)."""
        own: History = record.item
        if not np.isfinite(values).all() and (self.backtest is None or own.there is None):
            record.reason = "the forecast is not finite"
            return self.failed(record)
        windows, _, outputs, steps = values.shape
        names = own.series.columns[-outputs:]
        places = np.array(own.ends)[:, None] + np.arange(steps)  # (windows, steps)
        dates = own.when
        if own.series.dates is not None:
            dates = zones.written(own.when, own.series.zone, own.series.utc)
        cutoff = np.array(own.ends)[:, None] - 1 + np.zeros(steps, dtype=np.int64)
        truth = None
        if self.backtest is not None:
            history = own.series.values[:, -outputs:]
            if own.there is not None:
                history = np.where(own.there[:, -outputs:], history, np.nan)
            truth = history[np.minimum(places, len(history) - 1)].transpose(2, 0, 1)  # (outputs, windows, steps)
        own.drawn = {"values": values[-1], "places": places[-1], "truth": None if truth is None else truth[:, -1]}
        bands = [f"-{side}-{level:g}" for level in self.levels for side in ("lo", "hi")]
        if self.options.get("wide"):
            data: dict[str, Any] = {"ds": dates[places.ravel()]}
            if self.backtest is not None:
                data["cutoff"] = dates[cutoff.ravel()]
            for position, name in enumerate(names):
                if truth is not None:
                    data[f"{name}-y"] = truth[position].ravel()
                for part, band in enumerate(["", *bands]):
                    data[f"{name}{band}"] = values[:, part, position].ravel()
            return pd.DataFrame(data)
        data = {
            "unique_id": np.repeat(np.array(names, dtype=object), windows * steps),
            "ds": dates[np.tile(places.ravel(), outputs)],
        }
        if truth is not None:
            data["cutoff"] = dates[np.tile(cutoff.ravel(), outputs)]
            data["y"] = truth.ravel()
        for part, band in enumerate(["", *bands]):
            data[f"yhat{band}"] = values[:, part].transpose(1, 0, 2).ravel()
        return pd.DataFrame(data)

    # -- figures -------------------------------------------------------------------------------------------------------

    def figures(self, record: Record, rows: Any, folder: Path) -> list[Path]:
        """One PNG a variate: the end of the history, the forecast, its widest band, what came; and one of all."""
        return drawing.draw(record, HISTORY * self.summary["lookback"], self.levels, self.summary["dated"], folder)


def _of_window(raw: np.ndarray, seen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each look-back, (windows, N, 1); 1 where it is constant."""
    there = np.ones_like(raw, dtype=bool) if seen is None else seen
    count = np.maximum(there.sum(-1, keepdims=True), 1)
    mean = np.where(there, raw, 0).sum(-1, keepdims=True) / count
    deviation = np.sqrt((np.where(there, raw - mean, 0) ** 2).sum(-1, keepdims=True) / count)
    return mean, np.where(deviation > 0, deviation, 1.0)
