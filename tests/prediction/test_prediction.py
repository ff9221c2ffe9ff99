"""What a domain's predictor receives: the checkpoint's summary, and the path of the table."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

import seqssm
from seqssm.cli.main import main


def test_a_predictor_knows_the_table_that_the_command_writes(run, numbers, monkeypatch):
    """`Predictor.output` is the path of the table, in loader processes too, and None from Python."""
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


def test_a_missing_description_of_the_data_is_reported_where_it_is_read(run, numbers):
    """The toy reads its summary late: every record reports it, also from a loader process."""
    content = torch.load(run / "best.ckpt", weights_only=True)
    content["seqssm"]["data"] = {"other": 1}
    torch.save(content, run / "best.ckpt")
    model = seqssm.load(run)
    reason = f"{run / 'best.ckpt'}: is corrupt: its 'seqssm' entry is incomplete (no data.offset)"
    frame = model.predict(numbers(2))
    assert frame["status"].tolist() == ["failed", "failed"]
    assert frame["reason"].tolist() == [reason, reason]
    summary = pickle.loads(pickle.dumps(model.summary))
    assert summary["other"] == 1
    assert summary.get("offset") is None
    with pytest.raises(seqssm.InputError, match="is corrupt"):
        summary["offset"]


@pytest.mark.parametrize("command", [["predict", "--output", "out.csv"], ["toy", "test"]])
def test_arguments_that_a_task_refuses_name_the_checkpoint(run, numbers, capsys, monkeypatch, command):
    from seqssm_toy.task import ToyTask

    from seqssm.errors import InputError

    def refuse(self):
        raise InputError("--model.inputs is not known")

    monkeypatch.setattr(ToyTask, "build_model", refuse)
    words = [*command[:1], str(run), str(numbers(2)), *command[1:]] if command[0] == "predict" else [*command, str(run)]
    assert main(words) == 2
    assert capsys.readouterr().err.strip() == f"seqssm: {run / 'best.ckpt'}: --model.inputs is not known"
