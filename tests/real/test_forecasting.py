"""Forecasting on the real files: known facts about them, exact naive errors, broken files, the benchmark's commands."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seqssm_forecasting import DOMAIN, baselines, files
from seqssm_forecasting.data import ForecastingData
from seqssm_forecasting.tidy import Policies, tidy

from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.files.datasets import plain_hash, search

pytestmark = pytest.mark.skipif(not os.environ.get("SEQSSM_DATA"), reason="SEQSSM_DATA is not set")

SETS = {
    "etth1": {"split": "ett_hour"},
    "ettm1": {"split": "ett_minute"},
    "weather": {"split": "70/10/20", "irregular_dates": "keep"},
}


def find(path):
    found = search("forecasting", path)
    if found is None:
        pytest.skip(f"{path} is not in SEQSSM_DATA")
    return found


@pytest.fixture(scope="module")
def series():
    """Read each file once."""
    kept = {}

    def read(name):
        path = next(data_set.path for data_set in DOMAIN.data_sets if data_set.name == name)
        if name not in kept:
            (kept[name],) = files.read_series(find(path))
        return kept[name]

    return read


@pytest.fixture
def data(series, monkeypatch):
    """The data module of a benchmark set."""

    def make(name, horizon=96):
        monkeypatch.setattr("seqssm_forecasting.data.read_for_model", lambda path, reading, fitted: [series(name)])
        module = ForecastingData(dataset=name, horizon=horizon, marks="hour", target="OT", **SETS[name])
        module.setup("fit")
        return module

    return make


@pytest.mark.parametrize("name", list(SETS))
def test_the_registry_lists_the_file(name):
    data_set = next(data_set for data_set in DOMAIN.data_sets if data_set.name == name)
    assert plain_hash(find(data_set.path)) == data_set.sha256


WINDOWS = {
    "etth1": {96: (8449, 2785, 2785), 192: (8353, 2689, 2689), 336: (8209, 2545, 2545), 720: (7825, 2161, 2161)},
    "ettm1": {
        96: (34_369, 11_425, 11_425),
        192: (34_273, 11_329, 11_329),
        336: (34_129, 11_185, 11_185),
        720: (33_745, 10_801, 10_801),
    },
    "weather": {
        96: (36_696, 5175, 10_444),
        192: (36_600, 5079, 10_348),
        336: (36_456, 4935, 10_204),
        720: (36_072, 4551, 9820),
    },
}
NAIVE = {  # (last value MSE, MAE, seasonal MSE, MAE) of all test windows, scaled
    "etth1": {
        96: (1.2944, 0.7132, 0.5122, 0.4333),
        192: (1.3249, 0.7331, 0.5808, 0.4692),
        336: (1.3299, 0.7460, 0.6499, 0.5008),
        720: (1.3351, 0.7550, 0.6554, 0.5141),
    },
    "ettm1": {
        96: (1.2139, 0.6648, 0.4227, 0.3865),
        192: (1.2612, 0.6904, 0.4631, 0.4057),
        336: (1.2866, 0.7072, 0.4961, 0.4258),
        720: (1.3223, 0.7295, 0.5739, 0.4645),
    },
    "weather": {
        96: (0.2591, 0.2542, 0.3167, 0.2880),
        192: (0.3092, 0.2917, 0.3426, 0.3049),
        336: (0.3764, 0.3377, 0.3827, 0.3309),
        720: (0.4652, 0.3935, 0.4431, 0.3701),
    },
}


@pytest.mark.parametrize("horizon", [96, *(pytest.param(own, marks=pytest.mark.long) for own in (192, 336, 720))])
@pytest.mark.parametrize("name", SETS)
def test_windows_and_naive_errors_have_known_values(data, name, horizon):
    module = data(name, horizon)
    assert (len(module.train_set), len(module.val_set), len(module.test_set)) == WINDOWS[name][horizon]
    if horizon in (336, 720) and name != "etth1":
        return  # the counts are sufficient; the sums would take half a minute
    last, seasonal = baselines.test_last_value(module), baselines.test_seasonal_naive(module)
    found = (last["mse"], last["mae"], seasonal["mse"], seasonal["mae"])
    assert found == pytest.approx(NAIVE[name][horizon], abs=5.1e-5)


def test_the_scaler_of_etth1(data):
    module = data("etth1")
    assert module.series.columns == ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    mean = [7.9377, 2.0210, 5.0798, 0.7462, 2.7818, 0.7885, 17.1283]
    std = [5.8127, 2.0901, 5.5188, 1.9264, 1.0235, 0.6302, 9.1765]
    np.testing.assert_allclose(module.mean.numpy(), mean, atol=5.1e-5)
    np.testing.assert_allclose(module.std.numpy(), std, atol=5.1e-5)


def test_irregularities_of_weather(data, capsys):
    module = data("weather")
    assert "irregular dates kept: 1 duplicate, 1 gaps" in capsys.readouterr().out
    assert (module.freq, module.season) == ("10min", 144)
    std = dict(zip(module.series.columns, module.std.tolist()))
    assert std["wv (m/s)"] == pytest.approx(52.10, abs=0.01), "the published scaler counts the cells of -9999"
    with pytest.raises(InputError, match=r"line 19046, column date.*2020-05-12 06:00:00 is also on line 19045 .*equal"):
        tidy([module.series], Policies())
    found = tidy([module.series], Policies(duplicates="equal", gaps="fill", missing="mask", sentinels=(-9999.0,)))
    assert found.notes[0].startswith("81 cells of -9999 read as missing (wv (m/s) 1, max. PAR")
    assert found.notes[1:3] == ["1 duplicate date: one kept", "9 missing dates in 1 place filled with empty rows"]


# -- broken files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """The broken files, rebuilt from the real one, and known facts about them."""
    folder = tmp_path_factory.mktemp("edge")
    script, source = find("edge_cases/make_edge_cases.py"), find("ETTh1.csv")
    subprocess.run([sys.executable, str(script), str(source), str(folder)], check=True, capture_output=True)
    return folder, json.loads((folder / "expected.json").read_text())


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        (
            "missing_timestamps.csv",
            "line 39, column date",
            r"2016-07-02 14:00:00 comes after .*: 36 rows are missing in 3 places.*--data\.gaps fill",
        ),
        ("nan_cells.csv", "line 12, column HUFL", r"no value \(58 such cells in 4 of the columns\).*--data\.missing"),
        (
            "duplicate_timestamps.csv",
            "line 43, column date",
            r"2016-07-02 16:00:00 is also on line 42 \(4 duplicate dates",
        ),
        ("non_numeric_cell.csv", "line 79, column MUFL", "'error' is not a number"),
        ("unsorted_dates.csv", "line", r"sort the file by date, or --data\.unsorted sort"),
        ("long_format_ragged.csv", "2016-07-13 12:00:00, column OT", r"no value \(10 such cells in 1 of the columns\)"),
        ("bad_dates.csv", "line 7, column date", "'not a date' is not a date"),
    ],
)
def test_broken_files_are_one_line(edge, name, place, words):
    folder, _ = edge
    with pytest.raises(InputError, match=words) as caught:
        tidy(files.read_series(folder / name), Policies())
    assert (caught.value.place or "").startswith(place or "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "bom.csv",
        "slash_dates.csv",
        "too_short.csv",
        "constant_column.csv",
        "semicolon.csv",
        "semicolon_decimal_comma.csv",
        "crlf_tab.csv",
    ],
)
def test_odd_files_that_are_read(edge, series, name):
    folder, expected = edge
    found = tidy(files.read_series(folder / name), Policies())
    assert len(found.series) == expected[name]["data_rows"]
    assert found.freq == expected[name]["freq"]
    source = series("etth1")
    assert list(found.series.dates) == list(source.dates[: len(found.series)])
    if name != "constant_column.csv":
        np.testing.assert_array_equal(found.series.values, source.values[: len(found.series)])


def test_a_long_file_equals_the_wide_one(edge, series):
    folder, expected = edge
    found, source = tidy(files.read_series(folder / "long_format.csv"), Policies()), series("etth1")
    assert len(found.series.columns) == expected["long_format.csv"]["series"]
    assert len(found.series) == expected["long_format.csv"]["rows_per_series"]
    np.testing.assert_array_equal(found.series.values, source.only(found.series.columns).values[:2000])


def test_policies_give_known_results(edge, series):
    folder, expected = edge
    source = series("etth1")

    def run(name, **policies):
        return tidy(files.read_series(folder / name), Policies(**policies))

    found, known = run("missing_timestamps.csv", gaps="fill", missing="mask"), expected["missing_timestamps.csv"]
    absent = np.flatnonzero(np.isnan(found.series.values).all(1))
    assert [str(found.series.dates[row]) for row in absent] == known["missing_dates"]
    assert len(found.series) == known["grid_rows"]
    kept = np.setdiff1d(np.arange(400), absent)
    np.testing.assert_array_equal(found.series.values[kept], source.values[kept])

    found, known = run("nan_cells.csv", missing="mask"), expected["nan_cells.csv"]
    counts = dict(zip(found.series.columns, np.isnan(found.series.values).sum(0).tolist()))
    assert counts == known["nan_per_column"]

    found = run("duplicate_timestamps.csv", duplicates="first")
    assert len(found.series) == expected["duplicate_timestamps.csv"]["unique_dates"]
    with pytest.raises(InputError, match="1 of them with other values") as caught:
        run("duplicate_timestamps.csv", duplicates="equal")
    assert expected["duplicate_timestamps.csv"]["conflicting_duplicates"][0] in caught.value.message

    found = run("unsorted_dates.csv", unsorted="sort")
    np.testing.assert_array_equal(found.series.values, source.values[:300])

    known = expected["sentinel_9999.csv"]
    assert "OT contains -9999 11 times" in run("sentinel_9999.csv").notes[0]
    found = run("sentinel_9999.csv", sentinels=(-9999.0,), missing="mask")
    column = found.series.columns.index(known["sentinel_column"])
    assert np.flatnonzero(np.isnan(found.series.values[:, column])).tolist() == known["sentinel_rows"]

    known = expected["long_format_ragged.csv"]
    found = run("long_format_ragged.csv", ragged="mask", missing="mask", unsorted="sort")
    for name, rows in known["rows_per_series"].items():
        own = ~np.isnan(found.series.values[:, found.series.columns.index(name)])
        assert own.sum() == rows
        dates = found.series.dates[own]
        assert (str(dates[0]), str(dates[-1])) == (known["first_date"][name], known["last_date"][name])
    cut = run("long_format_ragged.csv", ragged="intersect", missing="forward", unsorted="sort")
    assert str(cut.series.dates[0]) == max(known["first_date"].values())
    assert str(cut.series.dates[-1]) == min(known["last_date"].values())


@pytest.mark.long
def test_damage_to_a_real_file_never_gives_a_traceback(edge, tmp_path):
    """1,000 byte flips and truncations: a table, or an error of one line."""
    generator = random.Random(7)
    good = (edge[0] / "bom.csv").read_bytes()
    policies = Policies("sort", "last", "fill", "mask", "mask")
    refused = []
    for number in range(1000):
        start = generator.randrange(len(good) - 6000) if number % 2 else 0
        rows = good[good.index(b"\n", start) + 1 :][:6000]
        damaged = bytearray(good[: good.index(b"\n") + 1] + rows[: rows.rindex(b"\n") + 1])
        if generator.random() < 0.3:
            damaged = damaged[: generator.randint(0, len(damaged))]
        for _ in range(generator.randint(1, 4)):
            if damaged:
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path = tmp_path / "damaged.csv"
        path.write_bytes(damaged)
        try:
            tidy(files.read_series(path), policies)
        except InputError as error:
            refused.append(str(error))
    assert 100 < len(refused) < 1000
    assert not any("\n" in line for line in refused)


def test_too_short_to_train_and_other_columns(edge, series):
    folder, expected = edge
    with pytest.raises(InputError, match="50 rows are too few"):
        ForecastingData(file=str(folder / "too_short.csv")).setup()
    (other,) = files.read_series(folder / "other_column_order.csv")
    assert other.columns == expected["other_column_order.csv"]["columns"]
    with pytest.raises(InputError, match=r"missing: LUFL"):
        other.reordered(series("etth1").columns)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("long_format_ragged.csv", {"ragged": "mask", "missing": "mask", "unsorted": "sort"}),
        ("nan_cells.csv", {"missing": "mask"}),
        ("missing_timestamps.csv", {"gaps": "fill", "missing": "mask"}),
        ("constant_column.csv", {}),
    ],
)
def test_edge_files_train_and_predict(edge, tmp_path, monkeypatch, name, options):
    """fit, test and predict with missing values give finite figures; predict follows the policies of the fit."""
    folder, _ = edge
    monkeypatch.chdir(tmp_path)
    words = [part for key, value in options.items() for part in (f"--data.{key}", value)]
    small = ["--data.lookback", "64", "--data.horizon", "6", "--model.d_model", "16", "--trainer.max_epochs", "1"]
    fit = ["forecasting", "fit", "--config", "smamba", "--data.file", str(folder / name), *words, *small]
    assert main([*fit, "--output", "run", "--trainer.accelerator", "cpu"]) == 0
    assert main(["forecasting", "test", "run"]) == 0
    test = json.loads(Path("run/metrics.json").read_text())["test"]
    assert all(np.isfinite(row["mse"]) for row in test["tables"][0]["rows"])
    assert main(["predict", "run/best.ckpt", str(folder / name), "--output", "f.csv", "--level", "80"]) == 0
    table = pd.read_csv("f.csv")
    assert np.isfinite(table[["yhat", "yhat-lo-80", "yhat-hi-80"]]).all().all()


# -- the benchmark's commands ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_commands_of_the_readme_on_etth1(tmp_path, monkeypatch):
    """fit, test and predict with the preset, a narrow network and few batches; the naive rows are exact."""
    find("ETTh1.csv")
    monkeypatch.chdir(tmp_path)
    narrow = ["--model.d_model", "32", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "60"]
    narrow += ["--model.learning_rate", "2e-3", "--trainer.accelerator", "cpu"]
    assert main(["forecasting", "fit", "--config", "etth1_96", "--output", "run", *narrow]) == 0
    assert main(["forecasting", "test", "run"]) == 0
    test = json.loads(Path("run/metrics.json").read_text())["test"]
    models = {row["model"]: row for row in test["tables"][0]["rows"]}
    assert "2785 windows" in test["tables"][0]["title"]
    assert models["last value"]["mse"] == pytest.approx(1.2944, abs=5.1e-5)
    assert models["seasonal naive (24)"]["mae"] == pytest.approx(0.4333, abs=5.1e-5)
    assert 0.37 < models["dlinear"]["mse"] < 0.40, "DLinear is trained: published .386"
    assert models["smamba"]["mse"] < models["seasonal naive (24)"]["mse"]
    words = ["predict", "run/best.ckpt", str(find("ETTh1.csv")), "--output", "forecast.csv", "--figures", "figs"]
    assert main([*words, "--accelerator", "cpu"]) == 0
    table = pd.read_csv("forecast.csv")
    assert len(table) == 7 * 96
    assert (table["ds"].iloc[0], table["ds"].iloc[95]) == ("2018-06-26 20:00:00", "2018-06-30 19:00:00")
    assert len(list(Path("figs").glob("*.png"))) == 8
