"""Forecasts and backtests from a checkpoint and series files, with dates and in the file's units."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from seqssm.errors import InputError, Status, no_such_file
from seqssm.files.frames import as_pandas, is_frame
from seqssm.prediction.predictor import Predictor, Record
from seqssm.prediction.record import units_of
from seqssm_forecasting import drawing, holidays, interactive, intervals, optimism, steps, unusual
from seqssm_forecasting.blend import Blend
from seqssm_forecasting.history import History, Reporter, Request, merged, prepare, with_own_options
from seqssm_forecasting.limits import Limits
from seqssm_forecasting.reading import Reading, names_of
from seqssm_forecasting.recursion import joined, starts
from seqssm_forecasting.rows import DATES, RECURSIVE, Layout
from seqssm_forecasting.scaling import of_windows
from seqssm_forecasting.series import listed
from seqssm_forecasting.spread import Spread
from seqssm_forecasting.task import quantile_levels
from seqssm_forecasting.tidy import Policies

HISTORY = 3  # length of the history in figures, in look-backs
AT_ONCE = 256  # windows per forward pass
READING = ("layout", "id_column", "time_column", "value_column", "separator", "decimal", "encoding", "date_format",
           "comment", "text_columns", "timezone")  # fmt: skip
POLICIES = ("unsorted", "duplicates", "gaps", "missing", "ragged", "future_missing")
BELOW, ABOVE = 5.0, 10.0  # tolerated deviation of a measured coverage from its level, percentage points


class ForecastPredictor(Predictor):
    """Predicts one record per file, with one row per variate and date, ordered by variate and date.

    With ``backtest``, there is one row per variate, cutoff and date; with ``wide``, one per date. A series that cannot
    be forecast has rows without values, with status and reason.
    """

    unit = "series"
    keys = ("unique_id", *DATES)

    def __init__(self, model: nn.Module, summary: dict[str, Any], options: dict[str, Any]) -> None:
        super().__init__(model, summary, options)
        self._report = Reporter()
        self.normalised = bool(getattr(model, "use_norm", False))
        columns = summary["columns"]
        self.names = columns[len(columns) - summary.get("outputs", len(columns)) :]
        self.probabilities = list(summary.get("quantiles") or [])
        self.horizon = self._horizon()
        self.levels = self._levels()
        self.backtest = options.get("backtest")
        for name in ("future", "future_missing"):
            if options.get(name) is not None and not summary.get("known"):
                raise InputError(f"--{name.replace('_', '-')}: the model was trained without future covariates")
        if options.get("static") and not summary.get("static"):
            raise InputError("--static: the model was trained without static properties")
        if options.get("unseen"):
            self._require_unseen()
        self.request = Request(
            summary,
            self._reading(),
            self._policies(),
            self.horizon,
            self.backtest,
            options.get("step") or 1,
            bool(options.get("unseen")),
            options.get("future"),
            options.get("static") or None,
            options.get("future_missing") or "error",  # the policy of training applies to gaps in the history only
            self.normalised,
            self._report,
            self._holidays(),
        )
        given = (options.get("quantiles"), options.get("samples"), options.get("sample_seed") or 0)
        self.spread = Spread(summary, self.levels, *given)
        self.output_limits = Limits.of(summary.get("limits"), options.get("clip"))
        if not options.get("unseen"):
            self.output_limits.bounds(self.names)
        self.trained = summary["horizon"] if self.horizon > summary["horizon"] else None
        form = (self.backtest is not None, bool(options.get("wide")))
        self.layout = Layout(self.names, self.spread.suffixes(), *form, summary["lookback"], self.trained)
        if options.get("html"):
            interactive.require_plotly()
        self.columns, self.estimates = self.layout.columns(), self.layout.estimates()
        if summary["freq"] is not None and steps.parse(summary["freq"]).whole_days():
            self.days = [name for name in DATES if name in self.columns]
        if self.levels:
            self._report_intervals()

    def single(self) -> str | None:
        return "--samples" if self.spread.samples else None

    # -- options -----------------------------------------------------------------------------------------------------

    def _horizon(self) -> int:
        trained, asked = self.summary["horizon"], self.options.get("horizon")
        if asked is None:
            return trained
        if asked > trained:
            past = len(self.summary["columns"]) - len(self.names)
            if past:
                words = f"{past} series are read but not forecast, so it cannot continue from its own forecasts"
                raise InputError(f"--horizon {asked}: the model was trained for {trained} steps, and {words}")
            self._report(
                f"steps {trained + 1} to {asked} are forecast from earlier forecasts (column {RECURSIVE}); their "
                "intervals are widened by a rule, not calibrated"
            )
        return asked

    def _holidays(self) -> dict[str, Any] | None:
        given = self.options.get("holidays")
        if given is None:
            return None
        if not self.summary.get("holidays"):
            raise InputError("--holidays: the model was trained without holidays")
        return holidays.learn(str(given), self._reading())

    def _levels(self) -> list[float]:
        asked = self.options.get("level")
        levels = intervals.parse_levels([asked] if isinstance(asked, str | int | float) else asked or [])
        if levels and self.probabilities:
            available = [round(100 * level, 4) for level in quantile_levels(self.probabilities)]
            wrong = [level for level in levels if round(level, 4) not in available]
            if wrong:
                has = f"it has {', '.join(f'{level:g}' for level in available)}" if available else "it has none"
                raise InputError(f"--level {wrong[0]:g}: not an interval between two quantiles of the model; {has}")
        elif levels and not self.summary.get("intervals"):
            raise InputError("--level: this checkpoint has no calibration quantiles; train the model again")
        elif levels:
            for level in levels:
                intervals.half_width(self.summary["intervals"], level / 100)
        return levels

    def _reading(self) -> Reading:
        kept = dict(self.summary.get("reading") or {})
        given = {name: self.options[name] for name in READING if self.options.get(name) is not None}
        if self.options.get("columns") is not None:
            given["columns"] = names_of(self.options["columns"])
        skip = self.options.get("skip_rows")
        if skip is not None:
            lines = [skip] if isinstance(skip, int) else [int(one) for one in skip]
            given["skip_rows"] = lines[0] if len(lines) == 1 else tuple(lines)
        return Reading.of({**kept, **given}).for_model(self.summary)

    def _policies(self) -> Policies:
        kept = dict(self.summary.get("policies") or {"irregular_dates": self.summary["irregular_dates"]})
        given = {name: self.options[name] for name in POLICIES if self.options.get(name) is not None}
        if self.options.get("sentinels") is not None:
            given["sentinels"] = self.options["sentinels"]
        return Policies.of({**kept, **given})

    def _require_unseen(self) -> None:
        if not self.normalised:
            raise InputError(
                "--unseen: the model was trained without window normalisation (--model.use_norm), and does not "
                "generalise to series of other levels"
            )
        if len(self.names) < len(self.summary["columns"]):
            raise InputError("--unseen: not possible for a model that forecasts one target from other series")
        if self.options.get("wide"):
            raise InputError("--unseen cannot be combined with --wide, whose columns are the training series")

    def units(self, table: Any) -> Iterator[tuple[Any, bool]]:
        """Count series; in the wide layout, series without values and series named only in the reason have failed."""
        if not self.options.get("wide"):
            yield from units_of(table, "unique_id")
            return
        for row in table.to_pylist():
            found = {name: row.get(name) is not None for name in self.names}
            if row["status"] != Status.OK and all(found.values()):
                found[""] = False  # a series that the model does not know
            yield from (((row["index"], name), ok) for name, ok in found.items())

    # -- reports -------------------------------------------------------------------------------------------------------

    def _report_intervals(self) -> None:
        """Report pooled intervals, and a test coverage far from its level."""
        kept = self.summary.get("intervals")
        if kept and not self.probabilities:
            for level in self.levels:
                own = intervals.own_series(kept, level / 100)
                pooled = [name for name, one in zip(self.names, own) if not one]
                if pooled and len(pooled) < len(self.names):
                    words = "intervals from the pooled errors of all series, because these have too few"
                    self._report(f"{level:g} % {words}: {listed(pooled)}")
                elif pooled:
                    self._report(
                        f"{level:g} % intervals from the pooled errors of all series, because each has too few"
                    )
                self._report_largest(kept, level)
        self._report_coverage()

    def _report_largest(self, kept: dict[str, Any], level: float) -> None:
        most = intervals.at_largest(kept, level / 100)
        most = {step: allowed for step, allowed in most.items() if step <= self.horizon}
        if most:
            first, last, least = min(most), max(most), 100 * min(most.values())
            steps = f"step {first} is" if first == last else f"steps {first} to {last} are"
            self._report(
                f"warning: {level:g} % intervals of {steps} the largest errors of overlapping validation windows, "
                f"which allow at most {least:.3g} % at step {last}; a longer validation split in training allows more"
            )

    def _report_coverage(self) -> None:
        measured = measured_coverage(getattr(self.summary, "file", None))
        if measured is None:
            return
        for level in self.levels:
            coverage = measured.get(round(level, 4))
            if coverage is not None and not level - BELOW <= coverage <= level + ABOVE:
                self._report(
                    f"warning: on the test split the {level:g} % intervals of this model contained {coverage:.1f} % of "
                    "the values"
                )

    # -- reading -----------------------------------------------------------------------------------------------------

    def records(self, inputs: list[Path]) -> Iterator[Record]:
        """Yield one record per file. A single file is read immediately, so that an unusable one is an error."""
        for path in inputs:
            if not path.exists():
                raise no_such_file(path)
        for index, path in enumerate(inputs):
            record = Record(index, path.name, path)
            yield self.prepare(record) if len(inputs) == 1 else record

    def records_of(self, data: Any) -> Iterator[Record]:
        """Yield one record per data frame.

        Args:
            data: a data frame (pandas, polars, pyarrow), or a list of them.

        Raises:
            InputError: `data` is anything else.
        """
        frames = [data] if is_frame(data) else list(data) if isinstance(data, list | tuple) else []
        if not frames or not all(is_frame(frame) for frame in frames):
            raise InputError("expected files or data frames")
        for index, frame in enumerate(map(as_pandas, frames)):
            record = Record(index, "DataFrame" if len(frames) == 1 else f"DataFrame {index}", frame)
            yield self.prepare(record) if len(frames) == 1 else record

    def prepare(self, record: Record) -> Record:
        if isinstance(record.item, Path | pd.DataFrame):
            try:
                record.item = prepare(record.item, self.request)
                series = self.output_limits.transformed(record.item.series)
            except InputError as error:
                raise InputError(with_own_options(error.message), file=error.file, place=error.place) from None
            told = [unusual.warning(self.model, record.item, series, self.output_limits, self.summary["lookback"])]
            if self.backtest:
                told.append(optimism.warning(self.summary, series, record.item.ends, self.horizon))
            for line in filter(None, told):
                self._report(f"{series.path}: {line}")
        return record

    # -- predicting ----------------------------------------------------------------------------------------------------

    def predict(self, records: list[Record]) -> list[list[dict[str, Any]] | pd.DataFrame]:
        found: dict[int, list[np.ndarray]] = {}
        # records of the same shape share forward passes; a file with different series is run separately
        groups: dict[tuple, list[int]] = {}
        for index, record in enumerate(records):
            own = record.item
            key = (
                own.series.values.shape[1],
                own.observed is None,
                own.outputs,
                id(own.static) if own.static is not None else 0,
                tuple(own.names) if self.output_limits.rules else (),
            )
            groups.setdefault(key, []).append(index)
        for indices in groups.values():
            windows = [(index, end) for index in indices for end in records[index].item.ends]
            for start in range(0, len(windows), AT_ONCE):
                chunk = windows[start : start + AT_ONCE]
                values = self._forward([(records[index].item, end) for index, end in chunk])
                for (index, _), value in zip(chunk, values):
                    found.setdefault(index, []).append(value)
        return [self._rows(record, np.stack(found[index])) for index, record in enumerate(records)]

    def _forward(self, windows: list[tuple[History, int]]) -> np.ndarray:
        """Return the parts of the forecast (`Spread`), (windows, parts, outputs, steps), in the file's units."""
        first, known = windows[0][0], [*self.names, *windows[0][0].names]
        table, scale = self._block(windows)
        for block, start in enumerate(starts(self.horizon, self.summary["horizon"])[1:], start=1):
            fed = self.output_limits.within(table[:, 0, :, :start], first.names, known)
            more, _ = self._block(windows, fed, scale, block)
            table = joined(table, more, start, self.spread.samples)
        table = self.output_limits.apply(table[..., : self.horizon], first.names, self.spread.sides(), known)
        if first.observed is not None:
            seen = np.stack([own.observed[end - self.summary["lookback"] : end].any(0) for own, end in windows])  # type: ignore[index]
            table[np.broadcast_to(~seen[:, None, -first.outputs :, None], table.shape)] = np.nan
        return table

    def _block(
        self,
        windows: list[tuple[History, int]],
        fed: np.ndarray | None = None,
        scale: np.ndarray | None = None,
        block: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the network once.

        Args:
            windows: records and the first row after the history of each window.
            fed: forecasts that follow the history, (windows, outputs, steps), unscaled; None for none.
            scale: standard deviation of the look-back for the intervals, (windows, outputs), unscaled; by default that
                of these windows.
            block: number of the block of a recursive forecast.

        Returns:
            (parts of the forecast, (windows, parts, outputs, T), unscaled; scale).
        """
        lookback, horizon = self.summary["lookback"], self.summary["horizon"]
        first, start = windows[0][0], 0 if fed is None else fed.shape[-1]
        raw = np.stack([self.output_limits.to_model(own.series.values[end - lookback : end].T) for own, end in windows])
        seen = None
        if first.observed is not None:
            seen = np.stack([own.observed[end - lookback : end].T for own, end in windows])  # type: ignore[index]
        if fed is not None:
            raw = np.concatenate([raw, fed], -1)[..., -lookback:]
            seen = None if seen is None else np.concatenate([seen, np.ones(fed.shape, bool)], -1)[..., -lookback:]
        mean = np.stack([own.mean for own, _ in windows])[..., None]
        std = np.stack([own.std for own, _ in windows])[..., None]
        if np.isnan(mean).any():
            own_mean, own_std = of_windows(raw, seen)
            mean, std = np.where(np.isnan(mean), own_mean, mean), np.where(np.isnan(std), own_std, std)
        x = torch.from_numpy(((raw - mean) / std).astype(np.float32)).to(self.device)
        mask = None if seen is None else torch.from_numpy(seen).to(self.device)
        marks = np.stack([own.marks[end - lookback + start : end + start].T for own, end in windows])
        ahead = None
        if first.futr_exog is not None:
            rows = [slice(end - lookback + start, end + start + horizon) for _, end in windows]
            ahead = np.stack([own.futr_exog[row].T for (own, _), row in zip(windows, rows)])  # type: ignore[index]
        y = self.model(
            x,
            torch.from_numpy(marks.copy()).to(self.device) if marks.shape[1] else None,
            observed_mask=mask,
            futr_exog=None if ahead is None else torch.from_numpy(ahead.astype(np.float32)).to(self.device),
            static=None if first.static is None else first.static.to(self.device),
        )
        outputs = first.outputs
        y = y[:, -outputs:].double().cpu()  # (windows, outputs, steps[, quantiles])
        own_std, own_mean = std[:, -outputs:, 0], mean[:, None, -outputs:]
        if scale is None:
            own_mask = None if mask is None else mask[:, -outputs:].cpu()
            scale = intervals.window_std(x[:, -outputs:].double().cpu(), own_mask).numpy() * own_std
        scaled = torch.from_numpy(scale / own_std)
        parts = self.spread.parts(y, scaled, torch.tensor([own.scores for own, _ in windows]), block)
        return torch.stack(parts, 1).numpy() * own_std[:, None, :, None] + own_mean, scale

    def _rows(self, record: Record, values: np.ndarray) -> list[dict[str, Any]] | pd.DataFrame:
        """Build the table of a record from (windows, parts, outputs, steps)."""
        own: History = record.item
        for position, name in enumerate(own.names):
            if name in own.reasons:
                values[:, :, position] = np.nan
            elif not np.isfinite(values[:, :, position]).all() and (self.backtest is None or own.observed is None):
                own.reasons[name], values[:, :, position] = "the forecast is not finite", np.nan
        if all(name in own.reasons for name in own.names):
            record.reason = "; ".join(dict.fromkeys(own.reasons[name] for name in own.names))
            return self.failed(record)
        return self.layout.table(own, values)

    @property
    def network(self) -> Any:
        """The network; of a blend, the trained one."""
        return self.model.network if isinstance(self.model, Blend) else self.model

    def no_embedding(self) -> str | None:
        if not hasattr(self.network, "head"):
            return f"the network {type(self.network).__name__} has no head, and therefore no embeddings"
        if self.backtest is not None:
            return "backtest: embeddings are those of the last window; pass the rows up to each cutoff"
        return None

    def embed(self, records: list[Record]) -> list[Any]:
        """Return the features in front of the head, averaged over the series of the last window, (D,) per record.

        Those of a blend are its network's.
        """
        captured: list[Tensor] = []
        handle = self.network.head.register_forward_pre_hook(
            lambda _, given: captured.append(given[0].detach().float().mean(1).cpu())
        )
        rows = []
        try:
            for record in records:
                captured.clear()
                self.predict([record])
                rows.append(captured[0][0])  # later ones are of recursive steps, after the window
        finally:
            handle.remove()
        return rows

    def settle(self, name: str, means: np.ndarray) -> np.ndarray:
        """Round the mean of whole numbers: forecasts to the nearest one, bounds of intervals outwards."""
        sides = self.spread.sides()
        return self.output_limits.rounded(means, sides[self.estimates.index(name) % len(sides)])

    def in_common(self) -> dict[str, Any]:
        first = "none" if self.trained is None else f"from {self.trained + 1} on"
        known = {"horizon": self.horizon, "recursive step": first}
        return known if self.backtest is None else {**known, "horizon of training": self.summary["horizon"]}

    def merge(self, items: list[Any]) -> Any:
        """Average the forecasts and intervals of the last window."""
        own = merged(items)
        parts = zip(own.drawn["values"], self.spread.sides())
        values = np.stack([self.output_limits.rounded(part, side) for part, side in parts])
        return replace(own, drawn={**own.drawn, "values": values})

    # -- figures -------------------------------------------------------------------------------------------------------

    def figures(self, record: Record, rows: Any, folder: Path) -> list[Path]:
        """Draw a PNG per variate (history, forecast, prediction intervals, actual values) and an overview."""
        most = HISTORY * self.summary["lookback"]
        html = bool(self.options.get("html"))
        return drawing.draw(record.id, record.index, record.item, most, self.levels, folder, html, self.trained)


def measured_coverage(checkpoint: str | Path | None) -> dict[float, float] | None:
    """Read the test coverage of the intervals by level, percent, from the `metrics.json` beside a checkpoint.

    Args:
        checkpoint: path of the checkpoint, or None.

    Returns:
        None if the run was not tested.
    """
    if checkpoint is None:
        return None
    try:
        content = json.loads((Path(checkpoint).parent / "metrics.json").read_text(encoding="utf-8"))
        tables = content["test"]["tables"]
        rows = next(table["rows"] for table in tables if table["title"].startswith("Intervals"))
        return {round(float(row["level"]), 4): float(row["coverage"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
