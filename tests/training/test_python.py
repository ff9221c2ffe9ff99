"""Training and testing from Python, without the command line."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.training.callbacks import mode_of

QUICK = {"max_epochs": 2, "accelerator": "cpu"}


def test_plain_lightning_trains_tests_and_saves(toy):
    from seqssm_toy.data import ToyData
    from seqssm_toy.task import ToyTask

    trainer = Trainer(**QUICK, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    task, data = ToyTask(d_model=4), ToyData(rows=20)
    trainer.fit(task, datamodule=data)
    assert trainer.test(task, datamodule=data, verbose=False)[0]["test_mse"] > 0
    trainer.save_checkpoint("own.ckpt")
    assert len(seqssm.load("own.ckpt").predict(write_numbers())) == 4
    again = ToyTask.load_from_checkpoint("own.ckpt")
    assert again.hparams["d_model"] == 4
    assert torch.equal(again.model.head.weight, task.model.head.weight)


@pytest.mark.parametrize("code", [0, 7, "no more", None])
def test_an_exit_in_a_hook_of_the_user_arrives_with_its_code(toy, monkeypatch, code):
    """It was a KeyboardInterrupt, as if the user had pressed Ctrl-C."""
    from seqssm_toy.task import ToyTask

    def leave(self):
        raise SystemExit(code)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    given = {"preset": "tiny", "data": {"rows": 20}, "trainer": QUICK, "output": "run"}
    with monkeypatch.context() as patch:
        patch.setattr(ToyTask, "on_train_epoch_end", leave)
        with pytest.raises(SystemExit) as stop:
            seqssm.fit("toy", **given)
    assert stop.value.code == code
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    model = seqssm.fit("toy", **given, overwrite=True)  # the folder is not locked
    monkeypatch.setattr(ToyTask, "on_test_epoch_end", leave)
    with pytest.raises(SystemExit) as stop:
        model.test()
    assert stop.value.code == code


def write_numbers() -> Path:
    Path("n.txt").write_text("a 1 2 3\nb 4 5 6\n", encoding="utf-8")
    return Path("n.txt")


def test_fit_gives_the_run_of_the_command(toy, capsys):
    model = seqssm.fit("toy", preset="tiny", data={"rows": 40}, model={"d_model": 4}, trainer=QUICK, output="python")
    command = ["toy", "fit", "--config", "tiny", "--data.rows", "40", "--model.d_model", "4", "--output", "command"]
    assert main([*command, "--trainer.max_epochs", "2"]) == 0
    one, other = (torch.load(f"{run}/best.ckpt", weights_only=True) for run in ("python", "command"))
    assert one["seqssm"]["hparams"] == other["seqssm"]["hparams"]
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])
    assert len(model.predict(write_numbers())) == 4
    features = model.embed(write_numbers())
    assert list(features.columns) == ["index", "id", "e0", "e1", "e2", "e3", "status", "reason"]
    assert features["e0"].notna().all()
    Path("bad.txt").write_text("a bad\nb 4 5 6\n", encoding="utf-8")
    late = model.embed("bad.txt", batch_size=1)  # the first batch has failed records only
    assert list(late.columns) == list(features.columns)
    assert late["status"].tolist() == ["failed", "ok"]
    np.testing.assert_allclose(late.loc[1, ["e0", "e3"]].astype(float), features.loc[1, ["e0", "e3"]].astype(float))
    report = model.test()
    assert report.metrics["mse"] == json.loads(Path("python/metrics.json").read_text())["test"]["metrics"]["mse"]


def test_fit_accepts_objects_and_keeps_no_folder_by_default(toy):
    from seqssm_toy.data import ToyData
    from seqssm_toy.task import ToyTask

    data = ToyData(rows=24, batch_size=8)
    model = seqssm.fit("toy", preset="tiny", data=data, model=ToyTask("line", bias=False), trainer=QUICK)
    assert model.network.head.bias is None
    assert model.data is data
    assert model.test().metrics["mse"] > 0
    assert not any(Path().iterdir())


def test_fit_gives_the_errors_of_the_command(toy):
    with pytest.raises(InputError, match=r"unknown option model.d_modle; did you mean model.d_model"):
        seqssm.fit("toy", preset="tiny", model={"d_modle": 4})
    with pytest.raises(InputError, match="no such preset"):
        seqssm.fit("toy", preset="tyny")
    with pytest.raises(InputError, match="data: the domain toy expects"):
        seqssm.fit("toy", data="numbers.csv")


def test_the_direction_of_a_monitored_figure_is_that_of_its_metric(toy):
    from seqssm_toy.task import ToyTask

    assert [mode_of(ToyTask(), name) for name in ("val_loss", "val_mse", "val_r2")] == ["min", "min", "max"]
    with pytest.raises(InputError, match=r"give --early_stopping.mode min or max"):
        mode_of(ToyTask(), "val_records")


def test_a_task_without_a_domain_is_reported(toy):
    from seqssm_toy.task import Net

    from seqssm.training.task import Task

    class Mine(Task):
        networks = {"net": Net}  # noqa: RUF012

        def step(self, batch):
            return batch["y"].mean(), None

    with pytest.raises(InputError, match="Mine has no class attribute domain"):
        Mine(inputs=3)


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_a_batch_without_an_index_is_reported(toy, form):
    from seqssm_toy.data import Numbers, ToyData
    from seqssm_toy.task import ToyTask

    class Bare(Numbers):
        def __getitem__(self, place):
            item = super().__getitem__(place)
            return {"x": item["x"], "y": item["y"]} if form == "dict" else (item["x"], item["y"])

    class BareData(ToyData):
        def setup(self, stage):
            super().setup(stage)
            self.train_set = Bare(self.train_set.rows, 0.0)
            self.test_set = Bare(self.test_set.rows, 0.0)

    trainer = Trainer(**QUICK, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    words = r"a batch has no entry 'index'.*\(found: " + ("x, y" if form == "dict" else "a list")
    for run in (trainer.fit, trainer.test):
        with pytest.raises(InputError, match=words):
            run(ToyTask(inputs=3), datamodule=BareData(rows=20))


def test_sources_need_a_method(toy):
    from seqssm_toy.data import ToyData

    with pytest.raises(TypeError, match="Half declares sources and needs a method use_summary"):

        class Half(ToyData):
            sources = (("rows",),)


def test_statuses_are_one_table(toy):
    import pandas as pd

    from seqssm.errors import Status
    from seqssm.prediction.predictor import Record
    from seqssm.prediction.table import tabulate

    assert [str(one) for one in Status][:2] == ["ok", "failed"]
    assert all(one.meaning for one in Status)
    frame = pd.DataFrame({"value": [1.0, 2.0], "status": ["ok", "late"], "reason": ["", "?"]})
    with pytest.raises(RuntimeError, match="status 'late': not in the table"):
        tabulate([Record(0, "a")], [frame], ["value"])


def test_objects_that_are_no_data_are_named(tmp_path):
    series = pd.Series(np.arange(60.0), index=pd.date_range("2024-01-01", periods=60))
    for data, words in (
        (series, "not Series; series.to_frame"),
        (np.zeros((60, 2)), "data: expected a file, a data frame, a dict of options or a data module, not ndarray"),
        ([1, 2], "not list"),
        ({"file": np.zeros(3)}, "data: the option file cannot be of the type ndarray"),
    ):
        with pytest.raises(InputError, match=words):
            seqssm.fit("forecasting", data=data)


def test_paths_and_numbers_of_numpy_are_options(tmp_path):
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=60), "y": np.arange(60.0) % 7})
    frame.to_csv(tmp_path / "x.csv", index=False)
    data = {"file": tmp_path / "x.csv", "lookback": np.int64(6), "horizon": 2, "columns": ("y",)}
    options = {"network": "dlinear", "blend": False, "learning_rate": np.float32(0.5)}
    model = seqssm.fit("forecasting", data=data, model=options, trainer={**QUICK, "max_epochs": 1})
    assert len(model.predict([tmp_path / "x.csv"])) == 2
    with pytest.raises(InputError, match="no inputs: the list is empty"):
        model.predict([])
    assert set(model.test({"file": tmp_path / "x.csv"}).metrics) >= {"mse", "mae"}
    for given in (frame, {"file": frame}, {"file": np.zeros(3)}):
        with pytest.raises(InputError, match=r"^test: .*(not DataFrame|the option file cannot be of the type)"):
            model.test(given)
