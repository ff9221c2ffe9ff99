"""Multivariate time-series forecasting with S-Mamba (arXiv 2403.11144), from a CSV to future rows."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from seqssm.bounds import COUNT, SEED, Bounds
from seqssm.domain import FIGURES, Added, Baseline, DataSet, Domain, Effect, OfDataSet, Option

__all__ = ["DOMAIN", "DLinear", "ForecastingData", "ForecastingTask", "ITransformer", "SMamba", "cross_validation"]

_HOMES = {
    "SMamba": "model",
    "ITransformer": "model",
    "DLinear": "model",
    "ForecastingTask": "task",
    "ForecastingData": "data",
    "cross_validation": "rolling",
}


def __getattr__(name: str) -> Any:
    """Import public classes on first use, because the help pages must not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


STEPS = COUNT
"""Bounds of look-back, horizon and season, steps; the rows of the file are the real limit."""
LINES = Bounds(0, 2**31 - 1)
INSIDE = Bounds(0, 1, above=True, below=True)
PATHS = Bounds(1, 100_000)
SENTINELS = Bounds(-sys.float_info.max, sys.float_info.max)
"""Databases write the largest number where they have none."""

_ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small"
_TSL = "https://huggingface.co/datasets/thuml/Time-Series-Library/resolve/main"
_PEMS = "https://huggingface.co/datasets/pkr7098/time-series-forecasting-datasets/resolve/main"
_SOLAR = "https://raw.githubusercontent.com/laiguokun/multivariate-time-series-data/master/solar-energy"


def _ett(name: str, every: str, sha256: str | None = None) -> DataSet:
    return DataSet(
        name=name.lower(),
        title=f"{name}: load and oil temperature of a transformer, every {every}",
        path=f"{name}.csv",
        url=f"{_ETT}/{name}.csv",
        licence="CC BY-ND 4.0",
        found="github.com/zhouhaoyi/ETDataset, commit 1d16c8f",
        sha256=sha256,
    )


def _collection(name: str, title: str, path: str, licence: str = "not stated", sha256: str | None = None) -> DataSet:
    file = path.rsplit("/", 1)[-1]
    found = "huggingface.co/datasets/thuml/Time-Series-Library"
    return DataSet(name, title, file, f"{_TSL}/{path}", licence, found, sha256=sha256)


def _pems(number: str, sensors: int) -> DataSet:
    return DataSet(
        name=f"pems{number}",
        title=f"PEMS{number}: traffic flow at {sensors} sensors in California, every 5 minutes",
        path=f"PEMS{number}.npz",
        url=f"{_PEMS}/PEMS{number}.npz",
        licence="not stated",
        found="huggingface.co/datasets/pkr7098/time-series-forecasting-datasets",
    )


DATA_SETS = (
    _ett("ETTh1", "hour", "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"),
    _ett("ETTh2", "hour"),
    _ett("ETTm1", "15 minutes", "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e"),
    _ett("ETTm2", "15 minutes"),
    _collection("exchange", "Exchange: 8 exchange rates, daily", "exchange_rate/exchange_rate.csv"),
    _collection(
        "weather",
        "Weather: 21 indicators in Jena in 2020, every 10 minutes; 81 cells are -9999",
        "weather/weather.csv",
        sha256="34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",
    ),
    _collection("electricity", "Electricity: hourly use of 321 clients", "electricity/electricity.csv"),
    _collection("traffic", "Traffic: hourly road occupancy at 862 sensors, San Francisco", "traffic/traffic.csv"),
    DataSet(
        name="solar",
        title="Solar: output of 137 plants in Alabama, every 10 minutes",
        path="solar_AL.txt",
        url=f"{_SOLAR}/solar_AL.txt.gz",
        licence="not stated",
        found="github.com/laiguokun/multivariate-time-series-data",
    ),
    _pems("03", 358),
    _pems("04", 307),
    _pems("07", 883),
    _pems("08", 170),
)

_AS_TRAINED = " (default: as in training)"

PREDICT_OPTIONS = (
    Option(
        "--horizon", "steps to forecast; more than in training are forecast recursively, flagged", int, bounds=STEPS
    ),
    Option("--level", "prediction intervals, percent: 80 90 adds yhat-lo-80, yhat-hi-80, yhat-lo-90, ...", many=True),
    Option(
        "--quantiles",
        "quantiles, probabilities: 0.05 0.5 0.95 adds yhat-q0.05, yhat-q0.5, ...",
        float,
        many=True,
        bounds=INSIDE,
    ),
    Option(
        "--samples", "sample paths: yhat-sample-1, ..., with the dependence between steps and series", int, bounds=PATHS
    ),
    Option("--sample-seed", "seed of the sample paths", int, 0, bounds=SEED, needs=("--samples",)),
    Option("--clip", f"bounds of the values, LOW:HIGH or NAME=LOW:HIGH{_AS_TRAINED}", many=True, pairs=True),
    Option("--wide", "one column per series instead of one row per series and date", bool),
    Option(
        "--backtest",
        "forecast the last N windows of the history, with actual values (columns cutoff, y)",
        int,
        bounds=STEPS,
    ),
    Option("--step", "steps between the cutoffs of --backtest (default 1)", int, bounds=STEPS, needs=("--backtest",)),
    Option("--html", "one page per file with a selector of series (needs plotly)", bool, needs=FIGURES),
    Option("--holidays", f"country, exchange or table of dates{_AS_TRAINED}"),
    Option("--future", "file with the future covariates of every future step", Path),
    Option("--unseen", "forecast series that the model was not trained on, scaled by their own look-back", bool),
    Option("--static", "file with the static properties of unseen series", Path),
    Option("--layout", f"layout of the files{_AS_TRAINED}", str, None, ("auto", "wide", "long")),
    Option("--id-column", f"column of series names in the long layout{_AS_TRAINED}"),
    Option("--time-column", f"column of dates{_AS_TRAINED}"),
    Option("--value-column", f"column of values in the long layout{_AS_TRAINED}"),
    Option("--columns", f"columns of a wide file to use{_AS_TRAINED}", many=True),
    Option("--text-columns", f"policy for columns without numbers{_AS_TRAINED}", str, None, ("error", "drop")),
    Option(
        "--skip-rows",
        f"number of leading lines to skip, or several line numbers{_AS_TRAINED}",
        int,
        many=True,
        bounds=LINES,
    ),
    Option("--comment", f"character that starts a comment{_AS_TRAINED}"),
    Option("--separator", f"comma, semicolon, tab, bar, space or a character{_AS_TRAINED}"),
    Option("--decimal", f"decimal mark of numbers{_AS_TRAINED}", str, None, ("auto", "point", "comma")),
    Option("--encoding", f"encoding of the text{_AS_TRAINED}"),
    Option("--date-format", f"strptime format of dates that are not year first{_AS_TRAINED}"),
    Option("--timezone", f"time zone of the dates{_AS_TRAINED}"),
    Option("--unsorted", f"policy for rows out of order{_AS_TRAINED}", str, None, ("error", "sort")),
    Option(
        "--duplicates",
        f"policy for duplicate dates{_AS_TRAINED}",
        str,
        None,
        ("error", "equal", "first", "last", "mean"),
    ),
    Option("--gaps", f"policy for missing dates{_AS_TRAINED}", str, None, ("error", "fill")),
    Option("--missing", f"policy for missing values{_AS_TRAINED}", str, None, ("error", "mask", "forward", "linear")),
    Option(
        "--ragged", f"policy for series with different spans{_AS_TRAINED}", str, None, ("error", "mask", "intersect")
    ),
    Option(
        "--future-missing",
        f"policy for missing future covariates{_AS_TRAINED}",
        str,
        None,
        ("error", "forward", "zero"),
    ),
    Option("--sentinels", f"numbers that encode missing values{_AS_TRAINED}", float, many=True, bounds=SENTINELS),
)

_ALONE = ("--model.blend", "false")  # also with the preset for own files

DOMAIN = Domain(
    name="forecasting",
    title="Time-series forecasting: many series at once, from a CSV to future rows (S-Mamba)",
    task="seqssm_forecasting.task:ForecastingTask",
    data="seqssm_forecasting.data:ForecastingData",
    predictor="seqssm_forecasting.predict:ForecastPredictor",
    package="seqssm_forecasting",
    example_preset="etth1_96",
    example_input="ETTh1.csv",
    demo="seqssm_forecasting.demo:demo",
    summary={
        "columns": "strings",
        "mean": "tensor",
        "std": "tensor",
        "lookback": "int",
        "horizon": "int",
        "freq": "str?",
        "marks": "str?",
        "dated": "bool",
        "outputs": "int",
        "season": "int?",
        "reading": "mapping",
        "policies": "mapping",
        "known": {"columns": "strings", "mean": "tensor", "std": "tensor"},
        "static": {"rules": "list", "features": "tensor"},
        "quantiles": "numbers",
        "intervals": "mapping",
        "limits": {"values": "str", "clip": "strings"},
        "holidays": "mapping",
    },
    models={
        "smamba": ("--model.network", "smamba", *_ALONE),
        "blend": ("--model.blend", "true"),
        "smamba_reference": ("--model.network", "smamba", "--model.engine", "reference", *_ALONE),
        "itransformer": ("--model.network", "itransformer", *_ALONE),
        "dlinear": ("--model.network", "dlinear", "--model.learning_rate", "1e-3", *_ALONE),
    },
    baselines=(
        Baseline("last_value", "seqssm_forecasting.baselines:test_last_value"),
        Baseline("seasonal_naive", "seqssm_forecasting.baselines:test_seasonal_naive"),
    ),
    metrics="seqssm_forecasting.metrics:METRICS",
    export="seqssm_forecasting.export:export",
    data_argument="file",
    own_preset="smamba",
    windows=True,
    migrations=(
        Added("data.calendar", "regular"),
        Added("data.columns", None),
        Added("data.text_columns", "error"),
        Added("data.skip_rows", 0),
        Added("data.comment", None),
        Added("data.future_missing", "error"),
        Added("model.window", 25),
        Added("model.blend", False),
        Added("data.windows", None),
        Added("data.hist_columns", None),
        Added("data.values", "real"),
        Added("data.clip", None),
        Added("data.window", None),
        Added("data.window_step", None),
        Added("data.holidays", None),
        Added("model.holidays", None),
    ),
    of_data_set=tuple(OfDataSet(name) for name in ("split", "marks", "season", "target", "irregular_dates")),
    effects=(
        Effect("data.split", without=("data.val_from",)),
        Effect("data.window_step", needs=("data.windows",)),
        Effect("data.future_missing", needs=("data.future_columns", "data.holidays")),
        Effect("data.id_column", needs=("data.layout auto|long",)),
        Effect("data.value_column", needs=("data.layout auto|long",)),
    ),
    predict_options=PREDICT_OPTIONS,
    data_sets=DATA_SETS,
)
