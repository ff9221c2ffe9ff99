"""Forecasts beyond the trained horizon, forecasts of logarithms, holidays, and the page with a selector of series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_forecasting import holidays, interactive, recursion
from seqssm_forecasting.figures import Panel, TimeAxis
from seqssm_forecasting.limits import Limits
from seqssm_forecasting.metrics import Errors, by_cell, by_variate
from seqssm_forecasting.steps import parse

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError

from .conftest import SMALL

LOOK = """(async () => {
  const select = document.getElementById("series"), filter = document.getElementById("filter");
  const later = () => new Promise(done => setTimeout(done, 100));
  const traces = () => document.getElementById("chart").data.map(one => one.name);
  const found = { names: [...select.options].map(one => one.text), first: traces(), told: [told()] };
  function told() { return document.getElementById("told").textContent; }
  document.getElementById("after").click();
  await later();
  found.told.push(told());
  filter.value = select.options[0].text;
  filter.dispatchEvent(new Event("input"));
  await later();
  found.filtered = document.getElementById("count").textContent;
  found.told.push(told());
  found.wide = document.documentElement.scrollWidth;
  found.drawn = document.querySelectorAll("#chart .scatterlayer .trace").length;
  return found;
})()"""


# -- recursion ---------------------------------------------------------------------------------------------------------


def test_blocks_end_at_the_horizon():
    assert recursion.starts(4, 6) == [0]
    assert recursion.starts(6, 6) == [0]
    assert recursion.starts(7, 6) == [0, 1]
    assert recursion.starts(20, 6) == [0, 6, 12, 14]


def test_intervals_of_blocks_widen_like_a_random_walk():
    steps = np.arange(1, 5)
    half = np.sqrt(steps)[None, None, None]  # a random walk: (1, 1, 1, T)
    rng = np.random.default_rng(0)
    found = None
    for start in recursion.starts(11, 4):
        path = rng.normal(size=(1, 1, 1, 4))
        block = np.concatenate([np.full((1, 1, 1, 4), 7.0), 7 - half, 7 + half, 7 + path], 1)
        if found is None:
            found = block
        else:
            grown = recursion.joined(found, block, start, samples=1)
            np.testing.assert_allclose(grown[..., : found.shape[-1]], found)  # earlier steps stay
            expected = found[0, 3, 0, start - 1] + path[0, 0, 0, found.shape[-1] - start :]
            np.testing.assert_allclose(grown[0, 3, 0, found.shape[-1] :], expected)
            found = grown
    np.testing.assert_allclose(found[0, 0, 0], 7)
    np.testing.assert_allclose(found[0, 2, 0] - 7, np.sqrt(np.arange(1, 12)))
    np.testing.assert_allclose(7 - found[0, 1, 0], np.sqrt(np.arange(1, 12)))


def test_a_longer_horizon_continues_from_its_own_forecasts(trained, my_csv, tmp_path, capsys):
    model = seqssm.load(trained, accelerator="cpu")
    frame = pd.read_csv(my_csv)
    short = model.predict(frame, level=80)
    long = model.predict(frame, horizon=15, level=80, samples=2)
    assert "steps 7 to 15 are forecast from earlier forecasts (column recursive)" in capsys.readouterr().err
    assert len(long) == 15 * 4
    assert long.groupby("unique_id")["recursive"].apply(list).iloc[0] == [False] * 6 + [True] * 9
    kept = long[~long["recursive"]].reset_index(drop=True)
    for name in ("yhat", "yhat-lo-80", "yhat-hi-80"):
        np.testing.assert_allclose(kept[name], short[name], rtol=1e-5)
    fed = short.pivot(index="ds", columns="unique_id", values="yhat")[frame.columns[1:]].reset_index(names="date")
    fed.columns.name = None
    once = model.predict(
        pd.concat([frame.assign(date=pd.to_datetime(frame["date"])), fed.assign(date=pd.to_datetime(fed["date"]))])
    )
    second = long.groupby("unique_id", sort=False).nth(slice(6, 12))
    np.testing.assert_allclose(second["yhat"], once["yhat"], rtol=1e-3, atol=1e-4)
    width = (long["yhat-hi-80"] - long["yhat-lo-80"]).to_numpy().reshape(4, 15)
    assert (width[:, 6:] >= width[:, 5:6] - 1e-9).all()
    assert np.isfinite(long.filter(like="sample").to_numpy()).all()
    tested = model.predict(frame, horizon=10, backtest=3)
    assert tested.groupby(["unique_id", "cutoff"]).size().eq(10).all()
    assert tested["y"].notna().all()


def test_series_that_are_only_read_end_the_recursion(my_csv, tmp_path):
    model = seqssm.fit(
        "forecasting",
        data={"file": str(my_csv), "lookback": 24, "horizon": 6, "hist_columns": [pd.read_csv(my_csv).columns[1]]},
        model={"blend": False, "d_model": 8, "d_state": 2, "layers": 1},
        trainer={"max_epochs": 1, "accelerator": "cpu", "limit_train_batches": 2},
    )
    with pytest.raises(InputError, match="--horizon 7: the model was trained for 6 steps, and 1 series are read but"):
        model.predict(my_csv, horizon=7)


# -- logarithms --------------------------------------------------------------------------------------------------------


def test_errors_in_units_of_forecasts_of_logarithms():
    torch.manual_seed(0)
    mean, std = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
    forecast, target = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    plain, logged = Errors(mean, std), Errors(mean, std, torch.expm1)
    for errors in (plain, logged):
        errors.update(forecast, target)
    units = [(one.double() * std[:, None] + mean[:, None]).numpy() for one in (forecast, target)]
    for errors, (f, y) in ((plain, units), (logged, [np.expm1(one) for one in units])):
        table = by_variate(errors, ["a", "b"])
        np.testing.assert_allclose(table["rmse_units"], np.sqrt(((f - y) ** 2).mean((0, 2))))
        np.testing.assert_allclose(table["mae_units"], np.abs(f - y).mean((0, 2)))
        np.testing.assert_allclose(by_cell(errors, ["a", "b"])["mae_units"], np.abs(f - y).mean(0).ravel())
        np.testing.assert_allclose(errors.wape, 100 * (np.abs(f - y).sum((0, 2)) / np.abs(y).sum((0, 2))).mean())
    assert plain.mse == logged.mse


def test_bounds_of_logarithms_are_those_of_the_values():
    limits = Limits("log1p", ("b=:5",))
    values = np.array([[-1.0, 0.5, 3.0], [-1.0, 0.5, 3.0]])[None, None]
    np.testing.assert_allclose(
        limits.apply(values, ["a", "b"], [0], ["a", "b"])[0, 0],
        [[0, np.expm1(0.5), np.expm1(3)], [0, np.expm1(0.5), 5]],
    )
    np.testing.assert_allclose(limits.within(values[0], ["a", "b"], ["a", "b"])[0, 1], [0, 0.5, np.log(6)])
    scaled = limits.clamp(torch.tensor([[[-9.0, 9.0], [-9.0, 9.0]]]), ["a", "b"], torch.ones(2), torch.ones(2))
    torch.testing.assert_close(scaled, torch.tensor([[[-1.0, 9.0], [-1.0, np.log(6) - 1]]]), check_dtype=False)


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """320 days of two counts that are high on holidays: (file of values, file of holidays, dates of the holidays)."""
    folder = tmp_path_factory.mktemp("days")
    dates = pd.date_range("2024-01-01", periods=320, freq="D")
    rng = np.random.default_rng(0)
    free = dates[np.unique([*rng.choice(320, 60, replace=False), 270, 318])]
    values = rng.poisson(4 + 60 * dates.isin(free)[:, None], size=(320, 2))
    frame = pd.DataFrame({"date": dates.strftime("%Y-%m-%d"), "a": values[:, 0], "b": values[:, 1]})
    frame.to_csv(folder / "days.csv", index=False)
    pd.DataFrame({"date": free.strftime("%Y-%m-%d"), "name": "x"}).to_csv(folder / "free.csv", index=False)
    return folder / "days.csv", folder / "free.csv", free


@pytest.fixture(scope="module")
def counted(days, tmp_path_factory):
    """A run with holidays, of logarithms; not to be changed."""
    run = tmp_path_factory.mktemp("counted") / "run"
    words = ["forecasting", "fit", "--config", "smamba", "--data.file", str(days[0]), "--output", str(run), *SMALL]
    words += ["--data.values", "log1p", "--data.holidays", str(days[1]), "--trainer.max_epochs", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.delenv("PL_GLOBAL_SEED")
        assert main(words) == 0
        assert main(["forecasting", "test", str(run)]) == 0
    return run


def test_holidays_and_logarithms_from_fit_to_predict(counted, days, tmp_path, capsys):
    file, _, free = days
    model = seqssm.load(counted, accelerator="cpu")
    assert model.summary["limits"]["values"] == "log1p"
    assert len(model.summary["holidays"]["dates"]) == len(free)
    frame = pd.read_csv(file)
    given = []
    handle = model.network.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["futr_exog"]), with_kwargs=True
    )
    table = model.predict(frame.iloc[:268], level=80, samples=3)
    known = {name: model.summary["known"][name] for name in ("mean", "std")}
    dates = pd.date_range("2024-01-01", periods=274, freq="D")[-30:]  # look-back and horizon
    read = given[-1].double().squeeze().numpy() * known["std"].item() + known["mean"].item()
    np.testing.assert_allclose(read, dates.isin(free), atol=1e-5)
    handle.remove()
    values = table.filter(like="yhat").to_numpy()
    assert (values >= 0).all()
    low, up = table["yhat"] - table["yhat-lo-80"], table["yhat-hi-80"] - table["yhat"]
    assert (up > low).all()  # asymmetric in units
    logs = np.log1p(table[["yhat-lo-80", "yhat", "yhat-hi-80"]].to_numpy())
    inside = logs[:, 0] > 0
    np.testing.assert_allclose((logs[:, 1] - logs[:, 0])[inside], (logs[:, 2] - logs[:, 1])[inside], rtol=1e-4)
    capsys.readouterr()
    model.predict(frame, horizon=9)
    assert "the table of holidays ends on 2024-11-" in capsys.readouterr().err
    later = tmp_path / "later.csv"
    later.write_text("\n".join(["date", *model.summary["holidays"]["dates"], "2024-11-18"]))
    changed = model.predict(frame, holidays=str(later))
    assert (changed["yhat"] != model.predict(frame)["yhat"]).all()
    with pytest.raises(InputError, match=r"negative values in a; --values log1p needs values of at least 0"):
        model.predict(frame.assign(a=-frame["a"]))


def test_report_of_a_run_of_logarithms(counted):
    import json

    report = json.loads((counted / "metrics.json").read_text())["test"]
    titles = [table["title"] for table in report["tables"]]
    assert titles[0].startswith("Test, scaled by the training rows, after log(1 + value)")
    errors = pd.read_csv(counted / "figures" / "errors.csv")
    assert errors["mae_units"].mean() > 3 * errors["mae"].mean()


# -- holidays ----------------------------------------------------------------------------------------------------------


def test_holidays_count_the_days_of_a_row(tmp_path):
    (tmp_path / "own.csv").write_text("date,name\n2024-05-01,a\n2024-05-09,b\n2024-05-09,twice\n2024-06-20,c\n")
    kept = holidays.learn(str(tmp_path / "own.csv"))
    assert kept["dates"] == ["2024-05-01", "2024-05-09", "2024-06-20"]
    hours = pd.date_range("2024-05-08 20:00", periods=8, freq="h")
    assert holidays.covariate(kept, hours, parse("h"), None, False).tolist() == [0] * 4 + [1] * 4
    berlin = holidays.covariate(kept, hours - pd.Timedelta(hours=2), parse("h"), "Europe/Berlin", True)
    assert berlin.tolist() == [0] * 4 + [1] * 4
    months = pd.DatetimeIndex(["2024-04-01", "2024-05-01", "2024-06-01"])
    assert holidays.covariate(kept, months, parse("MS"), None, False).tolist() == [0, 2, 1]
    weeks = pd.DatetimeIndex(["2024-04-29", "2024-05-06"])
    assert holidays.covariate(kept, weeks, parse("W-MON"), None, False).tolist() == [1, 1]
    (tmp_path / "bad.csv").write_text("date\nChristmas\n")
    with pytest.raises(InputError, match="'Christmas' is not a date"):
        holidays.learn(str(tmp_path / "bad.csv"))


def test_holidays_of_a_country():
    pytest.importorskip("holidays", reason="holidays is not installed: pip install 'seqssm[holidays]'")
    dates = pd.date_range("2024-12-23", periods=5, freq="D")
    for source, expected in (("DE", [0, 0, 1, 1, 0]), ("XNYS", [0, 0, 1, 0, 0])):
        kept = holidays.learn(source)
        assert kept == {"source": source, "dates": None}
        assert holidays.covariate(kept, dates, parse("D"), None, False).tolist() == expected
    epiphany = pd.DatetimeIndex(["2025-01-06"])
    for source, expected in (("DE", 0), ("DE-BY", 1)):
        assert holidays.covariate(holidays.learn(source), epiphany, parse("D"), None, False)[0] == expected
    for wrong in ("Germany", "DE-XX", "ZZ"):
        with pytest.raises(
            InputError, match=f"--data.holidays {wrong}: no such file, country, subdivision or exchange"
        ):
            holidays.learn(wrong)


# -- page --------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_one_page_with_all_series(trained, my_csv, tmp_path, browse):
    pytest.importorskip("plotly", reason="plotly is not installed: pip install 'seqssm[plots]'")
    words = ["predict", str(trained), str(my_csv), "--output", str(tmp_path / "out.csv"), "--level", "80", "95"]
    assert main([*words, "--horizon", "9", "--figures", str(tmp_path / "f"), "--html"]) == 0
    (page,) = (tmp_path / "f").glob("*.html")
    found = browse(page, LOOK)
    names = pd.read_csv(my_csv).columns[1:].tolist()
    assert found["names"] == names
    assert [name for name in found["first"] if name] == ["95 % interval", "80 % interval", "history", "forecast"]
    assert found["told"][0].startswith(f"{names[0]}: 9 steps ahead, forecast from")
    assert "after the dashed line" in found["told"][0]
    assert found["told"][1].startswith(names[1])
    assert found["told"][2].startswith(names[0])
    assert found["filtered"] == "1 of 4 series"
    assert found["drawn"] >= 4
    assert found["wide"] <= 1280


def test_names_and_missing_values_on_the_page(tmp_path, browse):
    pytest.importorskip("plotly", reason="plotly is not installed: pip install 'seqssm[plots]'")
    when = pd.date_range("2024-03-31", periods=5, freq="h").to_numpy()
    values = np.array([1.0, np.nan, 3.0])
    panel = Panel("</script><b>&x", when[:3], values, when[3:], np.array([np.nan, 2.0]), [], np.array([1.0, np.nan]))
    other = Panel("other", when[:3], values, when[3:], np.array([1.0, 2.0]))
    path = interactive.write_page(
        tmp_path / "p.html", [panel, other], "a & <b>", TimeAxis(True, "date", "Europe/Berlin")
    )
    found = browse(path, LOOK, 390)
    assert found["names"] == ["</script><b>&x", "other"]
    assert "forecast from 2.000 to 2.000" in found["told"][0]
    assert found["wide"] <= 390
    assert interactive._positions(when[:2], TimeAxis(True, "date", "Europe/Berlin")) == [
        "2024-03-31T01:00:00",
        "2024-03-31T03:00:00",
    ]
