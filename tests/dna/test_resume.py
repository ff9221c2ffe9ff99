"""A run of every task that is continued has the weights of one that was not stopped, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from seqssm.cli.main import main
from seqssm.training.checkpoint import read_checkpoint
from tests.dna.conftest import fasta, letters

SMALL = ("--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "4", "--model.threads", "1")
PLAIN = ("--model.schedule", "constant", "--trainer.accelerator", "cpu", "--seed_everything", "3")
TASKS = {
    "tiny": ("--data.fasta", "genome.fa", "--data.context", "64"),
    "masked": ("--data.fasta", "genome.fa", "--data.context", "64"),
    "finetune": ("--data.train", "labels.csv"),
    "yeast_generation": ("--data.train", "labels.csv", "--data.label_column", "strength", "--model.mixer", "mamba"),
}


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch, one_thread):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # removes variables that a command sets
    monkeypatch.chdir(tmp_path)
    (tmp_path / "genome.fa").write_text(fasta([("one", letters(3000, 1)), ("two", letters(2000, 2))]))
    rows = [f"{letters(30 + i % 3, 10 + i)},{'ab'[i % 2]},{i / 60}" for i in range(60)]
    (tmp_path / "labels.csv").write_text("\n".join(["sequence,label,strength", *rows]) + "\n")


@pytest.mark.parametrize("preset", TASKS)
def test_a_continued_run_has_the_same_weights(preset):
    command = ["dna", "fit", "--config", preset, *SMALL, *PLAIN, *TASKS[preset]]
    assert main([*command, "--trainer.max_epochs", "2", "--output", "whole"]) == 0
    assert main([*command, "--trainer.max_epochs", "1", "--output", "part"]) == 0
    assert main(["dna", "fit", "--resume", "part", "--trainer.max_epochs", "2"]) == 0
    whole, part = (read_checkpoint(f"{name}/last.ckpt")["state_dict"] for name in ("whole", "part"))
    assert whole.keys() == part.keys()
    assert all(torch.equal(value, part[name]) for name, value in whole.items())


def swap(path, first, second):
    """Exchange two labels of a table."""
    text = path.read_text().replace(f",{first},", ",?,").replace(f",{second},", f",{first},")
    path.write_text(text.replace("?", second))


def test_a_run_is_not_continued_on_other_data(tmp_path, capsys):
    """Labels that were inverted, or records that were removed, after an interruption."""
    table = tmp_path / "labels.csv"
    header, *rows = table.read_text().splitlines()
    parts = ["train", "train", "train", "val", "test", "test"]
    before = "\n".join([f"{header},split", *(f"{row},{parts[k // 2 % 6]}" for k, row in enumerate(rows))]) + "\n"
    table.write_text(before)
    command = ["dna", "fit", "--config", "finetune", *SMALL, *PLAIN, *TASKS["finetune"], "--trainer.max_epochs", "1"]
    assert main([*command, "--output", "run"]) == 0
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    resume = ["dna", "fit", "--resume", "run", "--trainer.max_epochs", "2"]
    swap(table, "a", "b")
    capsys.readouterr()
    assert main(resume) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "run: the data are not those of this run (targets of training records have changed" in error
    assert "start again with --overwrite or another --output" in error
    assert main(["dna", "test", "run"]) == 0
    assert "warning: the data have changed since the training: targets of test records" in capsys.readouterr().err
    header, *rows = before.splitlines()
    other = {"a": "b", "b": "a"}
    cells = [row.split(",") for row in rows]
    place = header.split(",").index("label")
    for row in cells:
        row[place] = other.get(row[place], row[place]) if row[-1] == "train" else row[place]
    table.write_text("\n".join([header, *map(",".join, cells)]) + "\n")
    assert main(["dna", "test", "run"]) == 0
    assert "warning: the training records have changed since the training, and with them" in capsys.readouterr().err
    assert "targets of training" in json.loads(Path("run/metrics.json").read_text())["test"]["training_changed"]
    table.write_text("\n".join(before.splitlines()[:-6]) + "\n")
    assert main(resume) == 2
    assert "4 test records are gone or changed, 0 are new" in capsys.readouterr().err
    assert {name: (tmp_path / "run" / name).read_bytes() for name in ("last.ckpt", "split.csv", "config.yaml")} == {
        name: kept[name] for name in ("last.ckpt", "split.csv", "config.yaml")
    }
    table.write_text(before)
    assert main(resume) == 0
    capsys.readouterr()
    assert main(["dna", "test", "run"]) == 0
    assert "have changed" not in capsys.readouterr().err


def test_rows_without_ids_in_another_order_are_the_same_data(tmp_path, capsys):
    """Their ids are the numbers of the lines."""
    table = tmp_path / "labels.csv"
    header, *rows = table.read_text().splitlines()
    assert "id" not in header.split(",")
    command = ["dna", "fit", "--config", "finetune", *SMALL, *PLAIN, *TASKS["finetune"], "--trainer.max_epochs", "1"]
    assert main([*command, "--output", "run"]) == 0
    table.write_text("\n".join([header, *rows[::-1]]) + "\n")
    resume = ["dna", "fit", "--resume", "run", "--trainer.max_epochs", "2"]
    capsys.readouterr()
    assert main(resume) == 0, capsys.readouterr().err
    assert main(["dna", "test", "run"]) == 0
    assert "have changed" not in capsys.readouterr().err
    swap(table, "a", "b")
    assert main([*resume[:-1], "3"]) == 2
    assert "records are gone or changed" in (error := capsys.readouterr().err) or "have changed" in error


def test_a_run_is_not_continued_on_other_letters(tmp_path, capsys):
    """A letter of the genome changed, and no length; a copy of the same file is the same genome."""
    genome = tmp_path / "genome.fa"
    command = ["dna", "fit", "--config", "tiny", *SMALL, *PLAIN, *TASKS["tiny"], "--trainer.max_epochs", "1"]
    assert main([*command, "--output", "run"]) == 0
    resume = ["dna", "fit", "--resume", "run", "--trainer.max_epochs", "2"]
    before = genome.read_text()
    genome.write_text(before[:50] + "ACGT"["ACGT".index(before[50]) - 1] + before[51:])
    capsys.readouterr()
    assert main(resume) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "run: the data are not those of this run (inputs of training records have changed); restore them" in error
    genome.unlink()
    genome.write_text(before)
    assert main(resume) == 0


@pytest.mark.parametrize("column", ["fold", "is_test"])
def test_a_run_keeps_its_random_split_beside_a_column_of_splits(tmp_path, capsys, column):
    """Runs of a table that has folds or flags since then, or of an earlier version, were refused."""
    command = ["dna", "fit", "--config", "finetune", *SMALL, *PLAIN, *TASKS["finetune"], "--trainer.max_epochs", "1"]
    assert main([*command, "--output", "run"]) == 0
    kept = Path("run/split.csv").read_bytes()
    table = tmp_path / "labels.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{header},{column}", *(f"{row},{k // 2 % 2}" for k, row in enumerate(rows))]) + "\n")
    assert main([*command, "--output", "other"]) == 2
    capsys.readouterr()
    for again in (["fit", "--resume", "run", "--trainer.max_epochs", "2"], ["test", "run"], ["validate", "run"]):
        assert main(["dna", *again]) == 0
        printed = "".join(capsys.readouterr())
        assert "the data have changed" not in printed
        assert f"column {column} holds " in printed or again[0] != "fit"
    assert Path("run/split.csv").read_bytes() == kept
    options = ["--students", "1", "--no-control", "--trainer.max_epochs", "1"]
    assert main(["distill", "run", "--output", "students.ckpt", *options]) == 0


def test_a_study_is_continued_with_its_random_split(tmp_path):
    models = ["kfold", "--config", "finetune", *TASKS["finetune"], "--output", "study", "--models"]
    assert main(["dna", *models, "kmers"]) == 0
    table = tmp_path / "labels.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{header},fold", *(f"{row},{k // 2 % 2}" for k, row in enumerate(rows))]) + "\n")
    assert main(["dna", *models, "kmers", "--seeds", "1,2", "--resume"]) == 0
    assert main(["dna", *models, "kmers", "--seeds", "1,2", "--overwrite"]) == 2
