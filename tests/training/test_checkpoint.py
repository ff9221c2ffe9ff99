"""Checkpoints: plain, atomic, and rejected in one line if foreign or damaged; warm start."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import seqssm
from seqssm.cli.main import main
from seqssm.files.disk import atomic
from seqssm.training import checkpoint
from seqssm.training.output_names import Outputs
from seqssm.training.warm_start import renamed, summary


def test_a_checkpoint_is_plain_and_sufficient_for_prediction(run):
    for name in ("best.ckpt", "last.ckpt"):
        content = torch.load(run / name, weights_only=True)
        entry = content["seqssm"]
        checkpoint.require_plain(entry, name)
        assert entry["domain"] == "toy"
        assert entry["version"] == seqssm.__version__
        assert torch.equal(entry["data"]["offset"], torch.tensor([0.25]))
        assert entry["hparams"]["d_model"] == 8
        assert entry["hparams"]["inputs"] == 3, "filled in from the data"
    assert "optimizer_states" not in torch.load(run / "best.ckpt", weights_only=True)


@pytest.mark.parametrize("value", [np.float32(1), np.zeros(2), Path("x"), {1, 2}, {"a": [object()]}])
def test_other_objects_are_refused_when_written(value):
    with pytest.raises(TypeError, match="tensors and plain Python only"):
        checkpoint.require_plain({"scaler": value}, "checkpoint")


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def damage(run: Path, kind: str, mark: Path) -> Path:
    path = run / "bad.ckpt"
    content = bytearray((run / "best.ckpt").read_bytes())
    whole = torch.load(run / "best.ckpt", weights_only=True)
    if kind == "truncated":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint", encoding="utf-8")
    elif kind == "flipped":
        with zipfile.ZipFile(run / "best.ckpt") as archive:  # a bit inside a tensor, which only the checksum detects
            place = next(info.header_offset for info in archive.infolist() if "/data/" in info.filename)
        name, extra = struct.unpack_from("<HH", content, place + 26)
        content[place + 30 + name + extra] ^= 1
        path.write_bytes(content)
    elif kind == "malicious":
        torch.save({**whole, "extra": Evil(mark)}, path)
    elif kind == "malicious-pickle":
        path.write_bytes(pickle.dumps({"state_dict": Evil(mark)}))
    elif kind == "foreign":
        torch.save({"state_dict": whole["state_dict"], "epoch": 1}, path)
    elif kind == "foreign-zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "a")
    elif kind == "weights-only-list":
        torch.save([1, 2], path)
    elif kind == "newer":
        torch.save({**whole, "seqssm": {**whole["seqssm"], "format": 99, "version": "9.9"}}, path)
    elif kind == "unknown-domain":
        torch.save({**whole, "seqssm": {**whole["seqssm"], "domain": "alchemy"}}, path)
    elif kind == "foreign-class":
        torch.save({**whole, "seqssm": {**whole["seqssm"], "task": "os:system"}}, path)
    elif kind == "missing-class":
        torch.save({**whole, "seqssm": {**whole["seqssm"], "task": "seqssm_toy.task:Gone"}}, path)
    elif kind == "no-task":
        torch.save({**whole, "seqssm": {**whole["seqssm"], "task": "seqssm_toy.task:Net"}}, path)
    elif kind == "other-weights":
        torch.save({**whole, "state_dict": {"model.x": torch.zeros(1)}}, path)
    elif kind == "other-arguments":
        torch.save({**whole, "seqssm": {**whole["seqssm"], "hparams": {"width": 3}}}, path)
    elif kind == "half-an-entry":
        torch.save({**whole, "seqssm": {"format": 1}}, path)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "is not a seqssm checkpoint, or it is truncated"),
        ("empty", "is not a seqssm checkpoint, or it is truncated"),
        ("text", "is not a seqssm checkpoint, or it is truncated"),
        ("flipped", "is corrupt: wrong checksum of member"),
        ("malicious", "more than tensors and plain values, and was not opened"),
        ("malicious-pickle", "is not a seqssm checkpoint"),
        ("foreign", "it has no 'seqssm' entry"),
        ("foreign-zip", "is not a seqssm checkpoint"),
        ("weights-only-list", "it has no 'seqssm' entry"),
        ("newer", "has checkpoint format 99"),
        ("unknown-domain", "alchemy"),
        ("foreign-class", "names the class os:system"),
        ("missing-class", "which this version does not have"),
        ("no-task", "is not a training task"),
        ("other-weights", "does not fit"),
        ("other-arguments", "does not fit"),
        ("half-an-entry", "is corrupt"),
        ("folder", "contains no checkpoint"),
        ("missing", "no such run or checkpoint"),
    ],
)
def test_an_unusable_checkpoint_is_one_line(run, capsys, tmp_path, kind, words, numbers):
    path = damage(run, kind, tmp_path / "mark")
    with pytest.raises(seqssm.InputError, match="ckpt"):
        seqssm.load(path)
    for argv in (["predict", str(path), str(numbers(1)), "--output", "out.csv"], ["toy", "test", str(path)]):
        assert main(argv) == 2
        message = capsys.readouterr().err.strip()
        assert words in message
        assert len(message.splitlines()) == 1
        assert str(path) in message
    assert not (tmp_path / "mark").exists(), "code of the checkpoint was run"


def test_a_run_folder_means_its_best_checkpoint(run):
    assert checkpoint.find_checkpoint(run) == run / "best.ckpt"
    (run / "best.ckpt").unlink()
    assert checkpoint.find_checkpoint(run) == run / "last.ckpt"


def test_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(TypeError), atomic(path, "w") as file:
        file.writelines(["half", 1])
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["file"]


def state(run) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", weights_only=True)["state_dict"]


FIT = ["toy", "fit", "--config", "tiny", "--output", "new", "--trainer.max_epochs", "1"]


def test_warm_start_loads_matching_weights_and_reports_them(run, capsys):
    assert main([*FIT, "--model.init_from", str(run), "--model.learning_rate", "0"]) == 0
    assert "  loaded: 4 (" in capsys.readouterr().out
    before, after = state(run), state(Path("new"))
    best = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert before.keys() == after.keys()
    assert all(torch.equal(best[name], after[name]) for name in best)


def test_labels_of_other_names_are_reported():
    """Weights of labels fit by shape: those of one label would silently become those of another."""
    (line,) = renamed(Outputs("classes", ("a", "c")), Outputs("classes", ("a", "b")))
    assert "warning: other classes (there a, b; here a, c)" in line
    assert renamed(Outputs("classes", ("a",)), Outputs("classes", ("a", "b"))) == []
    assert renamed(Outputs(), Outputs("classes", ("a",))) == []


def test_a_head_that_does_not_fit_stays_new(run, capsys):
    assert main([*FIT, "--model.init_from", str(run), "--model.out", "2", "--model.learning_rate", "0"]) == 0
    printed = capsys.readouterr().out
    assert "loaded: 2 (backbone.0.weight, backbone.0.bias)" in printed
    assert "new: 2 (head.weight, head.bias)" in printed
    assert "unused: 2 (head.weight, head.bias)" in printed
    best = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state(Path("new"))["model.backbone.0.weight"], best["model.backbone.0.weight"])


def test_a_frozen_backbone_is_unchanged_and_the_head_learns(run):
    assert main([*FIT, "--model.init_from", str(run), "--model.freeze", "backbone"]) == 0
    best, after = torch.load(run / "best.ckpt", weights_only=True)["state_dict"], state(Path("new"))
    for name in best:
        assert torch.equal(best[name], after[name]) == ("backbone" in name), name


def test_no_matching_weight_is_an_error(run, capsys):
    assert main([*FIT, "--model.init_from", str(run), "--model.d_model", "9", "--model.out", "3"]) == 2
    printed = capsys.readouterr().err
    assert "contains no weight that fits" in printed
    assert "options that differ: --model.d_model 9 (there " in printed
    assert main([*FIT, "--model.init_from", "nowhere.ckpt"]) == 2
    assert "nowhere.ckpt: no such run or checkpoint" in capsys.readouterr().err


def test_a_warm_start_with_few_weights_is_reported(run):
    source = {"a": torch.ones(4), "b.bias": torch.ones(3)}
    target = {"a": torch.ones(4), **{f"b.{k}": torch.ones(2) for k in range(20)}}
    lines = summary("x", source, target, {"a": source["a"]}, ["--model.d_model 9 (there 4)"])
    assert lines[2] == "  new: 20 (" + ", ".join(f"b.{k}" for k in range(8)) + ", ...)"
    assert "  options that differ: --model.d_model 9 (there 4)" in lines
    assert lines[-1] == "  warning: only 9.1 % of the model's parameters are loaded, the others are new"
    assert "warning" not in summary("x", source, source, source, [])[-1]


def test_a_resumed_warm_start_does_not_load_the_weights_again(run):
    fit = [*FIT[:-2], "--trainer.max_epochs", "2", "--model.init_from", str(run)]
    assert main(fit) == 0
    assert main([*fit[:5], "half", *fit[6:-4], "--trainer.max_epochs", "1", "--model.init_from", str(run)]) == 0
    (run / "best.ckpt").unlink()
    (run / "last.ckpt").unlink()
    assert main(["toy", "fit", "--resume", "half", "--trainer.max_epochs", "2"]) == 0
    one, other = state(Path("new")), state(Path("half"))
    assert all(torch.equal(one[name], other[name]) for name in one)
