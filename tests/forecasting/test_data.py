"""Borders, scaler, windows, gathered batches, filled gaps; rejected options and files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_forecasting import calendar, simulate
from seqssm_forecasting.data import ForecastingData
from seqssm_forecasting.tidy import filled
from seqssm_forecasting.windows import Windows, borders

from seqssm.errors import InputError


@pytest.mark.parametrize(
    ("rows", "split", "parts"),
    [
        (17_420, "ett_hour", ((0, 8640), (8544, 11_520), (11_424, 14_400))),
        (69_680, "ett_minute", ((0, 34_560), (34_464, 46_080), (45_984, 57_600))),
        (52_696, "70/10/20", ((0, 36_887), (36_791, 42_157), (42_061, 52_696))),
        (52_560, "70/10/20", ((0, 36_792), (36_696, 42_048), (41_952, 52_560))),
        (26_208, "60/20/20", ((0, 15_724), (15_724, 20_966), (20_966, 26_208))),
    ],
)
def test_borders_of_the_benchmarks(rows, split, parts):
    assert tuple(borders(rows, 96, split).values()) == parts


def test_windows_cover_the_split_with_stride_1():
    values = torch.arange(20.0)[:, None] * torch.tensor([1.0, 100.0])
    marks = torch.arange(20.0)[:, None] + 0.5
    windows = Windows(values, marks, (5, 18), lookback=4, horizon=3, history=6)
    assert len(windows) == 13 - 4 - 3 + 1
    batch = windows.__getitems__([0, 6])
    assert batch["index"].tolist() == [0, 6]
    assert batch["x"].shape == (2, 2, 4)
    assert batch["x"][0].tolist() == [[5, 6, 7, 8], [500, 600, 700, 800]]
    assert batch["y"][1].tolist() == [[15, 16, 17], [1500, 1600, 1700]]
    assert batch["marks"][1].tolist() == [[11.5, 12.5, 13.5, 14.5]]
    assert batch["past"][0, 0].tolist() == [3, 4, 5, 6, 7, 8], "look-backs reach before the split"
    one = windows[6]
    assert torch.equal(one["x"], batch["x"][1:])
    assert len(Windows(values, marks, (0, 6), 4, 3)) == 0


def test_setup_scales_by_the_train_rows_and_moves_the_target(tmp_path):
    frame = simulate.series(300, 1)
    frame.to_csv(tmp_path / "x.csv", index=False)
    data = ForecastingData(file=str(tmp_path / "x.csv"), lookback=24, horizon=6, target="driver")
    data.setup("fit")
    assert data.series.columns == [*frame.columns[2:], "driver"]
    train = frame[data.series.columns].to_numpy()[:210]
    np.testing.assert_allclose(data.mean.numpy(), train.mean(0))
    np.testing.assert_allclose(data.std.numpy(), train.std(0))
    assert (data.freq, data.season, data.kind) == ("h", 24, "hour")
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [181, 25, 55]
    first = data.test_set[0]
    scaled = ((frame[data.series.columns].to_numpy() - train.mean(0)) / train.std(0))[216:240].T
    np.testing.assert_allclose(first["x"][0].numpy(), scaled, atol=1e-5)
    expected = calendar.marks(pd.DatetimeIndex(frame["date"][216:240]), "hour").T
    np.testing.assert_allclose(first["marks"][0].numpy(), expected, atol=1e-6)


def test_loaders_return_whole_batches_and_drop_only_train_windows(my_csv):
    data = ForecastingData(file=str(my_csv), lookback=24, horizon=6, batch_size=32, seed=3)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_set) // 32
    seen = torch.cat([batch["index"] for batch in batches])
    assert len(seen.unique()) == len(seen) == 32 * len(batches)
    assert seen.tolist() != sorted(seen.tolist())
    for loader, windows in ((data.val_dataloader(), data.val_set), (data.test_dataloader(), data.test_set)):
        assert torch.cat([batch["index"] for batch in loader]).tolist() == list(range(len(windows)))
    assert batches[0]["x"].shape == (32, 4, 24)


def test_a_constant_column_is_scaled_by_one_and_reported(tmp_path, capsys):
    frame = simulate.series(300, 1).assign(flat=4.5)
    frame.to_csv(tmp_path / "x.csv", index=False)
    data = ForecastingData(file=str(tmp_path / "x.csv"), lookback=24, horizon=6)
    data.setup("fit")
    assert data.std[-1] == 1
    assert torch.equal(data.train_set[0]["x"][0, -1], torch.zeros(24))
    out = capsys.readouterr().out
    assert "constant in the train split, scaled by 1: flat" in out
    assert "300 rows, 5 variates, every 1 hour" in out


def test_pems_and_solar_have_no_marks_and_their_gaps_are_filled(tmp_path, capsys):
    generator = np.random.default_rng(2)
    flow = generator.normal(size=(300, 3, 1))
    flow[0, 0], flow[100:103, 1] = np.nan, np.nan
    np.savez(tmp_path / "p.npz", data=flow)
    data = ForecastingData(file=str(tmp_path / "p.npz"), lookback=24, horizon=6, split="60/20/20", season=48)
    data.setup("fit")
    assert "4 missing cells filled" in capsys.readouterr().out
    assert "marks" not in data.train_set[0]
    assert data.test_set[0]["past"].shape == (1, 3, 48)
    train = flow[:180, :, 0]
    assert data.mean.numpy() == pytest.approx(np.nanmean(train, 0))
    window = data.train_set[99]["x"][0]
    assert window[1, 1] == window[1, 0] == window[1, 3] != window[1, 4]
    with pytest.raises(InputError, match="has no dates"):
        ForecastingData(file=str(tmp_path / "p.npz"), lookback=24, horizon=6, marks="hour").setup()


def test_fill():
    table = np.array([[np.nan, 1.0], [2.0, np.nan], [np.nan, np.nan], [3.0, 5.0]])
    np.testing.assert_array_equal(filled(table, "x.npz"), [[2, 1], [2, 1], [2, 1], [3, 5]])
    np.testing.assert_allclose(filled(table, "x.npz", "linear"), [[2, 1], [2, 1 + 4 / 3], [2.5, 1 + 8 / 3], [3, 5]])
    with pytest.raises(InputError, match="column 2 contains no value"):
        filled(np.array([[1.0, np.nan]]), "x.npz")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"file": "a.csv", "dataset": "etth1"}, "give either"),
        ({"file": "a.csv", "horizon": 0}, "--data.horizon 0"),
        ({"file": "a.csv", "season": 0}, "--data.season 0"),
    ],
)
def test_refused_arguments(given, words):
    with pytest.raises(InputError, match=words):
        ForecastingData(**given)


def test_refused_files(my_csv, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQSSM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for given, words in (
        ({"dataset": "etth9"}, "no such data set; did you mean etth"),
        ({"dataset": "etth1"}, "seqssm data get etth1"),
        ({}, "give either"),
        ({"file": str(my_csv), "target": "price"}, "no column price"),
        ({"file": str(my_csv), "lookback": 200}, r"400 rows are too few.*validation|400 rows are too few.*val"),
        ({"file": str(my_csv), "split": "ett_hour"}, "at least 14400 rows are needed"),
        ({"file": str(my_csv), "freq": "15min"}, "expected every 15 minutes"),
    ):
        with pytest.raises(InputError, match=words):
            ForecastingData(**given).setup()


def test_the_stated_minimum_number_of_rows_is_exact(tmp_path):
    path = tmp_path / "x.csv"
    simulate.series(60, 1).to_csv(path, index=False)
    with pytest.raises(InputError, match="rows are needed") as caught:
        ForecastingData(file=str(path), lookback=24, horizon=6, split="60/20/20").setup()
    least = int(caught.value.message.split("at least ")[1].split()[0])
    for rows, fits in ((least, True), (least - 1, False)):
        counts = [b - a >= 30 for a, b in borders(rows, 24, "60/20/20").values()]
        assert all(counts) == fits


def test_a_seasonal_baseline_that_lacks_history_is_omitted_and_reported(tmp_path, capsys):
    path = tmp_path / "x.csv"
    simulate.series(300, 1).to_csv(path, index=False)
    data = ForecastingData(file=str(path), lookback=24, horizon=6, season=250)
    data.setup("fit")
    assert "no seasonal baseline: the history is shorter than the period of 250 steps" in capsys.readouterr().out
    assert data.season is None
    assert "past" not in data.test_set[0]
