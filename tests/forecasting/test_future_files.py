"""Files of future covariates that contradict themselves or the history."""

from __future__ import annotations

import pandas as pd
import pytest
from seqssm_forecasting import simulate

from seqssm.cli.main import main

FLAGS = ["--data.lookback", "12", "--data.horizon", "3", "--model.d_model", "8", "--model.blend", "false"]
FLAGS += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--model.threads", "1"]
NAMES = ["walk_0", "walk_1"]


def saved(frame, path):
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of a wide and of a long file with the covariate `price`; `plan` has its next three values."""
    folder = tmp_path_factory.mktemp("future")
    wide = simulate.walks(120, 2, seed=1).assign(price=lambda f: f.index % 7 + 0.5)
    first = wide.columns[0]
    wide = wide.rename(columns={first: "ds"})
    long = wide.melt(id_vars=["ds", "price"], var_name="unique_id", value_name="y")
    for name, table in (("wide", wide), ("long", long)):
        file = saved(table, folder / f"{name}.csv")
        words = ["--data.file", str(file), "--data.future_columns", "price", "--output", str(folder / name)]
        assert main(["forecasting", "fit", "--config", "smamba", *FLAGS, *words]) == 0
    return folder


@pytest.fixture
def plan(folder):
    last = pd.read_csv(folder / "wide.csv", parse_dates=["ds"])["ds"].iloc[-1]
    return pd.DataFrame({"ds": pd.date_range(last, periods=4, freq="D")[1:], "price": [5.5, 4.5, 5.5]})


@pytest.fixture
def predict(folder, tmp_path, capsys):
    def run(kind, future, *more):
        capsys.readouterr()
        file = saved(future, tmp_path / "plan.csv")
        words = ["--future", str(file), "--output", str(tmp_path / "p.csv"), "--overwrite", *more]
        code = main(["predict", str(folder / kind), str(folder / f"{kind}.csv"), *words])
        error = capsys.readouterr().err
        return error if code else (pd.read_csv(tmp_path / "p.csv"), error)

    return run


@pytest.mark.parametrize("again", [4.5, 900.0])
def test_a_date_that_appears_twice_is_an_error(plan, predict, again):
    """The last row was used without a word."""
    twice = pd.concat([plan, plan.iloc[[1]].assign(price=again)])
    error = predict("wide", twice)
    assert "plan.csv: line 5, column ds: the date" in error
    assert "is also on line 3 (1 duplicate date, with" in error.replace("1 of them", "with")
    assert "or --duplicates equal, first, last or mean" in error
    found, error = predict("wide", twice, "--duplicates", "first")
    pd.testing.assert_frame_equal(found, predict("wide", plan)[0])
    assert "plan.csv: price: 1 duplicate date" in error


def test_a_date_that_appears_twice_in_a_series_is_an_error(plan, predict):
    rows = pd.concat([plan.assign(unique_id=name) for name in NAMES])
    pd.testing.assert_frame_equal(predict("long", rows)[0], predict("long", plan)[0])
    assert "of walk_1 is also on line 5" in predict("long", pd.concat([rows, rows.iloc[[3]]]))


@pytest.mark.parametrize("kind", ["wide", "long"])
def test_other_values_than_those_of_the_history_are_reported(folder, plan, predict, kind):
    past = pd.read_csv(folder / "wide.csv", parse_dates=["ds"])[["ds", "price"]]
    equal, error = predict(kind, pd.concat([past, plan]))
    assert "other values" not in error
    past.loc[[7, 9], "price"] += 1
    found, error = predict(kind, pd.concat([past, plan]))
    pd.testing.assert_frame_equal(found, equal)
    words = f"has other values of price on 2 dates (first: {past['ds'][7]:%Y-%m-%d}, 1.5 instead of 0.5); the values"
    assert words in error
    assert error.count("other values") == 1
