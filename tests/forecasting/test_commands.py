"""The commands of the README on simulated data, in one process: fit, test, predict, kfold; outputs and errors."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_forecasting import DOMAIN, simulate

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.training import checkpoint
from seqssm.training import presets as configs
from seqssm.training.run import Options, build

from ..prediction.interrupting import interrupted_in_a_subprocess

COLUMNS = ["index", "id", "unique_id", "ds", "yhat", "status", "reason"]


@pytest.fixture
def predict(trained, tmp_path):
    """Predict files and return (exit code, table or None)."""

    def run(*inputs, options=()):
        output = tmp_path / "forecast.csv"
        output.unlink(missing_ok=True)
        words = ["predict", str(trained / "best.ckpt"), *map(str, inputs), "--output", str(output), *options]
        code = main([*words, "--accelerator", "cpu"])
        return code, pd.read_csv(output) if output.exists() else None

    return run


def save(frame, path, **options):
    frame.to_csv(path, index=False, **options)
    return path


@pytest.fixture
def frame():
    """The simulated table in `my_csv`."""
    return simulate.series(400, 3)


# -- fit and test ----------------------------------------------------------------------------------------------------


def test_the_run_folder_is_complete(trained):
    names = {path.name for path in trained.iterdir() if not path.name.startswith("events")}
    kept = {"config.yaml", "best.ckpt", "last.ckpt", "log.csv", "metrics.json", "figures", "split.csv", "about.json"}
    assert names == kept
    rows = list(csv.DictReader(open(trained / "log.csv", newline="")))  # noqa: SIM115
    assert {"train_loss", "val_loss", "val_mae", "cpu_seconds"} <= set(rows[0])
    hparams = checkpoint.read_checkpoint(trained)["seqssm"]["hparams"]
    assert (hparams["lookback"], hparams["horizon"]) == (24, 6), "values of the data, specified once"


def test_test_shows_the_model_and_the_three_baselines(trained, my_csv):
    test = json.loads((trained / "metrics.json").read_text())["test"]
    models = {row["model"]: row for row in test["tables"][0]["rows"]}
    assert list(models) == ["smamba", "dlinear", "last value", "seasonal naive (24)"]
    assert test["metrics"] == {"mse": models["smamba"]["mse"], "mae": models["smamba"]["mae"]}
    assert "look-back 24, horizon 6, 75 windows" in test["tables"][0]["title"]
    cells = pd.read_csv(trained / "figures" / "errors.csv")
    assert len(cells) == 4 * 6
    assert cells["mse"].mean() == pytest.approx(models["smamba"]["mse"])
    variates = pd.DataFrame(test["tables"][2]["rows"])
    rmse = cells.groupby("unique_id", sort=False)["rmse_units"].agg(lambda x: np.sqrt((x**2).mean()))
    assert list(variates["rmse_units"]) == pytest.approx(list(rmse))
    for name in ("error_by_step.png", "residuals.png"):
        assert (trained / "figures" / name).stat().st_size > 5000


def test_the_figures_equal_a_plain_loop(trained, my_csv):
    """Compute the printed errors from the checkpoint alone: every window of the last fifth, one at a time."""
    kept = checkpoint.read_checkpoint(trained)
    task, summary = checkpoint.build_task(kept, trained), kept["seqssm"]["data"]
    from seqssm_forecasting import calendar

    frame = pd.read_csv(my_csv, parse_dates=["date"])
    values = (frame[summary["columns"]].to_numpy() - summary["mean"].numpy()) / summary["std"].numpy()
    marks = calendar.marks(pd.DatetimeIndex(frame["date"]), "hour")
    squared = []
    for origin in range(320, 400 - 5):
        x, m = values[origin - 24 : origin].T, marks[origin - 24 : origin].T
        with torch.no_grad():
            y = task.model(torch.from_numpy(x.astype(np.float32))[None], torch.from_numpy(m)[None])[0].numpy()
        squared.append((y - values[origin : origin + 6].T) ** 2)
    printed = json.loads((trained / "metrics.json").read_text())["test"]["metrics"]["mse"]
    assert np.mean(squared) == pytest.approx(printed, rel=1e-4)


def test_a_horizon_is_specified_once(my_csv, tmp_path, capsys):
    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(my_csv), "--output", str(tmp_path / "r")]
    assert main([*command, "--data.horizon", "6", "--model.horizon", "8"]) == 2
    assert "--data.horizon 6 and --model.horizon 8 must be the same" in capsys.readouterr().err
    assert main([*command, "--data.horizon", "0"]) == 2
    assert "--data.horizon 0: must be in [1, " in capsys.readouterr().err, "the option that was given"
    assert main([*command, "--model.d_model", "0"]) == 2
    assert "--model.d_model 0" in capsys.readouterr().err


def test_test_refuses_another_horizon(trained, capsys):
    assert main(["forecasting", "test", str(trained), "--data.horizon", "12"]) == 2
    assert "must be the same" in capsys.readouterr().err


@pytest.mark.long
def test_kfold_compares_trained_and_untrained_models(my_csv, tmp_path):
    from .conftest import SMALL

    command = ["forecasting", "kfold", "--config", "smamba", "--data.file", str(my_csv), *SMALL]
    command += ["--trainer.max_epochs", "1", "--output", str(tmp_path / "study")]
    models = "smamba,smamba_reference,itransformer,dlinear,last_value,seasonal_naive"
    assert main([*command, "--models", models]) == 0
    rows = {row["model"]: row for row in csv.DictReader(open(tmp_path / "study" / "folds.csv", newline=""))}  # noqa: SIM115
    assert list(rows) == models.split(",")
    assert all(float(row["mse"]) > 0 for row in rows.values())
    # the same training on two engines: equal up to rounding, and yet two trainings
    assert float(rows["smamba"]["mse"]) == pytest.approx(float(rows["smamba_reference"]["mse"]), rel=1e-3)


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--data.static_file", "--model.network dlinear does not support"), ("--model.init_from", "contains no weight")],
)
def test_kfold_refuses_a_later_model_before_the_first_is_trained(my_csv, trained, tmp_path, capsys, flag, words):
    from .conftest import SMALL

    series = open(my_csv, encoding="utf-8").readline().strip().split(",")[1:]  # noqa: SIM115
    static = tmp_path / "static.csv"
    static.write_text("unique_id,size\n" + "".join(f"{name},{k}\n" for k, name in enumerate(series)), encoding="utf-8")
    command = ["forecasting", "kfold", "--config", "smamba", "--data.file", str(my_csv), *SMALL]
    command += [flag, str(static if flag == "--data.static_file" else trained)]
    assert main([*command, "--models", "smamba,dlinear", "--output", str(tmp_path / "study")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


# -- predict -----------------------------------------------------------------------------------------------------------


def test_future_rows_with_real_dates_in_the_users_units(predict, my_csv, frame):
    code, table = predict(my_csv)
    assert code == 0
    assert list(table.columns) == COLUMNS
    assert list(table["unique_id"]) == [name for name in frame.columns[1:] for _ in range(6)]
    dates = pd.date_range(frame["date"].iloc[-1], periods=7, freq="h")[1:]
    assert list(pd.to_datetime(table["ds"])) == list(dates) * 4
    assert set(table["status"]) == {"ok"}
    assert set(table["index"]) == {0}
    assert set(table["id"]) == {"my.csv"}
    means = table.groupby("unique_id", sort=False)["yhat"].mean()
    assert (np.abs(means - frame.iloc[:, 1:].mean()) < 6).all(), "in the file's units"


def test_prediction_equals_the_network(predict, trained, my_csv, frame):
    """Computed by hand from the checkpoint: the same numbers after saving and loading."""
    from seqssm_forecasting import calendar

    kept = checkpoint.read_checkpoint(trained)
    summary = kept["seqssm"]["data"]
    mean, std = summary["mean"].numpy(), summary["std"].numpy()
    x = ((frame.iloc[-24:, 1:].to_numpy() - mean) / std).T.astype(np.float32)
    marks = calendar.marks(pd.DatetimeIndex(frame["date"][-24:]), "hour").T.copy()
    with torch.no_grad():
        y = checkpoint.build_task(kept, trained).model(torch.from_numpy(x)[None], torch.from_numpy(marks)[None])[0]
    expected = y.double().numpy() * std[:, None] + mean[:, None]
    _, table = predict(my_csv)
    np.testing.assert_allclose(table["yhat"], expected.ravel(), rtol=1e-6)
    again = seqssm.load(trained / "best.ckpt", accelerator="cpu").predict(my_csv)
    np.testing.assert_array_equal(again["yhat"], table["yhat"])


def test_columns_in_any_order_give_the_same_table(predict, my_csv, frame, tmp_path, capsys):
    _, table = predict(my_csv)
    turned = save(frame[["date", *frame.columns[:0:-1]]], tmp_path / "my.csv")
    _, other = predict(turned)
    pd.testing.assert_frame_equal(table, other)
    assert "reordered as in the checkpoint" in capsys.readouterr().err


def test_a_longer_and_a_zipped_history_change_nothing(predict, my_csv, frame, tmp_path):
    _, table = predict(my_csv)
    _, other = predict(save(frame.iloc[-24:], tmp_path / "short.csv.gz"))
    assert list(other["yhat"]) == list(table["yhat"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.iloc[-23:], "23 rows of history; the model needs 24"),
        (lambda f: f.drop(columns="driver"), "missing: driver"),
        (lambda f: f.assign(price=1.0), "unknown: price"),
        (lambda f: f.rename(columns={"driver": "Driver"}), "missing: driver; unknown: Driver"),
        (lambda f: f.drop(index=390), "line 392, column date: 2024-01-17 07:00:00 comes after"),
        (lambda f: f.iloc[::-1], "line 3, column date"),
        (lambda f: f.assign(date=pd.date_range("2024-01-01", periods=400, freq="15min")), "every 15 minutes"),
        (lambda f: f.assign(driver=f["driver"].where(f.index != 5)), "line 7, column driver: no value"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(predict, frame, tmp_path, capsys, change, words):
    path = save(change(frame), tmp_path / "bad.csv")
    code, table = predict(path)
    assert code == 2
    assert table is None, "nothing is produced"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("seqssm:")]
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert words in lines[0]


def test_files_of_another_kind_are_refused(predict, tmp_path, capsys):
    (tmp_path / "solar.txt").write_text("1,2,3,4\n" * 30)
    assert predict(tmp_path / "solar.txt")[0] == 2
    assert "trained on series with dates" in capsys.readouterr().err
    assert predict(tmp_path / "absent.csv")[0] == 2
    assert "no such file" in capsys.readouterr().err


def test_one_bad_file_among_several_keeps_its_row(predict, my_csv, frame, tmp_path):
    short = save(frame.iloc[:5], tmp_path / "short.csv")
    code, table = predict(short, my_csv, my_csv)
    assert code == 3
    assert list(table.groupby("index").size()) == [1, 24, 24]
    assert table.loc[0, "status"] == "failed"
    assert "5 rows of history" in table.loc[0, "reason"]
    assert table.loc[0, ["unique_id", "ds", "yhat"]].isna().all()
    first, second = (table[table["index"] == number]["yhat"].to_numpy() for number in (1, 2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.long
def test_a_figure_per_variate(predict, my_csv, tmp_path):
    predict(my_csv, options=["--figures", str(tmp_path / "figs")])
    names = sorted(path.name for path in (tmp_path / "figs").iterdir())
    variates = simulate.Network().names
    each = [f"000_my_{number:03d}_{name}.png" for number, name in enumerate(variates, 1)]
    assert names == [*each, "000_my_overview.png"]
    from matplotlib.image import imread

    image = imread(tmp_path / "figs" / names[0])
    colours = {tuple(np.round(pixel[:3] * 255).astype(int)) for pixel in image.reshape(-1, image.shape[-1])}
    assert {(59, 66, 82), (194, 87, 26)} <= colours, "history and forecast are both drawn"


def test_series_without_dates_count_rows(tmp_path):
    from .conftest import SMALL

    generator = np.random.default_rng(1)
    data = np.sin(np.arange(300) / 5)[:, None, None] + generator.normal(0, 0.1, (300, 3, 1))
    np.savez(tmp_path / "p.npz", data=data)
    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(tmp_path / "p.npz"), *SMALL]
    assert main([*command, "--trainer.max_epochs", "1", "--output", str(tmp_path / "run")]) == 0
    table = seqssm.load(tmp_path / "run").predict(tmp_path / "p.npz")
    assert list(table["unique_id"].unique()) == ["column_1", "column_2", "column_3"]
    assert list(table["ds"][:6]) == [300, 301, 302, 303, 304, 305]


def test_warm_start_for_another_horizon(trained, my_csv, tmp_path, capsys):
    from .conftest import SMALL

    command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(my_csv), *SMALL, "--data.horizon", "9"]
    command += ["--model.init_from", str(trained / "best.ckpt"), "--model.freeze", "backbone"]
    assert main([*command, "--trainer.max_epochs", "1", "--output", str(tmp_path / "run")]) == 0
    assert "new: 2 (head.weight, head.bias)" in capsys.readouterr().out
    before, after = (checkpoint.read_checkpoint(place)["state_dict"] for place in (trained, tmp_path / "run"))
    assert torch.equal(before["model.embed.weight"], after["model.embed.weight"])
    assert after["model.head.weight"].shape[0] == 9


# -- presets -----------------------------------------------------------------------------------------------------------

PRESETS = configs.presets(DOMAIN)
LIVE = {  # parameters of networks whose size is known from the public code, without unused weights
    "etth1_96": 1_145_696,
    "ettm1_96": 1_145_696,
    "exchange_96": 348_640,
    "weather_96": 6_631_008,
}


def test_every_public_set_has_its_four_horizons():
    sets = {
        data_set.name: (12, 24, 48, 96) if "pems" in data_set.name else (96, 192, 336, 720)
        for data_set in DOMAIN.data_sets
    }
    assert len(sets) == 13
    assert set(PRESETS) == {"smamba", *(f"{name}_{horizon}" for name, steps in sets.items() for horizon in steps)}


def first_or_long(name: str):
    """A preset; those of a set's further horizons are long tests."""
    return name if name == "smamba" or name.endswith(("_96", "_12")) else pytest.param(name, marks=pytest.mark.long)


@pytest.mark.parametrize("name", [first_or_long(name) for name in PRESETS])
def test_every_preset_is_parsed_built_and_counted(name, tmp_path):
    content = configs.read_preset(PRESETS[name], DOMAIN)
    extra = ["--data.file", "x.csv"] if name == "smamba" else []
    cli = build(DOMAIN, tmp_path, [content], Options(extra))
    with torch.device("meta"):
        cli.model.configure_model()
    model, data, hparams = cli.model.model, cli.datamodule, cli.model.hparams
    if name == "smamba":  # blended with a DLinear and the last value
        model = model.network
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == LIVE.get(name, count)
    width, state, layers = hparams["d_model"], hparams["d_state"], hparams["layers"]
    rank = -(-width // 16)
    scan = 2 * width**2 + width**2 + 3 * width + width * (rank + 2 * state) + (rank + 1) * width + width * state + width
    layer = 2 * scan + 2 * (width**2 + width) + 4 * width
    horizon = data.horizon
    assert count == 97 * width + layers * layer + 2 * width + (width + 1) * horizon
    if name == "smamba":
        return
    assert name == f"{data.dataset}_{horizon}"
    assert (data.lookback, hparams["schedule"], cli.config.early_stopping.patience) == (96, "halving", 3)
    assert cli.config.seed_everything == 2023
    tokens = model(torch.empty(2, 5, 96, device="meta"), torch.empty(2, 4, 96, device="meta"))
    assert tokens.shape == (2, 5, horizon)


HYPER = {  # preset -> (layers, d_model, d_state, learning rate, batch, epochs, use_norm), taken from the public scripts
    "etth1_336": (2, 256, 2, 5e-5, 32, 10, True),
    "etth2_720": (2, 256, 2, 7e-5, 32, 10, True),
    "ettm1_192": (2, 128, 2, 5e-5, 32, 10, True),
    "ettm2_336": (2, 128, 2, 3e-5, 32, 10, True),
    "exchange_96": (2, 128, 32, 1e-4, 16, 10, True),
    "exchange_720": (2, 128, 32, 5e-5, 32, 10, True),
    "weather_192": (3, 512, 2, 5e-5, 32, 5, True),
    "electricity_96": (3, 512, 16, 1e-3, 16, 5, True),
    "electricity_720": (3, 512, 32, 5e-4, 16, 5, True),
    "traffic_336": (4, 512, 32, 2e-3, 16, 10, True),
    "solar_96": (2, 512, 32, 1e-4, 32, 10, True),
    "pems03_48": (5, 512, 32, 1e-4, 32, 10, True),
    "pems03_12": (4, 512, 32, 1e-3, 32, 5, True),
    "pems04_96": (4, 1024, 32, 3e-4, 32, 10, False),
    "pems07_48": (4, 512, 32, 5e-4, 32, 10, False),
    "pems07_96": (4, 512, 32, 5e-4, 16, 10, False),
    "pems08_24": (2, 512, 32, 7e-4, 32, 10, True),
    "pems08_96": (4, 256, 32, 1e-3, 16, 10, True),
}


@pytest.mark.parametrize("name", list(HYPER))
def test_published_hyper_parameters(name):
    config = configs.read_preset(PRESETS[name], DOMAIN)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    found = (
        *(model[key] for key in ("layers", "d_model", "d_state", "learning_rate")),
        data["batch_size"],
        config["trainer"]["max_epochs"],
        model.get("use_norm", True),
    )
    assert found == HYPER[name]


def test_refused_model_arguments():
    from seqssm_forecasting.task import ForecastingTask

    for given, words in (
        ({"heads": 3, "network": "itransformer"}, "does not divide"),
        ({"dropout": 1.0}, "dropout"),
        ({"threads": 0}, "threads"),
        ({"layers": 0}, "layers"),
    ):
        with pytest.raises(InputError, match=words):
            ForecastingTask(lookback=96, horizon=24, **given).configure_model()


def test_a_checkpoint_without_its_description_of_the_data_is_refused(trained, my_csv, require_refusal_when_emptied):
    require_refusal_when_emptied(trained, my_csv)


@pytest.mark.long
def test_ctrl_c_ends_a_prediction_resumably(trained, frame, tmp_path):
    files = [str(save(frame, tmp_path / f"f{k}.csv")) for k in range(150)]
    words = [str(trained / "best.ckpt"), *files, "--accelerator", "cpu", "--figures", str(tmp_path / "figures")]
    printed = interrupted_in_a_subprocess(words, tmp_path / "o.csv")
    assert "Traceback" not in printed
    assert "seqssm: interrupted; continue with: seqssm predict " in printed
    assert {path.name for path in tmp_path.iterdir()} - {f"f{k}.csv" for k in range(150)} == {".o.csv.parts", "figures"}
    assert not [path for path in (tmp_path / "figures").iterdir() if path.suffix != ".png"]
