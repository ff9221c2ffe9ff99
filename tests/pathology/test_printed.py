"""The commands printed after a fit of own bags, run as printed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import seqssm
from seqssm.cli.main import main
from tests.pathology.conftest import small_flags
from tests.printed import commands, run_printed

OWN = {"slide_column": "the slide", "case_column": "patient no", "label_column": "kind", "folds": 3}
COLUMNS = [word for name, value in OWN.items() for word in (f"--data.{name}", str(value))]
COUNT = 24


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def frame(tmp_path):
    """A manifest with other than the usual names of columns, and its bags, in each of which a patch is NaN."""
    (tmp_path / "bags").mkdir()
    rows = []
    for n in range(COUNT):
        values = np.random.default_rng(n).normal(size=(12, 5)).astype(np.float32) + n % 2
        values[n % 12, 1] = np.nan
        torch.save(torch.from_numpy(values), tmp_path / "bags" / f"s{n}.pt")
        rows.append((f"s{n}", f"c{n}", "ab"[n % 2], f"bags/s{n}.pt"))
    frame = pd.DataFrame(rows, columns=["the slide", "patient no", "kind", "path"])
    frame.drop(columns="path").to_csv("own.csv", index=False)
    return frame


def fit(*words):
    argv = ["pathology", "fit", "--config", "srmamba", "--data.manifest", "own.csv", *COLUMNS, *small_flags("srmamba")]
    argv += ["--trainer.max_epochs", "1", "--early_stopping.monitor", "val_loss", "--output", "run"]
    assert main([*argv, *words]) == 0


def test_patches_that_a_fit_dropped_are_dropped(frame, capsys):
    """Every case failed, as predict was not told to drop patches with NaN."""
    fit("--data.features", "bags", "--data.invalid", "drop")
    found = run_printed(capsys.readouterr().out)
    assert found["id"].tolist() == frame["patient no"].tolist()
    assert set(found["patches"]) == {11}


def test_a_value_table_with_own_columns_is_predicted(frame, capsys):
    values = pd.DataFrame(np.random.default_rng(0).normal(size=(COUNT, 6)), columns=list("uvwxyz"))
    values.insert(0, "patient no", frame["patient no"])
    values.to_csv("values.csv", index=False)
    fit("--data.features", "values.csv")
    assert len(run_printed(capsys.readouterr().out)) == COUNT


def test_a_fit_of_a_frame_prints_what_its_bags_need(frame, capsys):
    small = {"d_model": 8, "layers": 1, "d_state": 4, "pool_width": 8}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "early_stopping": {"monitor": "val_loss"}}
    data = {"manifest": frame, "invalid": "drop", **OWN}
    seqssm.fit("pathology", data=data, model=small, trainer=trainer, output="run")
    printed = capsys.readouterr().out
    assert [words[0] for words in commands(printed)] == ["predict"], "no command can read the test cases"
    assert len(run_printed(printed, "bags")) == COUNT
