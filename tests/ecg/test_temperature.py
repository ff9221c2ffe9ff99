"""One temperature per class: fitted on validation records, kept in the checkpoint, applied in prediction."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_ecg import simulate, thresholds

import seqssm
from seqssm.cli.main import main


def test_the_temperatures_of_the_classes_are_found_again():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 3))
    truth = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    wanted = np.array([0.5, 1.0, 3.0])
    truth[::3, 1] = np.nan
    np.testing.assert_allclose(thresholds.temperatures(truth, logits * wanted), wanted, rtol=0.1)


def test_a_class_with_few_labels_keeps_the_common_temperature():
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (400, 3))
    truth = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    truth[:, 1] = 0
    truth[:4, 1] = 1
    common = thresholds.temperature(truth, logits)
    found = thresholds.temperatures(truth, logits)
    assert thresholds.enough(truth).tolist() == [True, False, True]
    assert found[1] == common
    assert found[0] == thresholds.temperature(truth[:, 0], logits[:, 0]) != common


def test_prediction_applies_the_temperature_of_each_class(made, tmp_path, capsys):
    frame = pd.read_csv(made / "manifest.csv")
    frame["path"] = [str(made / one) for one in frame["path"]]
    frame.assign(split=["train"] * 24 + ["val"] * 30 + ["test"] * 6).to_csv(tmp_path / "m.csv", index=False)
    argv = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", str(tmp_path / "m.csv")]
    argv += ["--model.d_model", "16", "--model.depth", "1", "--model.d_state", "4", "--data.window_s", "4"]
    argv += ["--trainer.accelerator", "cpu", "--model.threads", "1", "--trainer.max_epochs", "1"]
    assert main([*argv, "--model.temperature", "per_class", "--output", str(tmp_path / "run")]) == 0
    held = frame[list(simulate.CLASSES)].iloc[24:54].to_numpy(float)
    few = [name for name, one in zip(simulate.CLASSES, thresholds.enough(held)) if not one]
    line = next((one for one in capsys.readouterr().out.splitlines() if "kept the common temperature" in one), "")
    assert line.endswith(f"for: {', '.join(few)}") if few else not line
    model = seqssm.load(tmp_path / "run", accelerator="cpu")
    own = model.network.temperature
    assert own.shape == (len(model.summary["classes"]),)
    assert len(set(own.tolist())) > 1
    x = np.stack(list(simulate.recording(["AF"], 4.0, 100.0, 1).values()))
    found = model.predict(x, array_rate_hz=100).iloc[0]
    model.network.temperature = torch.ones(())
    plain = model.predict(x, array_rate_hz=100).iloc[0]
    for name, value in zip(model.summary["classes"], own.tolist()):
        before = plain[f"p_{name}"]
        logit = np.log(before / (1 - before))
        assert found[f"p_{name}"] == pytest.approx(1 / (1 + np.exp(-logit / value)), rel=1e-5)
    assert main(["ecg", "test", str(tmp_path / "run")]) == 0
    tables = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["tables"]
    rows = next(one["rows"] for one in tables if one["title"].startswith("By class"))
    assert [row["temperature"] for row in rows] == pytest.approx(own.tolist())
