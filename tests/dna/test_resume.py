"""A run of every task that is continued has the weights of one that was not stopped, to the bit."""

from __future__ import annotations

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
