"""Networks for any one lead: training windows, prediction of records with one lead or more, scores by lead."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_ecg import simulate
from seqssm_ecg.classifier import Classifier
from seqssm_ecg.data import EcgData
from seqssm_ecg.model import EcgMamba
from seqssm_ecg.one_lead import keep_one, pairs, present_leads

import seqssm
from seqssm.cli.main import main


def recording(seed=1):
    return simulate.recording(["AF"], 6.0, 100.0, seed)


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    argv = ["ecg", "fit", "--config", "one_lead", "--data.manifest", str(made / "manifest.csv"), "--data.window_s", "2"]
    argv += ["--model.d_model", "16", "--model.depth", "1", "--model.d_state", "4", "--model.threads", "1"]
    assert main([*argv, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--output", str(folder)]) == 0
    return folder


def test_a_training_window_keeps_one_lead_that_the_record_has(made):
    data = EcgData(manifest=str(made / "manifest.csv"), window_s=2, one_lead=True, noise=0.1, mix_up=0.2)
    data.setup("fit")
    torch.manual_seed(0)
    kept = torch.cat([data.train_set.__getitems__(list(range(40)))["x"].abs().sum(2) > 0 for _ in range(8)])
    assert kept.sum(1).eq(1).all()
    assert kept.any(0).all()
    x = torch.randn(50, 12, 30)
    present = torch.zeros(50, 12, dtype=torch.bool)
    present[:, [1, 7]] = True
    one = keep_one(x, present)
    leads = one.abs().sum(2).nonzero()[:, 1]
    assert set(leads.tolist()) == {1, 7}
    assert torch.equal(one[0, leads[0]], x[0, leads[0]])


def test_padding_and_constant_leads_are_absent():
    x = torch.randn(2, 3, 20)
    x[0, 1] = 2.0
    x[1, 2, 10:] = 0
    x[1, 2, :10] = 5
    assert present_leads(x, torch.tensor([20, 10])).tolist() == [[True, False, True], [True, True, False]]
    assert present_leads(torch.zeros(1, 3, 20)).tolist() == [[True, False, False]]


def test_probabilities_are_averaged_over_the_leads_of_a_record():
    torch.manual_seed(0)
    network = EcgMamba(window=200, d_model=8, depth=1, d_state=4, stem="deep", pool="mean")
    model = Classifier(network, 3, one_lead=True).eval()
    x = torch.randn(2, 12, 200)
    x[1, 5:] = 0
    with torch.no_grad():
        found, leads, features = model(x), model.by_lead(x), model.features(x)
        for row, count in ((0, 12), (1, 5)):
            single = torch.stack([x[row] * (torch.arange(12) == lead)[:, None] for lead in range(count)])
            alone = network(single)
            torch.testing.assert_close(leads[row, :count], model.head(alone), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(features[row], alone.mean(0), rtol=1e-4, atol=1e-5)
            mean = model.head(alone).sigmoid().mean(0)
            torch.testing.assert_close(found[row].sigmoid(), mean, rtol=1e-4, atol=1e-5)
    assert leads[1, 5:].isnan().all()
    truth, logits = pairs(np.array([[1, 0, 1], [0, 0, 1.0]]), leads.numpy())
    assert truth.shape == logits.shape == (17, 3)
    assert truth[11].tolist() == [1, 0, 1]
    assert truth[12].tolist() == [0, 0, 1]


@pytest.mark.parametrize("lead", ["I", "aVR", "V5"])
def test_a_record_of_one_lead_is_predicted(run, tmp_path, lead):
    pd.DataFrame({lead: recording()[lead]}).to_csv(tmp_path / "watch.csv", index=False)
    argv = [
        "predict",
        str(run),
        str(tmp_path / "watch.csv"),
        "--output",
        str(tmp_path / "p.csv"),
        "--accelerator",
        "cpu",
    ]
    assert main([*argv, "--array-rate-hz", "100", "--array-leads", lead]) == 0
    row = pd.read_csv(tmp_path / "p.csv").iloc[0]
    model = seqssm.load(run, accelerator="cpu")
    only = model.predict({lead: recording()[lead]}, array_rate_hz=100).iloc[0]
    classes = [f"p_{name}" for name in model.summary["classes"]]
    np.testing.assert_allclose(row[classes].astype(float), only[classes].astype(float), atol=1e-6)
    every = model.predict(recording(), array_rate_hz=100).iloc[0]
    assert any(abs(every[name] - only[name]) > 1e-6 for name in classes)
    assert len(model.embed(recording(), array_rate_hz=100).filter(regex="^e[0-9]+$").columns) == 16


def test_the_test_prints_each_lead(run, capsys):
    assert main(["ecg", "test", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "Each lead alone" in printed
    assert "it uses all leads at once" in printed
    content = json.loads((run / "metrics.json").read_text())["test"]
    rows = content["tables"][0]["rows"]
    assert [row["lead"] for row in rows][:3] == ["I", "II", "III"]
    assert len(rows) == 12
    assert all(row["records"] == 6 for row in rows)
    assert content["metrics"]["one_lead_auroc"] == pytest.approx(np.mean([row["auroc"] for row in rows]))


def test_it_is_neither_exported_nor_pretrained(run, made, tmp_path, capsys):
    assert main(["export", str(run), "--format", "torch", "--output", str(tmp_path / "m.pt2")]) == 2
    assert "single leads" in capsys.readouterr().err
    argv = ["ecg", "fit", "--config", "pretrain", "--data.folder", str(made), "--data.one_lead", "true"]
    assert main([*argv, "--output", str(tmp_path / "r"), "--trainer.accelerator", "cpu"]) == 2
    assert "--data.one_lead" in capsys.readouterr().err
