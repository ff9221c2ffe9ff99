"""What floor 2 hands to a domain's predictor: the checkpoint's summary, and where the table will be."""

from __future__ import annotations

import os
from pathlib import Path

import seqssm
from seqssm.cli.main import main


def test_a_predictor_knows_the_table_that_the_command_writes(run, numbers, monkeypatch):
    """`Predictor.output`: for files beside the table; in the loader's processes too, and nowhere from Python."""
    from seqssm_toy.predict import ToyPredictor

    predict, prepare = ToyPredictor.predict, ToyPredictor.prepare

    def noted(self, records):
        Path("predicted").write_text(str(self.output), encoding="utf-8")
        return predict(self, records)

    def noted_too(self, record):
        Path("prepared").write_text(f"{os.getpid() != parent} {self.output}", encoding="utf-8")
        return prepare(self, record)

    monkeypatch.setattr(ToyPredictor, "predict", noted)
    monkeypatch.setattr(ToyPredictor, "prepare", noted_too)
    parent, path = os.getpid(), numbers(2)
    assert main(["predict", str(run), str(path), "--output", "tables/out.csv", "--num-workers", "1"]) == 0
    assert Path("predicted").read_text(encoding="utf-8") == str(Path("tables/out.csv"))
    assert Path("prepared").read_text(encoding="utf-8") == f"True {Path('tables/out.csv')}"
    seqssm.load(run).predict(path)
    assert Path("predicted").read_text(encoding="utf-8") == "None"
    assert Path("prepared").read_text(encoding="utf-8") == "False None"
