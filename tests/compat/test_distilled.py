"""`fit --model.binary --model.teacher` in every science, from checkpoints of earlier versions, and packing."""

from __future__ import annotations

import re
import shutil

import pandas as pd
import pytest
import torch

from seqssm.cli.main import main
from seqssm.training.soft_losses import of_classes, of_labels, of_values

from .old_runs import HERE, RUNS, predictions, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data of all runs, and a copy of the runs."""
    place = tmp_path_factory.mktemp("distilled")
    write_data(place / "data")
    shutil.copytree(HERE / "runs", place / "runs")
    return place


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "forecasting_smamba",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("ecg_mamba", "pathology_srmamba")),
    ],
)
def test_a_binary_model_learns_from_a_teacher(name, folder, monkeypatch, capsys, tmp_path, one_thread):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    run, teacher = f"binary-{name}", f"{name}.ckpt"
    shutil.copy(f"runs/{name}/best.ckpt", teacher)
    fit = [RUNS[name].domain, "fit", "--config", f"runs/{name}/config.yaml", "--trainer.max_epochs", "2"]
    assert main([*fit, "--model.binary", "true", "--model.teacher", teacher, "--output", run]) == 0
    share = re.search(r"binary: ([\d,]+) of ([\d,]+) parameters", capsys.readouterr().out)
    assert 0 < int(share[1].replace(",", "")) < int(share[2].replace(",", ""))
    (folder / teacher).unlink()  # provenance only
    small = f"{run}.ckpt"
    assert main(["compress", run, "--method", "w1", "--output", small]) == 0
    kept = torch.load(small, weights_only=True)
    assert {value.dtype for key, value in kept["state_dict"].items() if key.endswith(".bits")} == {torch.uint8}
    for part in "ab":
        (tmp_path / part).mkdir()
    before, _ = predictions(name, folder / run, tmp_path / "a")
    after, _ = predictions(name, folder / small, tmp_path / "b")
    pd.testing.assert_frame_equal(before, after, check_exact=True)
    capsys.readouterr()
    assert main(["info", small]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"of one bit +{share[1]} weights in \d+ layers", printed)
    assert re.search(rf"learned from +{teacher}", printed)


@pytest.mark.parametrize("name", ["ecg_mamba", pytest.param("pathology_srmamba", marks=pytest.mark.long)])
def test_a_set_of_students(name, folder, monkeypatch, capsys, tmp_path, one_thread):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    output = f"set-{name}.ckpt"
    distill = ["distill", f"runs/{name}", "--students", "2", "--budget", "2.6", "--no-control", "--output", output]
    assert main([*distill, "--trainer.max_epochs", "1"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "too good" not in printed, "the students have the split of the teacher"
    assert "was not checked" not in printed
    rows = [re.split(r"\s{2,}", line) for line in printed.splitlines()]
    costs = {row[0]: float(row[2].removesuffix(" %")) for row in rows if len(row) > 3 and row[2].endswith("%")}
    assert list(costs) == ["teacher", "sum of 1", "sum of 2"]
    assert 0 < costs["sum of 1"] < costs["sum of 2"] <= 200
    run, first = RUNS[name], f"{costs['sum of 1'] / 100 + 0.01}"
    tables = {}
    for title, model, more in (
        ("student", f"set-{name}/student-1", []),
        ("first", output, ["--budget", first]),
        ("all", output, []),
    ):
        table = tmp_path / f"{title}.csv"
        assert main(["predict", model, *run.inputs, *run.options, *more, "--output", str(table)]) == 0
        tables[title] = pd.read_csv(table)
    pd.testing.assert_frame_equal(tables["student"], tables["first"], check_exact=True)
    assert list(tables["all"]) == list(tables["first"])
    assert not tables["all"].equals(tables["first"])
    assert (tables["all"]["status"] == "ok").all()


@pytest.mark.parametrize(
    ("name", "why"),
    [("forecasting_dlinear", "no arguments d_model"), ("pathology_survival", "no arguments d_model and")],
)
def test_a_teacher_that_cannot_be_smaller_is_refused(name, why, folder, monkeypatch, capsys, one_thread):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    capsys.readouterr()
    assert main(["distill", f"runs/{name}", "--output", "none.ckpt"]) == 2
    assert why in capsys.readouterr().err
    assert not (folder / "none").exists()
    mine = folder / "mine" / "data.csv"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("1")
    assert main(["distill", f"runs/{name}", "--output", "mine.ckpt", "--overwrite"]) == 2
    assert "mine: contains data.csv, which distill did not write" in capsys.readouterr().err
    assert mine.exists(), "the folder of the students replaces no other folder"


def test_a_teacher_of_another_kind_is_refused(folder, monkeypatch, capsys, one_thread):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    fit = ["ecg", "fit", "--config", "runs/ecg_mamba/config.yaml", "--trainer.max_epochs", "1", "--output", "other"]
    content = torch.load("runs/ecg_mamba/best.ckpt", weights_only=True)
    content["seqssm"]["hparams"]["classes"] = content["seqssm"]["hparams"]["classes"][::-1]
    torch.save(content, "reversed.ckpt")
    for teacher, why in (
        ("reversed.ckpt", "--model.teacher: its classes are"),
        ("runs/pathology_srmamba", "belongs to the domain pathology, not ecg"),
        ("nowhere.ckpt", "nowhere.ckpt: no such run or checkpoint"),
    ):
        assert main([*fit, "--model.teacher", teacher]) == 2
        assert why in capsys.readouterr().err


def test_soft_losses():
    a, b = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    p = (b / 2).softmax(-1)
    wanted = -4 * (p * (a / 2).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(of_classes(a, b, 2.0).double(), wanted, rtol=1e-5, atol=1e-6)
    q = torch.sigmoid(b)
    wanted = -(q * torch.sigmoid(a).log() + (1 - q) * (1 - torch.sigmoid(a)).log()).mean()
    torch.testing.assert_close(of_labels(a, b).double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_values(a, b).double(), (a - b).square().mean(), rtol=1e-5, atol=1e-6)


def test_a_teacher_with_other_inputs_is_refused(folder, monkeypatch, capsys, one_thread):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    fit = ["ecg", "fit", "--config", "runs/ecg_mamba/config.yaml", "--trainer.max_epochs", "1", "--output", "other"]
    assert main([*fit, "--model.teacher", "runs/ecg_mamba", "--data.normalise", "global"]) == 2
    assert "--model.teacher: was trained with --data.normalise lead, not global" in capsys.readouterr().err
