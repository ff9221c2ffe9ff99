"""`kfold --resume` compares the data with those of the finished runs, in every domain."""

from __future__ import annotations

import random
from pathlib import Path

import pandas as pd
import pytest

from seqssm.cli.main import main

TINY = ("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu")


def dna():
    rows = random.Random(1)
    text = [
        f"{''.join(rows.choices('ACGT', k=30))},{'ab'[i % 2]},{['train', 'train', 'val', 'test'][i // 2 % 4]}"
        for i in range(48)
    ]
    Path("data.csv").write_text("\n".join(["sequence,label,split", *text]) + "\n")
    small = "--model.d_model 16 --model.n_layers 1 --model.d_state 4"
    return f"--config finetune --data.train data.csv {small}"


def ecg():
    from seqssm_ecg import simulate

    simulate.folder(Path(), 40, seed=3, seconds=2.0)
    table = pd.read_csv("manifest.csv", dtype=str, keep_default_na=False)
    table["split"] = ["train", "train", "val", "test"] * 10
    table.to_csv("data.csv", index=False)
    return "--config ecg_small --data.manifest data.csv --data.window_s 2 --models prior,linear"


def forecasting():
    from seqssm_forecasting import simulate

    simulate.series(300, 2).to_csv("data.csv", index=False)
    return "--config smamba --data.file data.csv --data.lookback 24 --data.horizon 6 --models last_value"


def pathology():
    from seqssm_pathology import simulate

    simulate.cohort(Path(), cases=24, seed=3, width=6)
    Path("manifest.csv").rename("data.csv")
    return "--config srmamba --data.manifest data.csv --data.features . --models mean"


def with_other_labels(domain):
    """Change labels, or the values of a series, in `data.csv`."""
    table = pd.read_csv("data.csv", dtype=str, keep_default_na=False)
    if domain == "forecasting":
        table.iloc[5, 1] = "99.5"
    else:
        column = "PVC" if domain == "ecg" else "label"
        first, second = sorted(set(table[column]))[:2]
        table[column] = table[column].replace({first: second, second: first})
    table.to_csv("data.csv", index=False)


@pytest.mark.parametrize(
    "make", [pytest.param(dna, marks=pytest.mark.long), ecg, forecasting, pathology], ids=lambda make: make.__name__
)
def test_a_study_is_not_continued_on_other_data(tmp_path, monkeypatch, capsys, one_thread, make):
    """Finished runs were kept, and the others trained on the new data, in one table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # removes variables that a command sets
    domain = make.__name__
    study = [domain, "kfold", *make().split(), *TINY, "--output", "study"]
    assert main([*study, "--seeds", "1"]) == 0
    before, table = Path("data.csv").read_bytes(), Path("study/folds.csv").read_bytes()
    with_other_labels(domain)
    capsys.readouterr()
    assert main([*study, "--seeds", "1,2", "--resume"]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert "seed-1: the data are not those of this run (" in lines[-1]
    assert "restore them, or start again with --overwrite or another --output" in lines[-1]
    assert "kfold 1 of" not in printed.out, "nothing is printed as finished before the data are compared"
    assert Path("study/folds.csv").read_bytes() == table
    Path("data.csv").write_bytes(before)
    assert main([*study, "--seeds", "1", "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out
