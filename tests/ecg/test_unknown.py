"""Unknown labels, which are empty cells of a manifest: left out of the loss, the thresholds and all scores."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_ecg import metrics, simulate, thresholds
from seqssm_ecg.augment import Augment
from seqssm_ecg.data import EcgData
from seqssm_ecg.metrics import Predictions
from seqssm_ecg.task import EcgTask

from seqssm.cli.main import main
from seqssm.errors import InputError

CLASSES = list(simulate.CLASSES)


def holes(made, tmp_path, name="m.csv"):
    """A manifest whose AF is known for every second record, the last one of which has no known label."""
    frame = pd.read_csv(made / "manifest.csv").astype(dict.fromkeys(CLASSES, object))
    frame["path"] = [str(made / one) for one in frame["path"]]
    frame["split"] = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    frame.loc[1::2, "AF"] = ""
    frame.loc[59, CLASSES] = ""
    frame.to_csv(tmp_path / name, index=False)
    return frame


@pytest.fixture
def drawn():
    """Labels with unknown ones, scores, and decisions of 60 records and 4 classes."""
    random = np.random.default_rng(0)
    truth = (random.random((60, 4)) < 0.4).astype(float)
    truth[random.random((60, 4)) < 0.3] = np.nan
    scores = random.random((60, 4))
    return truth, scores, scores > 0.6


def test_scores_do_not_depend_on_outputs_for_unknown_labels(drawn):
    truth, scores, decisions = drawn
    table = np.full((4, 4), 0.3) + 0.7 * np.eye(4)
    lost = np.isnan(truth)
    other = Predictions(truth, np.where(lost, 1 - scores, scores), np.where(lost, ~decisions, decisions), table, 1)
    own = Predictions(truth, scores, decisions, table, 1)
    found = metrics.summary(own)
    assert len(found) == 9
    assert np.isfinite(list(found.values())).all()
    assert metrics.summary(other) == found
    assert metrics.intervals(other, draws=20) == metrics.intervals(own, draws=20)
    for name, values in metrics.table_by_class(own).items():
        np.testing.assert_array_equal(values, metrics.table_by_class(other)[name])


def test_scores_of_a_class_are_those_of_its_labelled_records(drawn):
    truth, scores, decisions = drawn
    found = metrics.table_by_class(Predictions(truth, scores, decisions))
    for k in range(4):
        rows = ~np.isnan(truth[:, k])
        one = Predictions(truth[rows, k : k + 1], scores[rows, k : k + 1], decisions[rows, k : k + 1])
        alone = metrics.table_by_class(one)
        for name in ("auroc", "auprc", "f1", "brier"):
            assert found[name][k] == pytest.approx(alone[name][0], abs=1e-12)
    full = np.nan_to_num(truth)
    assert metrics.accuracy(truth, np.where(np.isnan(truth), 1, full)) == 1
    assert metrics.accuracy(full, np.where(np.isnan(truth), 1, full)) < 1
    wanted = metrics.calibration_error(full[~np.isnan(truth)][:, None], scores[~np.isnan(truth)][:, None])
    assert metrics.calibration_error(truth, scores) == pytest.approx(wanted)


def test_a_class_without_a_known_label_has_no_score(drawn):
    truth, scores, decisions = drawn
    truth[:, 2] = np.nan
    found = metrics.table_by_class(Predictions(truth, scores, decisions))
    assert all(np.isnan(values[2]) for name, values in found.items() if name not in ("f1", "f2", "g2"))
    assert np.isfinite(metrics.summary(Predictions(truth, scores, decisions))["brier"])


def test_thresholds_and_temperature_are_those_of_the_known_labels(drawn):
    truth, scores, _ = drawn
    lost = np.isnan(truth)
    table = np.full((4, 4), 0.3) + 0.7 * np.eye(4)
    for criterion in ("f1", "youden", "challenge"):
        found = thresholds.fit_thresholds(truth, scores, criterion, table, 1)
        other = thresholds.fit_thresholds(truth, np.where(lost, 0.9, scores), criterion, table, 1)
        np.testing.assert_array_equal(other, found)
    logits = np.log(scores / (1 - scores))
    assert thresholds.temperature(truth, logits) == thresholds.temperature(truth, np.where(lost, 50, logits))


@pytest.mark.parametrize("loss", ["bce", "weighted_bce", "asymmetric"])
def test_the_loss_is_the_mean_over_the_known_labels(loss):
    torch.manual_seed(0)
    logits, y = torch.randn(6, 3, requires_grad=True), (torch.rand(6, 3) < 0.5).float()
    holes = torch.zeros(6, 3, dtype=torch.bool)
    holes[0, 0] = holes[2, 1] = holes[5] = True
    task = EcgTask(classes=["a", "b", "c"], loss=loss, label_smoothing=0.1, challenge_term=0.5)
    task.positive_weight = torch.tensor([1.0, 5.0, 2.0])
    task.challenge = (np.full((3, 3), 0.3) + 0.7 * np.eye(3), 1)
    masked = task.criterion(logits, y.masked_fill(holes, torch.nan))
    masked.backward()
    assert torch.isfinite(masked)
    assert not logits.grad[holes].any()
    assert logits.grad[~holes].all()
    task.hparams["challenge_term"] = 0
    weight, parts = task.positive_weight, []
    for i, j in (~holes).nonzero():
        task.positive_weight = weight[j]
        parts.append(task.criterion(logits[i, j].view(1, 1), y[i, j].view(1, 1)))
    task.positive_weight = weight
    torch.testing.assert_close(task.criterion(logits, y.masked_fill(holes, torch.nan)), torch.stack(parts).mean())
    assert float(task.criterion(logits, torch.full((6, 3), torch.nan)).detach()) == 0


def test_a_mix_of_a_known_and_an_unknown_label_is_unknown():
    torch.manual_seed(0)
    y = torch.tensor([[1.0], [torch.nan]])
    for _ in range(20):
        _, mixed = Augment(mix_up=0.3)(torch.randn(2, 12, 50), y, 100.0)
        assert bool(mixed.isnan()[1])
        assert float(mixed[0]) == 1 or bool(mixed[0].isnan())


def test_empty_cells_are_read_counted_and_split(made, tmp_path, capsys):
    holes(made, tmp_path)
    data = EcgData(manifest=str(tmp_path / "m.csv"), window_s=2)
    data.setup("fit")
    printed = capsys.readouterr().out
    assert "unknown labels (empty cells), left out of the loss and of all scores: AF 29" in printed
    assert "1 records without a known label dropped" in printed
    column = data.classes.names.index("AF")
    assert data.train_set.y[1::2, column].isnan().all()
    assert data.train_set.y[::2, column].isfinite().all()
    assert int(data.known[column]) == 20
    assert float(data.counts[column]) == float(data.train_set.y[::2, column].sum())
    assert len(data.test_set) == 9


def test_a_dash_or_an_unknown_column_is_still_refused(made, tmp_path):
    frame = holes(made, tmp_path)
    frame.loc[3, "AF"] = "-"
    frame.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(InputError, match="'-' is neither 0, 1 nor empty"):
        EcgData(manifest=str(tmp_path / "m.csv"), window_s=2).setup("fit")
    frame[CLASSES] = ""
    frame.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(InputError, match="all label cells are empty"):
        EcgData(manifest=str(tmp_path / "m.csv"), window_s=2).setup("fit")


def test_a_run_and_a_study_on_partly_labelled_records(made, tmp_path, capsys):
    frame = holes(made, tmp_path)
    argv = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", str(tmp_path / "m.csv")]
    argv += ["--model.d_model", "16", "--model.depth", "1", "--model.d_state", "4", "--data.window_s", "2"]
    argv += ["--trainer.accelerator", "cpu", "--model.threads", "1", "--trainer.max_epochs", "1"]
    argv += ["--data.mix_up", "0.2", "--model.loss", "weighted_bce", "--output", str(tmp_path / "run")]
    assert main(argv) == 0
    assert main(["ecg", "test", str(tmp_path / "run")]) == 0
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert all(value is not None for value in content["metrics"].values())
    table = next(one["rows"] for one in content["tables"] if one["title"].startswith("By class"))
    labelled = {row["class"]: row["labelled"] for row in table}
    assert labelled["AF"] == 5
    assert set(labelled.values()) == {5, 9}
    written = pd.read_csv(tmp_path / "run" / "figures" / "test_records.csv")
    assert written["label_AF"].isna().sum() == 4
    assert (written["label_AF"].dropna().to_numpy() == frame["AF"].iloc[50:59:2].astype(float).to_numpy()).all()
    from seqssm_ecg.tested import test_records

    found = test_records(tmp_path / "run", {"hparams": {"classes": [row["class"] for row in table]}})
    assert np.isfinite(found.probabilities["AF"][0]).sum() == 5
    shutil.copytree(tmp_path / "run", tmp_path / "same")
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "same")]) == 0, "an index error"
    assert "on the same 9 records" in capsys.readouterr().out
    assert found.scores(np.arange(9))["auroc"] == pytest.approx(content["metrics"]["auroc"], abs=1e-4)
    frame.drop(columns="split").to_csv(tmp_path / "k.csv", index=False)
    argv = ["ecg", "kfold", "--config", "ecg_small", "--data.manifest", str(tmp_path / "k.csv"), "--folds", "3"]
    assert main([*argv, "--models", "linear,prior", "--output", str(tmp_path / "k")]) == 0
    folds = pd.read_csv(tmp_path / "k" / "folds.csv")
    assert folds[["auroc", "f1", "brier"]].notna().all(axis=None)
    capsys.readouterr()
