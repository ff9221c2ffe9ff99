"""Kinds and bounds of outputs, quantiles, sample paths and historical covariates."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_forecasting import simulate
from seqssm_forecasting.covariates import historical
from seqssm_forecasting.intervals import paths, quantiles
from seqssm_forecasting.limits import Limits
from seqssm_forecasting.spread import Spread

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.training import checkpoint, ensemble

from .conftest import SMALL


def test_bounds_of_all_series_and_of_one():
    low, high = Limits("nonnegative", ("b=:5", ":9")).bounds(["a", "b", "c"])
    assert low.tolist() == [0, 0, 0]
    assert high.tolist() == [9, 5, 9]
    low, high = Limits("real", ("a=-1:",)).bounds(["a", "b"])
    assert low.tolist() == [-1, -np.inf]
    assert high.tolist() == [np.inf, np.inf]
    for rule in ("5", "5:1", "a=x:1", "1:1", "a:b"):
        with pytest.raises(InputError, match="expected LOW:HIGH or NAME=LOW:HIGH"):
            Limits("real", (rule,))
    with pytest.raises(InputError, match="no such series"):
        Limits("real", ("load=0:",)).bounds(["a"])
    with pytest.raises(InputError, match="--clip: a has two rules"):  # the first one was ignored
        Limits("real", ("a=0:", "a=:5"))
    with pytest.raises(InputError, match="--clip: all series have two rules"):
        Limits("real", ("0:", "b=1:2", ":5"))
    assert Limits.of({"clip": ["a=0:", "a=:5"]}).rules == ("a=:5",)  # of a checkpoint of an earlier version


def test_a_column_of_a_long_table_is_not_a_series():
    with pytest.raises(InputError, match=r"hist_columns temp: no such series; the series are north, south \(in a long"):
        historical(["temp"], ["north", "south"], "south")


def test_integers_are_rounded_and_intervals_outwards():
    values = np.array([2.5001, -1.0, 3.2, np.nan])[None, None, None].repeat(3, 1)  # (1, 3 parts, 1, 4)
    found = Limits("integer").apply(values, ["a"], [0, -1, 1], ["a"])
    np.testing.assert_array_equal(found[0, :, 0], [[3, 0, 3, np.nan], [2, 0, 3, np.nan], [3, 0, 4, np.nan]])
    found = Limits("integer", ("0.5:2.7",)).apply(values, ["a"], [0, -1, 1], ["a"])
    np.testing.assert_array_equal(found[0, :, 0], [[2, 1, 2, np.nan]] * 3)


def test_scaled_clamps_are_the_bounds_in_units():
    mean, std = torch.tensor([10.0, 4.0]), torch.tensor([2.0, 8.0])
    scaled = 20 * torch.randn(50, 2, 3, 5)
    found = Limits("nonnegative", ("b=:5",)).clamp(scaled, ["a", "b"], mean, std)
    units = scaled * std[:, None, None] + mean[:, None, None]
    expected = torch.stack([units[:, 0].clamp(0), units[:, 1].clamp(0, 5)], 1)
    torch.testing.assert_close(found * std[:, None, None] + mean[:, None, None], expected, rtol=1e-4, atol=1e-4)
    assert Limits().clamp(scaled, ["a", "b"], mean, std) is scaled


def test_paths_are_errors_of_whole_windows():
    errors = torch.randn(500, 2, 4)
    errors[::3, 1, 2] = torch.nan
    found = paths(errors)["paths"]
    assert found.shape == (200, 2, 4)
    whole = {tuple(one.flatten().tolist()) for one in -errors[~errors.isnan().flatten(1).any(1)]}
    assert all(tuple(one.flatten().tolist()) in whole for one in found)
    assert paths(errors[:25]) == {}
    assert paths(torch.randn(30, 300, 300)) == {}, "too large for a checkpoint"


def calibrated(errors):
    """The checkpoint's entry of a calibration with these scaled errors, (windows, N, T)."""
    knots, counts = quantiles(errors.abs())
    return {"knots": knots, "count": int(counts.min()), "counts": counts.min(1).values, **paths(errors)}


def test_a_checkpoint_without_paths_names_the_cause():
    """Training the model again, as was advised, changed nothing."""
    gaps = torch.randn(40, 2, 4)
    gaps[:15, 0, 0] = gaps[15:30, 1, 0] = torch.nan
    for errors, words in (
        (torch.randn(18, 1, 4), "the validation split has 18 windows with values that vary, and paths need 20; train"),
        (torch.randn(8, 2, 4), "a series of the validation split has 8 windows"),
        (gaps, "paths need 20 validation windows in which every series has all values"),
        (torch.randn(30, 300, 300), "more than 50000 values per window (300 series, 300 steps)"),
    ):
        with pytest.raises(InputError) as caught:
            Spread({"intervals": calibrated(errors)}, [], samples=2)
        assert words in caught.value.message
        assert ("--data.split, --data.val_from" in caught.value.message) == (len(errors[0, 0]) == 4)
    assert Spread({"intervals": calibrated(torch.randn(20, 2, 4))}, [], samples=2).samples == 2
    with pytest.raises(InputError, match="a model of quantiles has no sample paths"):
        Spread({"quantiles": [0.1, 0.5, 0.9]}, [], samples=2)
    with pytest.raises(InputError, match="no errors of validation windows"):
        Spread({}, [], samples=2)


def test_quantiles_and_samples_of_a_forecast(trained, my_csv):
    model = seqssm.load(trained)
    table = model.predict(my_csv, level=80, quantiles=[0.9, 0.1, 0.5], samples=200)
    np.testing.assert_allclose(table["yhat-q0.1"], table["yhat-lo-80"])
    np.testing.assert_allclose(table["yhat-q0.9"], table["yhat-hi-80"])
    np.testing.assert_allclose(table["yhat-q0.5"], table["yhat"])
    samples = table.filter(like="yhat-sample-").to_numpy()
    assert samples.shape == (24, 200)
    kept = model.summary["intervals"]["paths"]
    error = (samples - table["yhat"].to_numpy()[:, None]).reshape(4, 6, 200)
    size = (error / error[:, :1]).transpose(2, 0, 1)  # scales cancel: each path is one of the kept ones
    known = (kept / kept[:, :, :1]).numpy()
    assert all(np.isclose(known, one, rtol=1e-3).all((1, 2)).any() for one in size[:20])
    again = model.predict(my_csv, samples=3)
    np.testing.assert_array_equal(again["yhat-sample-3"], model.predict(my_csv, samples=3)["yhat-sample-3"])
    assert not np.allclose(again["yhat-sample-3"], model.predict(my_csv, samples=3, sample_seed=1)["yhat-sample-3"])
    with pytest.raises(InputError, match=r"quantiles 1\.5: must be in \(0, 1\)"):
        model.predict(my_csv, quantiles=[1.5])


def test_predict_replaces_the_bounds(trained, my_csv, tmp_path):
    output = tmp_path / "out.csv"
    words = ["predict", str(trained), str(my_csv), "--output", str(output), "--level", "90", "--accelerator", "cpu"]
    assert main([*words, "--clip", ":21", "driver=19:20"]) == 0
    table = pd.read_csv(output).set_index("unique_id")
    assert table[["yhat", "yhat-lo-90", "yhat-hi-90"]].max().max() <= 21
    assert table.loc["driver", "yhat-lo-90"].min() >= 19
    assert table.loc["driver", "yhat-hi-90"].max() <= 20


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """Counts of two shops, with the temperature as the last column."""
    path = tmp_path_factory.mktemp("counts") / "counts.csv"
    frame = simulate.series(300, 4)
    generator = np.random.default_rng(0)
    table = frame[["date"]].assign(
        north=generator.poisson(np.clip(frame["driver"] - 19, 0, None)),
        south=generator.poisson(np.clip(frame["follower_6h"] - 24, 0, None)),
        temperature=frame["follower_12h"],
    )
    table.to_csv(path, index=False)
    return path


def _require_whole_numbers_of_an_ensemble(run, counts, tmp_path):
    """The mean of whole numbers is rounded as each of them was; intervals outwards."""
    content = torch.load(run / "best.ckpt", weights_only=True)
    other = shutil.copytree(run, tmp_path / "other")
    generator = torch.Generator().manual_seed(1)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value += 0.3 * torch.randn(value.shape, generator=generator)
    torch.save(content, other / "best.ckpt")
    members = [seqssm.load(one).predict(counts, level=80) for one in (run, other)]
    means = np.mean([one.filter(like="yhat").to_numpy() for one in members], 0)
    assert (means != np.rint(means)).any()
    for wide in (False, True):
        found = seqssm.load(ensemble.combine([run, other], tmp_path / f"{wide}.ckpt")).predict(
            counts, level=80, wide=wide, figures=tmp_path / "figures"
        )
        names = ("north", "south") if wide else ("yhat",)
        columns = [f"{name}{end}" for name in names for end in ("", "-lo-80", "-hi-80")]
        values = found[columns].to_numpy()
        assert (values == np.rint(values)).all()
        if not wide:
            for column, rounded in zip(columns, (np.rint, np.floor, np.ceil)):
                mean = np.mean([one[column] for one in members], 0)
                np.testing.assert_array_equal(found[column], rounded(mean))


def test_counts_with_a_historical_covariate(counts, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["forecasting", "fit", "--config", "smamba", "--data.file", str(counts), *SMALL, "--output", str(run)]
    words += ["--data.hist_columns", "[temperature]", "--data.values", "integer", "--data.clip", "[north=0:3]"]
    assert main(words) == 0
    assert "read but not forecast: temperature" in capsys.readouterr().out
    assert main(["forecasting", "test", str(run)]) == 0
    assert "temperature" not in capsys.readouterr().out.split("By variate")[1]
    summary = checkpoint.read_checkpoint(run)["seqssm"]["data"]
    assert summary["columns"] == ["temperature", "north", "south"]
    assert summary["limits"] == {"values": "integer", "clip": ["north=0:3"]}
    table = seqssm.load(run).predict(counts, level=80, samples=5)
    assert list(table["unique_id"].unique()) == ["north", "south"]
    values = table.filter(like="yhat").to_numpy()
    assert (values == np.rint(values)).all()
    assert values.min() >= 0
    assert table[table["unique_id"] == "north"].filter(like="yhat").to_numpy().max() <= 3
    _require_whole_numbers_of_an_ensemble(run, counts, tmp_path)
    capsys.readouterr()
    other = [*words[:-6], "--data.hist_columns", "[temperatur]", "--overwrite"]
    assert main(other) == 2
    assert "did you mean temperature" in capsys.readouterr().err
