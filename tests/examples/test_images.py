"""The worked example of a domain outside the package: installed, trained, tested and used; at most 200 lines."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import seqssm
from seqssm.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ["--trainer.max_epochs", "8", "--trainer.accelerator", "cpu", "--model.d_model", "8", "--model.threads", "1"]
QUICK += ["--model.learning_rate", "0.02", "--data.batch_size", "8"]


@pytest.fixture
def images(monkeypatch, tmp_path):
    """Install the example for one test; the working folder has a file of bright and dark squares."""
    info = tmp_path / "site" / "seqssm_images-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: seqssm-images\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[seqssm.domains]\nimages = seqssm_images:DOMAIN\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    for name in ("PL_GLOBAL_SEED", "SEQSSM_DATA"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    rng = np.random.default_rng(0)
    labels = np.array(["dark", "bright"] * 40)
    values = rng.integers(0, 60, (80, 8, 12)) + np.where(labels == "bright", 120, 0)[:, None, None]
    np.savez("train.npz", images=values.astype(np.uint8), labels=labels)
    np.save("new.npy", values[:5].astype(np.uint8))
    return values


def test_it_trains_tests_predicts_and_embeds(images, capsys):
    assert main(["images", "fit", "--config", "images", "--data.file", "train.npz", "--output", "run", *QUICK]) == 0
    assert main(["images", "test", "run"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["predict", "run/best.ckpt", "new.npy", "--output", "out.csv"]) == 0
    table = pd.read_csv("out.csv")
    assert list(table.columns) == ["index", "id", "p_bright", "p_dark", "prediction", "status", "reason"]
    assert table["prediction"].tolist() == ["dark", "bright", "dark", "bright", "dark"]
    assert seqssm.load("run").embed("new.npy").filter(like="e").notna().to_numpy()[:, 0].all()


@pytest.mark.long
def test_a_set_of_students(images, capsys):
    quick = [*QUICK, "--trainer.max_epochs", "2"]
    assert main(["images", "fit", "--config", "images", "--data.file", "train.npz", "--output", "run", *quick]) == 0
    distill = ["distill", "run", "--output", "set.ckpt", "--students", "2", "--trainer.max_epochs", "1"]
    capsys.readouterr()
    assert main([*distill, "--budget", "0.8"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    rows = {re.split(r"\s{2,}", line)[0]: re.split(r"\s{2,}", line) for line in printed.splitlines()}
    costs = [float(rows[name][2].removesuffix(" %")) for name in ("teacher", "sum of 1", "sum of 2", "one student")]
    assert costs[0] == 100
    assert 0 < costs[1] < costs[2] <= 80
    assert costs[1] < costs[3] <= 80
    students = [seqssm.load(f"set/student-{k}") for k in (1, 2)]
    new = torch.from_numpy(np.load("new.npy")).float()[:, None] / 255
    first, second = (student.network(new).detach() for student in students)
    for budget, wanted in (("0.8", first + second), (f"{costs[1] / 100 + 0.01}", first)):
        assert main(["predict", "set.ckpt", "new.npy", "--output", "out.csv", "--overwrite", "--budget", budget]) == 0
        found = pd.read_csv("out.csv")[["p_bright", "p_dark"]].to_numpy()
        np.testing.assert_allclose(found, wanted.softmax(1).numpy(), rtol=1e-4, atol=1e-6)
    whole = seqssm.load("set.ckpt").predict("new.npy")
    np.testing.assert_allclose(whole["p_dark"], (first + second).softmax(1)[:, 1], rtol=1e-5)
    assert float(rows["sum of 1"][3]) == pytest.approx(students[0].test().metrics["accuracy"], abs=1e-3)
    assert main(["info", "set.ckpt"]) == 0
    assert re.search(r"students +student-1 [\d.]+ %, student-2 [\d.]+ %", capsys.readouterr().out)
    for argv, why in (
        (["predict", "set.ckpt", "new.npy", "--output", "b.csv", "--budget", "1e-6"], "the first student alone has"),
        (["predict", "run", "new.npy", "--output", "b.csv", "--budget", "1"], "has no budget"),
        ([*distill, "--budget", "0.8"], "already exists; continue it with --resume, choose another --output"),
        ([*distill, "--overwrite", "--budget", "0.001"], "use fewer students or a larger budget"),
        ([*distill, "--overwrite", "--model.d_model", "4"], "the students have the options of the teacher"),
    ):
        assert main(argv) == 2, argv
        assert why in capsys.readouterr().err


def test_a_class_is_added_later(images, capsys):
    flags = ["--model.head", "etf", "--model.max_classes", "5", "--model.projector", "base", "--model.stem", "2"]
    fit = ["images", "fit", "--config", "images", "--data.file", "train.npz", "--output", "run", *QUICK, *flags]
    assert main(fit) == 0
    stripes = np.zeros((6, 8, 12), np.uint8)
    stripes[:, ::2] = 255
    np.savez("stripes.npz", images=stripes, labels=np.array(["striped"] * 6))
    extend = ["images", "extend", "run", "--support", "stripes.npz", "--evaluate", "stripes.npz", "--output"]
    assert main([*extend, "bigger.ckpt", "--steps", "80", "--learning-rate", "0.01"]) == 0
    assert "striped (6 records)" in capsys.readouterr().out
    np.save("two.npy", np.stack([stripes[0], np.load("new.npy")[0]]))
    assert main(["predict", "bigger.ckpt", "two.npy", "--output", "two.csv"]) == 0
    assert pd.read_csv("two.csv")["prediction"].tolist() == ["striped", "dark"]
    np.savez("wide.npz", images=np.zeros((5, 9, 9), np.uint8), labels=np.array(["wide"] * 5))
    assert main(["images", "extend", "run", "--support", "wide.npz", "--output", "x.ckpt"]) == 2
    assert "unknown to the model" in capsys.readouterr().err


def test_user_errors_are_one_line(images, capsys):
    argv = ["images", "fit", "--config", "images", "--output", "run", *QUICK]
    for flags, printed in (
        ([], "--data.file FILE is needed"),
        (["--data.file", "new.npy"], "new.npy: 0 labels for 5 images"),
        (["--data.file", "train.npz", "--model.ordr", "cross"], "did you mean --model.order?"),
    ):
        assert main([*argv, *flags]) == 2
        assert printed in capsys.readouterr().err


def test_a_domain_is_at_most_310_lines():
    files = list((EXAMPLES / "seqssm_images").glob("*.py"))
    code = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert 0 < len(code) <= 310
