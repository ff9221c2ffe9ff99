"""Single-label tasks of ECG: the records with exactly one class, cross-entropy, prediction, and a class added later."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_ecg import simulate, thresholds
from seqssm_ecg.classifier import Classifier, pooled_logits
from seqssm_ecg.data import EcgData
from seqssm_ecg.files import write_wfdb
from seqssm_ecg.model import EcgMamba

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.training.checkpoint import build_task, read_checkpoint

SMALL = ["--model.d_model", "16", "--model.depth", "1", "--model.d_state", "4", "--data.window_s", "2"]
SMALL += ["--trainer.accelerator", "cpu", "--model.threads", "1", "--trainer.max_epochs", "2"]
SINGLE = ["--data.single_label", "true", "--model.loss", "cross_entropy"]
KINDS = ("NORM", "LBBB", "AF")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 3 s of three kinds: `two.csv` has two classes (and a record with both), `af.csv` six of AF."""
    path = tmp_path_factory.mktemp("single")
    rows = []
    for number in range(42):
        kind = KINDS[2] if number >= 36 else KINDS[number % 2]
        write_wfdb(path, f"s{number:02d}", simulate.recording([kind], 3.0, 100.0, number), 100.0)
        rows.append({"path": f"s{number:02d}.hea", "labels": kind})
    rows[4]["labels"] = "NORM;LBBB"
    rows[7]["labels"] = "[]"
    pd.DataFrame(rows[:36]).to_csv(path / "two.csv", index=False)
    pd.DataFrame(rows[36:]).to_csv(path / "af.csv", index=False)
    write_wfdb(path, "slow", simulate.recording(["AF"], 3.0, 50.0, 99), 50.0)
    pd.DataFrame([{"path": "slow.hea", "labels": "AF"}]).to_csv(path / "slow.csv", index=False)
    return path


@pytest.fixture(scope="module")
def trained(folder):
    """An ETF run on the two classes; not to be changed."""
    before = dict(os.environ)
    fit = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", str(folder / "two.csv"), *SMALL, *SINGLE]
    fit += ["--model.head", "etf", "--model.max_classes", "8", "--output", str(folder / "run")]
    assert main(fit) == 0
    os.environ.clear()
    os.environ.update(before)
    return folder / "run"


def test_records_without_exactly_one_class_are_dropped_and_counted(folder, capsys):
    data = EcgData(manifest=str(folder / "two.csv"), window_s=2, single_label=True)
    data.setup("fit")
    said = capsys.readouterr().out
    assert "dropped: 1 with none of the task, 1 with several" in said
    assert sum(len(part) for part in data.split.values()) == 34
    assert all(float(row.sum()) == 1 for row in data.train_set.y)
    chosen = EcgData(manifest=str(folder / "two.csv"), window_s=2, single_label=True, only_classes=["NORM"])
    chosen.setup("fit")
    assert chosen.classes.names == ["NORM"]
    assert sum(len(part) for part in chosen.split.values()) == 17
    with pytest.raises(InputError, match="NROM: no such class"):
        EcgData(manifest=str(folder / "two.csv"), window_s=2, only_classes=["NROM"]).setup("fit")


def test_cross_entropy_requires_single_labels(folder, tmp_path, capsys):
    fit = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", str(folder / "two.csv"), *SMALL]
    assert main([*fit, "--model.loss", "cross_entropy", "--output", str(tmp_path / "run")]) == 2
    assert "pass --data.single_label true" in capsys.readouterr().err
    assert main([*fit, "--model.head", "etf", "--model.max_classes", "4", "--output", str(tmp_path / "run")]) == 2
    assert "requires records with exactly one class each" in capsys.readouterr().err


def test_probabilities_are_a_softmax_and_windows_average_them():
    model = Classifier(EcgMamba(12, 100, d_model=8, depth=1), 3, exclusive=True)
    model.temperature.fill_(2.0)
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 4.0, 0.0], [1.0, 1.0, 1.0]])
    probabilities = model.probabilities(logits)
    assert torch.allclose(probabilities, (logits / 2).softmax(1))
    assert model.decide(probabilities[:2]).tolist() == [[True, False, False], [False, True, False]]
    found = pooled_logits(logits, torch.tensor([0, 0, 1]), 2, "mean", exclusive=True).softmax(1)
    assert torch.allclose(found[0], logits[:2].softmax(1).mean(0), atol=1e-5)
    random = np.random.default_rng(0)
    own = random.normal(size=(400, 3))
    truth = np.stack([random.multinomial(1, np.exp(row) / np.exp(row).sum()) for row in own])
    assert thresholds.exclusive_temperature(truth, 3 * own) == pytest.approx(3, rel=0.25)


def test_it_is_tested_predicted_and_extended(folder, trained, tmp_path, capsys):
    assert main(["ecg", "test", str(trained), "--output", str(tmp_path / "test")]) == 0
    frame = seqssm.load(trained).predict([folder / "s00.hea", folder / "s01.hea"])
    assert np.allclose(frame["p_NORM"] + frame["p_LBBB"], 1, atol=1e-6)
    assert frame["prediction"].tolist() == np.where(frame["p_NORM"] > frame["p_LBBB"], "NORM", "LBBB").tolist()
    capsys.readouterr()
    bigger = tmp_path / "bigger.ckpt"
    argv = ["ecg", "extend", str(trained), "--support", str(folder / "af.csv"), "--output", str(bigger)]
    argv += ["--evaluate", str(folder / "af.csv"), "--accelerator", "cpu"]
    assert main([*argv, "--steps", "0"]) == 0
    printed = capsys.readouterr()
    said = printed.out
    assert "misspelt" not in printed.err, "classes of the model that a file of new ones does not have are no finding"
    assert "learned from: AF (6 records)" in said
    assert "session 1" in said
    before, after = (build_task(read_checkpoint(path), path).model for path in (trained, bigger))
    x = torch.randn(5, 12, 200, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(before(x), after(x)[:, :2])
    assert main([*argv, "--overwrite", "--steps", "30"]) == 0
    found = seqssm.load(bigger).predict([folder / "s36.hea"])
    assert float(found[["p_LBBB", "p_NORM", "p_AF"]].sum(axis=1).iloc[0]) == pytest.approx(1, abs=1e-6)
    assert main(["ecg", "test", str(bigger), "--output", str(tmp_path / "again")]) == 0


def test_a_sampling_rate_below_that_of_the_model_is_refused(folder, trained, tmp_path, capsys):
    argv = ["ecg", "extend", str(trained), "--support", str(folder / "slow.csv"), "--output", str(tmp_path / "x.ckpt")]
    assert main(argv) == 2
    assert "slow.hea: is sampled at 50 Hz, and the model reads 100 Hz" in capsys.readouterr().err
    assert main([*argv, "--data.sampling_rate_hz", "500"]) == 2
    assert "--data.sampling_rate_hz 500: the model has 100.0; drop the option" in capsys.readouterr().err
