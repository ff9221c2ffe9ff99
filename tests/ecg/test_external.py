"""`test` on other data than the run's: the checkpoint's classes, preprocessing and thresholds; overlap is reported."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg import simulate

from seqssm.cli.main import main


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another hospital's 16 records at another rate, with `manifest.csv`."""
    folder = tmp_path_factory.mktemp("other")
    simulate.folder(folder, 16, seed=50, seconds=6.0, rate_hz=500.0)
    return folder


def test_every_record_is_tested_with_the_checkpoints_values(trained, other, tmp_path, capsys):
    words = ["--data.manifest", str(other / "manifest.csv"), "--output", str(tmp_path / "t")]
    assert main(["ecg", "test", str(trained), *words]) == 0
    printed = capsys.readouterr()
    assert "16 test records" in printed.out
    assert "all labelled records are tested" in printed.out
    assert "linear" in printed.out
    report = json.loads((tmp_path / "t" / "metrics.json").read_text())["test"]
    assert report["data"] == {"manifest": str(other / "manifest.csv")}
    tested = pd.read_csv(tmp_path / "t" / "figures" / "test_records.csv")
    assert main(["predict", str(trained), str(other), "--output", str(tmp_path / "p.csv"), "--accelerator", "cpu"]) == 0
    predicted = pd.read_csv(tmp_path / "p.csv")
    classes = [f"p_{name}" for name in simulate.CLASSES]
    np.testing.assert_allclose(tested[classes], predicted[classes], atol=1e-5)


def test_records_that_were_trained_on_are_counted(trained, made, tmp_path, capsys):
    table = pd.read_csv(made / "manifest.csv")
    table["path"] = [str(made / name) for name in table["path"]]  # other ids, the same samples
    table.to_csv(tmp_path / "m.csv", index=False)
    words = ["--data.manifest", str(tmp_path / "m.csv"), "--output", str(tmp_path / "t")]
    assert main(["ecg", "test", str(trained), *words]) == 0
    split = pd.read_csv(trained / "split.csv")
    assert set(split.columns) == {"split", "id", "patient", "samples"}
    count = int((split["split"] == "train").sum())
    assert f"the run was trained on {count} of the 60 tested records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.rename(columns={"AF": "XX"}), "has classes unknown to the model, XX"),
        (lambda f: f.drop(columns="AF"), "has no column for the class AF"),
        (lambda f: f[["path"]].assign(labels="XX"), "has classes unknown to the model"),
    ],
)
def test_other_classes_are_refused(trained, other, tmp_path, capsys, change, message):
    table = pd.read_csv(other / "manifest.csv")
    table["path"] = [str(other / name) for name in table["path"]]
    change(table).to_csv(tmp_path / "m.csv", index=False)
    words = ["--data.manifest", str(tmp_path / "m.csv"), "--output", str(tmp_path / "t")]
    assert main(["ecg", "test", str(trained), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_column_of_labels_needs_only_the_names_that_occur(trained, other, tmp_path):
    table = pd.read_csv(other / "manifest.csv")
    labels = [";".join(name for name in simulate.CLASSES[:3] if row[name]) or "[]" for _, row in table.iterrows()]
    pd.DataFrame({"path": [str(other / name) for name in table["path"]], "labels": labels}).to_csv(
        tmp_path / "m.csv", index=False
    )
    words = ["--data.manifest", str(tmp_path / "m.csv"), "--output", str(tmp_path / "t")]
    assert main(["ecg", "test", str(trained), *words]) == 0
    assert len(pd.read_csv(tmp_path / "t" / "figures" / "test_records.csv")) == 16


@pytest.mark.parametrize(
    "flag", ["--data.lead_set=6", "--data.window_s=2", "--data.normalise=none", "--data.val_fold=1"]
)
def test_what_the_checkpoint_fixes_is_refused(trained, other, tmp_path, capsys, flag):
    words = ["--data.manifest", str(other / "manifest.csv"), "--output", str(tmp_path / "t"), flag]
    assert main(["ecg", "test", str(trained), *words]) == 2
    assert flag.split("=")[0] in capsys.readouterr().err
